"""The stand-ins for Google: the official SDK may talk to them, and what that could not send is a breach."""

import base64

import httpx
import pytest
from google import genai
from google.genai import errors, types
from google.oauth2 import service_account

from answers import PIECES
from conversation import PNG

TEXT = "".join(PIECES)
FLASH, OLD = "gemini-3.8-flash", "gemini-2.5-flash"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTIONS = [{"name": name, "parametersJsonSchema": SCHEMA} for name in ("get_weather", "get_time")]
TOOLS = [{"functionDeclarations": FUNCTIONS}]
SHOWN = types.ThinkingConfig(include_thoughts=True)


def gemini(standin):
    options = types.HttpOptions(base_url=f"{standin.url}/gemini", api_version="v1beta")
    return genai.Client(api_key="go-key", http_options=options)


def vertex(standin):
    account = service_account.Credentials.from_service_account_info(standin.get("/control/service-account"))
    credentials = account.with_scopes(["https://www.googleapis.com/auth/cloud-platform"])
    options = types.HttpOptions(base_url=f"{standin.url}/vertex", api_version="v1beta1")
    place = {"project": "proj", "location": "europe-west4"}
    return genai.Client(vertexai=True, credentials=credentials, http_options=options, **place)


@pytest.fixture(params=[gemini, vertex])
def service(standin, request):
    with request.param(standin) as client:
        yield client.models


def ask(service, text="hi", model=FLASH, contents=None, **config):
    return service.generate_content(model=model, contents=contents or text, config=config)


def test_the_google_sdk_reads_the_stand_in_as_its_own_service(service):
    reply = ask(service, thinking_config=SHOWN)
    thought, text = reply.candidates[0].content.parts
    assert thought.thought and thought.text == "Let me think."
    assert text.text == reply.text == TEXT and text.thought_signature
    assert reply.candidates[0].finish_reason == types.FinishReason.STOP
    counts = reply.usage_metadata
    assert (counts.prompt_token_count, counts.cached_content_token_count, counts.total_token_count) == (11, 3, 18)


@pytest.mark.parametrize("model", [FLASH, OLD])
def test_the_stream_of_a_tool_call_tells_the_same_as_its_whole(service, model):
    options = {"model": model, "contents": "[call-tools]", "config": {"tools": TOOLS}}
    whole = service.generate_content(**options).function_calls
    chunks = list(service.generate_content_stream(**options))
    streamed = [call for chunk in chunks for call in chunk.function_calls or []]
    assert [call.args for call in whole] == [call.args for call in streamed]
    assert [call.name for call in whole] == [call.name for call in streamed] == ["get_weather", "get_time"]
    assert [bool(call.id) for call in whole] == [model == FLASH] * 2


def test_a_streamed_text_arrives_in_pieces(service):
    chunks = list(service.generate_content_stream(model=FLASH, contents="hi"))
    assert [chunk.text for chunk in chunks if chunk.text] == PIECES
    assert chunks[-1].usage_metadata.total_token_count == 18


def results(reply):
    given = [
        types.Part(function_response=types.FunctionResponse(id=call.id, name=call.name, response={"output": call.name}))
        for call in reply.function_calls
    ]
    return types.Content(role="user", parts=given)


def spoken(text):
    return types.Content(role="user", parts=[types.Part(text=text)])


@pytest.mark.parametrize("model", [FLASH, OLD])
@pytest.mark.parametrize("markers", ["[call-tools]", "[one-by-one]", "[no-argument]"])
def test_calls_that_come_back_as_they_were_are_accepted(standin, service, model, markers):
    history = [spoken(markers)]
    for _ in range(3):
        reply = ask(service, model=model, contents=history, tools=TOOLS)
        history.append(reply.candidates[0].content)
        history.append(results(reply) if reply.function_calls else spoken("and then?"))
    assert standin.get("/control/notes") == []


def replayed(reply, **change):
    call, *others = reply.candidates[0].content.parts
    call.function_call.args, signature = change.get("args", call.function_call.args), call.thought_signature
    call.thought_signature = change.get("thought_signature", signature)
    content = types.Content(role="model", parts=[call, *others])
    return [spoken("[call-tools]"), content, results(reply)]


def test_a_placeholder_for_a_signature_is_noted(standin, service):
    first = ask(service, "[call-tools]", tools=TOOLS)
    body = as_json(replayed(first))
    body["contents"][1]["parts"][0]["thoughtSignature"] = "skip_thought_signature_validator"
    assert post(standin, body).status_code == 200
    (note,) = standin.get("/control/notes")
    assert (note["kind"], note["current"]) == ("lost", True)


