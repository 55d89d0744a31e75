"""What reaches Google, at the Gemini API and at Vertex AI: the stand-ins refuse what the services would refuse."""

import base64
import math
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from langchain_openai import OpenAIEmbeddings

from answers import PIECES
from conftest import KEY
from conversation import CITY_FORMAT, FOREIGN_HISTORY, PNG, TOOLS, picture, user
from standin_google import vector
from test_anthropic import FLAT

TEXT = "".join(PIECES)
FLASH, PRO, SAMPLED = "gem/gemini-3.8-flash", "gem/gemini-3.1-pro-preview", "gem/gemini-3.5-flash"
OLD, OLD_PRO, VERTEX = "gem/gemini-2.5-flash", "gem/gemini-2.5-pro", "vertex/gemini-3.8-flash"
MODELS = [FLASH, "gem/gemini-3.6-flash", SAMPLED, PRO, OLD_PRO, OLD, VERTEX, "vertex/gemini-2.5-flash"]
EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh"]


def ask(client, model=FLASH, messages=None, **options):
    return client.chat.completions.with_raw_response.create(model=model, messages=messages or user("hi"), **options)


def sent(standin, client, *args, **options):
    """The body that reaches the provider, whose answer is the usual one."""
    standin.reset()
    reply = ask(client, *args, **options).parse()
    assert reply.choices[0].message.content == TEXT
    return standin.body()


def configured(*args, **options):
    return sent(*args, **options).get("generationConfig", {})


def dropped(raw):
    return set(raw.headers.get("x-stagedoor-dropped", "").replace(" ", "").split(","))


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_effort_becomes_something_that_the_model_takes(standin, client, model, effort):
    thinking = configured(standin, client, model, reasoning_effort=effort)["thinkingConfig"]
    assert bool(thinking.get("includeThoughts")) == (effort != "none")
    assert ("thinkingBudget" if "2.5" in model else "thinkingLevel") in thinking
    if model == FLASH:
        assert thinking["thinkingLevel"] == {"none": "LOW", "minimal": "LOW", "xhigh": "HIGH"}.get(
            effort, effort.upper()
        )


@pytest.mark.parametrize("model", MODELS)
def test_sampling_is_sent_where_it_is_obeyed_and_else_named_as_dropped(standin, client, model):
    options = {"temperature": 0.5, "top_p": 0.5, "presence_penalty": 0.5}
    raw = ask(client, model, **options, extra_body={"top_k": 20})
    config = standin.body().get("generationConfig", {})
    for name, native in {"temperature": "temperature", "top_p": "topP", "top_k": "topK"}.items():
        assert (native in config) == (model in (SAMPLED, PRO, OLD, OLD_PRO, "vertex/gemini-2.5-flash"))
        assert (native in config) != (name in dropped(raw))
    assert ("presencePenalty" in config) != ("presence_penalty" in dropped(raw))


def test_the_other_parameters_have_their_native_names(standin, client):
    options = {"max_completion_tokens": 50, "seed": 2**40 + 7, "stop": ["END", ""]}
    config = configured(standin, client, **options)
    assert config["maxOutputTokens"] == 50 and config["stopSequences"] == ["END"] and "seed" in config
    assert configured(standin, client, max_tokens=500_000)["maxOutputTokens"] == 65_536


def test_more_stops_than_the_service_takes_are_not_all_sent(standin, client):
    raw = ask(client, stop=["a", "b", "c", "d", "e", "f"])
    assert len(standin.body()["generationConfig"]["stopSequences"]) <= 5
    assert "stop" in dropped(raw)


def test_logprobs_have_their_native_form(standin, client):
    config = configured(standin, client, OLD, logprobs=True, top_logprobs=3)
    assert (config["responseLogprobs"], config["logprobs"]) == (True, 3)
    config = configured(standin, client, OLD, logprobs=True, top_logprobs=0)
    assert config["responseLogprobs"] and "logprobs" not in config


