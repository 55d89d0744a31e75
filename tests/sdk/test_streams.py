"""Streamed answers through the gateway, from every backend."""

import json

import openai
import pytest
from pydantic import BaseModel

from answers import MODEL, PIECES
from conftest import BACKENDS
from conversation import TOOLS, answers_to, user

TEXT = "".join(PIECES)
THINKERS = ["mis", "llama", "groq", "together"]
# An Azure version that does not know stream_options cannot report usage in a stream.
COUNTING = [name for name in BACKENDS if name != "az"]


def text_of(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def deltas(chunks):
    return [choice.delta for chunk in chunks for choice in chunk.choices]


def test_a_stream_carries_the_text_in_pieces_from_every_backend(client, backend):
    chunks = list(client.chat.completions.create(model=backend, messages=user("hi"), stream=True))
    assert text_of(chunks) == TEXT
    assert len([delta for delta in deltas(chunks) if delta.content]) == len(PIECES)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {MODEL}
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].id


async def test_the_asynchronous_client_streams_from_every_backend(async_client, backend):
    stream = await async_client.chat.completions.create(model=backend, messages=user("hi"), stream=True)
    assert text_of([chunk async for chunk in stream]) == TEXT


def test_a_stream_has_one_role_and_ends_with_one_finish_reason(client, backend):
    chunks = list(client.chat.completions.create(model=backend, messages=user("hi"), stream=True))
    assert [delta.role for delta in deltas(chunks) if delta.role] == ["assistant"]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]


def test_a_stream_without_the_wish_for_usage_has_no_frame_without_choices(client, backend):
    chunks = list(client.chat.completions.create(model=backend, messages=user("hi"), stream=True))
    assert all(chunk.choices for chunk in chunks)


@pytest.mark.parametrize("backend", COUNTING)
def test_usage_comes_once_in_a_last_frame_of_its_own_if_wished(client, backend):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model=backend, messages=user("hi"), **options))
    assert text_of(chunks) == TEXT
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 18


