"""Failure detector: how long has the peer been silent, compared with holes that the scheduler has shown here?

Picture     heard       |    |    |         |    |                                       each a record, an ack or a beat of the
                                  └─ hole ──┘    └── LATE ──┬──── DEAD ──►               peer's packet loop, not of a thread beside it
                                                  late_ns   bound_ns

            bound = hang_ms, or HOLES × the longest hole of the last minute where that is more, at most hang_ms_max.
            A hole is a silence that ended, or time in which this loop itself did not run: it was not there to hear.

Input       looked(now, heard_ns) at every look, about once a millisecond; heard_ns: of the youngest message that was read before.
Promises    D1 DEAD only when the peer was silent for bound_ns in which we looked.   D2 hang_ms <= bound <= hang_ms_max.
            D3 bound grows at once with a hole, and shrinks when the hole is a minute old.
Not here    death that the kernel tells (native/life.pyx), the channel's end; acting on the verdict (takeover.py, replica/active.py).
"""

from __future__ import annotations

from enum import Enum

from nfckpt.config import Bounds

__all__ = ["Detector", "Verdict"]

MS = 1_000_000
HOLES = 4               # a silence so many times as long as any hole of late is no hole
MEMORY_NS = 30_000 * MS     # two of these make the minute
LOOK_NS = 3 * MS        # a loop that is well looks more often


class Verdict(Enum):
    ALIVE = "alive"
    LATE = "late"
    DEAD = "dead"


class Detector:
    """Of one peer, from `now` on: CLOCK_MONOTONIC ns of this node."""

    def __init__(self, bounds: Bounds, now: int) -> None:
        self._least, self._most = bounds.hang_ms * MS, bounds.hang_ms_max * MS
        self.late_ns = 2 * bounds.beat_ms * MS
        self.verdict = Verdict.ALIVE
        self.alarms = 0             # silences that were DEAD and ended: false, each of them
        self.lates = 0
        self._looked_ns = self._heard_ns = self._turned_ns = now
        self._away_ns = 0           # of the present silence, we were not there
        self._holes = [0, 0]        # the longest of this half minute, and of the last

    @property
    def hole_ns(self) -> int:
        """The longest hole of late."""
        return max(self._holes)

    @property
    def bound_ns(self) -> int:
        """So long a silence is taken for death."""
        return max(self._least, min(self._most, HOLES * self.hole_ns))

    def looked(self, now: int, heard_ns: int) -> Verdict:
        """We looked at `now`, and what we heard last came at `heard_ns`."""
        if now - self._turned_ns > MEMORY_NS:
            self._holes = [0, self._holes[0]]
            self._turned_ns = now
        away = max(0, now - self._looked_ns - LOOK_NS)
        self._looked_ns = now
        self._hole(away)
        if heard_ns > self._heard_ns:
            self._hole(heard_ns - self._heard_ns - self.late_ns)
            self.alarms += self.verdict is Verdict.DEAD
            self._heard_ns, self._away_ns, self.verdict = heard_ns, 0, Verdict.ALIVE
        self._away_ns += away
        silent = now - self._heard_ns - self._away_ns
        if silent > self.bound_ns:
            self.verdict = Verdict.DEAD
        elif silent > self.late_ns and self.verdict is Verdict.ALIVE:
            self.verdict = Verdict.LATE
            self.lates += 1
        return self.verdict

    def describe(self) -> dict[str, float | str | int]:
        """For status: peer, hang_bound_ms, hole_ms (the longest of the last minute), lates and alarms since the start."""
        return {"peer": self.verdict.value, "hang_bound_ms": round(self.bound_ns / MS, 1), "hole_ms": round(self.hole_ns / MS, 1),
                "peer_lates": self.lates, "peer_alarms": self.alarms}

    def _hole(self, ns: int) -> None:
        self._holes[0] = max(self._holes[0], ns)
