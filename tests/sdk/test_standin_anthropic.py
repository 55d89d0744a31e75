"""The stand-in for Anthropic: the official SDK may talk to it, and what that could not send is a breach."""

import base64

import anthropic
import httpx
import httpx2
import pytest

from answers import PIECES
from conversation import PNG, user
from test_standin import without_own_marks

TEXT = "".join(PIECES)
SONNET, HAIKU, OPUS, OLD = "claude-sonnet-5-5", "claude-haiku-4-5", "claude-opus-4-6", "claude-3-5-sonnet-20241022"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"name": "get_weather", "input_schema": SCHEMA}, {"name": "get_time", "input_schema": SCHEMA}]
SUMMARIZED = {"type": "adaptive", "display": "summarized"}


@pytest.fixture
def service(standin):
    transport = httpx2.Client(event_hooks={"request": [without_own_marks]})
    options = {"max_retries": 0, "http_client": transport, "_strict_response_validation": True}
    return anthropic.Anthropic(api_key="an-key", base_url=f"{standin.url}/anthropic", **options).messages


def ask(service, text="hi", model=SONNET, **options):
    return service.create(**{"model": model, "max_tokens": 5000, "messages": user(text), **options})


def test_the_anthropic_sdk_reads_the_stand_in_as_its_own_service(service):
    reply = ask(service, "[think]", thinking=SUMMARIZED)
    thought, text = reply.content
    assert (thought.thinking, text.text, reply.stop_reason) == ("Let me think.", TEXT, "end_turn")
    assert (reply.usage.input_tokens, reply.usage.cache_read_input_tokens, reply.usage.output_tokens) == (6, 3, 7)


@pytest.mark.parametrize("markers", ["", "[interleaved]", "[redacted]", "[server-tool]", "[talk-and-call]"])
def test_the_stream_of_a_tool_call_tells_the_same_as_its_whole(service, markers):
    request = {"thinking": SUMMARIZED, "tools": TOOLS, "max_tokens": 5000, "model": SONNET}
    whole = service.create(messages=user(f"[call-tools] {markers}"), **request)
    with service.stream(messages=user(f"[call-tools] {markers}"), **request) as stream:
        streamed = stream.get_final_message()
    kinds = [block.type for block in whole.content]
    assert [block.type for block in streamed.content] == kinds
    assert [block.input for block in streamed.content if block.type == "tool_use"] == [
        {"city": "Paris"},
        {"zone": "Europe/Paris"},
    ]
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == whole.usage.output_tokens == 7


def results(reply):
    given = [
        {"type": "tool_result", "tool_use_id": b.id, "content": b.name} for b in reply.content if b.type == "tool_use"
    ]
    return {"role": "user", "content": given}


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        (SONNET, SUMMARIZED),
        (SONNET, {"type": "adaptive"}),
        (HAIKU, {"type": "enabled", "budget_tokens": 1024}),
    ],
)
@pytest.mark.parametrize("markers", ["[call-tools]", "[one-by-one]", "[call-tools] [interleaved] [redacted]"])
def test_thoughts_that_come_back_as_they_were_are_accepted(standin, service, model, thinking, markers):
    history = user(markers)
    for _ in range(3):
        reply = ask(service, model=model, thinking=thinking, tools=TOOLS, messages=history)
        history.append({"role": "assistant", "content": reply.content})
        if reply.stop_reason == "tool_use":
            history.append(results(reply))
        else:
            history += user("and then?")
    assert standin.get("/control/notes") == []


def test_a_tool_call_without_its_thoughts_is_noted(standin, service):
    first = ask(service, "[call-tools]", tools=TOOLS)
    calls = {"role": "assistant", "content": [block for block in first.content if block.type == "tool_use"]}
    ask(service, tools=TOOLS, messages=[*user("[call-tools]"), calls, results(first)])
    (note,) = standin.get("/control/notes")
    assert (note["kind"], note["current"], note["call"]) == ("lost", True, calls["content"][0].id)


def refused(service, exception=anthropic.BadRequestError, **options):
    with pytest.raises(exception) as caught:
        ask(service, **options)
    return caught.value


def thoughtful(first, **change):
    block = first.content[0].model_dump() | change
    return [*user("hi"), {"role": "assistant", "content": [block, *first.content[1:]]}, *user("so?")]