@pytest.mark.parametrize(
    ("tier", "native"), [("auto", None), ("default", "standard"), ("flex", "flex"), ("priority", "priority")]
)
def test_a_tier_of_service_has_its_native_name(standin, client, tier, native):
    assert sent(standin, client, service_tier=tier).get("serviceTier") == native


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", [FLASH, OLD, VERTEX])
def test_a_picture_is_handed_on_and_goes_back_with_the_history(standin, client, model, streamed):
    wish = {"model": model, "messages": user("draw"), "modalities": ["text", "image"]}
    if streamed:
        with client.chat.completions.stream(**wish) as stream:
            message = stream.get_final_completion().choices[0].message
    else:
        message = client.chat.completions.create(**wish).choices[0].message
    assert message.content == TEXT
    assert [image["image_url"]["url"] for image in message.images] == [picture()["image_url"]["url"]]
    history = [*user("draw"), message.model_dump(exclude_none=True), *user("again")]
    body = sent(standin, client, model, messages=history)
    parts = body["contents"][1]["parts"]
    drawn = next(part for part in parts if "inlineData" in part)
    assert ("thoughtSignature" in drawn) == (model != OLD)
    assert base64.b64decode(drawn["inlineData"]["data"]) == PNG


@pytest.mark.parametrize("model", [FLASH, OLD, VERTEX])
@pytest.mark.parametrize(
    ("choice", "native"),
    [
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "get_time"}}, {"mode": "ANY", "allowedFunctionNames": ["get_time"]}),
    ],
)
def test_every_tool_choice_has_its_native_form(standin, client, model, choice, native):
    body = sent(standin, client, model, tools=TOOLS, tool_choice=choice)
    assert body["toolConfig"]["functionCallingConfig"] == native
    assert len(body["tools"][0]["functionDeclarations"]) == 2


def test_a_choice_among_some_tools_allows_only_those(standin, client):
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    body = sent(standin, client, tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    native = {"mode": "ANY", "allowedFunctionNames": ["get_time"]}
    assert body["toolConfig"]["functionCallingConfig"] == native


@pytest.mark.parametrize(
    "messages",
    [
        FOREIGN_HISTORY[:3],
        [*FOREIGN_HISTORY[:2], *user("and?")],
        [*FOREIGN_HISTORY[:3], *user("and?"), FOREIGN_HISTORY[3]],
        [*FOREIGN_HISTORY, FOREIGN_HISTORY[3]],
    ],
)
def test_results_that_are_missing_or_too_many_are_refused_or_mended(standin, client, messages):
    try:
        ask(client, messages=messages, tools=TOOLS)
    except openai.BadRequestError:
        assert standin.requests() == []


def test_a_picture_at_a_private_address_is_not_fetched(standin, client):
    for url in (f"{standin.url}/openai/v1/models", "https://127.0.0.1/a.png", "https://[::1]/a.png"):
        content = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}]
        with pytest.raises(openai.BadRequestError):
            ask(client, messages=[{"role": "user", "content": content}])
    assert standin.requests() == []


def test_no_parallel_calls_means_the_first_call_only_or_is_reported(client):
    raw = ask(client, messages=user("[call-tools]"), tools=TOOLS, parallel_tool_calls=False)
    calls = raw.parse().choices[0].message.tool_calls
    assert len(calls) == 1 or "parallel_tool_calls" in dropped(raw)


@pytest.mark.parametrize("model", [FLASH, OLD, VERTEX])
def test_a_schema_is_brought_into_the_subset_that_is_known(standin, client, model):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": FLAT, "strict": True}}
    ask(client, model, user("[as-json]"), response_format=wanted)
    config = standin.body()["generationConfig"]
    schema = config.get("responseJsonSchema") or config["responseSchema"]
    assert schema["properties"].keys() == FLAT["properties"].keys()


