"""NativeNat: the NAT of nfckpt/apps/nat.py without the GIL. Layout of its state: nfckpt/apps/nat_plan.py."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from nfckpt.native.burst cimport BURST_MAX, Burst
from nfckpt.native.counters cimport Counters
from nfckpt.native.flow_table cimport FlowTable
from nfckpt.native.function cimport NativeFunction
from nfckpt.native.port_pool cimport PortPool
from nfckpt.native.typed_array cimport TypedArray

cdef enum:
    ADDRESSES_MAX = 256
    FATES = 21

cdef struct SessionKey:
    uint32_t in_ip
    uint32_t remote_ip
    uint16_t in_port
    uint16_t remote_port
    uint32_t proto

cdef struct Session:
    uint32_t mapping
    uint32_t ext_ip
    uint32_t hop_out
    uint32_t hop_in
    uint16_t ext_port
    uint8_t tcp
    uint8_t hairpin
    uint32_t permitted

cdef struct MappingKey:
    uint32_t in_ip
    uint16_t in_port
    uint16_t proto

cdef struct Mapping:
    uint32_t sessions
    uint16_t ext_port
    uint16_t address

cdef struct PermitKey:
    uint32_t in_ip
    uint32_t remote_ip
    uint16_t in_port
    uint16_t proto

cdef struct NeighbourKey:
    uint32_t ip
    uint32_t port

cdef struct Neighbour:
    uint8_t mac[6]
    uint16_t known
    uint64_t asked

cdef struct FragmentKey:
    uint32_t src
    uint32_t dst
    uint16_t id
    uint8_t proto
    uint8_t port

cdef struct Fragment:
    uint32_t src
    uint32_t dst
    uint32_t hop
    uint16_t out
    uint16_t fate

cdef struct Endpoints:          # of a frame as it shall leave
    uint32_t src_ip
    uint32_t dst_ip
    uint16_t src_port
    uint16_t dst_port

cdef class NativeNat(NativeFunction):
    cdef readonly object config
    cdef Counters counters
    cdef FlowTable sessions, mappings, neighbours, fragments, permits
    cdef PortPool external
    cdef TypedArray by_port
    cdef uint64_t now
    cdef uint64_t counts[FATES]
    cdef int64_t hints[BURST_MAX]   # the session's slot as the burst began, or -1
    cdef uint64_t mac[2]
    cdef uint32_t net[2]
    cdef uint32_t mask[2]
    cdef uint32_t inside
    cdef uint32_t outside[ADDRESSES_MAX]
    cdef uint32_t n_outside, gateway
    cdef bytes ip6_inside, ip6_outside
    cdef const uint8_t* ip6[2]
    cdef int n_ip6[2]
    cdef int filtering
    cdef uint32_t port_lo, port_hi
    cdef uint64_t established_ns, transitory_ns, udp_ns, icmp_ns, fragment_ns

    cdef void look_ahead(self, Burst b) noexcept nogil
    cdef int one(self, Burst b, int i) noexcept nogil
    cdef int outbound(self, Burst b, int i, uint8_t proto) noexcept nogil
    cdef int inbound(self, Burst b, int i, uint8_t proto) noexcept nogil
    cdef int64_t admit(self, Burst b, int i, int64_t target, uint32_t remote_ip, uint16_t remote_port, uint8_t proto,
                       bint hairpin) noexcept nogil
    cdef int64_t open_outbound(self, Burst b, int i, SessionKey* key, bint hairpin) noexcept nogil
    cdef void finish(self, int64_t slot, int64_t mapping, int64_t hop_out, int64_t hop_in, bint hairpin, int64_t permitted,
                     uint8_t proto) noexcept nogil
    cdef int64_t mapping_of(self, uint8_t proto, uint32_t ip, uint16_t port) noexcept nogil
    cdef bint remember(self, Burst b, int i, int fate, int out, int64_t hop, Endpoints* to) noexcept nogil
    cdef void step(self, Burst b, int i, int64_t slot, bint outbound) noexcept nogil
    cdef int emit(self, Burst b, int i, int fate, int out, int64_t hop, Endpoints* to) noexcept nogil
    cdef int later_fragment(self, Burst b, int i) noexcept nogil
    cdef int icmp_error(self, Burst b, int i, int port) noexcept nogil
    cdef int64_t hop(self, uint32_t ip, uint32_t port) noexcept nogil
    cdef int64_t next_hop(self, uint32_t ip) noexcept nogil
    cdef bint is_known(self, int64_t hop) noexcept nogil
    cdef void learn(self, int64_t hop, uint64_t mac) noexcept nogil
    cdef int ask(self, Burst b, int i, int64_t hop, int port) noexcept nogil
    cdef int arp(self, Burst b, int i, int port) noexcept nogil
    cdef bint is_ours(self, uint32_t ip, int port) noexcept nogil
    cdef void expire(self, uint64_t now) noexcept nogil
