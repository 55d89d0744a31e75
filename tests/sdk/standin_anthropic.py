"""Stands in for the Anthropic Messages API: checks each request by model, signs its thoughts, answers in native form.

Request bodies are checked with the types of the official `anthropic` package. Signed thoughts are verified when they
come back; a tool call that comes back without the thoughts it was made with is noted as lost.
"""

import base64
import collections
import functools
import hashlib
import hmac
import json
import re
import secrets

import anthropic.types.beta.message_create_params as beta_params
import anthropic.types.message_create_params as params
from aiohttp import web

import answers
import failures
from schemas import Breach, Refused, conform, decode, strict

KEY = "an-key"
VERSIONS = ("2023-06-01", "2026-10-21")
SAMPLING = ("temperature", "top_p", "top_k")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
BINDING = "thinking-binding-controls-2026-08-01"


@functools.cache
def types(stream, beta):
    module = beta_params if beta else params
    return strict(module.MessageCreateParamsStreaming if stream else module.MessageCreateParamsNonStreaming)


# What may be sent to a model: the largest max_tokens, whether it thinks unless told otherwise, the kinds of thinking
# and levels of effort it takes, whether sampling is "free", "one" of two or the "default" only, whether a tool may be
# forced, an answer be begun by the caller, a system message stand in the middle, an answer follow a schema.
Model = collections.namedtuple("Model", "limit thinks kinds efforts sampling forced prefill midway structured bound")
ADAPTIVE, MANUAL, OFF = "adaptive", "enabled", "disabled"
MODELS = {
    "claude-sonnet-5-5": Model(
        128000, True, {ADAPTIVE, "between_tools"}, EFFORTS, "default", False, False, True, True, True
    ),
    "claude-sonnet-9": Model(
        128000, True, {ADAPTIVE, "between_tools"}, EFFORTS, "default", False, False, True, True, True
    ),
    "claude-haiku-5-5": Model(128000, True, {ADAPTIVE, OFF}, EFFORTS, "default", True, False, True, True, True),
    "claude-opus-5": Model(128000, True, {ADAPTIVE, OFF}, EFFORTS, "default", True, False, True, True, False),
    "claude-opus-4-8": Model(128000, False, {ADAPTIVE, OFF}, EFFORTS, "default", True, False, True, True, False),
    "claude-opus-4-6": Model(
        128000,
        False,
        {ADAPTIVE, MANUAL, OFF},
        ("low", "medium", "high", "max"),
        "one",
        True,
        False,
        False,
        True,
        False,
    ),
    "claude-haiku-4-5": Model(64000, False, {MANUAL, OFF}, (), "one", True, True, False, True, False),
    "claude-3-5-sonnet-20241022": Model(8192, False, set(), (), "free", True, True, False, False, False),
}
SUMMARIZED_BY_DEFAULT = {"claude-opus-4-6", "claude-haiku-4-5"}

MAGIC = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
    "application/pdf": b"%PDF",
}
SCHEMA_KEYS = {
    "type",
    "properties",
    "required",
    "items",
    "enum",
    "const",
    "anyOf",
    "allOf",
    "$defs",
    "$ref",
    "default",
    "title",
    "description",
    "additionalProperties",
    "format",
    "minItems",
    "pattern",
}
SCHEMA_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}


def require(condition, reason):
    if not condition:
        raise Breach(reason)


def blocks_of(message):
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def of_type(message, *kinds):
    return [block for block in blocks_of(message) if block["type"] in kinds]


def thoughts_of(message):
    return of_type(message, "thinking", "redacted_thinking")


def every_block(body):
    """All blocks of the request, those of the system prompt and of tool results too."""
    system = body.get("system", [])
    found = list(system) if isinstance(system, list) else [{"type": "text", "text": system}]
    for message in body["messages"]:
        for block in blocks_of(message):
            found.append(block)
            inner = block.get("content")
            if block["type"] == "tool_result" and isinstance(inner, list):
                found.extend(inner)
    return found


# Requests.


def check_headers(headers):
    credentials = [headers.getall("x-api-key", []), headers.getall("authorization", [])]
    require(credentials in ([[KEY], []], [[], [f"Bearer {KEY}"]]), f"credentials are {credentials}")
    version = headers.getall("anthropic-version", [])
    require(len(version) == 1 and version[0] in VERSIONS, f"header anthropic-version is {version}")
    for name in headers:
        require(not name.lower().startswith(("openai-", "api-key")), f"header {name} is forwarded")
    betas = [beta.strip() for value in headers.getall("anthropic-beta", []) for beta in value.split(",")]
    require(len(set(betas)) == len(betas) and all(betas), f"header anthropic-beta is {betas}")
    return version[0], betas


