"""Checkpoint engine: when an epoch closes, and every state it can be in.

Rules       An epoch is OPEN from the moment its first frame is consumed, output held or line written.
            It closes at a poll, when it is due and the app owns no frame. If the app still owns frames it is QUIESCING:
            polls answer "no packets" until the app lets go, or the deadline makes the attempt ABORTED.
            CAPTURED (copied into staging) → SHIPPED (the channel took it) → COMMITTED (the standby holds it whole).
            An abort leaves the last committed epoch untouched.

Picture     OPEN ─► CAPTURED ─► SHIPPED ─► COMMITTED
              └─► QUIESCING ─┘ │            │
                     └──────► ABORTED ◄─────┘  (deadline; channel lost)

Quiesce requests carry numbers (I11): `request()` gives one, a stale `resume(number)` has no effect.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple

from nfckpt.config import Bounds
from nfckpt.errors import PeerError

__all__ = ["TRANSITIONS", "Engine", "EpochState", "Outstanding"]


class EpochState(Enum):
    OPEN = "open"
    QUIESCING = "quiescing"
    CAPTURED = "captured"
    SHIPPED = "shipped"
    COMMITTED = "committed"
    ABORTED = "aborted"


S = EpochState
TRANSITIONS: dict[tuple[EpochState, str], EpochState] = {
    (S.OPEN, "cut"): S.CAPTURED,
    (S.OPEN, "frames_out"): S.QUIESCING,
    (S.QUIESCING, "cut"): S.CAPTURED,
    (S.QUIESCING, "deadline"): S.ABORTED,
    (S.QUIESCING, "resume"): S.OPEN,
    (S.QUIESCING, "channel_lost"): S.ABORTED,
    (S.ABORTED, "again"): S.OPEN,
    (S.CAPTURED, "shipped"): S.SHIPPED,
    (S.CAPTURED, "channel_lost"): S.ABORTED,
    (S.SHIPPED, "acked"): S.COMMITTED,
    (S.SHIPPED, "channel_lost"): S.ABORTED,
}


class Outstanding(NamedTuple):
    epoch: int
    captured_ns: int


class Engine:
    """Decides; copies nothing. The node captures when `due` says so and reports what happened."""

    def __init__(self, bounds: Bounds, first_epoch: int = 1) -> None:
        self.bounds = bounds
        self.epoch = first_epoch            # the open one
        self.committed = first_epoch - 1
        self.state = S.OPEN                 # of the open epoch, or of the one in staging
        self.outstanding: deque[Outstanding] = deque()
        self.opened_ns = 0
        self.aborts_in_row = 0
        self.aborts = 0
        self.shipped = 0
        self._deadline_ns = 0
        self._request = 0
        self._requested = False

    def _move(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]

    # ── when ─────────────────────────────────────────────────────────────────────────────────────

    def request(self) -> int:
        """Ask for a cut at the next poll, whatever the policy. Returns its number."""
        self._request += 1
        self._requested = True
        return self._request

    def resume(self, number: int) -> bool:
        """Take back request `number`. False, and no effect, for any other than the youngest (I11)."""
        if number != self._request or not self._requested:
            return False
        self._requested = False
        if self.state is S.QUIESCING:
            self._move("resume")
        return True

    def due(self, now_ns: int, pending: bool, crowded: bool) -> bool:
        """Should the open epoch close? `pending`: it has something to say; `crowded`: a buffer is half full."""
        if self.state is S.CAPTURED or len(self.outstanding) >= self.bounds.epochs_outstanding_max:
            return False
        if self._requested or crowded:
            return True
        if not pending:
            return False
        if self.opened_ns == 0:
            self.opened_ns = now_ns
        return now_ns - self.opened_ns >= self.bounds.hold_us_max * 1000

    def frames_out(self, now_ns: int) -> bool:
        """A cut is due and the app owns frames. True: answer "no packets"; False: the attempt was just aborted."""
        if self.state is S.OPEN:
            self._move("frames_out")
            self._deadline_ns = now_ns + self.bounds.quiesce_ms_max * 1_000_000
        elif self.state is S.QUIESCING and now_ns >= self._deadline_ns:
            self._move("deadline")
            self.aborts += 1
            self.aborts_in_row += 1
            self._move("again")
            self.opened_ns = now_ns         # the next attempt waits for the policy again
            return False
        return True

    @property
    def unprotectable(self) -> bool:
        """The app never lets go of its frames: `abort_max` attempts failed in a row."""
        return self.aborts_in_row >= self.bounds.abort_max

    # ── what happened ────────────────────────────────────────────────────────────────────────────

    def skip(self) -> None:
        """Protection begins: the open epoch was emitted by permission and counts as committed."""
        self.committed = self.epoch
        self.epoch += 1
        self.opened_ns = 0

    def captured(self) -> int:
        """The open epoch is in staging. Returns its number; the next one is open."""
        self._move("cut")
        self.aborts_in_row = 0
        self._requested = False
        self.opened_ns = 0
        number = self.epoch
        self.epoch += 1
        return number

    def ship(self, captured_ns: int) -> None:
        """The channel took the staged record, captured at `captured_ns`."""
        self._move("shipped")
        self.outstanding.append(Outstanding(self.epoch - 1, captured_ns))
        self.shipped += 1
        self.state = S.OPEN

    def acked(self, epoch: int) -> Outstanding | None:
        """The standby holds everything up to `epoch`. Returns the youngest epoch that this commits, None for a repeated
        ack. Raises PeerError for an epoch that was never shipped."""
        if epoch <= self.committed:
            return None
        youngest = None
        while self.outstanding and self.outstanding[0].epoch <= epoch:
            youngest = self.outstanding.popleft()
        if youngest is None or youngest.epoch != epoch:
            raise PeerError(f"ack of epoch {epoch}, which was not shipped (committed {self.committed})")
        self.committed = epoch
        return youngest

    def channel_lost(self) -> None:
        """Whatever was on its way is aborted; the open epoch goes on."""
        self.outstanding.clear()
        if self.state in (S.CAPTURED, S.QUIESCING):
            self._move("channel_lost")
            self._move("again")
        self.opened_ns = 0
