# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Rewrite: change a frame in place and patch its checksums by what changed (RFC 1624), never by summing it again.

Picture     burst.src_ip   [10.0.0.5, 10.0.0.9]      rewrite(burst, [0, 1], src_ip=outside, src_port=ports)
            frame 0        | Eth | IPv4 src -> outside, header sum + d | UDP src port -> p, UDP sum + d + d' | data |

Promises    W1 a checksum that was right stays right, one that was wrong stays wrong; UDP's 0 ("none") stays 0.
            W2 columns and bytes change together: after a rewrite the columns read what the frame says.
            W3 lengths never change; nothing but the named fields and their checksums does.
"""
import numpy as np

from nfckpt.errors import StateError

from libc.stdint cimport int64_t
from libc.string cimport memcpy

from nfckpt.native.arena cimport CHECK
from nfckpt.native.burst cimport WHOLE
from nfckpt.native.checksum cimport (
    fold16, get16, get32, get48, patch, patch_udp, set16, set48, sum_bytes, swap16, swap32, swap_bytes)
from nfckpt.native.headers cimport ICMP, ICMP6, TCP, UDP


cdef inline bint _echo(Burst b, int i) noexcept nogil:
    return ((b.proto[i] == ICMP and b.ip_version[i] == 4 and (b.icmp_type[i] == 8 or b.icmp_type[i] == 0))
            or (b.proto[i] == ICMP6 and b.ip_version[i] == 6 and (b.icmp_type[i] == 128 or b.icmp_type[i] == 129)))


cdef void _l4_sum(Burst b, int i, uint64_t addresses, uint64_t ports) noexcept nogil:
    """Patch the layer 4 checksum by the change of the pseudo-header and of the fields of layer 4 itself."""
    cdef uint8_t* p
    if b.l4_off[i] == 0:
        return
    p = b.data(i) + b.l4_off[i]
    if b.proto[i] == TCP:
        patch(p + 16, addresses + ports)
    elif b.proto[i] == UDP:
        patch_udp(p + 6, addresses + ports)
    elif b.proto[i] == ICMP and b.ip_version[i] == 4:
        patch(p + 2, ports)             # ICMP over IPv4 has no pseudo-header
    elif b.proto[i] == ICMP6 and b.ip_version[i] == 6:
        patch(p + 2, addresses + ports)


cdef uint64_t _ports(Burst b, int i, uint16_t src_port, uint16_t dst_port) noexcept nogil:
    """Write the ports where the frame has any. For an echo the one that differs is the new identifier."""
    cdef uint8_t* p
    cdef uint64_t delta
    if b.l4_off[i] == 0:
        return 0
    p = b.data(i) + b.l4_off[i]
    if b.proto[i] == TCP or b.proto[i] == UDP:
        delta = swap16(p, src_port) + swap16(p + 2, dst_port)
    elif _echo(b, i):
        if src_port == b.src_port[i]:
            src_port = dst_port
        dst_port = src_port
        delta = swap16(p + 4, src_port)
    else:
        return 0
    b.src_port[i], b.dst_port[i] = src_port, dst_port
    return delta


cdef void set_addresses(
        Burst b, int i, uint32_t src_ip, uint32_t dst_ip, uint16_t src_port, uint16_t dst_port) noexcept nogil:
    """Addresses and ports of an IPv4 frame; give the column's value for what shall stay. ~15 ns."""
    cdef uint8_t* p = b.data(i) + b.l3_off[i]
    cdef uint64_t delta
    CHECK(b.ip_version[i] == 4)
    delta = swap32(p + 12, src_ip) + swap32(p + 16, dst_ip)
    patch(p + 10, delta)
    b.src_ip[i], b.dst_ip[i] = src_ip, dst_ip
    _l4_sum(b, i, delta, _ports(b, i, src_port, dst_port))


cdef void decrement_ttl(Burst b, int i) noexcept nogil:
    """TTL or hop limit of an IP frame, by 1; it must be above 0."""
    cdef uint8_t* p = b.data(i) + b.l3_off[i]
    if b.ip_version[i] == 4:
        CHECK(p[8] > 0)
        patch(p + 10, swap16(p + 8, <uint16_t>(get16(p + 8) - 256)))
    elif b.ip_version[i] == 6:
        CHECK(p[7] > 0)
        p[7] -= 1


