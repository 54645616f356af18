"""TimerWheel: one timer for each of `capacity` ids. The layout is drawn in timer_wheel.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from nfckpt.native.structure cimport Structure

cdef struct WheelHead:
    uint64_t stamp
    uint64_t cursor             # the oldest tick whose bucket has not been looked at
    uint32_t count              # timers armed
    uint32_t pad

cdef struct Timer:              # 16 bytes, four a line
    uint64_t deadline           # ns
    uint32_t next               # id + 1, 0: last of its bucket
    uint32_t prev               # id + 1, or AT_HEAD | bucket; 0: not armed

cdef class TimerWheel(Structure):
    cdef readonly uint32_t capacity
    cdef readonly uint64_t tick_ns
    cdef uint64_t buckets, timers               # offsets in the arena

    cdef void arm(self, uint32_t id, uint64_t deadline) noexcept nogil      # armed already: moved to the new deadline
    cdef bint cancel(self, uint32_t id) noexcept nogil                      # False: was not armed
    cdef bint armed(self, uint32_t id) noexcept nogil
    cdef int advance(self, uint64_t now, uint32_t* out_ids, int out_max) noexcept nogil
    cdef const int64_t[::1] open_ids(self, object ids)
