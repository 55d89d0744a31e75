"""The page of metrics, read by Prometheus's own parser, and the queries that ship with the gateway."""

import json
import os
import re
import shutil
import subprocess
import time

import pytest
import yaml

from operated import CLIENT, HERE, OPERATOR, OUTCOMES, READER, SECRETS, Metrics, Operated, bearer

SETTINGS_FOLDER = HERE.parents[1] / "settings"
DASHBOARD = SETTINGS_FOLDER / "grafana-dashboard.json"
ALERTS = SETTINGS_FOLDER / "prometheus-alerts.yaml"
ABSURD = 'absurd"\\\n{}model'
# Words of a query that are neither metrics nor labels.
FUNCTIONS = {"absent", "and", "by", "count", "group_left", "histogram_quantile", "increase", "on", "or", "rate", "sum", "unless", "vector"}
CLASSES = (
    "caller unsupported model_unknown credential billing rate_limited overloaded server_error socket timeout_connect "
    "timeout_head timeout_first_content timeout_idle timeout_total malformed crashed unauthenticated no_route saturated "
    "no_backend deadline cut"
).split()
# Values that labels may have, beside the numbers of `le`.
BACKENDS, POOLS = {"a", "b", "c", "gone"}, {"main", "single", "a", "b", "c", "gone"}
LABELS = {
    "route": {"none", "chat", "single", "embeddings", "by-model", "idle"},
    "pool": POOLS,
    "backend": BACKENDS,
    "model": {"model-a", "model-b", "model-c", "model-gone", "other"},
    "outcome": set(OUTCOMES),
    "class": set(CLASSES),
    "kind": {"prompt", "completion", "cached", "kept", "moved", "new", "requests", "tokens"},
    "condition": {"well", "unknown", "ailing", "starting", "half-open", "drained", "open", "failed"},
    "level": {"serving", "unknown", "degraded", "draining", "failing", "down"},
}


