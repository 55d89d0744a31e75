"""Conversations with tools and thoughts over several turns, with a provider that checks its own signatures."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from answers import PIECES
from conftest import KEY
from conversation import RESULTS, TOOLS, answers_to, user
from test_langchain import get_time, get_weather

TEXT = "".join(PIECES)
SONNET, OPUS, HAIKU = "ant", "ant/claude-opus-4-6", "ant/claude-haiku-4-5"
FLASH, OLD, VERTEX = "gem", "gem/gemini-2.5-flash", "vertex"
MODELS = [SONNET, OPUS, HAIKU, FLASH, OLD, VERTEX]
MARKERS = ["[call-tools]", "[one-by-one]", "[call-tools] [talk-and-call]"]


def say(client, stream, messages, **options):
    """The assistant's next message."""
    options = {"messages": messages, "tools": TOOLS, **options}
    if not stream:
        return client.chat.completions.create(**options).choices[0].message
    with client.chat.completions.stream(**options) as events:
        return events.get_final_completion().choices[0].message


def echoed(message):
    """As a client sends it that keeps what it does not know."""
    return json.loads(message.model_dump_json(exclude_none=True, exclude={"parsed"}))


def forgetful(message):
    """As a client sends it that keeps only what it knows."""
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.function.name, "arguments": call.function.arguments},
        }
        for call in message.tool_calls or []
    ]
    return {"role": "assistant", "content": message.content, **({"tool_calls": calls} if calls else {})}


def two_questions(client, stream, keep, markers, **options):
    """Each question is answered after its calls, one after the other or together; returns all that was said."""
    history, said = [], []
    for _ in range(2):
        history += user(markers)
        while True:
            message = say(client, stream, history, **options)
            said.append(message)
            history.append(keep(message))
            if not message.tool_calls:
                break
            history += answers_to(message)
    return said


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("keep", [echoed, forgetful])
@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("model", MODELS)
def test_thoughts_and_signatures_survive_two_questions(client, standin, model, markers, keep, stream):
    said = two_questions(client, stream, keep, markers, model=model, reasoning_effort="medium")
    assert [len(message.tool_calls or []) for message in said] == ([1, 1, 0] if "one-by" in markers else [2, 0]) * 2
    assert set(said[-1].content.split("; ")) == {"get_time=12:00", "get_weather=sunny"}
    assert standin.notes() == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("keep", [echoed, forgetful])
@pytest.mark.parametrize("model", [SONNET, OPUS, HAIKU])
@pytest.mark.parametrize("markers", ["[call-tools] [interleaved]", "[call-tools] [redacted]"])
def test_several_thoughts_of_one_turn_keep_their_order(client, standin, model, markers, keep, stream):
    said = two_questions(client, stream, keep, markers, model=model, reasoning_effort="high")
    assert [len(message.tool_calls or []) for message in said] == [2, 0, 2, 0]
    assert standin.notes() == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", [SONNET, FLASH, VERTEX])
def test_the_model_thinks_by_itself_without_being_asked_to(client, standin, model, stream):
    for keep in (echoed, forgetful):
        two_questions(client, stream, keep, "[one-by-one]", model=model)
    assert standin.notes() == []


@pytest.mark.parametrize("model", [SONNET, HAIKU, FLASH, VERTEX])
def test_what_a_client_forgets_is_remembered_on_all_its_connections(gateway, standin, model):
    """Each call and its answer go over connections of their own, while others are open."""

    def one_question(_):
        history = user("[call-tools]")
        for _ in range(2):
            with gateway.client() as client:
                message = say(client, False, history, model=model, reasoning_effort="medium")
            history += [forgetful(message), *answers_to(message)] if message.tool_calls else []

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one_question, range(24)))
    assert standin.notes() == []


