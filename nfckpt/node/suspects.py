"""Suspects: after an unplanned takeover, the frames that the old active may have died of, run over an undoable arena.

Picture     tap at promotion   | seen before the fence: suspects .......... | seen since |
                                 a burst, lent: begin_undo ► app ► boundary: it stays
                                                        └ raises, or loops for burst_ms_max of CPU time:
                                                          undo arena and gate, put the burst back, a fresh app, then one at a time,
                                                          and the one that raises again is quarantined

Why         The old active may have died of a frame, and this node meets the same frame in its replay. Whether it did nobody can tell
            beforehand, so the replay is careful as long as it runs frames that the old one may have had. After that an exception
            stops the node: its standby is the one who is careful then. While none raises, care costs a copy of each page at its
            first write, and keeps outputs back for one poll.
Promises    Q1 of a quarantined frame nothing stays: no write, no output.   Q2 frames before and after it run once, in order.
            Q3 at most quarantine_frames_max in a life; at the next the node stops, as at any exception.
            Q4 nothing of this costs anything once `over`.
Not here    a native crash: it takes the process along, wherever it happens. A loop in native code ends the process too, after
            loop_ms_max.
            State with an mmu or compare tracker: its writes are found after they were made, so they cannot be undone. The replay is
            not careful then, and the node stops at the first exception.
            An exception while no suspect is in the app's hands (on_tick, call_soon): nothing to quarantine, the node stops.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from nfckpt.config import Bounds
from nfckpt.native.agent import Agent
from nfckpt.native.tap import Tap

__all__ = ["LoopsForEver", "Suspects"]

MS = 1_000_000
HELD_POLLS_MAX = 100_000


class LoopsForEver(Exception):
    """The app took more CPU time over one frame than burst_ms_max."""


class Suspects:
    """`until_ns`: frames that the tap saw up to then are suspect. `enter` first; then, at every poll, `accept` and `boundary`."""

    def __init__(self, agent: Agent, tap: Tap, bounds: Bounds, until_ns: int) -> None:
        self.agent, self.tap, self.bounds, self.until_ns = agent, tap, bounds, until_ns
        self.over = True
        self._alone = 0             # so many more frames of a burst that raised run one at a time
        self.quarantined = 0
        self._first: tuple[int, int, int, bytes] | None = None       # port, ts, key, frame: of what the app has, or gets next
        self._handed = 0
        self._gate_seq = 0
        self._polls_held = 0
        self._timed = threading.current_thread() is threading.main_thread()     # signals are the main thread's business

    @property
    def in_hand(self) -> bool:
        """Was the app given suspects since the last boundary?"""
        return not self.over and self._first is not None and self.agent.handed_out != self._handed

    def enter(self) -> None:
        """The replay begins."""
        self.over = False
        self.tap.lend(True)
        self.agent.gate.keep_back(True)
        if self._timed:
            signal.signal(signal.SIGPROF, self._loops)
        self.boundary()

    def accept(self) -> None:
        """First thing at a poll: what the app did with the last suspects stays."""
        if not self.agent.in_flight:
            self._time(0)
            self._alone = max(0, self._alone - self.tap.consume())
            self._first = None

    def boundary(self) -> None:
        """Last thing at a poll, with outputs released: from here the next suspects may be undone."""
        if self.agent.in_flight:
            # an app that owns its loop keeps frames: there is no instant to go back to but the last one
            self._polls_held += 1
            if self._polls_held > HELD_POLLS_MAX:
                self.leave()
            return
        self._polls_held = 0
        self._first = self.tap.oldest_input()
        if self._first is None or self._first[1] > self.until_ns:
            self.leave()
            return
        self.agent.frames_max = 1 if self._alone else 256
        self._handed = self.agent.handed_out
        self._gate_seq = self.agent.gate.tail
        self.agent.arena.begin_undo()
        self._time(self.bounds.burst_ms_max)

    def undo(self, now: int) -> tuple[int, int, bytes] | None:
        """As if the suspects in the app's hands had never come. A burst comes again, a frame at a time; a frame that was alone is
        quarantined: its like is dropped from now on. Returns (port, key, frame) of that one.

        The app that had it is done for: put a fresh one in place (`Agent.start_over`), then call `boundary`."""
        self._time(0)
        assert self.in_hand and self._first is not None
        port, _, key, frame = self._first
        self.agent.arena.undo()
        self.agent.arena.end_undo()
        self.agent.gate.retract(self._gate_seq)
        self._first = None
        if not self._alone:
            self._alone = self.tap.put_back()
            return None
        self._alone = max(0, self._alone - self.tap.consume())
        self.agent.quarantine(key, now + self.bounds.quarantine_s_max * 1000 * MS)
        self.quarantined += 1
        return port, key, frame

    def leave(self) -> None:
        """No suspect is left. Idempotent."""
        if self.over:
            return
        self.over = True
        self._time(0)
        if self._timed:
            signal.signal(signal.SIGPROF, signal.SIG_IGN)
        self.agent.arena.end_undo()
        self.tap.lend(False)
        self.agent.frames_max = 256
        self.agent.gate.keep_back(False)

    def _time(self, ms: int) -> None:
        if self._timed:
            signal.setitimer(signal.ITIMER_PROF, ms / 1000)

    def _loops(self, number: int, frame: FrameType | None) -> None:
        raise LoopsForEver(f"more than {self.bounds.burst_ms_max} ms of CPU time over one frame (burst_ms_max)")
