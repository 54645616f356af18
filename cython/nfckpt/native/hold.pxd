"""Hold: how long an epoch may stay open, fixed or adapted. The picture is in hold.pyx."""
cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum Binds:
    NONE = 0
    CPU = 1
    LATENCY = 2

@cython.final
cdef class Hold:
    cdef readonly uint64_t ns               # an epoch that has been open for so long closes
    cdef readonly uint64_t target_ns
    cdef readonly bint adaptive
    cdef int _binds
    cdef uint64_t percent
    cdef uint64_t began_ns, cost_ns, epochs # of the window that is open
    cdef readonly uint64_t mean_ns          # cost of an epoch in the last window
    cdef readonly uint64_t period_ns        # from cut to cut in the last window

    cdef void spent(self, uint64_t cut_ns, uint64_t cost_ns) noexcept nogil
