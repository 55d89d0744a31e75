"""What reaches Anthropic, model by model: the stand-in refuses what the service would refuse."""

import base64

import openai
import pytest
from pydantic import BaseModel, Field

from answers import PIECES
from conversation import CITY_FORMAT, FOREIGN_HISTORY, PNG, TOOLS, picture, user

TEXT = "".join(PIECES)
SONNET, OPUS, HAIKU, OLD = "claude-sonnet-5-5", "claude-opus-4-6", "claude-haiku-4-5", "claude-3-5-sonnet-20241022"
MODELS = [SONNET, OPUS, HAIKU, OLD, "claude-opus-5", "claude-opus-4-8", "claude-haiku-5-5"]
EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh"]


def ask(client, model=SONNET, messages=None, **options):
    create = client.chat.completions.with_raw_response.create
    return create(model=f"ant/{model}", messages=messages or user("hi"), **options)


def sent(standin, client, *args, **options):
    """The body that reaches the provider, whose answer is the usual one."""
    standin.reset()
    reply = ask(client, *args, **options).parse()
    assert reply.choices[0].message.content == TEXT
    return standin.body()


def dropped(raw):
    return set(raw.headers.get("x-stagedoor-dropped", "").replace(" ", "").split(","))


@pytest.mark.parametrize("model", MODELS)
def test_max_tokens_is_always_sent_and_never_too_large(standin, client, model):
    largest = {HAIKU: 64_000, OLD: 8_192}.get(model, 128_000)
    assert sent(standin, client, model)["max_tokens"] == 6_000
    assert sent(standin, client, model, max_tokens=50)["max_tokens"] == 50
    assert sent(standin, client, model, max_tokens=0)["max_tokens"] == 6_000
    assert sent(standin, client, model, max_tokens=60, max_completion_tokens=50)["max_tokens"] == 50
    assert sent(standin, client, model, max_completion_tokens=500_000)["max_tokens"] == largest


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"temperature": 0.2, "top_p": 0.5},
        {"temperature": 1.8},
        {"temperature": 1},
    ],
)
def test_sampling_is_sent_where_it_is_known_and_else_named_as_dropped(standin, client, model, sampling):
    raw = ask(client, model, **sampling)
    body = standin.body()
    for name in sampling:
        assert name in body or name in dropped(raw) or sampling[name] == 1
    if model in (OPUS, HAIKU):
        first = next(iter(sampling))
        assert body[first] == min(sampling[first], 1)


def test_top_k_is_sent_where_it_is_known(standin, client):
    assert sent(standin, client, OPUS, extra_body={"top_k": 20})["top_k"] == 20
    assert "top_k" not in sent(standin, client, SONNET, extra_body={"top_k": 20})


def test_the_newer_version_of_the_wire_has_no_sampling(standin, client):
    create = client.chat.completions.with_raw_response.create
    raw = create(model="ant-new", messages=user("hi"), temperature=0.5)
    (request,) = standin.requests()
    headers = {name.lower(): value for name, value in request["headers"].items()}
    assert headers["anthropic-version"] == "2026-10-21"
    assert "temperature" in dropped(raw)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("model", MODELS)
def test_every_effort_becomes_something_that_the_model_takes(standin, client, model, effort):
    body = sent(standin, client, model, reasoning_effort=effort)
    level, thinking = body.get("output_config", {}).get("effort"), body.get("thinking")
    if model == OLD:
        assert thinking is None and level is None
    elif effort == "none":
        assert thinking in (None, {"type": "disabled"}, {"type": "between_tools"})
    elif model == HAIKU:
        assert thinking["type"] == "enabled" and level is None
    else:
        assert thinking["type"] == "adaptive" and thinking["display"] == "summarized"
        assert level == {"minimal": "low", "xhigh": "high" if model == OPUS else "xhigh"}.get(effort, effort)


@pytest.mark.parametrize("limit", [1, 1024, 1025, 1500, 5000])
def test_a_budget_of_thought_leaves_room_for_the_answer(standin, client, limit):
    body = sent(standin, client, HAIKU, reasoning_effort="high", max_tokens=limit)
    assert body["max_tokens"] == limit
    assert ("thinking" in body) == (limit == 5000) or limit in (1025, 1500)


