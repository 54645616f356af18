"""The network function of the simulator: forwards, counts, and says in each output what it counted.

Picture     in   | addresses | 0x88B5 | "I" | side | flow | number |                      numbered; some are byte-identical
            out  | addresses | 0x88B5 | "O" | side | flow | number | count | nonce |      count of the flow, 1, 2, 3, …

It is not deterministic: a flow's nonce is drawn when its first frame comes, and each burst writes a random word somewhere in the
arena. Two histories of one flow, or a state that does not explain its outputs, show on the wire.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.parking import Parking
from nfckpt.state.state import State

__all__ = ["BURST_BYTES", "FLOWS", "Frame", "Toy", "decode", "question"]

BURST_BYTES = 64 << 10
FLOWS = 3
SCRATCH_WORDS = 1536            # three pages
_IN = struct.Struct("!cBBI")
_OUT = struct.Struct("!QQ")
HEAD = bytes.fromhex("02000000000a02000000000b88b5")


class Frame(NamedTuple):
    kind: bytes
    side: int
    flow: int
    number: int
    counted: int
    nonce: int


def question(side: int, flow: int, number: int) -> bytes:
    """One input frame."""
    return (HEAD + _IN.pack(b"I", side, flow, number)).ljust(60, b"\0")


def decode(frame: bytes) -> Frame:
    """Any frame of the simulator."""
    return Frame(*_IN.unpack_from(frame, 14), *_OUT.unpack_from(frame, 14 + _IN.size))


class Toy:
    """Declares its state in `arena`, which may be a dead node's."""

    def __init__(self, arena: Arena, secret: bytes, rng: random.Random) -> None:
        state = State(arena, seed=secret)
        self.flows = state.array("flows", "u8", (2 * FLOWS, 2))
        self.scratch = state.array("scratch", "u8", (SCRATCH_WORDS,))
        self.parking = Parking(arena, 1)
        state.seal()
        self.rng = rng

    def on_burst(self, burst: Burst, unexpected: Callable[[Any, Frame], None], who: object) -> Iterator[bytes]:
        """Gives every output frame, in order."""
        rng = self.rng
        for i in range(burst.n):
            f = decode(burst.frame(i))
            if f.kind != b"I" or f.side != int(burst.port[i]):
                unexpected(who, f)
                continue
            row = f.side * FLOWS + f.flow
            count, nonce = self.flows.view[row].tolist()
            count, nonce = count + 1, nonce or rng.getrandbits(63) | 1
            self.flows[row] = (count, nonce)
            out = (HEAD + _IN.pack(b"O", f.side, f.flow, f.number) + _OUT.pack(count, nonce)).ljust(60, b"\0")
            burst.set_frame(i, out)
            burst.send(i, 1 - f.side)
            yield out
        self.scratch[rng.randrange(SCRATCH_WORDS)] = rng.getrandbits(63)
