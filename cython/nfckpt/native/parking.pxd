"""Parking: frames that the app keeps across polls, in a replicated region."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.arena cimport Arena

cdef class Parking:
    cdef Arena arena
    cdef uint64_t off
    cdef readonly uint32_t capacity
    cdef int park(self, uint8_t port, const uint8_t* data, uint32_t n) noexcept nogil