@pytest.mark.parametrize("model", [FLASH, OLD, VERTEX])
@pytest.mark.parametrize(
    "parameters",
    [
        FLAT,
        {"type": "object", "properties": {}},
        {},
        None,
        {"type": "object", "properties": {"a": {"type": "array"}, "b": {"enum": ["", "x"]}}, "required": ["a", "z"]},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, {"type": "string"}], "default": None}}},
        {
            "type": "object",
            "properties": {"a": {"allOf": [{"type": "object", "properties": {"b": {"type": "string"}}}]}},
        },
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/definitions/t", "description": "x"}},
            "definitions": {"t": {"type": "object", "properties": {"again": {"$ref": "#/definitions/t"}}}},
        },
        {"type": "object", "additionalProperties": {"type": "string"}, "patternProperties": {"^x": {"type": "string"}}},
        {"properties": {"a": {"type": "string", "const": "x"}, "b": {"type": "integer", "enum": [1, 2]}}},
    ],
)
def test_parameters_of_a_tool_are_brought_into_the_subset_that_is_known(standin, client, model, parameters):
    function = {
        "name": "f",
        "description": "d",
        "strict": True,
        **({} if parameters is None else {"parameters": parameters}),
    }
    sent(standin, client, model, tools=[{"type": "function", "function": function}])


def test_an_answer_may_be_bound_to_a_schema_beside_tools(standin, client):
    ask(client, FLASH, user("[as-json]"), response_format=CITY_FORMAT, tools=TOOLS)
    with pytest.raises(openai.BadRequestError):
        ask(client, OLD, user("[as-json]"), response_format=CITY_FORMAT, tools=TOOLS)
    assert len(standin.requests()) == 1


def test_json_without_a_schema_is_asked_for_by_its_type(standin, client):
    config = configured(standin, client, response_format={"type": "json_object"})
    assert config["responseMimeType"] == "application/json" and "responseJsonSchema" not in config


def test_system_messages_at_the_start_are_the_instruction(standin, client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}, *user("hi")]
    body = sent(standin, client, messages=messages)
    assert [part["text"] for part in body["systemInstruction"]["parts"]] == ["Be brief.", "Be kind."]
    assert [content["role"] for content in body["contents"]] == ["user"]


@pytest.mark.parametrize("model", [FLASH, OLD])
@pytest.mark.parametrize("place", range(1, 8))
def test_a_system_message_may_stand_anywhere(standin, client, model, place):
    messages = [*FOREIGN_HISTORY, *user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    messages.insert(place, {"role": "system", "content": "Now rhyme."})
    body = sent(standin, client, model, messages, tools=TOOLS)
    assert "Now rhyme." in str(body["contents"]) and "systemInstruction" not in body


@pytest.mark.parametrize("model", [FLASH, OLD, VERTEX])
@pytest.mark.parametrize(
    "messages",
    [
        [*user("a"), *user("b")],
        [*user("a"), {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}, *user("d")],
        [*user("a"), {"role": "assistant", "content": ""}, *user("b")],
        [*user("a"), {"role": "assistant", "content": None}, *user("b")],
        [{"role": "system", "content": " "}, *user("a")],
        [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "a"}]}],
        [*user("a"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, *user("b")],
        [{"role": "system", "content": "Be brief."}],
    ],
)
def test_transcripts_that_the_service_refuses_are_mended(client, model, messages):
    assert ask(client, model, messages).parse().choices[0].message.content == TEXT


def test_a_last_word_of_the_assistant_is_mended_or_refused(standin, client):
    try:
        ask(client, messages=[*user("a"), {"role": "assistant", "content": "Well, "}])
    except openai.BadRequestError:
        assert standin.requests() == []


@pytest.mark.parametrize("model", [FLASH, OLD, VERTEX])
@pytest.mark.parametrize("content", ["", "[1]", '{"a":1}', '{"error":"x"}', [{"type": "text", "text": "x"}]])
def test_a_result_of_any_kind_becomes_an_object(standin, client, model, content):
    ask(client, model, [*FOREIGN_HISTORY[:3], {**FOREIGN_HISTORY[3], "content": content}], tools=TOOLS)
    results = [part["functionResponse"] for part in standin.body()["contents"][2]["parts"]]
    assert [result["name"] for result in results] == ["get_weather", "get_time"]
    assert results[1]["response"] == {"output": "noon"}


