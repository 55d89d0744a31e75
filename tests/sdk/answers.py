"""What a provider answers: one neutral answer, written in the native form of each provider."""

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field

MODEL = "served-model-1"
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
PIECES = ["Grüße 🎉", " from ", "a\u2028line", ' & "quotes"', "\nend."]
THOUGHT = ["Let me", " think."]
CALLS = [("get_weather", '{"city":"Paris"}'), ("get_time", '{"zone":"Europe/Paris"}')]
CITY = '{"city":"Paris","population":2100000}'
SAFE = {"hate": {"filtered": False, "severity": "safe"}, "jailbreak": {"filtered": False, "detected": False}}


@dataclass
class Answer:
    pieces: list = field(default_factory=list)
    thought: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    finish: str = "stop"

    @property
    def text(self):
        return "".join(self.pieces)

    @property
    def reasoning(self):
        return "".join(self.thought)


def last_text(body):
    """The text of the last user message, in which tests write their markers."""
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message.get("content") or ""
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return ""


def tool_results(messages):
    """Says which answer was given to which call, so that a test sees ids that were mapped wrongly."""
    calls = {}
    results = []
    for message in messages:
        for call in message.get("tool_calls") or []:
            calls[call["id"]] = call["function"]["name"]
        if message["role"] == "tool":
            content = message["content"]
            content = content if isinstance(content, str) else "".join(part["text"] for part in content)
            results.append(f"{calls[message['tool_call_id']]}={content}")
    return "; ".join(results)


def describe_images(body):
    """Names media type, size and digest of each data URL that arrived."""
    seen = []
    for part in body["messages"][-1]["content"]:
        if part["type"] == "image_url":
            url = part["image_url"] if isinstance(part["image_url"], str) else part["image_url"]["url"]
            if not url.startswith("data:"):
                seen.append(url)
                continue
            kind, data = url.removeprefix("data:").split(";base64,")
            raw = base64.b64decode(data, validate=True)
            seen.append(f"{kind} {len(raw)} {hashlib.sha256(raw).hexdigest()[:12]}")
    return "; ".join(seen)


def compose(body, markers, tool_ids):
    spoken = max((place for place, message in enumerate(body["messages"]) if message["role"] == "user"), default=0)
    results = [message for message in body["messages"][spoken:] if message["role"] == "tool"]
    if "one-by-one" in markers and len(results) < len(CALLS):
        name, text = CALLS[len(results)]
        return Answer(calls=[{"id": tool_ids[len(results)], "name": name, "arguments": text}], finish="tool_calls")
    if body["messages"][-1]["role"] == "tool":
        return Answer(pieces=[tool_results(body["messages"])])
    if "call-tools" in markers:
        names = {tool["function"]["name"] for tool in body["tools"]}
        wanted = [call for call in CALLS if call[0] in names]
        calls = [{"id": tool_id, "name": name, "arguments": text} for tool_id, (name, text) in zip(tool_ids, wanted)]
        return Answer(calls=calls, finish="tool_calls")
    if "no-argument" in markers:
        name = body["tools"][0]["function"]["name"]
        return Answer(calls=[{"id": tool_ids[0], "name": name, "arguments": "{}"}], finish="tool_calls")
    if "as-json" in markers:
        return Answer(
            pieces=[CITY[:10], CITY[10:]] if body["response_format"]["type"] == "json_schema" else ["no schema"]
        )
    if "see" in markers:
        return Answer(pieces=[describe_images(body)])
    answer = Answer(pieces=list(PIECES))
    if "think" in markers:
        answer.thought = list(THOUGHT)
    if "too-long" in markers:
        answer.finish = "length"
    return answer


def vectors(inputs):
    """One vector per input, exact in 32 bits and different for each."""
    several = isinstance(inputs, list) and not (inputs and isinstance(inputs[0], int))
    return [[0.5, -1.25, float(len(item)), float(place)] for place, item in enumerate(inputs if several else [inputs])]