@pytest.mark.parametrize("model", [SONNET, HAIKU, FLASH, VERTEX])
def test_what_was_streamed_is_remembered_even_if_the_client_hangs_up_at_the_finish(client, standin, model):
    options = {"model": model, "tools": TOOLS, "reasoning_effort": "medium"}
    for _ in range(5):
        calls = {}
        with client.chat.completions.create(messages=user("[call-tools]"), stream=True, **options) as chunks:
            for chunk in chunks:
                for part in chunk.choices[0].delta.tool_calls or []:
                    call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
                    call["arguments"] += part.function.arguments or ""
                if chunk.choices[0].finish_reason:
                    break
        said = [{"id": call.pop("id"), "type": "function", "function": call} for call in calls.values()]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in said]
        history = [*user("[call-tools]"), {"role": "assistant", "tool_calls": said}, *results]
        client.chat.completions.create(messages=history, **options)
    assert standin.notes() == []


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("markers", ["[call-tools]", "[one-by-one]"])
@pytest.mark.parametrize("model", MODELS)
def test_langchain_keeps_a_conversation_with_thoughts(gateway, standin, model, markers, streamed):
    options = {"base_url": f"{gateway.url}/v1", "api_key": KEY, "max_retries": 0, "reasoning_effort": "medium"}
    chat = ChatOpenAI(model=model, **options).bind_tools([get_weather, get_time])
    history = []
    for _ in range(2):
        history.append(HumanMessage(markers))
        while True:
            if streamed:
                first, *others = chat.stream(history)
                message = sum(others, first)
            else:
                message = chat.invoke(history)
            history.append(message)
            if not message.tool_calls:
                break
            history += [ToolMessage(RESULTS[call["name"]], tool_call_id=call["id"]) for call in message.tool_calls]
    assert set(history[-1].content.split("; ")) == {"get_time=12:00", "get_weather=sunny"}
    assert standin.notes() == []


def test_signatures_are_found_where_they_are_promised(client):
    first = client.chat.completions.create(model="gem", messages=user("[call-tools]"), tools=TOOLS).choices[0].message
    weather, clock = first.tool_calls
    assert weather.extra_content["google"]["thought_signature"]
    assert not getattr(clock, "extra_content", None)
    text = client.chat.completions.create(model="gem", messages=user("hi")).choices[0].message
    assert text.extra_content["google"]["thought_signature"]
    chunks = client.chat.completions.create(model="gem", messages=user("[call-tools]"), tools=TOOLS, stream=True)
    parts = [part for chunk in chunks for choice in chunk.choices for part in choice.delta.tool_calls or []]
    signed = [part.index for part in parts if getattr(part, "extra_content", None)]
    assert signed == [0]


def test_native_thoughts_are_found_where_they_are_promised(client):
    options = {"model": "ant", "messages": user("[call-tools] [redacted]"), "tools": TOOLS, "reasoning_effort": "high"}
    message = client.chat.completions.create(**options).choices[0].message
    kinds = ["thinking", "redacted_thinking"]
    assert [block["type"] for block in message.thinking_blocks] == kinds
    assert message.thinking_blocks[0]["thinking"] == message.reasoning_content == "Let me think."
    chunks = client.chat.completions.create(**options, stream=True)
    blocks = [
        block for c in chunks for choice in c.choices for block in getattr(choice.delta, "thinking_blocks", None) or []
    ]
    assert [block["type"] for block in blocks] == kinds
    assert blocks[0]["thinking"] == "Let me think." and blocks[0]["signature"]


@pytest.mark.parametrize("model", [SONNET, HAIKU, FLASH, OLD, VERTEX])
def test_thoughts_arrive_beside_the_text_under_both_of_their_names(client, model):
    options = {"model": model, "messages": user("[think]"), "reasoning_effort": "high"}
    reply = client.chat.completions.create(**options)
    message = reply.choices[0].message
    assert (message.content, message.reasoning_content, message.reasoning) == (TEXT, "Let me think.", "Let me think.")
    assert reply.usage.completion_tokens_details.reasoning_tokens == 4
    deltas = [
        choice.delta for chunk in client.chat.completions.create(**options, stream=True) for choice in chunk.choices
    ]
    assert "".join(delta.content or "" for delta in deltas) == TEXT
    for name in ("reasoning_content", "reasoning"):
        assert "".join(getattr(delta, name, None) or "" for delta in deltas) == "Let me think."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("model", "written"), [("ant", 2), ("gem", None), ("vertex", None)])
