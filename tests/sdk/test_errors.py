"""Every class of failure raises the right exception, with the OpenAI form of an error whatever the provider said."""

import httpx
import openai
import pytest

from answers import PIECES
from conversation import user

OPENAI_TYPES = ["oai", "az", "az1"]
TRANSLATED = ["ant", "gem", "vertex"]
LIKE_OPENAI = [*OPENAI_TYPES, "mis", "llama", "groq", "together"]
EVERYONE = [*LIKE_OPENAI, *TRANSLATED]


def kinds():
    """(kind of failure, backend, exception, status, code or None, provider requests)"""
    table = [
        ("bad-request", EVERYONE, openai.BadRequestError, 400, None, 1),
        ("bad-request", ["oai"], openai.BadRequestError, 400, "unsupported_value", 1),
        ("bad-request-flat", ["llama"], openai.BadRequestError, 400, None, 1),
        ("context-length", [*OPENAI_TYPES, *TRANSLATED], openai.BadRequestError, 400, "context_length_exceeded", 1),
        ("content-filter", ["az", "az1"], openai.BadRequestError, 400, "content_filter", 1),
        ("bad-key", [*LIKE_OPENAI, "ant", "gem"], openai.InternalServerError, 502, "upstream_credential", 1),
        ("bad-key", ["vertex"], openai.InternalServerError, 502, "upstream_credential", 2),
        ("front-layer", ["az"], openai.InternalServerError, 502, "upstream_credential", 1),
        ("forbidden", EVERYONE, openai.InternalServerError, 502, "upstream_credential", 1),
        ("no-model", EVERYONE, openai.NotFoundError, 404, None, 1),
        ("no-model", ["oai", *TRANSLATED], openai.NotFoundError, 404, "model_not_found", 1),
        ("too-large", ["oai", "ant"], openai.APIStatusError, 413, None, 1),
        ("unprocessable", LIKE_OPENAI, openai.UnprocessableEntityError, 422, None, 1),
        ("unprocessable-object", ["mis"], openai.UnprocessableEntityError, 422, None, 1),
        ("unprocessable-array", ["mis"], openai.UnprocessableEntityError, 422, None, 1),
        ("rate-limit", [name for name in EVERYONE if name != "vertex"], openai.RateLimitError, 429, None, 1),
        ("rate-limit", ["vertex"], openai.RateLimitError, 429, None, None),
        ("quota", ["oai", "az", "llama"], openai.RateLimitError, 429, "insufficient_quota", 1),
        ("quota", TRANSLATED, openai.RateLimitError, 429, None, 1),
        ("spend-limit", ["ant"], openai.RateLimitError, 429, None, 1),
        ("precondition", ["gem"], openai.APIStatusError, None, None, 1),
        ("string-code", ["gem"], openai.BadRequestError, 400, None, 1),
        ("timed-out", TRANSLATED, openai.InternalServerError, 504, None, 2),
        ("cancelled", ["gem"], openai.InternalServerError, 504, None, 2),
        ("server-error", EVERYONE, openai.InternalServerError, 502, None, 2),
        ("html", ["oai", "llama", *TRANSLATED], openai.InternalServerError, 502, None, 2),
        ("overloaded", EVERYONE, openai.InternalServerError, 503, None, 2),
        ("overloaded-529", ["oai", "together", "ant"], openai.InternalServerError, 503, None, 2),
        ("loading", ["llama"], openai.InternalServerError, 503, None, 2),
        ("garbage", EVERYONE, openai.InternalServerError, 502, None, 1),
        ("wrong-shape", ["oai", "mis", *TRANSLATED], openai.InternalServerError, 502, None, 1),
        ("half", EVERYONE, openai.InternalServerError, 502, None, 1),
        ("silent", ["hasty"], openai.InternalServerError, 504, None, 1),
    ]
    return [(kind, backend, *rest) for kind, backends, *rest in table for backend in backends]


def check_form(error, status):
    assert status in (None, error.status_code)
    wire = error.response.json()
    assert set(wire) == {"error"}
    assert set(wire["error"]) == {"message", "type", "param", "code"}
    assert isinstance(wire["error"]["message"], str) and wire["error"]["message"]
    assert isinstance(wire["error"]["type"], str)
    assert wire["error"]["param"] is None or isinstance(wire["error"]["param"], str)
    assert wire["error"]["code"] is None or isinstance(wire["error"]["code"], str)
    assert error.request_id
    for secret in ("sk-upstream", "az-key", "mi-key", "ll-key", "an-key", "go-key", "ya29."):
        assert secret not in error.response.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("kind", "backend", "exception", "status", "code", "tries"), kinds())
def test_a_failure_raises_its_exception(request, standin, stream, kind, backend, exception, status, code, tries):
    gateway = request.getfixturevalue("worn_gateway" if tries == 1 else "fresh_gateway")
    with pytest.raises(exception) as caught:
        gateway.client().chat.completions.create(model=backend, messages=user(f"[{kind}]"), stream=stream)
    check_form(caught.value, status)
    assert code in (None, caught.value.code)
    assert tries is None or len(standin.requests()) == tries


def test_a_host_that_refuses_the_connection_is_a_server_error(fresh_gateway):
    with pytest.raises(openai.InternalServerError) as caught:
        fresh_gateway.client().chat.completions.create(model="dead", messages=user("hi"))
    check_form(caught.value, 502)


