"""Demo: a pair under traffic whose active is killed again and again, and what that did to the traffic.

    report = Demo(TestbedStage("hosts", Load()), kills=5, ray=False).run()
    assert report.problems == []            # or sentences such as "udp: 3 lost"
    print(json.dumps(report.body))

Picture     stage up ─► pair starts ─► protected ─► traffic ─► ┌─ run_s ─► SIGKILL ─► protected again, receipt ─┐ ─► stop, add up
                                                               └──────────────────── kills times ───────────────┘
            The victim is looked up from outside: the process that holds the active's port (procs.py), not the one that
            says it is the active.

Promises    D1 `body` has the same keys whatever happened, and says what is true: a run that protection did not come back to is
            stopped, counted and reported.  D2 `problems` is empty only when at least one kill happened, and nothing was
            lost, doubled, reset, corrupted, changed or left unproven.  D3 leaving `run`, by whatever way, leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.deploy.foreground import CANNOT_START, OnEvent, Pair, make_pair
from nfckpt.errors import ConfigError, NfckptError, ProtectionError
from nfckpt.testbed import procs
from nfckpt.testbed.topology import GATEWAY_IP, NAT_IP, NODES, REP_IPS, Segment, Testbed
from nfckpt.testbed.traffic import Load, Workload, problems

__all__ = ["Demo", "Report", "Stage", "TestbedStage", "pair_config", "verdict"]

PROTECTED_S_MAX = 30.0
RECEIPT_S_MAX = 5.0
CHANNEL_PORT = 7701
_Event = tuple[str, int, dict[str, Any]]
MUST_BE_ZERO = {"tcp": ("failed", "reset", "corrupt", "source_changed"), "udp": ("lost", "duplicated", "sink_overflow")}


class Traffic(Protocol):
    """What Workload is: something that sends, counts, and adds up."""

    def start(self) -> None: ...
    def live(self) -> dict[str, dict[str, int]]: ...
    def mark_kill(self, t_ns: int | None = None) -> None: ...
    def stop(self) -> dict[str, Any]: ...


class Stage(Protocol):
    """Where the pair stands and what runs through it. A context manager: up inside, nothing left after."""

    config: PairConfig
    pass_fds: tuple[int, ...]

    @property
    def traffic(self) -> Traffic: ...
    def __enter__(self) -> Stage: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def victim(self, node: str, pid: int) -> int:
        """The process to kill so that `node` dies; its own word is `pid`."""
        ...


def pair_config(bed: Testbed, profile: str, app: str = "nfckpt.apps.nat:Nat", bounds: Bounds | None = None) -> PairConfig:
    """A NAT between the testbed's client and server, its packet loops pinned to CPUs of their own where there are two."""
    from nfckpt.apps.nat_plan import NatConfig
    parameters: dict[str, Any] = {"inside_ip": GATEWAY_IP, "outside_ips": [NAT_IP], "flows_max": 16384}
    return PairConfig(
        name=f"demo-{bed.prefix}", app=app, app_args=parameters, profile=profile,
        bounds=bounds or Bounds(arena_bytes=NatConfig(**parameters).arena_bytes),
        nodes={node: NodeConfig(ports=[f"afpacket:{device}@{bed.ns(node)}" for device in ("lan", "wan")],
                                address=f"{REP_IPS[node]}:{CHANNEL_PORT}", netns=bed.ns(node), cpu=cpu)
               for cpu, node in enumerate(NODES)})


class TestbedStage:
    """The testbed with a NAT and the whole workload. `app`: another one with the same parameters. `segment`: as of Testbed."""

    __test__ = False    # pytest: not a test class

    def __init__(self, profile: str = "hosts", load: Load | None = None, prefix: str = "nf", app: str = "nfckpt.apps.nat:Nat",
                 segment: Segment = "hub") -> None:
        self.bed = Testbed(prefix, segment)
        self.config = pair_config(self.bed, profile, app)
        self.pass_fds: tuple[int, ...] = ()
        self.traffic = Workload(self.bed, load)

    def __enter__(self) -> TestbedStage:
        self.bed.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.traffic.__exit__(kind, error, trace)
        self.bed.down()

    def victim(self, node: str, pid: int) -> int:
        return procs.owner(self.bed.ns(node), "lan")


@dataclass(frozen=True)
class Report:
    """`body`: {"profile", "kills", "tcp", "udp", "outage_ms", "reprotect_ms", "epochs_committed", "epochs_per_s",
    "uncommitted_at_kill", "receipts"}; UDP counts both directions, tcp also what curl fetched. `problems`: see D2.
    `fetched`: files that curl got, None where there is no curl."""

    body: dict[str, Any]
    problems: list[str]
    fetched: int | None = None


def verdict(body: dict[str, Any]) -> list[str]:
    """What in a report's body is not as promised, one sentence each."""
    found = [f"{part}: {body[part][key]} {key}" for part, keys in MUST_BE_ZERO.items() for key in keys if body[part][key]]
    return found if body["kills"] else ["no kill happened", *found]