def check(body, version, betas):
    require(body.get("model") in MODELS, f"model is {body.get('model')!r}")
    model = MODELS[body["model"]]
    if version == VERSIONS[1]:
        for name in SAMPLING:
            require(name not in body, f"{name}: Extra inputs are not permitted")
    require("betas" not in body, "betas: Extra inputs are not permitted")
    conform(types(bool(body.get("stream")), bool(betas)), {k: v for k, v in body.items() if k not in SAMPLING})
    require("block_binding" not in body.get("thinking", {}) or BINDING in betas, "thinking.block_binding: Extra inputs")
    require(1 <= body["max_tokens"] <= model.limit, f"max_tokens: {body['max_tokens']} > {model.limit}")
    check_thinking(body, model)
    check_sampling(body, model)
    check_tools(body, model)
    check_order(body["messages"], model)
    check_blocks(body)
    for text in body.get("stop_sequences", []):
        require(text.strip(), "stop_sequences: each stop sequence must contain non-whitespace")
    user_id = body.get("metadata", {}).get("user_id") or ""
    require(len(user_id) <= 256 and "@" not in user_id, "metadata.user_id: looks like personal data")
    wanted = body.get("output_config", {}).get("format")
    if wanted:
        require(model.structured, "output_config.format: not supported by this model")
        check_schema(wanted["schema"])
        require(body["messages"][-1]["role"] != "assistant", "output_config.format with a prefill")


def check_thinking(body, model):
    thinking, effort = body.get("thinking"), body.get("output_config", {}).get("effort")
    kind = thinking and thinking["type"]
    require(kind is None or kind in model.kinds, f"thinking.type.{kind} is not supported for this model")
    require(effort is None or effort in model.efforts, f"effort {effort!r} is not supported for this model")
    if model.thinks and kind in (OFF, "between_tools"):
        require(effort not in ("xhigh", "max"), f"effort {effort} needs thinking")
    if kind == MANUAL:
        budget = thinking["budget_tokens"]
        require(1024 <= budget < body["max_tokens"], "budget_tokens: at least 1024 and less than max_tokens")
        require(body.get("temperature", 1) == 1, "temperature may only be 1 when thinking is enabled")
        require("top_k" not in body, "top_k must be unset when thinking is enabled")
        require(body.get("top_p", 1) >= 0.95, "top_p must be at least 0.95 when thinking is enabled")


def check_sampling(body, model):
    require(0 <= body.get("temperature", 1) <= 1, "temperature: range: 0..1")
    require(0 <= body.get("top_p", 1) <= 1, "top_p: range: 0..1")
    require(body.get("top_k", 1) > 0 and isinstance(body.get("top_k", 1), int), "top_k: a positive integer")
    if model.sampling == "one":
        require(not {"temperature", "top_p"} <= body.keys(), "temperature and top_p cannot both be specified")
    if model.sampling == "default":
        for name in SAMPLING:
            require(name not in body or (name != "top_k" and body[name] == 1), f"`{name}` is deprecated for this model")


def check_tools(body, model):
    tools, choice = body.get("tools", []), body.get("tool_choice")
    names = [tool["name"] for tool in tools]
    require(len(set(names)) == len(names), "tools: tool names must be unique")
    for tool in tools:
        require(NAME.fullmatch(tool["name"]), f"tools: name {tool['name']!r}")
        schema = tool["input_schema"]
        require(schema["type"] == "object", "tools: input_schema.type is not object")
        require(not schema.keys() & {"anyOf", "oneOf", "allOf"}, "tools: input_schema has a union at its root")
        if tool.get("strict"):
            check_schema(schema)
    closed = [tool["input_schema"] for tool in tools if tool.get("strict")]
    require(len(closed) <= 20, "too many strict tools")
    wanted = body.get("output_config", {}).get("format")
    optional, unions = count(closed + ([wanted["schema"]] if wanted else []))
    require(not closed or (optional <= 24 and unions <= 16), f"too complex: {optional} optional, {unions} unions")
    if choice:
        require(tools, "tool_choice without tools")
        if choice["type"] in ("any", "tool"):
            require(model.forced, f"tool_choice.{choice['type']} is not supported for this model")
            require(body.get("thinking", {}).get("type") != MANUAL, "thinking may not be enabled with a forced tool")
        require(choice["type"] != "tool" or choice["name"] in names, f"tool {choice.get('name')!r} is not in tools")
    used = any(of_type(message, "tool_use", "tool_result") for message in body["messages"])
    require(tools or not used, "tools: required if the history holds tool blocks")


