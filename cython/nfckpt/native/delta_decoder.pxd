"""DeltaDecoder: gives the epoch record back, out of the standby's own arena and tap."""
cimport cython
from libc.stdint cimport uint8_t, uint64_t
from nfckpt.native.arena cimport Arena
from nfckpt.native.delta cimport Cursor
from nfckpt.native.epoch cimport Header
from nfckpt.native.tap cimport Tap

cdef enum:
    NO_INPUT = -1               # of `decode`: the tap does not hold a frame that an output was made from
    DELTA_MISMATCH = 14         # our arena, or an input, is not what the active took it for

@cython.final
cdef class DeltaDecoder:
    cdef readonly uint64_t record_bytes_max
    cdef Header before                      # the last record's
    cdef uint64_t secret[4]
    cdef uint8_t* buf
    cdef uint64_t capacity, n               # n: bytes of the record decoded last
    cdef const uint8_t* outputs             # those of the record that waits, asked for and come whole; NULL: none
    cdef uint64_t outputs_bytes

    cdef void begin(self, uint64_t epoch) noexcept nogil
    cdef void follow(self, const Header* h) noexcept nogil
    cdef int decode(self, const uint8_t* data, uint64_t n, Arena arena, Tap tap, int n_ports) noexcept nogil
    cdef int get_outputs(self, Cursor* c, Header* h, uint64_t at, Tap tap) noexcept nogil
    cdef int get_lines(self, Cursor* c, Header* h, uint64_t at, Arena arena) noexcept nogil
    cdef int get_pages(self, Cursor* c, Header* h, uint64_t at, Arena arena) noexcept nogil
    cdef bint unsqueeze(self, const uint8_t* data, uint64_t n, uint8_t* pages, uint64_t want) noexcept with gil

cdef bint is_delta(const uint8_t* data, uint64_t n) noexcept nogil
cdef str delta_fault(int code)
