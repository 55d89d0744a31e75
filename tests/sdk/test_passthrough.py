"""Paths that a route hands to a backend as they are, with the operator's credential in place of the client's."""

import hashlib

import openai
import pytest

from answers import PIECES
from conftest import Gateway
from conversation import user


@pytest.fixture(scope="module")
def routed_gateway(running_standin, tmp_path_factory):
    gateway = Gateway(running_standin, tmp_path_factory.mktemp("routed") / "log", "passthrough.yaml")
    yield gateway
    gateway.stop()


@pytest.fixture
def routed(standin, routed_gateway):
    with routed_gateway.client() as client:
        yield client


def test_a_routed_chat_is_answered(routed):
    reply = routed.chat.completions.create(model="gpt-4o", messages=user("hi"))
    assert reply.choices[0].message.content == "".join(PIECES)


def test_a_moderation_is_passed_through(routed):
    assert routed.moderations.create(model="omni-moderation-latest", input="hi").id == "modr-1"


def test_speech_is_passed_through_byte_by_byte_and_its_model_by_alias(routed, standin):
    speech = routed.audio.speech.create(model="speaker", voice="alloy", input="hi")
    assert speech.read() == bytes(range(256))
    assert standin.body()["model"] == "tts-1"


def test_a_form_with_a_file_is_passed_through_whole(routed):
    sound = bytes(range(256)) * 4_000
    reply = routed.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound))
    assert reply.text == f"whisper-1 {hashlib.sha256(sound).hexdigest()}"


def test_a_path_without_a_route_is_not_found(routed, standin):
    with pytest.raises(openai.NotFoundError):
        routed.embeddings.create(model="text-embedding-3-small", input="hi")
    assert standin.requests() == []


def test_a_method_that_its_route_does_not_take_is_refused_with_those_it_takes(routed):
    with pytest.raises(openai.APIStatusError) as caught:
        routed.get("/moderations", cast_to=object)
    assert caught.value.status_code == 405
    assert caught.value.response.headers["allow"] == "POST"
