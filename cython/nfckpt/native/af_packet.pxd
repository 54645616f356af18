"""AF_PACKET rings, native side: TPACKET_V2 receive and transmit ring in one mapping. Essay in nfckpt/ports/af_packet.py."""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from nfckpt.native.burst cimport Burst
from nfckpt.native.port cimport Port

cdef class AfPacketRing(Port):
    cdef readonly int fd            # the bound socket, -1 once closed
    cdef readonly bint link_down    # set down: frames wait in the transmit ring
    cdef readonly int ifindex
    cdef readonly uint32_t mtu      # bytes after the Ethernet header
    cdef uint8_t* base              # rx ring, then tx ring; NULL once closed
    cdef size_t map_bytes
    cdef uint32_t slot_bytes, rx_slots, tx_slots
    cdef uint32_t rx_next           # next slot to read
    cdef uint32_t rx_idle           # empty polls since the device was last looked at
    cdef uint32_t tx_next           # next slot to fill
    cdef uint32_t tx_kick           # oldest slot the device may not have taken
    cdef uint32_t tx_waiting        # slots from tx_kick to tx_next
    cdef uint32_t tx_staged         # slots from tx_next on: written, not yet committed
    cdef uint8_t* closed            # what base was, while a gate may still read staged frames

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil
    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int publish(self) noexcept nogil
    cdef void* _fill(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef void _give(self, void* slot) noexcept nogil
    cdef bint _legal(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef void _look(self) noexcept nogil
    cdef void _advance(self) noexcept nogil
    cdef void _lose(self) noexcept nogil
    cdef bint _unfinished(self) noexcept nogil