cdef uint8_t ttl_of(Burst b, int i) noexcept nogil:
    """TTL or hop limit; 0 where the frame is not IP."""
    if b.ip_version[i] == 0:
        return 0
    return b.data(i)[b.l3_off[i] + (8 if b.ip_version[i] == 4 else 7)]


cdef bint quote(Burst b, int i, Quote* q) noexcept nogil:
    """Read the packet inside an ICMP error (types 3, 4, 11, 12). False: not one, or not enough of one, or its checksum
    is wrong (RFC 5508, REQ-3). The quote may be cut short after 8 bytes of layer 4 (RFC 792)."""
    cdef const uint8_t* p = b.data(i)
    cdef const uint8_t* l4
    cdef uint32_t at, end, head
    if b.ip_version[i] != 4 or b.proto[i] != ICMP or b.frag[i] != WHOLE:
        return False
    if b.icmp_type[i] != 3 and b.icmp_type[i] != 4 and b.icmp_type[i] != 11 and b.icmp_type[i] != 12:
        return False
    at, end = b.l4_off[i] + 8, b.l3_off[i] + b.ip_len[i]
    if end < at + 28 or fold16(sum_bytes(p + b.l4_off[i], end - b.l4_off[i], 0)) != 0xffff:
        return False
    head = (p[at] & 15) * 4
    if p[at] >> 4 != 4 or head < 20 or end - at < head + 8 or get16(p + at + 6) & 0x1fff:
        return False
    l4 = p + at + head
    q.proto = p[at + 9]
    if q.proto == TCP or q.proto == UDP:
        q.src_port, q.dst_port = get16(l4), get16(l4 + 2)
    elif q.proto == ICMP and (l4[0] == 8 or l4[0] == 0):
        q.src_port = q.dst_port = get16(l4 + 4)
    else:
        return False
    q.src_ip, q.dst_ip = get32(p + at + 12), get32(p + at + 16)
    q.l3_off, q.l4_off, q.end = <uint16_t>at, <uint16_t>(at + head), <uint16_t>end
    return True


cdef void set_quote(Burst b, int i, Quote* q, uint32_t src_ip, uint32_t dst_ip,
                    uint16_t src_port, uint16_t dst_port) noexcept nogil:
    """Change the quoted packet, its checksums as far as they are quoted, and the ICMP checksum around it."""
    cdef uint8_t* p = b.data(i)
    cdef uint8_t* l4 = p + q.l4_off
    cdef uint64_t addresses, ports, around
    addresses = swap32(p + q.l3_off + 12, src_ip) + swap32(p + q.l3_off + 16, dst_ip)
    around = addresses + patch(p + q.l3_off + 10, addresses)
    if q.proto == ICMP:
        ports = swap16(l4 + 4, src_port if src_port != q.src_port else dst_port)
        around += ports + patch(l4 + 2, ports)
    else:
        ports = swap16(l4, src_port) + swap16(l4 + 2, dst_port)
        around += ports
        if q.proto == UDP:
            around += patch_udp(l4 + 6, addresses + ports)
        elif q.end >= q.l4_off + 18:
            around += patch(l4 + 16, addresses + ports)
    patch(p + b.l4_off[i] + 2, around)
    q.src_ip, q.dst_ip, q.src_port, q.dst_port = src_ip, dst_ip, src_port, dst_port


# ---- from Python: one crossing a burst

cdef tuple _column(object value, object dtype, Py_ssize_t n, int width, str name):
    """(array, elements from one frame to the next) of a parameter: one row for all frames, or one each."""
    a = np.ascontiguousarray(value, dtype).reshape(-1)
    if a.size == n * width:
        return a, width
    if a.size == width:
        return a, 0
    raise StateError(f"rewrite: {name} has {a.size} elements for {n} frames", f"give {width} or {n} x {width}")


cdef object _index(Burst burst, object idx):
    a = np.asarray(idx if not isinstance(idx, slice) else np.arange(burst.n)[idx])
    if a.dtype == np.bool_:
        if a.shape != (burst.n,):
            raise StateError(f"rewrite: a mask of shape {a.shape} for {burst.n} frames")
        a = np.flatnonzero(a)
    a = np.ascontiguousarray(a, np.int64).reshape(-1)
    if a.size and not (0 <= a.min() and a.max() < burst.n):
        raise IndexError(f"frames {a.min()}..{a.max()} of a burst of {burst.n}")
    return a


