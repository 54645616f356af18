"""SimNode: one life of a packet process around the real cores, as nfckpt/node/ performs it, on simulated things.

Picture     life() is a generator. It yields at every boundary where the world may crash it, stop it, or let others run first:
            0 between any two effects, and between receive, app, finish, capture, ship, release;  n > 0: idle for n ns.

            register ─► lead ─────────────────────────► hook · rx_burst · app · finish · hook · …
                    └─► follow ─► takeover ─► promoted ┘

What nfckpt/node/ does with sockets, pidfds and the kernel's lease is here a call to the world. The order is its: change it there,
change it here. A crash drops the generator; nothing of it runs any more.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from nfckpt.checkpoint.engine import Engine
from nfckpt.clock import PairClock
from nfckpt.errors import PeerError
from nfckpt.failover.lease_clock import LeaseClock
from nfckpt.failover.takeover import Takeover
from nfckpt.failover.witness import Answer, Question
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.delta_encoder import DeltaEncoder
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.port import Port
from nfckpt.native.tap import Tap
from nfckpt.replica.active import Active
from nfckpt.replica.effects import (
    Ask,
    DropPeer,
    Effect,
    Event,
    KillPeer,
    LeaseArm,
    LeasePermanent,
    LeaseStamp,
    Promote,
    Send,
    Stop,
)
from nfckpt.replica.standby import Standby
from nfckpt.sim.segment import Channel, SimPort
from nfckpt.sim.toy import BURST_BYTES, Toy
from nfckpt.wire import kinds
from nfckpt.wire.transport import CLOSED

if TYPE_CHECKING:
    from nfckpt.sim.world import World

__all__ = ["SimNode", "Stopped"]

MS = 1_000_000
US = 1000
Steps = Iterator[int]


class Stopped(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _TracedActive(Active):
    world: World

    def _move(self, event: str) -> None:
        self.world.covered.add(f"active {self.state.value} {event}")
        super()._move(event)


class _TracedStandby(Standby):
    world: World

    def _move(self, event: str) -> None:
        self.world.covered.add(f"standby {self.state.value} {event}")
        super()._move(event)


class SimNode:
    """One process of node `node`, started now, blank."""

    def __init__(self, world: World, node: str, number: int) -> None:
        self.world, self.node, self.number, self.bounds = world, node, number, world.bounds
        self.peer = next(n for n in world.names if n != node)
        self.rng = random.Random(f"{world.seed} {node} {number}")
        self.died_ns = -1
        self.generation = 0                                 # of the state it leads with; 0: not leading
        self.core: Active | Standby | None = None
        self.takeover: Takeover | None = None
        self.transport: Channel | None = None
        self.adopted_ns = 0
        self.peer_life: SimNode | None = None               # pidfd and life lock of the process at the other end
        self.watched = False
        self.outbox: deque[Send] = deque()
        self.answers: deque[tuple[int, Answer]] = deque()
        self.accept: SimNode | None = None                  # a follower that dials
        self.listening = False
        self.promoted = 0
        self.permanent_mark = 0
        self.outputs: dict[bytes, int] = {}                 # frame -> epoch it was sent in
        self.permitted = 0                                  # epochs that were let go before protection
        self.ports: list[Port] = [SimPort(self, hub) for hub in world.hubs]
        self._slow_ns = 0
        self._checked = 0
        for hub in world.hubs:
            hub.open(node)

    def __repr__(self) -> str:
        return f"{self.node}{self.number}"

    @property
    def alive(self) -> bool:
        return self.died_ns < 0

    def life(self) -> Steps:
        """Everything this process does."""
        w = self.world
        if w.hosts:
            w.fence_install(self)
        asked = -w.far
        term: int | None = None
        registered = False
        while not registered:
            if w.now - asked > self.bounds.claim_ms_max * MS:
                asked = w.now
                w.ask(self, Question("register", self.node, life=str(self.number)))
            yield 200 * US
            for answer in self._heard():
                if answer.verb == "register":
                    registered, term = True, answer.term if answer.said == "lead" else None
        if term is None:
            yield from self._follow()
            yield from self._lead(blank=False, term=self.promoted)
        else:
            yield from self._lead(blank=True, term=term)

    def _heard(self) -> list[Answer]:
        out = []
        while self.answers and self.answers[0][0] <= self.world.now:
            out.append(self.answers.popleft()[1])
        return out

    # ── effects ──────────────────────────────────────────────────────────────────────────────────

    def _drop_channel(self, keep_watch: bool = False) -> None:
        if self.transport is not None:
            self.transport.close()
            self.transport = None
        self.outbox.clear()
        if not keep_watch:
            self.peer_life = None

    def _peer_dead(self) -> bool:
        """The kernel's word, which takes a moment. Never across machines."""
        p = self.peer_life
        return not self.world.hosts and p is not None and not p.alive and self.world.now >= p.died_ns + self.world.proof_ns

    def _push(self) -> bool:
        t = self.transport
        if t is None:
            return True
        while self.outbox and t.send(self.outbox[0].kind, self.outbox[0].payload):
            self.outbox.popleft()
        path = self.core.path if isinstance(self.core, Active) else None
        while path is not None and not self.outbox and (staged := path.staged) is not None:
            if not t.send(kinds.EPOCH, staged):
                return False
            path.shipped()
        return not self.outbox

    def _perform(self, effects: list[Effect]) -> Steps:
        w = self.world
        for e in effects:
            yield 0
            w.say(self, e)
            if isinstance(e, Send):
                if self.transport is not None and (self.outbox or not self.transport.send(e.kind, e.payload)):
                    self.outbox.append(e)
            elif isinstance(e, LeaseArm):
                w.fence_arm(self, e.mark, e.ms)
            elif isinstance(e, LeaseStamp):
                w.fence_stamp(self, e.mark)
                if self.permanent_mark:
                    w.fence_revoke(self, self.permanent_mark)
                self.permanent_mark = 0
            elif isinstance(e, LeasePermanent):
                w.fence_arm(self, e.mark, -1)
                self.permanent_mark = e.mark
                w.fence_stamp(self, e.mark)
            elif isinstance(e, Ask):
                w.ask(self, e.question)
            elif isinstance(e, DropPeer):
                self._drop_channel(keep_watch=True)
            elif isinstance(e, KillPeer):
                if self.peer_life is not None and not w.hosts:
                    w.kill(self.peer_life, "killed by its peer")
            elif isinstance(e, Promote):
                self.promoted = e.term
            elif isinstance(e, Stop):
                deadline = w.now + 5 * MS
                while not self._push() and w.now < deadline:
                    yield 500 * US
                raise Stopped(e.code, e.reason)
            elif isinstance(e, Event):
                w.event(self, e)

    # ── following ────────────────────────────────────────────────────────────────────────────────

    def _follow(self) -> Steps:
        w, b = self.world, self.bounds
        self.arena = Arena(b.arena_bytes)
        self.clock = PairClock()
        tap = Tap(self.ports, w.secret, b.tap_skew_ms_max * MS, b.tap_frames_max, b.tap_bytes_max, b.gate_frames_max * 2,
                  b.gate_bytes_max * 2)
        deadline = w.now + b.join_ms_max * MS
        while self.transport is None:
            tap.poll(w.now)
            self._heard()
            if w.now > deadline:
                raise Stopped(11, "no active answered")
            w.dial(self)
            yield 500 * US
        core = self.core = _TracedStandby(pair="sim", node=self.node, layout=w.layout, bounds=b, secret=w.secret,
                                          arena=self.arena, tap=tap, clock=self.clock, now=w.now)
        core.world = w
        yield from self._perform(core.hello())
        while not self.promoted:
            yield from self._follow_once(core)
            yield w.poll_ns(self)

    def _follow_once(self, core: Standby) -> Steps:
        w = self.world
        now = w.now
        core.tap.poll(now)
        yield 0
        lost = ""
        t = self.transport
        if t is not None:
            try:
                for _ in range(64):
                    message = t.recv()
                    if message is None:
                        break
                    now = w.now
                    effects = core.on_message(now, *message)
                    self._applied(core)
                    yield from self._perform(effects)
                    self._push()
                lost = t.closed or ""
            except PeerError as e:
                w.peer_error(self, e)
                lost = e.message
        if core.waiting:
            effects = core.work(now)
            self._applied(core)
            yield from self._perform(effects)
        self._push()
        if now >= self._slow_ns:
            self._slow_ns = now + MS
            effects = core.work(now)
            self._applied(core)
            yield from self._perform(effects)
            for answer in self._heard():
                if self.takeover is not None:
                    yield from self._perform(self.takeover.on_witness(now, answer))
            core.tap.note_drops(now)
            if not lost and now - core.path.heard_ns > self.bounds.hang_ms_max * MS:
                lost = "active silent"
        if self.takeover is None:
            proof = self._peer_dead()
            if proof or lost or core.handover:
                yield from self._lost(core, now, lost or ("handover" if core.handover else "killed"), proof)
        if self.takeover is not None:
            if not self.takeover.peer_dead and self._peer_dead():
                self.takeover.on_peer_dead()
            w.covered.add(f"takeover {self.takeover.step.value}")
            effects = self.takeover.advance(w.now)
            w.covered.add(f"takeover {self.takeover.step.value}")
            yield from self._perform(effects)

    def _applied(self, core: Standby) -> None:
        """I7, I8: what is committed here is what the active captured."""
        path = core.path
        if path.epoch != self._checked:
            self._checked = path.epoch
            self.world.committed(self, path.session, path.epoch, self.arena if path.last_page else None)

    def _lost(self, core: Standby, now: int, reason: str, proof: bool) -> Steps:
        w = self.world
        if not proof and not w.hosts and not core.handover:
            end = w.now + 5 * MS
            while not (proof := self._peer_dead()) and w.now < end:
                core.tap.poll(w.now)
                yield 200 * US
        parted = False
        if proof and self.transport is not None:
            with contextlib.suppress(PeerError):
                while (message := self.transport.recv()) is not None:
                    effects = core.on_message(w.now, *message)
                    self._applied(core)
                    yield from self._perform(effects)
            parted = (self.transport.closed or "").startswith(CLOSED)
        w.trace(self, f"lost the active: {reason}, proof {proof}, {core.state.value}")
        if not core.may_claim:
            raise Stopped(11, f"lost the active while {core.state.value}: {reason}")
        self.takeover = Takeover(core, self.bounds, node=self.node, now=w.now, lost_ns=now, reason=reason, proof=proof,
                                 kills=not w.hosts, leases=w.hosts, handover=core.handover, parted=parted)

    # ── leading ──────────────────────────────────────────────────────────────────────────────────

    def _lead(self, *, blank: bool, term: int) -> Steps:
        w, b = self.world, self.bounds
        standby = self.core
        if isinstance(standby, Standby):
            now = w.now
            try:
                while self.transport is not None and (message := self.transport.recv()) is not None:
                    if message[0] == kinds.EPOCH:
                        standby.on_message(now, *message)
                        self._applied(standby)
            except PeerError as e:
                w.peer_error(self, e)
            standby.drain(now)
            self._applied(standby)
            yield 0
            self._drop_channel()
            yield 0
        else:
            self.arena = Arena(b.arena_bytes)
            self.clock = PairClock(0, w.now)
        arena = Arena(fd=os.dup(self.arena.fd))
        toy = Toy(arena, w.secret, self.rng)
        gate = Gate(self.ports, b.gate_frames_max, b.gate_bytes_max)
        agent = self.agent = Agent(self.ports, arena, gate, w.secret, names_max=b.names_max, parking=toy.parking)
        engine = Engine(b, (standby.path.epoch if isinstance(standby, Standby) else 0) + 1)
        agent.epoch = engine.epoch
        self.writer = EpochWriter(w.secret)
        lease = LeaseClock(b.lease_ms, b.beat_ms) if w.hosts else None
        core = _TracedActive(pair="sim", node=self.node, peer=self.peer, layout=w.layout, bounds=b, term=term, agent=agent,
                             engine=engine, writer=self.writer, clock=self.clock, lease=lease, kills=not w.hosts)
        core.world = w
        self.core = core
        if w.hosts:
            core.path.encode_with(DeltaEncoder(arena, w.secret, b.names_max, b.gate_frames_max))
        w.leads(self, blank, standby if isinstance(standby, Standby) else None)
        yield from self._perform(core.unlimited(w.now))
        if isinstance(standby, Standby):
            gate.start_at(standby.path.next_seq)
            for _, port, frame in standby.tap.unseen_outputs():
                self.outputs[frame] = agent.epoch
                agent.emit(port, frame)
            agent.tap = standby.tap
        yield 0
        gate.release()
        yield 0
        self.takeover = None
        self.listening = True
        filter_due = w.now + 2 * b.tap_skew_ms_max * MS
        burst = Burst(BURST_BYTES)
        self._slow_ns = 0
        while True:
            if not (yield from self._hook(core, filter_due)):
                yield 0
                if agent.rx_burst(burst, b.burst_frames_max):
                    yield 0
                    while self.rng.random() < w.keep_frames:          # an app that polls before it lets go
                        yield from self._hook(core, filter_due)
                        yield w.poll_ns(self)
                    for frame in toy.on_burst(burst, w.unexpected, self):
                        self.outputs[frame] = agent.epoch
                    yield 0
                    agent.finish(burst)
            yield w.poll_ns(self)

    def _hook(self, core: Active, filter_due: int) -> Generator[int, None, bool]:
        """The poll boundary. Returns True for "no packets"."""
        w, agent = self.world, self.agent
        now = w.now
        t = self.transport
        if t is not None:
            lost = ""
            try:
                while (message := t.recv()) is not None:
                    if core.session == 0 or core.state.value == "solo":
                        effects = core.on_hello(now, message[1])
                        self.permitted = core.engine.committed
                        yield from self._perform(effects)
                    else:
                        yield from self._perform(core.on_message(now, *message))
                    if self.transport is not t:
                        break
                lost = t.closed or ""
            except PeerError as e:
                w.peer_error(self, e)
                lost = e.message
            if lost and self.transport is t:
                yield from self._perform(core.on_peer_lost(now, lost, self._peer_dead()))
                self._drop_channel(keep_watch=core.state.value == "holding")
        if core.may_release(now):
            yield 0
            agent.gate.release()
        yield 0
        if now >= self._slow_ns:
            yield from self._slow(core, now, filter_due)
        if core.path.staging.count or self.outbox:
            self._push()
            yield 0
        before = core.engine.epoch
        quiet: bool = core.path.poll(now)
        if core.engine.epoch != before:
            w.captured(self, core)
        if core.path.staging.count:
            yield 0
            self._push()
        yield 0
        return quiet

    def _slow(self, core: Active, now: int, filter_due: int) -> Steps:
        w, agent = self.world, self.agent
        self._slow_ns = now + MS
        for answer in self._heard():
            yield from self._perform(core.on_witness(now, answer))
        if not core.peer_dead and self._peer_dead():
            yield from self._perform(core.on_peer_lost(now, "its process ended", True))
        yield from self._perform(core.tick(now))
        self._push()
        agent.paused = core.handing_over
        if core.handing_over:
            yield from self._perform(core.handed_over(now))
        if self.transport is not None and core.state.value == "solo" and now - self.adopted_ns > self.bounds.hang_ms_max * MS:
            self._drop_channel()
        follower, self.accept = self.accept, None
        if follower is not None and follower.alive and self.transport is None and core.state.value == "solo":
            w.connect(self, follower)
        if agent.tap is not None:
            agent.tap.poll(w.now)           # the agent reads it by the machine's clock; age counts by ours
            agent.tap.age(0)
            if now >= filter_due and not agent.tap.waiting_inputs:
                agent.tap = None
