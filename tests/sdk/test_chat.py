"""Whole answers through the gateway, from every backend."""

import json

import openai
import pytest
from pydantic import BaseModel

from answers import MODEL, PIECES
from conftest import LIKE_OPENAI
from conversation import CITY_FORMAT, FOREIGN_HISTORY, PNG, TOOLS, answers_to, picture, user

TEXT = "".join(PIECES)
THINKERS = ["mis", "llama", "groq", "together"]


def test_an_answer_arrives_whole_from_every_backend(client, backend):
    reply = client.chat.completions.create(model=backend, messages=user("hi"))
    assert reply.object == "chat.completion"
    assert reply.id and reply.created
    assert reply.model == MODEL
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == TEXT
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == 18


async def test_the_asynchronous_client_is_answered_by_every_backend(async_client, backend):
    reply = await async_client.chat.completions.create(model=backend, messages=user("hi"))
    assert reply.choices[0].message.content == TEXT


def test_a_reply_names_its_backend_attempts_and_request_id(client, backend):
    raw = client.chat.completions.with_raw_response.create(
        model=backend, messages=user("hi"), extra_headers={"x-request-id": "request-of-mine-1"}
    )
    assert raw.headers["x-request-id"] == "request-of-mine-1"
    assert raw.headers["x-stagedoor-backend"] == backend
    assert raw.headers["x-stagedoor-attempts"] == "1"
    # Google has no such header.
    assert raw.headers.get("x-ratelimit-remaining-requests", "99" if backend in ("gem", "vertex") else None) == "99"
    assert raw.request_id == "request-of-mine-1"


def test_a_request_without_an_id_is_given_one(client):
    ids = {client.chat.completions.create(model="oai", messages=user("hi"))._request_id for _ in range(3)}
    assert len(ids) == 3 and all(ids)


def test_nothing_that_belongs_to_the_client_alone_reaches_a_provider(client, standin, backend):
    headers = {
        "Cookie": "session=client-cookie",
        "Connection": "keep-alive, x-hop",
        "X-Hop": "1",
        "TE": "trailers",
        "Keep-Alive": "timeout=5",
        "Proxy-Authorization": "Basic client-key-1",
        "OpenAI-Organization": "client-org",
        "OpenAI-Project": "client-project",
    }
    client.chat.completions.create(model=backend, messages=user("hi"), extra_headers=headers)
    assert len(standin.requests()) == 1


def test_a_cookie_of_the_provider_reaches_no_client_and_is_not_sent_back(client):
    for _ in range(2):
        raw = client.chat.completions.with_raw_response.create(model="oai", messages=user("[cookie]"))
        assert "set-cookie" not in raw.headers


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("oai", "gpt-4o"),
        ("oai/gpt-4o-mini", "gpt-4o-mini"),
        ("az1", "gpt-4o-prod"),
        ("mis", "mistral-large-latest"),
        ("mis/magistral-medium-latest", "magistral-medium-latest"),
        ("magistral-medium-latest", "magistral-medium-latest"),
        ("llama", "llama-3.3-70b-instruct"),
        ("together/llama-3.3-70b-instruct", "llama-3.3-70b-instruct"),
    ],
)
def test_the_model_that_a_provider_sees_is_its_own_name_for_it(client, standin, model, sent):
    client.chat.completions.create(model=model, messages=user("hi"))
    assert standin.body()["model"] == sent


def test_the_dated_azure_form_names_the_deployment_and_version_in_the_path(client, standin):
    client.chat.completions.create(model="az", messages=user("hi"))
    (request,) = standin.requests()
    assert request["path"] == "/azure/openai/deployments/gpt-4o-prod/chat/completions?api-version=2024-08-01-preview"


def test_a_text_cut_by_a_limit_has_the_finish_reason_length(client, backend):
    reply = client.chat.completions.create(model=backend, messages=user("[too-long]"))
    assert reply.choices[0].finish_reason == "length"


def test_parallel_tool_calls_arrive_with_ids_types_and_string_arguments(client, backend):
    reply = client.chat.completions.create(model=backend, messages=user("[call-tools]"), tools=TOOLS)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    weather, clock = choice.message.tool_calls
    assert (weather.type, weather.function.name) == ("function", "get_weather")
    assert (clock.type, clock.function.name) == ("function", "get_time")
    assert json.loads(weather.function.arguments) == {"city": "Paris"}
    assert json.loads(clock.function.arguments) == {"zone": "Europe/Paris"}
    assert weather.id and clock.id and weather.id != clock.id
    assert not choice.message.content


