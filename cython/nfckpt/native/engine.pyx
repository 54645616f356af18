# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Checkpoint engine, native: decides when an epoch closes and keeps its state; copies nothing.

The rules in prose, the picture and who calls are in nfckpt/checkpoint/engine.py. The table below is the only one: the
kernels move through it too.
"""
from enum import Enum

from nfckpt.errors import PeerError

from nfckpt.native.arena cimport CHECK

CAUSES = ("time", "frames", "bytes", "crowded", "request")


class EpochState(Enum):
    OPEN = "open"
    QUIESCING = "quiescing"
    CAPTURED = "captured"
    SHIPPED = "shipped"
    COMMITTED = "committed"
    ABORTED = "aborted"


_STATES = list(EpochState)
_EVENTS = ("cut", "frames_out", "deadline", "resume", "channel_lost", "again", "ship", "ack")

S = EpochState
TRANSITIONS = {
    (S.OPEN, "cut"): S.CAPTURED,
    (S.OPEN, "frames_out"): S.QUIESCING,
    (S.QUIESCING, "cut"): S.CAPTURED,
    (S.QUIESCING, "deadline"): S.ABORTED,
    (S.QUIESCING, "resume"): S.OPEN,
    (S.QUIESCING, "channel_lost"): S.ABORTED,
    (S.ABORTED, "again"): S.OPEN,
    (S.CAPTURED, "ship"): S.SHIPPED,
    (S.CAPTURED, "channel_lost"): S.ABORTED,
    (S.SHIPPED, "ack"): S.COMMITTED,
    (S.SHIPPED, "channel_lost"): S.ABORTED,
}

cdef int NEXT[6][8]
for _s in range(6):
    for _e in range(8):
        _to = TRANSITIONS.get((_STATES[_s], _EVENTS[_e]))
        NEXT[_s][_e] = -1 if _to is None else _STATES.index(_to)


cdef class Engine:
    """`bounds`: nfckpt.config.Bounds. `first_epoch`: the number of the epoch that is open now."""

    def __cinit__(self, bounds, uint64_t first_epoch=1):
        self.epoch = first_epoch
        self.committed = first_epoch - 1
        self._state = OPEN
        self.hold = Hold(bounds.hold_us_max, bounds.hold_cpu_percent_max if bounds.hold_policy == "auto" else 0)
        self.frames_max, self.dirty_max = bounds.hold_frames_max, bounds.hold_dirty_bytes_max
        self.quiesce_ns = bounds.quiesce_ms_max * 1000000
        self.outstanding_max = min(OUTSTANDING_MAX, bounds.epochs_outstanding_max)
        self.abort_max = bounds.abort_max

    def start_at(self, uint64_t epoch):
        """The open epoch is this one: a promoted node goes on after the last committed one."""
        self.epoch, self.committed = epoch, epoch - 1

    cdef void move(self, int event) noexcept nogil:
        cdef int to = NEXT[self._state][event]
        CHECK(to >= 0)
        self._state = to

    @property
    def state(self):
        """EpochState of the open epoch, CAPTURED while it has nothing to wait for and one before it is in staging."""
        return _STATES[CAPTURED if self.staged and self._state == OPEN else self._state]

    @property
    def outstanding(self):
        """Epochs shipped and not committed."""
        return int(self.count)

    # ── when ─────────────────────────────────────────────────────────────────────────────────────

    def request(self):
        """Ask for a cut at the next poll, whatever the policy. Returns its number."""
        self._request += 1
        self._requested = True
        return int(self._request)

    def resume(self, uint64_t number):
        """Take back request `number`. False, and no effect, for any other than the youngest (I11)."""
        if number != self._request or not self._requested:
            return False
        self._requested = False
        if self._state == QUIESCING:
            self.move(RESUME)
        return True

    def due(self, uint64_t now_ns, bint pending, bint crowded, uint64_t frames=0, uint64_t dirty_bytes=0):
        """Why the open epoch should close now, one of CAUSES; "" if it should not. `pending`: it has something to say; `crowded`:
        names or gate are half full; `frames`: outputs it holds; `dirty_bytes`: at least what it wrote."""
        cdef int why = self.is_due(now_ns, pending, crowded, frames, dirty_bytes)
        return CAUSES[why] if why >= 0 else ""

    cdef int is_due(self, uint64_t now_ns, bint pending, bint crowded, uint64_t frames, uint64_t dirty_bytes) noexcept nogil:
        """A Cause, or NOT_DUE. The time an epoch has been open counts from its first pending poll: no input moves it (I3)."""
        cdef int why = NOT_DUE
        if self.count + self.staged >= self.outstanding_max:
            return NOT_DUE
        if pending and self.opened_ns == 0:
            self.opened_ns = now_ns
        if self._requested:
            why = REQUEST
        elif pending and now_ns - self.opened_ns >= self.hold.ns:
            why = TIME
        elif frames >= self.frames_max:
            why = FRAMES
        elif dirty_bytes >= self.dirty_max:
            why = BYTES
        elif crowded:
            why = CROWDED
        if why >= 0:
            self.cause = why
        return why

    @property
    def closed(self):
        """dict cause -> epochs that closed for it."""
        return {CAUSES[i]: int(self.closed_for[i]) for i in range(5)}

    def frames_out(self, uint64_t now_ns):
        """A cut is due and the app owns frames. True: answer "no packets"; False: the attempt was just aborted."""
        return bool(self.quiet(now_ns))

    cdef bint quiet(self, uint64_t now_ns) noexcept nogil:
        if self._state == OPEN:
            self.move(FRAMES_OUT)
            self.deadline_ns = now_ns + self.quiesce_ns
        elif self._state == QUIESCING and now_ns >= self.deadline_ns:
            self.move(DEADLINE)
            self.aborts += 1
            self.aborts_in_row += 1
            self.move(AGAIN)
            self.opened_ns = now_ns         # the next attempt waits for the policy again
            return False
        return True

    @property
    def unprotectable(self):
        """The app never lets go of its frames: `abort_max` attempts failed in a row."""
        return self.aborts_in_row >= self.abort_max

    # ── what happened ────────────────────────────────────────────────────────────────────────────

    def skip(self):
        """Protection begins: the open epoch was emitted by permission and counts as committed."""
        self.committed = self.epoch
        self.epoch += 1
        self.opened_ns = 0
        self.aborts_in_row = 0

    def captured(self):
        """The open epoch is in staging. Returns its number; the next one is open."""
        return int(self.capture())

    cdef uint64_t capture(self) noexcept nogil:
        self.move(CUT)
        self.aborts_in_row = 0
        self._requested = False
        self.opened_ns = 0
        self.closed_for[self.cause] += 1
        self.epoch += 1
        self.staged += 1
        self._state = OPEN                  # of the next one
        return self.epoch - 1

    def ship(self, uint64_t captured_ns):
        """The channel took the oldest staged record, captured at `captured_ns`."""
        self.took(captured_ns)

    cdef void took(self, uint64_t captured_ns) noexcept nogil:
        cdef uint32_t i = (self.first + self.count) % OUTSTANDING_MAX
        CHECK(self.staged > 0)               # (CAPTURED, "ship") of the oldest one staged
        self.ring_epoch[i] = self.epoch - self.staged
        self.ring_ns[i] = captured_ns
        self.staged -= 1
        self.count += 1
        self.shipped += 1

    def acked(self, uint64_t epoch):
        """The standby holds everything up to `epoch`. Returns when that epoch was captured (ns), None for a repeated ack.
        Raises PeerError for an epoch that was never shipped."""
        cdef uint64_t captured_ns = 0
        cdef int r = self.ack(epoch, &captured_ns)
        if r < 0:
            raise PeerError(f"ack of epoch {epoch}, which was not shipped (committed {self.committed})")
        return int(captured_ns) if r else None

    cdef int ack(self, uint64_t epoch, uint64_t* captured_ns) noexcept nogil:
        """1 committed, 0 repeated, -1 never shipped."""
        cdef uint64_t youngest = 0
        if epoch <= self.committed:
            return 0
        while self.count and self.ring_epoch[self.first] <= epoch:
            youngest = self.ring_epoch[self.first]
            captured_ns[0] = self.ring_ns[self.first]
            self.first = (self.first + 1) % OUTSTANDING_MAX
            self.count -= 1
        if youngest != epoch:
            return -1
        self.committed = epoch
        return 1

    def channel_lost(self):
        """Whatever was on its way is aborted; the open epoch goes on."""
        self.count = self.staged = 0
        if self._state == QUIESCING:
            self.move(CHANNEL_LOST)
            self.move(AGAIN)
        self.opened_ns = 0