def test_cached_and_thought_tokens_are_told_apart(client, model, written, stream):
    options = {"model": model, "messages": user("[think]"), "reasoning_effort": "high"}
    if stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        usage = list(client.chat.completions.create(**options))[-1].usage
    else:
        usage = client.chat.completions.create(**options).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 7, 18)
    assert usage.prompt_tokens_details.cached_tokens == 3
    assert usage.completion_tokens_details.reasoning_tokens == 4
    if written:
        assert usage.prompt_tokens_details.cache_write_tokens == written


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", [SONNET, HAIKU, FLASH, OLD, VERTEX])
def test_a_call_without_arguments_has_an_empty_object(client, standin, model, stream):
    message = say(client, stream, user("[no-argument]"), model=model)
    (call,) = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", "{}")
    history = [*user("[no-argument]"), forgetful(message), *answers_to(message)]
    assert say(client, stream, history, model=model).content == "get_weather=sunny"
    assert standin.notes() == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("model", [SONNET, FLASH, VERTEX])
def test_words_before_a_call_are_content(client, model, stream):
    message = say(client, stream, user("[call-tools] [talk-and-call]"), model=model)
    assert message.content == "One moment." and len(message.tool_calls) == 2


@pytest.mark.parametrize("origin", ["oai", "mis", "ant", "gem"])
@pytest.mark.parametrize("target", [SONNET, HAIKU, FLASH, OLD, VERTEX, "oai", "mis"])
def test_a_conversation_may_change_its_provider_between_call_and_result(client, origin, target):
    """What only the first provider understands is not sent to the second."""
    for keep in (echoed, forgetful):
        first = say(client, False, user("[call-tools]"), model=origin)
        history = [*user("[call-tools]"), keep(first), *answers_to(first)]
        answer = say(client, False, history, model=target)
        assert set(answer.content.split("; ")) == {"get_time=12:00", "get_weather=sunny"}


REASONS = {
    "ant": {
        "end-turn": "stop",
        "stop-sequence": "stop",
        "max-tokens": "length",
        "model-context-window-exceeded": "length",
        "pause-turn": "stop",
        "refusal": "content_filter",
        "something-new": "stop",
    },
    "gem": {
        "stop": "stop",
        "max-tokens": "length",
        "continuation": "length",
        "safety": "content_filter",
        "recitation": "content_filter",
        "prohibited-content": "content_filter",
        "spii": "content_filter",
        "language": "content_filter",
        "something-new": "stop",
    },
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("model", "native", "reason"), [(model, *pair) for model, pairs in REASONS.items() for pair in pairs.items()]
)
def test_every_reason_to_stop_has_its_finish_reason(client, model, native, reason, stream):
    options = {"model": model, "messages": user(f"[reason-{native}]")}
    if stream:
        chunks = client.chat.completions.create(**options, stream=True)
        assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [reason]
    else:
        assert client.chat.completions.create(**options).choices[0].finish_reason == reason


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("model", "text"), [("ant", "[reason-refusal]"), ("gem", "[refuse]"), ("vertex", "[refuse]")])
def test_a_refusal_is_an_answer_without_content(client, model, text, stream):
    create, options = client.chat.completions.create, {"model": model, "messages": user(text)}
    if stream:
        choices = [choice for chunk in create(**options, stream=True) for choice in chunk.choices]
        assert not any(choice.delta.content for choice in choices)
    else:
        choices = create(**options).choices
        assert not choices[0].message.content
    assert choices[-1].finish_reason == "content_filter"


UNSUPPORTED = [
    ("ant", "n", {"n": 2}),
    ("gem", "n", {"n": 2}),
    (
        "ant",
        "messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}],
                }
            ]
        },
    ),
]


@pytest.mark.parametrize(("model", "param", "options"), UNSUPPORTED)
def test_what_a_backend_cannot_carry_is_the_callers_mistake(gateway, standin, model, param, options):
    with gateway.client() as client:
        raw = client.chat.completions.with_raw_response
        try:
            raw.create(**{"model": model, "messages": user("hi"), **options})
        except Exception as error:
            wire = error.response.json()["error"]
        else:
            pytest.fail("it was carried")
    assert wire["code"] == "unsupported_by_backend" and wire["param"].startswith(param)
    assert model in wire["message"] and param in wire["message"]
    assert standin.requests() == []