@pytest.mark.parametrize("model", [FLASH, OLD])
def test_a_tool_may_return_a_picture(standin, client, model):
    seen = [{"type": "text", "text": "look"}, picture()]
    ask(client, model, [*FOREIGN_HISTORY[:3], {**FOREIGN_HISTORY[3], "content": seen}], tools=TOOLS)
    assert "inlineData" in str(standin.body()["contents"])


def test_an_unknown_call_cannot_be_answered(client, standin):
    messages = [*user("hi"), {"role": "tool", "tool_call_id": "call_unknown", "content": "x"}]
    with pytest.raises(openai.BadRequestError):
        ask(client, messages=messages, tools=TOOLS)
    assert standin.requests() == []


@pytest.mark.parametrize("claimed", ["image/jpeg", "image/jpg", "image/png"])
def test_the_type_of_a_picture_is_what_its_bytes_are(client, claimed):
    url = f"data:{claimed};base64," + base64.b64encode(PNG).decode()
    content = [{"type": "text", "text": "[see]"}, {"type": "image_url", "image_url": {"url": url}}]
    reply = ask(client, messages=[{"role": "user", "content": content}]).parse()
    assert reply.choices[0].message.content.startswith(f"image/png {len(PNG)} ")


def test_sound_and_documents_are_inlined(standin, client):
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    data = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7").decode()
    file = {"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}
    body = sent(standin, client, messages=[{"role": "user", "content": [sound, file, {"type": "text", "text": "hi"}]}])
    kinds = [part["inlineData"]["mimeType"] for part in body["contents"][0]["parts"] if "inlineData" in part]
    assert kinds == ["audio/wav", "application/pdf"]


def test_fields_without_a_counterpart_are_named_in_the_reply(client):
    raw = ask(client, user="someone", verbosity="low", prompt_cache_key="key")
    assert "verbosity" in dropped(raw)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_answer_that_was_all_thought_is_empty_and_too_long(client, stream):
    if stream:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, last = ask(client, messages=user("[starved]"), **options).parse()
        reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        usage = last.usage
    else:
        reply = ask(client, messages=user("[starved]")).parse()
        reasons, usage = [reply.choices[0].finish_reason], reply.usage
    assert reasons == ["length"]
    assert (usage.completion_tokens, usage.total_tokens, usage.completion_tokens_details.reasoning_tokens) == (7, 18, 7)


def test_thoughts_that_are_counted_within_the_candidates_are_not_counted_twice(client):
    usage = ask(client, messages=user("[thoughts-included]")).parse().usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 7, 18)


def test_the_ids_of_calls_of_a_model_without_ids_are_unique(client):
    ids = [
        call.id
        for _ in range(3)
        for call in ask(client, OLD, user("[call-tools]"), tools=TOOLS).parse().choices[0].message.tool_calls
    ]
    assert len(set(ids)) == 6


@pytest.mark.parametrize("reason", ["malformed-function-call", "unexpected-tool-call", "malformed-response"])
def test_a_call_that_the_model_could_not_write_is_no_silent_success(client, standin, reason):
    raw = ask(client, messages=user(f"[reason-{reason}]"), tools=TOOLS)
    assert raw.parse().choices[0].finish_reason in ("stop", "content_filter")


def test_a_token_is_exchanged_once_for_many_requests(fresh_gateway, standin):
    before = standin.get("/control/exchanges")
    client = fresh_gateway.client()
    for _ in range(12):
        ask(client, VERTEX)
    # At most one by each worker.
    assert 1 <= standin.get("/control/exchanges") - before <= 2


