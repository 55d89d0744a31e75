"""Stands in for the Gemini API and Vertex AI: checks requests by model, signs its calls, answers in native form.

Requests are checked with the types of the official `google-genai` package. The signature of a call is verified when it
comes back; the documented placeholder in its stead is noted as lost.
"""

import base64
import collections
import functools
import hmac
import json
import re
import secrets
import time
import warnings
from typing import Optional

import pydantic
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.genai import models as converters
from google.genai import types
from pydantic import alias_generators

import answers
import failures
from conversation import PNG
from schemas import Breach, Refused, decode

KEY = "go-key"
GEMINI, VERTEX = "gemini", "vertex"
PATHS = {
    GEMINI: re.compile(r"/gemini/v1beta/models/([^/:]+):(\w+)"),
    VERTEX: re.compile(r"/vertex/v1beta1/projects/proj/locations/europe-west4/publishers/google/models/([^/:]+):(\w+)"),
}
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
PLACEHOLDERS = {"skip_thought_signature_validator", "context_engineering_is_the_way_to_go"}

# The levels of thinking or the range of its budget, whether sampling is still obeyed, whether the last word must be the
# user's. From 3 on calls have ids and signatures.
Model = collections.namedtuple("Model", "levels budget samples begun")
LEVELS = ("LOW", "MEDIUM", "HIGH")
MODELS = {
    "gemini-4-argon": Model((*LEVELS, "XHIGH"), None, False, False),
    "gemini-3.8-flash": Model(LEVELS, None, False, False),
    "gemini-3.6-flash": Model(("MINIMAL", *LEVELS), None, False, False),
    "gemini-3.5-flash": Model(("MINIMAL", *LEVELS), None, True, True),
    "gemini-3.1-pro-preview": Model(LEVELS, None, True, True),
    "gemini-2.5-pro": Model((), (128, 32768), True, True),
    "gemini-2.5-flash": Model((), (0, 24576), True, True),
}
# How many texts an embedding model takes with `predict` at Vertex, if it has that method.
EMBEDDERS = {"gemini-embedding-001": 1, "gemini-embedding-2": 0, "text-embedding-005": 250}

JSON_SCHEMA_KEYS = {
    "$id",
    "$defs",
    "$ref",
    "$anchor",
    "type",
    "format",
    "title",
    "description",
    "enum",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "anyOf",
    "oneOf",
    "properties",
    "additionalProperties",
    "required",
    "propertyOrdering",
}
DATA = {
    "text",
    "inlineData",
    "fileData",
    "functionCall",
    "functionResponse",
    "executableCode",
    "codeExecutionResult",
    "toolCall",
    "toolResponse",
}


