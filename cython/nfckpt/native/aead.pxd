"""Aead: seals and opens the records of one direction. See aead.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    TAG_BYTES = 16

cdef class Aead:
    cdef readonly uint64_t count        # records so far: the next one's nonce
    cdef readonly bint seals            # else it opens

    cdef int seal(self, const uint8_t* header, const uint8_t* plain, uint32_t n, uint8_t* out) noexcept nogil
    cdef int open(self, const uint8_t* header, const uint8_t* sealed, uint32_t n, uint8_t* out) noexcept nogil
    cdef int _next(self, const uint8_t* header, const uint8_t* data, uint32_t n, uint8_t* out) noexcept nogil
    cdef int _run(self, const uint8_t* nonce, const uint8_t* header, const uint8_t* data, uint32_t n, uint8_t* out) noexcept nogil
