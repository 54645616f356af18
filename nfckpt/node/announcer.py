"""Announcer: the frames that tell the segment where the pair is now, sent again because one may be lost and all are forgotten.

Picture     live ── all ── gap ── all ── gap ── … announce_repeats times ── all every announce_refresh_s, for the rest of this life
                    │
                    └ gratuitous ARP and unsolicited NA, whatever the app's `announce` gave; their source is the pair's virtual
                      MAC, so each also moves it, in every switch on the way, to the port where the active is

Input       tick(now_ns, emit) on the packet thread, at most once a ms. Output: emit(port, frame), behind the gate as all output.
Promises    N1 a round begins at its time or at the next tick, never early; a late tick does not make up for missed ones.
            N2 what `emit` refuses (the gate is full) is offered again at the next tick; nothing is left out.
Source      RFC 5227, 2.3 (ANNOUNCE_NUM); RFC 4861, 7.2.6 (MAX_NEIGHBOR_ADVERTISEMENT); refresh as keepalived's garp_master_refresh.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from nfckpt.config import Bounds

__all__ = ["Announcer"]

MS, S = 1_000_000, 1_000_000_000
NEVER = 1 << 63


class Announcer:
    """`frames`: (port index, frame) each, as the app's `announce` gives them; kept for this life."""

    def __init__(self, bounds: Bounds, frames: Iterable[tuple[int, bytes]]) -> None:
        self.frames = list(frames)
        self._repeats = bounds.announce_repeats
        self._gap_ns = bounds.announce_gap_ms * MS
        self._refresh_ns = bounds.announce_refresh_s * S
        self._left: deque[tuple[int, bytes]] = deque()
        self._due_ns = 0 if self.frames else NEVER
        self.told_ns = 0                # when the first round was out of our hands; 0: it is not

    def tick(self, now: int, emit: Callable[[int, bytes], bool]) -> None:
        """Begin a round if it is time; emit what is left of one."""
        if now >= self._due_ns:
            self._left = deque(self.frames)
            if self._repeats:
                self._repeats -= 1
                self._due_ns = now + self._gap_ns
            else:
                self._due_ns = now + self._refresh_ns if self._refresh_ns else NEVER
        while self._left and emit(*self._left[0]):
            self._left.popleft()
        if not self._left and not self.told_ns and self.frames:
            self.told_ns = now