@pytest.mark.parametrize("model", [SONNET, OPUS, HAIKU])
def test_thinking_in_the_providers_own_words_is_fitted_to_the_model(standin, client, model):
    thinking = {"type": "enabled", "budget_tokens": 2048}
    body = sent(standin, client, model, extra_body={"thinking": thinking})
    assert body["thinking"]["type"] == ("adaptive" if model == SONNET else "enabled")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", [{}, {"reasoning_effort": "high"}, {"temperature": 0.5, "reasoning_effort": "low"}])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
def test_a_forced_tool_is_sent_where_it_can_be_and_else_refused_or_reported(standin, client, model, choice, options):
    try:
        raw = ask(client, model, tools=TOOLS, tool_choice=choice, **options)
    except openai.BadRequestError as error:
        assert (error.code, error.param) == ("unsupported_by_backend", "tool_choice")
        assert model == SONNET
        return
    kind = standin.body()["tool_choice"]["type"]
    assert kind == ("any" if choice == "required" else "tool") or "tool_choice" in dropped(raw)
    if not options:
        assert kind in ("any", "tool") or model == SONNET


def test_the_other_tool_choices_have_their_native_form(standin, client):
    assert sent(standin, client, tools=TOOLS).get("tool_choice") in (None, {"type": "auto"})
    assert sent(standin, client, tools=TOOLS, tool_choice="none")["tool_choice"] == {"type": "none"}
    assert len(standin.body()["tools"]) == 2
    body = sent(standin, client, tools=TOOLS, parallel_tool_calls=False)
    assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}