class OpenAI:
    """The reference form; the others say only where they differ."""

    tool_ids = ["call_Aa1", "call_Bb2"]

    def whole(self, answer, body):
        message = {"role": "assistant", "content": answer.text or None, "refusal": None, "annotations": []}
        if answer.calls:
            message["tool_calls"] = [self.call(call) for call in answer.calls]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        return {**self.head("chat.completion"), "choices": [choice], "usage": USAGE}

    def call(self, call):
        function = {"name": call["name"], "arguments": call["arguments"]}
        return {"id": call["id"], "type": "function", "function": function}

    def head(self, kind):
        return {
            "id": "chatcmpl-1",
            "object": kind,
            "created": 1763800000,
            "model": MODEL,
            "service_tier": "default",
            "system_fingerprint": "fp_1",
        }

    def chunk(self, delta, finish=None, **extra):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self.head("chat.completion.chunk"), "choices": [choice], **extra}

    def chunks(self, answer, body):
        usage_wanted = (body.get("stream_options") or {}).get("include_usage")
        extra = {"usage": None} if usage_wanted else {}
        first = {"role": "assistant", "content": None if answer.calls else "", "refusal": None}
        yield self.chunk(first, obfuscation="x9", **extra)
        for piece in answer.pieces:
            yield self.chunk({"content": piece}, obfuscation="abc", **extra)
        for index, call in enumerate(answer.calls):
            yield self.chunk({"tool_calls": [{"index": index, **self.call({**call, "arguments": ""})}]}, **extra)
            for part in (call["arguments"][:5], call["arguments"][5:]):
                yield self.chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}, **extra)
        yield self.chunk({}, answer.finish, **extra)
        if usage_wanted:
            yield {**self.head("chat.completion.chunk"), "choices": [], "usage": USAGE}

    def embedding(self, body, as_base64):
        rows = vectors(body["input"])
        shown = [base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() for row in rows] if as_base64 else rows
        data = [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(shown)]
        return {"object": "list", "model": MODEL, "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}}


class Azure(OpenAI):
    """Adds filter results; a stream starts with a frame without choices and may end with one without a delta."""

    def whole(self, answer, body):
        reply = super().whole(answer, body)
        reply["choices"][0]["content_filter_results"] = SAFE
        reply["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": SAFE}]
        return reply

    def chunks(self, answer, body):
        empty = {"id": "", "object": "", "created": 0, "model": ""}
        prompt = [{"prompt_index": 0, "content_filter_results": SAFE}]
        yield {**empty, "prompt_filter_results": prompt, "choices": [], "usage": None}
        for chunk in super().chunks(answer, body):
            for choice in chunk["choices"]:
                choice["content_filter_results"] = SAFE
            yield chunk
            if any(choice["finish_reason"] for choice in chunk["choices"]):
                offsets = {"check_offset": 44, "start_offset": 44, "end_offset": 198}
                late = {"content_filter_results": SAFE, "content_filter_offsets": offsets}
                yield {**empty, "choices": [{"index": 0, "finish_reason": None, **late}]}


class Mistral(OpenAI):
    """Thinks in arrays, sends calls whole and usage on the finishing chunk; `type` of a call may be missing."""

    tool_ids = ["D681PevKs", "k3Xq9ZbTa"]

    def head(self, kind):
        return {"id": "cmpl-1", "object": kind, "created": 1763800000, "model": MODEL}

    def finish(self, answer):
        return "model_length" if answer.finish == "length" else answer.finish

    def call(self, call, index=0):
        arguments = call["arguments"] if index == 0 else json.loads(call["arguments"])
        return {"id": call["id"], "index": index, "function": {"name": call["name"], "arguments": arguments}}

    def calls(self, answer):
        return [self.call(call, index) for index, call in enumerate(answer.calls)]

    def thinking(self, text):
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}

    def whole(self, answer, body):
        content = answer.text
        if answer.thought:
            content = [self.thinking(answer.reasoning), {"type": "text", "text": answer.text}]
        message = {"role": "assistant", "content": content, "prefix": False}
        message["tool_calls"] = self.calls(answer) or None
        choice = {"index": 0, "finish_reason": self.finish(answer), "message": message}
        return {**self.head("chat.completion"), "choices": [choice], "usage": USAGE}

    def chunk(self, delta, finish=None, **extra):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self.head("chat.completion.chunk"), "choices": [choice], **extra}

    def chunks(self, answer, body):
        yield self.chunk({"role": "assistant", "content": ""})
        for piece in answer.thought:
            yield self.chunk({"content": [self.thinking(piece)]})
        if answer.thought:
            yield self.chunk({"content": [{"type": "text", "text": answer.pieces[0]}]})
        for piece in answer.pieces[1:] if answer.thought else answer.pieces:
            yield self.chunk({"content": piece})
        last = {"content": ""}
        if answer.calls:
            last["tool_calls"] = self.calls(answer)
        yield self.chunk(last, self.finish(answer), usage=USAGE)

    def embedding(self, body, as_base64):
        reply = super().embedding(body, as_base64)
        return {"id": "emb-1", **reply, "usage": {**reply["usage"], "completion_tokens": 0}}


