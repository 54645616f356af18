# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TcpChannel: a Channel (channel.pyx) over one TCP connection, authenticated and encrypted (aead.pyx).

Record      Everything after the hello (wire/tcp.py, which also agrees on the keys). AES-256-GCM, one key a direction;
            nonce = record counter from 0; associated data = the 8 bytes of header.

      0         4      5       8
     +---------+------+-------+---------------------------+----------+
     | length  | type | zero  | ciphertext, length bytes  | tag, 16  |   length <= 131072 (128 KiB), a multiple of 8
     | u32     | u8   | 3     |                           |          |   type: 1 PROOF, 2 DATA, 3 CLOSE
     +---------+------+-------+---------------------------+----------+

            PROOF  the handshake's transcript, 32 bytes: the first record, once.   CLOSE  empty: goodbye. Without it an
            end of the stream is a truncation.   DATA  a piece of the stream of messages, each

              +---------+------+------+----------------+------+
              | length  | kind | zero | payload        | to 8 |     a record holds many small messages or part of a large one;
              | u32     | u8   | 3    |                |      |     length <= message_bytes_max
              +---------+------+------+----------------+------+

Out         push ─copy─► stream ─ ─ drain: ─seal─► one record ─send─► socket. A turn of the loop is one record and one system call.
            What the socket does not take stays in the stream, up to send_backlog_bytes_max; then push answers "no room".
In          socket ─recv─► raw ─open─► plain ─► a message that lies whole in its record is given out where it is; a longer one is
            put together in `inbox`. Three buffers, made once; only the inbox grows.
Promises    T1 until a peer has proven its key, no byte of it is acted on but one record header.  T2 nothing is allocated on a
            peer's word: a message grows as its verified bytes come.  T3 pop makes at most one system call, drain writes at most
            1 MiB: a large message does not hold up the packet loop.  T4 a corrupted, replayed, reordered or cut record: a reason, and the end.
