"""A gateway of simulated backends as its operator sees it: state, metrics, log lines."""

import json
import subprocess
import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

import conftest

HERE = Path(__file__).resolve().parent
SETTINGS = HERE / "operated.yaml"
CLIENT, OPERATOR, READER = "client-key-of-the-tests", "admin-token-of-the-tests", "reader-token-of-the-tests"
SECRETS = [CLIENT, OPERATOR, READER, "sk-upstream-key-of-the-tests"]
OUTCOMES = ["served", "failed", "cancelled", "truncated", "cut"]


def bearer(token):
    return {"authorization": f"Bearer {token}"}


class Operated(conftest.Gateway):
    """The binary with a configuration of its own."""

    def __init__(self, folder, settings=SETTINGS):
        self.log, self.http = folder / "log", httpx.Client(timeout=30)
        # Apart, since the traces of panics are written piece by piece.
        with open(self.log, "wb") as output, open(folder / "errors", "wb") as errors:
            command = [conftest.BINARY, "--config", str(settings)]
            self.process = subprocess.Popen(command, stdout=output, stderr=errors)
        self.await_ready()

    def admin(self, method, path, **options):
        return self.http.request(method, f"{self.url}/admin/api{path}", headers=bearer(OPERATOR), **options)

    def state(self):
        return self.admin("GET", "/state").raise_for_status().json()

    def page(self):
        return self.http.get(f"{self.url}/metrics", headers=bearer(READER)).raise_for_status()

    def metrics(self):
        return Metrics(self.page().text)

    def settled(self, patience=20):
        """The state and the metrics once nothing is in flight and both stay as they are."""
        give_up, before = time.monotonic() + patience, None
        while time.monotonic() < give_up:
            state, metrics = self.state(), self.metrics()
            counts = json.dumps([state["routes"], state["pools"], [b["totals"] for b in state["backends"]]])
            busy = state["open_requests"] or state["late_workers"] or state["body_bytes"]
            busy = busy or any(b["in_flight"] + b["draining"] + b["queued"] for b in state["backends"])
            if not busy and counts == before:
                return state, metrics
            before = None if busy else counts
            time.sleep(0.1)
        raise AssertionError("the gateway does not come to rest")

    def lines(self, target):
        """Log lines of a target, as far as they are written."""
        # The last one may be half written.
        lines = (json.loads(line) for line in self.log.read_text().splitlines(keepends=True) if line.endswith("\n"))
        return [line for line in lines if line.get("target") == target]


class Metrics:
    """A page of metrics, read by Prometheus's own parser."""

    def __init__(self, text):
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def of(self, name, **labels):
        """Every sample of a name that has these labels."""
        return [sample for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()]

    def sum(self, name, **labels):
        return sum(sample.value for sample in self.of(name, **labels))

    def names(self):
        """Every name that a query may use, with the labels of its series; those without series have an empty set."""
        names = {}
        for family in self.families.values():
            suffixes = {"histogram": ["_bucket", "_sum", "_count"], "counter": ["_total"]}.get(family.type, [""])
            for suffix in suffixes:
                names.setdefault(family.name + suffix, set())
        for sample in self.samples:
            names[sample.name] |= set(sample.labels)
        return names
