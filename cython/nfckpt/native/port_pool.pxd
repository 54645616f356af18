"""PortPool: free 16-bit ports, one pool per (address, protocol). The layout is drawn in port_pool.pyx."""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from nfckpt.native.structure cimport Structure

cdef struct Pool:               # 16 bytes, four a line
    uint16_t first[2]           # oldest free port of each parity, as index ^ natural; see Link
    uint16_t last[2]
    uint16_t used[2]
    uint32_t refused

cdef struct Link:               # 4 bytes a port
    uint16_t next               # index ^ natural index, so that zeros are the full list in ascending order
    uint16_t prev

cdef class PortPool(Structure):
    cdef readonly uint16_t lo, hi               # both included
    cdef readonly uint32_t pools, addresses, protocols
    cdef uint32_t n                             # ports in a pool
    cdef uint64_t links, links_bytes            # offset of pool 0's links; bytes of a pool's links

    cdef int allocate(self, uint32_t pool, uint16_t preferred) noexcept nogil       # port, or -1: none free (counted)
    cdef bint release(self, uint32_t pool, uint16_t port) noexcept nogil            # False: it was free already
    cdef bint is_free(self, uint32_t pool, uint16_t port) noexcept nogil
    cdef uint32_t available(self, uint32_t pool) noexcept nogil
    cdef Py_ssize_t check(self, const int64_t[::1] pools, const int64_t[::1] ports) except -1
