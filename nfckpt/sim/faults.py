"""Faults: the schedule of one seed, drawn before it runs, and what each does to the world.

Picture     0  crash active    once protected and 3.1 ms more, the first time it stands at "captured"
            1  stall in        8.4 ms later, at the 17th step of the active
            2  …               `World(seed, faults={1})` runs the second alone: this is how a schedule is shrunk

Each fault draws from a generator of its own, so leaving one out changes nothing in the others. Most wait until the pair is
protected again: a crash that strikes a pair at work says more than one that strikes a pair which is down.

Strikes     at a step of a node: between two effects, between receive, app, gate, capture, ship and release, in a takeover.
Crash       the process; or its machine: link after link, then the process; hosts: no end of the channel, no keeper that reports it.
"""

from __future__ import annotations

import random
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nfckpt.replica.active import Active
from nfckpt.replica.standby import Standby
from nfckpt.sim.segment import HOST, Channel, SimPort
from nfckpt.wire import kinds
from nfckpt.wire.messages import Ack, encode_ack

if TYPE_CHECKING:
    from nfckpt.sim.shell import SimShell
    from nfckpt.sim.world import World

__all__ = ["FAULTS", "POINTS", "Fault", "Faults"]

MS = 1_000_000
US = 1000
FAULTS_MAX = 64
PATIENCE_NS = 80 * MS           # a fault that waits for protection waits no longer

POINTS = {                      # where a node stands between two steps; each is struck by a crash in every campaign
    "active": ("effect", "heard", "may release", "released", "may ship", "received", "in app", "kept", "done", "cut", "pushed", "idle"),
    "standby": ("effect", "tapped", "committed", "idle", "claim", "fence", "settle", "applied", "re-emitted"),
}

FAULTS = {                      # name -> (weight, whom it strikes, only in profile hosts)
    "crash active": (8, Active, False), "crash standby": (6, Standby, False),
    "machine active": (4, Active, True), "machine standby": (2, Standby, True),
    "stop active": (3, Active, False), "stop standby": (2, Standby, False), "slow standby": (2, Standby, False),
    "app keeps frames": (2, Active, False), "slow witness": (1, Active, False), "silent witness": (2, Active, False), "cut": (2, Active, True),
    "stall out": (1, Active, True), "stall in": (1, Active, True), "stall": (1, Active, True),
    "switch": (2, Active, False), "switch to a dead standby": (2, Active, False), "stale request": (3, Active, False),
    "lie": (2, Active, False), "ring drops": (3, Active, False), "tap drops": (2, Standby, False), "tap misses": (3, Standby, False),
    "double": (1, Active, False), "active sees twice": (1, Active, False), "tap sees twice": (1, Standby, False),
    "ring unfinished": (2, Active, False), "port flaps": (1, Active, False), "port stuck": (3, Active, False), "late frame": (2, Active, False),
}


@dataclass(frozen=True)
class Fault:
    """One line of the schedule."""

    number: int
    what: str
    protected: bool             # waits until the pair is
    after_ns: int
    steps: int                  # strikes at the n-th step from then on, or
    point: str                  # the first time the node stands there
    seed: str

    def __str__(self) -> str:
        where = f"at {self.point!r}" if self.point else f"at step {self.steps}"
        return f"{self.number:3} {self.what}: {'protected, ' if self.protected else ''}{self.after_ns / MS:.1f} ms, {where}"


@dataclass
class Fog:
    """What a node's ports do with the next frames."""

    what: str
    left: int
    until_ns: int


def schedule(seed: int, hosts: bool, mean_ms: float) -> list[Fault]:
    names = [n for n, (_, _, only) in FAULTS.items() if hosts or not only]
    weights = [FAULTS[n][0] for n in names]
    out = []
    for number in range(FAULTS_MAX):
        rng = random.Random(f"{seed} fault {number}")
        what = rng.choices(names, weights)[0]
        role = "active" if FAULTS[what][1] is Active else "standby"
        out.append(Fault(number, what, rng.random() < 0.6, round(rng.expovariate(1 / mean_ms) * MS), rng.randrange(40),
                         rng.choice(POINTS[role]) if rng.random() < 0.5 else "", f"{seed} fault {number} acts"))
    return out