def test_each_tool_result_finds_its_call_in_the_second_turn(client, backend):
    first = client.chat.completions.create(model=backend, messages=user("[call-tools]"), tools=TOOLS)
    message = first.choices[0].message
    messages = [*user("[call-tools]"), message, *answers_to(message)]
    second = client.chat.completions.create(model=backend, messages=messages, tools=TOOLS)
    # Google wants the results in the order of the calls.
    assert sorted(second.choices[0].message.content.split("; ")) == ["get_time=12:00", "get_weather=sunny"]


def test_a_tool_history_that_began_at_another_provider_goes_on_at_any(client, backend):
    reply = client.chat.completions.create(model=backend, messages=FOREIGN_HISTORY, tools=TOOLS)
    assert sorted(reply.choices[0].message.content.split("; ")) == ["get_time=noon", "get_weather=rain"]


def test_a_tool_call_id_is_mapped_for_mistral_in_the_same_way_every_time(client, standin):
    for _ in range(2):
        client.chat.completions.create(model="mis", messages=FOREIGN_HISTORY, tools=TOOLS)
    first, second = [request["body"]["messages"] for request in standin.requests()]
    assert [call["id"] for call in first[1]["tool_calls"]] == [call["id"] for call in second[1]["tool_calls"]]


def test_a_user_may_speak_right_after_a_tool(client, backend):
    messages = [*FOREIGN_HISTORY, *user("and now?")]
    reply = client.chat.completions.create(model=backend, messages=messages, tools=TOOLS)
    assert reply.choices[0].message.content == TEXT


def test_an_answer_begun_by_the_caller_is_marked_as_a_prefix_for_mistral(client, standin):
    messages = [*user("hi"), {"role": "assistant", "content": "Well,"}]
    client.chat.completions.create(model="mis", messages=messages)
    assert standin.body()["messages"][-1] == {"role": "assistant", "content": "Well,", "prefix": True}


@pytest.mark.parametrize("backend", LIKE_OPENAI)
@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "function": {"name": "get_time"}}])
def test_every_form_of_tool_choice_is_understood(client, standin, backend, choice):
    client.chat.completions.create(model=backend, messages=user("hi"), tools=TOOLS, tool_choice=choice)
    sent = standin.body()["tool_choice"]
    assert sent == choice or (backend == "mis" and choice == "required" and sent == "any")


def test_a_picture_reaches_the_provider_unchanged(client, standin, backend):
    content = [{"type": "text", "text": "[see]"}, picture(), picture(PNG + bytes(range(256)))]
    reply = client.chat.completions.create(model=backend, messages=[{"role": "user", "content": content}])
    first, second = reply.choices[0].message.content.split("; ")
    assert first.startswith(f"image/png {len(PNG)} ")
    assert second.startswith(f"image/png {len(PNG) + 256} ")


def test_a_large_picture_reaches_the_provider_whole(client, backend):
    content = [{"type": "text", "text": "[see]"}, picture(PNG + bytes(range(256)) * 12_000)]
    reply = client.chat.completions.create(model=backend, messages=[{"role": "user", "content": content}])
    assert reply.choices[0].message.content.startswith("image/png 3072070 ")


class City(BaseModel):
    city: str
    population: int


def test_a_schema_is_sent_and_its_answer_parsed(client, standin, backend):
    reply = client.chat.completions.parse(model=backend, messages=user("[as-json]"), response_format=City)
    assert reply.choices[0].message.parsed == City(city="Paris", population=2100000)
    assert len(standin.requests()) == 1
    if backend in LIKE_OPENAI:
        sent = standin.body()["response_format"]["json_schema"]
        assert sent["name"] == "City" and sent["schema"]["required"] == ["city", "population"]


@pytest.mark.parametrize("backend", LIKE_OPENAI)
def test_a_schema_given_as_json_is_sent_as_it_is(client, standin, backend):
    client.chat.completions.create(model=backend, messages=user("[as-json]"), response_format=CITY_FORMAT)
    assert standin.body()["response_format"] == CITY_FORMAT


@pytest.mark.parametrize("backend", THINKERS)
def test_thoughts_arrive_beside_the_text_under_both_of_their_names(client, backend):
    message = client.chat.completions.create(model=backend, messages=user("[think]")).choices[0].message
    assert message.content == TEXT
    assert message.reasoning_content == "Let me think."
    assert message.reasoning == "Let me think."


