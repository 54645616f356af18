"""TcpChannel: a Channel over one authenticated TCP connection. Drawn in tcp_channel.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.aead cimport Aead
from nfckpt.native.channel cimport Channel, Message

cdef struct Head:               # of a record (what: its type) and of a message (what: its kind); 8 bytes, little endian
    uint32_t length
    uint8_t what
    uint8_t zero[3]

cdef class TcpChannel(Channel):
    cdef int fd, error          # the socket, -1 once the channel has ended; errno of what broke it
    cdef Aead tx, rx
    cdef bint known, ended      # the peer has shown its key; its stream is over
    cdef uint64_t claimed       # the length or type that ended it
    # out: the stream of messages, from `at` on; then one sealed record under way
    cdef uint8_t* stream
    cdef uint64_t at, end, cap
    cdef uint8_t* sealed
    cdef uint64_t sealed_at, sealed_end
    # in: bytes of the socket; the opened record, and how much of it was given out; a message under way
    cdef uint8_t* raw
    cdef uint64_t raw_at, raw_end
    cdef uint8_t* plain
    cdef uint64_t plain_at, plain_end
    cdef uint64_t got, need     # bytes of the message in `inbox`, and in all; need 0: none is under way
    cdef int kind

    cdef void _trim(self) noexcept nogil
    cdef bint _keep(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil
    cdef bint _seal(self, int what, const uint8_t* data, uint32_t n) noexcept nogil
    cdef bint _write(self) noexcept nogil
    cdef int _read(self) noexcept nogil
    cdef int _open(self) noexcept nogil
    cdef int _message(self, Message* m) noexcept nogil
    cdef int _part(self, Message* m) noexcept nogil
    cdef int _end(self, int reason) noexcept nogil
