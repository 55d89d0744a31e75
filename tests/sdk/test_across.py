"""A pool whose members speak three dialects: what one cannot answer another does, and nothing is lost on the way."""

import json

import pytest

from answers import CITY, PIECES
from conversation import CITY_FORMAT, FOREIGN_HISTORY, TOOLS, picture, user
from test_turns import echoed, forgetful, say

TEXT = "".join(PIECES)
TO_ANTHROPIC, TO_GOOGLE = "[server-error@openai] [overloaded@gemini]", "[server-error@openai] [overloaded@anthropic]"
TARGETS = {"ant": TO_ANTHROPIC, "gem": TO_GOOGLE}
EVERYTHING = {
    "tools": TOOLS,
    "response_format": CITY_FORMAT,
    "max_completion_tokens": 2000,
    "reasoning_effort": "low",
    "stop": ["END"],
    "temperature": 1,
}


@pytest.fixture
def create(fresh_gateway):
    with fresh_gateway.client() as client:
        yield client.chat.completions.with_raw_response.create


def text_of(raw, stream):
    if not stream:
        return raw.parse().choices[0].message.content
    return "".join(choice.delta.content or "" for chunk in raw.parse() for choice in chunk.choices)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_request_with_everything_moves_whole(create, standin, target, stream):
    content = [{"type": "text", "text": f"[as-json] {TARGETS[target]}"}, picture()]
    system = {"role": "system", "content": "Be brief."}
    messages = [
        system,
        *FOREIGN_HISTORY,
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": content},
    ]
    raw = create(model="across", messages=messages, stream=stream, **EVERYTHING)
    assert text_of(raw, stream) == CITY
    assert raw.headers["x-stagedoor-backend"] == target
    body = standin.requests()[-1]["body"]
    told = json.dumps(body)
    for word in (
        "Be brief.",
        "get_weather",
        "get_time",
        "rain",
        "noon",
        "population",
        "END",
        picture()["image_url"]["url"][-40:],
    ):
        assert word in told
    assert 2000 in (body.get("max_tokens"), body.get("generationConfig", {}).get("maxOutputTokens"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "kind", ["rate-limit", "quota", "bad-key", "no-model", "overloaded", "garbage", "half", "html"]
)
def test_another_dialect_answers_when_one_fails(create, kind, stream):
    for _ in range(3):
        text = f"[{kind}@openai] [{kind}@anthropic]" if kind != "half" else "[half@openai]"
        raw = create(model="across", messages=user(text), stream=stream)
        assert text_of(raw, stream) == TEXT
        assert raw.headers["x-stagedoor-backend"] == "gem" or kind == "half"


@pytest.mark.parametrize("target", TARGETS)
def test_another_dialect_answers_when_a_stream_begins_with_an_error(create, target):
    other = "anthropic" if target == "gem" else "gemini"
    raw = create(model="across", messages=user(f"[error-first@openai] [error-first@{other}]"), stream=True)
    assert text_of(raw, True) == TEXT and raw.headers["x-stagedoor-backend"] == target


def test_a_member_that_cannot_carry_a_request_is_passed_over(create):
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    content = [{"type": "text", "text": "[server-error@openai]"}, sound]
    raw = create(model="across", messages=[{"role": "user", "content": content}])
    assert raw.headers["x-stagedoor-backend"] == "gem"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("keep", [echoed, forgetful])
def test_a_conversation_with_tools_is_taken_up_by_whichever_member_is_left(fresh_gateway, standin, keep, stream):
    """The first call is made by one member, its result is read by another, and so on."""
    with fresh_gateway.client() as client:
        history = []
        for markers in (TO_ANTHROPIC, TO_GOOGLE, "", TO_GOOGLE, TO_ANTHROPIC):
            history += user(f"[call-tools] {markers}")
            message = say(client, stream, history, model="across", reasoning_effort="low")
            history.append(keep(message))
            results = [
                {"role": "tool", "tool_call_id": call.id, "content": call.function.name} for call in message.tool_calls
            ]
            history += results
            answer = say(client, stream, history, model="across", reasoning_effort="low")
            assert set(answer.content.split("; ")) == {"get_time=get_time", "get_weather=get_weather"}
            history.append(keep(answer))
    # Google notes the calls of others too, which have no signature that it would know.
    assert not [note for note in standin.notes() if note["provider"] == "anthropic"]
