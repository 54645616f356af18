"""Counters: named u64 counters, eight a line."""
from libc.stdint cimport uint32_t, uint64_t
from nfckpt.native.structure cimport Structure

cdef class Counters(Structure):
    cdef readonly tuple names
    cdef uint32_t n
    cdef uint64_t first         # offset of counter 0

    cdef void add(self, uint32_t i, uint64_t n) noexcept nogil
    cdef uint64_t read(self, uint32_t i) noexcept nogil
    cdef void put(self, uint32_t i, uint64_t value) noexcept nogil
    cpdef uint32_t index(self, str name) except? 0xffffffff
