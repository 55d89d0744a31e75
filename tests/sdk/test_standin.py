"""The stand-in itself: the providers' own SDKs may talk to it, and what they could not send is a breach."""

import hashlib

import groq
import httpx
import mistralai.client
import openai
import pytest

from answers import MODEL, PIECES
from conversation import TOOLS, user

TEXT = "".join(PIECES)


def without_own_marks(request):
    """The SDKs mark their requests, which a gateway must not do in their place."""
    for name in [name for name in request.headers if name.startswith("x-stainless")]:
        del request.headers[name]


def unmarked():
    return httpx.Client(event_hooks={"request": [without_own_marks]})


def direct(standin, strict=True):
    account = {"api_key": "sk-upstream", "organization": "org-1", "project": "proj-1"}
    options = {"base_url": f"{standin.url}/openai/v1", "http_client": unmarked(), "max_retries": 0}
    return openai.OpenAI(_strict_response_validation=strict, **account, **options)


def test_the_openai_sdk_talks_to_the_stand_in_directly(standin):
    client = direct(standin)
    whole = client.chat.completions.create(model="gpt-4o", messages=user("hi"))
    stream = client.chat.completions.create(model="gpt-4o", messages=user("hi"), stream=True)
    assert whole.choices[0].message.content == TEXT
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == TEXT
    embeddings = direct(standin, strict=False).embeddings
    assert embeddings.create(model="text-embedding-3-small", input="four").data[0].embedding == [0.5, -1.25, 4.0, 0.0]


def test_the_stand_in_reads_a_form_with_a_file(standin):
    sound = bytes(range(256)) * 4_000
    reply = direct(standin).audio.transcriptions.create(model="whisper-1", file=("a.wav", sound))
    assert reply.text == f"whisper-1 {hashlib.sha256(sound).hexdigest()}"


def post(standin, path, body, **headers):
    return httpx.post(f"{standin.url}{path}", json=body, headers=headers)


def breach_of(standin, path, body, **headers):
    reply = post(standin, path, body, **headers)
    breaches = standin.get("/control/breaches")
    standin.reset()
    assert reply.status_code == 400 and len(breaches) == 1
    return breaches[0]


OPENAI_HEADERS = {"authorization": "Bearer sk-upstream", "openai-organization": "org-1", "openai-project": "proj-1"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"messages": [{"role": "user", "content": "hi", "mood": 1}]}, "mood: Extra inputs"),
        (
            {"messages": [{"role": "assistant", "content": "hi", "reasoning_content": "x"}]},
            "reasoning_content: Extra inputs",
        ),
        ({"seed": "7"}, "seed: Input should be a valid integer"),
        ({"stream_options": {"include_usage": True}}, "stream_options without stream"),
        ({"model": "oai"}, "model is 'oai'"),
        ({"model": "o3-mini", "max_tokens": 5}, "max_tokens for a reasoning model"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "answers no open call"),
    ],
)
def test_what_the_openai_types_do_not_hold_is_a_breach(standin, change, reason):
    body = {"model": "gpt-4o", "messages": user("hi"), **change}
    assert reason in breach_of(standin, "/openai/v1/chat/completions", body, **OPENAI_HEADERS)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"authorization": "Bearer client-key-1"}, "header authorization"),
        ({"cookie": "a=b"}, "cookie is forwarded"),
        ({"x-stainless-lang": "python"}, "x-stainless-lang is forwarded"),
        ({"x-note": "client-key-1"}, "carries a credential"),
        ({"openai-organization": "other"}, "header openai-organization"),
    ],
)
def test_headers_of_the_client_are_a_breach(standin, headers, reason):
    body = {"model": "gpt-4o", "messages": user("hi")}
    assert reason in breach_of(standin, "/openai/v1/chat/completions", body, **{**OPENAI_HEADERS, **headers})


CALL = {"id": "call_abc123", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options: Extra inputs"),
        ({"max_completion_tokens": 5}, "max_completion_tokens: Extra inputs"),
        ({"tools": []}, "tools is empty"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "nine letters"),
        ({"messages": [*user("hi"), {"role": "assistant", "content": "x"}]}, "Expected last role"),
    ],
)
def test_what_the_mistral_types_do_not_hold_is_a_breach(standin, change, reason):
    body = {"model": "mistral-large-latest", "messages": user("hi"), **change}
    assert reason in breach_of(standin, "/mistral/v1/chat/completions", body, authorization="Bearer mi-key")


def test_a_user_message_right_after_a_tool_message_is_a_breach_for_mistral(standin):
    call = {**CALL, "id": "abcdefgh1"}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "content": "x"},
        *user("hi"),
    ]
    body = {"model": "mistral-large-latest", "messages": messages}
    reason = breach_of(standin, "/mistral/v1/chat/completions", body, authorization="Bearer mi-key")
    assert "Unexpected role 'user' after role 'tool'" in reason


def test_a_groq_request_with_names_of_messages_is_a_breach(standin):
    body = {"model": "llama-3.3-70b-instruct", "messages": [{"role": "user", "content": "hi", "name": "ann"}]}
    assert "name is not supported" in breach_of(
        standin, "/groq/openai/v1/chat/completions", body, authorization="Bearer ll-key"
    )


def test_an_old_azure_version_does_not_know_newer_fields(standin):
    path = "/azure/openai/deployments/gpt-4o-prod/chat/completions?api-version=2024-08-01-preview"
    body = {"messages": user("hi"), "stream": True, "stream_options": {"include_usage": True}}
    assert "stream_options is unknown" in breach_of(standin, path, body, **{"api-key": "az-key"})


def test_a_repeated_key_is_a_breach(standin):
    raw = '{"model":"gpt-4o","model":"gpt-4o","messages":[{"role":"user","content":"hi"}]}'
    headers = {**OPENAI_HEADERS, "content-type": "application/json"}
    assert httpx.post(f"{standin.url}/openai/v1/chat/completions", content=raw, headers=headers).status_code == 400
    (breach,) = standin.get("/control/breaches")
    standin.reset()
    assert "a key occurs twice" in breach


def mistral(standin):
    return mistralai.client.Mistral(api_key="mi-key", server_url=f"{standin.url}/mistral")


def test_the_mistral_sdk_reads_the_stand_in_as_its_own_service(standin):
    client = mistral(standin)
    whole = client.chat.complete(model="mistral-large-latest", messages=user("[think]"))
    thought, text = whole.choices[0].message.content
    assert thought.thinking[0].text == "Let me think." and text.text == TEXT
    events = list(client.chat.stream(model="mistral-large-latest", messages=user("[call-tools]"), tools=TOOLS))
    calls = events[-1].data.choices[0].delta.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "get_time"]
    assert events[-1].data.usage.total_tokens == 18
    assert client.embeddings.create(model="mistral-embed", inputs=["four"]).data[0].embedding == [0.5, -1.25, 4.0, 0.0]


def test_the_groq_sdk_reads_the_stand_in_as_its_own_service(standin):
    options = {"base_url": f"{standin.url}/groq", "http_client": unmarked(), "_strict_response_validation": True}
    client = groq.Groq(api_key="ll-key", **options)
    whole = client.chat.completions.create(model="llama-3.3-70b-instruct", messages=user("[think]"))
    assert whole.choices[0].message.reasoning == "Let me think."
    chunks = list(client.chat.completions.create(model="llama-3.3-70b-instruct", messages=user("hi"), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[-1].x_groq.usage.total_tokens == 18
    assert MODEL == whole.model