class Faults:
    """Of one world. `only`: the numbers that strike, None: all."""

    def __init__(self, world: World, faults: list[Fault], only: frozenset[int] | None) -> None:
        self.world = world
        self._coming = deque(f for f in faults if only is None or f.number in only)
        self._waits: Fault | None = None
        self._armed: dict[SimShell, tuple[Fault, int]] = {}
        self._fog: dict[str, Fog] = {}
        self._linger: SimShell | None = None            # its next frame stays on the way
        self._doomed: SimShell | None = None            # that was it
        self.struck: list[Fault] = []
        self.counts: Counter[str] = Counter()
        self.rng = random.Random()
        self._next()

    # ── when ─────────────────────────────────────────────────────────────────────────────────────

    def _next(self) -> None:
        self._waits = None
        if self._coming and not self.world.healed:
            fault = self._coming.popleft()
            if fault.protected:
                self._waits = fault
                self.world.at(self.world.now + PATIENCE_NS, lambda: self._now(fault) if self._waits is fault else None)
                self.protected()
            else:
                self._now(fault)

    def protected(self) -> None:
        """The pair may be protected now."""
        if self._waits is not None and self.world.referee.protected():
            self._now(self._waits)

    def _now(self, fault: Fault) -> None:
        self._waits = None
        self.world.at(self.world.now + fault.after_ns, lambda: self._arm(fault))

    def _arm(self, fault: Fault) -> None:
        """On whom. One that strikes at a point may never come to it: the next one does not wait for that."""
        node = next((n for n in self.world.lives.values() if n.alive and isinstance(n.core, FAULTS[fault.what][1])), None)
        if node is not None and not self.world.healed and node not in self._armed:
            self._armed[node] = fault, fault.steps if not fault.point else 4000
            if not fault.point:
                return
        self._next()

    def gone(self, node: SimShell) -> None:
        """It ended before the fault struck it."""
        armed = self._armed.pop(node, None)
        if armed is not None and not armed[0].point:
            self.world.at(self.world.now, self._next)

    def step(self, node: SimShell) -> None:
        """`node` stands between two steps."""
        if node is self._doomed:
            self._doomed = None
            self.world.kill(node, "crash")
            return
        armed = self._armed.get(node)
        if armed is None:
            return
        fault, left = armed
        if left > 0 and node.point != fault.point:
            self._armed[node] = fault, left - 1
            return
        del self._armed[node]
        self.rng = random.Random(fault.seed)
        self.struck.append(fault)
        self.counts[fault.what] += 1
        self.world.trace(node, f"fault {fault.number}: {fault.what}, at {node.point!r}")
        getattr(self, "_" + fault.what.replace(" ", "_"))(node)
        if not fault.point:
            self._next()

    def heal(self) -> None:
        self._fog.clear()
        self._linger = None
        for node in self.world.lives.values():
            self._unstick(node, 0)
            if not node.doomed:
                node.unplugged.clear()
        self._armed.clear()
        self._waits = None

    # ── what: a node ─────────────────────────────────────────────────────────────────────────────

    def _crash_active(self, node: SimShell) -> None:
        self.world.referee.fault()
        if not self.world.hosts and self.rng.random() < 0.2:
            self._links_first(node)
            return
        self.world.covered.add(f"crash active at {node.point}")
        self.world.kill(node, "crash")

    def _links_first(self, node: SimShell) -> None:
        """Its machine goes link after link, the first one now, and its process less than a skew later."""
        w, skew = self.world, self.world.bounds.tap_skew_ms_max * MS
        node.doomed = True
        first = self.rng.choice(w.hubs)
        for hub in () if w.ship else w.hubs:
            w.at(w.now + (self.rng.randrange(skew) if hub is not first else 0), lambda index=hub.index: node.unplugged.add(index))      # type: ignore[misc]
        w.at(w.now + skew - self.rng.randrange(skew // 2), lambda: self._gone(node))

    def _gone(self, node: SimShell) -> None:
        if node.alive:
            self.world.referee.fault()
            self.world.kill(node, "its machine is gone", machine=self.world.hosts)

    def _crash_standby(self, node: SimShell) -> None:
        """Perhaps in the middle of its promotion."""
        self.world.referee.fault()
        self.world.covered.add(f"crash standby at {node.point}")
        self.world.kill(node, "crash")

    def _machine_active(self, node: SimShell) -> None:
        self.world.referee.fault()
        if self.rng.random() < 0.5:
            self._links_first(node)
        else:
            self._gone(node)

    def _machine_standby(self, node: SimShell) -> None:
        self._gone(node)

    def _stop_active(self, node: SimShell) -> None:
        self.world.referee.fault()
        ms = self.rng.choice((3, 15, 30, 60, 90, 120))
        self.world.trace(node, f"is stopped for {ms} ms")
        node.stopped_until = self.world.now + ms * MS

    _stop_standby = _stop_active

    def _slow_standby(self, node: SimShell) -> None:
        self.world.referee.fault()
        node.slow_until = self.world.now + self.rng.choice((10, 50)) * MS

    def _app_keeps_frames(self, node: SimShell) -> None:
        """Through so many polls that every attempt of a cut is given up."""
        self.world.referee.fault()
        node.keeps_until = self.world.now + self.rng.choice((5, 20, 60)) * MS

    def _slow_witness(self, node: SimShell) -> None:
        self.world.witness_late(node, self.rng.choice((5, 20, 150)) * MS)

    def _silent_witness(self, node: SimShell) -> None:
        """To one node, or to both."""
        ms = self.rng.choice((20, 60, 200))
        for name in self.rng.choice(((node.node,), (node.peer,), self.world.names)):
            self.world.witness_silent(name, ms * MS)

    def _switch(self, node: SimShell) -> None:
        assert isinstance(node.core, Active)
        self.world.referee.fault()              # no fault, but it gives away what only it knows to be whole
        self.world.trace(node, f"planned switch: {node.core.hand_over()}")

    def _switch_to_a_dead_standby(self, node: SimShell) -> None:
        """It died in the instant in which the operator asked, and nobody has noticed."""
        self._switch(node)
        if node.peer_life is not None and node.peer_life.alive:
            self.world.kill(node.peer_life, "silently", machine=self.world.hosts)

    def _stale_request(self, node: SimShell) -> None:
        """An operator asks for a cut twice and takes the first one back: the second stands (I11)."""
        assert isinstance(node.core, Active)
        engine = node.core.engine
        one, two = engine.request(), engine.request()
        if engine.resume(one) or engine.resume(two + 1) or not (
                engine.due(node.now, False, False) or engine.state.value == "captured" or engine.outstanding or node.core.path.staging.count):
            self.world.referee.fail("I11: a request was taken back by another one's number")
        node.takes_back = two if self.rng.random() < 0.7 else 0
        if node.takes_back:                     # taken back while the app has not let go yet
            node.keeps_until = max(node.keeps_until, self.world.now + 3 * MS)

    # ── what: the channel ────────────────────────────────────────────────────────────────────────

    def _cut(self, node: SimShell) -> None:
        if node.transport is not None:
            self.world.referee.fault()
            for end in (node.transport, node.transport.peer):
                end.cut(self.rng.randrange(5 * MS) if self.rng.random() < 0.5 else -1)
            self._crammed(node)

    def _crammed(self, node: SimShell) -> None:
        """Perhaps what was released waits in its rings, and leaves when somebody else believes to have the term: if its fence lets it."""
        if self.rng.random() < 0.5:
            self._unstick(node, self.world.now + self.rng.choice((10, 20)) * MS)

    def _stalled(self, *ends: Channel) -> None:
        self.world.referee.fault()
        until = self.world.now + self.rng.choice((5, 30, 100)) * MS
        for end in ends:
            end.stall(until)

    def _stall_out(self, node: SimShell) -> None:
        if node.transport is not None:
            self._stalled(node.transport)

    def _stall_in(self, node: SimShell) -> None:
        if node.transport is not None:
            self._stalled(node.transport.peer)

    def _stall(self, node: SimShell) -> None:
        if node.transport is not None:
            self._stalled(node.transport, node.transport.peer)

    def _lie(self, node: SimShell) -> None:
        """One end is told what the other never said. It must find it wrong, and lose its peer (I14)."""
        if node.transport is None or not isinstance(node.core, Active) or not node.core.session:
            return
        self.world.referee.fault()
        active, r = node.core, self.rng
        standby = getattr(node.peer_life, "core", None)
        last = getattr(node.peer_life, "last_record", b"")
        if r.random() < 0.6 and last and isinstance(standby, Standby) and standby.session == active.session:
            record = bytearray(last)
            lies: list[Callable[[], None]] = [
                lambda: None,                                               # the same once more
                lambda: record.__delitem__(slice(-1, None)),
                lambda: record.extend(bytes(8)),
                lambda: struct.pack_into("<Q", record, 16, active.term + 1),
                lambda: struct.pack_into("<Q", record, 8, active.session - 1),
                lambda: record.__setitem__(0, 0),
            ]
            r.choice(lies)()
            node.transport.peer.lie = kinds.EPOCH, record
            self._crammed(node)
        else:
            acks = [Ack(active.session, active.engine.epoch + 1000, 0, 0, 0, 0),
                    Ack(active.session + 1, active.engine.committed, 0, 0, 0, 0)]
            node.transport.lie = r.choice([(kinds.ACK, bytearray(encode_ack(a))) for a in acks] + [
                (kinds.CONTROL, bytearray(b"\xc1 not msgpack")), (kinds.ACK, bytearray(7)), (kinds.EPOCH, bytearray(200))])

    # ── what: the ports ──────────────────────────────────────────────────────────────────────────

    def copies(self, node: str, sender: str, port: int, frame: bytes) -> int:
        """How many of this frame reach `node`."""
        life, ledger = self.world.lives.get(node), self.world.referee.ledger
        if life is not None and life.alive and port in life.unplugged:
            if sender == HOST and not life.doomed:
                ledger.missed((port, frame))        # unless it is told apart in time, and taken in by the other
            return 0
        fog = self._fog.get(node)
        if fog is None:
            return 1
        if fog.left <= 0 or fog.until_ns <= self.world.now:
            del self._fog[node]
            return 1
        if life is None or not life.alive:
            return 1
        key = port, frame
        leads = isinstance(life.core, Active)
        if fog.what == "twice":
            if sender == HOST:
                fog.left -= 1
                ledger.sent(key, self.world.now)
                if leads:
                    ledger.unseen(key, 0)
                else:
                    ledger.missed(key)
                return 2
            return 1
        fog.left -= 1
        ring = life.ports[port]
        if fog.what == "drops" and isinstance(ring, SimPort):
            ring.count("rx_ring_drops")
        if sender == HOST and leads:
            ledger.missed(key)
        else:
            ledger.unseen(key, self.world.now + self.world.hidden_ns)
        self.world.trace(life, f"does not see {frame[14:29].hex()}")
        return 0

    def _ring_drops(self, node: SimShell) -> None:
        self._fog[node.node] = Fog("drops", self.rng.choice((1, 5)), self.world.far)

    _tap_drops = _ring_drops

    def _tap_misses(self, node: SimShell) -> None:
        """Frames that only the active sees; hosts send some of them again, when they should long be forgotten."""
        self._fog[node.node] = Fog("misses", self.rng.choice((1, 3)), self.world.far)
        self.world.at(self.world.now + 2 * MS, self.world.repeat)
        self.world.at(self.world.now + 8 * self.world.bounds.tap_skew_ms_max * MS, self.world.repeat)

    def _port_flaps(self, node: SimShell) -> None:
        """It hears nothing there for a while; or, a link further on being cut, it does not reach anybody either."""
        if self.rng.random() < 0.5:
            self._fog[node.node] = Fog("misses", 1 << 30, self.world.now + self.rng.choice((1, 10)) * MS)
        elif not self.world.ship and not node.doomed:
            self.world.referee.fault()
            index = self.rng.choice(self.world.hubs).index
            node.unplugged.add(index)
            self.world.at(self.world.now + self.rng.choice((20, 60, 150)) * MS, lambda: None if node.doomed else node.unplugged.discard(index))

    def _unstick(self, node: SimShell, until: int) -> None:
        for port in node.ports:
            if isinstance(port, SimPort):
                port.stuck_until = until

    def _dies(self, node: SimShell) -> None:
        if node.alive and not self.world.healed:
            self.world.referee.fault()
            self.world.kill(node, "crash")

    def _port_stuck(self, node: SimShell) -> None:
        """Its links take nothing for a while: what is released waits in the rings, and may die with them."""
        until = self.world.now + self.rng.choice((5, 20, 60)) * MS
        self._unstick(node, until)
        if self.rng.random() < 0.5:
            self.world.at(until - 1, lambda: self._dies(node))

    def _ring_unfinished(self, node: SimShell) -> None:
        """What arrives at it, or at its peer, is hidden for a while behind a frame that its kernel has not finished."""
        victim = node.peer_life if node.peer_life is not None and self.rng.random() < 0.5 else node
        until = self.world.now + self.rng.choice((5, 20, 60)) * MS
        for port in victim.ports:
            if isinstance(port, SimPort):
                port.unfinished_until = until
        if self.rng.random() < 0.5:
            self.world.at(until - 1, lambda: self._dies(node))

    def _late_frame(self, node: SimShell) -> None:
        """The active dies of the next frame that it emits, and a switch keeps that one for longer than a skew: it must come twice, and
        the second one is no input."""
        self._linger = node

    def linger_ns(self, to: str, sender: str, port: int, frame: bytes) -> int:
        node, w = self._linger or self._doomed, self.world
        if node is None or sender != node.node or not node.alive:
            return 0
        if node is self._linger:
            w.referee.fault()
        self._linger, self._doomed = None, node
        w.referee.ledger.unseen((port, frame), w.now + w.hidden_ns)
        w.trace(node, f"a switch keeps {frame[14:29].hex()}")
        return 2 * w.bounds.tap_skew_ms_max * MS             # after a takeover the filter lasts as long, counted from then

    def _active_sees_twice(self, node: SimShell) -> None:
        self._fog[node.node] = Fog("twice", 2, self.world.far)

    _tap_sees_twice = _active_sees_twice

    def _double(self, node: SimShell) -> None:
        """Everybody sees the last frames again."""
        for _ in range(4):
            self.world.repeat()
