# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Patience: a loop with nothing to do spins, then yields, then blocks. The only place that decides.

    nothing since   0 ─────────── spin_us ──────────────── spin_us + yield_us ───────────►
                    look again    sched_yield between looks    `idle` is True: block on the descriptors

Spinning answers within a microsecond and keeps the core; yielding answers as fast while the core is free, and gives it to
whoever needs it (the app's clients, the other node) while it is not; blocking costs the next message a wake-up (60 µs across cores)
and nothing else. One object goes through ActivePath.run or StandbyPath.run and the Python loop around it: its clock is the loop's.
"""

cdef extern from "sched.h" nogil:
    int sched_yield()


cdef class Patience:
    """`spin_us`, `yield_us`: microseconds, `idle_spin_us` and `idle_yield_us` of config.Bounds."""

    def __init__(self, uint64_t spin_us, uint64_t yield_us):
        self.spin_ns, self.yield_ns = spin_us * 1000, yield_us * 1000

    cdef void busy(self) noexcept nogil:
        self.since = 0

    cdef bint idle(self, uint64_t now) noexcept nogil:
        if self.since == 0:
            self.since = now
        elif now - self.since >= self.spin_ns + self.yield_ns:
            return True
        elif now - self.since >= self.spin_ns:
            self.yields += 1
            sched_yield()
        return False

    def worked(self):
        """The loop found something to do."""
        self.busy()

    def exhausted(self, uint64_t now):
        """The loop found nothing at `now` (CLOCK_MONOTONIC, ns), and may have given its core away. True: block."""
        return self.idle(now)
