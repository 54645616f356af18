# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Native counter: a wire with a meter for frames and bytes of each side. on_burst runs without the GIL."""
from libc.stdint cimport uint64_t

from nfckpt.native.burst cimport SEND, Burst
from nfckpt.native.counters cimport Counters
from nfckpt.native.function cimport NativeFunction


cdef class NativeCounter(NativeFunction):
    cdef Counters totals

    def __init__(self):
        self.ports = ("left", "right")

    def declare(self, state):
        self.totals = state.counters("totals", ["left_frames", "right_frames", "left_bytes", "right_bytes"])

    cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil:
        cdef int i
        for i in range(b.n):
            self.totals.add(b.port[i], 1)               # marks the line it writes: that is all a checkpoint asks for
            self.totals.add(2 + b.port[i], b.length[i])
            b.out_port[i] = 1 - b.port[i]
            b.verdict[i] = SEND
        return 0                                        # anything else would be a broken invariant: the node stops
