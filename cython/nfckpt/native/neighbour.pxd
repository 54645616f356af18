"""Neighbour: answer and ask for link-layer addresses, in the place of a frame of the burst."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from nfckpt.native.burst cimport Burst

cdef uint64_t arp_sender(Burst b, int i) noexcept nogil
cdef void arp_reply(Burst b, int i, uint64_t mac) noexcept nogil
cdef bint arp_request(Burst b, int i, uint64_t mac, uint32_t source, uint32_t target) noexcept nogil
cdef bint advert(Burst b, int i, uint64_t mac, const uint8_t* ours, int n) noexcept nogil
