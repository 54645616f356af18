"""PortSet: the ports of one node, reachable by index without the GIL."""
from libc.stdint cimport uint8_t, uint32_t
from nfckpt.native.burst cimport Burst
from nfckpt.native.port cimport Port

cdef enum:
    MAX_PORTS = 16

cdef class PortSet:
    cdef readonly int n
    cdef readonly list ports
    cdef Port p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12, p13, p14, p15

    cdef int rx(self, int i, Burst b, int max_frames) noexcept nogil
    cdef int tx(self, int i, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int flush(self, int i) noexcept nogil
    cdef const uint8_t* stage(self, int i, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int publish(self, int i) noexcept nogil

cdef object raise_gone(PortSet ports)