def test_a_choice_among_some_tools_leaves_only_those(standin, client):
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    body = sent(standin, client, tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert [tool["name"] for tool in body["tools"]] == ["get_time"]


def test_the_older_form_of_tools_is_understood_or_refused(standin, client):
    functions = [TOOLS[0]["function"]]
    try:
        assert sent(standin, client, functions=functions, function_call="auto")["tools"][0]["name"] == "get_weather"
    except openai.BadRequestError as error:
        assert error.code == "unsupported_by_backend" and standin.requests() == []


@pytest.mark.parametrize(
    "messages",
    [
        FOREIGN_HISTORY[:3],
        [*FOREIGN_HISTORY[:2], *user("and?")],
        [*FOREIGN_HISTORY[:3], *user("and?"), FOREIGN_HISTORY[3]],
        [*user("a"), FOREIGN_HISTORY[3]],
        [*FOREIGN_HISTORY, FOREIGN_HISTORY[3]],
    ],
)
def test_results_that_are_missing_or_too_many_are_refused_or_mended(standin, client, messages):
    try:
        ask(client, messages=messages, tools=TOOLS)
    except openai.BadRequestError:
        assert standin.requests() == []


def test_a_model_that_is_not_known_yet_is_taken_for_one_of_the_newest(standin, client):
    for options in (
        {"temperature": 0.5},
        {"reasoning_effort": "max"},
        {"reasoning_effort": "none"},
        {"max_tokens": 50},
    ):
        assert sent(standin, client, "claude-sonnet-9", **options)["model"] == "claude-sonnet-9"


def test_parameters_of_a_tool_may_be_missing_or_a_union(standin, client):
    either = {"anyOf": [{"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "object"}]}
    functions = [{"name": "a"}, {"name": "b", "parameters": {}}, {"name": "c", "parameters": either}]
    tools = [{"type": "function", "function": function} for function in functions]
    body = sent(standin, client, tools=tools)
    assert [tool["name"] for tool in body["tools"]] == ["a", "b", "c"]


def strict(schema):
    return [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]


def test_a_strict_tool_is_strict_if_its_schema_can_be(standin, client):
    closed = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert sent(standin, client, tools=strict(closed))["tools"][0]["strict"] is True
    bounded = {**closed, "properties": {"a": {"type": "string", "minLength": 3}}}
    sent(standin, client, tools=strict(bounded))
    recursive = {**closed, "properties": {"a": {"$ref": "#"}}}
    assert not sent(standin, client, tools=strict(recursive))["tools"][0].get("strict")


@pytest.mark.parametrize("amount", [21, 30])
def test_no_more_tools_are_strict_than_the_service_takes(standin, client, amount):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    sent(
        standin,
        client,
        tools=[
            {**strict(schema)[0], "function": {"name": f"f{n}", "parameters": schema, "strict": True}}
            for n in range(amount)
        ],
    )
    many = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(amount)}}
    sent(standin, client, tools=strict({**many, "additionalProperties": False}))
    either = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    many = {
        "type": "object",
        "properties": {f"p{n}": either for n in range(amount)},
        "required": [f"p{n}" for n in range(amount)],
    }
    sent(standin, client, tools=strict({**many, "additionalProperties": False}))


class Place(BaseModel):
    city: str = Field(min_length=1, max_length=80, pattern="^[A-Z]")
    population: int = Field(ge=0, lt=10**9)
    twins: list["Place"] = Field(default=[], max_length=3)
    note: str | None = None


FLAT = {
    "type": "object",
    "properties": {
        "kind": {"oneOf": [{"const": "a"}, {"const": "b"}]},
        "size": {"type": ["integer", "null"], "minimum": 3, "multipleOf": 3},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2, "uniqueItems": True},
        "when": {"type": "string", "format": "date-time"},
        "colour": {"type": "string", "format": "color", "examples": ["red"]},
        "inner": {"type": "object", "properties": {"x": {"type": "number", "exclusiveMinimum": 0}}},
    },
    "required": ["kind"],
    "$defs": {"tag": {"type": "string", "maxLength": 8}},
    "$schema": "https://json-schema.org/draft/2020-12/schema",
}


@pytest.mark.parametrize("model", [SONNET, OPUS, HAIKU])
def test_a_schema_is_brought_into_the_subset_that_is_known(standin, client, model):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": FLAT, "strict": True}}
    ask(client, model, user("[as-json]"), response_format=wanted)
    schema = standin.body()["output_config"]["format"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == FLAT["properties"].keys()
    assert schema["properties"]["inner"]["additionalProperties"] is False


def test_a_schema_and_an_effort_share_their_place(standin, client):
    ask(client, SONNET, user("[as-json]"), response_format=CITY_FORMAT, reasoning_effort="low")
    assert standin.body()["output_config"].keys() == {"format", "effort"}


def test_json_without_a_schema_is_asked_for_in_words(standin, client):
    body = sent(standin, client, messages=user("hi"), response_format={"type": "json_object"})
    assert "format" not in body.get("output_config", {}) and "json" in str(body["system"]).lower()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_model_without_schemas_answers_in_one_all_the_same_or_refuses_clearly(client, standin, stream):
    options = {"response_format": CITY_FORMAT, "stream": stream}
    try:
        raw = ask(client, OLD, user("[as-json]"), **options)
    except openai.BadRequestError as error:
        assert (error.code, error.param) == ("unsupported_by_backend", "response_format")
        return
    assert raw.http_response.status_code == 200
    assert len(standin.requests()) == 1


def test_system_messages_at_the_start_are_the_system_prompt(standin, client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."}, *user("hi")]
    body = sent(standin, client, messages=messages)
    assert [block["text"] for block in body["system"]] == ["Be brief.", "Be kind."]
    assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize("model", [SONNET, OPUS, HAIKU])
def test_a_later_system_message_stays_in_its_place(standin, client, model):
    later = {"role": "system", "content": "Now rhyme."}
    messages = [*user("a"), {"role": "assistant", "content": "b"}, *user("c"), later]
    body = sent(standin, client, model, messages)
    assert "system" not in body
    assert "Now rhyme." in str(body["messages"][2:])


@pytest.mark.parametrize("model", [SONNET, OPUS])
@pytest.mark.parametrize("place", range(1, 8))
def test_a_system_message_may_stand_anywhere(standin, client, model, place):
    messages = [*FOREIGN_HISTORY, *user("a"), {"role": "assistant", "content": "b"}, *user("c")]
    messages.insert(place, {"role": "system", "content": "Now rhyme."})
    assert "Now rhyme." in str(sent(standin, client, model, messages, tools=TOOLS)["messages"])


@pytest.mark.parametrize(
    "messages",
    [
        [*user("a"), *user("b")],
        [*user("a"), {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}, *user("d")],
        [*user("a"), {"role": "assistant", "content": ""}, *user("b")],
        [*user("a"), {"role": "assistant", "content": None}, *user("b")],
        [{"role": "system", "content": " "}, *user("a")],
        [{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "a"}]}],
        [*user("a"), {"role": "assistant", "content": None, "refusal": "No."}, *user("b")],
        [*user("a"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, *user("b")],
        [*user("a"), {"role": "assistant", "content": "  \n"}, *user("b")],
    ],
)
def test_transcripts_that_the_service_refuses_are_mended(standin, client, messages):
    sent(standin, client, messages=messages)


@pytest.mark.parametrize("model", [SONNET, HAIKU])
@pytest.mark.parametrize(
    "messages",
    [
        [*user("a"), {"role": "assistant", "content": "Well, "}],
        [{"role": "assistant", "content": "Hello!"}, *user("a")],
        [{"role": "system", "content": "Be brief."}],
    ],
)
def test_transcripts_that_cannot_be_mended_in_one_way_are_mended_or_refused(standin, client, model, messages):
    try:
        ask(client, model, messages)
    except openai.BadRequestError:
        assert standin.requests() == []
    else:
        assert "Well," not in str(messages) or model == HAIKU or standin.body()["messages"][-1]["role"] == "user"


def test_ids_of_another_provider_are_rewritten_alike_in_call_and_result(standin, client):
    history = [dict(message) for message in FOREIGN_HISTORY]
    calls = [{**call, "id": f"functions.{call['id']}:0=/"} for call in history[1]["tool_calls"]]
    history[1]["tool_calls"] = calls
    for message, call in zip(history[2:], reversed(calls)):
        message["tool_call_id"] = call["id"]
    reply = ask(client, messages=history, tools=TOOLS).parse()
    assert set(reply.choices[0].message.content.split("; ")) == {"get_time=noon", "get_weather=rain"}


@pytest.mark.parametrize("arguments", ["", "{}", "[1]", "7", "null", "not json"])
def test_arguments_that_are_no_object_are_made_one_or_refused(standin, client, arguments):
    history = [dict(message) for message in FOREIGN_HISTORY]
    weather, clock = history[1]["tool_calls"]
    weather = {**weather, "function": {"name": "get_weather", "arguments": arguments}}
    history[1] = {**history[1], "tool_calls": [weather, clock]}
    try:
        ask(client, messages=history, tools=TOOLS)
    except openai.BadRequestError:
        assert standin.requests() == [] and arguments not in ("", "{}")


def test_a_history_with_tools_needs_no_declaration_of_them(client):
    assert ask(client, messages=FOREIGN_HISTORY).parse().choices[0].message.content


@pytest.mark.parametrize("content", ["", [], [{"type": "text", "text": ""}]])
def test_a_tool_may_have_returned_nothing(client, content):
    history = [*FOREIGN_HISTORY[:3], {**FOREIGN_HISTORY[3], "content": content}]
    assert ask(client, messages=history, tools=TOOLS).parse().choices[0].message.content


def test_a_tool_may_return_a_picture(standin, client):
    seen = [{"type": "text", "text": "look"}, picture()]
    ask(client, messages=[*FOREIGN_HISTORY[:3], {**FOREIGN_HISTORY[3], "content": seen}], tools=TOOLS)
    results = [block for block in standin.body()["messages"][2]["content"] if block["type"] == "tool_result"]
    assert "image" in [part["type"] for result in results for part in result["content"] if isinstance(part, dict)]


def test_a_picture_at_an_address_is_fetched_by_the_provider(standin, client):
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "high"}}
    content = [{"type": "text", "text": "[see]"}, image]
    reply = ask(client, messages=[{"role": "user", "content": content}]).parse()
    assert reply.choices[0].message.content == "https://example.com/a.png"
    source = standin.body()["messages"][0]["content"][1]["source"]
    assert source == {"type": "url", "url": "https://example.com/a.png"}