def test_a_changed_thought_is_refused(service):
    first = ask(service, "hi", thinking=SUMMARIZED)
    ask(service, messages=thoughtful(first))
    assert "signature" in refused(service, messages=thoughtful(first, thinking="Another.")).message
    assert "signature" in refused(service, messages=thoughtful(first), model="claude-opus-5").message
    edited = thoughtful(first)
    edited[0] = user("hello")[0]
    assert "different conversation" in refused(service, messages=edited).message


@pytest.mark.parametrize(
    ("text", "exception", "kind"),
    [
        ("[rate-limit]", anthropic.RateLimitError, "rate_limit_error"),
        ("[overloaded]", anthropic.APIStatusError, "overloaded_error"),
        ("[bad-key]", anthropic.AuthenticationError, "authentication_error"),
        ("[spend-limit]", anthropic.BadRequestError, "invalid_request_error"),
    ],
)
def test_the_sdk_reads_failures(service, text, exception, kind):
    assert refused(service, exception, messages=user(text)).body["error"]["type"] == kind


def test_an_error_inside_a_stream_raises(service):
    with pytest.raises(anthropic.APIStatusError):
        with service.stream(model=SONNET, max_tokens=50, messages=user("[error-inside]")) as stream:
            stream.get_final_message()


@pytest.mark.parametrize(
    ("reason", "text"), [("refusal", ""), ("max_tokens", TEXT), ("pause_turn", TEXT), ("stop_sequence", TEXT)]
)
def test_every_reason_to_stop_can_be_given(service, reason, text):
    reply = ask(service, f"[reason-{reason.replace('_', '-')}]", model=OPUS)
    assert reply.stop_reason == reason
    assert "".join(block.text for block in reply.content if block.type == "text") == text


CALL = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"}
CALLED = [*user("hi"), {"role": "assistant", "content": [CALL]}]


def blocks(*content):
    return {"messages": [{"role": "user", "content": list(content)}]}


