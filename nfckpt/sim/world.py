"""World: two nodes, two segments, a witness and a clock, all of it drawn from one seed. The cores in it are the real ones.

        World(seed=7).run(events=1500)      # an Outcome, or SimViolation with the line that replays it

Picture     safety     events in the order of the simulated clock: a step of a node, frames, a fault
            heal       no more faults; what was stopped goes on, what died is started again
            liveness   the pair is protected again, and every input that was promised an answer has one

One seed draws profile, bounds, delays, burst sizes and faults; one random generator a component, so that a change in one does not
reshuffle the others. Nothing reads a real clock, nothing sleeps: the same seed gives the same trace, byte for byte.

Faults      crash (process, or machine: hosts only) · stop for a while · channel cut · the active's ring drops · slow witness ·
            planned switch. They strike between any two steps of a node: between two effects, between capture, ship and release.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from nfckpt.config import Bounds
from nfckpt.errors import PeerError
from nfckpt.failover.witness import Question, Witness
from nfckpt.native.arena import Arena
from nfckpt.replica.active import Active
from nfckpt.replica.effects import Effect, Event, Send
from nfckpt.replica.standby import Standby
from nfckpt.sim.node import SimNode, Steps, Stopped
from nfckpt.sim.referee import Referee, SimViolation
from nfckpt.sim.segment import Hub, channel_pair
from nfckpt.sim.toy import FLOWS, Frame, Toy, question
from nfckpt.wire import kinds

__all__ = ["Outcome", "SimViolation", "World"]

MS = 1_000_000
US = 1000
KERNEL_EARLY_NS, KERNEL_LATE_NS = 8 * MS, 4 * MS        # a lease may end so much before or after its time (LeaseClock, margin)
LIVENESS_NS = 1500 * MS
DUPLICATE = 0.15


@dataclass(frozen=True)
class Outcome:
    """What one run did."""

    seed: int
    profile: str
    digest: str                     # of the trace: equal for equal seeds
    simulated_ms: float
    faults: dict[str, int]
    takeovers: int
    inputs: int
    waived: int                     # lost or doubled without breach: the pair was not protected
    missed: int                     # dropped by the active's own ring
    outputs: int
    covered: frozenset[str]         # transitions and steps, "active holding void"
    trace: list[str]                # the last lines


class World:
    """`echo`: called with each line of the trace."""

    names: ClassVar[tuple[str, str]] = ("a", "b")
    EVENTS: ClassVar[int] = 1500
    PATIENT_MS: ClassVar[int] = 100         # claim_ms_max beyond any delay of the witness, as it should be

    def __init__(self, seed: int, *, echo: Callable[[str], None] | None = None) -> None:
        self.seed, self.events = seed, self.EVENTS
        draw = random.Random(f"{seed} options")
        self.net, self.traffic = random.Random(f"{seed} net"), random.Random(f"{seed} traffic")
        self.faults, self.cpu = random.Random(f"{seed} faults"), random.Random(f"{seed} cpu")
        self.hosts = draw.random() < 0.5
        self.profile = "hosts" if self.hosts else "host"
        self.secret = bytes(draw.randrange(1, 256) for _ in range(32))
        skew_ms = draw.choice((2, 3, 5))
        self.bounds = Bounds(
            arena_bytes=64 << 10, burst_frames_max=draw.choice((1, 2, 8, 32)), hold_us_max=draw.choice((0, 0, 300, 2000, 9000)),
            quiesce_ms_max=draw.choice((1, 5)), abort_max=10**6, epochs_outstanding_max=draw.choice((1, 2, 64)), names_max=256,
            gate_frames_max=256, gate_bytes_max=1 << 20, tap_frames_max=4096, tap_bytes_max=1 << 20, tap_skew_ms_max=skew_ms,
            sync_group_pages_max=draw.choice((1, 2, 8)), beat_ms=2, hang_ms_max=40, lease_ms=30, lease_margin_ms=5,
            claim_ms_max=draw.choice((10, self.PATIENT_MS)), join_ms_max=100, park_frames_max=1)
        self.spread_ns = draw.choice((1, 100 * US, skew_ms * MS // 2))
        self.channel_ns = draw.choice((1, 50 * US, 1000 * US, 5000 * US))
        self.channel_bytes = draw.choice((4 << 10, 1 << 20))
        self.witness_ns = draw.choice((10 * US, 1 * MS, 8 * MS))
        self.poll_max_ns = draw.choice((100 * US, 400 * US, 800 * US))
        self.preempt = draw.choice((0.0, 0.02, 0.2))
        self.keep_frames = draw.choice((0.0, 0.0, 0.3))
        self.slow_flush = draw.choice((0.0, 0.2))
        self.tx_ring_frames = draw.choice((4, 256))
        self.proof_ns = draw.choice((0, 100 * US, 2 * MS))
        # between two groups of input, mean: slow enough for a node to catch up
        self.quiet_ms = max(draw.choice((0.2, 1.0, 3.0)), 16 * self.poll_max_ns / MS / self.bounds.burst_frames_max)
        self.fault_ms = draw.choice((15.0, 40.0, 120.0))        # between two faults, mean
        self.far = 1 << 62

        self.now = 1_000 * MS
        self.healed = False
        self.witness = Witness()
        self.hubs = [Hub(self, i) for i in range(2)]
        self.lives: dict[str, SimNode] = {}
        self.referee = Referee(self)
        self.covered: set[str] = set()
        self.struck: Counter[str] = Counter()
        self.takeovers = 0
        self.recent: deque[tuple[int, int, int]] = deque(maxlen=8)
        self._number = 0
        self._steps: dict[SimNode, Steps] = {}
        self._armed: dict[SimNode, tuple[int, Callable[[SimNode], None]]] = {}
        self._stopped: dict[SimNode, int] = {}
        self._drops: Counter[str] = Counter()
        self._fence: dict[str, dict[int, int]] = {}
        self._mark: dict[SimNode, int] = {}
        self._asks: dict[str, int] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = self._lives = 0
        self._hash = hashlib.sha256()
        self._broken: SimViolation | None = None
        self._trace: deque[str] = deque(maxlen=60)
        self._echo = echo
        scratch = Arena(self.bounds.arena_bytes)
        Toy(scratch, self.secret, random.Random(0))
        self.layout, self._used = scratch.layout_digest(), scratch.used
        for node in self.names:
            self.at(self.now + draw.randrange(MS), lambda node=node: self._start(node))     # type: ignore[misc]
        self.at(self.now + 5 * MS, self._inject)
        self.at(self.now + 30 * MS, self._strike)

    # ── the clock ────────────────────────────────────────────────────────────────────────────────

    def at(self, ns: int, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (ns, self._count, act))

    def _next(self) -> None:
        ns, _, act = heapq.heappop(self._queue)
        self.now = max(self.now, ns)
        act()

    def run(self, events: int = EVENTS) -> Outcome:
        """Safety for so many events, then heal, then liveness. Raises SimViolation."""
        self.events = events
        for _ in range(events):
            self._next()
        self.healed = True
        self.trace(None, "healed")
        self._drops.clear()
        for node in list(self._stopped):
            self._stopped[node] = self.now
        end = self.now + LIVENESS_NS
        while not (self.referee.protected() and not self.referee.unanswered()):
            if self.now > end:
                lost = self.referee.unanswered()
                self.referee.fail(f"{len(lost)} inputs without answer, first {lost[0]}" if lost else "the pair is not protected again")
            for _ in range(20):
                self._next()
        r = self.referee
        return Outcome(self.seed, self.profile, self._hash.hexdigest(), (self.now - 1000 * MS) / MS, dict(self.struck), self.takeovers,
                       sum(a.sent for a in r.asked.values()), sum(a.sent for a in r.asked.values() if a.waived),
                       sum(a.missed for a in r.asked.values()), r.emitted, frozenset(self.covered), list(self._trace))

    def trace(self, node: SimNode | None, text: str) -> None:
        line = f"{(self.now - 1000 * MS) / MS:9.3f} {'' if node is None else repr(node):4} {text}"
        self._hash.update(line.encode())
        self._trace.append(line)
        if self._echo is not None:
            self._echo(line)

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def _start(self, name: str) -> None:
        self._lives += 1
        node = self.lives[name] = SimNode(self, name, self._lives)
        self.trace(node, "started")
        self._steps[node] = node.life()
        self._resume(node)

    def _resume(self, node: SimNode) -> None:
        steps = self._steps.get(node)
        if steps is None:
            return
        until = self._stopped.get(node, 0)
        if until > self.now:
            self.at(until, lambda: self._resume(node))
            return
        try:
            while True:
                step = next(steps)
                if self._broken is not None:
                    raise self._broken
                armed = self._armed.get(node)
                if armed is not None and not self.healed:
                    left, strike = armed
                    self._armed[node] = left - 1, strike
                    if left == 0:
                        del self._armed[node]
                        strike(node)
                        if not node.alive:
                            return
                if step or self._stopped.get(node, 0) > self.now or self.cpu.random() < self.preempt:
                    self.at(self.now + (step or self.cpu.randrange(100 * US)), lambda: self._resume(node))
                    return
        except Stopped as e:
            self.trace(node, f"stopped: {e.code} {e.reason}")
            if e.code == 6:
                self.referee.fail(f"I8: {node!r} stopped: {e.reason}")
            self._end(node, lambda channel: channel.close(), gone=True)

    def _end(self, node: SimNode, leave: Callable[..., None], gone: bool) -> None:
        node.died_ns = self.now
        self._steps.pop(node)
        self._stopped.pop(node, None)
        self._armed.pop(node, None)
        if node.transport is not None:
            leave(node.transport)
        pause = self.cpu.randrange(2 * MS, 30 * MS)
        if gone:
            self._question(node.node, Question("gone", node.node), None)
            pause += self._asks[node.node] - self.now
        self.at(self.now + pause, lambda: self._start(node.node))

    def kill(self, node: SimNode, why: str, machine: bool = False) -> None:
        """The process dies here. With its machine: no end of the channel, no keeper that reports it."""
        if node.alive:
            self.trace(node, f"dies: {why}")
            notice = -1 if machine else self.net.randrange(2 * MS)
            self._end(node, lambda channel: channel.crash(notice), gone=not machine)

    def poll_ns(self, node: SimNode) -> int:
        return 1 + self.cpu.randrange(self.poll_max_ns)

    def delay_ns(self) -> int:
        return 1 + self.net.randrange(self.channel_ns)

    # ── the witness ──────────────────────────────────────────────────────────────────────────────

    def ask(self, node: SimNode, q: Question) -> None:
        self._question(node.node, q, node)

    def _question(self, name: str, q: Question, node: SimNode | None) -> None:
        """A keeper carries questions one after the other."""
        there = max(self.now, self._asks.get(name, 0)) + 1 + self.net.randrange(self.witness_ns)
        back = there + 1 + self.net.randrange(self.witness_ns)
        self._asks[name] = back

        def answer() -> None:
            said = self.witness.ask(q)
            self.trace(node, f"witness {q.verb} {q.term} of {q.node}: {said.said} {said.term} {said.holder} {self.witness.standby}")
            if node is not None and node.alive:
                node.answers.append((back, said))

        self.at(there, answer)

    # ── the channel ──────────────────────────────────────────────────────────────────────────────

    def dial(self, follower: SimNode) -> None:
        lead = self.lives.get(follower.peer)
        if lead is not None and lead.alive and lead.listening:
            lead.accept = follower

    def connect(self, lead: SimNode, follower: SimNode) -> None:
        lead.transport, follower.transport = channel_pair(self, self.channel_bytes)
        lead.peer_life, follower.peer_life = follower, lead
        lead.adopted_ns = self.now
        self.trace(lead, f"lets {follower!r} in")

    # ── the kernel's fence ───────────────────────────────────────────────────────────────────────

    def fence_install(self, node: SimNode) -> None:
        self._fence[node.node] = {}

    def fence_arm(self, node: SimNode, mark: int, ms: int) -> None:
        """ms -1: for good."""
        if self.hosts:
            off = self.net.randrange(-KERNEL_EARLY_NS, KERNEL_LATE_NS)
            self._fence[node.node][mark] = self.far if ms < 0 else self.now + ms * MS + off

    def fence_stamp(self, node: SimNode, mark: int) -> None:
        self._mark[node] = mark

    def fence_revoke(self, node: SimNode, mark: int) -> None:
        self._fence[node.node].pop(mark, None)

    # ── the segments ─────────────────────────────────────────────────────────────────────────────

    def fenced(self, node: SimNode) -> bool:
        """Whether the node's kernel refuses its frames now."""
        return self.hosts and self._fence[node.node].get(self._mark.get(node, 0), 0) <= self.now

    def emit(self, node: SimNode, hub: Hub, frame: bytes) -> None:
        """A node's kernel takes a frame from the ring."""
        self.trace(node, f"emits {frame[14:37].hex()}")
        try:
            self.referee.answer(node, hub.index, frame)
        except SimViolation as e:
            self._broken = self._broken or e        # native code called us, and it would swallow it
        hub.send(node.node, frame)

    def ring_drops(self, name: str, hub: int, frame: bytes) -> bool:
        node = self.lives.get(name)
        if self._drops[name] <= 0 or node is None or not node.alive or not isinstance(node.core, Active):
            return False
        self._drops[name] -= 1
        self.referee.missed(frame)
        self.trace(node, f"ring drops {frame[14:37].hex()}")
        return True

    def _inject(self) -> None:
        t = self.traffic
        for _ in range(t.choice((1, 1, 3, 10))):
            if self.recent and t.random() < DUPLICATE:
                side, flow, number = t.choice(self.recent)
            else:
                self._number += 1
                side, flow, number = t.randrange(2), t.randrange(FLOWS), self._number
                self.recent.append((side, flow, number))
            self.referee.question(side, flow, number)
            self.hubs[side].send("host", question(side, flow, number))
        if not self.healed:
            self.at(self.now + round(t.expovariate(1 / (self.quiet_ms * MS))), self._inject)

    # ── faults ───────────────────────────────────────────────────────────────────────────────────

    def _strike(self) -> None:
        f = self.faults
        if self.healed:
            return
        self.at(self.now + round(f.expovariate(1 / (self.fault_ms * MS))), self._strike)
        living = [n for n in self.lives.values() if n.alive]
        lead = next((n for n in living if isinstance(n.core, Active)), None)
        follower = next((n for n in living if isinstance(n.core, Standby)), None)
        what = f.choice(("crash active", "crash active", "crash active", "crash standby", "stop active", "stop standby", "cut",
                         "ring drop", "slow witness", "switch"))
        if what == "cut" and not self.hosts:
            what = "stop standby"               # shared memory has no wire
        node = follower if what.endswith("standby") else lead
        if node is None or node in self._armed:
            return
        acts: dict[str, Callable[[SimNode], None]] = {
            "crash": self._crash, "stop": self._stop, "cut": self._cut, "ring": self._ring, "slow": self._slow, "switch": self._switch}

        def strike(node: SimNode) -> None:
            self.struck[what] += 1
            acts[what.split()[0]](node)

        self._armed[node] = f.randrange(40), strike

    def _crash(self, node: SimNode) -> None:
        self.referee.fault()
        machine = self.hosts and self.faults.random() < 0.5
        self.kill(node, "machine" if machine else "crash", machine)

    def _stop(self, node: SimNode) -> None:
        self.referee.fault()
        ms = self.faults.choice((3, 15, 30, 60, 120))
        self.trace(node, f"is stopped for {ms} ms")
        self._stopped[node] = self.now + ms * MS

    def _cut(self, node: SimNode) -> None:
        if node.transport is None:
            return
        self.referee.fault()
        self.trace(node, "channel cut")
        ends = node.transport, node.transport.peer
        for end in ends:
            arrived = sum(due <= self.now for due, _, _ in end.inbox)
            while len(end.inbox) > arrived:
                end.inbox.pop()
            if end.end_ns < 0:
                end.end_ns = self.now + self.net.randrange(5 * MS) if self.faults.random() < 0.5 else self.far
                end.end_reason = "connection reset"

    def _ring(self, node: SimNode) -> None:
        self._drops[node.node] = self.faults.choice((1, 5))

    def _slow(self, node: SimNode) -> None:
        self._asks[node.node] = max(self.now, self._asks.get(node.node, 0)) + self.faults.choice((5, 20)) * MS
        self.trace(node, "its witness is slow")

    def _switch(self, node: SimNode) -> None:
        if isinstance(node.core, Active):
            self.referee.fault()                # no fault, but it gives away what only it knows to be whole
            self.trace(node, f"planned switch: {node.core.hand_over()}")

    # ── what nodes report ────────────────────────────────────────────────────────────────────────

    def leads(self, node: SimNode, blank: bool, standby: Standby | None) -> None:
        self.trace(node, f"leads {'blank' if blank else f'from epoch {standby.path.epoch}' if standby else ''}")
        if blank:
            self.recent.clear()
        else:
            self.takeovers += 1
        self.referee.leads(node, blank)

    def captured(self, node: SimNode, core: Active) -> None:
        self.trace(node, f"captures epoch {core.engine.epoch - 1}")
        self.referee.captured(core, self._content(core.agent.arena))

    def committed(self, node: SimNode, session: int, epoch: int, arena: Arena | None) -> None:
        self.trace(node, f"commits epoch {epoch}")
        self.referee.committed(session, epoch, None if arena is None else self._content(arena))

    def _content(self, arena: Arena) -> bytes:
        return hashlib.sha256(memoryview(arena.view().data)[:self._used]).digest()

    def unexpected(self, node: object, frame: Frame) -> None:
        assert isinstance(node, SimNode)
        self.referee.unexpected(node, frame)

    def peer_error(self, node: SimNode, error: PeerError) -> None:
        self.referee.fail(f"{node!r} found its honest peer wrong: {error.message}")

    def say(self, node: SimNode, effect: Effect) -> None:
        if not isinstance(effect, Send):
            self.trace(node, str(effect))
        elif effect.kind == kinds.CONTROL:
            self.trace(node, f"sends {bytes(effect.payload)[:40]!r}")

    def event(self, node: SimNode, event: Event) -> None:
        if event.name == "protected" and self.referee.protected():
            self.referee.promise = True
