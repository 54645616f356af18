"""Loopback: active and standby in one process and one thread, for rows that count bytes.

Records go through `channel`, a pair of connected ends: encoded where bytes cost there. By `tap`, its ports on the same segments, the
standby finds the frames that a record names. After each `commit` both arenas agree.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from nfckpt.bench.figure import DifferenceError
from nfckpt.bench.pair import SECRET
from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.channel import Channel
from nfckpt.native.delta_encoder import DeltaEncoder
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.gate import Gate
from nfckpt.native.port import Port
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.state.state import State
from nfckpt.wire import kinds

__all__ = ["Loopback"]

TAP_SKEW_NS = 20_000_000


class Loopback:
    """`app` over `ports`, both sides' arenas of `arena_bytes`."""

    def __init__(self, app: NativeFunction, ports: Sequence[Port], arena_bytes: int,
                 channel: tuple[Channel, Channel], tap: Sequence[Port]) -> None:
        self.app, self.burst, self.channel = app, Burst(), channel
        self.arena = Arena(arena_bytes)
        self.arena.populate()
        app.declare(State(self.arena, seed=SECRET))
        gate = Gate(list(ports), 1 << 14, 32 << 20)
        self.agent = Agent(list(ports), self.arena, gate, SECRET, names_max=1 << 14)
        self.path = ActivePath(self.agent, Engine(Bounds()), EpochWriter(SECRET), 0)
        self.encoder = DeltaEncoder(self.arena, SECRET, 1 << 14, 1 << 14)
        if channel[0].costly:
            self.path.encode_with(self.encoder)
        now = time.monotonic_ns()
        self.path.begin(1, 1, now)
        self.agent.recording = self.path.holding = True
        self.tap = Tap(list(tap), SECRET, TAP_SKEW_NS)
        self.standby = StandbyPath(self.tap, Arena(arena_bytes), SECRET, now, len(ports))
        self.standby.arena.populate()
        self.standby.begin(1, 1, 1)
        self.tap.open()
        self.tap.whole()
        self.standby.tap_open = True
        self.path.tap_opened()

    def feed(self, frames: int, at_ns: int) -> int:
        """One burst of at most so many through the app, whose clock says `at_ns`. How many; nothing captured yet."""
        n = self.agent.rx_burst(self.burst, frames)
        if n:
            self.path.clock_offset_ns = at_ns - time.monotonic_ns()
            self.app.process(self.burst, at_ns)
            self.agent.finish(self.burst)
        return n

    def commit(self) -> None:
        """Capture, ship, commit; nothing where nothing is new."""
        now = time.monotonic_ns()
        if not self.path.poll(now):
            return
        staged = self.path.staged
        assert staged is not None
        record = self._carry(0, kinds.EPOCH, staged)
        self.path.shipped()
        self.tap.poll(now)
        if not self.standby.commit(record, time.monotonic_ns()):
            raise DifferenceError(f"epoch {self.standby.epoch + 1} names a frame that the tap did not see")
        ack = self._carry(1, kinds.ACK, self.standby.ack(self.standby.epoch, time.monotonic_ns()))
        self.path.on_ack(ack, time.monotonic_ns(), True)
        self.agent.gate.release()
        self.tap.poll(now)
        self.tap.age(self.standby.released_through)

    def _carry(self, end: int, kind: int, payload: bytes | memoryview) -> memoryview:
        here, there = self.channel[end], self.channel[1 - end]
        while not here.send(kind, payload):
            here.flush()
        while (message := there.recv()) is None:
            here.flush()
        assert message[0] == kind
        return message[1]

    def equal(self) -> str:
        """Digest (SHA-256, hexadecimal) of both whole arenas, the same. Raises DifferenceError."""
        self.commit()
        ours, theirs = self.arena.view()[:self.arena.used], self.standby.arena.view()[:self.arena.used]
        if ours.tobytes() != theirs.tobytes():
            raise DifferenceError(f"the standby's arena differs after epoch {self.standby.epoch}")
        return str(self.arena.digest().hex())
