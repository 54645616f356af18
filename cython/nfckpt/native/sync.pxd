"""PageSync: the pages of an arena on their way to a blank standby. The picture is in sync.pyx."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from nfckpt.native.arena cimport Arena

cdef enum:
    GROUPS = 2                              # groups sent and not committed, at most

@cython.final
cdef class PageSync:
    cdef Arena arena
    cdef readonly uint32_t next             # pages below are sent, or were zero when their turn came
    cdef readonly bint done                 # nothing is left to send
    cdef readonly uint64_t sent             # pages of this sync
    cdef readonly uint32_t group_max
    cdef readonly uint32_t group            # pages that the next group looks at
    cdef uint64_t pause_ns
    cdef uint32_t* chosen
    cdef uint64_t in_epoch[GROUPS]          # the epochs of the last groups
    cdef uint32_t turn

    cdef bint ready(self, uint64_t committed) noexcept nogil
    cdef uint32_t choose(self, uint64_t epoch) noexcept nogil
    cdef void forget_unsent(self) noexcept nogil
    cdef void took(self, uint64_t ns) noexcept nogil