def chat(gateway, path="/v1/chat/completions", model="main", stream=False, headers=(), **more):
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}], **more}
    return gateway.http.post(gateway.url + path, headers=bearer(CLIENT) | dict(headers), json=body)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway that has had requests of every kind, good and absurd."""
    gateway = Operated(tmp_path_factory.mktemp("operated"))
    for number in range(60):
        chat(gateway, stream=number % 2 == 0)
        chat(gateway, "/single/v1/chat/completions", stream=number % 3 == 0)
        chat(gateway, "/any/v1/chat/completions", model="a")
    embeddings = {"model": "c", "input": "a text"}
    for _ in range(20):
        gateway.http.post(f"{gateway.url}/v1/embeddings", headers=bearer(CLIENT), json=embeddings)
        time.sleep(0.05)  # a circuit that has opened is half-open by then
    for _ in range(3):
        chat(gateway, "/any/v1/chat/completions", model="gone")
        chat(gateway, "/any/v1/chat/completions", model=ABSURD)
        chat(gateway, "/any/v1/chat/completions", model=f"a/{ABSURD}")
        chat(gateway, f"/v1/{ABSURD!r}")
        chat(gateway, headers={"x-request-id": "absurd-id", "x-session-id": "absurd-session"}, user="absurd-user")
        gateway.http.post(f"{gateway.url}/v1/chat/completions", headers=bearer("absurd-key"))
    gateway.http.get(f"{gateway.url}/metrics", headers=bearer("absurd-token"))
    gateway.settled()
    yield gateway
    alive = gateway.process.poll() is None
    gateway.stop()
    assert alive, "the gateway has died"


@pytest.fixture(scope="module")
def metrics(gateway):
    return gateway.settled()[1]


def test_the_page_has_the_type_that_prometheus_knows_and_is_not_kept(gateway):
    # What Prometheus 3 asks for.
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    for headers in [{}, {"accept": accept}]:
        reply = gateway.http.get(f"{gateway.url}/metrics", headers=bearer(READER) | headers)
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert reply.headers["cache-control"] == "no-store"


def test_only_those_who_may_look_see_it(gateway, tmp_path):
    def status(method="GET", **headers):
        return gateway.http.request(method, f"{gateway.url}/metrics", headers=headers).status_code

    assert [status(**bearer(token)) for token in [READER, OPERATOR, CLIENT, "wrong"]] == [200, 200, 401, 401]
    assert status() == 401
    assert status("POST", **bearer(READER)) == 405
    # Without tokens: from this machine only.
    settings = tmp_path / "open.yaml"
    settings.write_text("server: { port: 0, workers: 1 }\nbackends: [{ name: s, type: simulated }]\n")
    unlocked = Operated(tmp_path, settings)
    try:
        url = f"{unlocked.url}/metrics"
        assert "stagedoor_build_info" in unlocked.http.get(url).text
        assert unlocked.http.get(url, headers={"host": "elsewhere.example"}).status_code == 401
        assert unlocked.http.get(url, headers={"x-forwarded-for": "10.0.0.1"}).status_code == 401
    finally:
        unlocked.stop()


def test_every_family_has_help_a_type_and_a_name_by_the_rules(metrics):
    assert metrics.families
    for family in metrics.families.values():
        assert family.documentation.endswith("."), family
        assert family.type in {"counter", "gauge", "histogram"}, family
        assert re.fullmatch(r"stagedoor_[a-z_]+|process_[a-z_]+", family.name), family
        assert not re.search(r"(^|_)(ms|milliseconds|minutes|kb|mb|kib|count|bucket|sum|total)$", family.name), family
        assert family.type != "histogram" or family.name.endswith("_seconds"), family
    # The parser takes the suffix of counters off: on the page every one has it.
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics.text, re.MULTILINE))
    assert all((kind == "counter") == name.endswith("_total") for name, kind in kinds.items())


def test_no_series_is_told_twice_and_none_is_negative(metrics):
    series = [(sample.name, frozenset(sample.labels.items())) for sample in metrics.samples]
    assert len(series) == len(set(series))
    assert all(sample.value >= 0 for sample in metrics.samples)


def test_histograms_are_whole_and_have_the_same_buckets(metrics):
    histograms = {}
    for family in metrics.families.values():
        if family.type == "histogram":
            assert family.samples, f"{family.name} is empty"
        for sample in family.samples if family.type == "histogram" else []:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            parts = histograms.setdefault((family.name, frozenset(labels.items())), {"buckets": []})
            if sample.name.endswith("_bucket"):
                parts["buckets"].append((float(sample.labels["le"]), sample.value))
            else:
                parts[sample.name.removeprefix(family.name)] = sample.value
    bounds = {tuple(bound for bound, _ in parts["buckets"]) for parts in histograms.values()}
    (bounds,) = bounds
    assert bounds[0] == 0.0016 and bounds[-1] == float("inf") and list(bounds) == sorted(bounds)
    assert all(after == pytest.approx(2 * before) for before, after in zip(bounds, bounds[1:-1]))
    for name, parts in histograms.items():
        counts = [count for _, count in parts["buckets"]]
        assert counts == sorted(counts) and counts[-1] == parts["_count"] > 0, name
        # Whatever is in a bucket is not above its bound.
        assert parts["_sum"] >= 0 and (counts[-2] < counts[-1] or parts["_sum"] <= counts[-1] * bounds[-2]), name


def test_labels_come_from_the_configuration_and_from_closed_lists_only(metrics):
    for sample in metrics.samples:
        for name, value in sample.labels.items():
            if name in {"version", "sha256", "le"}:
                assert re.fullmatch(r"[0-9a-f.]+|\+Inf|[0-9.]+", value), sample
            else:
                assert value in LABELS[name], sample


def test_nothing_of_requests_and_no_secret_is_on_the_page(metrics):
    assert "absurd" not in metrics.text
    for secret in SECRETS:
        assert secret not in metrics.text


def test_each_subject_has_its_numbers(metrics):
    assert metrics.sum("stagedoor_requests_total", route="chat", outcome="served") > 40
    assert metrics.sum("stagedoor_requests_total", route="none", outcome="failed") == 6
    assert metrics.sum("stagedoor_request_failures_total", route="none", **{"class": "unauthenticated"}) == 3
    assert metrics.sum("stagedoor_request_failures_total", route="none", **{"class": "no_route"}) == 3
    assert metrics.sum("stagedoor_client_errors_total", route="none") == 6
    # Each of three requests has tried twice.
    assert metrics.sum("stagedoor_attempt_failures_total", backend="gone", **{"class": "socket"}) == 6
    assert metrics.sum("stagedoor_tokens_total", pool="main", kind="completion") > 100
    assert metrics.sum("stagedoor_request_duration_seconds_count", route="embeddings") >= 3
    assert metrics.sum("stagedoor_inter_chunk_gap_seconds_count", backend="b") > 10
    assert metrics.sum("stagedoor_permits_limit") == 4, "only one backend has a limit"
    assert metrics.sum("stagedoor_workers") == 2 and metrics.sum("stagedoor_late_workers") == 0
    assert 0 < metrics.sum("process_resident_memory_bytes") < 4e9
    assert [s.labels["level"] for s in metrics.of("stagedoor_verdict")] and metrics.sum("stagedoor_verdict") == 1
    assert metrics.sum("stagedoor_backend_condition") == len(BACKENDS)
    assert not metrics.of("stagedoor_requests_total", route="idle", outcome="served")[0].value
    # Pools of one that nobody has asked are left out; of configured ones everything is there from the start.
    assert {s.labels["pool"] for s in metrics.of("stagedoor_pool_requests_total")} == {"main", "single", "a", "c", "gone", "b"}


def test_counters_only_grow(gateway, metrics):
    counters = [family.name + "_total" for family in metrics.families.values() if family.type == "counter"]
    chat(gateway)
    chat(gateway, "/single/v1/chat/completions", stream=True)
    after = gateway.settled()[1]
    for before in metrics.samples:
        if before.name in counters or before.name.endswith(("_bucket", "_count", "_sum")):
            (now,) = [s for s in after.of(before.name, **before.labels) if s.labels == before.labels]
            assert now.value >= before.value, before
    assert after.sum("stagedoor_requests_total") == metrics.sum("stagedoor_requests_total") + 2
    assert after.sum("process_start_time_seconds") == metrics.sum("process_start_time_seconds")


def test_a_clients_error_is_one_also_when_its_stream_had_begun_with_comments(tmp_path):
    settings = tmp_path / "late.yaml"
    settings.write_text("""
