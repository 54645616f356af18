# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""For measurements: how fast a ring carries messages when neither end does anything with them."""
from libc.stdint cimport uint8_t, uint64_t
from nfckpt.native.shm_ring cimport ShmMessage, ShmRing


def pump(ShmRing ring not None, const uint8_t[::1] memory not None, uint64_t nbytes, uint64_t count, int kind=9):
    """Send `count` messages of `nbytes`, one after the other out of `memory`, and round again. Returns how many were accepted: fewer
    only if the channel ended."""
    cdef uint64_t n = 0, places = memory.shape[0] // nbytes
    cdef int r
    with nogil:
        while n < count:
            r = ring.push(kind, &memory[n % places * nbytes], nbytes)
            if r == 1:
                n += 1
            elif r < 0 or ring.reason or ring.tx_reason:
                break
        while not ring.drain() and not ring.tx_reason:
            pass
    return n


def sink(ShmRing ring not None, uint64_t count):
    """Receive `count` messages and forget them. Returns how many came: fewer only if the channel ended."""
    cdef uint64_t n = 0
    cdef int r
    cdef ShmMessage m
    with nogil:
        while n < count:
            r = ring.pop(&m)
            if r < 0:
                break
            n += r
    return n
