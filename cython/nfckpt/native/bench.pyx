# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""For measurements: a port that costs nothing, and a function that writes one line a frame, anywhere in the arena."""
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from nfckpt.native.arena cimport Arena, LINE
from nfckpt.native.burst cimport Burst, SEND
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.function cimport NativeFunction
from nfckpt.native.port cimport Port
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    SLOTS = 2048                # of its transmit ring
    SLOT_BYTES = 64             # a longer frame waits in the gate


cdef class Generator(Port):
    """Endless numbered UDP frames of `nbytes` bytes in; frames out are counted and forgotten. `limit`: frames in all (0: no
    end)."""
    cdef uint8_t frame[2048]
    cdef uint8_t* ring
    cdef uint64_t staged, published
    cdef readonly uint64_t made
    cdef uint64_t limit
    cdef uint32_t nbytes

    def __init__(self, frame, uint64_t limit=0):
        cdef bytes data = bytes(frame)
        if not 42 <= len(data) <= 2048:
            raise ValueError("a frame of 42 to 2048 bytes")
        self.name = "generator"
        self.nbytes = len(data)
        memcpy(self.frame, <const uint8_t*>data, self.nbytes)
        self.limit = limit
        self.ring = <uint8_t*>malloc(SLOTS * SLOT_BYTES)
        if self.ring == NULL:
            raise MemoryError

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        cdef int i
        cdef uint8_t* p
        cdef uint64_t now = monotonic_ns()
        if self.limit and self.made + max_frames > self.limit:
            max_frames = <int>(self.limit - self.made)
        for i in range(max_frames):
            p = b.append(self.nbytes, index, now)
            if p == NULL:
                return i
            memcpy(p, self.frame, self.nbytes)
            memcpy(p + self.nbytes - 8, &self.made, 8)
            self.made += 1
        self.c.rx_frames += max_frames
        return max_frames

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        self.c.tx_frames += 1
        self.c.tx_bytes += n
        return 1

    cdef int flush(self) noexcept nogil:
        return 0

    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil:
        cdef uint8_t* p
        if self.staged - self.published == SLOTS or n > SLOT_BYTES:
            return NULL
        p = self.ring + (self.staged % SLOTS) * SLOT_BYTES
        memcpy(p, data, n)
        self.staged += 1
        return p

    cdef int publish(self) noexcept nogil:
        self.published += 1
        self.c.tx_frames += 1
        return 1

    def __dealloc__(self):
        free(self.ring)


cdef class LineWriter(NativeFunction):
    """Sends every frame back out of port `out_port`, and for each adds one to a counter in a line chosen uniformly from `nbytes` of arena
    (0: writes nothing)."""
    cdef uint64_t nbytes, off, lines
    cdef Arena arena
    cdef uint8_t out

    def __init__(self, uint64_t nbytes=1 << 20, int out_port=0):
        self.ports = ("in",)
        self.nbytes = nbytes
        self.out = out_port

    def declare(self, state):
        self.arena = state.arena
        self.lines = self.nbytes // LINE
        if self.lines:
            self.off = self.arena.region("lines", self.nbytes, "bench", str(self.nbytes))

    cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil:
        cdef int i
        cdef uint64_t* p
        cdef uint64_t at[256]
        if self.lines:
            for i in range(b.n):            # as an app that looks up a whole burst would: ask first, then touch
                at[i] = self.off + (((self.random_u64() >> 32) * self.lines) >> 32) * LINE
                self.arena.expect(at[i])
        for i in range(b.n):
            if self.lines:
                p = <uint64_t*>self.arena.write(at[i], LINE)
                p[0] += 1
                p[7] ^= p[0]
            b.verdict[i] = SEND
            b.out_port[i] = self.out
        return 0