def formatted(schema):
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def image(kind, raw=PNG):
    return {
        "type": "image",
        "source": {"type": "base64", "media_type": kind, "data": base64.b64encode(raw).decode()},
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"metadata": {"user_id": "u", "purpose": "x"}}, "purpose: Extra inputs"),
        ({"metadata": {"user_id": "ann@example.com"}}, "personal data"),
        (blocks({"type": "text", "text": "x", "mood": 1}), "mood: Extra inputs"),
        (blocks({"type": "text", "text": "  "}), "non-whitespace text"),
        ({"messages": [{"role": "user", "content": []}]}, "content is empty"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 128001}, "max_tokens: 128001 > 128000"),
        ({"model": OLD, "max_tokens": 8193}, "max_tokens: 8193 > 8192"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "first message"),
        ({"messages": [*user("a"), *user("b")]}, "follows itself"),
        ({"messages": CALLED, "tools": TOOLS}, "tool_use without tool_result"),
        ({"messages": [*CALLED, *user("x")], "tools": TOOLS}, "results [] for calls"),
        ({**blocks(RESULT), "tools": TOOLS}, "results ['call_1'] for calls []"),
        (
            {
                "messages": [*CALLED, {"role": "user", "content": [{"type": "text", "text": "x"}, RESULT]}],
                "tools": TOOLS,
            },
            "do not come first",
        ),
        ({"messages": [*CALLED, {"role": "user", "content": [RESULT]}]}, "tools: required"),
        (
            {
                "messages": [
                    *user("hi"),
                    {"role": "assistant", "content": [{**CALL, "id": "a.b"}]},
                    {"role": "user", "content": [{**RESULT, "tool_use_id": "a.b"}]},
                ],
                "tools": TOOLS,
            },
            "tool_use id 'a.b'",
        ),
        ({"messages": [*user("a"), {"role": "assistant", "content": "Well,"}]}, "prefill"),
        ({"model": HAIKU, "messages": [*user("a"), {"role": "assistant", "content": "Well, "}]}, "trailing whitespace"),
        ({"messages": [*user("a"), {"role": "system", "content": "x"}], "model": OPUS}, "role system"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice without tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "any"}}, "tool_choice.any is not supported"),
        (
            {
                "tools": TOOLS,
                "tool_choice": {"type": "tool", "name": "get_time"},
                "model": HAIKU,
                "thinking": {"type": "enabled", "budget_tokens": 1024},
            },
            "forced tool",
        ),
        ({"tools": [{"name": "a", "input_schema": {"type": "object", "anyOf": []}}]}, "union at its root"),
        ({"tools": [{"name": "a b", "input_schema": SCHEMA}]}, "name 'a b'"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "must be unique"),
        ({"tools": [{**TOOLS[0], "strict": True}]}, "additionalProperties must be false"),
        ({"temperature": 0.5}, "`temperature` is deprecated"),
        ({"top_k": 5}, "`top_k` is deprecated"),
        ({"model": OPUS, "temperature": 0.5, "top_p": 0.5}, "cannot both"),
        ({"model": OPUS, "temperature": 1.5}, "range: 0..1"),
        ({"thinking": {"type": "disabled"}}, "thinking.type.disabled is not supported"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type.enabled is not supported"),
        ({"model": HAIKU, "thinking": {"type": "adaptive"}}, "thinking.type.adaptive is not supported"),
        ({"model": HAIKU, "thinking": {"type": "enabled", "budget_tokens": 1000}}, "at least 1024"),
        ({"model": HAIKU, "thinking": {"type": "enabled", "budget_tokens": 5000}}, "less than max_tokens"),
        ({"model": HAIKU, "output_config": {"effort": "low"}}, "effort 'low' is not supported"),
        ({"model": OPUS, "output_config": {"effort": "xhigh"}}, "effort 'xhigh' is not supported"),
        (
            {"model": "claude-opus-5", "output_config": {"effort": "max"}, "thinking": {"type": "disabled"}},
            "needs thinking",
        ),
        ({"model": OLD, **formatted({"type": "object", "additionalProperties": False})}, "not supported by this model"),
        (formatted(SCHEMA), "additionalProperties must be false"),
        (formatted({"type": "string", "minLength": 1}), "['minLength'] not supported"),
        (formatted({"type": ["string", "null"]}), "not a single one"),
        (blocks(image("image/jpeg")), "not image/jpeg"),
        (blocks(image("image/jpg")), "media_type"),
        (
            blocks(*[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}] * 5),
            "maximum of 4",
        ),
        (
            {
                "model": HAIKU,
                "thinking": {"type": "enabled", "budget_tokens": 1024},
                "messages": [*CALLED, {"role": "user", "content": [RESULT]}],
                "tools": TOOLS,
            },
            "Expected `thinking`",
        ),
        ({"stop_sequences": [" "]}, "non-whitespace"),
    ],
)
def test_what_the_service_does_not_take_is_a_breach(standin, change, reason):
    body = {"model": SONNET, "max_tokens": 5000, "messages": user("hi"), **change}
    body = {name: value for name, value in body.items() if value is not None}
    assert reason in breach_of(standin, body)


def breach_of(standin, body, **headers):
    headers = {"x-api-key": "an-key", "anthropic-version": "2023-06-01", **headers}
    headers = {name: value for name, value in headers.items() if value}
    reply = httpx.post(f"{standin.url}/anthropic/v1/messages", json=body, headers=headers)
    (breach,) = standin.get("/control/breaches")
    standin.reset()
    assert reply.status_code == 400 and reply.json()["type"] == "error"
    return breach


@pytest.mark.parametrize(
    ("headers", "change", "reason"),
    [
        ({"authorization": "Bearer an-key"}, {}, "credentials"),
        ({"x-api-key": None}, {}, "credentials"),
        ({"anthropic-version": None}, {}, "anthropic-version"),
        ({"anthropic-version": "2024-01-01"}, {}, "anthropic-version"),
        ({"anthropic-version": "2026-10-21"}, {"temperature": 1}, "temperature: Extra inputs"),
        ({"openai-organization": "org-1"}, {}, "openai-organization is forwarded"),
        ({"x-note": "client-key-1"}, {}, "credential of the client"),
    ],
)
def test_wrong_headers_are_a_breach(standin, headers, change, reason):
    body = {"model": SONNET, "max_tokens": 50, "messages": user("hi"), **change}
    assert reason in breach_of(standin, body, **headers)
