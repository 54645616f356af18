"""KeptInputs: the inputs of the open epoch, and which output was made from which."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

@cython.final
cdef class KeptInputs:
    cdef uint64_t* key          # of the frame that name number i of the open epoch stands for
    cdef uint32_t* off
    cdef uint32_t* length       # 0: there was no room for it
    cdef uint8_t* buf
    cdef uint64_t* made_from    # output number & mask -> key of its input
    cdef uint64_t mask
    cdef uint32_t capacity, used

    cdef void keep(self, uint32_t i, uint64_t key, const uint8_t* data, uint32_t n) noexcept nogil

    cdef inline void made(self, uint64_t seq, uint64_t key) noexcept nogil:
        """Output `seq` was made from the input of that key."""
        self.made_from[seq & self.mask] = key
