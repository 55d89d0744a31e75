"""Invented conversations and schemas, all of them legal at OpenAI: no backend may send on what its provider refuses."""

import json
import random

import openai
import pytest

from conversation import TOOLS, picture

MODELS = ["ant", "ant/claude-opus-4-6", "ant/claude-haiku-4-5", "gem", "gem/gemini-2.5-flash", "vertex", "mis"]
TEXTS = ["", " ", "\n", "hi", "Grüße 🎉", "a\u2028b", "x" * 300]
SEEDS = 25
IDS = ["call_{}", "call_0", "toolu_01{}", "functions.get_weather:{}", "fc_{}", "a/b=={}"]


class Inventor:
    """Makes one conversation, always the same for the same seed."""

    def __init__(self, seed):
        self.chance = random.Random(seed)

    def text(self):
        return self.chance.choice(TEXTS)

    def content(self, pictures=True):
        kind = self.chance.random()
        if kind < 0.6:
            return self.text()
        parts = [{"type": "text", "text": self.text()} for _ in range(self.chance.randint(1, 3))]
        if pictures and kind > 0.85:
            parts.append(picture())
        return parts

    def calls(self, turn):
        form = self.chance.choice(IDS)
        amount = 1 if form == "call_0" else self.chance.randint(1, 3)
        return [
            {
                "id": form.format(f"{turn}{place}"),
                "type": "function",
                "function": {
                    "name": self.chance.choice(["get_weather", "get_time"]),
                    "arguments": self.chance.choice(["{}", "", '{"city":"Paris"}', '{"a":{"b":[1,null]}}']),
                },
            }
            for place in range(amount)
        ]

    def assistant(self, turn):
        message = {"role": "assistant", "content": self.chance.choice([None, self.text(), self.content(False)])}
        extra = self.chance.random()
        if extra < 0.15:
            message["reasoning_content"] = "Hm."
        elif extra < 0.25:
            message["refusal"] = "No."
        return message

    def system(self):
        role = self.chance.choice(["system", "developer"])
        return [{"role": role, "content": self.content(False)}] if self.chance.random() < 0.25 else []

    def conversation(self):
        messages = self.system() + self.system()
        for turn in range(self.chance.randint(1, 5)):
            for _ in range(self.chance.choice([1, 1, 1, 2])):
                messages.append({"role": "user", "content": self.content()})
            messages += self.system()
            for step in range(self.chance.choice([0, 0, 1, 2])):
                message = self.assistant(turn)
                message["tool_calls"] = self.calls(f"{turn}{step}")
                messages.append(message)
                results = [
                    {"role": "tool", "tool_call_id": call["id"], "content": self.content(False)}
                    for call in message["tool_calls"]
                ]
                self.chance.shuffle(results)
                messages += results
            if self.chance.random() < 0.8:
                messages.append(self.assistant(turn))
                messages += self.system()
        return [*messages, {"role": "user", "content": "and now?"}]

    def schema(self, depth=0):
        kinds = ["string", "integer", "number", "boolean", "enum", "const", "null", "bare"]
        kind = self.chance.choice(kinds + ["object", "array", "union", "nullable", "all"] * (2 if depth < 3 else 0))
        schema = {
            "string": {"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^a", "format": "email"},
            "integer": {"type": "integer", "minimum": 0, "exclusiveMaximum": 9, "multipleOf": 3},
            "number": {"type": "number", "default": 0.5, "examples": [1]},
            "boolean": {"type": "boolean", "description": "Yes or no.", "readOnly": True},
            "enum": {"enum": ["a", "", "b"]},
            "const": {"const": self.chance.choice(["x", 7, None, True])},
            "null": {"type": "null"},
            "bare": {},
        }.get(kind)
        if kind == "object":
            names = self.chance.sample(["a", "b", "c", "d"], self.chance.randint(0, 3))
            schema = {"type": "object", "properties": {name: self.schema(depth + 1) for name in names}}
            if self.chance.random() < 0.5:
                schema["required"] = names[:1] + ["absent"] * (self.chance.random() < 0.2)
            closed = self.chance.choice([None, False, True, {"type": "string"}])
            schema |= {} if closed is None else {"additionalProperties": closed}
        if kind == "array":
            schema = {"type": "array", "minItems": self.chance.randint(0, 3), "uniqueItems": True}
            if self.chance.random() < 0.8:
                schema["items"] = self.schema(depth + 1)
        if kind in ("union", "all"):
            word = self.chance.choice(["anyOf", "oneOf"]) if kind == "union" else "allOf"
            schema = {word: [self.schema(depth + 1) for _ in range(self.chance.randint(1, 3))]}
            if self.chance.random() < 0.5:
                schema |= {"title": "Some", "description": "Of several."}
        if kind == "nullable":
            schema = {"type": [self.chance.choice(["string", "integer"]), "null"]}
        return schema

    def root(self):
        schema = {"type": "object", "properties": {name: self.schema() for name in "pqr"}, "required": ["p"]}
        if self.chance.random() < 0.4:
            schema["$defs"] = {"shared": self.schema(2)}
            schema["properties"]["s"] = {"$ref": "#/$defs/shared"}
        if self.chance.random() < 0.3:
            schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return schema


def told(standin, client, request):
    """The refusal of the provider, if there is one, with what it was a refusal of."""
    try:
        client.chat.completions.create(**request)
    except openai.BadRequestError as error:
        assert error.code == "unsupported_by_backend", f"{error.message}\n{json.dumps(request)[:3000]}"
        return 1
    finally:
        breaches = standin.get("/control/breaches")
        standin.reset()
        assert breaches == [], json.dumps(request)[:3000]
    return 0


@pytest.mark.parametrize("model", MODELS)
def test_no_conversation_that_is_legal_at_openai_is_refused(standin, client, model):
    refused = 0
    for seed in range(SEEDS):
        messages = Inventor(seed).conversation()
        effort = {"reasoning_effort": "high"} if seed % 3 == 0 and model != "mis" else {}
        refused += told(standin, client, {"model": model, "messages": messages, "tools": TOOLS, **effort})
    assert refused == 0


@pytest.mark.parametrize("model", MODELS[:-1])
@pytest.mark.parametrize("strict", [False, True])
def test_no_schema_of_a_tool_is_refused(standin, client, model, strict):
    refused = 0
    for seed in range(SEEDS):
        function = {"name": "f", "parameters": Inventor(seed).root(), "strict": strict}
        tools = [{"type": "function", "function": function}]
        request = {"model": model, "messages": [{"role": "user", "content": "hi"}], "tools": tools}
        refused += told(standin, client, request)
    assert refused == 0


@pytest.mark.parametrize("model", MODELS[:-1])
def test_no_schema_of_an_answer_is_refused(standin, client, model):
    refused = 0
    for seed in range(SEEDS):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": Inventor(seed).root(), "strict": True}}
        request = {"model": model, "messages": [{"role": "user", "content": "hi"}], "response_format": wanted}
        refused += told(standin, client, request)
    # Some of what is invented holds values to several kinds at once, which no subset can say.
    assert refused <= 4
