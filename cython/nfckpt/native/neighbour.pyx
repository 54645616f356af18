# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Neighbour: ARP (RFC 826) and neighbour solicitations (RFC 4861), without a frame of one's own.

Picture     in    | who has 10.0.0.1? tell 10.0.0.9 |        out   | 10.0.0.1 is at 02:… |      the same slot of the burst
            in    | a packet for 198.51.100.9       |        out   | who has 198.51.100.9? |    the packet is dropped

An answer that takes the place of its question needs no memory, no second queue and no GIL. Every slot of a burst has
room for it: a frame's room is a multiple of 64 bytes. The frame's columns are read again after each change.
"""
from libc.stdint cimport uint16_t
from libc.string cimport memcpy, memset

from nfckpt.native.burst cimport WHOLE
from nfckpt.native.checksum cimport fold16, get16, get48, set16, set32, set48, sum_bytes
from nfckpt.native.headers cimport ETH_ARP, ICMP6, parse


cdef inline bint _resize(Burst b, int i, uint32_t n) noexcept nogil:
    if n > ((b.length[i] + 63) & ~<uint32_t>63):
        return False
    b.length[i] = n
    return True


cdef uint64_t arp_sender(Burst b, int i) noexcept nogil:
    """The sender's hardware address in ARP frame i; 0 where it is a group address, which nobody has."""
    cdef const uint8_t* p = b.data(i) + b.l3_off[i]
    return 0 if p[8] & 1 else get48(p + 8)


cdef void arp_reply(Burst b, int i, uint64_t mac) noexcept nogil:
    """Turn the ARP request in frame i into its answer: what it asks for is at `mac`. Same length, same tags."""
    cdef uint8_t* p = b.data(i)
    cdef uint8_t* a = p + b.l3_off[i]
    cdef uint8_t asked[4]
    memcpy(p, a + 8, 6)
    set48(p + 6, mac)
    memcpy(asked, a + 24, 4)
    memcpy(a + 18, a + 8, 10)           # sender becomes target
    set16(a + 6, 2)
    set48(a + 8, mac)
    memcpy(a + 14, asked, 4)
    parse(b, i, i + 1)


cdef bint arp_request(Burst b, int i, uint64_t mac, uint32_t source, uint32_t target) noexcept nogil:
    """Put "who has `target`? tell `source` at `mac`" in the place of frame i, untagged. False: no room."""
    cdef uint8_t* p = b.data(i)
    if not _resize(b, i, 42):
        return False
    memset(p, 0xff, 6)
    set48(p + 6, mac)
    set16(p + 12, ETH_ARP)
    set32(p + 14, 0x00010800)
    set32(p + 18, 0x06040001)
    set48(p + 22, mac)
    set32(p + 28, source)
    memset(p + 32, 0, 6)
    set32(p + 38, target)
    parse(b, i, i + 1)
    return True


cdef bint advert(Burst b, int i, uint64_t mac, const uint8_t* ours, int n) noexcept nogil:
    """Turn a solicitation for one of our `n` addresses (16 bytes each) into its advertisement: it is at `mac`.

    False, and the frame as it was: no valid solicitation (RFC 4861, 7.1.1), or not for us.
    """
    cdef uint8_t* p = b.data(i)
    cdef uint8_t* ip = p + b.l3_off[i]
    cdef uint8_t* body = p + b.l4_off[i]
    cdef uint8_t target[16]
    cdef uint8_t tail[8]
    cdef uint64_t asker = get48(p + 6), acc
    cdef uint32_t at, size
    cdef bint nameless = True, found = False
    cdef int k
    if (b.ip_version[i] != 6 or b.proto[i] != ICMP6 or b.icmp_type[i] != 135 or b.icmp_code[i] != 0
            or b.frag[i] != WHOLE or ip[7] != 255 or b.l4_off[i] != b.l3_off[i] + 40 or b.ip_len[i] < 64):
        return False
    size = b.ip_len[i] - 40
    memset(tail, 0, 8)
    set16(tail + 2, <uint16_t>size)
    tail[7] = ICMP6
    if fold16(sum_bytes(body, size, sum_bytes(tail, 8, sum_bytes(ip + 8, 32, 0)))) != 0xffff:
        return False
    for k in range(16):
        nameless &= ip[8 + k] == 0      # duplicate address detection
    at = 24
    while at < size:
        if size - at < 8 or body[at + 1] == 0 or body[at + 1] * 8 > size - at:
            return False
        if body[at] == 1:
            if nameless:
                return False
            asker = get48(body + at + 2)
        at += body[at + 1] * 8
    for k in range(n):
        if get48(body + 8) == get48(ours + 16 * k) and get48(body + 14) == get48(ours + 16 * k + 6) \
                and get48(body + 18) == get48(ours + 16 * k + 10):
            found = True
    if not found or not _resize(b, i, b.l3_off[i] + 72):
        return False
    memcpy(target, body + 8, 16)
    set48(p, 0x333300000001 if nameless else asker)
    set48(p + 6, mac)
    set32(ip, 0x60000000)
    set16(ip + 4, 32)
    if nameless:
        memset(ip + 24, 0, 16)
        ip[24], ip[25], ip[39] = 0xff, 0x02, 1
    else:
        memcpy(ip + 24, ip + 8, 16)
    memcpy(ip + 8, target, 16)
    set32(body, 0x88000000)
    set32(body + 4, 0x20000000 if nameless else 0x60000000)     # override; solicited
    memcpy(body + 8, target, 16)
    set16(body + 24, 0x0201)
    set48(body + 26, mac)
    set16(tail + 2, 32)
    acc = ~fold16(sum_bytes(body, 32, sum_bytes(tail, 8, sum_bytes(ip + 8, 32, 0))))
    _store(body + 2, <uint16_t>acc)
    parse(b, i, i + 1)
    return True


cdef inline void _store(uint8_t* at, uint16_t v) noexcept nogil:
    memcpy(at, &v, 2)                   # a checksum lies as it was summed


# ---- from Python, for functions that work a frame at a time

cdef void _check(Burst burst, int i) except *:
    if not 0 <= i < burst.n:
        raise IndexError(i)


def sender_mac(Burst burst not None, int i):
    """The sender's hardware address of ARP frame `i` as a number; 0 where it is a group address."""
    _check(burst, i)
    if burst.eth_type[i] != ETH_ARP or burst.malformed[i]:
        raise ValueError(f"frame {i} is not ARP")
    return arp_sender(burst, i)


def answer_arp(Burst burst not None, int i, uint64_t mac):
    """Turn the ARP request in frame `i` into its answer. Raises ValueError where it is none."""
    _check(burst, i)
    if burst.eth_type[i] != ETH_ARP or burst.malformed[i] or burst.icmp_type[i] != 1:
        raise ValueError(f"frame {i} is no ARP request")
    arp_reply(burst, i, mac)


def ask_arp(Burst burst not None, int i, uint64_t mac, uint32_t source, uint32_t target):
    """Put an ARP request in the place of frame `i`. False where the frame is too short to make room."""
    _check(burst, i)
    return arp_request(burst, i, mac, source, target)


def answer_solicitation(Burst burst not None, int i, uint64_t mac, bytes ours):
    """Turn a neighbour solicitation for one of `ours` (16 bytes each, joined) into its answer; False: it is not one."""
    _check(burst, i)
    return advert(burst, i, mac, <const uint8_t*>ours, <int>(len(ours) // 16))