def as_json(contents):
    return {"contents": [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in contents]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"thought_signature": None}, "missing a thought_signature"),
        ({"thought_signature": b"x" * 41}, "Corrupted thought signature"),
        ({"args": {"city": "Oslo"}}, "of another part"),
    ],
)
def test_a_wrong_signature_is_a_breach(standin, change, reason):
    with gemini(standin) as client:
        first = ask(client.models, "[call-tools]", tools=TOOLS)
    standin.reset()
    assert reason in breach_of(standin, as_json(replayed(first, **change)))


@pytest.mark.parametrize("text", ["[rate-limit]", "[forbidden]", "[overloaded]", "[no-model]"])
def test_the_sdk_reads_failures(service, text):
    with pytest.raises(errors.APIError) as caught:
        ask(service, text)
    assert caught.value.status in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "NOT_FOUND")


def test_an_error_inside_a_stream_raises(service):
    with pytest.raises(errors.APIError):
        list(service.generate_content_stream(model=FLASH, contents="[error-inside]"))


def test_a_blocked_prompt_has_no_candidates(service):
    reply = ask(service, "[refuse]")
    assert reply.candidates is None and reply.prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT


@pytest.mark.parametrize("reason", ["SAFETY", "MAX_TOKENS", "MALFORMED_FUNCTION_CALL"])
def test_every_reason_to_finish_can_be_given(service, reason):
    reply = ask(service, f"[reason-{reason.lower().replace('_', '-')}]")
    assert reply.candidates[0].finish_reason == types.FinishReason[reason]


@pytest.mark.parametrize("model", ["gemini-embedding-001", "gemini-embedding-2"])
def test_texts_are_embedded(service, model):
    reply = service.embed_content(model=model, contents=["one"], config={"output_dimensionality": 4})
    long = 1 if model.endswith("001") else 52**0.5
    assert reply.embeddings[0].values == [6.0 / long, 4.0 / long, 0.0, 0.0]


def test_texts_are_embedded_by_prediction(standin):
    with vertex(standin) as client:
        options = {"config": {"output_dimensionality": 4}, "contents": ["one", "four"]}
        reply = client.models.embed_content(model="text-embedding-005", **options)
    assert [each.values[0] for each in reply.embeddings] == [6.0 / 52**0.5, 7.0 / 65**0.5]


CALL = {"functionCall": {"name": "get_weather", "args": {}}, "thoughtSignature": "skip_thought_signature_validator"}


def result(**change):
    return {"functionResponse": {"name": "get_weather", "response": {"output": "rain"}, **change}}


def contents(*entries):
    """Entries as roles with their parts."""
    return {"contents": [{"role": role, "parts": list(parts)} for role, *parts in entries]}


def calling(*answers):
    return contents(("user", {"text": "hi"}), ("model", CALL), ("user", *answers))


def config(**options):
    return {"generationConfig": options}


def functions(schema, slot="parametersJsonSchema"):
    return {"tools": [{"functionDeclarations": [{"name": "f", slot: schema}]}]}


def image(kind):
    return {"inlineData": {"mimeType": kind, "data": base64.b64encode(PNG).decode()}}


