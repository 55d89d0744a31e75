"""Measures the gateway against nginx `proxy_pass` and against the upstream itself, in one run.

Each round starts every process afresh and visits all measures, and within each of them all lanes, so that a drift of
the machine or the luck of one process's memory layout meets every lane alike. The process under test has one core,
the mock upstream and the load generator share another. Judged are medians of the ratios within each round, and for growth
and memory of the gateway's own figures.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
OUT = REPO / "target/bench"
WORK = OUT / "work"
PEER = OUT / "release/stagedoor-bench"
NGINX = os.environ.get("NGINX", "nginx")
GATEWAY = pathlib.Path(os.environ.get("STAGEDOOR_BIN", REPO / "target/dist/stagedoor"))
TEST_CPU, LOAD_CPU = (int(c) for c in os.environ.get("BENCH_CPUS", "0,1").split(","))
MANY = 200  # backends in the big pool
FORMATS = ("anthropic", "gemini")  # upstreams of the translating lanes
# With 2m nginx keeps every body in memory; 16k is its own default, beyond which it writes bodies to a file.
BODY_BUFFER = os.environ.get("NGINX_BODY_BUFFER", "2m")
STUCK = 20  # readers of the event stream that never read
PAGE_IS_OPEN = False  # whether every gateway has a reader of the event stream


class Void(Exception):
    """Something failed, so no figure of this run can be trusted."""


# ---- processes ------------------------------------------------------------------------------------------------------


def spawn(cpu, name, command, **more):
    """Starts a process on one core; it cannot outlive this one."""
    # Neither a proxy nor settings of the user's own may slip in.
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("STAGEDOOR")}
    log = open(WORK / f"{name}.log", "ab")
    more = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL, "cwd": WORK, "env": env} | more
    pinned = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(cpu), *map(str, command)]
    return subprocess.Popen(pinned, **more)


def stop(process, how=signal.SIGTERM):
    process.send_signal(how)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, path, process, name):
    """Waits until the process answers; nginx need only answer at all."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.02)
    raise Void(f"{name} does not serve; its last words:\n{tail(name)}")


def tail(name):
    return (WORK / f"{name}.log").read_text(errors="replace")[-2000:]


class Lane:
    """One way to the upstream: where to connect, and which process to watch (0: none)."""

    def __init__(self, name, pid, port, stream_port=None):
        self.name, self.pid, self.port, self.stream_port = name, pid, port, stream_port or port


