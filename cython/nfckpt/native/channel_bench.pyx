# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""For measurements: how fast a channel carries messages when neither end does anything with them, and a port that repeats frames."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from nfckpt.native.burst cimport Burst
from nfckpt.native.channel cimport Channel, Message
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.port cimport Port


cdef class Repeater(Port):
    """Endless input: `frames`, bytes objects of one length, one after the other and round again. Output is counted and forgotten."""
    cdef bytes memory
    cdef const uint8_t* data
    cdef uint32_t nbytes, n, at

    def __init__(self, list frames not None):
        self.name = "repeater"
        self.nbytes, self.n = len(frames[0]), len(frames)
        self.memory = b"".join(frames)
        if len(self.memory) != <uint64_t>self.n * self.nbytes:
            raise ValueError("frames of different lengths")
        self.data = self.memory

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        cdef int i
        cdef uint8_t* p
        cdef uint64_t now = monotonic_ns()
        for i in range(max_frames):
            p = b.append(self.nbytes, index, now)
            if p == NULL:
                return i
            memcpy(p, self.data + <uint64_t>self.at * self.nbytes, self.nbytes)
            self.at = self.at + 1 if self.at + 1 < self.n else 0
        self.c.rx_frames += max_frames
        return max_frames

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        self.c.tx_frames += 1
        self.c.tx_bytes += n
        return 1

    cdef int flush(self) noexcept nogil:
        return 0


def pump(Channel channel not None, const uint8_t[::1] memory not None, uint64_t nbytes, uint64_t count, int kind=9):
    """Send `count` messages of `nbytes`, one after the other out of `memory`, and round again. Returns how many were accepted: fewer
    only if the channel ended."""
    cdef uint64_t n = 0, places = memory.shape[0] // nbytes
    cdef int r
    with nogil:
        while n < count:
            r = channel.push(kind, &memory[n % places * nbytes], nbytes)
            if r == 1:
                n += 1
            elif r < 0 or channel.reason or channel.tx_reason:
                break
        while not channel.drain() and not channel.tx_reason:
            pass
    return n


def sink(Channel channel not None, uint64_t count):
    """Receive `count` messages and forget them. Returns how many came: fewer only if the channel ended."""
    cdef uint64_t n = 0
    cdef int r
    cdef Message m
    with nogil:
        while n < count:
            r = channel.pop(&m)
            if r < 0:
                break
            n += r
    return n
