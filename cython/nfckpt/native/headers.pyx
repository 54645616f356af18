# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Headers: read each frame once, fill its columns, trust no length.

Picture     | Ethernet 14 | VLAN 0..2 x 4 | IPv4 20..60 or IPv6 40 + chain | TCP, UDP, ICMP |  (padding)
                                          ^ l3_off                         ^ l4_off
                                          |<------------- ip_len -------------------------->|

Promises    H1 no byte outside the frame is read, whatever the bytes say.
            H2 a frame whose lengths or fixed fields contradict each other reads malformed = 1 and all its layer 3
               and 4 columns read 0, so no rule can match on half a header. That includes an IPv4 header whose
               checksum is wrong (RFC 1812, 5.2.2) and a first fragment too short for its TCP, UDP or ICMP header
               (RFC 1858). Layer 4 checksums are not verified: a translator updates them in place, so a wrong one
               stays wrong.
            H3 columns are a function of the frame's bytes alone.

Also        ARP (Ethernet, IPv4): ip_version 0, proto 0, src_ip and dst_ip the two protocol addresses, icmp_type the
            operation (255 for any above 254). More than two VLAN tags: eth_type says VLAN, nothing else is known.
            Other protocols: l4_off is where their payload starts. IPv6 "no next header": l4_off 0.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from nfckpt.native.burst cimport FRAG_FIRST, FRAG_LATER, WHOLE
from nfckpt.native.checksum cimport fold16, get16, get32, sum_bytes


cdef inline bint _l4(Burst b, int i, const uint8_t* p, uint32_t at, uint32_t end) noexcept nogil:
    """Layer 4 at p+at, the IP packet ends at p+end. False: it does not fit."""
    cdef uint32_t room = end - at
    cdef uint8_t proto = b.proto[i]
    cdef uint32_t n
    b.l4_off[i] = <uint16_t>at
    if proto == TCP:
        if room < 20:
            return False
        n = (p[at + 12] >> 4) * 4
        if n < 20 or n > room:
            return False
        b.tcp_flags[i] = p[at + 13]
    elif proto == UDP:
        if room < 8:
            return False
        n = get16(p + at + 4)
        if n < 8 or (b.frag[i] == WHOLE and n > room):
            return False
    elif proto == ICMP and b.ip_version[i] == 4:
        if room < 8:
            return False
        b.icmp_type[i] = p[at]
        b.icmp_code[i] = p[at + 1]
        if p[at] == 8 or p[at] == 0:
            b.src_port[i] = b.dst_port[i] = get16(p + at + 4)
        return True
    elif proto == ICMP6 and b.ip_version[i] == 6:
        if room < 4:
            return False
        b.icmp_type[i] = p[at]
        b.icmp_code[i] = p[at + 1]
        if p[at] == 128 or p[at] == 129:
            if room < 8:
                return False
            b.src_port[i] = b.dst_port[i] = get16(p + at + 4)
        return True
    else:
        return True
    b.src_port[i] = get16(p + at)
    b.dst_port[i] = get16(p + at + 2)
    return True


cdef inline uint64_t _head_sum(const uint8_t* p, uint32_t head) noexcept nogil:
    # nearly every header has 20 bytes, and a loop of known length is none
    return sum_bytes(p, 20, 0) if head == 20 else sum_bytes(p, head, 0)


cdef inline bint _ip4(Burst b, int i, const uint8_t* p, uint32_t at, uint32_t n) noexcept nogil:
    cdef uint32_t head, total, fragment
    if n < at + 20 or p[at] >> 4 != 4:
        return False
    head = (p[at] & 15) * 4
    total = get16(p + at + 2)
    if head < 20 or total < head or total > n - at or fold16(_head_sum(p + at, head)) != 0xffff:
        return False
    fragment = get16(p + at + 6)
    b.ip_version[i] = 4
    b.ip_len[i] = <uint16_t>total
    b.proto[i] = p[at + 9]
    b.src_ip[i] = get32(p + at + 12)
    b.dst_ip[i] = get32(p + at + 16)
    if fragment & 0x3fff:
        if fragment & 0x2000 and (total - head) & 7:
            return False                # only the last fragment may have an odd length (RFC 791)
        if (fragment & 0x1fff) * 8 + total - head > 65535:
            return False
        if fragment & 0x1fff:
            b.frag[i] = FRAG_LATER
            return True
        b.frag[i] = FRAG_FIRST
    return _l4(b, i, p, at + head, at + total)