class Demo:
    """One run. `on_event(name, at_ns, fields)` and `look` serve a live view, from other threads."""

    def __init__(self, stage: Stage, *, kills: int = 5, run_s: float = 1.0, ray: bool | None = None, on_event: OnEvent | None = None) -> None:
        if kills < 1 or run_s < 0:
            raise ConfigError("kills or seconds", "at least one kill, no negative time")
        self.stage, self.kills, self.run_s, self.ray = stage, kills, run_s, ray
        self.phase = "starting"
        self.killed: list[int] = []             # CLOCK_MONOTONIC ns of each kill
        self.reprotect_ms: list[float] = []
        self.receipts: list[dict[str, Any]] = []
        self._on_event = on_event
        self._events: list[_Event] = []
        self._news = threading.Condition()
        self._pair: Pair | None = None
        self._term = 0

    def run(self) -> Report:
        """Everything from the first namespace to the last. Raises NfckptError where it could not even begin."""
        trouble: list[str] = []
        with self.stage:
            pair = make_pair(self.stage.config, self._note, ray=self.ray, pass_fds=self.stage.pass_fds)
            try:
                self._pair = pair
                pair.start()
                self._protected(0)
                self.phase = "starting traffic"
                self.stage.traffic.start()
                began, first_epoch = time.monotonic(), self._epoch(pair)
                try:
                    for _ in range(self.kills):
                        self._run(pair)
                        self._kill(pair)
                    self._run(pair)
                except ProtectionError as e:
                    trouble.append(f"after kill {len(self.killed)}: {e}")
                seconds, epochs = time.monotonic() - began, self._epoch(pair) - first_epoch
                self.phase = "stopping traffic"
                result = self.stage.traffic.stop()
                self.phase = "stopping"
            finally:
                self._pair = None
                pair.close()
        body = self._add_up(result, epochs, seconds)
        fetched = result["web"]["fetched"] if result["web"] else None
        return Report(body, [*trouble, *(verdict(body) or problems(result))], fetched)

    def look(self) -> dict[str, Any]:
        """{"phase", "kills", "of", "active", "nodes", "traffic"} as of now; takes up to a second while a node is down."""
        pair = self._pair
        return {"phase": self.phase, "kills": len(self.killed), "of": self.kills, "active": pair.active if pair else "",
                "nodes": pair.status() if pair else {}, "traffic": self.stage.traffic.live()}

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def _run(self, pair: Pair) -> None:
        self.phase = "running"
        time.sleep(self.run_s)

    def _kill(self, pair: Pair) -> None:
        node, status = self._protected_now(pair)
        self._term = int(status["term"])
        pid = self.stage.victim(node, int(status["pid"]))
        self.phase = f"killing {node}, pid {pid}"
        t = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        self.stage.traffic.mark_kill(t)
        self.killed.append(t)
        self._note("killed", t, {"node": node, "pid": pid})
        at = self._protected(self._term + 1)
        self.reprotect_ms.append(round((at - t) / 1e6, 1))
        _, _, receipt = self._wait("receipt", lambda fields: fields["term"] >= self._term, RECEIPT_S_MAX)
        self.receipts.append(receipt)

    def _protected(self, term: int) -> int:
        """Wait until a standby is recorded in `term` or later. Returns when, CLOCK_MONOTONIC ns."""
        self.phase = "waiting for protection"
        _, at, fields = self._wait("protected", lambda fields: fields["term"] >= term, PROTECTED_S_MAX)
        self._term = int(fields["term"])
        return at

    def _protected_now(self, pair: Pair) -> tuple[str, dict[str, Any]]:
        """The active and its status, once both nodes say that they are protected: a takeover may have come in between (on a busy
        machine a stall can outlast the lease), and the death of an unprotected node is not what is shown here."""
        deadline = time.monotonic() + PROTECTED_S_MAX
        while time.monotonic() < deadline:
            nodes = pair.status()
            if all(s.get("protected") for s in nodes.values()) and (node := pair.active) in nodes and nodes[node]["role"] == "active":
                return node, nodes[node]
            time.sleep(0.02)
        raise ProtectionError(f"not protected again within {PROTECTED_S_MAX:.0f} s")

    def _epoch(self, pair: Pair) -> int:
        return max((int(s.get("epoch", 0)) for s in pair.status().values()), default=0)

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _note(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        with self._news:
            self._events.append((name, at_ns, fields))
            self._news.notify_all()
        if self._on_event is not None:
            self._on_event(name, at_ns, fields)

    def _wait(self, name: str, fits: Callable[[dict[str, Any]], bool], seconds: float) -> _Event:
        def found() -> list[_Event]:
            return [e for e in self._events if (e[0] == name and fits(e[2])) or cannot_start(e)]

        def cannot_start(event: _Event) -> bool:
            return not self._term and event[0] in ("stopped", "exited") and event[2]["code"] in CANNOT_START

        with self._news:
            if not self._news.wait_for(found, seconds):
                last = "; ".join(f"{n} {f.get('node', '')} {f.get('reason', f.get('why', ''))}".strip() for n, _, f in self._events[-4:])
                raise ProtectionError(f"no {name!r} within {seconds:.0f} s; last: {last}")
            event = found()[0]
        if cannot_start(event):
            raise NfckptError(f"node {event[2]['node']} cannot run: {event[2].get('reason', event[2].get('why'))}")
        return event

    # ── result ───────────────────────────────────────────────────────────────────────────────────

    def _add_up(self, result: dict[str, Any], epochs: int, seconds: float) -> dict[str, Any]:
        udp, back, web = result["udp"], result["udp_reverse"], result["web"] or {"failed": 0, "corrupt": 0}
        tcp = {key: result["tcp"][key] for key in ("connections", "opened_during_outage", "failed", "reset", "corrupt", "source_changed")}
        tcp |= {key: tcp[key] + web[key] for key in ("failed", "corrupt")}
        return {
            "profile": self.stage.config.profile, "kills": len(self.killed), "tcp": tcp,
            "udp": {key: udp[key] + back[key] for key in ("sent", "received", "lost", "duplicated", "sink_overflow")},
            "outage_ms": result["outage_ms"], "reprotect_ms": self.reprotect_ms, "epochs_committed": epochs,
            "epochs_per_s": round(epochs / seconds, 1), "uncommitted_at_kill": [r["uncommitted"] for r in self.receipts],
            "receipts": self.receipts,
        }