@pytest.mark.parametrize(
    ("model", "change", "reason"),
    [
        (FLASH, {"model": FLASH}, "model: Extra inputs"),
        (FLASH, {"stream": True}, "stream: Extra inputs"),
        (FLASH, config(colour="red"), "colour: Extra inputs"),
        (FLASH, {"labels": {"a": "b"}}, "Vertex AI only"),
        (FLASH, contents(("assistant", {"text": "hi"})), "role 'assistant'"),
        (FLASH, contents(("user",)), "parts are empty"),
        (FLASH, contents(("user", {"text": ""})), "an empty text"),
        (FLASH, contents(("user", {"text": "a"}), ("user", {"text": "b"})), "follows itself"),
        (FLASH, contents(("user", {"text": "a"}), ("model", {"text": "b"})), "ending with a model turn"),
        (FLASH, contents(("user", image("image/jpeg"))), "not image/jpeg"),
        (FLASH, contents(("user", {"fileData": {"fileUri": "https://x.example/a.png"}})), "not inlined"),
        (FLASH, contents(("user", {"text": "a", **image("image/png")})), "a part holds"),
        (FLASH, calling(), "parts are empty"),
        (FLASH, calling({"text": "rain"}), "number of function response parts"),
        (FLASH, calling(result(), result()), "number of function response parts"),
        (FLASH, calling(result(name="call_1")), "call_1"),
        (FLASH, calling(result(), {"text": "and?"}), "a functionResponse beside"),
        (FLASH, calling(result(id="call_1")), "ids of"),
        (OLD, calling(result(id="fc_1")), "ids are unknown"),
        (FLASH, calling(result(response="rain")), "response"),
        (FLASH, contents(("user", {"text": "a"}), ("model", CALL)), "model turn"),
        (FLASH, config(thinkingConfig={"thinkingLevel": "MINIMAL"}), "not a supported thinking level"),
        (FLASH, config(thinkingConfig={"thinkingLevel": "MAXIMAL"}), "not a valid ThinkingLevel"),
        (FLASH, config(thinkingConfig={"thinkingLevel": "LOW", "thinkingBudget": 5}), "only one of"),
        (FLASH, config(thinkingConfig={"thinkingBudget": 5}), "with levels"),
        (OLD, config(thinkingConfig={"thinkingLevel": "LOW"}), "level is not supported"),
        (OLD, config(thinkingConfig={"thinkingBudget": 30000}), "budget 30000 is invalid"),
        (FLASH, config(temperature=0.5), "would be ignored"),
        (FLASH, config(presencePenalty=0.5), "Penalty is not enabled"),
        (FLASH, config(candidateCount=2), "Multiple candidates"),
        (FLASH, config(stopSequences=[""]), "stop sequence is empty"),
        (FLASH, config(seed=2**40), "32 bits"),
        (FLASH, config(responseJsonSchema=SCHEMA), "needs responseMimeType"),
        (FLASH, {"toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}}, "without function_declarations"),
        (FLASH, {"tools": [*TOOLS, *TOOLS]}, "functions in several tools"),
        (FLASH, functions({"type": "object", "$schema": "x"}), "$schema"),
        (FLASH, functions({"type": "object", "properties": {"a": {"const": 1}}}), "const"),
        (FLASH, functions({"type": "object", "properties": {"a": {"type": "array"}}}), "items: missing"),
        (FLASH, functions({"type": "object", "properties": {}, "required": ["a"]}), "property is not defined"),
        (FLASH, functions({"type": "OBJECT", "additionalItems": False}, "parameters"), "additionalItems: Extra"),
        (FLASH, functions({"type": "OBJECT", "properties": {}}, "parameters"), "non-empty"),
        ("gemini-1.5-pro", {}, "not found"),
    ],
)
def test_what_the_service_does_not_take_is_a_breach(standin, model, change, reason):
    body = {**contents(("user", {"text": "hi"})), **change}
    assert reason in breach_of(standin, body, model)


def post(standin, body, model=FLASH, verb="generateContent", **headers):
    headers = {"x-goog-api-key": "go-key", **headers}
    return httpx.post(f"{standin.url}/gemini/v1beta/models/{model}:{verb}", json=body, headers=headers)


def breach_of(standin, body, model=FLASH, verb="generateContent", **headers):
    reply = post(standin, body, model, verb, **headers)
    (breach,) = standin.get("/control/breaches")
    standin.reset()
    assert reply.status_code == 400 and reply.json()["error"]["status"] == "INVALID_ARGUMENT"
    return breach


@pytest.mark.parametrize(
    ("verb", "headers", "reason"),
    [
        ("generateContent?key=go-key", {}, "query"),
        ("streamGenerateContent", {}, "query is ''"),
        ("generateContent", {"x-goog-api-key": "client-key-1"}, "credential"),
        ("generateContent", {"authorization": "Bearer go-key"}, "credentials"),
        ("generateContent", {"openai-organization": "org-1"}, "is forwarded"),
    ],
)
def test_wrong_places_and_headers_are_a_breach(standin, verb, headers, reason):
    assert reason in breach_of(standin, contents(("user", {"text": "hi"})), verb=verb, **headers)


@pytest.mark.parametrize(
    ("request_", "count", "reason"),
    [
        ({"content": {"parts": [{"text": "a"}]}}, 1, "model is required"),
        ({"content": {"parts": [{"text": "a"}]}, "model": "gemini-embedding-001"}, 1, "model"),
        (
            {"content": {"parts": [{"text": "a"}]}, "model": "models/gemini-embedding-001"},
            101,
            "at most 100 in one batch",
        ),
        ({"content": {"parts": [{"text": "a"}] * 2}, "model": "models/gemini-embedding-001"}, 1, "one vector"),
    ],
)
def test_what_a_batch_of_texts_may_not_be_is_a_breach(standin, request_, count, reason):
    body = {"requests": [request_] * count}
    assert reason in breach_of(standin, body, "gemini-embedding-001", "batchEmbedContents")


def test_a_token_is_given_for_a_signed_assertion_only(standin):
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": "a.b.c"}
    reply = httpx.post(f"{standin.url}/oauth/token", data=form)
    assert reply.status_code == 400 and reply.json()["error"] == "invalid_grant"
    assert len(standin.get("/control/breaches")) == 1
    standin.reset()
