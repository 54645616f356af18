"""Life: a page that says whether one thread of one process still lives, and the kernel's own word when it does not."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "linux/futex.h":
    enum: FUTEX_OWNER_DIED

cdef enum:
    ALIVE = 0
    DIED = 1                    # the kernel wrote it: the holding thread is past its last instruction
    LEAVING = 64                # offset in the page: a u64 for each port
    LEFT = 192                  # and one for all of them
    RELEASED = 2                # the holder let go (or wrote something else there): no proof of anything

cdef struct WatchState:
    const uint32_t* word        # the lock word, in a read-only mapping
    uint32_t owner              # thread id in the word when the watch began
    int event                   # eventfd, written once when state leaves ALIVE
    int stop
    int state
    uint64_t ns                 # CLOCK_MONOTONIC when state changed
    uint64_t thread             # pthread_t
    void* map                   # the page

cdef class LifeLock:
    cdef readonly int fd
    cdef void* page
    cdef uint32_t owner         # thread id while held

cdef class LifeWatch:
    cdef WatchState* s

    cdef _end(self)
    cdef uint64_t leaves(self, int port) noexcept nogil
    cdef uint64_t left(self) noexcept nogil

    @cython.final
    cdef inline bint dead(self) noexcept nogil:
        """For a packet loop, no call: the kernel's word itself, before the watcher's thread has its turn."""
        return self.s.state == DIED or (self.s.map != NULL and self.s.word[0] & <uint32_t>FUTEX_OWNER_DIED != 0)
