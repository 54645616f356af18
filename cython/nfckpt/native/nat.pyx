# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""NativeNat: the same parameters, state and behaviour as nfckpt.apps.nat.Nat, a frame at a time, without the GIL.

The rules are told in nfckpt/apps/nat.py, method by method under the same names; a differential test feeds both the same
frames and wants the same bytes out and the same arena. A pair may even run one on each node, never mind which where.
"""
from nfckpt.apps.nat_plan import FILTERINGS, INSIDE, OUTSIDE, NatConfig, NatState

from libc.string cimport memcpy, memset

from nfckpt.native.arena cimport CHECK
from nfckpt.native.burst cimport BURST_MAX, DROP, FRAG_FIRST, FRAG_LATER, SEND
from nfckpt.native.checksum cimport get16, get48, set48
from nfckpt.native.headers cimport ETH_ARP, ICMP, TCP, UDP
from nfckpt.native.neighbour cimport advert, arp_reply, arp_request, arp_sender
from nfckpt.native.rewrite cimport Quote, decrement_ttl, quote, set_addresses, set_quote, ttl_of

cdef enum:                      # nat_plan.Fate, in its order
    SENT_OUT
    SENT_IN
    HAIRPINNED
    ANSWERED
    ARP_HEARD
    MALFORMED
    NOT_FOR_US
    NOT_TRANSLATABLE
    BAD_ADDRESS
    TTL_EXPIRED
    NO_FLOW
    FILTERED
    NO_PORTS
    NO_ROOM
    NO_NEIGHBOUR
    NO_FRAGMENT
    NO_ERROR_FLOW
    MAPPED
    OPENED
    EXPIRED
    ASKED

cdef enum:
    IN_ = 0                     # port indices
    OUT_ = 1
    FIN = 1
    SYN = 2
    RST = 4
    ACK = 16
    SYN_OUT = 1                 # TCP phase of a session
    SYN_IN = 2
    FIN_OUT = 4
    FIN_IN = 8
    RESET = 16
    INDEPENDENT = 0             # filterings
    ADDRESS = 1
    ADDRESS_AND_PORT = 2
    SWEEP = 1024                # slots looked at per tick
    CLOSE = 256                 # of them closed at most, as FlowTable.expire does

cdef uint64_t ASK_NS = 1000000000


cdef inline uint32_t pool_number(uint32_t address, uint8_t proto) noexcept nogil:
    return address * 3 + (0 if proto == TCP else 1 if proto == UDP else 2)

cdef inline bint impossible(uint32_t ip) noexcept nogil:
    return ip >> 24 == 0 or ip >> 24 == 127 or ip >> 28 >= 14

cdef inline int sent(Burst b, int i, int port, int fate) noexcept nogil:
    b.verdict[i], b.out_port[i] = SEND, <uint8_t>port
    return fate

cdef inline bint is_syn(Burst b, int i) noexcept nogil:
    return b.tcp_flags[i] & (SYN | ACK | RST) == SYN

cdef inline uint8_t tcp_step(uint8_t phase, uint8_t flags, bint outbound) noexcept nogil:
    cdef uint8_t syn = SYN_OUT if outbound else SYN_IN, fin = FIN_OUT if outbound else FIN_IN
    if flags & RST:
        return phase | RESET
    if (phase & RESET or phase & (FIN_OUT | FIN_IN) == FIN_OUT | FIN_IN) and flags & (SYN | ACK) == SYN:
        return syn
    return phase & 15 | (syn if flags & SYN else 0) | (fin if flags & FIN else 0)

cdef inline SessionKey session_key(uint32_t in_ip, uint16_t in_port, uint32_t remote_ip, uint16_t remote_port,
                                   uint8_t proto) noexcept nogil:
    cdef SessionKey k
    k.in_ip, k.remote_ip, k.in_port, k.remote_port, k.proto = in_ip, remote_ip, in_port, remote_port, proto
    return k

cdef inline FragmentKey fragment_key(Burst b, int i) noexcept nogil:
    cdef FragmentKey k
    k.src, k.dst, k.proto, k.port = b.src_ip[i], b.dst_ip[i], b.proto[i], b.port[i]
    k.id = get16(b.data(i) + b.l3_off[i] + 4)
    return k

cdef inline Endpoints unchanged(Burst b, int i) noexcept nogil:
    cdef Endpoints e
    e.src_ip, e.dst_ip, e.src_port, e.dst_port = b.src_ip[i], b.dst_ip[i], b.src_port[i], b.dst_port[i]
    return e


cdef class NativeNat(NativeFunction):
    """`NativeNat(**fields of NatConfig)`. Raises ConfigError. Counters: `state.nat`, named after `Fate`."""

    def __init__(self, **parameters):
        self.config = c = NatConfig(**parameters)
        self.ports, self.tick_ms, self.declares_ahead = ("inside", "outside"), 10, True
        for port in (INSIDE, OUTSIDE):
            self.mac[port], self.mask[port] = c.mac(port), c.mask(port)
            self.net[port] = c.addresses(port)[0] & c.mask(port)
        self.inside = c.addresses(INSIDE)[0]
        self.n_outside = len(c.outside_ips)
        for k, ip in enumerate(c.addresses(OUTSIDE)):
            self.outside[k] = ip
        self.gateway, self.port_lo, self.port_hi = c.gateway_ip, c.port_lo, c.port_hi
        self.ip6_inside, self.ip6_outside = c.ip6(INSIDE), c.ip6(OUTSIDE)
        self.ip6[IN_], self.ip6[OUT_] = <const uint8_t*>self.ip6_inside, <const uint8_t*>self.ip6_outside
        self.n_ip6[IN_], self.n_ip6[OUT_] = len(c.inside_ip6s), len(c.outside_ip6s)
        self.filtering = FILTERINGS.index(c.filtering)
        self.established_ns, self.transitory_ns = round(c.tcp_established_s * 1e9), round(c.tcp_transitory_s * 1e9)
        self.udp_ns, self.icmp_ns, self.fragment_ns = round(c.udp_s * 1e9), round(c.icmp_s * 1e9), round(c.fragment_s * 1e9)

    def declare(self, state):
        s = NatState(state, self.config)
        self.counters, self.sessions, self.mappings, self.external = s.counters, s.sessions, s.mappings, s.ports
        self.by_port, self.neighbours, self.fragments, self.permits = s.by_port, s.neighbours, s.fragments, s.permits
        CHECK(self.sessions.value_bytes == sizeof(Session) and self.sessions.key_bytes == sizeof(SessionKey)
              and self.mappings.value_bytes == sizeof(Mapping) and self.mappings.key_bytes == sizeof(MappingKey)
              and self.neighbours.value_bytes == sizeof(Neighbour) and self.fragments.value_bytes == sizeof(Fragment)
              and self.counters.n == FATES)

    def announce(self, ctx):
        return self.config.announcements()

    def on_tick(self, ctx):
        cdef uint64_t now = ctx.now_ns
        with nogil:
            self.expire(now)

    # ---- a burst

    cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil:
        cdef int i
        self.now = now
        memset(self.counts, 0, sizeof(self.counts))
        self.look_ahead(b)
        for i in range(b.n):
            b.verdict[i] = DROP
            self.counts[self.one(b, i)] += 1
        for i in range(FATES):
            if self.counts[i]:
                self.counters.add(i, self.counts[i])
        return 0

    cdef void look_ahead(self, Burst b) noexcept nogil:
        """Find the sessions of all frames side by side, so that the waits for memory overlap (350 -> 80 ns a frame at
        50,000 flows). A hint stays good for the whole burst: within one, only sessions that it opened are erased."""
        cdef SessionKey keys[BURST_MAX]
        cdef const MappingKey* inner
        cdef int64_t target
        cdef int i
        memset(keys, 0, b.n * sizeof(SessionKey))
        for i in range(b.n):
            if b.ip_version[i] != 4 or b.l4_off[i] == 0:
                continue
            if b.port[i] == IN_:
                keys[i] = session_key(b.src_ip[i], b.src_port[i], b.dst_ip[i],
                                      0 if b.proto[i] == ICMP else b.dst_port[i], b.proto[i])
            else:
                target = self.mapping_of(b.proto[i], b.dst_ip[i], b.dst_port[i])
                if target >= 0:
                    inner = <const MappingKey*>self.mappings.key_at(target)
                    keys[i] = session_key(inner.in_ip, inner.in_port, b.src_ip[i],
                                          0 if b.proto[i] == ICMP else b.src_port[i], b.proto[i])
        self.sessions.find_each(keys, b.n, self.hints)

    cdef int one(self, Burst b, int i) noexcept nogil:
        cdef int port = b.port[i]
        cdef uint32_t src = b.src_ip[i], dst = b.dst_ip[i]
        cdef uint8_t proto = b.proto[i], kind = b.icmp_type[i]
        if b.malformed[i]:
            return MALFORMED
        if b.vlan[i] != 0xffff or port > OUT_:
            return NOT_TRANSLATABLE
        if b.eth_type[i] == ETH_ARP:
            return self.arp(b, i, port)
        if b.ip_version[i] == 6 and advert(b, i, self.mac[port], self.ip6[port], self.n_ip6[port]):
            return sent(b, i, port, ANSWERED)
        if b.ip_version[i] != 4:
            return NOT_TRANSLATABLE
        if get48(b.data(i)) != self.mac[port]:
            return NOT_FOR_US
        if impossible(src) or impossible(dst) or self.is_ours(src, port) or dst & self.mask[IN_] == self.net[IN_]:
            return BAD_ADDRESS
        if (src & self.mask[IN_] == self.net[IN_]) != (port == IN_) or (port == OUT_ and not self.is_ours(dst, OUT_)):
            return BAD_ADDRESS
        if ttl_of(b, i) <= 1:
            return TTL_EXPIRED
        if b.frag[i] == FRAG_LATER:
            return self.later_fragment(b, i)
        if proto == ICMP:
            if kind == 3 or kind == 4 or kind == 11 or kind == 12:
                return self.icmp_error(b, i, port)
            if kind != (0 if port else 8) or (port == IN_ and self.is_ours(dst, OUT_)):
                return NOT_TRANSLATABLE
        elif (proto != TCP and proto != UDP) or b.src_port[i] == 0 or b.dst_port[i] == 0:
            return NOT_TRANSLATABLE
        return self.outbound(b, i, proto) if port == IN_ else self.inbound(b, i, proto)

    cdef int outbound(self, Burst b, int i, uint8_t proto) noexcept nogil:
        cdef Endpoints to = unchanged(b, i)
        cdef SessionKey key = session_key(to.src_ip, to.src_port, to.dst_ip, 0 if proto == ICMP else to.dst_port, proto)
        cdef bint hairpin = self.is_ours(to.dst_ip, OUT_)
        cdef int64_t target = self.mapping_of(proto, to.dst_ip, to.dst_port) if hairpin else 0
        cdef int64_t slot, other, hop
        cdef const Session* s
        cdef const MappingKey* inner
        if target < 0:
            return NO_FLOW
        slot = self.hints[i] if self.hints[i] >= 0 else self.sessions.find(&key)
        if slot < 0:
            if proto == TCP and not is_syn(b, i):
                return NO_FLOW
            slot = self.open_outbound(b, i, &key, hairpin)
            if slot < 0:
                return <int>~slot
        s = <const Session*>self.sessions.value(slot)
        to.src_ip, to.src_port = s.ext_ip, s.ext_port
        if not hairpin:
            if not self.is_known(s.hop_out):
                return self.ask(b, i, s.hop_out, OUT_)
            if b.frag[i] == FRAG_FIRST and not self.remember(b, i, SENT_OUT, OUT_, s.hop_out, &to):
                return NO_ROOM
            self.step(b, i, slot, True)
            return self.emit(b, i, SENT_OUT, OUT_, s.hop_out, &to)
        other = self.admit(b, i, target, to.src_ip, to.src_port, proto, True)
        if other < 0:
            return <int>~other
        inner = <const MappingKey*>self.mappings.key_at(target)
        to.dst_ip, to.dst_port = inner.in_ip, inner.in_port
        hop = (<const Session*>self.sessions.value(other)).hop_in
        if not self.is_known(hop):
            return self.ask(b, i, hop, IN_)
        if b.frag[i] == FRAG_FIRST and not self.remember(b, i, HAIRPINNED, IN_, hop, &to):
            return NO_ROOM
        self.step(b, i, slot, True)
        self.step(b, i, other, False)
        return self.emit(b, i, HAIRPINNED, IN_, hop, &to)

    cdef int inbound(self, Burst b, int i, uint8_t proto) noexcept nogil:
        cdef Endpoints to = unchanged(b, i)
        cdef int64_t target = self.mapping_of(proto, to.dst_ip, to.dst_port), slot, hop
        cdef const MappingKey* inner
        if target < 0:
            return NO_FLOW
        slot = self.admit(b, i, target, to.src_ip, 0 if proto == ICMP else to.src_port, proto, False)
        if slot < 0:
            return <int>~slot
        inner = <const MappingKey*>self.mappings.key_at(target)
        to.dst_ip, to.dst_port = inner.in_ip, inner.in_port
        hop = (<const Session*>self.sessions.value(slot)).hop_in
        if not self.is_known(hop):
            return self.ask(b, i, hop, IN_)
        if b.frag[i] == FRAG_FIRST and not self.remember(b, i, SENT_IN, IN_, hop, &to):
            return NO_ROOM
        self.step(b, i, slot, False)
        return self.emit(b, i, SENT_IN, IN_, hop, &to)

    cdef int64_t admit(self, Burst b, int i, int64_t target, uint32_t remote_ip, uint16_t remote_port, uint8_t proto,
                       bint hairpin) noexcept nogil:
        """The session's slot, or ~fate."""
        cdef const MappingKey* inner = <const MappingKey*>self.mappings.key_at(target)
        cdef SessionKey key = session_key(inner.in_ip, inner.in_port, remote_ip, remote_port, proto)
        cdef int64_t slot = self.hints[i] if self.hints[i] >= 0 and not hairpin else self.sessions.find(&key), hop_in, hop_out
        cdef PermitKey permit
        cdef bint fresh = False
        if slot >= 0:
            return slot
        if self.filtering == ADDRESS_AND_PORT:
            return ~<int64_t>FILTERED
        if self.filtering == ADDRESS:
            permit.in_ip, permit.remote_ip, permit.in_port, permit.proto = inner.in_ip, remote_ip, inner.in_port, proto
            if self.permits.find(&permit) < 0:
                return ~<int64_t>FILTERED
        if proto == TCP and not is_syn(b, i):
            return ~<int64_t>NO_FLOW
        hop_in = self.hop(inner.in_ip, IN_)
        hop_out = hop_in if hairpin else self.next_hop(remote_ip)
        if hop_out == ~<int64_t>BAD_ADDRESS:
            return hop_out
        if hop_in < 0 or hop_out < 0:
            return ~<int64_t>NO_ROOM
        slot = self.sessions.insert(&key, self.now, &fresh)
        if slot < 0:
            return ~<int64_t>NO_ROOM
        self.finish(slot, target, hop_out, hop_in, hairpin, 0, proto)
        return slot

    cdef int64_t open_outbound(self, Burst b, int i, SessionKey* key, bint hairpin) noexcept nogil:
        """The new session's slot, or ~fate."""
        cdef int64_t hop_in = self.hop(key.in_ip, IN_), hop_out, slot, mapping, permit = -1
        cdef uint64_t mac = get48(b.data(i) + 6)
        cdef uint8_t proto = <uint8_t>key.proto
        cdef MappingKey inner
        cdef PermitKey remote
        cdef Mapping* m
        cdef uint32_t wish, pool, address
        cdef int port
        cdef bint fresh = False
        hop_out = hop_in if hairpin else self.next_hop(key.remote_ip)
        if hop_out == ~<int64_t>BAD_ADDRESS:
            return hop_out
        if hop_in < 0 or hop_out < 0:
            return ~<int64_t>NO_ROOM
        if not self.is_known(hop_in) and not (mac >> 40) & 1:
            self.learn(hop_in, mac)
        slot = self.sessions.insert(key, self.now, &fresh)
        if slot < 0:
            return ~<int64_t>NO_ROOM
        inner.in_ip, inner.in_port, inner.proto = key.in_ip, key.in_port, proto
        mapping = self.mappings.insert(&inner, self.now, &fresh)
        CHECK(mapping >= 0)             # there are never more mappings than sessions
        if fresh:
            address = key.in_ip % self.n_outside
            wish = <uint32_t>(self.port_lo + self.random_u64() % (self.port_hi - self.port_lo + 1))
            wish ^= (wish ^ key.in_port) & 1
            pool = pool_number(address, proto)
            port = self.external.allocate(pool, <uint16_t>wish)
            if port < 0:
                self.mappings.erase(mapping)
                self.sessions.erase(slot)
                return ~<int64_t>NO_PORTS
            m = <Mapping*>self.mappings.value_write(mapping)
            m.ext_port, m.address = <uint16_t>port, <uint16_t>address
            (<uint32_t*>self.by_port.write(<uint64_t>pool * (self.port_hi - self.port_lo + 1) + port - self.port_lo, 1))[0] = (
                <uint32_t>mapping + 1)
            self.counts[MAPPED] += 1
        if self.filtering == ADDRESS:
            remote.in_ip, remote.remote_ip, remote.in_port, remote.proto = key.in_ip, key.remote_ip, key.in_port, proto
            permit = self.permits.insert(&remote, self.now, &fresh)
            CHECK(permit >= 0)
            (<uint64_t*>self.permits.value_write(permit))[0] += 1
        self.finish(slot, mapping, hop_out, hop_in, hairpin, permit + 1, proto)
        return slot

    cdef void finish(self, int64_t slot, int64_t mapping, int64_t hop_out, int64_t hop_in, bint hairpin, int64_t permitted,
                     uint8_t proto) noexcept nogil:
        cdef Mapping* m = <Mapping*>self.mappings.value_write(mapping)
        cdef Session* s = <Session*>self.sessions.value_write(slot)
        s.mapping, s.hop_out, s.hop_in = <uint32_t>mapping, <uint32_t>hop_out, <uint32_t>hop_in
        s.ext_ip, s.ext_port = self.outside[m.address], m.ext_port
        s.tcp, s.hairpin, s.permitted = 0, hairpin, <uint32_t>permitted
        m.sessions += 1
        self.sessions.set_timeout(slot, self.udp_ns if proto == UDP else self.icmp_ns if proto == ICMP else self.transitory_ns)
        self.counts[OPENED] += 1

    cdef int64_t mapping_of(self, uint8_t proto, uint32_t ip, uint16_t port) noexcept nogil:
        """Slot of the mapping of an external endpoint, or -1."""
        cdef uint32_t k
        cdef uint64_t at
        if port < self.port_lo or port > self.port_hi:
            return -1
        for k in range(self.n_outside):
            if self.outside[k] == ip:
                at = <uint64_t>pool_number(k, proto) * (self.port_hi - self.port_lo + 1) + port - self.port_lo
                return <int64_t>(<const uint32_t*>self.by_port.read(at))[0] - 1
        return -1

    cdef bint remember(self, Burst b, int i, int fate, int out, int64_t hop, Endpoints* to) noexcept nogil:
        """Note for the later fragments what the first one becomes. False: no room."""
        cdef FragmentKey key = fragment_key(b, i)
        cdef bint fresh = False
        cdef int64_t slot = self.fragments.insert(&key, self.now, &fresh)
        cdef Fragment* f
        if slot < 0:
            return False
        f = <Fragment*>self.fragments.value_write(slot)
        f.src, f.dst, f.hop, f.out, f.fate = to.src_ip, to.dst_ip, <uint32_t>hop, <uint16_t>out, <uint16_t>fate
        return True

    cdef void step(self, Burst b, int i, int64_t slot, bint outbound) noexcept nogil:
        """The session lives: move its clock and its TCP phase."""
        cdef uint8_t phase, before
        self.sessions.touch(slot, self.now)
        if b.proto[i] != TCP:
            return
        before = (<const Session*>self.sessions.value(slot)).tcp
        phase = tcp_step(before, b.tcp_flags[i], outbound)
        if phase != before:
            (<Session*>self.sessions.value_write(slot)).tcp = phase
            self.sessions.set_timeout(
                slot, self.established_ns if phase & 3 == 3 and phase & 12 != 12 and not phase & RESET
                else self.transitory_ns)

    cdef int emit(self, Burst b, int i, int fate, int out, int64_t hop, Endpoints* to) noexcept nogil:
        cdef uint8_t* p = b.data(i)
        memcpy(p, (<const Neighbour*>self.neighbours.value(hop)).mac, 6)
        set48(p + 6, self.mac[out])
        decrement_ttl(b, i)
        set_addresses(b, i, to.src_ip, to.dst_ip, to.src_port, to.dst_port)
        return sent(b, i, out, fate)

    cdef int later_fragment(self, Burst b, int i) noexcept nogil:
        cdef FragmentKey key = fragment_key(b, i)
        cdef int64_t slot = self.fragments.find(&key)
        cdef Endpoints to = unchanged(b, i)
        cdef const Fragment* f
        if slot < 0:
            return NO_FRAGMENT
        f = <const Fragment*>self.fragments.value(slot)
        to.src_ip, to.dst_ip = f.src, f.dst
        return self.emit(b, i, f.fate, f.out, f.hop, &to)

    cdef int icmp_error(self, Burst b, int i, int port) noexcept nogil:
        cdef Quote q
        cdef SessionKey key
        cdef const MappingKey* inner
        cdef const Session* s
        cdef int64_t target, slot
        cdef Endpoints to = unchanged(b, i)
        if not quote(b, i, &q) or to.dst_ip != q.src_ip or (port == IN_ and self.is_ours(q.src_ip, OUT_)):
            return NO_ERROR_FLOW
        if port == OUT_:
            target = self.mapping_of(q.proto, q.src_ip, q.src_port)
            if target < 0:
                return NO_ERROR_FLOW
            inner = <const MappingKey*>self.mappings.key_at(target)
            key = session_key(inner.in_ip, inner.in_port, q.dst_ip, 0 if q.proto == ICMP else q.dst_port, q.proto)
        else:
            key = session_key(q.dst_ip, q.dst_port, q.src_ip, 0 if q.proto == ICMP else q.src_port, q.proto)
        slot = self.sessions.find(&key)
        if slot < 0:
            return NO_ERROR_FLOW
        s = <const Session*>self.sessions.value(slot)
        if port == OUT_:
            if not self.is_known(s.hop_in):
                return self.ask(b, i, s.hop_in, IN_)
            set_quote(b, i, &q, key.in_ip, q.dst_ip, key.in_port, q.dst_port)
            to.dst_ip = key.in_ip
            return self.emit(b, i, SENT_IN, IN_, s.hop_in, &to)
        if not self.is_known(s.hop_out):
            return self.ask(b, i, s.hop_out, OUT_)
        set_quote(b, i, &q, q.src_ip, s.ext_ip, q.src_port, s.ext_port)
        to.src_ip = s.ext_ip
        return self.emit(b, i, SENT_OUT, OUT_, s.hop_out, &to)

    # ---- addresses and neighbours

    cdef bint is_ours(self, uint32_t ip, int port) noexcept nogil:
        cdef uint32_t k
        if port == IN_:
            return ip == self.inside
        for k in range(self.n_outside):
            if self.outside[k] == ip:
                return True
        return False

    cdef int64_t hop(self, uint32_t ip, uint32_t port) noexcept nogil:
        cdef NeighbourKey key
        cdef bint fresh = False
        key.ip, key.port = ip, port
        return self.neighbours.insert(&key, self.now, &fresh)

    cdef int64_t next_hop(self, uint32_t ip) noexcept nogil:
        if ip & self.mask[OUT_] == self.net[OUT_]:
            return self.hop(ip, OUT_)
        if self.gateway == 0:
            return ~<int64_t>BAD_ADDRESS
        return self.hop(self.gateway, OUT_)

    cdef bint is_known(self, int64_t hop) noexcept nogil:
        return (<const Neighbour*>self.neighbours.value(hop)).known != 0

    cdef void learn(self, int64_t hop, uint64_t mac) noexcept nogil:
        cdef const Neighbour* n = <const Neighbour*>self.neighbours.value(hop)
        cdef Neighbour* w
        if n.known and get48(n.mac) == mac:
            return
        w = <Neighbour*>self.neighbours.value_write(hop)
        set48(w.mac, mac)
        w.known = 1

    cdef int ask(self, Burst b, int i, int64_t hop, int port) noexcept nogil:
        cdef const Neighbour* n = <const Neighbour*>self.neighbours.value(hop)
        cdef uint32_t ip = (<const NeighbourKey*>self.neighbours.key_at(hop)).ip
        if n.asked == 0 or self.now - n.asked >= ASK_NS:
            if arp_request(b, i, self.mac[port], self.outside[0] if port else self.inside, ip):
                (<Neighbour*>self.neighbours.value_write(hop)).asked = max(self.now, <uint64_t>1)
                self.counts[ASKED] += 1
                sent(b, i, port, NO_NEIGHBOUR)
        return NO_NEIGHBOUR

    cdef int arp(self, Burst b, int i, int port) noexcept nogil:
        cdef NeighbourKey key
        cdef uint64_t mac = arp_sender(b, i)
        cdef bint ours = self.is_ours(b.dst_ip[i], port)
        cdef int64_t slot
        if mac == 0 or self.is_ours(b.src_ip[i], port):
            return ARP_HEARD
        key.ip, key.port = b.src_ip[i], <uint32_t>port
        if key.ip & self.mask[port] == self.net[port]:
            slot = self.hop(key.ip, key.port) if ours else self.neighbours.find(&key)
            if slot >= 0:
                self.learn(slot, mac)
        if not ours or b.icmp_type[i] != 1:
            return ARP_HEARD
        arp_reply(b, i, self.mac[port])
        return sent(b, i, port, ANSWERED)

    # ---- time

    cdef void expire(self, uint64_t now) noexcept nogil:
        cdef int64_t slots[CLOSE]
        cdef int n = self.fragments.sweep(now, SWEEP, slots, CLOSE, self.fragment_ns), k
        cdef Session s
        cdef Mapping* m
        cdef uint64_t* permit
        cdef uint32_t pool
        cdef uint8_t proto
        for k in range(n):
            self.fragments.erase(slots[k])
        n = self.sessions.sweep(now, SWEEP, slots, CLOSE, self.transitory_ns)
        for k in range(n):
            s = (<const Session*>self.sessions.value(slots[k]))[0]
            proto = <uint8_t>(<const SessionKey*>self.sessions.key_at(slots[k])).proto
            self.sessions.erase(slots[k])
            if s.permitted:
                permit = <uint64_t*>self.permits.value_write(s.permitted - 1)
                permit[0] -= 1
                if permit[0] == 0:
                    self.permits.erase(s.permitted - 1)
            m = <Mapping*>self.mappings.value_write(s.mapping)
            m.sessions -= 1
            if m.sessions == 0:
                pool = pool_number(m.address, proto)
                (<uint32_t*>self.by_port.write(
                    <uint64_t>pool * (self.port_hi - self.port_lo + 1) + m.ext_port - self.port_lo, 1))[0] = 0
                self.external.release(pool, m.ext_port)
                self.mappings.erase(s.mapping)
        if n:
            self.counters.add(EXPIRED, <uint64_t>n)
