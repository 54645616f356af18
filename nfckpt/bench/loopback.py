"""Loopback: active and standby in one process and one thread, for rows that count bytes or time one poll.

Records are handed over as they are, or through `channel`, a pair of connected ends. After each `commit` both arenas agree.
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
from nfckpt.native.bench import fault_in
from nfckpt.native.burst import Burst
from nfckpt.native.channel import Channel
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.gate import Gate
from nfckpt.native.port import Port
from nfckpt.native.standby_path import StandbyPath
from nfckpt.state.state import State
from nfckpt.wire import kinds

__all__ = ["Loopback"]


class Loopback:
    """`app` over `ports`, both sides' arenas of `arena_bytes`. `last`: the record of the last commit."""

    def __init__(self, app: NativeFunction, ports: Sequence[Port], arena_bytes: int,
                 channel: tuple[Channel, Channel] | None = None) -> None:
        self.app, self.burst, self.channel, self.last = app, Burst(), channel, b""
        self.arena = Arena(arena_bytes)
        fault_in(self.arena)
        app.declare(State(self.arena, seed=SECRET))
        gate = Gate(list(ports), 1 << 14, 32 << 20)
        self.agent = Agent(list(ports), self.arena, gate, SECRET, names_max=1 << 14)
        self.path = ActivePath(self.agent, Engine(Bounds()), EpochWriter(SECRET), 0)
        now = time.monotonic_ns()
        self.path.begin(1, 1, now)
        self.agent.recording = self.path.holding = True
        self.standby = StandbyPath(None, Arena(arena_bytes), SECRET, now, len(ports))
        fault_in(self.standby.arena)
        self.standby.begin(1, 1, 1)

    def feed(self, frames: int) -> None:
        """One burst through the app, nothing captured yet."""
        if self.agent.rx_burst(self.burst, frames):
            self.app.process(self.burst, time.monotonic_ns())
            self.agent.finish(self.burst)

    def commit(self) -> None:
        """Capture if that is not done yet, ship, commit."""
        now = time.monotonic_ns()
        if self.path.staged is None:
            self.path.poll(now)
        staged = self.path.staged
        if staged is None:
            return
        self.last = bytes(staged)
        record: memoryview = memoryview(bytearray(self.last))
        if self.channel is not None:
            record = self._carry(0, kinds.EPOCH, self.last)
        self.path.shipped()
        self.standby.commit(record, time.monotonic_ns())
        said = self.standby.ack(self.standby.epoch, time.monotonic_ns())
        ack: bytes | memoryview = said
        if self.channel is not None:
            ack = self._carry(1, kinds.ACK, said)
        self.path.on_ack(ack, time.monotonic_ns(), True)
        self.agent.gate.release()

    def _carry(self, end: int, kind: int, payload: bytes) -> memoryview:
        assert self.channel is not None
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
