"""Stands in for the providers on one port, and records every request that their own SDKs could not have sent.

A test chooses the behaviour with markers in square brackets in the last user message: `[call-tools]`, `[see]`,
`[bad-request]`, ... A marker with a provider's name, `[server-error@openai]`, holds for that provider only.
`POST /control/next` puts behaviours in front of that, one for each request to come.
"""

import argparse
import asyncio
import hashlib
import json
import re

from aiohttp import web

import answers
import failures
import schemas
import standin_anthropic
import standin_google

HOLD = 20
MARKER = re.compile(r"\[([a-z0-9-]+)(?:@([a-z]+))?\]")
FORBIDDEN_HEADERS = {
    "cookie",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "openai-beta",
    "x-hop",
}
CLIENT_SECRETS = ("client-key-1", "client-cookie", "client-org", "client-project")


class Provider:
    def __init__(self, name, form, failing, check, models, headers, absent=()):
        self.name, self.form, self.failing, self.check = name, form, failing, check
        self.models, self.headers, self.absent = models, headers, absent


def bearer(key):
    return {"authorization": f"Bearer {key}"}


OPENAI = Provider(
    "openai",
    answers.OpenAI(),
    failures.OPENAI,
    schemas.openai,
    {
        "gpt-4o",
        "gpt-4o-mini",
        "o3-mini",
        "text-embedding-3-small",
        "gpt-3.5-turbo-instruct",
        "omni-moderation-latest",
        "tts-1",
    },
    {**bearer("sk-upstream"), "openai-organization": "org-1", "openai-project": "proj-1"},
    absent=("api-key",),
)
AZURE = Provider(
    "azure",
    answers.Azure(),
    failures.AZURE,
    schemas.openai,
    {"gpt-4o-prod", "embed-prod"},
    {"api-key": "az-key"},
    absent=("authorization", "openai-organization", "openai-project"),
)
MISTRAL = Provider(
    "mistral",
    answers.Mistral(),
    failures.MISTRAL,
    schemas.mistral_chat,
    {"mistral-large-latest", "magistral-medium-latest", "mistral-embed"},
    bearer("mi-key"),
    absent=("api-key", "openai-organization", "openai-project"),
)


def llama(name, form, failing, check):
    models = {"llama-3.3-70b-instruct", "nomic-embed"}
    absent = ("api-key", "openai-organization", "openai-project")
    return Provider(name, form, failing, check, models, bearer("ll-key"), absent)


VLLM = llama("vllm", answers.Vllm(), failures.VLLM, schemas.vllm)
GROQ = llama("groq", answers.Groq(), failures.GROQ, schemas.groq)
TOGETHER = llama("together", answers.Together(), failures.TOGETHER, schemas.together)
BASES = {
    "/openai/v1": OPENAI,
    "/azure/openai/v1": AZURE,
    "/mistral/v1": MISTRAL,
    "/meta/v1": VLLM,
    "/groq/openai/v1": GROQ,
    "/together/v1": TOGETHER,
}


# Those with a wire format of their own.
NATIVE = {
    "/anthropic/": standin_anthropic.Anthropic(),
    "/gemini/": standin_google.Google(standin_google.GEMINI),
    "/vertex/": standin_google.Google(standin_google.VERTEX),
}


