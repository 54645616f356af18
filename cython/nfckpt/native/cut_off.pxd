"""CutOff: is a port cut off from the segment, though it has carrier?"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.keyed_fifo cimport Entry, KeyedFifo
from nfckpt.native.port_set cimport MAX_PORTS

cdef struct Alone:
    uint64_t first, last        # arrival of the first and of the youngest frame
    uint64_t n

@cython.final
cdef class CutOff:
    cdef KeyedFifo inputs, outputs          # given up, and kept for a while
    cdef readonly uint64_t keep_ns          # for so long; 0: not at all
    cdef uint64_t shared_ts[MAX_PORTS]      # arrival of the youngest input that both nodes saw
    cdef uint64_t seen_through[MAX_PORTS]   # the youngest output that was seen leaving, plus one
    cdef Alone alone[MAX_PORTS]             # inputs that the active never had, since both saw one
    cdef Alone absent[MAX_PORTS]            # and inputs that we never saw

    cdef void reset(self) noexcept nogil
    cdef void shared(self, uint8_t port, uint64_t ts) noexcept nogil
    cdef void left(self, uint8_t port, uint64_t seq) noexcept nogil
    cdef void disowned(self, const Entry* e, const uint8_t* buf) noexcept nogil
    cdef void unobserved(self, const Entry* e, const uint8_t* buf) noexcept nogil
    cdef void unseen(self, const Entry* e) noexcept nogil
    cdef bint count(self, Alone* a, const Entry* e) noexcept nogil
    cdef void age(self, uint64_t now) noexcept nogil
    cdef uint32_t ports(self, uint64_t now, uint64_t span_ns) noexcept nogil
    cdef uint32_t ours(self, uint64_t now, uint64_t span_ns) noexcept nogil
    cdef uint32_t since(self, const Alone* all, uint64_t now, uint64_t span_ns) noexcept nogil