class Vllm(OpenAI):
    """Null members everywhere, an empty tool_calls list, a stop_reason."""

    tool_ids = ["chatcmpl-tool-00a1", "chatcmpl-tool-00b2"]

    def whole(self, answer, body):
        reply = super().whole(answer, body)
        message = reply["choices"][0]["message"]
        message.update(annotations=None, audio=None, function_call=None, reasoning=answer.reasoning or None)
        message.setdefault("tool_calls", [])
        reply["choices"][0].update(stop_reason=None, token_ids=None)
        return {**reply, "prompt_logprobs": None, "kv_transfer_params": None}

    def chunks(self, answer, body):
        chunks = super().chunks(answer, body)
        yield next(chunks)
        for piece in answer.thought:
            yield self.chunk({"reasoning": piece})
        for chunk in chunks:
            for choice in chunk["choices"]:
                choice.update(stop_reason=None, token_ids=None)
                if "tool_calls" not in choice["delta"]:
                    choice["delta"]["tool_calls"] = []
            yield chunk


class Groq(OpenAI):
    """Calls arrive whole; usage rides in x_groq and has times in it."""

    def head(self, kind):
        return {"id": "chatcmpl-1", "object": kind, "created": 1763800000, "model": MODEL, "system_fingerprint": "fp_1"}

    def usage(self):
        return {**USAGE, "queue_time": 0.01, "prompt_time": 0.02, "completion_time": 0.1, "total_time": 0.13}

    def whole(self, answer, body):
        reply = super().whole(answer, body)
        message = reply["choices"][0]["message"]
        del message["refusal"], message["annotations"]
        if answer.thought:
            message["reasoning"] = answer.reasoning
        return {**reply, "usage": self.usage(), "usage_breakdown": None, "x_groq": {"id": "req_1", "seed": 1}}

    def chunks(self, answer, body):
        yield self.chunk({"role": "assistant", "content": ""}, x_groq={"id": "req_1", "seed": 1})
        for piece in answer.thought:
            yield self.chunk({"reasoning": piece})
        for piece in answer.pieces:
            yield self.chunk({"content": piece})
        if answer.calls:
            calls = [{"index": index, **self.call(call)} for index, call in enumerate(answer.calls)]
            yield self.chunk({"tool_calls": calls})
        yield self.chunk({}, answer.finish, x_groq={"id": "req_1", "usage": self.usage()})
        if (body.get("stream_options") or {}).get("include_usage"):
            yield {**self.head("chat.completion.chunk"), "choices": [], "usage": self.usage()}


class Together(OpenAI):
    """Repeats role, id and name in each delta, says `eos`, sends usage with the finish reason."""

    def finish(self, answer):
        return "eos" if answer.finish == "stop" else answer.finish

    def whole(self, answer, body):
        reply = super().whole(answer, body)
        choice = reply["choices"][0]
        message = choice["message"]
        del message["refusal"], message["annotations"]
        choice.update(finish_reason=self.finish(answer), seed=1, text=None)
        message.setdefault("tool_calls", [])
        if answer.thought:
            message["reasoning_content"] = answer.reasoning
        return {**reply, "prompt": [], "warnings": []}

    def chunk(self, delta, finish=None, **extra):
        delta = {"role": "assistant", "token_id": 7, **delta}
        return {"usage": None, **super().chunk(delta, finish), **extra}

    def chunks(self, answer, body):
        for piece in answer.thought:
            yield self.chunk({"content": "", "reasoning_content": piece})
        for piece in answer.pieces:
            yield self.chunk({"content": piece})
        for index, call in enumerate(answer.calls):
            for part in (call["arguments"][:5], call["arguments"][5:]):
                yield self.chunk({"tool_calls": [{"index": index, **self.call({**call, "arguments": part})}]})
        yield self.chunk({"content": ""}, self.finish(answer), usage=USAGE)


def completion(body):
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1763800000, "model": MODEL}
    return {
        **head,
        "choices": [{"text": "".join(PIECES), "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }


def completion_chunks(body):
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1763800000, "model": MODEL}
    for piece in PIECES:
        yield {**head, "choices": [{"text": piece, "index": 0, "logprobs": None, "finish_reason": None}]}
    yield {**head, "choices": [{"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": USAGE}
