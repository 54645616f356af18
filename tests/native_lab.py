"""What the tests of the native kernels share: ports of lists, frames that say who they are, rigs."""

from __future__ import annotations

import struct
from collections import deque

from nfckpt.ports import PythonPort

SECRET = bytes(range(1, 33))
MS = 1_000_000


def frame(n: int, size: int = 64) -> bytes:
    """All of it says n: a torn or swapped frame shows."""
    return (struct.pack("<I", n) * (size // 4 + 1))[:size]


class ListPort(PythonPort):
    """Hands out what is in `waiting`; `taken` is its ring, `left` what the device has sent.

    `room`: frames the ring takes (None: any); `stuck`: frames that a flush leaves in the ring; `refuse`: sizes refused for good.
    """

    def __init__(self) -> None:
        self.waiting: deque[tuple[bytes, int]] = deque()
        self.ring: list[bytes] = []
        self.left: list[bytes] = []
        self.room: int | None = None
        self.stuck = 0
        self.refuse: set[int] = set()

    def arrive(self, got: bytes, ts: int) -> None:
        self.waiting.append((got, ts))

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        return [self.waiting.popleft() for _ in range(min(max_frames, len(self.waiting)))]

    def py_tx(self, out: bytes) -> bool | None:
        if len(out) in self.refuse:
            return None
        if self.room is not None and len(self.ring) >= self.room:
            return False
        self.ring.append(out)
        return True

    def py_flush(self) -> int:
        n = max(len(self.ring) - self.stuck, 0)
        self.left += self.ring[:n]
        del self.ring[:n]
        return len(self.ring)
