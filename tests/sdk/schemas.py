"""What a provider accepts: request bodies checked against the official SDKs' own request types.

Every TypedDict reachable from a request type is made strict (no unknown field, no coercion), lists are checked
eagerly, and the rules that types cannot say (tool ids, message order) are added per provider.
"""

import collections.abc
import json
import os
import re
import types
import typing
from typing import Annotated, List, Literal, Union

import groq.types.chat.completion_create_params as groq_chat
import mistralai.client.models as mistral
import openai.types as openai_types
import openai.types.audio as openai_audio
import openai.types.chat.completion_create_params as openai_chat
import openai.types.completion_create_params as openai_completion
import typing_extensions
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, Required, is_typeddict

MISTRAL_TOOL_ID = re.compile(r"[A-Za-z0-9]{9}")
REASONING_MODEL = re.compile(r"(o\d|gpt-[56])")


class Breach(Exception):
    """A request that the real provider would not have been sent by its own SDK."""


class Refused(Exception):
    """A request that the provider refuses although its sender could not have known better."""


def harden(hint, seen):
    """Returns `hint` with eager lists; every TypedDict inside it refuses unknown fields and coercion."""
    if is_typeddict(hint):
        if hint not in seen:
            seen.add(hint)
            fields = typing_extensions.get_type_hints(hint, include_extras=True)
            hint.__annotations__ = {name: harden(field, seen) for name, field in fields.items()}
            # A type that says itself that it holds more, such as a JSON Schema, may go on doing so.
            open_ended = (
                getattr(hint, "__extra_items__", typing_extensions.NoExtraItems) is not typing_extensions.NoExtraItems
            )
            hint.__pydantic_config__ = (
                ConfigDict(strict=True) if open_ended else ConfigDict(extra="forbid", strict=True)
            )
        return hint
    if isinstance(hint, typing_extensions.TypeAliasType):
        return harden(hint.__value__, seen)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None or origin is Literal:
        return hint
    if isinstance(origin, typing_extensions.TypeAliasType):
        return harden(origin.__value__[args], seen)
    if origin is Annotated:
        return harden(args[0], seen)
    if origin in (Union, types.UnionType):
        return Union[tuple(harden(arg, seen) for arg in args if on_the_wire(arg))]
    inner = tuple(harden(arg, seen) for arg in args)
    if origin in (Required, NotRequired):
        return origin[inner[0]]
    if origin in (collections.abc.Iterable, collections.abc.Sequence, list):
        return List[inner[0]]
    return origin[inner]


def on_the_wire(hint):
    """Whether a member of a union is JSON: not an open file, nor a model of an answer given back as it is."""
    origin = typing.get_origin(hint) or hint
    if origin is Annotated:
        return on_the_wire(typing.get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return any(map(on_the_wire, typing.get_args(hint)))
    return not (isinstance(origin, type) and issubclass(origin, (os.PathLike, typing.IO, BaseModel)))


def strict(hint):
    return TypeAdapter(harden(hint, set()))


def chat_types(module):
    return {
        False: strict(module.CompletionCreateParamsNonStreaming),
        True: strict(module.CompletionCreateParamsStreaming),
    }


OPENAI_CHAT = chat_types(openai_chat)
GROQ_CHAT = strict(groq_chat.CompletionCreateParams)
MISTRAL_CHAT = strict(mistral.ChatCompletionRequestTypedDict)
MISTRAL_EMBEDDING = strict(mistral.EmbeddingRequestTypedDict)
OPENAI_EMBEDDING = strict(openai_types.EmbeddingCreateParams)
OPENAI_MODERATION = strict(openai_types.ModerationCreateParams)
OPENAI_SPEECH = strict(openai_audio.SpeechCreateParams)
OPENAI_COMPLETION = {
    False: strict(openai_completion.CompletionCreateParamsNonStreaming),
    True: strict(openai_completion.CompletionCreateParamsStreaming),
}


def decode(raw):
    """Decodes a JSON object and refuses a key that occurs twice anywhere in it."""

    def unique(pairs):
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise Breach(f"a key occurs twice among {names}")
        return dict(pairs)

    try:
        body = json.loads(raw, object_pairs_hook=unique)
    except ValueError as error:
        raise Breach(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise Breach("the body is not a JSON object")
    return body


def conform(adapter, body):
    try:
        adapter.validate_python(body)
    except ValidationError as error:
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        places = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults]
        raise Breach("; ".join(places[:6])) from error


def answered_tool_calls(messages):
    """Each declared tool call is answered before the next other message, and no other is."""
    open_calls = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                raise Breach(f"a tool message answers no open call: {message['tool_call_id']}")
            open_calls.discard(message["tool_call_id"])
            continue
        if open_calls:
            raise Breach(f"tool calls {sorted(open_calls)} are not answered before role {message['role']}")
        if message["role"] == "assistant":
            open_calls = {call["id"] for call in message.get("tool_calls") or []}
    if open_calls:
        raise Breach(f"tool calls {sorted(open_calls)} are never answered")


def without(names, body):
    """Leaves names out of the assistant's messages."""
    messages = [
        {k: v for k, v in message.items() if k not in names} if message.get("role") == "assistant" else message
        for message in body.get("messages", [])
    ]
    return {**body, "messages": messages}


def openai(body):
    # The SDK sends an answer back as history together with its annotations, and the service takes them.
    conform(OPENAI_CHAT[bool(body.get("stream"))], without({"annotations"}, body))
    answered_tool_calls(body["messages"])
    if "stream_options" in body and not body.get("stream"):
        raise Breach("stream_options without stream")
    if "parallel_tool_calls" in body and "tools" not in body:
        raise Breach("parallel_tool_calls without tools")
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise Breach("both max_tokens and max_completion_tokens")
    if "max_tokens" in body and REASONING_MODEL.match(body["model"]):
        raise Breach("max_tokens for a reasoning model")


def azure_dated(body, version):
    openai({"model": "in-the-path", **body})
    if version < "2024-09-01" and "stream_options" in body:
        raise Breach(f"stream_options is unknown to api-version {version}")
    if version < "2024-12-01" and "max_completion_tokens" in body:
        raise Breach(f"max_completion_tokens is unknown to api-version {version}")


def sdk_names(body):
    """Gives the one aliased field of a chat request the name it has in the SDK's TypedDict."""
    wanted = body.get("response_format")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("json_schema"), dict):
        return body
    schema = {("schema_definition" if k == "schema" else k): v for k, v in wanted["json_schema"].items()}
    return {**body, "response_format": {**wanted, "json_schema": schema}}


