"""Shipment: inputs on their way to a standby that sees nothing of the segment. Drawn in shipment.pyx."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from nfckpt.native.burst cimport Burst
from nfckpt.native.channel cimport Channel
from nfckpt.native.port_set cimport MAX_PORTS

cdef struct ShipmentHead:
    uint64_t session
    uint64_t released_through   # every output below this number has left

cdef struct InputHead:
    uint16_t port, length       # length 0: no frame, the port only says where it stands
    uint32_t number             # of the frames that ever came to the port's device, modulo 2**32

cdef class Shipment:
    cdef uint8_t* buf
    cdef uint64_t n             # bytes in buf, head included
    cdef uint64_t told          # released_through, as the standby knows it
    cdef uint32_t number[MAX_PORTS]
    cdef readonly uint64_t session
    cdef Channel channel
    cdef bint has_channel

    cdef void add(self, Burst b) noexcept nogil
    cdef bint clear(self, uint64_t released_through) noexcept nogil
    cdef bint send(self, uint64_t released_through) noexcept nogil
