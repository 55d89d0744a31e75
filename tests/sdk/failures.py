"""How each provider says no: status, headers and body in its native form, by kind of failure."""

NOT_JSON = "<html><body><h1>502 Bad Gateway</h1></body></html>"


def refusal(message, kind, param=None, code=None):
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


OPENAI = {
    "bad-request": (
        400,
        {},
        refusal("Unsupported value: 'temperature' is 7.", "invalid_request_error", "temperature", "unsupported_value"),
    ),
    "context-length": (
        400,
        {},
        refusal(
            "This model's maximum context length is 8 tokens.",
            "invalid_request_error",
            "messages",
            "context_length_exceeded",
        ),
    ),
    "bad-key": (
        401,
        {},
        refusal("Incorrect API key provided: sk-upstream.", "invalid_request_error", None, "invalid_api_key"),
    ),
    "forbidden": (
        403,
        {},
        refusal("Country not supported.", "request_forbidden", None, "unsupported_country_region_territory"),
    ),
    "no-model": (404, {}, refusal("The model does not exist.", "invalid_request_error", None, "model_not_found")),
    "too-large": (413, {}, refusal("The request is too large.", "invalid_request_error")),
    "unprocessable": (422, {}, refusal("Cannot process messages.0.", "invalid_request_error", "messages")),
    "rate-limit": (429, {"retry-after": "30"}, refusal("Rate limit reached.", "requests", None, "rate_limit_exceeded")),
    "brief-limit": (
        429,
        {"retry-after-ms": "50"},
        refusal("Rate limit reached.", "requests", None, "rate_limit_exceeded"),
    ),
    "quota": (429, {}, refusal("You exceeded your current quota.", "insufficient_quota", None, "insufficient_quota")),
    "server-error": (500, {}, refusal("The server had an error.", "server_error")),
    "html": (502, {}, NOT_JSON),
    "overloaded": (
        503,
        {},
        refusal("The engine is overloaded.", "service_unavailable_error", None, "server_is_overloaded"),
    ),
    "overloaded-529": (529, {}, refusal("Overloaded.", "overloaded_error")),
    "garbage": (200, {}, NOT_JSON),
    "wrong-shape": (200, {}, {"hello": "world"}),
}

AZURE_FILTER = {
    "message": "The response was filtered due to the prompt triggering our content management policy.",
    "type": None,
    "param": "prompt",
    "code": "content_filter",
    "status": 400,
    "innererror": {
        "code": "ResponsibleAIPolicyViolation",
        "content_filter_result": {"hate": {"filtered": True, "severity": "high"}},
    },
}

AZURE = {
    **OPENAI,
    "content-filter": (400, {}, {"error": AZURE_FILTER}),
    "bad-key": (401, {}, {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}}),
    "front-layer": (401, {}, {"statusCode": 401, "message": "Unauthorized. Access token is missing."}),
    "forbidden": (403, {}, {"error": {"code": "403", "message": "Access denied due to network rules."}}),
    "no-model": (404, {}, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}),
    "rate-limit": (
        429,
        {"retry-after-ms": "30000"},
        {"error": {"code": "429", "message": "Requests have exceeded token rate limit."}},
    ),
}


def flat(message, kind, code, status):
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code, "raw_status_code": status}


MISTRAL_DETAIL = [
    {"type": "value_error", "loc": ["body", "temperature"], "msg": "Input should be less than 2", "input": 7}
]

MISTRAL = {
    **OPENAI,
    "bad-request": (400, {}, flat("Bad temperature.", "invalid_request_error", "3000", 400)),
    "bad-key": (401, {}, {"detail": "Unauthorized"}),
    "forbidden": (403, {}, {"detail": "Forbidden"}),
    "no-model": (400, {}, flat("Invalid model: mistral-gone", "invalid_model", "1500", 400)),
    "unprocessable": (422, {}, {"detail": MISTRAL_DETAIL}),
    "unprocessable-object": (422, {}, {**flat({"detail": MISTRAL_DETAIL}, "invalid_request_error", None, 422)}),
    "unprocessable-array": (
        422,
        {},
        {"object": "Error", "message": MISTRAL_DETAIL, "type": "invalid_request_error", "code": 3001},
    ),
    "rate-limit": (429, {"retry-after": "30"}, flat("Rate limit exceeded", "rate_limited", "1300", 429)),
    "server-error": (500, {}, flat("Internal error", "internal_error_proxy", "1000", 500)),
}

