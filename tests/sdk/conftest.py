"""Starts the stand-in and the gateway on free ports and gives the tests their clients."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

HERE = Path(__file__).resolve().parent
BINARY = os.environ.get("STAGEDOOR_BIN", str(HERE.parents[1] / "target/debug/stagedoor"))
KEY = "client-key-1"
LIKE_OPENAI = ["oai", "az", "az1", "mis", "llama", "groq", "together"]
TRANSLATED = ["ant", "gem", "vertex"]
BACKENDS = [*LIKE_OPENAI, *TRANSLATED]

os.environ["NO_PROXY"] = "127.0.0.1"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class StandIn:
    def __init__(self):
        command = [sys.executable, str(HERE / "standin.py")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def get(self, path):
        reply = self.http.get(path)
        reply.raise_for_status()
        return reply.json()

    def reset(self):
        self.http.post("/control/reset").raise_for_status()

    def next(self, *behaviours):
        """The next provider requests behave like this, whatever their markers say."""
        self.http.post("/control/next", json=behaviours).raise_for_status()

    def release(self):
        """Lets `[hold]` and `[pause]` go on."""
        self.http.post("/control/release").raise_for_status()

    def await_cancelled(self, count=1):
        return self.get(f"/control/cancelled?count={count}")

    def requests(self):
        return self.get("/control/requests")

    def notes(self):
        return self.get("/control/notes")

    def body(self):
        """The body of the only provider request of this test."""
        (request,) = self.requests()
        return request["body"]

    def stop(self):
        self.process.kill()
        self.process.wait()


class Gateway:
    """A gateway of its own port. Its clients read no certificates, which would take most of the time of a test."""

    def __init__(self, standin, log, settings="gateway.yaml", **variables):
        self.log, self.http = log, standin.http
        ports = {"GATEWAY_PORT": 0, "STANDIN_PORT": standin.port, "DEAD_PORT": free_port(), **variables}
        account = log.with_name("service-account.json")
        account.write_text(json.dumps(standin.get("/control/service-account")))
        environment = {
            **os.environ,
            **{name: str(port) for name, port in ports.items()},
            "SERVICE_ACCOUNT": str(account),
        }
        command = [BINARY, "--config", str(HERE / settings)]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        self.await_ready()

    def await_ready(self):
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up and self.process.poll() is None:
            address = re.search(
                r'"message":"listening","address":"([0-9.:]+)"', Path(self.log).read_text(errors="replace")
            )
            if address:
                self.url = f"http://{address[1]}"
                assert self.http.get(f"{self.url}/ready").status_code == 200
                return
            time.sleep(0.005)
        self.stop()
        pytest.fail(f"the gateway did not become ready:\n{Path(self.log).read_text(errors='replace')[-4000:]}")

    def client(self, **options):
        return openai.OpenAI(http_client=openai.DefaultHttpxClient(verify=False), **self.options(options))

    def async_client(self, **options):
        return openai.AsyncOpenAI(http_client=openai.DefaultAsyncHttpxClient(verify=False), **self.options(options))

    def options(self, options):
        strict = {"_strict_response_validation": True, "max_retries": 0, "timeout": 30}
        return {"base_url": f"{self.url}/v1", "api_key": KEY, **strict, **options}

    def reset(self):
        """Closes the circuits that the failures of earlier tests have opened."""
        headers = {"authorization": "Bearer admin-token"}
        for name in [*BACKENDS, "ant-new", "hasty", "patient", "dead"]:
            self.http.post(f"{self.url}/admin/api/backends/{name}/reset", headers=headers).raise_for_status()

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def running_standin():
    standin = StandIn()
    yield standin
    standin.stop()


@pytest.fixture(scope="session")
def running_gateway(running_standin, tmp_path_factory):
    gateway = Gateway(running_standin, tmp_path_factory.mktemp("gateway") / "log")
    yield gateway
    gateway.stop()


@pytest.fixture
def standin(running_standin):
    """A stand-in without memory; the test fails if it saw a request that a provider would not have been sent."""
    running_standin.reset()
    yield running_standin
    breaches = running_standin.get("/control/breaches")
    running_standin.reset()
    assert breaches == []


@pytest.fixture
def gateway(standin, running_gateway):
    """The shared gateway, for tests after which every backend is as healthy as before."""
    running_gateway.reset()
    yield running_gateway
    assert running_gateway.process.poll() is None, "the gateway has died"


@pytest.fixture
def fresh_gateway(standin, tmp_path):
    """A gateway of its own, for tests in which backends fail and are tried again."""
    gateway = Gateway(standin, tmp_path / "log")
    yield gateway
    alive = gateway.process.poll() is None
    gateway.stop()
    assert alive, "the gateway has died"


@pytest.fixture(scope="session")
def running_worn_gateway(running_standin, tmp_path_factory):
    gateway = Gateway(running_standin, tmp_path_factory.mktemp("worn") / "log")
    yield gateway
    gateway.stop()


@pytest.fixture
def worn_gateway(standin, running_worn_gateway):
    """A gateway whose backends have failed before, for failures of which nothing is expected but their tale."""
    running_worn_gateway.reset()
    yield running_worn_gateway
    assert running_worn_gateway.process.poll() is None, "the gateway has died"


@pytest.fixture
def client(gateway):
    with gateway.client() as client:
        yield client


@pytest.fixture
async def async_client(gateway):
    async with gateway.async_client() as client:
        yield client


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param
