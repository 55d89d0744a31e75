"""Embeddings: floats and base64 as asked, whatever the provider answers."""

import base64
import struct

import pytest

from conversation import user

MODELS = {
    "oai": "oai/text-embedding-3-small",
    "az": "az/text-embedding-3-small",
    "az1": "az1/text-embedding-3-small",
    "mis": "mis/mistral-embed",
    "llama": "llama/nomic-embed",
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture
def embeddings(gateway):
    # The SDK's own type of an embedding has no room for the base64 that the SDK asks for.
    with gateway.client(_strict_response_validation=False) as client:
        yield client.embeddings


def vector(text, place=0):
    return [0.5, -1.25, float(len(text)), float(place)]


def test_the_sdk_reads_the_vectors_of_several_texts_in_order(embeddings, model):
    reply = embeddings.create(model=model, input=["one", "three"])
    assert [item.embedding for item in reply.data] == [vector("one"), vector("three", 1)]
    assert [item.index for item in reply.data] == [0, 1]
    assert reply.object == "list" and reply.usage.prompt_tokens == 5


@pytest.mark.parametrize("text", ["four", "[contrary]"])
def test_floats_are_floats_if_they_are_asked_for(embeddings, model, text):
    raw = embeddings.with_raw_response.create(model=model, input=text, encoding_format="float")
    assert raw.http_response.json()["data"][0]["embedding"] == vector(text)


@pytest.mark.parametrize("text", ["four", "[contrary]"])
def test_base64_is_base64_if_it_is_asked_for(embeddings, model, text):
    raw = embeddings.with_raw_response.create(model=model, input=text, encoding_format="base64")
    packed = base64.b64decode(raw.http_response.json()["data"][0]["embedding"], validate=True)
    assert list(struct.unpack(f"<{len(packed) // 4}f", packed)) == vector(text)


def test_the_format_that_the_sdk_asks_for_by_itself_is_base64(embeddings, model):
    raw = embeddings.with_raw_response.create(model=model, input="four")
    assert isinstance(raw.http_response.json()["data"][0]["embedding"], str)
    assert raw.parse().data[0].embedding == vector("four")


async def test_the_asynchronous_client_reads_vectors(gateway, model):
    async with gateway.async_client(_strict_response_validation=False) as client:
        reply = await client.embeddings.create(model=model, input="four")
    assert reply.data[0].embedding == vector("four")


def test_tokens_reach_openai_as_tokens(embeddings, standin):
    embeddings.create(model=MODELS["oai"], input=[[1, 2], [3]])
    assert standin.body()["input"] == [[1, 2], [3]]


def test_the_wanted_length_has_its_own_name_at_mistral(embeddings, standin):
    embeddings.create(model=MODELS["mis"], input="four", dimensions=4, user="someone")
    assert standin.body()["output_dimension"] == 4


def test_the_wanted_length_reaches_openai_unchanged(embeddings, standin):
    embeddings.create(model=MODELS["oai"], input="four", dimensions=4, user="someone")
    assert (standin.body()["dimensions"], standin.body()["user"]) == (4, "someone")


def test_an_azure_embedding_names_its_own_deployment_in_the_path(embeddings, standin):
    embeddings.create(model=MODELS["az"], input="four")
    (request,) = standin.requests()
    assert request["path"] == "/azure/openai/deployments/embed-prod/embeddings?api-version=2024-08-01-preview"


def test_a_chat_beside_embeddings_still_goes_to_its_own_model(gateway, embeddings, standin):
    embeddings.create(model=MODELS["az1"], input="four")
    gateway.client().chat.completions.create(model="az1", messages=user("hi"))
    assert [request["body"]["model"] for request in standin.requests()] == ["embed-prod", "gpt-4o-prod"]