@contextlib.contextmanager
def fleet(names):
    """The mock and fresh lanes in front of it, by name."""
    with contextlib.ExitStack() as stack:
        mock = spawn(LOAD_CPU, "mock", [PEER, "mock", "--ports", MANY], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(stop, mock)
        ports = json.loads(mock.stdout.readline())
        lanes = []
        for name in names:
            if name == "direct":
                lanes.append(Lane(name, 0, ports[0]))
            elif name.startswith("nginx"):
                lanes.append(start_nginx(stack, name, ports))
            else:
                lanes.append(start_gateway(stack, name, ports))
        yield lanes


def start_nginx(stack, name, ports):
    ports = ports if "many" in name else ports[:1]
    listen, stream_listen = free_port(), free_port()
    prefix = WORK / name
    prefix.mkdir(exist_ok=True)
    servers = " ".join(f"server 127.0.0.1:{p};" for p in ports)
    user = "user root;" if os.geteuid() == 0 else ""  # else its temporary files are out of the worker's reach
    (prefix / "nginx.conf").write_text(
        f"""
daemon off; {user} pid {prefix}/nginx.pid; error_log {WORK}/{name}.log warn;
worker_processes 1; worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {prefix}/body; proxy_temp_path {prefix}/proxy; fastcgi_temp_path {prefix}/fastcgi;
  uwsgi_temp_path {prefix}/uwsgi; scgi_temp_path {prefix}/scgi;
  client_max_body_size 64m; client_body_buffer_size {BODY_BUFFER};
  keepalive_requests 1000000000; keepalive_timeout 75s;
  upstream mock {{ {servers} keepalive 1024; keepalive_requests 1000000000; }}
  proxy_http_version 1.1; proxy_set_header Connection "";
  server {{ listen 127.0.0.1:{listen} backlog=4096; location / {{ proxy_pass http://mock; }} }}
  server {{ listen 127.0.0.1:{stream_listen} backlog=4096; location / {{ proxy_pass http://mock; proxy_buffering off; }} }}
}}
"""
    )
    master = spawn(TEST_CPU, name, [NGINX, "-p", prefix, "-c", prefix / "nginx.conf", "-e", WORK / f"{name}.log"])
    stack.callback(stop, master)
    wait_for(listen, "/", master, name)
    worker = pathlib.Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
    if len(worker) != 1:
        raise Void(f"nginx has {len(worker)} workers")
    return Lane(name, int(worker[0]), listen, stream_listen)


def start_gateway(stack, name, ports):
    # "many": all are asked in turn; "listed": all are configured, and the first is asked; "latency": the fastest of three.
    count = MANY if "many" in name or "listed" in name else 3 if "latency" in name else 1
    ports = ports[:count]
    kind, version, models = upstream_of(name)
    listen = free_port()
    backends = "".join(
        f"""
  - {{ name: up{i}, type: {kind}, config: {{ apiKey: k, endpoint: "http://127.0.0.1:{port}{version}", models: {models}, timeout: 30s }} }}"""
        for i, port in enumerate(ports)
    )
    members = ", ".join(f"{{ name: up{i}, weight: 1 }}" for i in range(1 if "listed" in name else len(ports)))
    config = WORK / f"{name}.yaml"
    config.write_text(
        f"""server: {{ host: 127.0.0.1, port: {listen}, workers: 1 }}
auth: none
telemetry: {{ logs: {{ format: json, level: info }}, accessLog: {str("log" in name).lower()} }}
backends:{backends}
  - {{ name: p, type: pool, strategy: {"latency" if "latency" in name else "weighted"}, fallback: true, backends: [ {members} ] }}
routes:
  - {{ name: chat, path: /v1/chat/completions, methods: [POST], backend: p }}
"""
    )
    process = spawn(TEST_CPU, name, [GATEWAY, "--config", config])
    # Not asked to end: it would rightly wait for its streams.
    stack.callback(stop, process, signal.SIGKILL)
    wait_for(listen, "/ready", process, name)
    if PAGE_IS_OPEN or "watched" in name:
        stack.enter_context(watcher(listen))
    if "stuck" in name:
        for _ in range(STUCK):
            stack.enter_context(opened_events(listen))
    return Lane(name, process.pid, listen)


@contextlib.contextmanager
def opened_events(port):
    """The event stream, of which the first bytes are read and no more."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        stream.sendall(b"GET /admin/api/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        if not stream.recv(1 << 16).startswith(b"HTTP/1.1 200"):
            raise Void("the event stream does not open")
        yield stream


@contextlib.contextmanager
def watcher(port):
    """A reader of the event stream, as an open page is one."""
    with opened_events(port) as stream:
        stream.settimeout(None)

        def read():
            with contextlib.suppress(OSError):
                while stream.recv(1 << 16):
                    pass

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        yield
        stream.shutdown(socket.SHUT_RDWR)
        reading.join()


def upstream_of(name):
    """What the gateway of a lane has behind it: backend type, version in the base address, models."""
    if "anthropic" in name:
        return "anthropic", "", "{ gpt-4o: claude-haiku-4-5 }"
    if "gemini" in name:
        return "google", "", "{ gpt-4o: gemini-3.5-flash }"
    return "openai", "/v1", "{ alias-model: gpt-4o }" if "alias" in name else "[gpt-4o]"


def load(lane, **options):
    """Runs the load generator to its end; its figures, or the end of the run."""
    port = lane.stream_port if options.get("mode", "reply") != "reply" else lane.port
    if "alias" in lane.name:
        options["model"] = "alias-model"
    # nginx passes on what the upstream understands; the gateway's clients speak OpenAI's format whatever is behind it.
    for format in FORMATS:
        if format in lane.name:
            options["format" if lane.name.startswith("nginx") else "upstream"] = format
    words = [w for k, v in ({"port": port, "pid": lane.pid} | options).items() for w in (f"--{k}", str(v))]
    process = spawn(LOAD_CPU, "load", [PEER, "load", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        stop(process, signal.SIGKILL)
        raise Void(f"{lane.name}: the load generator did not end: {words}") from None
    if process.returncode:
        raise Void(f"{lane.name}: {err.decode(errors='replace')}\n{tail(lane.name) if lane.pid else ''}")
    return json.loads(out)


def rss_kib(pid):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1])
    raise Void(f"process {pid} has no memory")


# ---- measures: each yields {lane: figures} for one round ------------------------------------------------------------


def visit(names, round_, figures, each_way=1):
    """`figures(lane)` for fresh lanes: the mean of as many visits on the way there as on the way back.

    The order changes with the round, and a steady drift within one cancels out. The machine's speed changes from second to
    second, so where a visit can be short there are several.
    """
    visits = {name: [] for name in names}
    with fleet(names) as lanes:
        turn = round_ % len(lanes)
        order = lanes[turn:] + lanes[:turn]
        for _ in range(each_way):
            for lane in [*order, *reversed(order)]:
                visits[lane.name].append(figures(lane))
    return {name: {k: statistics.mean(v[k] for v in seen) for k in seen[0]} for name, seen in visits.items()}


def several(quick):
    return 1 if quick else 3


def cpu_per_request(got):
    return got["cpu_ns"] / 1000 / got["requests"]


def measure_request(round_, quick):
    def figures(lane):
        got = load(lane, conns=64, warmup=200, window=300 if quick else 500)
        result = {"cpu": cpu_per_request(got), "rps": got["requests"] / got["seconds"], "reconnects": got["reconnects"]}
        if "log" in lane.name:
            # A lossy writer would make the log look cheap. It writes behind the reply.
            time.sleep(0.1)
            log = WORK / f"{lane.name}.log"
            result["lines_per_request"] = log.read_bytes().count(b"\n") / got["all_requests"]
            os.truncate(log, 0)
        return result

    names = ["direct", "nginx", "gateway", "gateway-log", "nginx-many", "gateway-many"]
    return visit(present(names), round_, figures, several(quick))


def measure_watched(round_, quick):
    def figures(lane):
        result = {"cpu": cpu_per_request(load(lane, conns=64, warmup=200, window=300 if quick else 500))}
        if lane.name in ("nginx", "gateway-watched"):
            got = load(lane, mode="stream", conns=64, gap=5, chunks=100, spread=100, warmup=400, window=500)
            result["chunk"] = got["cpu_ns"] / 1000 / got["events"]
        return result

    return visit(present(["nginx", "gateway-watched", "gateway-stuck", "gateway-latency"]), round_, figures, several(quick))


def measure_listed(round_, quick):
    def figures(lane):
        return {"cpu": cpu_per_request(load(lane, conns=64, warmup=200, window=300 if quick else 500))}

    return visit(present(["gateway", "gateway-listed"]), round_, figures, several(quick))


def measure_latency(round_, quick):
    def figures(lane):
        got = load(lane, conns=1, window=300 if quick else 800)
        return {"p50": got["whole"]["p50"], "p99": got["whole"]["p99"], "cpu": cpu_per_request(got)}

    return visit(present(["direct", "nginx", "gateway", "gateway-log"]), round_, figures)


def measure_ttft(round_, quick):
    def figures(lane):
        # Short streams, paced: the rest of a stream must not be in its own way.
        got = load(lane, mode="stream", conns=1, gap=1, chunks=3, window=400 if quick else 800)
        return {"p50": got["first"]["p50"], "p99": got["first"]["p99"]}

    return visit(present(["direct", "nginx", "gateway"]), round_, figures)


def measure_stream(round_, quick):
    def figures(lane):
        # The streams begin in step, and one lasts 500 ms: the window sees each begin once, wherever it lies.
        got = load(lane, mode="stream", conns=64, gap=5, chunks=100, spread=100, warmup=400, window=500)
        return {"cpu": got["cpu_ns"] / 1000 / got["events"], "rate": got["events"] / got["seconds"], "p50": got["first"]["p50"]}

    return visit(present(["direct", "nginx", "gateway", "gateway-log"]), round_, figures, several(quick))


def measure_body(round_, quick):
    # Each size in processes of its own. nginx's allocator gives the memory of a 100 KB body back to the kernel after each
    # request, until the process has seen a larger body: one after the other they would not be one measurement.
    window = 300 if quick else 600
    lanes = present(["nginx", "gateway", "gateway-alias"])

    def figures(size, length):
        return visit(lanes, round_, lambda lane: {size: cpu_per_request(load(lane, conns=16, bytes=length, window=window))})

    small, large = figures("100k", 100_000), figures("1m", 1_000_000)
    return {name: small[name] | large[name] for name in small}


def measure_inflight(round_, quick):
    def figures(lane):
        # The upstream's delay makes both about 5,000 requests/s: at another rate each wake-up would carry another
        # number of requests, and that alone would change their cost.
        few = load(lane, conns=64, delay=11, spread=11, warmup=500, window=600)
        many = load(lane, conns=1000, delay=200, spread=200, warmup=800, window=700)
        return {
            "64": cpu_per_request(few),
            "1000": cpu_per_request(many),
            "user64": few["user_ticks"],
            "user1000": many["user_ticks"],
            "ticks64": few["user_ticks"] + few["kernel_ticks"],
            "ticks1000": many["user_ticks"] + many["kernel_ticks"],
            "rps64": few["requests"] / few["seconds"],
            "rps1000": many["requests"] / many["seconds"],
        }

    return visit(present(["nginx", "gateway"]), round_, figures, several(quick))


def measure_translation(round_, quick):
    def figures(lane):
        got = load(lane, conns=64, window=300 if quick else 1000)
        result = {"cpu": cpu_per_request(got)}
        if not lane.name.startswith("nginx"):
            window = 800 if quick else 2000
            got = load(lane, mode="stream", conns=64, gap=5, chunks=200, spread=100, warmup=400, window=window)
            result["chunk"] = got["cpu_ns"] / 1000 / got["events"]
        return result

    return visit(present(["gateway", *(f"{way}-{format}" for format in FORMATS for way in ("nginx", "gateway"))]), round_, figures)


def measure_events(round_, quick):
    """What one reader of the event stream costs a gateway with many backends that does nothing else, in percent of a core."""

    def share(lane):
        before, began = on_cpu_ns(lane.pid), time.monotonic_ns()
        time.sleep(2 if quick else 6)
        return (on_cpu_ns(lane.pid) - before) / (time.monotonic_ns() - began) * 100

    with fleet(present(["gateway-listed"])) as lanes:
        time.sleep(1)
        result = {}
        for lane in lanes:
            idle = share(lane)
            with watcher(lane.port):
                result[lane.name] = {"events": share(lane) - idle}
        return result


def on_cpu_ns(pid):
    return sum(int(task.read_text().split()[0]) for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"))


MEASURES = {
    "request": measure_request,
    "watched": measure_watched,
    "listed": measure_listed,
    "latency": measure_latency,
    "ttft": measure_ttft,
    "stream": measure_stream,
    "body": measure_body,
    "inflight": measure_inflight,
    "translation": measure_translation,
    "events": measure_events,
}


def measure_memory(quick):
    """Fresh processes, all left alone for the same minute, then loaded one after the other."""
    names = [n for n in present(["nginx", "gateway"]) for _ in range(1 if quick else 3)]
    rounds = []
    with fleet(names) as lanes:
        time.sleep(5 if quick else 60)
        for lane in lanes:
            figures = {"idle": rss_kib(lane.pid) / 1024}
            figures["streams"] = peak_mib(lane, mode="stream", conns=1000, gap=1000, chunks=8, spread=1000, warmup=1500, window=4500)
            rounds.append((lane, figures))
    # Stopped readers need a process that has not grown before.
    with fleet(names) as lanes:
        for lane, (_, figures) in zip(lanes, rounds):
            load(lane, mode="stream", conns=1, chunks=3, warmup=0, window=300)
            before = rss_kib(lane.pid)
            peak = peak_mib(lane, mode="unread", conns=100, chunks=0, window=3000 if quick else 5000)
            figures["unread"] = (peak * 1024 - before) / 100
    per_lane = [[f for lane, f in rounds if lane.name == n] for n in dict.fromkeys(names)]
    return [{n: f for n, f in zip(dict.fromkeys(names), figures)} for figures in zip(*per_lane)]


def peak_mib(lane, **options):
    """Largest resident set while a load runs, read five times a second."""
    port = lane.stream_port
    words = [w for k, v in ({"port": port} | options).items() for w in (f"--{k}", str(v))]
    process = spawn(LOAD_CPU, "load", [PEER, "load", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, deadline = 0, time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        peak = max(peak, rss_kib(lane.pid))
        time.sleep(0.2)
    if process.poll() is None:
        stop(process, signal.SIGKILL)
    if process.returncode:
        raise Void(f"{lane.name}: {process.stderr.read().decode(errors='replace')}\n{tail(lane.name)}")
    return peak / 1024


def present(names):
    return [n for n in names if not n.startswith("gateway") or GATEWAY.exists()]


# ---- the table ------------------------------------------------------------------------------------------------------


class Table:
    def __init__(self, results):
        self.results, self.rows, self.data = results, [], []

    def series(self, measure, lane, key):
        rounds = self.results.get(measure, [])
        return [r[lane][key] for r in rounds] if rounds and all(lane in r for r in rounds) else None

    def row(self, label, direct, nginx, gateway, log, ratio="", budget=None, judged=None):
        """One line. `ratio` combines nginx's and the gateway's figure of each round; `judged` is what `budget` bounds."""
        if not any((direct, nginx, gateway, log)):
            return
        combined = None
        if nginx and gateway and ratio:
            combined = [g / n if ratio == "x" else g - n for g, n in zip(gateway, nginx)]
        judged = {"ratio": combined, "gateway": gateway}.get(judged)
        verdict, limit = "", ""
        if budget is not None:
            unit = {"x": " x"}.get(ratio, "")
            limit = f"≤ {budget:g}{unit}"
            verdict = "" if not judged else "pass" if statistics.median(judged) <= budget else "MISS"
        cells = [label, show(direct), show(nginx), show(gateway), show(combined, ratio), show(log), limit, verdict]
        self.rows.append("| " + " | ".join(cells) + " |")
        names = ("direct", "nginx", "gateway", "combined", "access_log")
        series = zip(names, (direct, nginx, gateway, combined, log))
        figures = {n: s and {"median": statistics.median(s), "min": min(s), "max": max(s)} for n, s in series}
        self.data.append({"measure": label, **figures, "budget": budget, "verdict": verdict or None})

    def fill(self):
        s = self.series
        ways = ("direct", "nginx", "gateway", "gateway-log")

        def growths(measure, label, change, budget=None):
            """How a request's cost grows from the small case to the large one, for nginx and for the gateway."""
            cases = [(s(measure, *small), s(measure, *large)) for small, large in map(change, ways[1:3])]
            micros = [a and b and [y - x for x, y in zip(a, b)] for a, b in cases]
            percent = [a and b and [(y / x - 1) * 100 for x, y in zip(a, b)] for a, b in cases]
            self.row(f"growth from {label}, µs", None, *micros, None, "-")
            self.row(f"growth from {label}, % (judged: the gateway's)", None, *percent, None, "-", budget, "gateway")

        def own_code(lane, n):
            """The part of a request in the process's own code, by the ticks that the kernel has sampled."""
            cpu, user, ticks = (s("inflight", lane, key) for key in (n, f"user{n}", f"ticks{n}"))
            return cpu and [c * u / max(t, 1) for c, u, t in zip(cpu, user, ticks)]

        def added(measure, lane, key):
            base, own = s(measure, "direct", key), s(measure, lane, key)
            return base and own and [o - b for b, o in zip(base, own)]

        def plain(label, measure, key, budget=None, cpu=True):
            direct, *rest = (s(measure, w, key) for w in ways)
            self.row(label, None if cpu else direct, *rest, "x", budget, "ratio")

        plain("CPU per request, 600-byte reply, 64 connections, µs", "request", "cpu", 1.6)
        plain("requests/s, 64 connections", "request", "rps", cpu=False)
        plain("CPU per SSE chunk, 64 streams, 5 ms gap, µs", "stream", "cpu", 1.15)
        for key, label, limit in (
            ("cpu", "CPU per request, 600-byte reply, with the operator's page open, µs", 1.6),
            ("chunk", "CPU per SSE chunk, with the operator's page open, µs", 1.15),
        ):
            self.row(label, None, s("watched", "nginx", key), s("watched", "gateway-watched", key), None, "x", limit, "ratio")
        label = f"CPU per request, 600-byte reply, with {STUCK} readers of the event stream that never read, µs"
        self.row(label, None, s("watched", "nginx", "cpu"), s("watched", "gateway-stuck", "cpu"), None, "x", 1.6, "ratio")
        label = "CPU per request, 600-byte reply, the fastest of three backends (strategy latency), µs"
        self.row(label, None, s("watched", "nginx", "cpu"), s("watched", "gateway-latency", "cpu"), None, "x")
        for format in FORMATS:
            pair, gateway = f"OpenAI in, {format.title()} out", f"gateway-{format}"
            floor, own = s("translation", f"nginx-{format}", "cpu"), s("translation", "gateway", "chunk")
            label = f"CPU per request, {pair}, 600-byte reply, µs (nginx: {format.title()} in and out)"
            self.row(label, None, floor, s("translation", gateway, "cpu"), None, "x", 2.5, "ratio")
            label = f"CPU per SSE chunk, {pair}, 64 streams, µs (in nginx's place: the gateway, OpenAI in and out)"
            self.row(label, None, own, s("translation", gateway, "chunk"), None, "x", 1.4, "ratio")
        for size, name, limits in (("100k", "100 KB", (1.4, 1.8)), ("1m", "1 MB", (None, None))):
            floor = s("body", "nginx", size)
            for lane, what, limit in zip(("gateway", "gateway-alias"), ("unchanged", "rewritten"), limits):
                label = f"CPU per request, {name} body, model {what}, µs"
                self.row(label, None, floor, s("body", lane, size), None, "x", limit, "ratio")
        for q in ("p50", "p99"):
            base = s("latency", "direct", q)
            self.row(f"added latency {q}, 1 connection, µs (direct: whole)", base, *(added("latency", w, q) for w in ways[1:]), "-")
        base = s("ttft", "direct", "p50")
        self.row("added time to first token p50, 1 connection, µs (direct: whole)", base, *(added("ttft", w, "p50") for w in ways[1:3]), None, "-", 75, "ratio")
        base = s("stream", "direct", "p50")
        self.row("the same among 64 streams, µs", base, *(added("stream", w, "p50") for w in ways[1:]), "-")
        plain("CPU per request, 1 in flight, µs", "latency", "cpu")
        for n in ("64", "1000"):
            self.row(f"CPU per request, {int(n):,} in flight at 5,000/s, µs", None, s("inflight", "nginx", n), s("inflight", "gateway", n), None, "x")
        for n in ("64", "1000"):
            label = f"of that in its own code, not the kernel's, {int(n):,} in flight, µs"
            self.row(label, None, own_code("nginx", n), own_code("gateway", n), None, "x")
        # nginx, which has hardly any code of its own, says how much of a growth is the machine's.
        growths("inflight", "64 to 1,000 in flight", lambda way: ((way, "64"), (way, "1000")), 15)
        self.row(f"CPU per request, {MANY} backends, 64 connections, µs", None, s("request", "nginx-many", "cpu"), s("request", "gateway-many", "cpu"), None, "x")
        growths("request", f"1 to {MANY} backends", lambda way: ((way, "cpu"), (f"{way}-many", "cpu")), 5)
        one, listed = s("listed", "gateway", "cpu"), s("listed", "gateway-listed", "cpu")
        listed = one and listed and [(y / x - 1) * 100 for x, y in zip(one, listed)]
        self.row(f"the same where {MANY} backends are configured and one is asked, %", None, None, listed, None)
        label = f"event stream of /admin, one reader, {MANY} backends, % of a core"
        self.row(label, None, None, s("events", "gateway-listed", "events"), None, budget=1, judged="gateway")
        for key, label, limit in (
            ("idle", "memory idle, MiB", 20),
            ("streams", "memory at 1,000 streams of one event a second, peak MiB", 90),
            ("unread", "memory per stopped reader of an endless stream, KiB", 300),
        ):
            self.row(label, None, s("memory", "nginx", key), s("memory", "gateway", key), None, "-", limit, "gateway")

    def text(self, notes):
        head = "| measure | direct | nginx | gateway | to nginx | gateway with access log | budget | |\n|---|---|---|---|---|---|---|---|"
        return "\n".join([head, *self.rows, "", *notes])


def show(series, ratio=None):
    """Median (least – most)."""
    if not series:
        return "-"
    form = (lambda v: f"{v:.2f} x") if ratio == "x" else (lambda v: f"{v:+,.{places(series)}f}") if ratio else (lambda v: f"{v:,.{places(series)}f}")
    return f"{form(statistics.median(series))} ({form(min(series))} – {form(max(series))})"


def places(series):
    return 0 if statistics.median(map(abs, series)) >= 100 else 1


# ---- the run --------------------------------------------------------------------------------------------------------


def busy_seconds():
    """Work done so far on the two cores, by anybody."""
    total = 0
    for line in open("/proc/stat"):
        name, *ticks = line.split()
        if name in (f"cpu{TEST_CPU}", f"cpu{LOAD_CPU}"):
            user, nice, system, _, _, irq, softirq, steal = map(int, ticks[:8])
            total += user + nice + system + irq + softirq + steal
    return total / os.sysconf("SC_CLK_TCK")


def own_seconds():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def notes(rounds, foreign, results):
    commit = subprocess.run(["git", "-C", REPO, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip() or "no commit"
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    version = subprocess.run([NGINX, "-v"], capture_output=True, text=True).stderr.strip().removeprefix("nginx version: ")
    lines = [
        f"Medians of {rounds} interleaved rounds (memory: {len(results.get('memory', []))} processes), least and most in brackets; "
        "'to nginx' is the ratio or difference within a round. One worker on one core; mock and load generator on another, "
        f"so requests/s is bounded by them. {cpu}, Linux {os.uname().release}, {version}, {commit}, {time.strftime('%Y-%m-%d')}.",
    ]
    if PAGE_IS_OPEN:
        lines.append("Every gateway had a reader of /admin's event stream all the while.")
    lines.append(f"Other processes took {foreign:.1f} % of the two cores" + (": too much for sharp figures." if foreign > 3 else "."))
    if not GATEWAY.exists():
        lines.append(f"No gateway: {GATEWAY} is missing (cargo build --profile dist, or set STAGEDOOR_BIN).")
    elif any(f.stat().st_mtime > GATEWAY.stat().st_mtime for f in (REPO / "src").rglob("*.rs")):
        lines.append("The gateway's binary is older than its source.")
    logged = [r["gateway-log"]["lines_per_request"] for r in results.get("request", []) if "gateway-log" in r]
    if logged and min(logged) < 0.99:
        lines.append(f"The access log lost lines: {min(logged):.2f} per request, so its cost is understated.")
    return lines


def main():
    environment = "ROUNDS, STAGEDOOR_BIN, NGINX, NGINX_BODY_BUFFER, BENCH_CPUS (core of the process under test, core of mock and load)"
    parser = argparse.ArgumentParser(
        prog="run", description=__doc__.splitlines()[0], epilog=f"Environment: {environment}."
    )
    parser.add_argument("--page", action="store_true", help="every gateway has a reader of /admin's event stream all the while")
    parser.add_argument("--quick", action="store_true", help="two short rounds: a look, not a verdict")
    parser.add_argument("--only", metavar="NAME", choices=[*MEASURES, "memory"], help="one of: " + ", ".join([*MEASURES, "memory"]))
    options = parser.parse_args()
    global PAGE_IS_OPEN
    PAGE_IS_OPEN = options.page
    rounds = int(os.environ.get("ROUNDS", 2 if options.quick else 7))
    if not {TEST_CPU, LOAD_CPU} <= os.sched_getaffinity(0) or TEST_CPU == LOAD_CPU:
        sys.exit(f"cores {TEST_CPU} and {LOAD_CPU} are not both there; set BENCH_CPUS")

    def ended(number, _):
        raise Void(f"ended by {signal.Signals(number).name}")

    # Ending by an exception lets every `with` above clean up.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, ended)
    signal.alarm(300 + 240 * rounds)
    os.sched_setaffinity(0, {LOAD_CPU})
    WORK.mkdir(parents=True, exist_ok=True)
    for log in WORK.glob("*.log"):
        log.unlink()

    began, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    results = {}
    try:
        for round_ in range(rounds):
            for name, measure in MEASURES.items():
                if options.only in (None, name):
                    print(f"[{time.monotonic() - began:4.0f} s] round {round_ + 1}/{rounds}: {name}", file=sys.stderr)
                    results.setdefault(name, []).append(measure(round_, options.quick))
        if options.only in (None, "memory"):
            print(f"[{time.monotonic() - began:4.0f} s] memory", file=sys.stderr)
            results["memory"] = measure_memory(options.quick)
    except Void as why:
        sys.exit(f"VOID: {why}")

    spent = time.monotonic() - began
    foreign = max(0.0, (busy_seconds() - busy - (own_seconds() - own)) / spent / 2 * 100)
    table = Table(results)
    table.fill()
    said = notes(rounds, foreign, results)
    text = table.text(said)
    print(text)
    (OUT / "result.md").write_text(text + "\n")
    record = {"rows": table.data, "notes": said, "foreign_cpu_percent": foreign, "seconds": spent, "rounds": results}
    (OUT / "result.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