def test_a_token_that_is_refused_is_exchanged_for_another(fresh_gateway, standin):
    client = fresh_gateway.client()
    ask(client, VERTEX)
    before = standin.get("/control/exchanges")
    standin.next("bad-key")
    assert ask(client, VERTEX).parse().choices[0].message.content == TEXT
    assert standin.get("/control/exchanges") - before == 1


def test_a_token_is_exchanged_once_for_requests_that_come_together(fresh_gateway, standin):
    before = standin.get("/control/exchanges")
    client = fresh_gateway.client()
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(client, VERTEX).parse(), range(16)))
    assert len(replies) == 16
    assert 1 <= standin.get("/control/exchanges") - before <= 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_account_that_is_given_no_token_is_a_credential_refused(fresh_gateway, standin, stream):
    standin.next("no-token", "no-token")
    with pytest.raises(openai.InternalServerError) as caught:
        ask(fresh_gateway.client(), VERTEX, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_credential")
    assert standin.requests() == []
    standin.reset()
    # The circuit lets a probe pass each second.
    time.sleep(1.1)
    assert ask(fresh_gateway.client(), VERTEX).parse().choices[0].message.content == TEXT


EMBEDDERS = [
    "gem/gemini-embedding-001",
    "gem/gemini-embedding-2",
    "vertex/gemini-embedding-001",
    "vertex/gemini-embedding-2",
    "vertex/text-embedding-005",
]


@pytest.fixture
def embeddings(gateway):
    # The SDK's own type of an embedding has no room for the base64 that the SDK asks for.
    with gateway.client(_strict_response_validation=False) as client:
        yield client.embeddings


def close_to(text, length):
    row = vector(text, length)
    norm = math.hypot(*row)
    return pytest.approx([value / norm for value in row], abs=1e-6)


@pytest.mark.parametrize("model", EMBEDDERS)
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_texts_have_their_vectors_in_order_and_of_unit_length(embeddings, model, options):
    for dimensions in ({}, {"dimensions": 256}):
        reply = embeddings.create(model=model, input=["one", "three"], **options, **dimensions)
        rows = [item.embedding for item in reply.data]
        if options.get("encoding_format") == "base64":
            rows = [list(memoryview(base64.b64decode(row)).cast("f")) for row in rows]
        length = dimensions.get("dimensions", 3072)
        assert rows == [close_to("one", length), close_to("three", length)]
        assert [item.index for item in reply.data] == [0, 1] and reply.usage.prompt_tokens > 0


@pytest.mark.parametrize("model", EMBEDDERS)
def test_one_text_needs_no_list(embeddings, model):
    assert embeddings.create(model=model, input="four").data[0].embedding == close_to("four", 3072)


@pytest.mark.parametrize("model", EMBEDDERS)
def test_more_texts_than_one_batch_holds_are_embedded_in_order(embeddings, model):
    texts = ["x" * (1 + place % 60) for place in range(130)]
    reply = embeddings.create(model=model, input=texts, dimensions=128)
    assert [item.embedding for item in reply.data] == [close_to(text, 128) for text in texts]


def test_tokens_cannot_be_embedded(embeddings, standin):
    with pytest.raises(openai.BadRequestError) as caught:
        embeddings.create(model="gem/gemini-embedding-001", input=[[1, 2], [3]])
    assert caught.value.code == "unsupported_by_backend" and caught.value.param == "input"
    assert standin.requests() == []


def test_embeddings_fail_with_the_same_exceptions(fresh_gateway):
    with pytest.raises(openai.RateLimitError):
        fresh_gateway.client().embeddings.create(model="gem/gemini-embedding-001", input="[rate-limit]")


def test_langchain_embeds_documents(gateway):
    options = {"base_url": f"{gateway.url}/v1", "api_key": KEY, "check_embedding_ctx_length": False}
    embeddings = OpenAIEmbeddings(model="gem/gemini-embedding-001", **options)
    assert embeddings.embed_documents(["one", "three"]) == [close_to("one", 3072), close_to("three", 3072)]
