"""The operator's API does what its own description says, whatever is asked of it."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest

from operated import CLIENT, OPERATOR, READER, Operated, bearer

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,positive_data_acceptance,unsupported_method,allow_header_conformance"
)
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
# It has no end: a test of its own reads a part of it.
STREAM = "/admin/api/events"
SESSION = "/admin/api/session"


@contextlib.contextmanager
def running(folder):
    gateway = Operated(folder)
    yield gateway
    alive = gateway.process.poll() is None
    gateway.stop()
    assert alive, "the gateway has died"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway with something to tell: requests that went well and requests that did not."""
    with running(tmp_path_factory.mktemp("operated")) as gateway:
        for number in range(30):
            body = {"model": "main", "stream": number % 2 == 0, "messages": [{"role": "user", "content": "hi"}]}
            gateway.http.post(f"{gateway.url}/v1/chat/completions", headers=bearer(CLIENT), json=body)
            gateway.http.post(f"{gateway.url}/single/v1/chat/completions", headers=bearer(CLIENT), json=body)
        gateway.settled()
        yield gateway


def explore(gateway, *options):
    command = [str(SCHEMATHESIS), "run", f"{gateway.url}/admin/api/openapi.json", "--no-color", "--checks", CHECKS]
    command += ["-H", f"authorization: Bearer {OPERATOR}", "--seed", "1", "--continue-on-failure"]
    command += ["--generation-database", "none", "--warnings", "off", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=gateway.log.parent)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def described(gateway, name):
    """A validator of one schema of the description."""
    description = gateway.admin("GET", "/openapi.json").json()
    return jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": description["components"]})


def test_the_live_stream_holds_what_is_described(gateway):
    names = {"state": "State", "requests": "Requests", "journal": "Event"}
    validators = {event: described(gateway, name) for event, name in names.items()}
    gateway.admin("POST", "/backends/a/reset").raise_for_status()
    seen = dict.fromkeys(names, 0)
    with gateway.http.stream("GET", f"{gateway.url}{STREAM}", headers=bearer(READER)) as reply:
        assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        event = None
        for line in reply.iter_lines():
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("data: "):
                validators[event].validate(json.loads(line.removeprefix("data: ")))
                seen[event] += 1
            if seen["state"] >= 3:
                break
    assert all(seen.values()), seen


def test_what_is_in_flight_and_what_a_restart_did_is_as_described(gateway):
    slow = {"model": "single", "stream": True, "messages": [{"role": "user", "content": "a b c d e f g h i j k l m n o p"}]}
    with gateway.http.stream(
        "POST", f"{gateway.url}/single/v1/chat/completions", headers=bearer(CLIENT) | {"x-request-id": "watched"}, json=slow
    ) as reply:
        story = gateway.admin("GET", "/requests/watched").json()
        cancelled = gateway.admin("DELETE", "/requests/watched")
        reply.read()
    described(gateway, "Told").validate(story)
    assert cancelled.status_code in {200, 404}
    restarted = gateway.admin("POST", "/backends/b/restart?wait=1").json()
    described(gateway, "DrainedRestart").validate(restarted)
    assert {"id", "backend", "generation", "in_flight_at_start", "completed", "moved", "cut", "workers"} <= restarted.keys()


@pytest.mark.parametrize("path", ["/session", "/backends/a/test"])
def test_a_body_that_is_too_large_is_refused_in_the_form_of_all_errors(gateway, path):
    reply = gateway.admin("POST", path, content=b" " * 300_000)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("path", ["/nothing", "/backends/a/nothing", "/../nothing"])
def test_paths_that_do_not_exist_never_reach_the_side_of_clients(gateway, path):
    before = gateway.state()["routes"]
    reply = gateway.admin("POST", path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_path")
    assert gateway.state()["routes"] == before


@pytest.mark.timeout(120)
def test_the_api_answers_as_it_is_described(gateway):
    explore(gateway, "--exclude-path", STREAM, "--exclude-path", SESSION, "--max-examples", "12")


@pytest.mark.timeout(120)
def test_sessions_are_answered_as_they_are_described(tmp_path):
    # Wrong tokens are answered slowly, and soon not looked at: the right one, too.
    with running(tmp_path) as gateway:
        explore(gateway, "--include-path", SESSION, "--max-examples", "12", "--phases", "coverage,fuzzing")