def check_order(messages, model):
    require(messages, "messages: at least one message is required")
    require(messages[0]["role"] == "user", "messages: first message must use the user role")
    last = len(messages) - 1
    calls = []
    for place, message in enumerate(messages):
        role, blocks = message["role"], blocks_of(message)
        require(blocks, f"messages.{place}: content is empty")
        if place:
            before = messages[place - 1]["role"]
            require(before != role, f"messages.{place}: role {role} follows itself")
            require(role != "system" or before == "user", f"messages.{place}: a system message follows {before}")
            require(before != "system" or role == "assistant", f"messages.{place}: {role} follows a system message")
        require(role != "system" or model.midway, f"messages.{place}: role system is not supported by this model")
        if role == "assistant":
            calls = [block["id"] for block in of_type(message, "tool_use")]
            for tool_id in calls:
                require(TOOL_ID.fullmatch(tool_id), f"messages.{place}: tool_use id {tool_id!r}")
            require(len(set(calls)) == len(calls), f"messages.{place}: tool_use ids must be unique")
            require(place < last or not calls, f"messages.{place}: tool_use without tool_result")
        if role == "user":
            kinds = [block["type"] for block in blocks]
            results = [block["tool_use_id"] for block in of_type(message, "tool_result")]
            require(sorted(results) == sorted(calls), f"messages.{place}: results {results} for calls {calls}")
            require(
                kinds[: len(results)] == ["tool_result"] * len(results),
                f"messages.{place}: tool_result blocks do not come first",
            )
            calls = []
    if messages[last]["role"] == "assistant":
        require(model.prefill, "This model does not support assistant message prefill.")
        text = blocks_of(messages[last])[-1].get("text", "")
        require(text == text.rstrip(), "final assistant content cannot end with trailing whitespace")


def check_blocks(body):
    marks = [tool for tool in body.get("tools", []) if tool.get("cache_control")]
    for block in every_block(body):
        kind = block["type"]
        if kind == "text":
            require(block["text"].strip(), "text content blocks must contain non-whitespace text")
        if kind == "thinking":
            require(block["signature"], "thinking: signature is required")
        if kind in ("image", "document") and block["source"]["type"] == "base64":
            source = block["source"]
            data = base64.b64decode(source["data"], validate=True)
            require(
                data.startswith(MAGIC[source["media_type"]]), f"the bytes of an image are not {source['media_type']}"
            )
        if kind in ("image", "document") and block["source"]["type"] == "url":
            require(block["source"]["url"].startswith("https://"), "only HTTPS URLs are supported")
        if block.get("cache_control"):
            marks.append(block)
        require(block.get("content") != [], f"{kind}: content is empty")
    require(len(marks) <= 4, f"a maximum of 4 blocks with cache_control may be provided, found {len(marks)}")


def check_schema(schema):
    require(isinstance(schema, dict), "schema: not an object")
    unknown = schema.keys() - SCHEMA_KEYS
    require(not unknown, f"schema: {sorted(unknown)} not supported")
    require(isinstance(schema.get("type", ""), str), "schema: type is not a single one")
    require(schema.get("minItems", 0) <= 1, "schema: minItems above 1 is not supported")
    require(schema.get("format", "date") in SCHEMA_FORMATS, f"schema: format {schema.get('format')!r}")
    if schema.get("type") == "object":
        require(schema.get("additionalProperties") is False, "schema: additionalProperties must be false")
        require(set(schema.get("required", [])) <= schema.get("properties", {}).keys(), "schema: required is unknown")
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    inner += schema.get("anyOf", []) + schema.get("allOf", []) + ([schema["items"]] if "items" in schema else [])
    for each in inner:
        check_schema(each)


