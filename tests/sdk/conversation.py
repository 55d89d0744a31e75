"""Messages and tools that the tests send."""

import base64


def user(text):
    return [{"role": "user", "content": text}]


def function(name, argument):
    schema = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": f"Runs {name}.", "parameters": schema}}


TOOLS = [function("get_weather", "city"), function("get_time", "zone")]
RESULTS = {"get_weather": "sunny", "get_time": "12:00"}
FOREIGN_HISTORY = [
    *user("weather and time?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_0123456789abcdefA",
                "type": "function",
                "function": {"name": "get_weather", "arguments": "{}"},
            },
            {"id": "call_0123456789abcdefB", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789abcdefB", "content": "noon"},
    {"role": "tool", "tool_call_id": "call_0123456789abcdefA", "content": "rain"},
]
CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["city", "population"],
    "additionalProperties": False,
}
CITY_FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY_SCHEMA, "strict": True}}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def picture(raw=PNG):
    url = "data:image/png;base64," + base64.b64encode(raw).decode()
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def answers_to(message):
    """The tool messages that answer the calls of an assistant message, last call first."""
    return [
        {"role": "tool", "tool_call_id": call.id, "content": RESULTS[call.function.name]}
        for call in reversed(message.tool_calls)
    ]
