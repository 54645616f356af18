"""Channel: what the packet loop asks of a transport, without the GIL. The contract is in channel.pyx."""
from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    HERE = 1                    # `reason` of a channel that was closed on this side (or never opened)

cdef struct Message:
    uint8_t* data               # private memory at a multiple of 8, yours to write until the next pop
    uint64_t n
    int kind

cdef class Channel:
    cdef readonly uint64_t bytes_sent
    cdef readonly uint64_t bytes_received
    cdef readonly uint64_t message_bytes_max
    cdef readonly uint64_t send_backlog_bytes_max
    cdef readonly bint costly   # bytes cost: epochs are encoded (nfckpt/checkpoint/delta.py)
    cdef int reason             # 0 open, else why it ended
    cdef int tx_reason          # why nothing can be sent, though there may be messages to read
    cdef Message unread         # put back: the next pop gives it again
    cdef bint has_unread
    cdef uint8_t* inbox         # where a message that came in parts is put together
    cdef uint64_t inbox_cap

    cdef int push(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil
    cdef uint8_t* reserve(self, uint64_t n) noexcept nogil
    cdef void publish(self, int kind, uint64_t n) noexcept nogil
    cdef int drain(self) noexcept nogil
    cdef uint64_t waiting(self) noexcept nogil
    cdef int pop(self, Message* m) noexcept nogil
    cdef void put_back(self, Message* m) noexcept nogil
    cdef uint64_t pushed_to(self) noexcept nogil
    cdef uint64_t read_by_peer(self) noexcept nogil
    cdef bint announce_sleep(self) noexcept nogil
    cdef void awake(self) noexcept nogil
