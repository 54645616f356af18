"""Tap: the standby's own view of the segment (DESIGN 4a)."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.burst cimport Burst
from nfckpt.native.cut_off cimport CutOff
from nfckpt.native.keyed_fifo cimport KeyedFifo
from nfckpt.native.port_set cimport MAX_PORTS, PortSet

cdef struct TapCounters:
    uint64_t seen               # frames read from the ports
    uint64_t matched            # inputs found in the tap by an epoch's name
    uint64_t credited           # inputs that came after they were named
    uint64_t observed           # expected outputs seen leaving
    uint64_t doubled            # late frames of the old active, seen after they were re-emitted
    uint64_t active_missed      # rule 5: the active's ring dropped them, so nobody answers for them
    uint64_t tap_missed         # rule 6: named, never seen here
    uint64_t unobserved         # rule 7: released, never seen leaving, forgotten
    uint64_t overflow           # frames that found the tap full
    uint64_t replayed           # handed to the app after a promotion

@cython.final
cdef class Tap:
    cdef KeyedFifo inputs, credits, expected
    cdef PortSet _ports
    cdef CutOff _cut                        # what rules 5 and 7 gave up lately, where a port of the active may be cut off
    cdef readonly bint fed                  # inputs come over the channel, the ports show nothing: native/shipment.pyx
    cdef public bint discarding             # fed: what the ports hold was flooded to both nodes; the active has it
    cdef uint32_t stands[MAX_PORTS]         # fed: the number of the last frame of each port that the active read
    cdef uint32_t counted                   # bit per port: the number is known
    cdef uint64_t secret[4]
    cdef readonly uint64_t skew_ns, cut_off_ns
    cdef TapCounters c[MAX_PORTS]           # of each port
    cdef uint64_t named_ts[MAX_PORTS]       # youngest arrival that an epoch named, per port
    cdef uint64_t floor[MAX_PORTS]          # what is read from now on arrived no earlier, per port
    cdef uint64_t cursor[MAX_PORTS]         # entry number where the head of each port's queue may be
    cdef readonly bint buffering            # unmatched frames are kept as inputs
    cdef readonly uint64_t exact_ns         # names registered later count as tap_missed when never seen; 0: none do
    cdef readonly uint64_t read_ns          # every frame that came before is classified
    cdef readonly uint64_t gap_until        # ns; before it the tap is inexact
    cdef uint64_t rt_old, rt_new, rt_at     # rule 7: two-stage release watermark
    cdef uint64_t _drops
    cdef bint _lending                      # what `take` hands out stays, until `consume` or `put_back`
    cdef uint64_t _lent                     # entries of inputs below this number are lent
    cdef Burst _scratch

    cdef uint64_t _dropped(self)
    cdef void _named_at(self, uint8_t port, uint64_t ts) noexcept nogil
    cdef void _shared_at(self, uint8_t port, uint64_t ts) noexcept nogil
    cdef void _gap_at(self, uint64_t ts) noexcept nogil
    cdef int look(self, uint64_t now, int bursts_max) noexcept nogil
    cdef int discard(self, uint64_t now, int bursts_max) noexcept nogil
    cdef void forget(self, uint64_t through) noexcept nogil
    cdef int feed(self, const uint8_t* data, uint64_t n, uint64_t now) noexcept nogil
    cdef void settle(self, uint64_t released_through, uint64_t alive_ns) noexcept nogil
    cdef uint32_t locate(self, uint64_t key, uint8_t port, uint64_t by) noexcept nogil
    cdef bint fits(self, uint32_t names, uint32_t outputs, uint64_t output_bytes) noexcept nogil
    cdef void mark_empty(self, uint32_t ports, uint64_t since) noexcept nogil
    cdef bint _classify(self, uint64_t key, uint8_t port, uint64_t ts, uint64_t stamp, const uint8_t* data, uint32_t n) noexcept nogil
    cdef void name(self, uint64_t key, uint8_t port, uint64_t now, uint64_t by) noexcept nogil
    cdef bint expect(self, uint64_t seq, uint8_t port, const uint8_t* data, uint32_t n, uint64_t now) noexcept nogil
    cdef int take(self, Burst b, int max_frames) noexcept nogil
    cdef void _miss(self, uint32_t i) noexcept nogil
