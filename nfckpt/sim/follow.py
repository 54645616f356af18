"""SimFollower: following, as nfckpt/node/follow.py does it."""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nfckpt.clock import PairClock
from nfckpt.errors import PeerError
from nfckpt.failover.detector import Detector, Verdict
from nfckpt.failover.takeover import Takeover
from nfckpt.native.arena import Arena
from nfckpt.native.epoch import EpochRecord
from nfckpt.native.tap import Tap
from nfckpt.replica.standby import Standby
from nfckpt.sim.shell import MS, US, SimShell, Steps, Stopped
from nfckpt.wire import kinds
from nfckpt.wire.transport import CLOSED

if TYPE_CHECKING:
    from nfckpt.sim.world import World

__all__ = ["SimFollower"]

UNDO_EVERY = 16                 # epochs


class _TracedStandby(Standby):
    world: World

    def _move(self, event: str) -> None:
        self.world.covered.add(f"standby {self.state.value} {event}")
        super()._move(event)


class SimFollower(SimShell):
    """The loop of a standby."""

    def _follow(self) -> Steps:
        w, b = self.world, self.bounds
        self.arena = Arena(b.arena_bytes)
        self.clock = PairClock()
        tap = Tap(self.ports, w.secret, b.tap_skew_ms_max * MS, b.tap_frames_max, b.tap_bytes_max, b.gate_frames_max * 2,
                  b.gate_bytes_max * 2, cut_off_ns=b.cut_off_ms * MS, fed=w.ship)
        deadline = w.now + b.join_ms_max * MS
        while self.transport is None:
            tap.poll(self.now)
            self._heard()
            if w.now > deadline:
                raise Stopped(11, "no active answered")
            w.dial(self)
            yield self._idle(500 * US)
        core = _TracedStandby(pair="sim", node=self.node, layout=w.layout, bounds=b, secret=w.secret, arena=self.arena, tap=tap,
                              clock=self.clock, now=self.now)
        core.world = w
        self.core = core
        self._records: deque[bytes] = deque()                       # received, not yet committed
        self._said: deque[tuple[int, int, int, int]] = deque()      # own clock, names, released_through, next_seq: of each commit
        self.detector = Detector(b, self.now)
        hello = core.hello()
        self._drops = self._dropped()               # what was dropped before the tap opened is no gap
        yield from self._perform(hello)
        while not self.promoted:
            seen = core.tap.counters()["seen"], core.path.heard_ns
            yield from self._follow_once(core)
            busy = seen != (core.tap.counters()["seen"], core.path.heard_ns) or self.takeover is not None or bool(core.waiting)
            yield self._idle(w.poll_ns(self, busy))

    def _follow_once(self, core: Standby) -> Steps:
        w = self.world
        now = self.now
        core.tap.poll(now)
        yield self._at("tapped")
        lost = ""
        t = self.transport
        if t is not None:
            try:
                for _ in range(64):
                    message = t.recv()
                    if message is None:
                        break
                    now = self.now
                    yield from self._take(core, now, *message)
                    self._push()
                lost = t.closed or ""
            except PeerError as e:
                w.peer_error(self, e, t.lying or self._lie_waits)
                lost = e.message
        slow = now >= self._slow_ns
        if core.waiting or slow:
            try:
                effects = core.work(now)
                self._applied(core)
                yield from self._perform(effects)
            except PeerError as e:
                w.peer_error(self, e, self._lie_waits)
                lost = e.message
        self._push()
        if slow:
            self._slow_ns = now + MS
            self._forgets(core)
            for answer in self._heard():
                yield from self._perform((self.takeover or core).on_witness(now, answer))
            if self.takeover is None:
                yield from self._perform(core.on_ports(now, 0))
            core.tap.note_drops(now)
            drops = self._dropped()
            if drops > self._drops and core.tap.buffering and not core.tap.fed and core.tap.is_exact(now):
                w.referee.fail(f"I12: the ring of {self!r} dropped frames, and its tap says that it is exact")
            self._drops = drops
            if self.detector.looked(now, core.path.heard_ns) is Verdict.DEAD and not lost:
                lost = "active silent"
        if self.takeover is None:
            proof = self._peer_dead()
            if proof or lost or core.handover:
                yield from self._lost(core, now, lost or ("handover" if core.handover else "killed"), proof)
        if self.takeover is not None:
            if not self.takeover.peer_dead and self._peer_dead():
                self.takeover.on_peer_dead()
            w.covered.add(f"takeover {self.takeover.step.value}")
            yield self._at(self.takeover.step.value)
            effects = self.takeover.advance(self.now)
            w.covered.add(f"takeover {self.takeover.step.value}")
            yield from self._perform(effects)

    def _dropped(self) -> int:
        return sum(port.counters()["rx_ring_drops"] for port in self.ports)

    def _take(self, core: Standby, now: int, kind: int, payload: memoryview) -> Steps:
        """One message of the active."""
        lie = self.transport is not None and self.transport.lying
        if kind == kinds.INPUTS and not lie:
            for key in _frames(bytes(payload)):
                self.world.referee.ledger.shipped(key)
        if kind == kinds.EPOCH and not lie:
            self.last_record = bytes(payload)
            self._records.append(self.last_record)
            if core.path.epochs % UNDO_EVERY == 0 and core.path.last_page and not core.waiting:
                self._undo()
        effects = core.on_message(now, kind, payload)
        self._lie_waits |= lie
        if lie and not core.waiting:
            self.world.referee.fail(f"I14: {self!r} believed a message of kind {kind} that its peer never sent")
        self._applied(core)
        yield self._at("committed" if kind == kinds.EPOCH else "effect")
        yield from self._perform(effects)

    def _applied(self, core: Standby) -> None:
        """I7, I8: what is committed here is what the active captured."""
        path, w = core.path, self.world
        if path.epochs == self._checked:
            return
        while self._checked < path.epochs:
            self._checked += 1
            record = self._read(self._records.popleft())
            if record is not None:
                self._said.append((self.now, record.n_names, record.released_through, record.next_seq))
        w.committed(self, core)

    def _read(self, payload: bytes) -> EpochRecord | None:
        """None: it is encoded (profile hosts), which only StandbyPath can read."""
        try:
            return EpochRecord(bytearray(payload), self.arena, len(self.ports))
        except PeerError:
            self._plain = False
            return None

    def _undo(self) -> None:
        """I8: a record applied and undone gives back what was before."""
        w = self.world
        before, record = w.content(self.arena), self._read(self.last_record)
        if record is None:
            return
        record.swap(self.arena)
        record.unswap(self.arena)
        if w.content(self.arena) != before:
            w.referee.fail(f"I8: epoch {record.epoch} undone does not give back what was before")

    def _forgets(self, core: Standby) -> None:
        """Rules 6 and 7: what is older than the skew is settled, seen or not; an output, if the active lived as long."""
        w, tap, said = self.world, core.tap, self._said
        echo_ns = 2 * w.channel_ns + 3 * self.bounds.beat_ms * MS       # until the active's answer to a stamp is here, where nothing stalls
        if tap.read_ns < self.now - 2 * tap.skew_ns or core.path.alive_ns < self.now - 2 * tap.skew_ns - echo_ns:
            self._behind_ns = self.now              # it does not come to reading, or hears nothing: nothing can be called missing
        if self.now - self._behind_ns < 4 * tap.skew_ns or not self._plain:
            return
        released, names = 0, 0
        for at, n, _, _ in said:
            names += n if at >= tap.read_ns - 2 * tap.skew_ns else 0
        while said and said[0][0] < min(tap.read_ns, core.path.alive_ns) - 8 * tap.skew_ns - echo_ns:
            released = max(released, said.popleft()[2])
        self._released = max(self._released, released)
        if core.state.value == "standby" and not core.waiting and not core.handover:     # handed over: nothing is forgotten any more
            if tap.waiting_credits > names:
                w.referee.fail(f"rule 6: {tap.waiting_credits} credits wait, {names} frames were named since two skews")
            if tap.waiting_outputs > max(0, core.path.next_seq - self._released):
                w.referee.fail(f"rule 7: {tap.waiting_outputs} outputs are expected, "
                                        f"{core.path.next_seq - self._released} may not have left")

    _lie_waits = False              # what the active never sent may wait behind a record of its own
    _released = _drops = _behind_ns = 0
    _plain = True
    _checked = 0

    def _lost(self, core: Standby, now: int, reason: str, proof: bool) -> Steps:
        w = self.world
        if not proof and not w.hosts and not core.handover:
            end = w.now + 5 * MS
            while not (proof := self._peer_dead()) and w.now < end:
                core.tap.poll(self.now)
                yield self._idle(200 * US)
        parted = False
        if proof and self.transport is not None:
            with contextlib.suppress(PeerError):
                while (message := self.transport.recv()) is not None:
                    yield from self._take(core, self.now, *message)
            parted = core.parting or (self.transport.closed or "").startswith(CLOSED)
        w.trace(self, f"lost the active: {reason}, proof {proof}, {core.state.value}")
        if not core.may_claim:
            raise Stopped(11, f"lost the active while {core.state.value}: {reason}")
        self.takeover = Takeover(core, self.bounds, node=self.node, now=self.now, lost_ns=now, reason=reason, proof=proof,
                                 kills=not w.hosts, leases=w.hosts, handover=core.handover, parted=parted)


def _frames(shipment: bytes) -> Iterator[tuple[int, bytes]]:
    """(port, frame) of an INPUTS message, as native/shipment.pyx draws it."""
    at = 16
    while at < len(shipment):
        port, length, _ = struct.unpack_from("<HHI", shipment, at)
        if length:
            yield port, shipment[at + 8:at + 8 + length]
        at += 8 + (length + 7) // 8 * 8
