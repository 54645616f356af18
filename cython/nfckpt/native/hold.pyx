# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Hold: how long an epoch may stay open. Fixed, or the shortest that a CPU budget allows, never above a latency target.

Picture     share of the packet thread = cost of a capture ÷ time from cut to cut

            share ▲*
                  │ *                    hold = 0: every poll is a checkpoint      binds none
            budget┼──*────────           the shortest hold within the budget       binds cpu
                  │    *   *             the target comes before the budget        binds latency
                  └──┴────────┴─► hold
                             target

Method      What an epoch costs is a fixed part and a part that grows with what was written, so the period that just meets the
            budget, cost ÷ budget, is found by going half the way to it, again and again: each window's error is smaller than the
            last one's as long as writing alone does not exceed the budget; if it does, the target ends the climb.
            A window is 64 epochs or 2 ms, whichever comes first. One capture that took more than 4 times the mean was interrupted, and
            counts as 4 times the mean.

Promises    H1 hold <= target, always.  H2 no clock of its own: it is told when each epoch was cut and what that cost.
            H3 where the input is idle the hold is 0: a share of nothing needs no saving.
"""
from nfckpt.errors import ConfigError

cdef enum:
    WINDOW_EPOCHS = 64
    WINDOW_NS = 2000000
    OUTLIER = 4

BINDS = ("none", "cpu", "latency")


cdef class Hold:
    """`target_us`: how long an output may wait in the open epoch. `cpu_percent`: share of the packet thread's time that captures
    may take, 1 to 100; 0: no budget, the hold is the target."""

    def __cinit__(self, uint64_t target_us, uint32_t cpu_percent=0):
        if cpu_percent > 100:
            raise ConfigError(f"a CPU budget of {cpu_percent} percent", "1 to 100, or 0 for a fixed hold")
        self.target_ns = target_us * 1000
        self.percent = cpu_percent
        self.adaptive = cpu_percent > 0
        self.ns = 0 if self.adaptive else self.target_ns

    @property
    def binds(self):
        """What keeps the hold where it is: "latency" (the target), "cpu" (the budget), or "none"."""
        return BINDS[self._binds]

    @property
    def cpu_percent(self):
        """Share of the packet thread's time that captures took in the last window, percent. Only where a budget asks."""
        return round(100 * self.mean_ns / self.period_ns, 2) if self.period_ns else 0.0

    def cut(self, uint64_t cut_ns, uint64_t cost_ns):
        """An epoch was cut at `cut_ns`; capturing and shipping it took `cost_ns` of the packet thread."""
        self.spent(cut_ns, cost_ns)

    cdef void spent(self, uint64_t cut_ns, uint64_t cost_ns) noexcept nogil:
        cdef int64_t hold
        if not self.adaptive:
            return
        if self.began_ns == 0:                  # the first cut begins a window
            self.began_ns = cut_ns
            return
        if self.mean_ns and cost_ns > OUTLIER * self.mean_ns:
            cost_ns = OUTLIER * self.mean_ns
        self.cost_ns += cost_ns
        self.epochs += 1
        if self.epochs < WINDOW_EPOCHS and cut_ns - self.began_ns < WINDOW_NS:
            return
        self.mean_ns = self.cost_ns // self.epochs or 1
        self.period_ns = (cut_ns - self.began_ns) // self.epochs
        hold = <int64_t>self.ns + (<int64_t>(self.mean_ns * 100 // self.percent) - <int64_t>self.period_ns) // 2
        if hold >= <int64_t>self.target_ns:
            self.ns, self._binds = self.target_ns, LATENCY
        elif hold > 0:
            self.ns, self._binds = <uint64_t>hold, CPU
        else:
            self.ns, self._binds = 0, NONE
        self.began_ns, self.cost_ns, self.epochs = cut_ns, 0, 0