cdef object _mac_bytes(object mac):
    return np.frombuffer(mac, np.uint8) if isinstance(mac, (bytes, bytearray)) else mac


def rewrite(Burst burst not None, idx, src_ip=None, dst_ip=None, src_port=None, dst_port=None, src_mac=None,
            dst_mac=None, *, src_ip6=None, dst_ip6=None, bint ttl_decrement=False):
    """Change the frames `idx` (indices, boolean mask or slice) of `burst` in place.

    src_ip, dst_ip      uint32, scalar or (len(idx),): IPv4 addresses
    src_port, dst_port  uint16, likewise: TCP and UDP ports; for an ICMP echo either one is the identifier. A frame that
                        has none (a later fragment, another protocol) keeps what it has
    src_mac, dst_mac    6 bytes, or uint8 (len(idx), 6)
    src_ip6, dst_ip6    16 bytes, or uint8 (len(idx), 16): IPv6 addresses
    ttl_decrement       TTL or hop limit minus 1, where it is above 0

    Raises IndexError for an index outside the burst, StateError (before anything is written) for a shape that does not
    fit or an address for a frame of the other IP version.
    """
    cdef object index = _index(burst, idx)
    cdef const int64_t[::1] at = index
    cdef Py_ssize_t n = at.shape[0], k
    cdef int i
    cdef uint64_t addresses, ports
    cdef const uint32_t[::1] s4, d4
    cdef const uint16_t[::1] sp, dp
    cdef const uint8_t[::1] sm, dm, s6, d6
    cdef Py_ssize_t s4_, d4_, sp_, dp_, sm_, dm_, s6_, d6_
    cdef bint has_s4 = src_ip is not None, has_d4 = dst_ip is not None, has_sp = src_port is not None
    cdef bint has_dp = dst_port is not None, has_sm = src_mac is not None, has_dm = dst_mac is not None
    cdef bint has_s6 = src_ip6 is not None, has_d6 = dst_ip6 is not None
    cdef uint8_t* p
    if n == 0:
        return
    s4_ = d4_ = sp_ = dp_ = sm_ = dm_ = s6_ = d6_ = 0
    if has_s4: s4, s4_ = _column(src_ip, np.uint32, n, 1, "src_ip")
    if has_d4: d4, d4_ = _column(dst_ip, np.uint32, n, 1, "dst_ip")
    if has_sp: sp, sp_ = _column(src_port, np.uint16, n, 1, "src_port")
    if has_dp: dp, dp_ = _column(dst_port, np.uint16, n, 1, "dst_port")
    if has_sm: sm, sm_ = _column(_mac_bytes(src_mac), np.uint8, n, 6, "src_mac")
    if has_dm: dm, dm_ = _column(_mac_bytes(dst_mac), np.uint8, n, 6, "dst_mac")
    if has_s6: s6, s6_ = _column(_mac_bytes(src_ip6), np.uint8, n, 16, "src_ip6")
    if has_d6: d6, d6_ = _column(_mac_bytes(dst_ip6), np.uint8, n, 16, "dst_ip6")
    for k in range(n):
        i = <int>at[k]
        if ((has_s4 or has_d4) and burst.ip_version[i] != 4) or ((has_s6 or has_d6) and burst.ip_version[i] != 6):
            raise StateError(f"rewrite: frame {i} has IP version {burst.ip_version[i]}", "select by ip_version first")
        if (has_sm or has_dm) and burst.length[i] < 14:
            raise StateError(f"rewrite: frame {i} has {burst.length[i]} bytes and no MAC addresses")
    with nogil:
        for k in range(n):
            i = <int>at[k]
            p = burst.data(i)
            if has_dm:
                memcpy(p, &dm[k * dm_], 6)
            if has_sm:
                memcpy(p + 6, &sm[k * sm_], 6)
            if ttl_decrement and ttl_of(burst, i):
                decrement_ttl(burst, i)
            p += burst.l3_off[i]
            addresses = ports = 0
            if has_s4:
                addresses += swap32(p + 12, s4[k * s4_])
                burst.src_ip[i] = s4[k * s4_]
            if has_d4:
                addresses += swap32(p + 16, d4[k * d4_])
                burst.dst_ip[i] = d4[k * d4_]
            if has_s4 or has_d4:
                patch(p + 10, addresses)
            if has_s6:
                addresses += swap_bytes(p + 8, &s6[k * s6_], 16)
                memcpy(burst.src_ip6 + 16 * i, &s6[k * s6_], 16)
            if has_d6:
                addresses += swap_bytes(p + 24, &d6[k * d6_], 16)
                memcpy(burst.dst_ip6 + 16 * i, &d6[k * d6_], 16)
            if has_sp or has_dp:
                ports = _ports(burst, i, sp[k * sp_] if has_sp else burst.src_port[i],
                               dp[k * dp_] if has_dp else burst.dst_port[i])
            if addresses or ports:
                _l4_sum(burst, i, addresses, ports)