def test_a_picture_at_a_private_address_is_not_fetched(standin, client):
    image = {"type": "image_url", "image_url": {"url": f"{standin.url}/openai/v1/models"}}
    with pytest.raises(openai.BadRequestError):
        ask(client, messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}, image]}])
    assert standin.requests() == []


@pytest.mark.parametrize("claimed", ["image/jpeg", "image/jpg", "image/png", "application/octet-stream"])
def test_the_type_of_a_picture_is_what_its_bytes_are(standin, client, claimed):
    url = f"data:{claimed};base64," + base64.b64encode(PNG).decode()
    content = [{"type": "text", "text": "[see]"}, {"type": "image_url", "image_url": {"url": url}}]
    reply = ask(client, messages=[{"role": "user", "content": content}]).parse()
    assert reply.choices[0].message.content.startswith(f"image/png {len(PNG)} ")


def test_a_document_is_sent_with_its_name(standin, client):
    data = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7 ...").decode()
    file = {"type": "file", "file": {"file_data": data, "filename": "a.pdf"}}
    body = sent(standin, client, messages=[{"role": "user", "content": [file, {"type": "text", "text": "hi"}]}])
    document = body["messages"][0]["content"][0]
    assert (document["type"], document["title"]) == ("document", "a.pdf")
    assert document["source"]["media_type"] == "application/pdf"