class Wire(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", val_json_bytes="base64")


class Generate(Wire):
    contents: list[types.Content]
    systemInstruction: Optional[types.Content] = None
    tools: Optional[list[types.Tool]] = None
    toolConfig: Optional[types.ToolConfig] = None
    generationConfig: Optional[types.GenerationConfig] = None
    safetySettings: Optional[list[types.SafetySetting]] = None
    serviceTier: Optional[types.ServiceTier] = None
    cachedContent: Optional[str] = None
    labels: Optional[dict[str, str]] = None
    store: Optional[bool] = None
    continuationToken: Optional[bytes] = None
    modelArmorConfig: Optional[types.ModelArmorConfig] = None


class Embed(Wire):
    """One text at the Gemini API, where `model` belongs to the members of a batch only."""

    content: types.Content
    taskType: Optional[str] = None
    title: Optional[str] = None
    outputDimensionality: Optional[int] = None
    model: Optional[str] = None


class EmbedBatch(Wire):
    requests: list[Embed]


class VertexConfig(Wire):
    taskType: Optional[str] = None
    title: Optional[str] = None
    outputDimensionality: Optional[int] = None
    autoTruncate: Optional[bool] = None


class VertexEmbed(Wire):
    content: types.Content
    embedContentConfig: Optional[VertexConfig] = None
    model: Optional[str] = None


class VertexEmbedBatch(Wire):
    requests: list[VertexEmbed]


class Instance(Wire):
    content: str
    task_type: Optional[str] = None
    title: Optional[str] = None


class Parameters(Wire):
    outputDimensionality: Optional[int] = None
    autoTruncate: Optional[bool] = None


class Predict(Wire):
    instances: list[Instance]
    parameters: Optional[Parameters] = None


def require(condition, reason):
    if not condition:
        raise Breach(reason)


def conform(model, body):
    """Unknown words of an enumeration are faults too, which the types only warn of."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return model.model_validate_json(json.dumps(body), strict=True)
    except pydantic.ValidationError as error:
        places = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise Breach("; ".join(places[:6])) from error
    except UserWarning as warning:
        raise Breach(str(warning)) from warning


def for_the_gemini_api(checked):
    """Refuses what the package itself would send to Vertex AI only."""
    try:
        for content in checked.contents:
            converters._Content_to_mldev(content)
        for tool in checked.tools or []:
            converters._Tool_to_mldev(tool)
        for setting in checked.safetySettings or []:
            converters._SafetySetting_to_mldev(setting)
        if checked.toolConfig:
            converters._ToolConfig_to_mldev(checked.toolConfig)
    except ValueError as error:
        raise Breach(str(error)) from error
    config = checked.generationConfig or types.GenerationConfig()
    for name in ("routing_config", "model_selection_config", "audio_timestamp", "response_format"):
        require(getattr(config, name) is None, f"{name} is known to Vertex AI only")
    require(checked.labels is None, "labels are known to Vertex AI only")
    require(checked.modelArmorConfig is None, "modelArmorConfig is known to Vertex AI only")


def kind_of(part):
    kinds = [name for name in part if name in DATA]
    require(len(kinds) == 1, f"a part holds {kinds}")
    return kinds[0]


def holding(content, kind):
    return [part[kind] for part in content["parts"] if kind in part]


# Requests.


def check(provider, name, body):
    model, three = MODELS[name], not name.startswith("gemini-2")
    checked = conform(Generate, body)
    if provider == GEMINI:
        for_the_gemini_api(checked)
    check_config(body.get("generationConfig", {}), model, three)
    check_tools(body, three)
    check_contents(body["contents"], model, three)
    for part in body.get("systemInstruction", {"parts": [{"text": "-"}]})["parts"]:
        require(part.keys() == {"text"} and part["text"], f"systemInstruction holds {part}")


def thinking_of(config):
    """The package itself writes these members with underscores, which the service takes too."""
    return {alias_generators.to_camel(name): value for name, value in config.get("thinkingConfig", {}).items()}


def check_config(config, model, three):
    thinking = thinking_of(config)
    level, budget = thinking.get("thinkingLevel"), thinking.get("thinkingBudget")
    require(level is None or budget is None, "You can only set only one of thinking budget and thinking level.")
    require(level is None or three, "Thinking level is not supported for this model.")
    require(level is None or level in model.levels, f"{level!r} is not a supported thinking level for this model.")
    require(budget is None or not three, "thinkingBudget for a model with levels")
    if budget is not None and budget != -1:
        require(model.budget[0] <= budget <= model.budget[1], f"The thinking budget {budget} is invalid.")
    for penalty in ("presencePenalty", "frequencyPenalty"):
        require(penalty not in config or model.samples, "Penalty is not enabled for this model")
        require(-2 <= config.get(penalty, 0) < 2, f"{penalty} is out of range")
    for field in ("temperature", "topP", "topK"):
        require(field not in config or model.samples, f"{field} would be ignored")
    require(0 <= config.get("temperature", 0) <= 2, "temperature is out of range")
    require(0 <= config.get("topP", 0) <= 1, "topP is out of range")
    require(config.get("candidateCount", 1) == 1 or not three, "Multiple candidates is not enabled for this model")
    require(1 <= config.get("maxOutputTokens", 1) <= 65536, "maxOutputTokens is out of range")
    require(len(config.get("stopSequences", [])) <= 5, "too many stop sequences")
    require(all(config.get("stopSequences", [])), "a stop sequence is empty")
    require(-(2**31) <= config.get("seed", 0) < 2**31, "seed does not fit into 32 bits")
    require("logprobs" not in config or config.get("responseLogprobs"), "logprobs without responseLogprobs")
    require(1 <= config.get("logprobs", 1) <= 20, "logprobs is out of range")
    schemas = [config[name] for name in ("responseJsonSchema", "responseSchema") if name in config]
    require(len(schemas) <= 1, "both response schemas are set")
    if schemas:
        require(config.get("responseMimeType") == "application/json", "a response schema needs responseMimeType")
        (check_json_schema if "responseJsonSchema" in config else check_schema)(schemas[0])


def check_tools(body, three):
    tools = body.get("tools", [])
    calling = body.get("toolConfig", {}).get("functionCallingConfig", {})
    as_json = body.get("generationConfig", {}).get("responseMimeType") == "application/json"
    require(tools != [] or "tools" not in body, "tools is empty")
    require(len([tool for tool in tools if "functionDeclarations" in tool]) <= 1, "functions in several tools")
    require(tools or not calling, "Function calling config is set without function_declarations.")
    allowed = calling.get("allowedFunctionNames", [])
    require(not allowed or calling.get("mode") in ("ANY", "VALIDATED"), "allowed names need mode ANY")
    require(not (as_json and tools) or three, "Function calling with a response mime type is unsupported")
    require(not (as_json and calling.get("mode") == "ANY"), "Forced function calling with a response mime type")
    names = []
    for tool in tools:
        require(len(tool) == 1, f"one tool holds {sorted(tool)}")
        for function in tool.get("functionDeclarations", []):
            names.append(function["name"])
            require(re.fullmatch(r"[A-Za-z_][\w.:-]{0,127}", function["name"]), "Invalid function name")
            require(len(function.keys() & {"parameters", "parametersJsonSchema"}) <= 1, "both parameters are set")
            if "parametersJsonSchema" in function:
                require(function["parametersJsonSchema"].get("type") == "object", "parameters are not an object")
                check_json_schema(function["parametersJsonSchema"])
            if "parameters" in function:
                check_schema(function["parameters"])
    require(len(set(names)) == len(names), "Duplicate function declaration found")
    require(set(allowed) <= set(names), f"allowed names {allowed} are not declared")


def check_common(schema):
    require("" not in schema.get("enum", []), "enum: cannot be empty")
    require(schema.get("type") not in ("array", "ARRAY") or schema.get("items"), "items: missing field.")
    if "properties" in schema:
        require(set(schema.get("required", [])) <= schema["properties"].keys(), "required: property is not defined")


def check_json_schema(schema):
    require(isinstance(schema, dict), "schema: not an object")
    unknown = schema.keys() - JSON_SCHEMA_KEYS
    require(not unknown, f"schema: {sorted(unknown)} not supported")
    require("$ref" not in schema or all(name[0] == "$" for name in schema), "schema: $ref has siblings")
    check_common(schema)
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    inner += [each for name in ("anyOf", "oneOf", "prefixItems") for each in schema.get(name, [])]
    inner += [schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), dict)]
    for each in inner:
        check_json_schema(each)


def check_schema(schema):
    """The older form, whose keys the types have checked."""
    require("anyOf" not in schema or len(schema) == 1, "any_of: must be the only field")
    require(schema.get("type", "").upper() != "OBJECT" or schema.get("properties") != {}, "properties: non-empty")
    check_common(schema)
    for each in [*schema.get("properties", {}).values(), *schema.get("anyOf", [])]:
        check_schema(each)
    if "items" in schema:
        check_schema(schema["items"])


def check_contents(contents, model, three):
    require(contents, "contents are required")
    before, calls = None, []
    for place, content in enumerate(contents):
        parts = content.get("parts")
        role = content.get("role")
        require(role in ("user", "model"), f"contents.{place}: role {role!r}")
        require(parts, f"contents.{place}: parts are empty")
        kinds = [kind_of(part) for part in parts]
        results = holding(content, "functionResponse")
        for part in parts:
            check_part(part, place, three)
        if before and before["role"] == role:
            apart = results or holding(before, "functionResponse")
            require(apart and role == "user", f"contents.{place}: role {role} follows itself")
        require(len(set(kinds)) == 1 or not results, f"contents.{place}: a functionResponse beside {kinds}")
        answered = [(call["name"], call.get("id")) for call in calls]
        given = [(result["name"], result.get("id")) for result in results]
        require(
            len(given) == len(answered),
            "the number of function response parts is equal to the number of function call parts"
            f": contents.{place}: {given} for {answered}",
        )
        require([name for name, _ in given] == [name for name, _ in answered], f"contents.{place}: {given}, {answered}")
        require(
            all(own in (None, theirs) for (_, own), (_, theirs) in zip(given, answered)),
            f"contents.{place}: ids of {given} for {answered}",
        )
        calls = holding(content, "functionCall")
        require(not calls or role == "model", f"contents.{place}: a functionCall by the user")
        before = content
    require(before["role"] == "user" or model.begun, "Requests ending with a model turn are not supported.")
    require(not calls, "a functionCall without a functionResponse")


def check_part(part, place, three):
    require(part.get("text") != "" or "thoughtSignature" in part, f"contents.{place}: an empty text")
    require("thought" not in part, f"contents.{place}: a thought")
    if "fileData" in part:
        raise Breach(f"contents.{place}: a file that is not inlined: {part['fileData']}")
    if "inlineData" in part:
        kind, data = part["inlineData"]["mimeType"], base64.b64decode(part["inlineData"]["data"], validate=True)
        magic = {"image/png": b"\x89PNG", "image/jpeg": b"\xff\xd8\xff", "application/pdf": b"%PDF"}
        require(kind != "image/jpg", "image/jpg is no type of an image")
        require(data.startswith(magic.get(kind, b"")), f"the bytes are not {kind}")
    for name in ("functionCall", "functionResponse"):
        require(name not in part or part[name].get("name"), f"contents.{place}: {name} without a name")
        require(three or "id" not in part.get(name, {}), f"contents.{place}: ids are unknown to this model")
    require("functionCall" not in part or isinstance(part["functionCall"].get("args", {}), dict), "args: no object")
    require("functionResponse" not in part or "response" in part["functionResponse"], "response: required")


# Tokens.


class Accounts:
    """A service account and the tokens that its assertions are exchanged for."""

    def __init__(self):
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.tokens, self.exchanges = set(), 0

    def file(self, base):
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return {
            "type": "service_account",
            "project_id": "proj",
            "private_key_id": "key-id-1",
            "private_key": self.private.private_bytes(*form).decode(),
            "client_email": "robot@proj.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{base}/oauth/token",
        }

    async def exchange(self, request):
        form = dict(await request.post())
        require(request.content_type == "application/x-www-form-urlencoded", "the form is not urlencoded")
        require(form.keys() == {"grant_type", "assertion"}, f"the form has {sorted(form)}")
        require(form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer", f"{form['grant_type']}")
        self.verify(form["assertion"], f"{request.scheme}://{request.host}/oauth/token")
        self.exchanges += 1
        token = f"ya29.{secrets.token_urlsafe(16)}"
        self.tokens.add(token)
        return web.json_response({"access_token": token, "expires_in": 3599, "token_type": "Bearer"})

    def verify(self, assertion, address):
        parts = assertion.split(".")
        require(len(parts) == 3 and "=" not in assertion, "the assertion is no JWT")
        try:
            head, claims, signature = (base64.urlsafe_b64decode(part + "==") for part in parts)
            head, claims = json.loads(head), json.loads(claims)
        except ValueError as error:
            raise Breach("the assertion is no JWT") from error
        require(head == {"alg": "RS256", "typ": "JWT", "kid": "key-id-1"}, f"the head is {head}")
        signed = assertion.rpartition(".")[0].encode()
        try:
            self.private.public_key().verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        except Exception as error:
            raise Breach("the signature of the assertion is wrong") from error
        require(claims.get("iss") == "robot@proj.iam.gserviceaccount.com", f"iss is {claims.get('iss')}")
        require(claims.get("scope") == SCOPE, f"scope is {claims.get('scope')}")
        require(claims.get("aud") in ("https://oauth2.googleapis.com/token", address), f"aud is {claims.get('aud')}")
        require(claims.keys() <= {"iss", "scope", "aud", "iat", "exp", "sub"}, f"claims are {sorted(claims)}")
        require(abs(claims["iat"] - time.time()) < 60, "iat is not now")
        require(claims["iat"] < claims["exp"] <= claims["iat"] + 3600, "exp is not within an hour")


ACCOUNTS = Accounts()

# Answers.

SECRET = b"only google knows"
WHOSE = {}


def part_of(part):
    """What a signature belongs to: this call, this picture, or any text."""
    call = part.get("functionCall")
    return (call and (call["name"], call.get("args", {}))) or part.get("inlineData")


class Google:
    headers, absent = {}, ()

    def __init__(self, name):
        self.name = name
        self.failing = failures.GEMINI if name == GEMINI else failures.VERTEX

    def forget(self):
        pass

    def refusal(self, reason):
        return failures.google(400, "INVALID_ARGUMENT", reason)

    def check_headers(self, request):
        keys, tokens = request.headers.getall("x-goog-api-key", []), request.headers.getall("authorization", [])
        if self.name == GEMINI:
            require((keys, tokens) == ([KEY], []), f"credentials are {keys} and {tokens}")
        else:
            known = [f"Bearer {token}" for token in ACCOUNTS.tokens]
            require(not keys and len(tokens) == 1 and tokens[0] in known, f"credentials are {keys} and {tokens}")
        for name in request.headers:
            require(not name.lower().startswith(("openai-", "anthropic-", "x-api-key")), f"header {name} is forwarded")

    async def serve(self, stand_in, request, seen):
        require(request.method == "POST", "the method is not POST")
        self.check_headers(request)
        found = PATHS[self.name].fullmatch(request.path)
        require(found, "no such path")
        model, verb = found.groups()
        streamed = verb == "streamGenerateContent"
        require(request.query_string == ("alt=sse" if streamed else ""), f"query is {request.query_string!r}")
        require(request.content_type == "application/json", f"content-type is {request.content_type}")
        body = seen["body"] = decode(await request.read())
        if verb in ("generateContent", "streamGenerateContent"):
            require(model in MODELS, f"models/{model} is not found")
            check(self.name, model, body)
            self.verify(stand_in, model, body)
            text, answer = answers.last_text(view(body)), functools.partial(self.answer, stand_in, model, streamed)
        else:
            require(model in EMBEDDERS, f"models/{model} is not found")
            texts, length = self.check_embedding(model, verb, body)
            text, answer = texts[0], functools.partial(self.embed, model, verb, texts, length)
        return await stand_in.behave(request, self, body, text, answer)

    def sign(self, model, nonce=None):
        """Of a part by this model at this provider; each signature is another."""
        nonce = nonce or secrets.token_bytes(9)
        mac = hmac.new(SECRET, nonce + f"{self.name} {model}".encode(), "sha256").digest()
        return base64.b64encode(nonce + mac).decode()

    def verify(self, stand_in, model, body):
        contents = body["contents"]
        turns = [place for place, content in enumerate(contents) if content["role"] == "user"]
        current = max(p for p in turns if not holding(contents[p], "functionResponse")) if turns else -1
        seen = set()
        for place, content in enumerate(contents):
            first = True
            for number, part in enumerate(content["parts"]):
                signature = part.get("thoughtSignature")
                if signature in PLACEHOLDERS:
                    require("functionCall" in part, f"contents.{place}: a placeholder that is not on a call")
                    stand_in.note(
                        "lost", provider=self.name, call=part["functionCall"]["name"], current=place > current
                    )
                elif signature:
                    # The package itself sends it back in the alphabet for URLs.
                    signature = signature.replace("-", "+").replace("_", "/")
                    nonce = base64.b64decode(signature[:12])
                    require(signature == self.sign(model, nonce), f"contents.{place}: Corrupted thought signature.")
                    require(signature not in seen, f"contents.{place}: a signature comes twice")
                    require(
                        WHOSE.get(signature, part_of(part)) == part_of(part),
                        f"contents.{place}: signature of another part",
                    )
                    seen.add(signature)
                if "functionCall" in part and first:
                    first = False
                    missing = place > current and not signature and not model.startswith("gemini-2")
                    name = part["functionCall"]["name"]
                    require(
                        not missing,
                        f"Function call is missing a thought_signature in functionCall parts: {name} at {number}",
                    )
                    if not signature and place < current and not model.startswith("gemini-2"):
                        stand_in.note("lost", provider=self.name, call=name, current=False)

    def check_embedding(self, model, verb, body):
        if self.name == GEMINI and verb in ("embedContent", "batchEmbedContents"):
            conform(Embed if verb == "embedContent" else EmbedBatch, body)
            requests = body.get("requests", [body])
            require(all(each.get("model", f"models/{model}") == f"models/{model}" for each in requests), "model")
            require(verb == "embedContent" or all("model" in each for each in requests), "requests: model is required")
            lengths = [each.get("outputDimensionality", 3072) for each in requests]
        elif self.name == VERTEX and verb == "predict" and EMBEDDERS[model]:
            conform(Predict, body)
            if len(body["instances"]) > EMBEDDERS[model]:
                raise Refused(f"{model} takes at most {EMBEDDERS[model]} instances")
            requests = [{"content": {"parts": [{"text": each["content"]}]}} for each in body["instances"]]
            lengths = [body.get("parameters", {}).get("outputDimensionality", 3072)]
        elif self.name == VERTEX and model[:6] == "gemini" and verb in ("embedContent", "batchEmbedContents"):
            conform(VertexEmbed if verb == "embedContent" else VertexEmbedBatch, body)
            requests = body.get("requests", [body])
            lengths = [each.get("embedContentConfig", {}).get("outputDimensionality", 3072) for each in requests]
        else:
            raise Breach(f"{verb} is not a method of models/{model}")
        require(requests, "no texts")
        require(len(requests) <= 100 or verb == "predict", f"at most 100 in one batch, but {len(requests)} are")
        require(len(set(lengths)) == 1 and 1 <= lengths[0] <= 3072, f"outputDimensionality is {lengths}")
        require(all(len(each["content"]["parts"]) == 1 for each in requests), "several parts give one vector")
        return [each["content"]["parts"][0]["text"] for each in requests], lengths[0]

    async def embed(self, model, verb, texts, length, request, provider, body, markers):
        rows = [vector(text, length, model == "gemini-embedding-001") for text in texts]
        if verb == "predict":
            counts = {"token_count": 5, "truncated": False}
            return web.json_response(
                {"predictions": [{"embeddings": {"values": row, "statistics": counts}} for row in rows]}
            )
        if verb == "embedContent":
            return web.json_response({"embedding": {"values": rows[0]}})
        return web.json_response({"embeddings": [{"values": row} for row in rows]})

    async def answer(self, stand_in, model, streamed, request, provider, body, markers):
        chunks = list(self.chunks(model, body, markers))
        if not streamed:
            return web.json_response(whole(chunks))
        end = b"\r\n\r\n" if self.name == GEMINI else b"\n\n"
        frames = [frame(chunk, end) for chunk in chunks]
        first, inside = (frame(failures.google(*words), end) for words in failures.GOOGLE_IN_STREAM)
        thought = bool(thoughts(model, body))
        return await stand_in.relay(request, frames, markers, 1 + thought, first, inside, {})

    def chunks(self, model, body, markers):
        three = not model.startswith("gemini-2")
        seen = view(body)
        answer = answers.compose(seen, markers, ["", ""])
        head = {"modelVersion": answers.MODEL, "responseId": f"r{secrets.token_hex(6)}"}
        counts = {
            "promptTokenCount": 11,
            "cachedContentTokenCount": 3,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 11}],
        }
        if "refuse" in markers:
            feedback = {"blockReason": "PROHIBITED_CONTENT"}
            yield {"promptFeedback": feedback, "usageMetadata": {**counts, "totalTokenCount": 11}, **head}
            return
        thought = thoughts(model, body)
        spent = {"thoughtsTokenCount": 4, "totalTokenCount": 15} if thought is not None else {"totalTokenCount": 11}

        def chunk(parts, finish=None, **more):
            candidate = {"content": {"role": "model", "parts": parts}, "index": 0}
            if finish:
                candidate["finishReason"] = finish
            return {"candidates": [candidate], "usageMetadata": {**counts, **spent, **more}, **head}

        apart = thought is not None and "thoughts-included" not in markers
        full = {"candidatesTokenCount": 3 if apart else 7, "totalTokenCount": 18}
        if "starved" in markers:
            candidate = {"finishReason": "MAX_TOKENS", "index": 0}
            usage = {**counts, "thoughtsTokenCount": 7, "totalTokenCount": 18}
            yield {"candidates": [candidate], "usageMetadata": usage, **head}
            return
        if thought:
            yield chunk([{"text": thought, "thought": True}])
        if "talk-and-call" in markers and answer.calls:
            yield chunk([{"text": "One moment."}])
        for piece in answer.pieces:
            yield chunk([{"text": piece}])
        if "IMAGE" in body.get("generationConfig", {}).get("responseModalities", []):
            drawn = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(PNG).decode()}}
            drawn["thoughtSignature"] = self.sign(model)
            WHOSE[drawn["thoughtSignature"]] = part_of(drawn)
            yield chunk([drawn])
        for place, call in enumerate(answer.calls):
            native = {"name": call["name"]}
            if call["arguments"] != "{}":
                native["args"] = json.loads(call["arguments"])
            if three:
                native["id"] = f"fc_{secrets.token_hex(6)}"
            part = {"functionCall": native}
            if three and place == 0:
                part["thoughtSignature"] = self.sign(model)
                WHOSE[part["thoughtSignature"]] = part_of(part)
            yield chunk([part])
        finish = {"length": "MAX_TOKENS"}.get(answer.finish, "STOP")
        finish = next(
            (marker[7:].replace("-", "_").upper() for marker in markers if marker.startswith("reason-")), finish
        )
        last = {"text": ""}
        if three and not answer.calls:
            last["thoughtSignature"] = self.sign(model)
            WHOSE[last["thoughtSignature"]] = part_of(last)
        yield chunk([last], finish, **full)
        yield {"usageMetadata": {**counts, **spent, **full}, **head}


def thoughts(model, body):
    """The text of the thought, empty unless it is to be shown; None if the model does not think."""
    thinking = thinking_of(body.get("generationConfig", {}))
    if thinking.get("thinkingBudget", 1) == 0:
        return None
    return "".join(answers.THOUGHT) if thinking.get("includeThoughts") else ""


def whole(chunks):
    """One reply out of the chunks; a text and its signature share one part."""
    reply = {**chunks[0], "usageMetadata": chunks[-1]["usageMetadata"]}
    if "candidates" not in reply:
        return reply
    parts = []
    for chunk in chunks:
        for candidate in chunk.get("candidates", []):
            for part in candidate.get("content", {}).get("parts", []):
                joins = (
                    parts and "text" in part and "text" in parts[-1] and part.get("thought") == parts[-1].get("thought")
                )
                if joins:
                    parts[-1] = {**parts[-1], **part, "text": parts[-1]["text"] + part["text"]}
                elif part != {"text": ""}:
                    parts.append(dict(part))
            finish = candidate.get("finishReason")
    candidate = {"index": 0, "finishReason": finish}
    if parts:
        candidate["content"] = {"role": "model", "parts": parts}
    return {**reply, "candidates": [candidate]}


def vector(text, length, raw=True):
    """Of as many dimensions as wanted, and a raw one not of length one unless it is complete."""
    row = [3.0 + len(text), 4.0] + [0.0] * (length - 2)
    norm = sum(value * value for value in row) ** 0.5
    return [value / norm for value in row] if length == 3072 or not raw else row


def view(body):
    """The request in the neutral form from which answers are made."""
    messages = []
    for content in body["contents"]:
        results = holding(content, "functionResponse")
        for place, result in enumerate(results):
            response = result["response"]
            text = str(response.get("output", response.get("error", json.dumps(response))))
            messages.append({"role": "tool", "tool_call_id": f"{len(messages) - place - 1} {place}", "content": text})
        parts = [part for part in map(neutral, content["parts"]) if part]
        calls = [
            {"id": f"{len(messages)} {place}", "function": {"name": call["name"]}}
            for place, call in enumerate(holding(content, "functionCall"))
        ]
        role = "assistant" if content["role"] == "model" else "user"
        if parts or calls:
            messages.append({"role": role, "content": parts, "tool_calls": calls})
    config = body.get("generationConfig", {})
    functions = [each for tool in body.get("tools", []) for each in tool.get("functionDeclarations", [])]
    return {
        "messages": messages,
        "tools": [{"function": {"name": function["name"]}} for function in functions],
        "response_format": {
            "type": "json_schema" if config.keys() & {"responseJsonSchema", "responseSchema"} else "text"
        },
    }


def neutral(part):
    if "text" in part:
        return {"type": "text", "text": part["text"]}
    if "inlineData" in part:
        url = f"data:{part['inlineData']['mimeType']};base64,{part['inlineData']['data']}"
        return {"type": "image_url", "image_url": {"url": url}}
    return None


def frame(payload, end):
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + end
