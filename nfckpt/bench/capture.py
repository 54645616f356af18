"""Capture: the part of a poll that is the checkpoint, alone: measure, and copy what was written into a buffer that was used before.

    write lines ─► EpochWriter.measure, capture ─► record ─► swapped into the standby's arena
                   └──────── timed ───────────┘

So it is over shared memory, where a record is captured straight into the ring. Hash and publish of the channel are not in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfckpt.bench.figure import DifferenceError
from nfckpt.bench.machine import room_for_arenas
from nfckpt.bench.pair import SECRET
from nfckpt.native.arena import Arena
from nfckpt.native.bench import Generator, timed_capture, write_lines
from nfckpt.native.epoch import EpochRecord, EpochWriter, Names
from nfckpt.native.gate import Gate

__all__ = ["PAGE_LINES", "Capture"]

PAGE_LINES = 64


class Capture:
    """An arena of `arena_bytes`, one region with this `tracker` over all but its first page, and its standby's.

    Raises MachineError where such a tracker cannot be had, UnavailableError where memory does not suffice.
    """

    def __init__(self, arena_bytes: int, tracker: str = "barrier") -> None:
        room_for_arenas(arena_bytes)
        self.arena, self.standby, self.marked = Arena(arena_bytes), Arena(arena_bytes), tracker == "barrier"
        for arena in (self.arena, self.standby):
            arena.populate()
            arena.region("lines", arena_bytes - 4096, tracker=tracker if arena is self.arena else "barrier", fallback=None)
            arena.seal()
        self.writer, self.gate, self.names = EpochWriter(SECRET), Gate([Generator([bytes(64)])], 8, 1 << 16), Names(1)
        self.record, self.epoch = np.zeros(arena_bytes // 64 * 68 + (1 << 20), np.uint8), 0

    def write(self, lines: NDArray[np.uint32]) -> None:
        """One word in each of these, as the tracker wants it told."""
        write_lines(self.arena, lines, self.marked)

    def take(self) -> int:
        """Capture what was written and bring the standby there. Returns ns of the capture."""
        self.epoch += 1
        ns, nbytes = timed_capture(self.writer, self.arena, self.gate, self.names, self.epoch, self.record)
        EpochRecord(self.record[:nbytes].data, self.standby, 1).swap(self.standby)
        return ns

    def equal(self) -> str:
        """Digest (SHA-256, hexadecimal) of both whole arenas, the same. Raises DifferenceError."""
        if self.arena.digest() != self.standby.digest():
            raise DifferenceError(f"the standby's arena differs after epoch {self.epoch}")
        return self.arena.digest().hex()