def test_the_wish_for_usage_does_not_disturb_a_host_that_cannot_report_it(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    assert text_of(client.chat.completions.create(model="az", messages=user("hi"), **options)) == TEXT


def test_a_stream_names_its_backend_and_request_id(client, backend):
    raw = client.chat.completions.with_raw_response.create(
        model=backend, messages=user("hi"), stream=True, extra_headers={"x-request-id": "request-of-mine-2"}
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["x-request-id"] == "request-of-mine-2"
    assert raw.headers["x-stagedoor-backend"] == backend
    assert text_of(raw.parse()) == TEXT


def test_streamed_parallel_tool_calls_are_named_once_and_add_up(client, backend):
    chunks = list(
        client.chat.completions.create(model=backend, messages=user("[call-tools]"), tools=TOOLS, stream=True)
    )
    parts = [part for delta in deltas(chunks) for part in delta.tool_calls or []]
    for index, (name, arguments) in enumerate(
        [("get_weather", {"city": "Paris"}), ("get_time", {"zone": "Europe/Paris"})]
    ):
        mine = [part for part in parts if part.index == index]
        assert len([part.id for part in mine if part.id]) == 1
        assert [part.type for part in mine if part.type] == ["function"]
        assert [part.function.name for part in mine if part.function.name] == [name]
        assert json.loads("".join(part.function.arguments or "" for part in mine)) == arguments
    assert {part.index for part in parts} == {0, 1}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_stream_of_text_has_no_empty_list_of_tool_calls(client, backend):
    chunks = list(client.chat.completions.create(model=backend, messages=user("hi"), stream=True))
    assert all(delta.tool_calls is None for delta in deltas(chunks))


def test_the_stream_helper_gathers_text_and_role(client, backend):
    with client.chat.completions.stream(model=backend, messages=user("hi")) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == TEXT
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].finish_reason == "stop"


def test_the_stream_helper_gathers_parallel_calls_that_can_be_answered(client, backend):
    with client.chat.completions.stream(model=backend, messages=user("[call-tools]"), tools=TOOLS) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_weather", "get_time"]
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [
        {"city": "Paris"},
        {"zone": "Europe/Paris"},
    ]
    calls = [
        call.model_dump(include={"id": True, "type": True, "function": {"name", "arguments"}})
        for call in message.tool_calls
    ]
    history = [*user("[call-tools]"), {"role": "assistant", "tool_calls": calls}, *answers_to(message)]
    with client.chat.completions.stream(model=backend, messages=history, tools=TOOLS) as stream:
        answer = stream.get_final_completion().choices[0].message.content
    # Google wants the results in the order of the calls.
    assert sorted(answer.split("; ")) == ["get_time=12:00", "get_weather=sunny"]


async def test_the_asynchronous_stream_helper_gathers_text(async_client, backend):
    async with async_client.chat.completions.stream(model=backend, messages=user("hi")) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


class City(BaseModel):
    city: str
    population: int


def test_the_stream_helper_parses_an_answer_with_a_schema(client, backend):
    with client.chat.completions.stream(model=backend, messages=user("[as-json]"), response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == City(city="Paris", population=2100000)


@pytest.mark.parametrize("backend", THINKERS)
def test_streamed_thoughts_come_first_and_under_both_of_their_names(client, backend):
    chunks = list(client.chat.completions.create(model=backend, messages=user("[think]"), stream=True))
    assert text_of(chunks) == TEXT
    for name in ("reasoning_content", "reasoning"):
        assert "".join(getattr(delta, name, None) or "" for delta in deltas(chunks)) == "Let me think."
    thinking = [place for place, delta in enumerate(deltas(chunks)) if getattr(delta, "reasoning", None)]
    speaking = [place for place, delta in enumerate(deltas(chunks)) if delta.content]
    assert max(thinking) < min(speaking)


def test_a_stream_cut_by_a_limit_has_the_finish_reason_length(client, backend):
    chunks = list(client.chat.completions.create(model=backend, messages=user("[too-long]"), stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("text", ["hi", "[no-done]"])
def test_a_stream_ends_with_done_even_if_the_host_forgot_it(client, text):
    with client.chat.completions.with_streaming_response.create(model="llama", messages=user(text), stream=True) as raw:
        lines = [line for line in raw.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert lines.count("data: [DONE]") == 1


def test_a_stream_that_its_host_ends_without_a_finish_reason_is_given_one(client):
    chunks = list(client.chat.completions.create(model="llama", messages=user("[no-finish]"), stream=True))
    assert text_of(chunks) == TEXT
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]


def test_a_comment_is_sent_while_the_first_token_is_awaited(client, standin):
    create = client.chat.completions.with_streaming_response.create
    with create(model="patient", messages=user("[hold]"), stream=True) as raw:
        pieces = raw.iter_text()
        assert next(pieces).startswith(":")
        standin.release()
        # The text holds a line separator that must not be taken for the end of a line.
        events = [line.removeprefix("data: ") for line in "".join(pieces).split("\n") if line.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"])
    assert text == TEXT


def test_comments_do_not_disturb_the_sdk(client, standin):
    stream = client.chat.completions.create(model="patient", messages=user("[hold]"), stream=True)
    standin.release()
    assert text_of(stream) == TEXT


def test_the_first_pieces_arrive_while_the_provider_still_writes(client, standin, backend):
    stream = client.chat.completions.create(model=backend, messages=user("[pause]"), stream=True)
    assert next(chunk for chunk in stream if text_of([chunk]))
    standin.release()
    assert len(list(stream)) > 1


def test_a_client_that_leaves_ends_the_request_at_the_provider(client, standin, backend):
    stream = client.chat.completions.create(model=backend, messages=user("[pause]"), stream=True)
    next(iter(stream))
    stream.close()
    assert standin.await_cancelled()["cancelled"] == 1


@pytest.mark.parametrize("cut", ["truncate", "clean-cut"])
def test_a_truncated_stream_raises_after_the_text_that_came(worn_gateway, backend, cut):
    stream = worn_gateway.client().chat.completions.create(model=backend, messages=user(f"[{cut}]"), stream=True)
    chunks = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            chunks.append(chunk)
    assert not isinstance(caught.value, openai.APIConnectionError)
    assert text_of(chunks) and TEXT.startswith(text_of(chunks))


def test_an_error_inside_a_stream_raises_after_the_text_that_came(worn_gateway, backend):
    stream = worn_gateway.client().chat.completions.create(model=backend, messages=user("[error-inside]"), stream=True)
    chunks = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            chunks.append(chunk)
    assert not isinstance(caught.value, openai.APIConnectionError)
    assert text_of(chunks) and TEXT.startswith(text_of(chunks))
    assert set(caught.value.body) == {"message", "type", "param", "code"}


async def test_a_truncated_stream_raises_in_the_asynchronous_client_and_its_helper(fresh_gateway):
    async with fresh_gateway.async_client() as client:
        with pytest.raises(openai.APIError):
            async with client.chat.completions.stream(model="llama", messages=user("[truncate]")) as stream:
                await stream.get_final_completion()
