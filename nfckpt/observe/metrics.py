"""Metrics of a node, after Prometheus' conventions: base units, `_total` for what only grows, labels for what is one of several.

    nfckpt_protected{node="a",pair="edge-nat"} 1.0
    nfckpt_commit_wait_seconds_total{node="a",pair="edge-nat"} 12.104
    nfckpt_port_rx_frames_total{node="a",pair="edge-nat",port="0:lan"} 812044.0
    nfckpt_expected_outage_seconds{death="crash",node="b",pair="edge-nat"} 0.0081

Each node answers for itself. Counters begin at 0 with each packet process, as Prometheus expects of a restart. The table below is the
whole of it: a key of a node's status, how it is called, in which unit, and what it means; `ports`, `agent` and `tap` are taken as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nfckpt.observe.board import ExporterSpec
from nfckpt.observe.outlook import estimate

__all__ = ["registry", "render"]

ROLES = ("starting", "joining", "syncing", "whole", "standby", "solo", "protecting", "active", "handed", "holding", "fenced")


class _Row(NamedTuple):
    key: str
    name: str
    about: str
    per_unit: float = 1.0
    """So many of the status' unit make one of ours."""
    counter: bool = False


TABLE = [
    _Row("protected", "protected", "1 while a recorded standby holds all that left"),
    _Row("term", "term", "The pair's term as this node knows it"),
    _Row("epoch", "committed_epoch", "Number of the last committed epoch"),
    _Row("start_us", "start_seconds", "Loading the app and declaring its state took so long", 1e6),
    _Row("outputs_held", "outputs_held", "Active: output frames that wait for their commit"),
    _Row("inputs_uncommitted", "inputs_uncommitted", "Active: inputs in the standby's tap that no epoch has named, by its last word"),
    _Row("inputs_waiting", "replay_frames", "Standby: input frames it would replay if the active died now"),
    _Row("outputs_unseen", "outputs_unseen", "Standby: committed outputs it has not seen leave, and would emit again"),
    _Row("tap_gap", "tap_gap", "1 while the standby's tap may lack a frame, so a takeover might be inexact"),
    _Row("syncing", "syncing", "1 while a standby receives its first copy"),
    _Row("arena_used_bytes", "arena_used_bytes", "State of the app"),
    _Row("hold_us", "hold_seconds", "How long epochs stay open now", 1e6),
    _Row("hold_cpu_percent", "hold_cpu_ratio", "Policy auto: share of the packet thread's time that captures take", 100),
    _Row("commits", "commits", "Epochs committed", counter=True),
    _Row("commit_wait_ns", "commit_wait_seconds", "Time from capture to commit, summed over epochs", 1e9, True),
    _Row("aborts", "quiesce_aborts", "Cuts given up because the app kept its frames", counter=True),
    _Row("gate_refused", "gate_refused", "Outputs that a full gate refused", counter=True),
    _Row("staging_full", "staging_full", "Due epochs that found the channel full", counter=True),
    _Row("sync_pages_sent", "sync_pages", "4 KiB pages sent to standbys that sync", counter=True),
    _Row("quarantined", "quarantined_frames", "Frames of a replay that the app did not survive", counter=True),
]


class _Collector:
    def __init__(self, spec: ExporterSpec, status: Callable[[], dict[str, Any] | None]) -> None:
        self.spec, self.status = spec, status
        self.own = [spec.pair, spec.node]

    def collect(self) -> Iterator[Metric]:
        body = self.status()
        yield self.gauge("up", "1 once the node's packet process has shown its numbers", [([], float(body is not None))])
        if body is None:
            return
        yield self.gauge("node_info", "What this node runs", [([self.spec.profile, str(body.get("app", ""))], 1.0)], "profile", "app")
        yield self.gauge("role", "1 for the role the node has", [([role], float(role == body.get("role"))) for role in ROLES], "role")
        yield self.gauge("status_age_seconds", "Since the packet loop last showed its numbers: above 1 it is stuck or stopped",
                         [([], max(0.0, (time.monotonic_ns() - body["at_ns"]) / 1e9))])
        for row in TABLE:
            if isinstance(value := body.get(row.key), (int, float)):
                yield (self.counter if row.counter else self.gauge)(row.name, row.about, [([], value / row.per_unit)])
        if causes := body.get("epochs_closed"):
            yield self.counter("epochs_closed", "Epochs cut, by what made them due", [([cause], n) for cause, n in causes.items()], "cause")
        if "hold_binds" in body:
            yield self.gauge("hold_bound", "1 for what binds the hold now", [([str(body["hold_binds"])], 1.0)], "by")
        if channel := body.get("channel"):
            yield self.counter("channel_sent_bytes", "Sent to the peer", [([], channel["bytes_sent"])])
            yield self.counter("channel_received_bytes", "Received from the peer", [([], channel["bytes_received"])])
        for group in ("agent", "tap"):
            for which, value in body.get(group, {}).items():
                yield self.counter(f"{group}_{which}", f"{which} of native/{group}.pxd", [([], value)])
        ports = body.get("ports", {})
        for which in next(iter(ports.values()), {}):
            yield self.counter(f"port_{which}", f"{which} of native/port.pxd", [([port], n[which]) for port, n in ports.items()], "port")
        if body.get("role") == "standby":
            outage = estimate(self.spec.profile, self.spec.bounds, body, [])["outage_ms"]
            yield self.gauge("expected_outage_seconds", "If the active died now: its process, or hanging",
                             [([death], steps["total"] / 1000) for death, steps in outage.items()], "death")

    def gauge(self, name: str, about: str, rows: list[tuple[list[str], float]], *labels: str) -> Metric:
        metric = GaugeMetricFamily(f"nfckpt_{name}", about, labels=["pair", "node", *labels])
        for values, value in rows:
            metric.add_metric([*self.own, *values], value)
        return metric

    def counter(self, name: str, about: str, rows: list[tuple[list[str], float]], *labels: str) -> Metric:
        metric = CounterMetricFamily(f"nfckpt_{name}", about, labels=["pair", "node", *labels])
        for values, value in rows:
            metric.add_metric([*self.own, *values], value)
        return metric


def registry(spec: ExporterSpec, status: Callable[[], dict[str, Any] | None]) -> CollectorRegistry:
    """`status()`: the node's numbers, None before there are any."""
    out = CollectorRegistry()
    out.register(_Collector(spec, status))
    return out


def render(spec: ExporterSpec, body: dict[str, Any] | None) -> str:
    """The text of one status, as /metrics gives it."""
    return generate_latest(registry(spec, lambda: body)).decode()
