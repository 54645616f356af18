"""StandbyPath: tap, records, acks, applying, without the GIL."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from nfckpt.native.arena cimport Arena
from nfckpt.native.channel cimport Channel
from nfckpt.native.delta_decoder cimport DeltaDecoder
from nfckpt.native.epoch cimport Header
from nfckpt.native.life cimport LifeWatch
from nfckpt.native.tap cimport Tap

cdef enum:
    ACKS = 1024

@cython.final
cdef class StandbyPath:
    cdef readonly Tap tap                   # None: state is followed, input is not
    cdef bint has_tap
    cdef readonly Arena arena
    cdef Channel channel
    cdef bint has_channel
    cdef LifeWatch _watch                   # of the active, on one kernel
    cdef bint has_watch
    cdef public bint silent                 # acknowledges nothing any more
    cdef uint64_t secret[4]
    cdef int n_ports
    cdef readonly uint64_t session, term
    cdef readonly uint64_t epoch            # registered and acknowledged through
    cdef readonly uint64_t next_seq         # number of the output after the last registered one
    cdef readonly uint64_t released_through
    cdef readonly uint64_t now_ns           # the pair's time of the last commit
    cdef readonly uint64_t commit_ns        # own clock, of the last commit
    cdef readonly uint64_t heard_ns         # own clock, any message of the active
    cdef readonly uint64_t alive_ns         # own clock, the youngest stamp that the active answered: it lived then
    cdef public uint64_t peer_stamp         # the active's clock in its last beat
    cdef public bint port_down              # a port has no carrier: the active is told
    cdef public bint cut_off                # a port of the active is cut off: it is told
    cdef public bint tap_open               # pages may come
    cdef readonly bint last_page
    cdef readonly uint64_t epochs
    cdef readonly uint64_t divergent_epoch  # 0: none
    cdef uint64_t window_off, window_hash   # what the last committed epoch checks, and how it reads at the active
    cdef readonly bint missing              # the record offered last waits for an input that the tap does not hold
    cdef int fault
    cdef DeltaDecoder _decoder
    cdef object _given                      # memory of the outputs that were asked for
    cdef uint64_t ack_head[ACKS]            # where in the channel the last acks end,
    cdef uint64_t ack_seq[ACKS]             # and which outputs each one let go

    cdef int64_t _apart, _apart_before      # our clock less the pair's, at most: the least seen in this second, and in the one before
    cdef uint64_t _apart_ns                 # when this second began
    cdef uint64_t captured_by(self, const Header* h, uint64_t came) noexcept nogil
    cdef int take(self, uint8_t* data, uint64_t n, uint64_t now, uint64_t came) noexcept nogil
    cdef bint feed(self, const uint8_t* data, uint64_t n, uint64_t now) noexcept nogil
    cdef void released(self, uint64_t through) noexcept nogil
    cdef void fill_ack(self, void* out, uint64_t number, uint64_t now) noexcept nogil
