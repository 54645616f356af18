"""The network function of the simulator: forwards, counts, parks, ticks, and says in each output what it counted.

Picture     in   | addresses | 0x88B5 | "I" | side | flow | number |                                  numbered; some are byte-identical
            out  | addresses | 0x88B5 | "O" | side | flow | number | count | nonce | total | now |    count of the flow,
            tick | addresses | 0x88B5 | "T" |  0   |  0   |   0    | count |   0   | total | now |    total of the port: 1, 2, 3, …

It is not deterministic: a flow's nonce is drawn when its first frame comes, and each burst writes a random word somewhere in the
arena. Two histories of one flow, or a state that does not explain its outputs, show on the wire: `Explain` reads it there.

It is an ordinary NetworkFunction with what the simulator asks of one (`nfckpt.sim.app.SimApp`): take it as an example for yours.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from nfckpt.nf import Context, NetworkFunction

if TYPE_CHECKING:
    from nfckpt.native.burst import Burst
    from nfckpt.state.state import State

__all__ = ["Explain", "Frame", "Toy", "decode", "question"]

FLOWS = 3
SCRATCH_WORDS = 1536            # three pages
PARK = 0.05
TICK_NS = 5_000_000
_IN = struct.Struct("!cBBI")
_OUT = struct.Struct("!QQQQ")
HEAD = bytes.fromhex("02000000000a02000000000b88b5")


class Frame(NamedTuple):
    kind: bytes
    side: int
    flow: int
    number: int
    counted: int
    nonce: int
    total: int
    now_ns: int


def question(side: int, flow: int, number: int) -> bytes:
    """One input frame."""
    return (HEAD + _IN.pack(b"I", side, flow, number)).ljust(60, b"\0")


def decode(frame: bytes) -> Frame:
    """Any frame of the simulator."""
    return Frame(*_IN.unpack_from(frame, 14), *_OUT.unpack_from(frame, 14 + _IN.size))


class Toy(NetworkFunction):
    """Answers on the other side."""

    ports = ("left", "right")
    tick_ms = 1

    def declare(self, state: State) -> None:
        self.flows = state.array("flows", "u8", (2 * FLOWS, 2))         # count, nonce
        self.mirror = state.array("mirror", "u8", (2 * FLOWS,))         # ~count, written with it, far from it (I4)
        self.totals = state.array("totals", "u8", (3,))                 # outputs of each port; of ticks
        self.due = state.array("due", "u8", (1,))
        self.parked = state.array("parked", "u8", (8,))                 # handle + 1
        self.scratch = state.array("scratch", "u8", (SCRATCH_WORDS,))

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        for i in range(burst.n):
            if burst.frame(i)[14:15] != b"I":       # a stray output of a node that is gone
                burst.drop(i)
                continue
            if ctx.random_u64() < PARK * 2**64 and (free := self._free()) >= 0 and (handle := ctx.park(burst, i)) >= 0:
                self.parked[free] = handle + 1
                continue
            burst.set_frame(i, self._answer(burst.frame(i), ctx))
            burst.send(i, 1 - int(burst.port[i]))
        self.scratch[ctx.random_u64() % SCRATCH_WORDS] = ctx.random_u64()

    def on_tick(self, ctx: Context) -> None:
        """Two parked frames are answered, and every 5 ms a frame of our own leaves."""
        for slot in [slot for slot in range(8) if self.parked.view[slot]][:2]:
            port, frame = ctx.unpark(int(self.parked.view[slot]) - 1)
            self.parked[slot] = 0
            self._send(1 - port, self._answer(frame, ctx), ctx)
        if ctx.now_ns >= int(self.due.view[0]):
            self.due[0] = ctx.now_ns + TICK_NS
            self.totals[2] = count = int(self.totals.view[2]) + 1
            self._send(0, self._frame(b"T", 1, 0, 0, count, 0, ctx), ctx)

    def invariants(self) -> None:
        """I4: what was written together is there together."""
        flows, mirror = self.flows.view, self.mirror.view
        for row in range(2 * FLOWS):
            assert mirror[row] == (int(flows[row, 0]) ^ (2**64 - 1) if flows[row, 0] else 0), f"row {row} is torn"

    def _free(self) -> int:
        return next((i for i in range(8) if not self.parked.view[i]), -1)

    def _send(self, port: int, frame: bytes, ctx: Context) -> None:
        if not ctx.send(port, frame):
            raise AssertionError("the gate is full in a tick: room for 4 bursts was promised")

    def _answer(self, asked: bytes, ctx: Context) -> bytes:
        f = decode(asked)
        row = f.side * FLOWS + f.flow
        count, nonce = self.flows.view[row].tolist()
        count, nonce = count + 1, nonce or ctx.random_u64() >> 1 | 1
        self.flows[row] = (count, nonce)
        self.mirror[row] = count ^ (2**64 - 1)
        return self._frame(b"O", f.side, f.flow, f.number, count, nonce, ctx)

    def _frame(self, kind: bytes, side: int, flow: int, number: int, count: int, nonce: int, ctx: Context) -> bytes:
        total = int(self.totals.view[1 - side]) + 1
        self.totals[1 - side] = total
        return (HEAD + _IN.pack(kind, side, flow, number) + _OUT.pack(count, nonce, total, ctx.now_ns)).ljust(60, b"\0")

    # ── what the simulator asks of an app ────────────────────────────────────────────────────────

    @staticmethod
    def traffic(rng: random.Random) -> Iterator[tuple[int, bytes]]:
        """(port, frame), without end."""
        number = 0
        while True:
            number += 1
            side = rng.randrange(2)
            yield side, question(side, rng.randrange(FLOWS), number)

    @staticmethod
    def explain() -> Explain:
        return Explain()


class Explain:
    """Reads the outputs of one history, in the order in which they leave: does one state explain them all?"""

    def __init__(self) -> None:
        self.flows: dict[tuple[bytes, int, int], tuple[int, int]] = {}
        self.totals = [0, 0]

    def __call__(self, port: int, frame: bytes) -> str:
        """What is wrong with it, or ""."""
        f = decode(frame)
        count, nonce = self.flows.get(f[:3], (0, f.nonce))
        if (f.counted, f.nonce) != (count + 1, nonce):
            return f"flow {f[:3]} counted {f.counted} (nonce {f.nonce:x}) after {count} (nonce {nonce:x})"
        if f.total != self.totals[port] + 1:
            return f"port {port} counted {f.total} outputs after {self.totals[port]}"
        self.flows[f[:3]] = f.counted, f.nonce
        self.totals[port] = f.total
        return ""
