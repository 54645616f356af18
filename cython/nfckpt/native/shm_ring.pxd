"""ShmRing: whole messages between two processes through two sealed segments. Drawn in shm_ring.pyx.
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.channel cimport Channel, Message
from nfckpt.native.shm_segment cimport Segment

cdef struct ShmRecord:          # 32 bytes, little endian, at multiples of 32
    uint32_t len                # bytes of payload that follow
    uint8_t kind
    uint8_t zero[3]
    uint64_t seq                # records since the ring was opened, from 0
    uint64_t left               # bytes of the message from this record's payload on
    uint64_t check

cdef class ShmRing(Channel):
    cdef readonly Segment tx    # mine: I write
    cdef readonly Segment rx    # the peer's: I read
    cdef readonly uint64_t bells        # doorbells rung
    # writer
    cdef uint64_t head, seen_tail, tx_seq, tx_mask, tx_chunk
    cdef uint64_t tx_keys[4]
    cdef uint64_t rung          # the peer's sleep word we last rang for
    cdef int bell_out
    # backlog: [left u64][kind u64][payload] entries; the first may be half sent
    cdef uint8_t* wait
    cdef uint64_t wait_at, wait_end, wait_cap
    # reader
    cdef uint64_t tail, seen_head, rx_seq, rx_mask, rx_chunk
    cdef uint64_t rx_keys[4]
    cdef uint64_t got, left
    cdef int inbox_kind         # -1 between messages
    cdef uint64_t sleeps
    cdef uint32_t idle
    cdef int pidfd, sock
    cdef bint peer_gone

    cdef void look_for_death(self) noexcept nogil
    # inside
    cdef void _publish(self, int kind, uint64_t n, uint64_t left) noexcept nogil
    cdef uint8_t* _place(self) noexcept nogil
    cdef int _record(self, int kind, const uint8_t* data, uint64_t left, uint64_t* put) noexcept nogil
    cdef int _keep(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil
    cdef int _take(self, Message* m) noexcept nogil
    cdef bint _room(self, uint64_t need) noexcept nogil
    cdef void _ring_if(self, uint64_t want) noexcept nogil
