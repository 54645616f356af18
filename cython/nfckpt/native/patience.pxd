"""Patience: how a loop with nothing to do waits. See patience.pyx."""
from libc.stdint cimport uint64_t

cdef class Patience:
    cdef readonly uint64_t spin_ns
    cdef readonly uint64_t yield_ns
    cdef uint64_t since         # when the loop ran out of work; 0: it has some
    cdef readonly uint64_t yields

    cdef void busy(self) noexcept nogil
    cdef bint idle(self, uint64_t now) noexcept nogil