VLLM = {
    **OPENAI,
    "bad-request": (400, {}, refusal("Unsupported temperature.", "BadRequestError", None, 400)),
    "bad-request-flat": (
        400,
        {},
        {
            "object": "error",
            "message": "Unsupported temperature.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "bad-key": (401, {}, {"error": "Unauthorized"}),
    "no-model": (404, {}, refusal("The model `x` does not exist.", "NotFoundError", None, 404)),
    "server-error": (500, {}, refusal("Engine died.", "InternalServerError", None, 500)),
    "loading": (503, {}, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
}

GROQ = {
    **OPENAI,
    "bad-request": (
        400,
        {},
        {
            "error": {
                "message": "Failed to call a function: temperature.",
                "type": "invalid_request_error",
                "code": "tool_use_failed",
                "failed_generation": "<x>",
            }
        },
    ),
    "capacity": (
        498,
        {},
        {"error": {"message": "Flex capacity exceeded.", "type": "capacity", "code": "capacity_exceeded"}},
    ),
}

TOGETHER = {
    **OPENAI,
    "no-credit": (
        402,
        {},
        {
            "id": "1",
            "error": {"message": "Credit limit exceeded.", "type": "credit_limit", "param": None, "code": None},
        },
    ),
}


def anthropic(kind, message, code=None):
    error = {"type": kind, "message": message, **({"details": {"error_code": code}} if code else {})}
    return {"type": "error", "error": error, "request_id": "req_upstream"}


ANTHROPIC_IN_STREAM = [("overloaded_error", "Overloaded"), ("api_error", "Internal server error")]

ANTHROPIC = {
    "bad-request": (400, {}, anthropic("invalid_request_error", "temperature: range: 0..1")),
    "context-length": (
        400,
        {},
        anthropic("invalid_request_error", "prompt is too long: 215000 tokens > 200000 maximum"),
    ),
    "spend-limit": (
        400,
        {},
        anthropic("invalid_request_error", "You have reached your specified API usage limits.", "spend_limit_reached"),
    ),
    "bad-key": (401, {}, anthropic("authentication_error", "invalid x-api-key: an-key")),
    "no-credit": (402, {}, anthropic("billing_error", "Your credit balance is too low to access the API.")),
    "forbidden": (403, {}, anthropic("permission_error", "Your API key does not have permission.")),
    "no-model": (404, {}, anthropic("not_found_error", "model: claude-gone")),
    "too-large": (413, {}, "<html><body>413 Request Entity Too Large</body></html>"),
    "rate-limit": (429, {"retry-after": "30"}, anthropic("rate_limit_error", "Number of requests has exceeded.")),
    "brief-limit": (429, {"retry-after": "0.05"}, anthropic("rate_limit_error", "Number of requests has exceeded.")),
    "quota": (
        429,
        {},
        anthropic("rate_limit_error", "Your organization's spend limit is reached.", "enforced_spend_limit_reached"),
    ),
    "server-error": (500, {}, anthropic("api_error", "Internal server error")),
    "html": (502, {}, NOT_JSON),
    "timed-out": (504, {}, anthropic("timeout_error", "The request timed out.")),
    "overloaded": (529, {}, anthropic("overloaded_error", "Overloaded")),
    "overloaded-529": (529, {"x-should-retry": "true"}, anthropic("overloaded_error", "Overloaded")),
    "garbage": (200, {}, NOT_JSON),
    "wrong-shape": (200, {}, {"hello": "world"}),
}


def google(code, status, message, *details):
    about = "type.googleapis.com/google.rpc."
    listed = [{"@type": about + name, **members} for name, members in details]
    return {"error": {"code": code, "message": message, "status": status, **({"details": listed} if listed else {})}}


GOOGLE_IN_STREAM = [
    (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    (500, "INTERNAL", "An internal error has occurred."),
]


def quota(metric, *details):
    violation = {"violations": [{"quotaId": metric, "quotaValue": "250"}]}
    return google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", ("QuotaFailure", violation), *details)


def after(delay):
    return quota("GenerateRequestsPerMinutePerProjectPerModel", ("RetryInfo", {"retryDelay": delay}))


INVALID_KEY = ("ErrorInfo", {"reason": "API_KEY_INVALID", "domain": "googleapis.com", "metadata": {}})
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."

GEMINI = {
    "bad-request": (400, {}, google(400, "INVALID_ARGUMENT", "Invalid value at 'generation_config.temperature'.")),
    "context-length": (400, {}, google(400, "INVALID_ARGUMENT", TOO_LONG)),
    "bad-key": (400, {}, google(400, "INVALID_ARGUMENT", "API key not valid: go-key", INVALID_KEY)),
    "precondition": (400, {}, google(400, "FAILED_PRECONDITION", "User location is not supported.")),
    "string-code": (400, {}, {"error": {"code": "invalid_request", "message": "Bad temperature."}}),
    "forbidden": (403, {}, google(403, "PERMISSION_DENIED", "Your API key was reported as leaked.")),
    "no-model": (404, {}, google(404, "NOT_FOUND", "models/gemini-gone is not found for API version v1beta.")),
    "rate-limit": (429, {}, after("29.5s")),
    "brief-limit": (429, {}, after("0.05s")),
    "quota": (429, {}, quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier")),
    "cancelled": (499, {}, google(499, "CANCELLED", "The operation was cancelled.")),
    "server-error": (500, {}, google(500, "INTERNAL", "An internal error has occurred.")),
    "html": (502, {}, NOT_JSON),
    "overloaded": (503, {}, google(503, "UNAVAILABLE", "The model is overloaded.")),
    "timed-out": (504, {}, google(504, "DEADLINE_EXCEEDED", "The deadline expired.")),
    "garbage": (200, {}, NOT_JSON),
    "wrong-shape": (200, {}, {"hello": "world"}),
}
# Vertex knows no keys, and the errors arrive in arrays.
VERTEX = {
    kind: (status, headers, [body] if isinstance(body, dict) and status >= 400 else body)
    for kind, (status, headers, body) in {
        **GEMINI,
        "bad-key": (401, {}, google(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")),
        "rate-limit": (429, {}, google(429, "RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later.")),
    }.items()
}