async def test_the_asynchronous_client_raises_the_same_exception(fresh_gateway):
    async with fresh_gateway.async_client() as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="oai", messages=user("[rate-limit]"))
    check_form(caught.value, 429)


def raised(gateway, exception, backend, text, **options):
    with pytest.raises(exception) as caught:
        gateway.client().chat.completions.create(model=backend, messages=user(text), **options)
    return caught.value


@pytest.mark.parametrize("backend", ["oai", "mis", "llama", "groq", "ant", "gem", "vertex"])
def test_the_providers_words_about_a_bad_request_reach_the_client(gateway, backend):
    assert "temperature" in raised(gateway, openai.BadRequestError, backend, "[bad-request]").message


@pytest.mark.parametrize("kind", ["unprocessable", "unprocessable-object", "unprocessable-array"])
def test_the_details_of_mistral_are_told_in_words(gateway, kind):
    error = raised(gateway, openai.UnprocessableEntityError, "mis", f"[{kind}]")
    assert "body.temperature: Input should be less than 2" in error.message


@pytest.mark.parametrize("backend", ["oai", "az", "mis", "ant", "gem"])
def test_a_rate_limit_tells_when_to_come_back(worn_gateway, backend):
    headers = raised(worn_gateway, openai.RateLimitError, backend, "[rate-limit]").response.headers
    assert 25 <= float(headers["retry-after"]) <= 30


def test_an_empty_account_is_not_worth_a_retry_and_the_sdk_makes_none(worn_gateway, standin):
    with pytest.raises(openai.RateLimitError) as caught:
        client = worn_gateway.client(max_retries=2)
        client.chat.completions.create(model="oai", messages=user("[quota]"))
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(standin.requests()) == 1


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        ("together", "[no-credit]"),
        ("ant", "[no-credit]"),
        ("ant", "[spend-limit]"),
        ("ant", "[quota]"),
        ("gem", "[quota]"),
        ("vertex", "[quota]"),
    ],
)
def test_a_host_without_credit_is_not_worth_a_retry(worn_gateway, backend, text):
    error = raised(worn_gateway, openai.APIStatusError, backend, text)
    assert error.status_code in (402, 429)
    assert error.response.headers["x-should-retry"] == "false"


def test_a_status_of_groqs_own_for_lack_of_capacity_is_a_server_error(fresh_gateway):
    error = raised(fresh_gateway, openai.InternalServerError, "groq", "[capacity]")
    assert error.status_code in (502, 503)


def test_a_failed_attempt_is_tried_again_without_the_clients_notice(fresh_gateway, standin):
    standin.next("server-error")
    raw = fresh_gateway.client().chat.completions.with_raw_response.create(model="oai", messages=user("hi"))
    assert raw.parse().choices[0].message.content == "".join(PIECES)
    assert raw.headers["x-stagedoor-attempts"] == "2"


@pytest.mark.parametrize("backend", ["oai", "ant", "gem", "vertex"])
def test_a_rate_limit_that_ends_soon_is_waited_for(fresh_gateway, standin, backend):
    standin.next("brief-limit")
    reply = fresh_gateway.client().chat.completions.create(model=backend, messages=user("hi"))
    assert reply.choices[0].message.content == "".join(PIECES)
    assert len(standin.requests()) == 2


@pytest.mark.parametrize("backend", ["oai", "ant", "gem", "vertex"])
def test_an_error_that_comes_before_any_content_is_a_plain_failure(fresh_gateway, backend):
    error = raised(fresh_gateway, openai.InternalServerError, backend, "[error-first]", stream=True)
    check_form(error, error.status_code)
    assert error.status_code in (502, 503)


def test_a_wrong_key_is_refused_by_the_gateway_itself(gateway, standin):
    with pytest.raises(openai.AuthenticationError) as caught:
        gateway.client(api_key="not-a-key").chat.completions.create(model="oai", messages=user("hi"))
    check_form(caught.value, 401)
    assert caught.value.code == "invalid_api_key"
    assert standin.requests() == []


def test_a_message_of_the_wrong_type_is_the_callers_mistake(gateway, standin):
    with pytest.raises(openai.BadRequestError) as caught:
        gateway.client().chat.completions.create(model=7, messages=user("hi"))
    check_form(caught.value, 400)
    assert standin.requests() == []


def test_a_body_that_is_not_json_is_the_callers_mistake(gateway):
    headers = {"authorization": "Bearer client-key-1", "content-type": "application/json"}
    reply = httpx.post(f"{gateway.url}/v1/chat/completions", content="{", headers=headers)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_an_unknown_path_is_not_found(gateway):
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.client().post("/no/such/path", cast_to=object, body={})
    check_form(caught.value, 404)


def test_a_model_of_another_family_is_replaced_by_the_default_of_the_named_backend(gateway, standin):
    gateway.client().chat.completions.create(model="mis/gpt-4o", messages=user("hi"))
    assert standin.body()["model"] == "mistral-large-latest"


def test_embeddings_fail_with_the_same_exceptions(fresh_gateway):
    client = fresh_gateway.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="mis/mistral-embed", input="[bad-request]")
    check_form(caught.value, 400)
    with pytest.raises(openai.InternalServerError) as caught:
        client.embeddings.create(model="oai/text-embedding-3-small", input="[server-error]")
    check_form(caught.value, 502)