def mistral_chat(body):
    conform(MISTRAL_CHAT, sdk_names(body))
    messages = body["messages"]
    if body.get("tools") == []:
        raise Breach("tools is empty")
    for message in messages:
        ids = [call.get("id", "") for call in message.get("tool_calls") or []]
        ids += [message["tool_call_id"]] if message["role"] == "tool" else []
        for tool_id in ids:
            if not MISTRAL_TOOL_ID.fullmatch(tool_id):
                raise Breach(f"tool call id {tool_id!r} is not nine letters and digits")
        if message["role"] == "assistant" and not message.get("content") and not message.get("tool_calls"):
            raise Breach("an assistant message has neither content nor tool_calls")
    answered_tool_calls(messages)
    for before, after in zip(messages, messages[1:]):
        if before["role"] == "tool" and after["role"] == "user":
            raise Breach("Unexpected role 'user' after role 'tool'")
    last = messages[-1]
    if last["role"] not in ("user", "tool") and not last.get("prefix"):
        raise Breach(f"Expected last role User or Tool (or Assistant with prefix True) but got {last['role']}")


def mistral_embedding(body):
    if "inputs" in body or "input" not in body:
        raise Breach("the wire name is input")
    conform(MISTRAL_EMBEDDING, {**{k: v for k, v in body.items() if k != "input"}, "inputs": body["input"]})


def groq(body):
    # The SDK's type lacks stream_options, which the service takes.
    conform(GROQ_CHAT, {k: v for k, v in body.items() if k != "stream_options"})
    answered_tool_calls(body["messages"])
    for field in ("logprobs", "top_logprobs", "logit_bias"):
        if field in body:
            raise Breach(f"{field} is not supported")
    if any("name" in message for message in body["messages"]):
        raise Breach("messages[].name is not supported")
    if body.get("n", 1) != 1:
        raise Breach("n must be 1")


VLLM_EXTRAS = {"top_k", "min_p", "repetition_penalty", "min_tokens", "chat_template_kwargs"}


def vllm(body):
    known = {k: v for k, v in body.items() if k not in VLLM_EXTRAS}
    openai(without({"reasoning", "reasoning_content"}, known))


def together(body):
    vllm(body)
    if "max_completion_tokens" in body:
        raise Breach("max_completion_tokens is unknown and would be ignored")


def embedding(body):
    conform(OPENAI_EMBEDDING, body)


def completion(body):
    conform(OPENAI_COMPLETION[bool(body.get("stream"))], body)


def moderation(body):
    conform(OPENAI_MODERATION, body)


def speech(body):
    conform(OPENAI_SPEECH, body)
