"""Rewrite: change addresses, ports, TTL and MACs of frames in place, checksums with them."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from nfckpt.native.burst cimport Burst

cdef struct Quote:              # the packet that an ICMP error carries
    uint32_t src_ip
    uint32_t dst_ip
    uint16_t src_port           # ICMP echo: the identifier in both
    uint16_t dst_port
    uint16_t l3_off             # from the first byte of the frame
    uint16_t l4_off
    uint16_t end                # where the quote ends
    uint8_t proto

cdef void set_addresses(Burst b, int i, uint32_t src_ip, uint32_t dst_ip, uint16_t src_port, uint16_t dst_port) noexcept nogil
cdef void decrement_ttl(Burst b, int i) noexcept nogil
cdef uint8_t ttl_of(Burst b, int i) noexcept nogil
cdef bint quote(Burst b, int i, Quote* q) noexcept nogil
cdef void set_quote(Burst b, int i, Quote* q, uint32_t src_ip, uint32_t dst_ip, uint16_t src_port, uint16_t dst_port) noexcept nogil