def count(schemas):
    """How many parameters are optional, and how many are of several types."""
    optional = unions = 0
    for schema in schemas:
        properties = schema.get("properties", {})
        optional += len(properties.keys() - set(schema.get("required", [])))
        unions += "anyOf" in schema
        inner = [*properties.values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", [])]
        more = count(inner + schema.get("allOf", []) + ([schema["items"]] if "items" in schema else []))
        optional, unions = optional + more[0], unions + more[1]
    return optional, unions


# Thoughts.

SECRET = b"only the provider knows"


def digest(messages):
    """Of the transcript before a thought; breakpoints of the cache are no part of it."""
    plain = [
        {
            "role": m["role"],
            "content": [{k: v for k, v in block.items() if k != "cache_control"} for block in blocks_of(m)],
        }
        for m in messages
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sign(model, text, before, nonce=None):
    nonce = nonce or secrets.token_hex(6)
    prefix = digest(before) if MODELS[model].bound else ""
    mac = hmac.new(SECRET, "\0".join((nonce, model, text, prefix)).encode(), "sha256").digest()
    return nonce + base64.b64encode(mac).decode()


class Anthropic:
    name, failing, headers, absent = "anthropic", failures.ANTHROPIC, {}, ()

    def __init__(self):
        self.forget()

    def forget(self):
        self.made_with = {}

    def refusal(self, reason):
        return failures.anthropic("invalid_request_error", reason)

    async def serve(self, stand_in, request, seen):
        version, betas = check_headers(request.headers)
        require(request.method == "POST", "the method is not POST")
        require(request.path == "/anthropic/v1/messages", "no such path")
        require(not request.query_string, f"query is {request.query_string!r}")
        require(request.content_type == "application/json", f"content-type is {request.content_type}")
        body = seen["body"] = decode(await request.read())
        check(body, version, betas)
        self.verify(stand_in, body)
        answer = functools.partial(self.answer, stand_in)
        return await stand_in.behave(request, self, body, answers.last_text(view(body)), answer)

    def verify(self, stand_in, body):
        """Checks that thoughts come back as they were given, and notes those that do not come back."""
        messages, binding = body["messages"], body.get("thinking", {}).get("block_binding") or {}
        spoken = [place for place, m in enumerate(messages) if m["role"] == "user" and of_type(m, "text", "image")]
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            thoughts = thoughts_of(message)
            for thought in list(thoughts):
                text, signature = thought.get("thinking", ""), thought.get("signature") or thought.get("data")
                if signature != sign(body["model"], text, messages[:place], signature[:12]):
                    if binding.get("prefix_mismatch_behavior") == "drop_block":
                        thoughts.remove(thought)
                        stand_in.note("dropped", provider=self.name, place=place)
                        continue
                    reason = "Invalid `signature` in `thinking` block, or it is bound to a different conversation"
                    raise Refused(f"messages.{place}: {reason}")
            for call in of_type(message, "tool_use"):
                given = self.made_with.get(call["id"], [])
                if given and not thoughts:
                    stand_in.note("lost", provider=self.name, call=call["id"], current=place > max(spoken, default=-1))
                    break
                require(
                    not thoughts or thoughts == given,
                    f"messages.{place}: thinking blocks in the assistant message cannot be modified",
                )
        ends_with_results = of_type(messages[-1], "tool_result") and max(spoken, default=-1) < len(messages) - 1
        if body.get("thinking", {}).get("type") == MANUAL and ends_with_results:
            first = blocks_of(messages[-2])[0]["type"]
            require(
                first in ("thinking", "redacted_thinking"),
                f"Expected `thinking` or `redacted_thinking`, found `{first}`",
            )

    async def answer(self, stand_in, request, provider, body, markers):
        reply = self.compose(body, markers)
        headers = {
            "request-id": "req_upstream",
            "anthropic-organization-id": "org-upstream",
            "anthropic-ratelimit-requests-limit": "100",
            "anthropic-ratelimit-requests-remaining": "99",
            "anthropic-ratelimit-requests-reset": "2030-01-01T00:00:00Z",
        }
        if body.get("stream"):
            events = list(stream_of(reply, markers))
            texts = [place for place, event in enumerate(events) if event.get("delta", {}).get("type") == "text_delta"]
            frames = [frame(event) for event in events]
            first, inside = (frame(failures.anthropic(*words)) for words in failures.ANTHROPIC_IN_STREAM)
            return await stand_in.relay(
                request,
                frames,
                markers,
                texts[1] if len(texts) > 1 else 3,
                frame({"type": "ping"}) + first,
                inside,
                headers,
            )
        return web.json_response(reply, headers=headers)

    def compose(self, body, markers):
        """The whole message; a stream tells the same."""
        seen = view(body)
        answer = answers.compose(seen, markers, [f"toolu_{secrets.token_hex(8)}" for _ in answers.CALLS])
        think = self.thinker(body)
        calls = [
            {"type": "tool_use", "id": call["id"], "name": call["name"], "input": json.loads(call["arguments"])}
            for call in answer.calls
        ]
        content = think() + ([{"type": "text", "text": answer.text}] if answer.pieces else []) + calls
        if "talk-and-call" in markers and calls:
            content = [*think(), {"type": "text", "text": "One moment."}, *calls]
        if "interleaved" in markers and calls:
            content = [block for call in calls for block in (*think(), call)]
        if "redacted" in markers and content[0]["type"] == "thinking":
            content.insert(1, {"type": "redacted_thinking", "data": sign(body["model"], "", body["messages"])})
        if "server-tool" in markers:
            content[-1:-1] = SERVER_TOOL
        self.made_with |= {call["id"]: [block for block in content if "thinking" in block["type"]] for call in calls}
        thinking = any("thinking" in block["type"] for block in content)
        stop = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[answer.finish]
        reason = next((marker[7:].replace("-", "_") for marker in markers if marker.startswith("reason-")), stop)
        details = None
        if reason == "refusal":
            content = [] if "late" not in markers else content
            details = {"type": "refusal", "category": "cyber", "explanation": "This cannot be answered."}
        return {
            "id": f"msg_{secrets.token_hex(8)}",
            "type": "message",
            "role": "assistant",
            "model": answers.MODEL,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": "END" if reason == "stop_sequence" else None,
            "stop_details": details,
            "usage": None if "no-usage" in markers else usage(thinking),
        }

    def thinker(self, body):
        """Gives what makes a thought, or none if the model is not to think."""
        model, thinking = body["model"], body.get("thinking", {})
        on = thinking.get("type", ADAPTIVE if MODELS[model].thinks else OFF) in (ADAPTIVE, MANUAL)
        by_default = "summarized" if model in SUMMARIZED_BY_DEFAULT else "omitted"
        shown = (thinking.get("display") or by_default) == "summarized"

        def think():
            text = "".join(answers.THOUGHT) if shown else ""
            return (
                [{"type": "thinking", "thinking": text, "signature": sign(model, text, body["messages"])}] if on else []
            )

        return think


SERVER_TOOL = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
]


def usage(thinking):
    """In sum the tokens of `answers.USAGE`."""
    return {
        "input_tokens": 6,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 3,
        "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4 if thinking else 0},
        "server_tool_use": None,
        "service_tier": "standard",
        "inference_geo": "us",
    }


def view(body):
    """The request in the neutral form from which answers are made."""
    messages = []
    for message in body["messages"]:
        for block in of_type(message, "tool_result"):
            inner = block.get("content", "")
            text = inner if isinstance(inner, str) else "".join(part.get("text", "") for part in inner)
            messages.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": text})
        parts = [part(block) for block in of_type(message, "text", "image", "document")]
        calls = [{"id": block["id"], "function": {"name": block["name"]}} for block in of_type(message, "tool_use")]
        if parts or calls:
            messages.append({"role": message["role"], "content": parts, "tool_calls": calls})
    wanted = body.get("output_config", {}).get("format")
    return {
        "messages": messages,
        "tools": [{"function": {"name": tool["name"]}} for tool in body.get("tools", [])],
        "response_format": {"type": "json_schema" if wanted else "text"},
    }


def part(block):
    if block["type"] == "text":
        return block
    source = block["source"]
    url = source["url"] if source["type"] == "url" else f"data:{source['media_type']};base64,{source['data']}"
    return {"type": "image_url", "image_url": {"url": url}}


def stream_of(reply, markers):
    """The events of a streamed message."""
    counted = reply["usage"] or {}
    start = {k: v for k, v in counted.items() if "output" not in k} | {"output_tokens": 1}
    head = {**reply, "content": [], "stop_reason": None, "stop_sequence": None, "stop_details": None, "usage": start}
    yield {"type": "message_start", "message": head}
    yield {"type": "ping"}
    if "novelty" in markers:
        yield {"type": "weather_report", "index": 7, "delta": {"type": "wind"}}
    for index, block in enumerate(reply["content"]):
        opening, deltas = pieces_of(block)
        yield {"type": "content_block_start", "index": index, "content_block": opening}
        yield {"type": "ping"}
        if "novelty" in markers:
            yield {"type": "content_block_delta", "index": index, "delta": {"type": "wind_delta", "wind": 7}}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    end = {name: reply[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    yield {"type": "message_delta", "delta": end, "usage": {"input_tokens": None, **counted} if counted else None}
    yield {"type": "message_stop"}


def pieces_of(block):
    kind = block["type"]
    if kind == "text":
        pieces = answers.PIECES if block["text"] == "".join(answers.PIECES) else [block["text"][:9], block["text"][9:]]
        return {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces if piece]
    if kind == "thinking":
        texts = answers.THOUGHT if block["thinking"] else []
        deltas = [{"type": "thinking_delta", "thinking": text} for text in texts]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return {"type": "thinking", "thinking": "", "signature": ""}, deltas
    if kind in ("tool_use", "server_tool_use"):
        text = json.dumps(block["input"]) if block["input"] else ""
        pieces = ["", text[:7], text[7:]] if text else []
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block, []


def frame(event):
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
