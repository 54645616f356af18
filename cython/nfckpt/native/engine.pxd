"""Checkpoint engine, native: when an epoch closes, and its states. The essay is in nfckpt/checkpoint/engine.py."""
cimport cython
from libc.stdint cimport uint32_t, uint64_t
from nfckpt.native.hold cimport Hold

cdef enum State:
    OPEN = 0
    QUIESCING = 1
    CAPTURED = 2
    SHIPPED = 3
    COMMITTED = 4
    ABORTED = 5

cdef enum Event:
    CUT = 0
    FRAMES_OUT = 1
    DEADLINE = 2
    RESUME = 3
    CHANNEL_LOST = 4
    AGAIN = 5
    SHIP = 6
    ACK = 7

cdef enum Cause:                # why an epoch closes
    NOT_DUE = -1
    TIME = 0                    # the hold is over
    FRAMES = 1                  # hold_frames_max
    BYTES = 2                   # hold_dirty_bytes_max
    CROWDED = 3                 # names or gate half full
    REQUEST = 4

cdef enum:
    OUTSTANDING_MAX = 16384

@cython.final
cdef class Engine:
    cdef readonly uint64_t epoch            # the open one
    cdef readonly uint64_t committed
    cdef int _state
    cdef readonly uint64_t opened_ns        # 0: nothing to say yet
    cdef readonly Hold hold
    cdef uint64_t frames_max, dirty_max
    cdef int cause                          # why the next capture is made
    cdef uint64_t closed_for[5]
    cdef uint64_t quiesce_ns, deadline_ns
    cdef uint32_t outstanding_max, abort_max
    cdef uint64_t ring_epoch[OUTSTANDING_MAX]
    cdef uint64_t ring_ns[OUTSTANDING_MAX]
    cdef uint32_t first, count              # of the ring: shipped, not committed
    cdef readonly uint32_t staged           # captured, not shipped
    cdef readonly uint32_t aborts_in_row
    cdef readonly uint64_t aborts, shipped
    cdef uint64_t _request
    cdef bint _requested

    cdef void move(self, int event) noexcept nogil
    cdef int is_due(self, uint64_t now_ns, bint pending, bint crowded, uint64_t frames, uint64_t dirty_bytes) noexcept nogil
    cdef bint quiet(self, uint64_t now_ns) noexcept nogil
    cdef uint64_t capture(self) noexcept nogil
    cdef void took(self, uint64_t captured_ns) noexcept nogil
    cdef int ack(self, uint64_t epoch, uint64_t* captured_ns) noexcept nogil
