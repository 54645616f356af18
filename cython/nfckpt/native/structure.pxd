"""Structure: what every structure in the arena shares: one region, one stamp, offsets only."""
from libc.stdint cimport int64_t, uint64_t
from nfckpt.native.arena cimport Arena

cdef class Structure:
    cdef readonly Arena arena
    cdef readonly str name, kind, params
    cdef readonly uint64_t offset, nbytes       # of the region, in bytes

    cpdef bint declare(self, Arena arena, str name, str kind, str params, uint64_t nbytes, str tracker=*, fallback=*) except -1

cdef const int64_t[::1] int64_column(object numbers)
cdef Py_ssize_t pairs(const int64_t[::1] a, const int64_t[::1] b) except -1

cdef inline int64_t nth(const int64_t[::1] column, Py_ssize_t i) noexcept nogil:
    """Entry i of a column that may be a single number."""
    return column[i if column.shape[0] > 1 else 0]
