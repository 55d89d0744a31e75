"""Writes seeds for the fuzz targets from the golden files: `seeds.py GOLDEN CORPUS`. The form of inputs is in src/lib.rs."""

import json
import pathlib
import sys

BACKENDS = ["openai", "azure-openai", "mistral", "meta"]
MODELS = ["m", "gpt-4o", "o3", "claude-sonnet-5-5", "claude-haiku-4-5", "claude-opus-4-6", "gemini-3.8-flash", "gemini-3.5-flash", "gemini-2.5-pro", "mistral-large-latest"]
ENDPOINTS = {"/chat/completions": 0, "/embeddings": 1, "/completions": 2}


def compact(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(data):
    name = data.get("type") if isinstance(data, dict) else None
    return (f"event: {name}\n" if isinstance(name, str) else "") + f"data: {compact(data)}\n\n"


def main(golden, corpus):
    def seed(target, name, head, text):
        folder = corpus / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(head) + text.encode())

    for path in sorted(golden.glob("*/*.json")):
        case, dialect = json.loads(path.read_text()), path.parent.name
        kind = case["backend"]["type"]
        way = BACKENDS.index(kind) if kind in BACKENDS else 0
        asked = case.get("request") if isinstance(case.get("request"), dict) else {}
        model = next((n for n, name in enumerate(MODELS) if name == asked.get("model")), 0)
        endpoint = ENDPOINTS.get(case.get("path", "/chat/completions"), 0)
        # Which of the fixed requests is answered: with usage, with tools, plain; with base64 and without.
        request = {1: 3, 2: 5}.get(endpoint, 2 if "tools" in asked or "response_format" in asked else 0)
        ways = [way | request << 3, model]
        if "request" in case:
            text = compact(case["request"])
            # What one dialect is asked, any may be asked.
            for other in ("openai", "anthropic", "google"):
                seed(f"{other}_encode", path.stem, [(way if other == dialect else 0) | endpoint << 6, model], text)
            seed("scan", path.stem, [], text)
        if "reply" in case:
            seed(f"{dialect}_decode", path.stem, ways, compact(case["reply"]))
        if "events" in case:
            stream = "".join(map(event, case["events"]))
            seed(f"{dialect}_relay", path.stem, ways + [7, 30], stream)
            seed("sse", path.stem, [7, 30], stream)
        if "error" in case:
            status = int(case["error"]["status"]) - 100
            seed(f"{dialect}_error", path.stem, [way, *divmod(status, 256)], compact(case["error"]["body"]))


main(*map(pathlib.Path, sys.argv[1:]))
