"""SimShell: what following and leading share, as nfckpt/node/shell.py has it, on simulated things.

Steps       a life is a generator. It yields at every boundary where the world may crash it, stop it, or let others run first:
            0 between any two steps, `point` says which; n > 0: idle for n ns.

What the real shell does with sockets, pidfds and the kernel's lease is here a call to the world. The order is its: change it there,
change it here.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING

from nfckpt.clock import PairClock
from nfckpt.failover.detector import Detector
from nfckpt.failover.takeover import Takeover
from nfckpt.failover.witness import Answer
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.port import Port
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
from nfckpt.sim.app import Runnable, SimContext
from nfckpt.sim.segment import Channel, SimPort
from nfckpt.wire import kinds
from nfckpt.wire.messages import decode_ack

if TYPE_CHECKING:
    from nfckpt.sim.world import World

__all__ = ["MS", "US", "SimShell", "Steps", "Stopped"]

MS = 1_000_000
US = 1000
KILL_NS = 500 * US, 10 * MS     # a signal takes its time: the process may be on another CPU, or was preempted in the middle of a send
Steps = Generator[int, None, None]


class Stopped(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class SimShell:
    """State of one process of node `node`, started now, blank."""

    steps: Steps
    agent: Agent
    ctx: SimContext
    clock: PairClock
    arena: Arena

    def __init__(self, world: World, node: str, number: int) -> None:
        self.world, self.node, self.number, self.bounds = world, node, number, world.bounds
        self.peer = next(n for n in world.names if n != node)
        self.rng = random.Random(f"{world.seed} {node} {number}")
        self.boot_ns, self.drift_ppm = world.clocks[node]
        self.died_ns = -1
        self.stopped_until = self.slow_until = self.keeps_until = 0
        self.turn = self.wakes_ns = 0
        self.sleeps = False                                 # has nothing to do until `wakes_ns`
        self.point = "idle"                                 # where it stands: one of nfckpt.sim.faults.POINTS
        self.generation = 0                                 # of the state it leads with; 0: not leading
        self.core: Active | Standby | None = None
        self.app: Runnable | None = None
        self.takeover: Takeover | None = None
        self.transport: Channel | None = None
        self.adopted_ns = 0
        self.detector = Detector(world.bounds, self.now)
        self.peer_life: SimShell | None = None               # pidfd and life lock of the process at the other end
        self.outbox: deque[Send] = deque()
        self.answers: deque[tuple[int, Answer]] = deque()
        self.accept: SimShell | None = None                  # a follower that dials
        self.listening = False
        self.promoted = 0
        self.permanent_mark = 0
        self.takes_back = 0                                 # number of a request that an operator will take back
        self.last_record = b""
        self.leaving: list[deque[tuple[int, bytes, int]]] = [deque() for _ in world.hubs]   # epoch, frame, pair's time: not yet out
        self.unplugged: set[int] = set()                    # hubs that it neither reaches nor hears any more
        self.doomed = False                                 # it is about to die of that
        self.permitted = 0                                  # epochs that were let go before protection
        self.ports: list[Port] = [SimPort(self, hub) for hub in world.hubs]
        self._slow_ns = 0
        for hub in world.hubs:
            hub.open(node)

    def __repr__(self) -> str:
        return f"{self.node}{self.number}"

    @property
    def alive(self) -> bool:
        return self.died_ns < 0

    def mono(self, world_ns: int) -> int:
        """This machine's CLOCK_MONOTONIC at that moment."""
        return world_ns + self.boot_ns + world_ns * self.drift_ppm // 1_000_000

    @property
    def now(self) -> int:
        return self.mono(self.world.now)

    def _at(self, point: str) -> int:
        self.point = point
        return 0

    def _idle(self, ns: int) -> int:
        self.point = "idle"
        return ns

    def _heard(self) -> list[Answer]:
        out = []
        while self.answers and self.answers[0][0] <= self.world.now:
            out.append(self.answers.popleft()[1])
        return out

    # ── channel and effects ──────────────────────────────────────────────────────────────────────

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
        staged = path.staged if path is not None else None
        if path is not None and staged is not None and not self.outbox and t.send(kinds.EPOCH, staged):
            path.shipped()
            staged = None
        return staged is None and not self.outbox

    def _perform(self, effects: list[Effect]) -> Steps:
        w = self.world
        for e in effects:
            yield self._at("effect")
            w.say(self, e)
            if isinstance(e, Send):
                if e.kind == kinds.ACK and isinstance(self.core, Standby) and decode_ack(memoryview(e.payload)).epoch > self.core.path.epoch:
                    w.referee.fail(f"I7: {self!r} acknowledges epoch {decode_ack(memoryview(e.payload)).epoch}, "
                                   f"and holds {self.core.path.epoch}")
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
                    w.at(w.now + w.cpu.randrange(w.cpu.choice(KILL_NS)), lambda p=self.peer_life: w.kill(p, "killed by its peer"))     # type: ignore[misc]
            elif isinstance(e, Promote):
                self.promoted = e.term
            elif isinstance(e, Stop):
                deadline = w.now + 5 * MS
                while not self._push() and w.now < deadline:
                    yield self._idle(500 * US)
                raise Stopped(e.code, e.reason)
            elif isinstance(e, Event):
                w.event(self, e)
