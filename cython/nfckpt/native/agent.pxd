"""Interface agent: the app's only way to the wire, and the place where every poll can be a checkpoint."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from nfckpt.native.arena cimport Arena
from nfckpt.native.burst cimport Burst
from nfckpt.native.epoch cimport Names
from nfckpt.native.gate cimport Gate
from nfckpt.native.kept_inputs cimport KeptInputs
from nfckpt.native.parking cimport Parking
from nfckpt.native.port_set cimport MAX_PORTS, PortSet
from nfckpt.native.shipment cimport Shipment
from nfckpt.native.tap cimport Tap

cdef struct AgentCounters:
    uint64_t polls
    uint64_t handed_out         # frames given to the app
    uint64_t sent, dropped, parked
    uint64_t undecided          # left without a verdict by on_burst: dropped
    uint64_t malformed          # handed out with malformed set
    uint64_t made               # frames the app made itself (timers, ARP)
    uint64_t refused_full       # sends refused because the gate was full
    uint64_t refused_parking
    uint64_t quarantined        # frames dropped because one like it was quarantined
    uint64_t backpressure       # polls answered "no packets" because gate or names were full

cdef enum:
    POISONS_MAX = 64

cdef struct Poison:
    uint64_t key
    uint64_t until_ns           # CLOCK_MONOTONIC

cdef class Agent:
    cdef PortSet _ports
    cdef readonly Arena arena
    cdef readonly Gate gate
    cdef readonly Names names
    cdef readonly Parking parking
    cdef Tap _tap
    cdef bint has_tap
    cdef public object hook
    cdef public bint running
    cdef public bint paused             # input stops: a planned switch
    cdef public bint recording          # consumed frames are named for the standby
    cdef KeptInputs _kept
    cdef bint keeping                   # named frames are kept, so that outputs can be told by them
    cdef Shipment _shipment
    cdef bint shipping                  # frames go to the standby before the app gets them
    cdef public uint64_t epoch          # the open epoch
    cdef public uint32_t ports_empty    # bit per port found empty since the last capture
    cdef readonly uint32_t in_flight    # frames owned by the app
    cdef public int frames_max          # the most that one rx_burst gives
    cdef Poison poisons[POISONS_MAX]
    cdef readonly int n_poisons
    cdef AgentCounters c
    cdef uint64_t secret[4]
    cdef int _turn
    cdef uint64_t _youngest[MAX_PORTS]  # of the frames read since the last call of `ages`, when the youngest one came, per port
    cdef void ages(self, uint64_t now, uint16_t* out) noexcept nogil
    cdef bint has_room(self, Burst burst, int max_frames) noexcept nogil
    cdef int receive(self, Burst b, int max_frames, uint64_t now) noexcept nogil
    cdef int read(self, Burst b, int max_frames, uint64_t now) noexcept nogil
    cdef void sift(self, Burst b, uint64_t now) noexcept nogil
    cdef int send(self, Burst b) noexcept nogil
    cdef int let_go(self, Burst b) noexcept nogil
    cdef int complete(self, Burst b) noexcept nogil
    cdef bint has_pending(self, uint64_t now) noexcept nogil
    cdef keep_inputs(self, KeptInputs kept)
    cdef ship(self, Shipment shipment)

cdef object raise_unsendable(Agent agent, Burst burst)
