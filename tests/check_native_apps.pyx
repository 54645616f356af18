# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Native apps for check_nf: a good one, and one flaw each. Built by tests/test_check_nf.py, no part of the package."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from nfckpt.native.burst cimport SEND, Burst
from nfckpt.native.counters cimport Counters
from nfckpt.native.function cimport NativeFunction
from nfckpt.native.typed_array cimport TypedArray


cdef class Good(NativeFunction):
    cdef Counters seen
    cdef uint64_t scratch
    cdef uint8_t flag                   # 7 bytes of padding follow, or 3
    cdef uint32_t total[3]

    def __init__(self):
        self.ports = ("left", "right")

    def declare(self, state):
        self.seen = state.counters("seen", ["left", "right"])

    cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil:
        cdef int i
        cdef uint64_t n
        self.scratch = b.n
        for i in range(b.n):
            self.seen.add(b.port[i], 1)
            n = self.number(b, i)
            memcpy(b.data(i) + 14, &n, 8)
            b.out_port[i] = 1 - b.port[i]
            b.verdict[i] = SEND
        return 0

    cdef uint64_t number(self, Burst b, int i) noexcept nogil:
        return self.random_u64()


cdef class Forgets(Good):
    cdef uint32_t mine

    cdef uint64_t number(self, Burst b, int i) noexcept nogil:
        self.mine += 1
        return self.mine


cdef class InArray(Good):
    cdef uint64_t number(self, Burst b, int i) noexcept nogil:
        self.total[1] += 1
        return self.total[1]


cdef class Unmarked(Good):
    cdef TypedArray spare

    def declare(self, state):
        Good.declare(self, state)
        self.spare = state.array("spare", "u8", 64)

    cdef uint64_t number(self, Burst b, int i) noexcept nogil:
        cdef uint64_t* word = <uint64_t*>self.spare.arena.read(self.spare.offset + 64)
        word[0] += 1
        return 7


cdef class Clock(Good):
    cdef uint64_t number(self, Burst b, int i) noexcept nogil:
        cdef timespec t
        clock_gettime(CLOCK_MONOTONIC, &t)
        return <uint64_t>t.tv_nsec
