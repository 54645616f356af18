"""The pair's clock (I15): one time for the app, never backwards, over any number of takeovers.

Picture     active     now = own monotonic + offset
            standby    last committed 5.000 s, heard at own 17.2; promoted at own 17.3: goes on at 5.100 s
"""

from __future__ import annotations

__all__ = ["PairClock"]


class PairClock:
    """`now(mono_ns)` in ns. `follow` on the standby keeps it ready to go on."""

    def __init__(self, start_ns: int = 0, mono_ns: int = 0) -> None:
        self._offset = start_ns - mono_ns
        self._last = start_ns

    @property
    def offset_ns(self) -> int:
        """The pair's time minus the node's own, while it leads."""
        return self._offset

    def now(self, mono_ns: int) -> int:
        """The pair's time at the node's own `mono_ns`. Never less than any answer before."""
        self._last = max(self._last, mono_ns + self._offset)
        return self._last

    def follow(self, committed_ns: int, mono_ns: int) -> None:
        """The active committed at `committed_ns`; this node heard of it at `mono_ns`."""
        self._last = max(self._last, committed_ns)
        self._offset = self._last - mono_ns