def test_breakpoints_of_the_cache_are_sent_where_they_were_set(standin, client):
    mark = {"cache_control": {"type": "ephemeral"}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief.", **mark}]},
        {"role": "user", "content": [{"type": "text", "text": "hi", **mark}]},
    ]
    body = sent(standin, client, messages=messages, tools=[{**TOOLS[0], **mark}, TOOLS[1]])
    assert body["system"][0]["cache_control"] == mark["cache_control"]
    assert body["messages"][0]["content"][0]["cache_control"] == mark["cache_control"]
    assert [tool.get("cache_control") for tool in body["tools"]] == [mark["cache_control"], None]


def test_a_user_is_named_without_personal_data(standin, client):
    assert sent(standin, client, user="user-1")["metadata"]["user_id"]
    assert "ann" not in sent(standin, client, user="ann@example.com")["metadata"]["user_id"]
    body = sent(standin, client, metadata={"purpose": "test"}, safety_identifier="hash-1")
    assert body["metadata"].keys() == {"user_id"}


@pytest.mark.parametrize(
    ("stop", "native"), [("END", ["END"]), (["END", "", " ", "STOP"], ["END", "STOP"]), ("", None)]
)
def test_stops_without_letters_are_not_sent(standin, client, stop, native):
    assert sent(standin, client, stop=stop).get("stop_sequences") == native


@pytest.mark.parametrize(("tier", "native"), [("auto", "auto"), ("default", "standard_only"), ("priority", "auto")])
def test_a_tier_of_service_has_its_native_name(standin, client, tier, native):
    assert sent(standin, client, service_tier=tier)["service_tier"] == native


HARMLESS = {
    "seed": 7,
    "store": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "prompt_cache_key": "key",
    "verbosity": "low",
    "n": 1,
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_fields_without_a_counterpart_are_named_in_the_reply(client, stream):
    raw = ask(client, stream=stream, seed=7, verbosity="low")
    assert {"seed", "verbosity"} <= dropped(raw)


def test_harmless_fields_do_not_disturb(standin, client):
    body = sent(standin, client, **HARMLESS)
    assert not body.keys() & HARMLESS.keys()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("markers", ["[server-tool]", "[novelty]", "[no-usage]"])
def test_blocks_and_events_that_are_not_for_the_client_are_passed_over(client, markers, stream):
    raw = ask(client, messages=user(markers), stream=stream)
    if stream:
        choices = [choice for chunk in raw.parse() for choice in chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == TEXT
        assert not any(choice.delta.tool_calls for choice in choices)
        assert choices[-1].finish_reason == "stop"
    else:
        message = raw.parse().choices[0].message
        assert message.content == TEXT and message.tool_calls is None


def test_the_limits_and_the_request_id_of_the_provider_are_told(client):
    headers = ask(client).headers
    assert headers["x-upstream-request-id"] == "req_upstream"
    assert headers["x-ratelimit-limit-requests"] == "100"
    assert headers["x-ratelimit-remaining-requests"] == "99"
    assert "anthropic-organization-id" not in headers


def test_a_refusal_says_why(client):
    message = ask(client, messages=user("[reason-refusal]")).parse().choices[0].message
    assert message.refusal == "This cannot be answered."


def test_embeddings_are_not_to_be_had(client, standin):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="ant/claude-sonnet-5-5", input="four")
    assert caught.value.code == "unsupported_by_backend" and "ant" in caught.value.message
    assert standin.requests() == []


def test_an_edited_conversation_loses_its_thoughts_and_goes_on(client, standin):
    """The model of this test ties a thought to all that was said before it."""
    options = {"tools": TOOLS, "reasoning_effort": "low"}
    first = ask(client, SONNET, user("[call-tools]"), **options).parse().choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "x"} for call in first.tool_calls]
    history = [*user("[call-tools] edited"), first.model_dump(exclude_none=True), *results]
    assert ask(client, SONNET, history, **options).parse().choices[0].message.content
