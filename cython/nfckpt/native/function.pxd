"""Function: the contract of nfckpt/nf.py for apps in Cython.

    from nfckpt.native.function cimport NativeFunction
    cdef class Echo(NativeFunction):
        cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil: ...
"""
cimport cython
from libc.stdint cimport uint64_t

from nfckpt.native.burst cimport Burst

cdef class NativeFunction:
    cdef readonly tuple ports       # names in the order of port indices
    cdef readonly int tick_ms       # call on_tick at least this often, when above 0
    cdef readonly bint declares_ahead   # as nfckpt.nf.NetworkFunction.declares_ahead
    cdef uint64_t _random

    cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil

    @cython.final
    cdef inline uint64_t random_u64(self) noexcept nogil:
        """64 random bits (splitmix64): ctx.random_u64 without the GIL."""
        cdef uint64_t z
        self._random += <uint64_t>0x9e3779b97f4a7c15
        z = self._random
        z = (z ^ (z >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
        z = (z ^ (z >> 27)) * <uint64_t>0x94d049bb133111eb
        return z ^ (z >> 31)
