"""ActivePath: what the active does at every poll boundary, without the GIL."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from nfckpt.native.agent cimport Agent
from nfckpt.native.channel cimport Channel
from nfckpt.native.delta_encoder cimport DeltaEncoder
from nfckpt.native.engine cimport Engine
from nfckpt.native.epoch cimport EpochWriter
from nfckpt.native.shipment cimport Shipment
from nfckpt.native.staging cimport Staging
from nfckpt.native.sync cimport PageSync

@cython.final
cdef class ActivePath:
    cdef readonly Agent agent
    cdef readonly Engine engine
    cdef readonly EpochWriter writer
    cdef Channel channel
    cdef bint has_channel
    cdef DeltaEncoder _encoder
    cdef bint encodes                   # records are told by what the standby has
    cdef readonly Shipment shipment     # None: the standby has a tap
    cdef readonly bint shipping         # inputs go to the standby of this session
    cdef public bint holding            # outputs are held for a standby: epochs are cut
    cdef public bint sync_pages         # pages ride along
    cdef public uint64_t session, term
    cdef public int64_t clock_offset_ns # pair's time = CLOCK_MONOTONIC + this
    cdef readonly PageSync sync
    cdef readonly Staging staging       # captured records the channel has not taken
    cdef readonly uint64_t staging_full # polls at which a due epoch found no slot free
    cdef readonly bint captured         # the last poll cut an epoch,
    cdef readonly bint pages_ride       # and a group of pages rode on it
    cdef uint64_t cut_ns
    cdef public uint64_t leave_until_ns # committed output waits in the gate from here on: the kernel's lease may run out
    cdef readonly uint64_t peer_stamp   # the follower's clock in its last message
    cdef readonly uint64_t echo_ns      # what it was before the last capture or beat
    cdef readonly uint64_t heard_ns     # own clock, last message of the follower
    cdef readonly uint64_t commits, hold_ns_sum
    cdef readonly uint32_t peer_inputs, peer_flags
    cdef bint over                      # the session ended
    cdef readonly uint64_t polls
    cdef uint32_t* pause_ns             # histogram of capturing polls: one count per 16 ns, up to 64 us
    cdef uint32_t* pauses_seen
    cdef void note_pause(self, uint64_t ns) noexcept nogil

    cdef int take_ack(self, const uint8_t* p, uint64_t n, uint64_t now, bint commits) noexcept nogil
    cdef int mail(self, uint64_t now) noexcept nogil
    cdef bint cut(self, uint64_t now) noexcept nogil
    cdef void push(self) noexcept nogil
    cdef bint timed(self) noexcept nogil
    cdef void charge(self, uint64_t ns) noexcept nogil
    cdef int boundary(self, uint64_t now) noexcept nogil
