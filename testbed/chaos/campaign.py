"""Campaign: one chaos run, from the first namespace to the last.

Picture     stage up ─► pair protected ─► traffic ─► ┌─ protected, no gap ─► wait_s ─► strike ─► protected again, receipt ─┐ ─► stop, add up
                                                     └──────────────────── until `kills` nodes died ────────────────────┘

Promises    C1 `body` has the keys of the issue's contract, whatever happened.  C2 `problems` is empty only when the wanted number of kills
            happened and nothing that must be zero is not.  C3 `invalid` says why a run proves nothing: somebody else than the pair dropped frames, or the
            machine was too slow for the rate (what overloads the active's own ring is not promised).  C4 nothing is left after `run`.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from nfckpt.config import PairConfig
from nfckpt.deploy.foreground import Pair, make_pair
from nfckpt.deploy.local import LocalPair
from nfckpt.errors import NfckptError, ProtectionError
from nfckpt.failover.witness import Answer, Question
from nfckpt.node.plan import BOARD
from nfckpt.testbed.chaos.emissions import Emissions, Promotion, Run, stale_frames
from nfckpt.testbed.chaos.faults import Fault
from nfckpt.testbed.chaos.injector import Injector
from nfckpt.testbed.chaos.ledger import MUST_BE_ZERO, Hit, Ledger, quantile
from nfckpt.testbed.chaos.schedule import Strike, schedule
from nfckpt.testbed.demo import TestbedStage
from nfckpt.testbed.traffic import Load

__all__ = ["Campaign", "Outcome"]

PROTECTED_S_MAX = 90.0     # on a busy machine a node takes long to start
RECEIPT_S_MAX = 5.0
DIGEST_EPOCHS = 512
SAMPLE_S = 5.0
Event = tuple[str, int, dict[str, Any]]


@dataclass
class Outcome:
    """`body`: the JSON. The rest is for people: view.py, report.py."""

    body: dict[str, Any]
    problems: list[str]
    invalid: str
    hits: list[Hit]
    events: list[Event]
    runs: list[Run]
    reached: dict[str, int]
    digests: int
    apart: int
    began_ns: int
    ended_ns: int
    samples: list[dict[str, float]] = field(default_factory=list)


class Campaign:
    """`load`: what is sent. `input`: as in a pair's configuration; "ship" on learning switches, where a dead active's kernel has what nobody
    else was sent: then the receipts say how many (profile host), and at most so many may be lost; outputs of which nobody saw whether they
    left are emitted again, and at most so many may be doubled. `say(text)`: a line of progress. `on_event`: all that happens.
    `run_s`: stop after so long, whatever `kills` says; 0: never."""

    def __init__(self, *, seed: int, kills: int, faults: list[Fault], profile: str, app: str, load: Load, ray: bool, run_s: float = 0.0,
                 input: str = "tap",
                 say: Callable[[str], None] = lambda text: None, on_event: Callable[[str, int, dict[str, Any]], Any] | None = None,
                 prefix: str = "nf") -> None:
        self.seed, self.kills, self.profile, self.ray, self.run_s, self._say = seed, kills, profile, ray, run_s, say
        self._on_event = on_event
        self.stage = TestbedStage(profile, load, prefix, app, "bare" if input == "ship" else "hub")
        self.stage.config = msgspec.structs.replace(self.stage.config, input=input)
        self._strikes = schedule(seed, faults, profile)
        self.hits: list[Hit] = []
        self.events: list[Event] = []
        self.samples: list[dict[str, float]] = []
        self.counts: Counter[str] = Counter()
        self._news = threading.Condition()
        self._compared: set[tuple[int, int]] = set()
        self._differ = 0
        self._behind: dict[tuple[str, int], int] = {}       # (node, pid) -> frames that its rings dropped before it led: its tap's gaps
        self._dropped: dict[tuple[str, int], int] = {}      # … and since then
        self._began = self._sampled = 0.0
        self._backlog = _backlog_drops()

    @property
    def killed(self) -> int:
        return sum(bool(hit.node) for hit in self.hits)

    def run(self) -> Outcome:
        """Raises NfckptError where it could not even begin."""
        trouble: list[str] = []
        with tempfile.TemporaryDirectory(prefix="nfckpt-boards-") as folder:
            os.environ[BOARD] = folder
            try:
                with self.stage, open(Path(folder) / "stderr", "wb") as stderr:      # what the nodes say while they die is no news
                    return self._in(Path(folder), stderr.fileno(), trouble)
            finally:
                del os.environ[BOARD]

    def _in(self, folder: Path, stderr: int, trouble: list[str]) -> Outcome:
        bed, traffic = self.stage.bed, self.stage.traffic
        emissions = Emissions(bed)
        pair = _HushedPair(self.stage.config, self._note, stderr) if not self.ray else make_pair(self.stage.config, self._note, ray=True)
        injector = Injector(bed, pair, folder, pair.hush if isinstance(pair, _HushedPair) else None)
        try:
            emissions.start()
            pair.start()
            self._wait("protected", 0)
            traffic.start()
            for board in injector.boards.values():
                board.digest_every(DIGEST_EPOCHS)
            self._began = time.monotonic()
            began_ns = time.monotonic_ns()
            try:
                while self.killed < self.kills and not 0 < self.run_s < time.monotonic() - self._began:
                    self._strike(next(self._strikes), injector, pair)
                self._ready(pair, injector)
                time.sleep(0.2)
            except NfckptError as e:
                trouble.append(f"after strike {self.hits[-1].number if self.hits else 0}: {e}")
                for node, status in pair.status().items():
                    self._note("status", time.monotonic_ns(), {**status, "node": node})
            injector.disarm()
            ended_ns = time.monotonic_ns()
            result = traffic.stop()
            self._compare(injector)
            self._status(pair)
        finally:
            pair.close()
            emissions.stop()
        return self._add_up(result, injector, emissions, trouble, began_ns, ended_ns)

    # ── one strike ───────────────────────────────────────────────────────────────────────────────

    def _strike(self, s: Strike, injector: Injector, pair: Pair) -> None:
        active = ""
        while active != (active := self._ready(pair, injector)):        # a takeover may have come in between, on a busy machine
            time.sleep(s.wait_s)
        hit = Hit(s.number, s.label, 0, protected=True)
        self.stage.traffic.mark()

        def struck(t_ns: int) -> None:
            self.stage.traffic.mark_kill(t_ns)

        blow = injector.strike(s, active, struck)
        self.stage.traffic.mark()
        hit.t_ns, hit.node, hit.reached = blow.t_ns, blow.node, blow.reached
        hit.was_active = blow.node == active
        self.hits.append(hit)
        self.counts[s.label] += 1
        if not blow.reached:
            self.counts[f"{s.label} (not reached)"] += 1
            self.counts[s.label] -= 1
        if self._on_event is not None:
            self._on_event("strike", blow.t_ns, {"node": blow.node, "number": s.number, "fault": s.label, "reached": blow.reached})
        self._say(f"{s.number:5d}  {s.label}{'' if blow.reached else ' (not reached)'}  {blow.node}")
        if not blow.node:
            return
        at = self._wait("protected", blow.t_ns)[1]
        hit.reprotect_ms = round((at - blow.t_ns) / 1e6, 1)
        if hit.was_active:
            receipt = self._wait("receipt", blow.t_ns, RECEIPT_S_MAX)[2]
            hit.uncommitted = receipt["uncommitted"] + receipt["reemitted"]
        else:
            solo = [fields for name, at, fields in list(self.events) if name == "solo" and at >= blow.t_ns]
            hit.uncommitted = solo[0]["released"] if solo else 0

    def _ready(self, pair: Pair, injector: Injector) -> str:
        """The active, once both nodes say that they are protected and no tap has a gap."""
        deadline = time.monotonic() + PROTECTED_S_MAX
        while time.monotonic() < deadline:
            nodes = self._status(pair)
            self._compare(injector)
            self._sample(nodes)
            if all(s.get("protected") and not s.get("tap_gap") for s in nodes.values()):
                for node, s in nodes.items():
                    if s["role"] == "active" and node == pair.active:
                        return node
            time.sleep(0.02)
        states = ", ".join(f"{n}: {s.get('role')}{' tap_gap' if s.get('tap_gap') else ''}" for n, s in nodes.items())
        raise ProtectionError(f"not protected again within {PROTECTED_S_MAX:.0f} s ({states}); last: {self._last()}")

    def _status(self, pair: Pair) -> dict[str, dict[str, Any]]:
        nodes = pair.status()
        for node, s in nodes.items():
            if ports := s.get("ports"):
                drops = sum(port["rx_ring_drops"] for port in ports.values())
                if s["role"] != "active":
                    self._behind[node, s["pid"]] = drops
                self._dropped[node, s["pid"]] = drops - self._behind.get((node, s["pid"]), 0)
        return nodes

    def _compare(self, injector: Injector) -> None:
        """What both nodes say of the whole arena at one epoch must be one digest."""
        seen = [board.digests() for board in injector.boards.values()]
        for at in set(seen[0]) & set(seen[1]) - self._compared:
            self._compared.add(at)
            if seen[0][at] != seen[1][at]:
                self._differ += 1
                self._note("digests_differ", time.monotonic_ns(), {"session": at[0], "epoch": at[1]})

    def _sample(self, nodes: dict[str, dict[str, Any]]) -> None:
        """What would grow if something leaked: this process, which outlives them all, and how many there are."""
        now = time.monotonic()
        if now - self._sampled < SAMPLE_S:
            return
        self._sampled = now
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.samples.append({"t_s": round(now - self._began, 1), "rss_mb": round(pages * os.sysconf("SC_PAGESIZE") / 1e6, 1),
                             "fds": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(),
                             "processes": sum(name.isdigit() for name in os.listdir("/proc"))})

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _note(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        with self._news:
            self.events.append((name, at_ns, fields))
            self._news.notify_all()
        if self._on_event is not None:
            self._on_event(name, at_ns, fields)
        if name in ("takeover", "divergent", "digests_differ"):
            self._say(f"       {name} {fields.get('node', '')} {fields.get('reason', '')} {fields.get('outage_us', 0) / 1000:.1f} ms")

    def _wait(self, name: str, after_ns: int, seconds: float = PROTECTED_S_MAX) -> Event:
        def found() -> Event | None:
            return next((e for e in self.events if e[0] == name and e[1] >= after_ns), None)

        with self._news:
            if not self._news.wait_for(found, seconds):
                raise ProtectionError(f"no {name!r} within {seconds:.0f} s; last: {self._last()}")
            event = found()
            assert event is not None
            return event

    def _last(self) -> str:
        return "; ".join(f"{n} {f.get('node', '')} {f.get('reason', f.get('why', ''))}".strip() for n, _, f in self.events[-6:])

    # ── result ───────────────────────────────────────────────────────────────────────────────────

    def _add_up(self, result: dict[str, Any], injector: Injector, emissions: Emissions, trouble: list[str], began_ns: int,
                ended_ns: int) -> Outcome:
        ledger = Ledger(result, self.hits, injector.cut_ns)
        by_kill = dict(zip((k["t_ns"] for k in result["kills"]), result["outage_ms"], strict=True))
        for hit in self.hits:
            hit.outage_ms = by_kill.get(hit.t_ns)
        kills = [hit for hit in self.hits if hit.node]
        outages = [hit.outage_ms for hit in kills if hit.was_active and hit.outage_ms is not None]
        again = [hit.reprotect_ms for hit in kills if hit.reprotect_ms is not None]
        told = sum(name == "divergent" for name, _, _ in self.events)
        receipts = [fields for name, _, fields in self.events if name == "receipt"]
        body = {
            "seed": self.seed, "profile": self.profile, "kills": len(kills), "kills_counted": sum(hit.counts for hit in kills),
            "faults": {name: n for name, n in sorted(self.counts.items()) if n}, "sent": ledger.sent, "received": ledger.received,
            "lost": ledger.lost, "duplicated": ledger.duplicated, "reordered": ledger.reordered, "corrupt": ledger.corrupt,
            "divergent": told + self._differ + ledger.remapped, "stale_emissions": stale_frames(emissions.runs, self._promotions()),
            "sink_overflow": ledger.sink_overflow + emissions.drops, "tcp_connections": ledger.tcp["connections"],
            "tcp_failed": ledger.tcp["failed"], "tcp_reset": ledger.tcp["reset"],
            "outage_ms": {"p50": quantile(outages, 0.5), "p99": quantile(outages, 0.99), "max": max(outages, default=0.0)},
            "reprotect_ms": {"p50": quantile(again, 0.5), "max": max(again, default=0.0)},
            "receipts": receipts,
        }
        if self.stage.config.input == "ship":
            body["stranded"] = sum(r["stranded"] for r in receipts)
        problems = trouble + [f"{body[key]} {key}" for key in MUST_BE_ZERO if body[key] > self._allowed(key, receipts)]
        if len(kills) < self.kills and not self.run_s and not trouble:
            problems.append(f"{len(kills)} kills of {self.kills}")
        doubts = [f"{n} frames dropped by {what}" for what, n in (
            ("a sink", body["sink_overflow"]), ("an active's own ring", sum(self._dropped.values())),
            ("the kernel's backlog", _backlog_drops() - self._backlog)) if n]
        if not ledger.valid and not doubts:
            doubts = ["a sink's log is full"]
        invalid = f"{', '.join(doubts)}: take a lower --rate" if doubts else ""
        return Outcome(body, problems, invalid, self.hits, list(self.events), emissions.runs, injector.hits(), len(self._compared), ledger.apart,
                       began_ns, ended_ns, self.samples)

    def _allowed(self, key: str, receipts: list[dict[str, Any]]) -> float:
        """How many of MUST_BE_ZERO this run may have."""
        if self.stage.config.input != "ship" or key not in ("lost", "duplicated"):
            return 0
        if key == "duplicated":
            return float(sum(r["reemitted"] for r in receipts))
        return float(sum(r["stranded"] for r in receipts)) if all(r["exact"] for r in receipts) else math.inf

    def _promotions(self) -> list[Promotion]:
        """Who may emit from when: a takeover's first frame leaves before it is reported, but not before the loss was noticed."""
        found: list[Promotion] = []
        noticed: dict[tuple[str, int], int] = {(fields["node"], fields["term"]): fields["lost_ns"]
                                               for name, _, fields in self.events if name == "takeover"}
        for name, at, fields in self.events:
            if name == "active":
                found.append(Promotion(fields["node"], 0 if not found else noticed.get((fields["node"], fields["term"]), at)))
        return found


def _backlog_drops() -> int:
    """Frames that a CPU's queue between two devices had no room for, on this machine, ever."""
    return sum(int(line.split()[1], 16) for line in Path("/proc/net/softnet_stat").read_text().splitlines())


class _HushedPair(LocalPair):
    """A pair whose witness can be made silent, to one node or to all."""

    def __init__(self, config: PairConfig, on_event: Callable[[str, int, dict[str, Any]], None], stderr: int) -> None:
        self._hushed: set[str] = set()
        super().__init__(config, on_event=on_event, stderr=stderr)

    def hush(self, node: str, on: bool) -> None:
        (self._hushed.add if on else self._hushed.discard)(node)

    def _ask(self, question: Question) -> Answer:
        if question.node in self._hushed:
            raise ProtectionError("the witness is silent")
        return super()._ask(question)
