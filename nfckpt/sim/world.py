"""World: two nodes, two segments, a witness and a clock, all of it drawn from one seed. The cores in it are the real ones.

        World(seed=7).run(events=1500)      # an Outcome, or SimViolation with the line that replays it

Picture     safety     events in the order of the simulated clock: a step of a node, frames, a fault
            heal       no more faults; what was stopped goes on, what died is started again
            liveness   the pair is protected again, every input has had its turn, every output has left

One seed draws profile, bounds, delays, clocks, burst sizes and faults; one random generator a component, so that a change in one
does not reshuffle the others. Nothing reads a real clock, nothing sleeps: the same seed gives the same trace, byte for byte.

Faults are nfckpt/sim/faults.py, what must never be untrue is nfckpt/sim/referee.py, nodes are nfckpt/sim/node.py.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from nfckpt.config import Bounds
from nfckpt.errors import PeerError
from nfckpt.failover.detector import Detector
from nfckpt.failover.witness import Question, Witness
from nfckpt.native.arena import Arena
from nfckpt.replica.active import Active
from nfckpt.replica.effects import Effect, Event, Send
from nfckpt.replica.standby import Standby
from nfckpt.sim.app import AppUnderTest
from nfckpt.sim.faults import Faults, schedule
from nfckpt.sim.node import SimNode
from nfckpt.sim.referee import Referee, SimViolation
from nfckpt.sim.segment import HOST, Hub, channel_pair
from nfckpt.sim.shell import SimShell, Stopped
from nfckpt.wire import kinds

__all__ = ["TOY", "Outcome", "SimViolation", "World"]

MS = 1_000_000
US = 1000
TOY = "nfckpt.sim.toy:Toy"
KERNEL_EARLY_NS, KERNEL_LATE_NS = 8 * MS, 4 * MS        # a lease may end so much before or after its time (LeaseClock, margin)
LIVENESS_NS = 3000 * MS
DUPLICATE = 0.15
START_NS = 1000 * MS


@dataclass(frozen=True)
class Outcome:
    """What one run did."""

    seed: int
    profile: str
    digest: str                     # of the trace: equal for equal seeds
    simulated_ms: float
    faults: dict[str, int]
    takeovers: int
    kills: int                      # of a protected active, with an input or an output uncommitted
    inputs: int
    waived: int                     # lost or doubled without breach: the pair was not protected
    missed: int                     # dropped by the active's own ring
    unseen: int                     # frames that the tap did not see
    outputs: int
    covered: frozenset[str]         # transitions, fault points, ends: "active holding void"
    trace: list[str]                # the last lines


class World:
    """`faults`: the numbers of the schedule that strike, None: all. `echo`: called with each line of the trace."""

    names: ClassVar[tuple[str, str]] = ("a", "b")
    EVENTS: ClassVar[int] = 1500
    PATIENT_MS: ClassVar[int] = 100         # claim_ms_max beyond the usual delay of the witness, as it should be

    def __init__(self, seed: int, *, faults: frozenset[int] | None = None, app: str = TOY,
                 echo: Callable[[str], None] | None = None) -> None:
        self.seed, self.only, self.events = seed, faults, self.EVENTS
        draw = random.Random(f"{seed} options")
        self.net, self._chance = random.Random(f"{seed} net"), random.Random(f"{seed} traffic")
        self.cpu = random.Random(f"{seed} cpu")
        self.hosts = draw.random() < 0.5
        self.profile = "hosts" if self.hosts else "host"
        self.secret = bytes(draw.randrange(1, 256) for _ in range(32))
        skew_ms = draw.choice((2, 3, 5))
        self.bounds = Bounds(
            arena_bytes=64 << 10, burst_frames_max=draw.choice((1, 2, 8, 16)), hold_us_max=draw.choice((0, 0, 300, 2000, 9000)),
            quiesce_ms_max=draw.choice((1, 5)), abort_max=draw.choice((3, 10**6)), epochs_outstanding_max=draw.choice((1, 2, 64)),
            names_max=256, gate_frames_max=256, gate_bytes_max=1 << 20, tap_frames_max=4096, tap_bytes_max=1 << 20,
            tap_skew_ms_max=skew_ms, cut_off_ms=4 * skew_ms, sync_group_pages_max=draw.choice((1, 2, 8)), beat_ms=2, hang_ms=20, hang_ms_max=40,
            lease_ms=120 if skew_ms == 5 else 30,       # 120 outlasts the hang bound: a fence that does not wait for it lets frames through
            lease_margin_ms=5, claim_ms_max=draw.choice((10, self.PATIENT_MS)), claim_ms=5, join_ms_max=100, park_frames_max=8,
            unsafe_release_on_abort=draw.random() < 0.3)
        self.app = AppUnderTest(app, self.bounds, self.secret)
        self.spread_ns = draw.choice((1, 100 * US, skew_ms * MS // 2))
        self.channel_ns = draw.choice((1, 50 * US, 1000 * US, 5000 * US))
        self.channel_bytes = draw.choice((300, 4 << 10, 1 << 20))
        self.witness_ns = draw.choice((10 * US, 1 * MS, 8 * MS))
        self.poll_max_ns = draw.choice((100 * US, 400 * US, 800 * US))
        self.preempt = draw.choice((0.0, 0.02, 0.2))
        self.sleepy = draw.random() < 0.8
        self.keep_frames = draw.choice((0.0, 0.0, 0.3))
        self.slow_flush = draw.choice((0.0, 0.2))
        self.tx_ring_frames = draw.choice((4, 256))
        self.proof_ns = draw.choice((0, 100 * US, 2 * MS))
        # each machine's CLOCK_MONOTONIC: since its own boot, at its own rate
        self.clocks = {n: (draw.randrange(10_000 * MS), draw.randrange(-200, 200)) if self.hosts else (0, 0) for n in self.names}
        # between two groups of input, mean: slow enough for a node to catch up
        self.quiet_ms = max(draw.choice((0.3, 2.0, 5.0)), 16 * self.poll_max_ns / MS / self.bounds.burst_frames_max)
        self.hidden_ns = 200 * MS       # how long the tap may not know of an output it missed: a record has to tell it
        self.far = 1 << 62
        self.ship = seed % 8 == 5       # input = "ship", on segments that learn where the pair is
        self.at_node = ""               # where they send what is for the pair

        self.now = START_NS
        self.healed = False
        self.witness = Witness()
        self.hubs = [Hub(self, i) for i in range(2)]
        self.lives: dict[str, SimShell] = {}
        self.referee = Referee(self)
        self.covered: set[str] = set()
        self.takeovers = self.kills = 0
        self._traffic = self.app.traffic(random.Random(f"{seed} frames"))
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=8)
        self._fence: dict[str, dict[int, int]] = {}
        self._mark: dict[SimShell, int] = {}
        self._asks: dict[str, int] = {}
        self._led: dict[str, int] = {}          # by its keeper: the last term that a node took
        self._unheard: dict[str, int] = {}      # until when nothing passes between a node and the witness
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = self._lives = 0
        self._hash = hashlib.sha256()
        self._broken: SimViolation | None = None
        self._trace: deque[str] = deque(maxlen=60)
        self._echo = echo
        scratch = Arena(self.bounds.arena_bytes)
        self.app.declare(self.app.load(), scratch)
        self.layout, self._used = scratch.layout_digest(), scratch.used
        for node in self.names:
            self.at(self.now + draw.randrange(MS), lambda node=node: self._start(node))     # type: ignore[misc]
        self.at(self.now + 5 * MS, self._inject)
        self.faults = Faults(self, schedule(seed, self.hosts, draw.choice((1.0, 4.0, 15.0))), faults)

    # ── the clock ────────────────────────────────────────────────────────────────────────────────

    def at(self, ns: int, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (ns, self._count, act))

    def at_ms(self, ns: int | None = None) -> float:
        return ((self.now if ns is None else ns) - START_NS) / MS

    def _next(self) -> None:
        ns, _, act = heapq.heappop(self._queue)
        self.now = max(self.now, ns)
        act()

    def run(self, events: int = EVENTS) -> Outcome:
        """Safety for so many events, then heal, then liveness. Raises SimViolation."""
        self.events = events
        try:
            self._run(events)
        except SimViolation:
            raise
        except Exception as e:          # a core's own table or assertion refused: as good as any other invariant
            where = e.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            at = f" ({where.tb_frame.f_code.co_name}:{where.tb_lineno})" if where is not None else ""
            self.referee.fail(f"{type(e).__name__}: {e}{at}")
        r = self.referee
        inputs = r.ledger.inputs.values()
        return Outcome(self.seed, self.profile, self._hash.hexdigest(), self.at_ms(), dict(self.faults.counts), self.takeovers, self.kills,
                       sum(len(c.times) for c in inputs), sum(len(c.times) for c in inputs if c.waived),
                       sum(c.missed for c in inputs), sum(c.unseen for c in inputs), r.ledger.emitted, frozenset(self.covered),
                       list(self._trace))

    def _run(self, events: int) -> None:
        for _ in range(events):
            self._next()
        self.healed = True
        self.trace(None, "healed")
        self.faults.heal()
        self._unheard.clear()
        for node in self.lives.values():
            node.stopped_until = node.slow_until = 0
        end = self.now + LIVENESS_NS
        while True:
            protected = self.referee.protected()
            waits = self.referee.unsettled() if protected else "the pair is not protected again"
            if not waits:
                return
            if self.now > end:
                self.referee.fail(waits)
            for _ in range(20):
                self._next()

    def command(self) -> str:
        """What runs this again."""
        app = self.app.config.app
        return (f"nfckpt sim --seed {self.seed} --trace" + (f" --events {self.events}" if self.events != self.EVENTS else "")
                + (f" --faults {','.join(map(str, sorted(self.only))) or 'none'}" if self.only is not None else "")
                + (f" --app {app}" if app != TOY else ""))

    def trace(self, node: SimShell | None, text: str) -> None:
        line = f"{self.at_ms():9.3f} {'' if node is None else node!r:4} {text}"
        self._hash.update(line.encode())
        self._trace.append(line)
        if self._echo is not None:
            self._echo(line)

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def _start(self, name: str) -> None:
        self._lives += 1
        node = self.lives[name] = SimNode(self, name, self._lives)
        self.trace(node, "started")
        self._resume_at(node, self.now)

    def _resume_at(self, node: SimShell, ns: int) -> None:
        node.turn += 1
        turn, node.wakes_ns = node.turn, ns
        self.at(ns, lambda: self._resume(node) if node.turn == turn and node.alive else None)

    def wake(self, node: SimShell | None, ns: int) -> None:
        """Something will be there for it at that time: a node that has nothing to do does not sleep longer."""
        if node is not None and node.sleeps and ns < node.wakes_ns and node.alive:
            self._resume_at(node, max(ns, self.now) + 1 + self.cpu.randrange(self.poll_max_ns))
            node.sleeps = False

    def _resume(self, node: SimShell) -> None:
        if node.stopped_until > self.now:
            self._resume_at(node, node.stopped_until)
            return
        node.sleeps = False
        steps, step_fault, chance, preempt = node.steps, self.faults.step, self.cpu.random, self.preempt
        try:
            while True:
                step = next(steps)
                if self._broken is not None:
                    raise self._broken
                step_fault(node)
                if not node.alive:
                    return
                if step or node.stopped_until or chance() < preempt:
                    self._resume_at(node, max(node.stopped_until, self.now + (step or self.cpu.randrange(100 * US))))
                    return
        except Stopped as e:
            self.trace(node, f"stopped: {e.code} {e.reason}")
            self.referee.ended(node, e.code, e.reason)
            self._end(node, lambda channel: channel.close(), gone=True)

    def _end(self, node: SimShell, leave: Callable[..., None], gone: bool) -> None:
        node.died_ns = self.now
        node.steps.close()
        self.faults.gone(node)
        if node.transport is not None:
            leave(node.transport)
        pause = self.cpu.randrange(1 * MS, 16 * MS)
        if gone:
            self._question(node.node, Question("gone", node.node), None)
            pause += max(0, self._asks.get(node.node, 0) - self.now)
        self.at(self.now + pause, lambda: self._start(node.node))

    def kill(self, node: SimShell, why: str, machine: bool = False) -> None:
        """The process dies here. With its machine: no end of the channel, no keeper that reports it."""
        if node.alive:
            self.trace(node, f"dies: {why}")
            if isinstance(node.core, Active) and node.core.protected and (node.core.agent.pending or node.core.engine.outstanding):
                self.kills += 1
            notice = -1 if machine else self.net.randrange(2 * MS)
            if machine:
                self._led.pop(node.node, None)
            self._end(node, lambda channel: channel.crash(notice), gone=not machine)

    def poll_ns(self, node: SimShell, busy: bool, most_ns: int = MS) -> int:
        """Until its next poll. One that has nothing to do sleeps a millisecond, or `most_ns`, or until something comes."""
        ns = 1 + self.cpu.randrange(self.poll_max_ns) * (20 if node.slow_until > self.now else 1)
        if busy or not self.sleepy:
            return ns
        node.sleeps = True
        heads = [hub.rings[node.node][0][0] for hub in self.hubs if hub.rings[node.node]]
        if node.transport is not None and node.transport.inbox:
            heads.append(node.transport.inbox[0][0])
        return ns + max(0, min(MS, most_ns, min(heads, default=self.far) - self.now))

    def delay_ns(self) -> int:
        return 1 + self.net.randrange(self.channel_ns)

    # ── the witness ──────────────────────────────────────────────────────────────────────────────

    def ask(self, node: SimShell, q: Question) -> None:
        self._question(node.node, q, node)

    def witness_late(self, node: SimShell, ns: int) -> None:
        self._asks[node.node] = max(self.now, self._asks.get(node.node, 0)) + ns

    def witness_silent(self, name: str, ns: int) -> None:
        """For so long, what a keeper carries gets lost: the questions of its node, and its own word that the node is gone."""
        self._unheard[name] = self.now + ns

    def _question(self, name: str, q: Question, node: SimShell | None) -> None:
        """A keeper carries questions one after the other."""
        if q.verb == "took":
            self._led[name] = q.term
        elif q.verb in ("register", "gone"):
            q = msgspec.structs.replace(q, term=self._led.get(name, 0))
        if self.now < self._unheard.get(name, 0):
            self.trace(node, f"asks {q.verb} {q.term} of {q.node}: nobody hears")
            return
        there = max(self.now, self._asks.get(name, 0)) + 1 + self.net.randrange(self.witness_ns)
        back = there + 1 + self.net.randrange(self.witness_ns)
        self._asks[name] = back

        def answer() -> None:
            said = self.witness.ask(q)
            self.covered.add(f"witness {q.verb} {said.said}")
            self.trace(node, f"witness {q.verb} {q.term} of {q.node}: {said.said} {said.term} {said.holder} {self.witness.standby}")
            if node is not None and node.alive:
                node.answers.append((back, said))
            if q.verb == "suspect" and said.said == "ok" and (holder := self.lives.get(said.holder)) is not None:
                holder.answers.append((back, said))             # W7

        self.at(there, answer)

    # ── the channel ──────────────────────────────────────────────────────────────────────────────

    def dial(self, follower: SimShell) -> None:
        lead = self.lives.get(follower.peer)
        if lead is not None and lead.alive and lead.listening:
            lead.accept = follower

    def connect(self, lead: SimShell, follower: SimShell) -> None:
        lead.transport, follower.transport = channel_pair(self, self.channel_bytes)
        lead.transport.owner, follower.transport.owner = lead, follower
        lead.peer_life, follower.peer_life = follower, lead
        lead.adopted_ns = lead.now
        lead.detector = Detector(self.bounds, lead.now)
        self.trace(lead, f"lets {follower!r} in")

    # ── the kernel's fence ───────────────────────────────────────────────────────────────────────

    def fence_install(self, node: SimShell) -> None:
        self._fence[node.node] = {}

    def fence_arm(self, node: SimShell, mark: int, ms: int) -> None:
        """ms -1: for good."""
        if self.hosts:
            off = self.net.randrange(-KERNEL_EARLY_NS, KERNEL_LATE_NS)
            self._fence[node.node][mark] = self.far if ms < 0 else self.now + ms * MS + off

    def fence_stamp(self, node: SimShell, mark: int) -> None:
        self._mark[node] = mark

    def fence_revoke(self, node: SimShell, mark: int) -> None:
        self._fence[node.node].pop(mark, None)

    def fenced(self, node: SimShell) -> bool:
        """Whether the node's kernel refuses its frames now."""
        return self.hosts and self._fence[node.node].get(self._mark.get(node, 0), 0) <= self.now

    # ── the segments ─────────────────────────────────────────────────────────────────────────────

    def emit(self, node: SimShell, hub: Hub, frame: bytes) -> None:
        """A node's kernel takes a frame from the ring."""
        reaches = hub.index not in node.unplugged
        self.trace(node, f"emits {frame[14:45].hex()}{'' if reaches else ', into a cut link'}")
        try:
            self.referee.left(node, hub.index, frame, reaches or not node.doomed)
        except SimViolation as e:
            self._broken = self._broken or e        # native code called us, and it would swallow it
        if reaches:
            hub.send(node.node, frame)
        elif not node.doomed:
            self.referee.ledger.unknown((hub.index, frame))         # may be emitted again

    def _send(self, port: int, frame: bytes) -> None:
        self.referee.ledger.sent((port, frame), self.now)
        self.hubs[port].send(HOST, frame)

    def repeat(self) -> None:
        """A host sends one of the last frames again, byte for byte."""
        if self._recent:
            self._send(*self._chance.choice(self._recent))

    def _inject(self) -> None:
        t = self._chance
        for _ in range(t.choice((1, 1, 3, 10))):
            if self._recent and t.random() < DUPLICATE:
                self.repeat()
            else:
                port, frame = next(self._traffic)
                self._recent.append((port, frame))
                self._send(port, frame)
        if not self.healed:
            self.at(self.now + round(t.expovariate(1 / (self.quiet_ms * MS))), self._inject)

    # ── what nodes report ────────────────────────────────────────────────────────────────────────

    def leads(self, node: SimShell, standby: Standby | None) -> None:
        self.at_node = node.node
        self.trace(node, "leads blank" if standby is None else f"leads from epoch {standby.path.epoch}")
        if standby is None:
            self._recent.clear()
        else:
            self.takeovers += 1
        self.referee.leads(node, standby is None)

    def captured(self, node: SimShell, core: Active) -> None:
        self.trace(node, f"captures epoch {core.engine.epoch - 1}")
        self.referee.captured(core, self.content(core.agent.arena))

    def committed(self, node: SimShell, core: Standby) -> None:
        path = core.path
        self.trace(node, f"commits epoch {path.epoch}")
        self.referee.committed(path.session, path.epoch, self.content(core.arena) if path.last_page else None, path.now_ns)

    def content(self, arena: Arena) -> bytes:
        return bytes(memoryview(arena.view().data)[:self._used])

    def peer_error(self, node: SimShell, error: PeerError, lie: bool) -> None:
        self.trace(node, f"found its peer wrong: {error.message}")
        if lie:
            self.covered.add(f"lie to {'active' if isinstance(node.core, Active) else 'standby'}")
        else:
            self.referee.fail(f"I14: {node!r} found its honest peer wrong: {error.message}")

    def say(self, node: SimShell, effect: Effect) -> None:
        if not isinstance(effect, Send):
            self.trace(node, str(effect))
        elif effect.kind == kinds.CONTROL:
            self.trace(node, f"sends {bytes(effect.payload)[:40]!r}")

    def event(self, node: SimShell, event: Event) -> None:
        if event.name == "protecting":
            self.referee.ledger.session()
        if event.name == "protected" and self.referee.protected():
            self.referee.promise = True
            self.faults.protected()