@pytest.mark.parametrize("backend", ["oai", "az", "az1", "mis", "llama", "ant", "gem", "vertex"])
def test_replayed_thoughts_do_not_disturb_the_next_turn(client, backend):
    said = {"role": "assistant", "content": "42", "reasoning_content": "Hm.", "reasoning": "Hm."}
    reply = client.chat.completions.create(model=backend, messages=[*user("what?"), said, *user("sure?")])
    assert reply.choices[0].message.content == TEXT


@pytest.mark.parametrize("origin", ["mis", "ant", "gem"])
@pytest.mark.parametrize("backend", ["oai", "az", "az1", "mis", "together", "ant", "gem", "vertex"])
def test_a_whole_reply_may_be_sent_back_as_history_to_any(client, origin, backend):
    first = client.chat.completions.create(model=origin, messages=user("[think]")).choices[0].message
    reply = client.chat.completions.create(model=backend, messages=[*user("[think]"), first, *user("sure?")])
    assert reply.choices[0].message.content == TEXT


EVERYTHING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "max_completion_tokens": 50,
    "seed": 7,
    "stop": ["END"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "n": 1,
    "user": "someone",
    "store": False,
    "metadata": {"purpose": "test"},
    "logit_bias": {"50256": -100},
    "service_tier": "flex",
    "safety_identifier": "hash",
    "prompt_cache_key": "key",
    "verbosity": "low",
}


def test_openai_receives_every_parameter_as_it_was_given(client, standin):
    client.chat.completions.create(model="oai", messages=user("hi"), **EVERYTHING)
    sent = standin.body()
    assert {name: sent[name] for name in EVERYTHING} == EVERYTHING


def test_mistral_receives_what_it_knows_under_its_own_names(client, standin):
    client.chat.completions.create(model="mis", messages=user("hi"), **EVERYTHING)
    sent = standin.body()
    assert sent["max_tokens"] == 50 and sent["random_seed"] == 7
    kept = ("temperature", "top_p", "stop", "presence_penalty", "frequency_penalty", "metadata", "prompt_cache_key")
    assert {name: sent[name] for name in kept} == {name: EVERYTHING[name] for name in kept}


def test_mistral_is_spared_the_developer_role_and_names(client, standin):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi", "name": "ann"}]
    client.chat.completions.create(model="mis", messages=messages)
    assert standin.body()["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize("backend", ["az", "mis", "together"])
def test_hosts_that_know_only_max_tokens_are_sent_that_name(client, standin, backend):
    client.chat.completions.create(model=backend, messages=user("hi"), max_completion_tokens=50)
    assert standin.body()["max_tokens"] == 50


def test_a_reasoning_model_is_sent_max_completion_tokens(client, standin):
    client.chat.completions.create(model="oai/o3-mini", messages=user("hi"), max_tokens=50)
    assert standin.body()["max_completion_tokens"] == 50


def test_a_vllm_host_receives_its_own_sampling_fields(client, standin):
    client.chat.completions.create(model="llama", messages=user("hi"), extra_body={"top_k": 20, "min_p": 0.1})
    sent = standin.body()
    assert (sent["top_k"], sent["min_p"]) == (20, 0.1)


def test_models_and_backends_and_pools_are_listed(client):
    listed = {model.id for model in client.models.list()}
    assert {"oai", "az", "az1", "mis", "llama", "both"} <= listed
    assert any(name.endswith("magistral-medium-latest") for name in listed)


def test_a_listed_model_can_be_retrieved(client):
    assert client.models.retrieve("mis").id == "mis"


def test_an_unknown_model_cannot_be_retrieved(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody-knows-this")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("backend", ["oai", "llama"])
def test_legacy_completions_are_answered(client, backend):
    model = {"oai": "oai/gpt-3.5-turbo-instruct"}.get(backend, backend)
    reply = client.completions.create(model=model, prompt="Say", max_tokens=5)
    assert reply.object == "text_completion"
    assert reply.choices[0].text == TEXT


@pytest.mark.parametrize("backend", ["oai", "llama"])
def test_legacy_completions_are_streamed(gateway, backend):
    model = {"oai": "oai/gpt-3.5-turbo-instruct"}.get(backend, backend)
    # The type of a streamed completion does not allow the null finish reasons that every provider sends.
    client = gateway.client(_strict_response_validation=False)
    chunks = list(client.completions.create(model=model, prompt="Say", max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"