server: { port: 0, workers: 1 }
backends:
  - name: pool
    type: pool
    strategy: weighted
    backends: [{ name: slow, weight: 1 }, { name: strict, weight: 0 }]
  - name: slow
    type: simulated
    config: { timeout: 200ms, keepAlive: 20ms, faults: [{ kind: slow-head, after: 5s, probability: 1 }] }
  - name: strict
    type: simulated
    config: { faults: [{ kind: status, status: 400, probability: 1 }] }
""")
    late = Operated(tmp_path, settings)
    try:
        reply = chat(late, model="pool", stream=True)
        assert reply.status_code == 200 and reply.text.startswith(":") and '"error"' in reply.text
        metrics = Metrics(late.http.get(f"{late.url}/metrics").text)
        assert metrics.sum("stagedoor_requests_total", outcome="failed") == 1
        assert metrics.sum("stagedoor_request_failures_total", **{"class": "caller"}) == 1
        assert metrics.sum("stagedoor_client_errors_total") == 1
    finally:
        late.stop()


def test_a_route_with_the_name_of_what_has_none_is_told_with_it(tmp_path):
    settings = tmp_path / "none.yaml"
    route = "{ name: none, path: /v1/chat/completions, backend: s }"
    settings.write_text(f"server: {{ port: 0 }}\nbackends: [{{ name: s, type: simulated }}]\nroutes: [{route}]\n")
    gateway = Operated(tmp_path, settings)
    try:
        assert [chat(gateway, path).status_code for path in ["/v1/chat/completions", "/v1/nothing"]] == [200, 404]
        metrics = Metrics(gateway.http.get(f"{gateway.url}/metrics").text)
        counts = {s.labels["outcome"]: s.value for s in metrics.of("stagedoor_requests_total", route="none")}
        assert counts == {"served": 1, "failed": 1, "cancelled": 0, "truncated": 0, "cut": 0}
        assert len(metrics.of("stagedoor_requests_total")) == len(OUTCOMES)
    finally:
        gateway.stop()


def test_the_page_is_small_with_two_hundred_backends(tmp_path):
    names = [f"b{number}" for number in range(200)]
    backends = "".join(f"  - {{ name: {name}, type: simulated }}\n" for name in names)
    members = ", ".join(f"{{ name: {name} }}" for name in names)
    settings = tmp_path / "many.yaml"
    settings.write_text(
        f"server: {{ port: 0, workers: 2 }}\nbackends:\n  - {{ name: all, type: pool, backends: [{members}] }}\n{backends}"
    )
    many = Operated(tmp_path, settings)
    try:
        page = many.http.get(f"{many.url}/metrics").text
        metrics = Metrics(page)
        assert len(metrics.of("stagedoor_backend_up")) == 200
        assert not metrics.of("stagedoor_pool_requests_total", pool="b7")
        assert len(metrics.samples) < 6_000 and len(page) < 500_000
    finally:
        many.stop()


def dashboard_queries():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], target["legendFormat"]


def alert_queries():
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values())


def used(query):
    """The metrics of a query with the labels that it wants each to have, and the labels that it names elsewhere."""
    metrics, elsewhere = [], set()
    for name, selector in re.findall(r"\b((?:stagedoor|process|up)(?:_[a-z_]+)?)\b(\{[^}]*\})?", query):
        metrics.append((name, set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", selector))))
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", query)
    for labels in re.findall(r"\b(?:by|on|without|ignoring|group_left)\s*\(([^()]*)\)", rest):
        elsewhere |= set(re.findall(r"[a-z_]+", labels))
    words = set(re.findall(r"\b[a-z_]+\b", re.sub(r"\b\d[\d.e]*\b", " ", rest)))
    unknown = words - FUNCTIONS - {name for name, _ in metrics} - elsewhere
    assert not unknown, (query, unknown)
    return metrics, elsewhere


@pytest.mark.parametrize("queries", [dashboard_queries, alert_queries], ids=["dashboard", "alerts"])
def test_every_metric_and_label_of_a_query_that_ships_exists(metrics, queries):
    names = metrics.names() | {"up": set()}
    # What Prometheus adds to each series.
    added = {"job", "instance"}
    # No member of these settings says anything about rate limits.
    names["stagedoor_rate_limit_remaining"] = names["stagedoor_rate_limit_ceiling"] = {"backend", "kind"}
    count = 0
    for title, query, text in queries():
        wanted, elsewhere = used(query)
        assert wanted, title
        for name, labels in wanted:
            assert name in names, (title, name)
            assert labels <= names[name] | added, (title, name, labels)
        known = set.union(added, *(names[name] for name, _ in wanted))
        # After a sum only its labels are left.
        left = elsewhere if re.match(r"\s*(sum|histogram_quantile)\b", query) and elsewhere else known
        told = set(re.findall(r"\$labels\.([a-z_]+)|\{\{([a-z0-9_]+)\}\}", text))
        told = {name for pair in told for name in pair if name}
        assert elsewhere <= known and told <= left, (title, elsewhere, told)
        count += 1
    assert count > 10


def test_the_readme_names_every_metric_and_no_other(metrics):
    readme = (HERE.parents[1] / "README.md").read_text()
    table = readme.split("### Metrics\n")[1].split("\n| metrics")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    kinds = re.findall(r"^# TYPE stagedoor_(\S+)", metrics.text, re.MULTILINE)
    assert named == set(kinds)


def test_the_dashboard_can_be_imported(metrics):
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}" and panel["targets"], panel["title"]
    for name in ["instance", "pool", "backend"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables[name]["definition"]).groups()
        assert label in metrics.names()[metric] | {"instance"}


is_without = shutil.which("promtool") is None and "CI" not in os.environ
needs_promtool = pytest.mark.skipif(is_without, reason="promtool is not installed")


@needs_promtool
def test_promtool_finds_no_fault_with_the_page(metrics):
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics.text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@needs_promtool
def test_promtool_takes_the_alerts_and_every_query_of_the_dashboard(tmp_path):
    expressions = [query for _, query, _ in dashboard_queries()]
    plain = [re.sub(r"\$__rate_interval", "5m", re.sub(r"\$(instance|pool|backend)", ".*", query)) for query in expressions]
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(plain)]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for path in [ALERTS, file]:
        checked = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then():
    checked = subprocess.run(["promtool", "test", "rules", str(HERE / "alerts_test.yaml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
