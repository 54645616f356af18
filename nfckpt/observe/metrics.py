"""Metrics: a pair's status in Prometheus' text form.

    nfckpt_protected{pair="edge-nat"} 1
    nfckpt_epoch{node="a",pair="edge-nat"} 482113
    nfckpt_port_total{counter="rx_ring_drops",node="a",pair="edge-nat",port="0:lan"} 0

Every number of a node's status becomes a gauge of its name; those of ports, agent, tap and channel become counters with a
`counter` label. Names and types: Prometheus exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nfckpt.errors import MachineError

__all__ = ["render", "serve"]

Status = dict[str, dict[str, Any]]
GROUPS = ("agent", "tap", "channel", "epochs_closed")
LABELS = {"node", "pid"}


class _Collector:
    def __init__(self, pair: str, status: Callable[[], Status]) -> None:
        self.pair, self.status = pair, status

    def collect(self) -> Iterator[Metric]:
        status = self.status()
        gauges: dict[str, GaugeMetricFamily] = {}
        counters: dict[str, CounterMetricFamily] = {}

        def gauge(name: str, value: float, **labels: str) -> None:
            metric = gauges.setdefault(name, GaugeMetricFamily(f"nfckpt_{name}", f"{name} of a node's status", labels=["pair", *labels]))
            metric.add_metric([self.pair, *labels.values()], value)

        def counter(name: str, which: str, value: float, **labels: str) -> None:
            metric = counters.setdefault(name, CounterMetricFamily(
                f"nfckpt_{name}", f"{name} counters of a node's status", labels=["pair", *labels, "counter"]))
            metric.add_metric([self.pair, *labels.values(), which], value)

        actives = [s for s in status.values() if s.get("role") == "active"]
        pair_protected = GaugeMetricFamily("nfckpt_protected", "a recorded standby holds all that left", labels=["pair"])
        pair_protected.add_metric([self.pair], float(any(s.get("protected") for s in actives)))
        yield pair_protected
        for node, body in status.items():
            gauge("up", float(body.get("role") != "down"), node=node)
            gauge("role", 1, node=node, role=str(body.get("role", "down")))
            if "hold_binds" in body:
                gauge("hold_binds", 1, node=node, by=str(body["hold_binds"]))
            for key, value in body.items():
                if isinstance(value, (int, float)) and key not in LABELS and key != "protected":
                    gauge(key, float(value), node=node)
            for group in GROUPS:
                for which, value in body.get(group, {}).items():
                    counter(group, which, value, node=node)
            for port, values in body.get("ports", {}).items():
                for which, value in values.items():
                    counter("port", which, value, node=node, port=port)
        yield from gauges.values()
        yield from counters.values()


def _registry(pair: str, status: Callable[[], Status]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(pair, status))   
    return registry


def render(pair: str, status: Status) -> str:
    """The text of one status."""
    return generate_latest(_registry(pair, lambda: status)).decode()


def serve(pair: str, status: Callable[[], Status], port: int, address: str = "127.0.0.1") -> Callable[[], None]:
    """Answer GET /metrics until the returned function is called. Raises MachineError when the port is taken."""
    try:
        server, thread = start_http_server(port, address, _registry(pair, status))
    except OSError as e:
        raise MachineError(f"no metrics on {address}:{port}: {e.strerror}", "choose another --metrics port") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
