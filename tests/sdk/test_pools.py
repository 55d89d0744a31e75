"""A pool serves while one of its members can."""

import openai
import pytest

from answers import PIECES
from conversation import FOREIGN_HISTORY, TOOLS, user

TEXT = "".join(PIECES)
MODELS = {"gpt-4o", "mistral-large-latest"}


def ask(gateway, text, model="both", **options):
    create = gateway.client().chat.completions.with_raw_response.create
    raw = create(model=model, messages=user(text), **options)
    reply = raw.parse()
    if options.get("stream"):
        pieces = [choice.delta.content or "" for chunk in reply for choice in chunk.choices]
        assert "".join(pieces) == TEXT
    else:
        assert reply.choices[0].message.content == TEXT
    return raw.headers


def test_the_members_of_a_weighted_pool_share_its_requests(gateway, standin):
    served = [ask(gateway, "hi")["x-stagedoor-backend"] for _ in range(100)]
    assert set(served) == {"oai", "mis"}
    assert served.count("oai") > served.count("mis")
    assert {request["body"]["model"] for request in standin.requests()} == MODELS


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "kind", ["server-error", "rate-limit", "quota", "bad-key", "no-model", "overloaded", "garbage", "half"]
)
def test_another_member_answers_when_one_fails(fresh_gateway, kind, stream):
    replies = [ask(fresh_gateway, f"[{kind}@openai]", stream=stream) for _ in range(12)]
    assert {headers["x-stagedoor-backend"] for headers in replies} == {"mis"}
    assert max(int(headers["x-stagedoor-attempts"]) for headers in replies) > 1


def test_another_member_answers_when_a_stream_begins_with_an_error(fresh_gateway):
    for _ in range(8):
        assert ask(fresh_gateway, "[error-first@openai]", stream=True)["x-stagedoor-backend"] == "mis"


def test_another_member_answers_when_one_cannot_be_reached(fresh_gateway):
    for _ in range(8):
        assert ask(fresh_gateway, "hi", model="dead-or-alive")["x-stagedoor-backend"] == "llama"


def test_a_mistake_of_the_caller_is_not_tried_elsewhere(gateway, standin):
    with pytest.raises(openai.BadRequestError):
        ask(gateway, "[bad-request]")
    assert len(standin.requests()) == 1


def test_a_pool_whose_members_all_fail_tells_the_failure(fresh_gateway, standin):
    with pytest.raises(openai.InternalServerError) as caught:
        ask(fresh_gateway, "[server-error]")
    assert caught.value.status_code == 502
    assert {request["body"]["model"] for request in standin.requests()} == MODELS


def test_a_tool_history_is_understood_by_whichever_member_takes_it(gateway, standin):
    client = gateway.client()
    for _ in range(12):
        reply = client.chat.completions.create(model="both", messages=FOREIGN_HISTORY, tools=TOOLS)
        assert reply.choices[0].message.content == "get_time=noon; get_weather=rain"
    assert {request["body"]["model"] for request in standin.requests()} == MODELS