"""
import os

from nfckpt.errors import ConfigError, PeerError

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport UINT32_MAX
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset

from nfckpt.native.aead cimport TAG_BYTES
from nfckpt.native.arena cimport CHECK
from nfckpt.native.channel cimport HERE

cdef extern from "sys/socket.h" nogil:
    ssize_t send_ "send"(int, const void*, size_t, int)
    ssize_t recv_ "recv"(int, void*, size_t, int)
    int shutdown(int, int)
    enum: MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_WR
cdef extern from "unistd.h" nogil:
    int close_ "close"(int)

cdef enum:
    HEAD = 8
    PROOF_BYTES = 32
    RECORD_BYTES_MAX = 128 << 10
    SEALED_BYTES_MAX = HEAD + RECORD_BYTES_MAX + TAG_BYTES
    RAW_BYTES = 256 << 10
    STREAM_BYTES = 256 << 10        # kept for good; what a backlog needs beyond is given back
    INBOX_BYTES = 256 << 10         # a message under way begins with this much and doubles
    DRAIN_BYTES_MAX = 1 << 20

cdef enum:
    PROOF = 1
    DATA = 2
    CLOSE = 3

cdef enum:
    CLOSED = 2, CLOSED_MID, HUNG_UP, CUT, CUT_MID, BROKE, BAD_LENGTH, BAD_TAG, BAD_TYPE, BAD_PROOF, TOO_LONG, NO_MEMORY, NO_SEAL

REASONS = {
    HERE: "closed here",
    CLOSED: "the peer closed",
    CLOSED_MID: "the peer closed in the middle of a message",
    HUNG_UP: "the peer hung up during the handshake: it may have another key or version, see its log",
    CUT: "the peer's stream was cut short: it ended without a goodbye",
    CUT_MID: "the peer's stream was cut short in the middle of a message",
    BROKE: "the connection broke: {error}",
    BAD_LENGTH: f"a record of {{n}} bytes: not a multiple of 8 up to {RECORD_BYTES_MAX}, or its header is not zero where it must be",
    BAD_TAG: "a record failed authentication: another key, or corrupted, replayed or reordered",
    BAD_TYPE: "a record of type {n} where it does not belong",
    BAD_PROOF: "the peer's first record is no proof of its key",
    TOO_LONG: "a message of {n} bytes: more than message_bytes_max = {bound}",
    NO_MEMORY: "no memory for a message",
    NO_SEAL: "the crypto library failed to seal a record",
}


cdef inline uint64_t pad8(uint64_t n) noexcept nogil:
    return (n + 7) & ~<uint64_t>7


cdef class TcpChannel(Channel):
    """One end. `fd`: a connected stream socket, owned from here. `tx`, `rx`: of this session. Not thread-safe.

    Open once `prove` was called and `proven` has answered True.
    """

    def __cinit__(self, *args, **kwargs):
        self.fd = -1
        self.costly = True

    def __init__(self, int fd, Aead tx not None, Aead rx not None, *, uint64_t message_bytes_max, uint64_t send_backlog_bytes_max):
        if not tx.seals or rx.seals:
            raise ConfigError("a channel seals what it sends and opens what it receives")
        if message_bytes_max > UINT32_MAX:
            raise ConfigError(f"message_bytes_max = {message_bytes_max}", "TCP carries at most 2**32 - 1")
        self.raw = <uint8_t*>malloc(RAW_BYTES)
        self.plain = <uint8_t*>malloc(RECORD_BYTES_MAX)
        self.sealed = <uint8_t*>malloc(SEALED_BYTES_MAX)
        self.stream = <uint8_t*>malloc(STREAM_BYTES)
        if self.raw == NULL or self.plain == NULL or self.sealed == NULL or self.stream == NULL:
            raise MemoryError
        self.cap = STREAM_BYTES
        self.tx, self.rx = tx, rx
        self.message_bytes_max, self.send_backlog_bytes_max = message_bytes_max, send_backlog_bytes_max
        self.fd = fd
        self.reason = 0

    def __dealloc__(self):
        if self.fd >= 0:
            close_(self.fd)
        free(self.raw)
        free(self.plain)
        free(self.sealed)
        free(self.stream)

    # ---- out

    cdef int push(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil:
        cdef uint64_t waits = self.waiting()
        CHECK(0 <= kind <= 255)
        if n > self.message_bytes_max:
            return -1
        if self.reason or self.tx_reason:
            return 0
        if waits and waits + HEAD + pad8(n) > self.send_backlog_bytes_max:
            self.drain()
            waits = self.waiting()
            if self.tx_reason or (waits and waits + HEAD + pad8(n) > self.send_backlog_bytes_max):
                return 0
        if not self._keep(kind, data, n):
            return 0
        self.bytes_sent += n
        return 1

    cdef uint64_t waiting(self) noexcept nogil:
        return self.end - self.at + self.sealed_end - self.sealed_at

    cdef bint _keep(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil:
        """Append to the stream; the caller has checked its bound. False: no memory, and the channel sends no more."""
        cdef uint64_t used = self.end - self.at, need = HEAD + pad8(n), cap
        cdef Head head
        cdef uint8_t* p
        if self.end + need > self.cap:
            memmove(self.stream, self.stream + self.at, used)
            self.at, self.end = 0, used
            if used + need > self.cap:
                cap = 2 * (used + need) if used else need
                p = <uint8_t*>realloc(self.stream, cap)
                if p == NULL:
                    self.tx_reason = NO_MEMORY
                    return False
                self.stream, self.cap = p, cap
        memset(&head, 0, HEAD)
        head.length, head.what = <uint32_t>n, <uint8_t>kind
        p = self.stream + self.end
        memset(p + need - HEAD, 0, HEAD)        # the padding; the header lies there when n is 0
        memcpy(p, &head, HEAD)
        if n:
            memcpy(p + HEAD, data, n)
        self.end += need
        return True

    cdef int drain(self) noexcept nogil:
        cdef uint64_t written = 0, n
        while not self.tx_reason and self.reason == 0:
            if self.sealed_at == self.sealed_end:
                n = self.end - self.at
                if n == 0:
                    self.at = self.end = 0
                    self._trim()
                    return 1
                if written >= DRAIN_BYTES_MAX:
                    return 0
                if n > RECORD_BYTES_MAX:
                    n = RECORD_BYTES_MAX
                if not self._seal(DATA, self.stream + self.at, <uint32_t>n):
                    return 0
                self.at += n
                written += n
            if not self._write():
                return 0
        return self.waiting() == 0

    cdef void _trim(self) noexcept nogil:
        """One great message is no reason to keep its memory."""
        cdef uint8_t* p
        if self.cap > STREAM_BYTES and self.cap > self.send_backlog_bytes_max:
            p = <uint8_t*>realloc(self.stream, STREAM_BYTES)
            if p != NULL:
                self.stream, self.cap = p, STREAM_BYTES

    cdef bint _seal(self, int what, const uint8_t* data, uint32_t n) noexcept nogil:
        """The next record, in `sealed`, which is empty."""
        cdef Head head
        memset(&head, 0, HEAD)
        head.length, head.what = n, <uint8_t>what
        memcpy(self.sealed, &head, HEAD)
        if not self.tx.seal(self.sealed, data, n, self.sealed + HEAD):
            self.tx_reason = NO_SEAL
            return False
        self.sealed_at, self.sealed_end = 0, HEAD + n + TAG_BYTES
        return True

    cdef bint _write(self) noexcept nogil:
        """The sealed record, or what is left of it. True: it is out."""
        cdef ssize_t n
        while True:
            n = send_(self.fd, self.sealed + self.sealed_at, self.sealed_end - self.sealed_at, MSG_NOSIGNAL | MSG_DONTWAIT)
            if n >= 0:
                self.sealed_at += n
                return self.sealed_at == self.sealed_end
            if errno != EINTR:
                break
        if errno != EAGAIN:
            self.tx_reason, self.error = BROKE, errno
        return False

    # ---- in

    cdef int pop(self, Message* m) noexcept nogil:
        cdef bint looked = False
        cdef int r
        if self.has_unread:
            self.has_unread = False
            m[0] = self.unread
            return 1
        if self.reason:
            return -1
        while True:
            r = self._message(m)
            if r:
                return r
            r = self._open()
            if r < 0:
                return -1
            if r:
                continue
            if self.ended:
                return self._end(CUT_MID if self.need or self.raw_at != self.raw_end else CUT)
            if looked:
                return 0
            looked = True
            r = self._read()
            if r < 0:
                return -1
            if r == 0 and not self.ended:
                return self._end(self.tx_reason) if self.tx_reason else 0

    cdef int _read(self) noexcept nogil:
        """One recv. 1 bytes came, 0 none (or the stream is over: `ended`), -1 the connection broke."""
        cdef uint64_t have = self.raw_end - self.raw_at
        cdef ssize_t n
        if have == 0:
            self.raw_at = self.raw_end = 0
        elif self.raw_at and RAW_BYTES - self.raw_end < SEALED_BYTES_MAX:
            memmove(self.raw, self.raw + self.raw_at, have)
            self.raw_at, self.raw_end = 0, have
        CHECK(self.raw_end < RAW_BYTES)         # a whole record was opened, and one that is not whole leaves room
        n = recv_(self.fd, self.raw + self.raw_end, RAW_BYTES - self.raw_end, MSG_DONTWAIT)
        if n > 0:
            self.raw_end += n
            return 1
        if n == 0:
            self.ended = True
        elif errno != EAGAIN and errno != EINTR:
            self.error = errno
            return self._end(BROKE)
        return 0

    cdef int _open(self) noexcept nogil:
        """Open the next record: 1 done, its bytes are in `plain` (all of the last were given out), 0 it is not there whole, -1 the end."""
        cdef uint64_t have = self.raw_end - self.raw_at
        cdef uint8_t* p = self.raw + self.raw_at
        cdef Head head
        if have < HEAD:
            return 0
        memcpy(&head, p, HEAD)
        if (head.length > <uint32_t>(RECORD_BYTES_MAX if self.known else PROOF_BYTES) or head.length & 7
                or head.zero[0] | head.zero[1] | head.zero[2]):
            self.claimed = head.length
            return self._end(BAD_LENGTH)
        if have < HEAD + head.length + TAG_BYTES:
            return 0
        if not self.rx.open(p, p + HEAD, head.length, self.plain):
            return self._end(BAD_TAG)
        self.raw_at += HEAD + head.length + TAG_BYTES
        self.plain_at, self.plain_end = 0, head.length
        if self.known and head.what == CLOSE and head.length == 0:
            return self._end(CLOSED_MID if self.need else CLOSED)
        if head.what != (DATA if self.known else PROOF):
            self.claimed = head.what
            return self._end(BAD_TYPE)
        return 1

    cdef int _message(self, Message* m) noexcept nogil:
        """The next message of the opened record: 1 and it, 0 the rest is in the next record, -1 the end."""
        cdef Head head
        cdef uint64_t left = self.plain_end - self.plain_at
        if left == 0:
            return 0
        if self.need:
            return self._part(m)
        memcpy(&head, self.plain + self.plain_at, HEAD)         # whole: all lengths are multiples of 8
        if head.length > self.message_bytes_max or head.zero[0] | head.zero[1] | head.zero[2]:
            self.claimed = head.length
            return self._end(TOO_LONG)
        self.plain_at += HEAD
        self.kind = head.what
        if pad8(head.length) > left - HEAD:
            self.got, self.need = 0, head.length
            return self._part(m)
        m.data, m.n, m.kind = self.plain + self.plain_at, head.length, self.kind
        self.plain_at += pad8(head.length)
        self.bytes_received += head.length
        return 1

    cdef int _part(self, Message* m) noexcept nogil:
        """Take what the record has of a long message. As `_message`."""
        cdef uint64_t left = self.plain_end - self.plain_at, rest = pad8(self.need) - self.got, cap
        cdef uint64_t n = left if left < rest else rest
        cdef uint8_t* p
        if self.got + n > self.inbox_cap:
            cap = 2 * (self.got + n) if self.got + n > INBOX_BYTES // 2 else INBOX_BYTES
            if cap > pad8(self.need):
                cap = pad8(self.need)
            p = <uint8_t*>realloc(self.inbox, cap)
            if p == NULL:
                return self._end(NO_MEMORY)
            self.inbox, self.inbox_cap = p, cap
        memcpy(self.inbox + self.got, self.plain + self.plain_at, n)
        self.plain_at += n
        self.got += n
        if n < rest:
            return 0
        m.data, m.n, m.kind = self.inbox, self.need, self.kind
        self.bytes_received += self.need
        self.need = 0
        return 1

    # ---- sleeping and ending

    cdef bint announce_sleep(self) noexcept nogil:
        """A socket is its own doorbell: nothing to announce, but what came already does not ring again."""
        cdef Head head
        self.drain()
        if self.reason or self.tx_reason or self.has_unread or self.plain_at != self.plain_end:
            return False
        if self.raw_end - self.raw_at < HEAD:
            return True
        memcpy(&head, self.raw + self.raw_at, HEAD)
        return self.raw_end - self.raw_at < HEAD + <uint64_t>head.length + TAG_BYTES

    cdef int _end(self, int reason) noexcept nogil:
        """The channel is over; what it still had to send is dropped. Returns -1."""
        self.reason = reason
        self.at = self.end = self.sealed_at = self.sealed_end = 0
        self.plain_at = self.plain_end = 0
        close_(self.fd)
        self.fd = -1
        return -1

    def _why(self):
        return REASONS[self.reason].format(n=self.claimed, bound=self.message_bytes_max, error=os.strerror(self.error))

    # ---- Python

    def prove(self, bytes transcript not None):
        """Send the first record: only who has the pair's key could seal this. 32 bytes."""
        if len(transcript) != PROOF_BYTES or self.tx.count:
            raise ConfigError("a proof is the first record, and 32 bytes")
        if self._seal(PROOF, transcript, PROOF_BYTES):
            self.drain()

    def proven(self, bytes transcript not None):
        """True once the peer's proof has come and ours is out. Raises PeerError when the channel ended before."""
        cdef int r = 0
        self.drain()
        if not self.known and not self.reason:
            r = self._open()
            if r == 0 and not self.ended and self._read() >= 0:
                r = self._open()
            if r == 1:
                self.known = self.plain_end == PROOF_BYTES and memcmp(self.plain, <const uint8_t*>transcript, PROOF_BYTES) == 0
                self.plain_at = self.plain_end = 0
                if not self.known:
                    self._end(BAD_PROOF)
            elif r == 0 and (self.ended or self.tx_reason):
                self._end(HUNG_UP if self.ended else self.tx_reason)
        if self.reason:
            raise PeerError(self._why())
        return self.known and self.waiting() == 0

    def fileno(self):
        """The socket, or -1 once the channel has ended."""
        return self.fd

    def close(self):
        """Say goodbye, after a last flush; what the socket has no room for is dropped. Idempotent."""
        self.has_unread = False
        if self.reason:
            return
        if self.known and self.drain() and self._seal(CLOSE, NULL, 0):
            self._write()
            shutdown(self.fd, SHUT_WR)
        self._end(HERE)
