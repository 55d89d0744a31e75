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