class StandIn:
    def __init__(self):
        self.gate = asyncio.Event()
        self.changed = asyncio.Condition()
        self.forget()

    def forget(self):
        self.breaches, self.requests, self.queue, self.notes, self.cancelled = [], [], [], [], 0
        self.gate.clear()
        for provider in NATIVE.values():
            provider.forget()

    # What the tests ask.

    async def reset(self, request):
        self.forget()
        return web.json_response({})

    async def show_breaches(self, request):
        return web.json_response(self.breaches)

    async def show_requests(self, request):
        return web.json_response(self.requests)

    async def show_notes(self, request):
        """What a provider puts up with but remarks."""
        return web.json_response(self.notes)

    async def show_account(self, request):
        """The service account, as the file that Google gives for it."""
        return web.json_response(standin_google.ACCOUNTS.file(f"http://{request.host}"))

    async def exchange(self, request):
        if self.queue[:1] == ["no-token"]:
            self.queue.pop(0)
            return web.json_response({"error": "invalid_grant", "error_description": "Account deleted"}, status=400)
        try:
            return await standin_google.ACCOUNTS.exchange(request)
        except schemas.Breach as breach:
            self.breach(request, str(breach))
            refusal = {"error": "invalid_grant", "error_description": str(breach)}
            return web.json_response(refusal, status=400)

    async def count_exchanges(self, request):
        return web.json_response(standin_google.ACCOUNTS.exchanges)

    async def next(self, request):
        self.queue.extend(await request.json())
        return web.json_response({})

    async def release(self, request):
        self.gate.set()
        return web.json_response({})

    async def await_cancelled(self, request):
        """Answers when the wanted number of requests has been given up by the gateway."""
        wanted = int(request.query.get("count", "1"))
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: self.cancelled >= wanted), HOLD)
        return web.json_response({"cancelled": self.cancelled})

    # What the providers do.

    def breach(self, request, reason):
        self.breaches.append(f"{request.method} {request.path_qs}: {reason}")

    def note(self, kind, **about):
        self.notes.append({"kind": kind, **about})

    async def serve(self, request):
        seen = {"method": request.method, "path": request.path_qs, "headers": dict(request.headers), "body": None}
        self.requests.append(seen)
        native = next((native for base, native in NATIVE.items() if request.path.startswith(base)), None)
        try:
            if native:
                self.check_headers(request, native)
                return await native.serve(self, request, seen)
            provider, path, version = self.locate(request)
            self.check_headers(request, provider)
            if request.method == "GET" and path == "/models":
                return web.json_response({"object": "list", "data": []})
            if request.method != "POST":
                raise schemas.Breach("the method is not POST")
            if path == "/audio/transcriptions":
                return await self.transcribe(request)
            if request.content_type != "application/json":
                raise schemas.Breach(f"content-type is {request.content_type}")
            body = seen["body"] = schemas.decode(await request.read())
            return await self.answer(request, provider, path, version, body)
        except schemas.Breach as breach:
            self.breach(request, str(breach))
            words = f"breach: {breach}"
            refusal = native.refusal(words) if native else failures.refusal(words, "invalid_request_error")
            return web.json_response(refusal, status=400)
        except schemas.Refused as refused:
            return web.json_response(native.refusal(str(refused)), status=400)
        except asyncio.CancelledError:
            async with self.changed:
                self.cancelled += 1
                self.changed.notify_all()
            raise

    def locate(self, request):
        dated = re.fullmatch(r"/azure/openai/deployments/([^/]+)(/[a-z/]+)", request.path)
        if dated:
            if dict(request.query) != {"api-version": "2024-08-01-preview"}:
                raise schemas.Breach(f"query is {request.query_string!r}")
            if dated[1] not in AZURE.models:
                raise schemas.Breach(f"no deployment {dated[1]!r}")
            return AZURE, dated[2], request.query["api-version"]
        for base, provider in BASES.items():
            if request.path.startswith(base + "/"):
                if request.query_string:
                    raise schemas.Breach(f"query is {request.query_string!r}")
                return provider, request.path.removeprefix(base), None
        raise schemas.Breach("no such path")

    def check_headers(self, request, provider):
        for name, wanted in provider.headers.items():
            got = request.headers.getall(name, [])
            if got != [wanted]:
                raise schemas.Breach(f"header {name} is {got}")
        for name, value in request.headers.items():
            name = name.lower()
            if name in FORBIDDEN_HEADERS or name in provider.absent or name.startswith("x-stainless"):
                raise schemas.Breach(f"header {name} is forwarded")
            if name == "connection" and value.lower() not in ("keep-alive", "close"):
                raise schemas.Breach(f"header connection is {value!r}")
            if any(secret in value for secret in CLIENT_SECRETS):
                raise schemas.Breach(f"header {name} carries a credential of the client")

    async def answer(self, request, provider, path, version, body):
        if version is None and body.get("model") not in provider.models:
            raise schemas.Breach(f"model is {body.get('model')!r}")
        if path == "/chat/completions":
            if version is None:
                provider.check(body)
            else:
                schemas.azure_dated(body, version)
            return await self.behave(request, provider, body, answers.last_text(body), self.chat)
        if path == "/embeddings":
            check = schemas.mistral_embedding if provider is MISTRAL else schemas.embedding
            check(body if version is None else {"model": "in-the-path", **body})
            first = body["input"] if isinstance(body["input"], str) else body["input"][0]
            return await self.behave(request, provider, body, str(first), self.embed)
        if path == "/completions" and provider in (OPENAI, VLLM):
            schemas.completion(body)
            return await self.behave(request, provider, body, body["prompt"], self.complete)
        if path == "/moderations" and provider is OPENAI:
            schemas.moderation(body)
            return web.json_response({"id": "modr-1", "model": answers.MODEL, "results": []})
        if path == "/audio/speech" and provider is OPENAI:
            schemas.speech(body)
            return web.Response(body=bytes(range(256)), content_type="audio/mpeg")
        raise schemas.Breach("no such path")

    async def transcribe(self, request):
        """Says what arrived: the digest of the form's file and its model."""
        if request.content_type != "multipart/form-data":
            raise schemas.Breach(f"content-type is {request.content_type}")
        form = await request.post()
        digest = hashlib.sha256(form["file"].file.read()).hexdigest()
        return web.json_response({"text": f"{form['model']} {digest}"})

    async def behave(self, request, provider, body, text, answer):
        markers = {name for name, only in MARKER.findall(text) if only in ("", provider.name)}
        if self.queue:
            markers = {self.queue.pop(0)}
        if "silent" in markers:
            await asyncio.sleep(HOLD)
        for marker in markers & provider.failing.keys():
            return self.fail(provider.failing[marker])
        if "half" in markers:
            return await self.half(request)
        return await answer(request, provider, body, markers)

    def fail(self, failure):
        status, headers, body = failure
        if isinstance(body, str):
            return web.Response(status=status, headers=headers, text=body, content_type="text/html")
        return web.json_response(body, status=status, headers=headers)

    async def half(self, request):
        """Breaks off in the middle of a body whose length was announced."""
        response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "500"})
        await response.prepare(request)
        await response.write(b'{"id":"chatcmpl-1","object":"chat.completion","choices":[')
        request.transport.close()
        return response

    async def chat(self, request, provider, body, markers):
        answer = answers.compose(body, markers, provider.form.tool_ids)
        if body.get("stream"):
            return await self.stream(request, provider.form.chunks(answer, body), markers)
        return self.whole(provider.form.whole(answer, body), markers)

    async def complete(self, request, provider, body, markers):
        if body.get("stream"):
            return await self.stream(request, answers.completion_chunks(body), markers)
        return self.whole(answers.completion(body), markers)

    async def embed(self, request, provider, body, markers):
        """OpenAI and Azure answer as asked, unless contrary; the others know floats only."""
        as_base64 = provider in (OPENAI, AZURE) and body.get("encoding_format") == "base64"
        if "contrary" in markers:
            as_base64 = not as_base64
        return self.whole(provider.form.embedding(body, as_base64), markers)

    def whole(self, body, markers):
        headers = {"x-ratelimit-remaining-requests": "99", "x-request-id": "req_upstream"}
        if "cookie" in markers:
            headers["set-cookie"] = "provider=1"
        return web.Response(
            body=json.dumps(body, ensure_ascii=False).encode(), headers=headers, content_type="application/json"
        )

    async def stream(self, request, chunks, markers):
        headers = {"x-ratelimit-remaining-requests": "99"}
        frames = [
            event(chunk)
            for chunk in chunks
            if "no-finish" not in markers or not any(choice["finish_reason"] for choice in chunk["choices"])
        ]
        if "no-done" not in markers:
            frames.append(b"data: [DONE]\n\n")
        first = event(failures.refusal("The server had an error.", "server_error"))
        inside = event(failures.refusal("The engine died.", "server_error"))
        return await self.relay(request, frames, markers, 3, first, inside, headers)

    async def relay(self, request, frames, markers, turn, first, inside, headers):
        """Writes the frames; what goes wrong goes wrong before the first, or after the one at `turn`."""
        headers = {"content-type": "text/event-stream; charset=utf-8", **headers}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if "hold" in markers:
            await asyncio.wait_for(self.gate.wait(), HOLD)
        if "error-first" in markers:
            await write_in_pieces(response, first)
            return response
        for place, frame in enumerate(frames):
            await write_in_pieces(response, frame)
            if place == turn and "truncate" in markers:
                request.transport.close()
                return response
            if place == turn and "clean-cut" in markers:
                return response
            if place == turn and "error-inside" in markers:
                await write_in_pieces(response, inside)
                return response
            if place == turn and "pause" in markers:
                await asyncio.wait_for(self.gate.wait(), HOLD)
        return response


def event(payload):
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


async def write_in_pieces(response, frame):
    """Writes a frame in two pieces, cut inside its first wide character if it has one."""
    cut = next((place + 1 for place, byte in enumerate(frame) if byte > 127), len(frame) // 2)
    await response.write(frame[:cut])
    await asyncio.sleep(0)
    await response.write(frame[cut:])


def application():
    stand_in = StandIn()
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/control/reset", stand_in.reset)
    app.router.add_post("/control/next", stand_in.next)
    app.router.add_post("/control/release", stand_in.release)
    app.router.add_get("/control/breaches", stand_in.show_breaches)
    app.router.add_get("/control/requests", stand_in.show_requests)
    app.router.add_get("/control/notes", stand_in.show_notes)
    app.router.add_get("/control/service-account", stand_in.show_account)
    app.router.add_get("/control/exchanges", stand_in.count_exchanges)
    app.router.add_post("/oauth/token", stand_in.exchange)
    app.router.add_get("/control/cancelled", stand_in.await_cancelled)
    app.router.add_route("*", "/{path:.*}", stand_in.serve)
    return app


async def main(port):
    runner = web.AppRunner(application(), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(main(parser.parse_args().port))
