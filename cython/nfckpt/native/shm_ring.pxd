"""ShmRing: whole messages between two processes through two sealed segments. Drawn in shm_ring.pyx.

Use without the GIL:   ring.push(kind, data, n);   ring.pop(&message)
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.shm_segment cimport Segment

cdef struct ShmRecord:          # 32 bytes, little endian, at multiples of 32
    uint32_t len                # bytes of payload that follow
    uint8_t kind
    uint8_t zero[3]
    uint64_t seq                # records since the ring was opened, from 0
    uint64_t left               # bytes of the message from this record's payload on
    uint64_t check

cdef struct ShmMessage:
    uint8_t* data               # private memory, yours to write until the next pop
    uint64_t n
    int kind

cdef class ShmRing:
    cdef readonly Segment tx    # mine: I write
    cdef readonly Segment rx    # the peer's: I read
    cdef readonly uint64_t bytes_sent
    cdef readonly uint64_t bytes_received
    cdef readonly uint64_t message_bytes_max
    cdef readonly uint64_t send_backlog_bytes_max
    cdef readonly uint64_t bells        # doorbells rung
    cdef int reason             # 0 open, else why it ended
    cdef int tx_reason          # why nothing can be sent, though there may be messages to read
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
    cdef uint8_t* inbox
    cdef uint64_t inbox_cap, got, left
    cdef int inbox_kind         # -1 between messages
    cdef uint64_t sleeps
    cdef ShmMessage unread      # put back: the next pop gives it again
    cdef bint has_unread
    cdef uint32_t idle
    cdef int pidfd, sock
    cdef bint peer_gone

    cdef int push(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil
    cdef int pop(self, ShmMessage* m) noexcept nogil
    cdef uint64_t read_by_peer(self) noexcept nogil
    cdef void put_back(self, ShmMessage* m) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef bint announce_sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
    cdef void look_for_death(self) noexcept nogil
    # inside
    cdef int _record(self, int kind, const uint8_t* data, uint64_t left, uint64_t* put) noexcept nogil
    cdef int _keep(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil
    cdef int _take(self, ShmMessage* m) noexcept nogil
    cdef bint _room(self, uint64_t need) noexcept nogil
    cdef void _ring_if(self, uint64_t want) noexcept nogil
