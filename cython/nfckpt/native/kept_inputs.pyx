# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""KeptInputs: the bytes of the open epoch's inputs, so that its outputs can be told by what changed (checkpoint/delta.py)."""
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from nfckpt.native.arena cimport CHECK

cdef enum:
    KEEP_BYTES = 4 << 20


cdef class KeptInputs:
    """The bytes of the open epoch's inputs, and which output was made from which: the agent writes it, the encoder reads it.
    What finds no room is not kept: its outputs go whole."""

    def __cinit__(self, uint32_t names, uint32_t outputs):
        cdef uint64_t n = 256
        while n < outputs:
            n *= 2
        self.mask = n - 1
        self.capacity = names
        self.key = <uint64_t*>calloc(names, 8)
        self.off = <uint32_t*>calloc(names, 4)
        self.length = <uint32_t*>calloc(names, 4)
        self.made_from = <uint64_t*>calloc(n, 8)
        self.buf = <uint8_t*>malloc(KEEP_BYTES)
        if self.key == NULL or self.off == NULL or self.length == NULL or self.made_from == NULL or self.buf == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.key)
        free(self.off)
        free(self.length)
        free(self.made_from)
        free(self.buf)

    cdef void keep(self, uint32_t i, uint64_t key, const uint8_t* data, uint32_t n) noexcept nogil:
        """The frame that name number `i` of the open epoch stands for. Number 0 begins a new epoch."""
        CHECK(i < self.capacity)
        if i == 0:
            self.used = 0
        self.key[i] = key
        self.length[i] = 0
        if n <= KEEP_BYTES - self.used:
            self.off[i], self.length[i] = self.used, n
            memcpy(self.buf + self.used, data, n)
            self.used += n