def rewrite_one(Burst burst not None, int i, *, src_ip=None, dst_ip=None, src_port=None, dst_port=None,
                src_mac=None, dst_mac=None, bint ttl_decrement=False):
    """`rewrite` of one IPv4 frame, all values numbers (MACs too): for functions that decide a frame at a time.

    Raises IndexError for a frame outside the burst, StateError where it is not IPv4.
    """
    cdef uint8_t* p
    if not 0 <= i < burst.n:
        raise IndexError(i)
    if burst.ip_version[i] != 4:
        raise StateError(f"rewrite: frame {i} has IP version {burst.ip_version[i]}", "select by ip_version first")
    p = burst.data(i)
    if dst_mac is not None:
        set48(p, dst_mac)
    if src_mac is not None:
        set48(p + 6, src_mac)
    if ttl_decrement and ttl_of(burst, i):
        decrement_ttl(burst, i)
    set_addresses(burst, i, burst.src_ip[i] if src_ip is None else src_ip, burst.dst_ip[i] if dst_ip is None else dst_ip,
                  burst.src_port[i] if src_port is None else src_port,
                  burst.dst_port[i] if dst_port is None else dst_port)


def ttl(Burst burst not None):
    """TTL or hop limit of each frame, uint8 (n,); 0 where the frame is not IP."""
    cdef object out = np.zeros(burst.n, np.uint8)
    cdef uint8_t[::1] o = out
    cdef int i
    for i in range(burst.n):
        o[i] = ttl_of(burst, i)
    return out


def macs(Burst burst not None):
    """(destination, source) MAC of each frame as numbers, uint64 (n,) each; 0 where the frame is too short."""
    cdef object dst = np.zeros(burst.n, np.uint64), src = np.zeros(burst.n, np.uint64)
    cdef uint64_t[::1] d = dst, s = src
    cdef int i
    for i in range(burst.n):
        if burst.length[i] >= 14:
            d[i], s[i] = get48(burst.data(i)), get48(burst.data(i) + 6)
    return dst, src


def quoted(Burst burst not None, int i):
    """(proto, src_ip, src_port, dst_ip, dst_port) of the packet that ICMP error `i` carries, or None: see `quote`."""
    cdef Quote q
    if not 0 <= i < burst.n:
        raise IndexError(i)
    if not quote(burst, i, &q):
        return None
    return q.proto, q.src_ip, q.src_port, q.dst_ip, q.dst_port


def rewrite_quoted(Burst burst not None, int i, *, src_ip=None, dst_ip=None, src_port=None, dst_port=None):
    """Change the packet that ICMP error `i` carries, with all checksums. Raises StateError where it carries none."""
    cdef Quote q
    if not 0 <= i < burst.n:
        raise IndexError(i)
    if not quote(burst, i, &q):
        raise StateError(f"frame {i} is no ICMP error with a packet in it", "ask quoted() first")
    set_quote(burst, i, &q, q.src_ip if src_ip is None else src_ip, q.dst_ip if dst_ip is None else dst_ip,
              q.src_port if src_port is None else src_port, q.dst_port if dst_port is None else dst_port)


def internet_checksum(data):
    """RFC 1071 checksum of a bytes-like object, as it stands in a header (host order int)."""
    cdef const uint8_t[::1] v = data
    cdef uint64_t acc = sum_bytes(&v[0], <uint32_t>v.shape[0], 0) if v.shape[0] else 0
    cdef uint16_t field = <uint16_t>~fold16(acc)
    return get16(<const uint8_t*>&field)
