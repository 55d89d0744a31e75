"""What an OpenTelemetry collector gets: decoded by the official protobuf types from what the binary really sends."""

import datetime
import ipaddress
import signal
import socket
import ssl
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from conftest import Gateway, free_port
from conversation import user

PROMPT = "the word is sesame"
SECRETS = [PROMPT, "sesame", "client-key-1", "sk-upstream", "admin-token", "collector-secret"]
DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"
FIRST = "gen_ai.server.time_to_first_token"
NEXT = "gen_ai.server.time_per_output_token"
# As the conventions recommend them.
BUCKETS = {
    DURATION: [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92],
    TOKENS: [4**power for power in range(14)],
    FIRST: [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0],
    NEXT: [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5],
}


def plain(attributes):
    """Attributes as a dict; each may occur once."""
    assert len({pair.key for pair in attributes}) == len(attributes)
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


class Collector:
    """Takes pushes and keeps them."""

    def __init__(self):
        self.pushes = []
        pushes = self.pushes

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                pushes.append((self.path, dict(self.headers.items()), body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def requests(self, kind, path):
        for pushed, headers, body in list(self.pushes):
            assert headers["content-type"] == "application/x-protobuf"
            assert headers["x-collector-key"] == "collector-secret"
            if pushed == path:
                yield kind.FromString(body)

    def spans(self):
        found = []
        for push in self.requests(ExportTraceServiceRequest, "/v1/traces"):
            for resource in push.resource_spans:
                assert plain(resource.resource.attributes)["service.name"] == "under-test"
                for scope in resource.scope_spans:
                    assert scope.scope.name == "stagedoor"
                    found.extend(scope.spans)
        return found

    def metrics(self):
        """The totals of the last push, by name."""
        *_, last = self.requests(ExportMetricsServiceRequest, "/v1/metrics")
        (resource,) = last.resource_metrics
        (scope,) = resource.scope_metrics
        return {metric.name: metric for metric in scope.metrics}

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        paths = {path for path, _, _ in self.pushes}
        assert paths <= {"/v1/traces", "/v1/metrics"}
        for _, _, body in self.pushes:
            for secret in SECRETS:
                assert secret.encode() not in body, secret


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.stop()


def started(standin, tmp_path, port, interval="60s", **variables):
    variables = {"COLLECTOR_PORT": port, "INTERVAL": interval, **variables}
    return Gateway(standin, tmp_path / "log", "otel.yaml", **variables)


@pytest.fixture
def exporting(standin, collector, tmp_path):
    """Pushes only when it ends, so that a test sees everything at once."""
    gateway = started(standin, tmp_path, collector.port)
    yield gateway
    gateway.stop()


def end(gateway, within=10):
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(timeout=within) == 0


def ask(gateway, model, **options):
    with gateway.client() as client:
        return client.chat.completions.create(model=model, messages=user(PROMPT), **options)


def stream(gateway, model, **options):
    with gateway.client() as client:
        for _ in client.chat.completions.create(model=model, messages=user(PROMPT), stream=True, **options):
            pass


def tree(collector, tries=1):
    """The root span and its tries, of the only trace."""
    spans = collector.spans()
    assert len({span.trace_id for span in spans}) == 1
    (root,) = (span for span in spans if span.kind == Span.SPAN_KIND_SERVER)
    children = sorted((span for span in spans if span is not root), key=lambda span: span.start_time_unix_nano)
    assert len(children) == tries
    for child in children:
        assert child.kind == Span.SPAN_KIND_CLIENT
        assert child.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= child.start_time_unix_nano
        assert child.end_time_unix_nano <= root.end_time_unix_nano
    for span in spans:
        assert not span.events
    return root, children


def seconds(span):
    return (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def test_each_try_is_a_span_below_its_request(exporting, collector):
    ask(exporting, "both", max_tokens=7)
    end(exporting)
    root, (first, second, third) = tree(collector, tries=3)

    assert root.name == "chat simulated"
    assert root.parent_span_id == b""
    assert root.status.code == Status.STATUS_CODE_UNSET
    told = plain(root.attributes)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "simulated"
    assert told["gen_ai.request.model"] == "simulated"
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["gen_ai.usage.output_tokens"] > 0
    assert told["http.request.method"] == "POST"
    assert told["http.response.status_code"] == 200
    assert told["url.path"] == "/v1/chat/completions"
    assert told["stagedoor.backend"] == "shaky"
    assert told["stagedoor.pool"] == "both"
    assert told["stagedoor.caller"] == "app-1"
    assert told["stagedoor.outcome"] == "served"
    assert told["stagedoor.attempts"] == 3
    assert told["stagedoor.absorbed"] is True
    assert told["stagedoor.request.id"].startswith("req_")
    assert "error.type" not in told

    failures = [(first, "down", "overloaded", 503), (second, "shaky", "server_error", 500)]
    for number, (span, backend, failure, status) in enumerate(failures, start=1):
        assert span.name == "chat simulated"
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert span.status.message == failure
        told = plain(span.attributes)
        assert told["error.type"] == told["stagedoor.class"] == failure
        assert told["stagedoor.backend"] == backend
        assert told["stagedoor.outcome"] == "failed"
        assert told["stagedoor.attempt"] == number
        assert told["http.response.status_code"] == status
    assert third.status.code == Status.STATUS_CODE_UNSET
    told = plain(third.attributes)
    assert told["stagedoor.backend"] == "shaky"
    assert told["stagedoor.attempt"] == 3
    assert told["stagedoor.outcome"] == "served"
    assert told["stagedoor.absorbed"] is True
    assert told["gen_ai.usage.output_tokens"] > 0


def test_spans_of_a_stream_end_with_its_body(exporting, collector):
    stream(exporting, "slow")
    end(exporting)
    root, (attempt,) = tree(collector)
    for span in [root, attempt]:
        assert span.name == "chat known-model"
        assert seconds(span) > 0.5
        told = plain(span.attributes)
        assert told["gen_ai.request.stream"] is True
        assert 0.05 < told["gen_ai.response.time_to_first_chunk"] < seconds(span)
        assert told["gen_ai.usage.output_tokens"] > 0


def test_a_stream_that_breaks_is_an_error_on_both_spans(exporting, collector):
    with pytest.raises(openai.APIError):
        stream(exporting, "torn")
    end(exporting)
    root, (attempt,) = tree(collector)
    for span in [root, attempt]:
        assert span.status.code == Status.STATUS_CODE_ERROR
        told = plain(span.attributes)
        assert told["stagedoor.outcome"] == "truncated"
        assert told["error.type"] == told["stagedoor.class"] != ""


def test_a_network_backend_is_told_by_its_address(exporting, collector, standin):
    ask(exporting, "oai/gpt-4o")
    end(exporting)
    root, (attempt,) = tree(collector)
    told = plain(attempt.attributes)
    assert attempt.name == root.name == "chat gpt-4o"
    assert told["gen_ai.provider.name"] == "openai"
    assert told["server.address"] == "127.0.0.1"
    assert told["server.port"] == standin.port
    assert told["http.response.status_code"] == 200
    assert "server.address" not in plain(root.attributes)


def test_what_providers_say_of_a_prompt_is_not_exported(exporting, collector):
    for kind in ["server-error", "rate-limit", "bad-key", "no-model"]:
        with exporting.client() as client, pytest.raises(openai.APIStatusError):
            client.chat.completions.create(model="oai/gpt-4o", messages=user(f"{PROMPT} [{kind}@openai]"))
    end(exporting)
    spans = collector.spans()
    assert len(spans) >= 5
    for span in spans:
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert plain(span.attributes)["stagedoor.outcome"] == "failed"


def test_a_request_that_nobody_may_send_is_an_error_span_of_its_own(exporting, collector):
    with exporting.client(api_key="sesame") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="slow", messages=user(PROMPT))
    exporting.http.get(f"{exporting.url}/health").raise_for_status()
    end(exporting)
    (span,) = collector.spans()
    assert span.name == "POST"
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert plain(span.attributes)["error.type"] == "unauthenticated"


def test_the_trace_of_the_client_goes_on(exporting, collector):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    ask(exporting, "shaky", extra_headers={"traceparent": f"00-{trace}-{parent}-01", "tracestate": "vendor=1"})
    # It was decided elsewhere that these are not kept.
    ask(exporting, "shaky", extra_headers={"traceparent": f"00-{'c' * 32}-{parent}-00"})
    end(exporting)
    root, tries = tree(collector, tries=2)
    assert root.trace_id.hex() == trace
    assert root.parent_span_id.hex() == parent
    assert root.trace_state == "vendor=1"


def test_each_request_without_a_trace_begins_one_of_its_own(exporting, collector):
    for header in [{}, {"traceparent": "nonsense"}, {}]:
        ask(exporting, "shaky", extra_headers=header)
    end(exporting)
    roots = [span for span in collector.spans() if span.kind == Span.SPAN_KIND_SERVER]
    assert len({root.trace_id for root in roots}) == 3
    assert {root.parent_span_id for root in roots} == {b""}


def test_measures_are_named_and_counted_as_the_conventions_say(exporting, collector):
    ask(exporting, "slow", max_tokens=3)
    stream(exporting, "slow")
    ask(exporting, "slow/never-heard-of", max_tokens=3)
    with pytest.raises(openai.APIStatusError):
        ask(exporting, "down")
    with exporting.client() as client:
        client.embeddings.create(model="oai/text-embedding-3-small", input=PROMPT, encoding_format="float")
    end(exporting)
    metrics = collector.metrics()
    assert metrics.keys() == BUCKETS.keys()
    points = {}
    for name, metric in metrics.items():
        assert metric.unit == ("{token}" if name == TOKENS else "s")
        assert metric.description
        assert metric.histogram.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
        points[name] = [(plain(point.attributes), point) for point in metric.histogram.data_points]
        for _, point in points[name]:
            assert list(point.explicit_bounds) == BUCKETS[name]

    slow = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "simulated",
        "gen_ai.request.model": "known-model",
        "stagedoor.backend": "slow",
        "stagedoor.pool": "slow",
    }
    told = [(labels, point.count) for labels, point in points[DURATION]]
    assert (slow, 2) in told
    assert ({**slow, "gen_ai.request.model": "other"}, 1) in told
    failed = {**slow, "stagedoor.backend": "down", "stagedoor.pool": "down", "error.type": "overloaded"}
    assert [count for labels, count in told if labels.items() >= (failed.items() - slow.items())] == [1]
    embedded = [labels for labels, _ in told if labels["gen_ai.operation.name"] == "embeddings"]
    assert [labels["gen_ai.provider.name"] for labels in embedded] == ["openai"]
    assert len(told) == 4

    kinds = Counter(labels["gen_ai.token.type"] for labels, _ in points[TOKENS])
    assert kinds["input"] >= 2 and kinds["output"] >= 2
    assert ({**slow, "gen_ai.token.type": "output"}, 2) in [(labels, point.count) for labels, point in points[TOKENS]]

    # Only the stream says something about tokens.
    for name in [FIRST, NEXT]:
        ((labels, point),) = points[name]
        assert labels == slow
        assert point.count == 1
    assert 0.05 < points[FIRST][0][1].sum < 2
    assert 0.01 < points[NEXT][0][1].sum < 1


def test_pushes_come_while_it_runs(standin, collector, tmp_path):
    gateway = started(standin, tmp_path, collector.port, interval="100ms")
    try:
        ask(gateway, "shaky")
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up and {path for path, _, _ in collector.pushes} != {"/v1/traces", "/v1/metrics"}:
            time.sleep(0.02)
        assert {path for path, _, _ in collector.pushes} == {"/v1/traces", "/v1/metrics"}
    finally:
        gateway.stop()


def certified(path):
    """A certificate for 127.0.0.1 that vouches for itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "collector")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + secret)
    return path


def test_a_collector_is_reached_over_tls(standin, collector, tmp_path):
    pem = certified(tmp_path / "collector.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    collector.server.socket = context.wrap_socket(collector.server.socket, server_side=True)
    gateway = started(standin, tmp_path, collector.port, SCHEME="https", SSL_CERT_FILE=pem)
    try:
        ask(gateway, "shaky")
        end(gateway)
    finally:
        gateway.stop()
    assert len(collector.spans()) == 3
    assert DURATION in collector.metrics()


class Useless(NamedTuple):
    port: int
    dead: bool


class Slow(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(5)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(params=["dead", "hangs", "slow"])
def useless_collector(request):
    """A port where nobody listens, or where connections are taken and nothing is answered, ever or for long."""
    if request.param == "dead":
        yield Useless(free_port(), dead=True)
        return
    if request.param == "slow":
        with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield Useless(server.server_address[1], dead=False)
            server.shutdown()
        return
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        held = []

        def take():
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield Useless(listener.getsockname()[1], dead=False)
        for connection in held:
            connection.close()


def test_a_useless_collector_harms_nobody(standin, useless_collector, tmp_path):
    gateway = started(standin, tmp_path, useless_collector.port, interval="100ms")
    try:
        with gateway.client(timeout=10) as client:
            begun = time.monotonic()
            for _ in range(200):
                client.chat.completions.create(model="shaky", messages=user(PROMPT), max_tokens=1)
            # A push takes five seconds or forever: even if only one in ten waited for one, it would show.
            assert time.monotonic() - begun < 60
        stream(gateway, "shaky")
        end(gateway, within=15)
    finally:
        gateway.stop()
    log = (tmp_path / "log").read_text()
    assert PROMPT not in log and "collector-secret" not in log
    # What failed in a row is told once; what hangs has not failed yet.
    assert log.count("spans did not reach the collector") <= 1
    assert log.count("metrics did not reach the collector") <= 1
    if useless_collector.dead:
        assert "did not reach the collector" in log


def test_a_second_signal_does_not_wait_for_a_collector(standin, tmp_path):
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        gateway = started(standin, tmp_path, listener.getsockname()[1], interval="100ms")
        try:
            with gateway.client() as client:
                chunks = client.chat.completions.create(model="endless", messages=user(PROMPT), stream=True)
                next(iter(chunks))
                gateway.process.send_signal(signal.SIGTERM)
                give_up = time.monotonic() + 20
                while time.monotonic() < give_up and '"draining"' not in (tmp_path / "log").read_text():
                    time.sleep(0.02)
                gateway.process.send_signal(signal.SIGTERM)
                # It waits 60 s for the stream, and 10 s for the collector, where it waits at all.
                assert gateway.process.wait(timeout=8) == 1
        finally:
            gateway.stop()