cdef inline bint _ip6(Burst b, int i, const uint8_t* p, uint32_t at, uint32_t n) noexcept nogil:
    cdef uint32_t end, here, size, fragment
    cdef uint8_t kind
    cdef int walked = 0
    if n < at + 40 or p[at] >> 4 != 6:
        return False
    size = get16(p + at + 4)
    if size > n - at - 40:
        return False
    end = at + 40 + size
    b.ip_version[i] = 6
    b.ip_len[i] = <uint16_t>(40 + size)
    memcpy(b.src_ip6 + 16 * i, p + at + 8, 16)
    memcpy(b.dst_ip6 + 16 * i, p + at + 24, 16)
    here = at + 40
    kind = p[at + 6]
    while kind == 0 or kind == 43 or kind == 44 or kind == 51 or kind == 60:
        if walked == IP6_HEADERS_MAX or end - here < 8 or (kind == 0 and walked):
            return False                # hop-by-hop options stand first or not at all (RFC 8200, 4.1)
        walked += 1
        if kind == 44:
            fragment = get16(p + here + 2)
            if b.frag[i] != WHOLE:
                return False
            kind = p[here]
            here += 8
            if fragment & 1 and (end - here) & 7:
                return False
            if (fragment & 0xfff8) + end - here > 65535:
                return False
            if fragment & 0xfff8:
                b.frag[i] = FRAG_LATER
                b.proto[i] = kind
                return True
            if fragment & 1:
                b.frag[i] = FRAG_FIRST  # offset 0 and no more to come: an atomic fragment, whole (RFC 6946)
            continue
        size = (p[here + 1] + 2) * 4 if kind == 51 else (p[here + 1] + 1) * 8
        if size > end - here:
            return False
        kind = p[here]
        here += size
    b.proto[i] = kind
    return kind == 59 or _l4(b, i, p, here, end)


cdef inline bint _arp(Burst b, int i, const uint8_t* p, uint32_t at, uint32_t n) noexcept nogil:
    if n < at + 28 or get32(p + at) != 0x00010800 or get16(p + at + 4) != 0x0604:
        return False
    b.icmp_type[i] = 255 if p[at + 6] else p[at + 7]
    b.src_ip[i] = get32(p + at + 14)
    b.dst_ip[i] = get32(p + at + 24)
    return True


cdef inline void _blank(Burst b, int i, size_t n) noexcept nogil:
    """All columns of layers 3 and 4 read 0 for frames i..i+n-1: whole columns at once are a few wide stores."""
    memset(b.ip_version + i, 0, n)
    memset(b.frag + i, 0, n)
    memset(b.proto + i, 0, n)
    memset(b.tcp_flags + i, 0, n)
    memset(b.icmp_type + i, 0, n)
    memset(b.icmp_code + i, 0, n)
    memset(b.l4_off + i, 0, 2 * n)
    memset(b.ip_len + i, 0, 2 * n)
    memset(b.src_port + i, 0, 2 * n)
    memset(b.dst_port + i, 0, 2 * n)
    memset(b.src_ip + i, 0, 4 * n)
    memset(b.dst_ip + i, 0, 4 * n)
    memset(b.src_ip6 + 16 * i, 0, 16 * n)
    memset(b.dst_ip6 + 16 * i, 0, 16 * n)


cdef inline bint _frame(Burst b, int i) noexcept nogil:
    cdef const uint8_t* p = b.data(i)
    cdef uint32_t n = b.length[i], at = 14
    cdef uint16_t kind
    cdef int tags = 0
    b.eth_type[i] = b.l3_off[i] = 0
    b.vlan[i] = 0xffff
    if n < 14:
        return False
    kind = get16(p + 12)
    while tags < VLAN_TAGS_MAX and (kind == 0x8100 or kind == 0x88a8 or kind == 0x9100):
        if n < at + 4:
            return False
        if tags == 0:
            b.vlan[i] = get16(p + at) & 0xfff
        kind = get16(p + at + 2)
        at += 4
        tags += 1
    b.eth_type[i] = kind
    b.l3_off[i] = <uint16_t>at
    if kind == ETH_IP4:
        return _ip4(b, i, p, at, n)
    if kind == ETH_IP6:
        return _ip6(b, i, p, at, n)
    if kind == ETH_ARP:
        return _arp(b, i, p, at, n)
    return True


cdef void parse(Burst b, int first, int end) noexcept nogil:
    """Fill the header columns of frames first..end-1, after their bytes were written. About 5 ns a frame."""
    cdef int i
    if first >= end:
        return
    _blank(b, first, end - first)
    for i in range(first, end):
        b.malformed[i] = not _frame(b, i)
        if b.malformed[i]:
            _blank(b, i, 1)


def parse_burst(Burst burst not None, int first=0):
    """Fill the header columns of frames `first`..n-1 of `burst`: for tests and for ports without an agent.

    An agent has done it before the app sees the burst. Raises IndexError for a `first` below 0.
    """
    if first < 0:
        raise IndexError(first)
    with nogil:
        parse(burst, first, burst.n)
