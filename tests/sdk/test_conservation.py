"""After any amount of trouble every request has ended once, and state, metrics and log tell the same of it."""

import asyncio
import collections
import functools
import random
import time

import httpx
import pytest

from operated import CLIENT, OUTCOMES, Operated, bearer

# At least so many.
REQUESTS = 700
AT_ONCE = 24
SEED = 20_261_129
PATHS = {
    "chat": "/v1/chat/completions",
    "single": "/single/v1/chat/completions",
    "embeddings": "/v1/embeddings",
    "by-model": "/any/v1/chat/completions",
}
MODELS = {"chat": ["main", "model-a"], "single": ["single"], "embeddings": ["c"], "by-model": ["a", "b", "c", "gone", "main"]}

# What goes wrong with the backends, by its class; whether a limit of time is met depends on the moment.
CLASSES = {
    *("caller", "credential", "crashed", "malformed", "model_unknown"),
    *("overloaded", "rate_limited", "server_error", "socket"),
}


@pytest.fixture
def gateway(tmp_path):
    gateway = Operated(tmp_path)
    yield gateway
    alive = gateway.process.poll() is None
    gateway.stop()
    assert alive, "the gateway has died"


class Clients:
    """Asks for everything at once and keeps count of what it has asked for, by route."""

    def __init__(self, gateway):
        self.gateway, self.draw = gateway, random.Random(SEED)
        # By id: the route.
        self.sent = {}
        # Ids of those that their client left, perhaps before the gateway had heard of them.
        self.left = set()

    async def run(self):
        limits = httpx.Limits(max_connections=AT_ONCE * 2)
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=30, limits=limits) as self.http:
            operating = asyncio.create_task(self.operate())

            async def one():
                while len(self.sent) < REQUESTS or not operating.done():
                    await self.ask()

            await asyncio.gather(*(one() for _ in range(AT_ONCE)), operating)

    async def ask(self):
        kind = self.draw.random()
        if kind < 0.12:
            return await self.refused()
        route = self.draw.choice(list(PATHS))
        body = {"model": self.draw.choice(MODELS[route]), "stream": kind < 0.6 and route != "embeddings"}
        if route == "embeddings":
            body["input"] = "a text"
        else:
            # Few conversations, so that some of them are kept with their member.
            body["messages"] = [{"role": "user", "content": f"question {self.draw.randrange(40)}"}]
        await self.send(route, PATHS[route], json=body, leaves=self.draw.random() < 0.2)

    async def refused(self):
        """What never reaches a backend. Its body may not be read: the connection is not used again."""
        send = functools.partial(self.send, closes=True)
        wrong = self.draw.randrange(6)
        good = {"model": "main", "messages": [{"role": "user", "content": "hi"}]}
        if wrong == 0:
            await send(None, PATHS["chat"], json=good, key="a-wrong-key")
        elif wrong == 1:
            await send(None, f"/v1/never/heard/of/{self.draw.random()}", json=good)
        elif wrong == 2:
            await send(None, PATHS["chat"], method="GET")
        elif wrong == 3:
            await send("chat", PATHS["chat"], content=b'{"model": "main", "messages": [', kind="application/json")
        elif wrong == 4:
            await send("single", PATHS["single"], content=b"x" * (65 << 10), kind="application/json")
        else:
            await send("by-model", PATHS["by-model"], content=b"{}", kind="text/plain")

    async def send(self, route, path, method="POST", key=CLIENT, kind=None, leaves=False, closes=False, **body):
        headers = bearer(key) | ({"content-type": kind} if kind else {}) | ({"connection": "close"} if closes else {})
        id = headers["x-request-id"] = f"r-{len(self.sent)}"
        self.sent[id] = route
        try:
            async with asyncio.timeout(self.draw.uniform(0.01, 0.12) if leaves else None):
                async with self.http.stream(method, path, headers=headers, **body) as reply:
                    async for _ in reply.aiter_raw():
                        pass
        except TimeoutError:
            self.left.add(id)
        except httpx.HTTPError as error:
            # A refused body may be answered while it is still on its way.
            assert closes, (id, error)

    async def operate(self):
        """Restarts, drains, test prompts and ended requests, beside the traffic."""
        admin = {"headers": bearer("admin-token-of-the-tests")}
        backends = "/admin/api/backends"
        for number in range(12):
            await asyncio.sleep(0.25)
            name = "abc"[number % 3]
            await self.http.post(f"{backends}/{name}/restart?deadline=20ms", **admin)
            await self.http.post(f"{backends}/{name}/test", json={"stream": number % 2 == 0}, **admin)
            for id in list(self.sent)[-AT_ONCE:][: AT_ONCE // 3]:
                await self.http.delete(f"/admin/api/requests/{id}", **admin)
            if number == 5:
                await self.http.post(f"{backends}/a/drain?deadline=30ms", **admin)
                await asyncio.sleep(0.2)
                await self.http.post(f"{backends}/a/resume", **admin)
            try:
                # An operator who does not wait for the answer.
                async with asyncio.timeout(0.05):
                    await self.http.post(f"{backends}/{name}/test", json={"stream": True}, **admin)
            except TimeoutError:
                pass


@pytest.mark.timeout(120)
async def test_state_metrics_log_and_clients_agree_on_every_request(gateway):
    clients = Clients(gateway)
    await clients.run()
    state, metrics = gateway.settled()
    routes = {route["name"]: route for route in state["routes"]}
    # Lines are written a moment after they are counted.
    for _ in range(100):
        log = gateway.lines("access")
        if len(log) >= sum(route["requests"] for route in routes.values()):
            break
        time.sleep(0.05)

    told = {line["request"]["request_id"]: line["request"].get("route") for line in log}
    assert len(told) == len(log), "a request is told of twice"
    assert told.keys() - clients.sent.keys() == set() and clients.sent.keys() - told.keys() <= clients.left
    assert all(route == clients.sent[id] for id, route in told.items())
    counted = collections.Counter(told.values())
    assert {name: route["requests"] for name, route in routes.items() if route["requests"]} == counted
    logged = collections.Counter((line["request"].get("route"), line["request"]["outcome"]) for line in log)
    for name, route in routes.items():
        label = name or "none"
        assert route["requests"] == sum(route["outcomes"].values()), name
        for outcome in OUTCOMES:
            count = route["outcomes"][outcome]
            assert metrics.sum("stagedoor_requests_total", route=label, outcome=outcome) == count, (name, outcome)
            assert logged[name, outcome] == count, (name, outcome)
        classes = {s.labels["class"]: s.value for s in metrics.of("stagedoor_request_failures_total", route=label)}
        assert classes == route["failures"]
        logged_classes = [line["request"].get("class") for line in log if line["request"].get("route") == name]
        assert collections.Counter(filter(None, logged_classes)) == route["failures"]
        assert metrics.sum("stagedoor_client_errors_total", route=label) == route["client_errors"]
        served = metrics.sum("stagedoor_request_duration_seconds_count", route=label)
        assert served == route["outcomes"]["served"]

    logged = collections.Counter((line["request"].get("pool"), line["request"]["outcome"]) for line in log)
    for pool in state["pools"]:
        name = pool["name"]
        assert pool["requests"] == sum(pool["outcomes"].values()), pool
        for outcome in OUTCOMES:
            count = pool["outcomes"][outcome]
            assert metrics.sum("stagedoor_pool_requests_total", pool=name, outcome=outcome) == count, (name, outcome)
            # The pools of one have test prompts and standby checks besides, which no client has sent.
            assert logged[name, outcome] == count or (pool["implicit"] and logged[name, outcome] < count), (name, outcome)
        assert metrics.sum("stagedoor_absorbed_total", pool=name) == pool["absorbed"]
        assert metrics.sum("stagedoor_refused_total", pool=name) == pool["refused"]
    everywhere = collections.Counter(line["request"]["outcome"] for line in log if "pool" not in line["request"])
    assert set(everywhere) == {"failed"}, "what has no pool was refused"

    for backend in state["backends"]:
        totals = backend["totals"]
        assert totals["attempts"] == sum(totals[outcome] for outcome in OUTCOMES), totals
        assert sum(totals["failures"].values()) == totals["failed"] + totals["truncated"] + totals["retried"], totals
        members = [m for pool in state["pools"] for m in pool["members"] if m["backend"] == backend["name"]]
        for key in ["attempts", *OUTCOMES, "retried", "bounced", "moved", "prompt_tokens", "completion_tokens"]:
            assert sum(member[key] for member in members) == totals[key], key
        for outcome in OUTCOMES:
            count = metrics.sum("stagedoor_attempts_total", backend=backend["name"], outcome=outcome)
            assert count == totals[outcome], (backend["name"], outcome)
        duration = metrics.sum("stagedoor_attempt_duration_seconds_count", backend=backend["name"])
        assert duration == totals["attempts"]
        for kind in ["prompt", "completion", "cached"]:
            count = metrics.sum("stagedoor_tokens_total", backend=backend["name"], kind=kind)
            assert count == totals[f"{kind}_tokens"]
    # Every way to fail and to end has been seen, else the test proves little.
    failures = set().union(*(backend["totals"]["failures"] for backend in state["backends"]))
    assert failures >= CLASSES, CLASSES - failures
    for outcome in OUTCOMES:
        assert metrics.sum("stagedoor_requests_total", outcome=outcome) > 0, outcome
        assert metrics.sum("stagedoor_attempts_total", outcome=outcome) > 0, outcome
    assert metrics.sum("stagedoor_absorbed_total") > 0 and metrics.sum("stagedoor_crashes_total") > 0
