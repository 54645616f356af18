"""Staging: captured records that the channel has not taken yet. The picture is in staging.pyx."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    SLOTS = 2

@cython.final
cdef class Staging:
    cdef uint8_t* mem
    cdef readonly uint64_t slot_bytes
    cdef readonly uint32_t count            # records that wait
    cdef uint32_t first
    cdef uint64_t nbytes[SLOTS]
    cdef uint64_t written[SLOTS]            # nbytes, or more where the record was encoded in its place
    cdef uint64_t captured_ns[SLOTS]

    cdef uint8_t* room(self) noexcept nogil
    cdef void put(self, uint64_t nbytes, uint64_t written, uint64_t captured_ns) noexcept nogil
    cdef uint8_t* oldest(self) noexcept nogil
    cdef uint64_t pop(self) noexcept nogil
