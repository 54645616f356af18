# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""ShmRing: a Channel (channel.pyx) over a pair of segments (shm_segment.pyx).

A message travels as one record, or as several when it is longer than a quarter of the ring less 32 bytes:

      0      4      5      8       16       24        32
     +------+------+------+-------+--------+---------+----------------------+---------+
     | len  | kind | zero | seq   | left   | check   | payload, len bytes   | to 32   |
     | u32  | u8   | 3    | u64   | u64    | u64     |                      |         |
     +------+------+------+-------+--------+---------+----------------------+---------+

  left    bytes of the message from this payload on: the first record says the length, in the last len == left
  seq     counts records of one direction from 0: a stale or repeated record cannot pass
  check   nf_hash(keys, nf_hash(keys, seq, bytes 0..23), payload): keyed per session and direction (digest.pxd)

Reader      copies header and payload into private memory first and judges the copy (I14); a record that is torn, scribbled
            on, out of order or too long ends the channel with a reason. Never a crash, never an unverified byte.
Writer      never blocks. What does not fit waits in a private backlog: a message is accepted whole or not at all.
Doorbell    a reader about to block stores its sleep word, fences, and looks once more; a writer publishes, fences, and
            reads that word: one of the two must see the other (Dekker). The word holds the number of the sleep, so
            a writer rings once a sleep, not once a message.
Promises    R1 no lost wake-up.  R2 push and pop take no lock and make no system call, but to ring or, after
            1024 empty polls in a row, to ask whether the peer lives.  R3 one pop reads at most one ring's worth.
"""
import struct

from nfckpt.errors import ConfigError

from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from nfckpt.native.arena cimport CHECK
from nfckpt.native.channel cimport Channel, HERE, Message
from nfckpt.native.digest cimport nf_hash
from nfckpt.native.shm_segment cimport nf_acquire, nf_fence, nf_release

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd*, unsigned long, int)
    enum: POLLIN
cdef extern from "unistd.h" nogil:
    ssize_t write(int, const void*, size_t)

cdef enum:
    HDR = 32
    WAIT_HDR = 16
    WANT_DATA = 1
    WANT_ROOM = 2
    IDLE_POLLS = 1024

cdef enum:
    CLOSED = 2, CLOSED_MID, DIED, DIED_MID, BAD_HEAD, BAD_TAIL, BAD_LEN, TOO_LONG, BAD_SEQ, BAD_CHECK, NO_MEMORY

REASONS = {
    HERE: "closed here",
    CLOSED: "the peer closed",
    CLOSED_MID: "the peer closed in the middle of a message",
    DIED: "the peer's process is dead",
    DIED_MID: "the peer's process died in the middle of a message",
    BAD_HEAD: "the peer's write position is out of range",
    BAD_TAIL: "the peer's read position is out of range",
    BAD_LEN: "a record's length is out of bounds",
    TOO_LONG: "a message is longer than message_bytes_max",
    BAD_SEQ: "a record is out of sequence",
    BAD_CHECK: "a record failed its checksum",
    NO_MEMORY: "no memory for a message",
}


cdef _keys(uint64_t* out, bytes keys):
    words = struct.unpack("<4Q", keys)
    for i in range(4):
        out[i] = words[i] or 1          # nf_hash wants no zero word


cdef inline uint64_t _pad(uint64_t n) noexcept nogil:
    return (n + 31) & ~<uint64_t>31


cdef class ShmRing(Channel):
    """One end. `tx` is our own Segment, `rx` the peer's, opened; both are closed with the ring.

    `tx_keys`, `rx_keys`: 32 secret bytes each, the peer holds them crossed. `bell_out`: eventfd that wakes the peer.
    `pidfd`, `sock`: readable once the peer is gone (-1: none). Descriptors stay the caller's.
    Not thread-safe: one thread a process.
    """

    def __cinit__(self, *args, **kwargs):
        self.inbox_kind = -1
        self.bell_out = self.pidfd = self.sock = -1

    def __init__(self, Segment tx not None, Segment rx not None, *, bytes tx_keys not None, bytes rx_keys not None,
                 int bell_out=-1, int pidfd=-1, int sock=-1, uint64_t message_bytes_max=64 << 20,
                 uint64_t send_backlog_bytes_max=8 << 20):
        if not tx.writable or rx.writable:
            raise ConfigError("a ring needs its own segment writable and the peer's read-only")
        if message_bytes_max > <uint64_t>1 << 40:
            raise ConfigError(f"message_bytes_max = {message_bytes_max}", "at most 2**40")
        self.tx, self.rx = tx, rx
        _keys(self.tx_keys, tx_keys)
        _keys(self.rx_keys, rx_keys)
        self.tx_mask, self.rx_mask = tx.ring_bytes - 1, rx.ring_bytes - 1
        self.tx_chunk, self.rx_chunk = tx.ring_bytes // 4 - HDR, rx.ring_bytes // 4 - HDR
        self.bell_out, self.pidfd, self.sock = bell_out, pidfd, sock
        self.message_bytes_max = message_bytes_max
        self.send_backlog_bytes_max = send_backlog_bytes_max
        self.reason = 0

    def __dealloc__(self):
        free(self.wait)

    # ---- writer

    cdef int push(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil:
        cdef uint64_t left = n, put = 0
        CHECK(0 <= kind <= 255)
        if n > self.message_bytes_max:
            return -1
        if self.reason or self.tx_reason:
            return 0
        if self.wait_at != self.wait_end and not self.drain():
            if self.tx_reason or self.wait_end - self.wait_at + WAIT_HDR + n > self.send_backlog_bytes_max:
                return 0
            left = n
        else:
            while self._record(kind, data + (n - left), left, &put):
                left -= put
                if left == 0:
                    self.bytes_sent += n
                    return 1
        if self.tx_reason or not self._keep(kind, data + (n - left), left):
            return 0
        self.bytes_sent += n
        return 1

    cdef int _record(self, int kind, const uint8_t* data, uint64_t left, uint64_t* put) noexcept nogil:
        """Write the next record of a message with `left` bytes to go. 1 and `put`, or 0: no room."""
        cdef uint64_t n = left if left < self.tx_chunk else self.tx_chunk
        if not self._room(HDR + _pad(n)):
            return 0
        if n:
            memcpy(self._place(), data, n)
        self._publish(kind, n, left)
        put[0] = n
        return 1

    cdef uint8_t* reserve(self, uint64_t n) noexcept nogil:
        if self.reason or self.tx_reason or self.wait_at != self.wait_end or n > self.tx_chunk or n > self.message_bytes_max:
            return NULL
        return self._place() if self._room(HDR + _pad(n)) else NULL

    cdef void publish(self, int kind, uint64_t n) noexcept nogil:
        self._publish(kind, n, n)
        self.bytes_sent += n

    cdef uint8_t* _place(self) noexcept nogil:
        """Where the payload of the next record goes. Our own segment: the peer's mapping of it is read-only."""
        return self.tx.ring + (self.head & self.tx_mask) + HDR

    cdef void _publish(self, int kind, uint64_t n, uint64_t left) noexcept nogil:
        """The next record's n bytes are in place: put its head before them and let the peer see it."""
        cdef ShmRecord r
        cdef uint8_t* p = self._place()
        r.len = <uint32_t>n
        r.kind = <uint8_t>kind
        r.zero[0] = r.zero[1] = r.zero[2] = 0
        r.seq = self.tx_seq
        r.left = left
        r.check = nf_hash(self.tx_keys, nf_hash(self.tx_keys, r.seq, <uint8_t*>&r, 24), p, <uint32_t>n)
        memcpy(p - HDR, &r, HDR)
        self.tx_seq += 1
        self.head += HDR + _pad(n)
        nf_release(&self.tx.h.head, self.head)
        self._ring_if(WANT_DATA)

    cdef bint _room(self, uint64_t need) noexcept nogil:
        cdef uint64_t tail
        if self.tx.ring_bytes - (self.head - self.seen_tail) >= need:
            return True
        tail = nf_acquire(&self.rx.h.tail)
        if tail - self.seen_tail > self.head - self.seen_tail or tail & 31:     # went back, or past what was written
            self.tx_reason = BAD_TAIL
            return False
        self.seen_tail = tail
        return self.tx.ring_bytes - (self.head - tail) >= need

    cdef void _ring_if(self, uint64_t want) noexcept nogil:
        """Call after publishing a position: wake the peer if it sleeps for it. At most once a sleep."""
        cdef uint64_t word, one = 1
        nf_fence()
        word = nf_acquire(&self.rx.h.sleep)
        if word & want and word != self.rung:
            self.rung = word
            self.bells += 1
            write(self.bell_out, &one, 8)

    cdef int _keep(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil:
        """Append to the backlog; the caller has checked its bound. 0: no memory, and the channel ends."""
        cdef uint64_t used = self.wait_end - self.wait_at, need = used + WAIT_HDR + n, cap = need * 2
        cdef uint64_t head[2]
        cdef uint8_t* p
        if self.wait_end + WAIT_HDR + n > self.wait_cap:
            if self.wait_at > used and need <= self.wait_cap:
                memmove(self.wait, self.wait + self.wait_at, used)
            else:
                if used == 0:
                    cap = need
                p = <uint8_t*>malloc(cap)
                if p == NULL:
                    self.tx_reason = NO_MEMORY
                    return 0
                memcpy(p, self.wait + self.wait_at, used)
                free(self.wait)
                self.wait, self.wait_cap = p, cap
            self.wait_at, self.wait_end = 0, used
        head[0], head[1] = n, <uint64_t>kind
        memcpy(self.wait + self.wait_end, head, WAIT_HDR)
        memcpy(self.wait + self.wait_end + WAIT_HDR, data, n)
        self.wait_end += WAIT_HDR + n
        return 1

    cdef int drain(self) noexcept nogil:
        cdef uint64_t head[2]
        cdef uint64_t put = 0
        if self.reason or self.tx_reason:
            return self.wait_at == self.wait_end
        while self.wait_at != self.wait_end:
            memcpy(head, self.wait + self.wait_at, WAIT_HDR)
            if not self._record(<int>head[1], self.wait + self.wait_at + WAIT_HDR, head[0], &put):
                return 0
            if put == head[0]:
                self.wait_at += WAIT_HDR + put
            else:               # half sent: its header moves up, over bytes already gone (put = chunk > 16)
                head[0] -= put
                self.wait_at += put
                memcpy(self.wait + self.wait_at, head, WAIT_HDR)
        self.wait_at = self.wait_end = 0
        if self.wait_cap > self.send_backlog_bytes_max:     # one great message is no reason to keep its memory
            free(self.wait)
            self.wait, self.wait_cap = NULL, 0
        return 1

    # ---- reader

    cdef int pop(self, Message* m) noexcept nogil:
        cdef int r
        cdef bint looked = False
        if self.has_unread:
            self.has_unread = False
            m[0] = self.unread
            return 1
        if self.reason:
            return -1
        while True:
            if self.seen_head == self.tail:
                if looked:
                    return 0                    # R3: the rest of a long message is for the next call
                looked = True
                self.seen_head = nf_acquire(&self.rx.h.head)
                if self.seen_head == self.tail:
                    if self.peer_gone or nf_acquire(&self.rx.h.closed):
                        self.seen_head = nf_acquire(&self.rx.h.head)    # its last words, before it was gone
                        if self.seen_head == self.tail:
                            if nf_acquire(&self.rx.h.closed):
                                self.reason = CLOSED if self.inbox_kind < 0 else CLOSED_MID
                            else:
                                self.reason = DIED if self.inbox_kind < 0 else DIED_MID
                            return -1
                    elif self.tx_reason:
                        self.reason = self.tx_reason
                        return -1
                    else:
                        self.idle += 1
                        if self.idle & (IDLE_POLLS - 1) == 0:
                            self.look_for_death()
                        return 0
                if self.seen_head - self.tail > self.rx.ring_bytes or self.seen_head & 31:
                    self.reason = BAD_HEAD
                    return -1
            self.idle = 0
            r = self._take(m)
            if r != 0:
                return r

    cdef uint64_t waiting(self) noexcept nogil:
        return self.wait_end - self.wait_at

    cdef uint64_t pushed_to(self) noexcept nogil:
        return self.head if self.wait_at == self.wait_end else UINT64_MAX

    cdef uint64_t read_by_peer(self) noexcept nogil:
        """In the terms of `head`. 0 where the peer lies."""
        cdef uint64_t tail
        if self.rx is None or self.rx.h == NULL:
            return self.seen_tail
        tail = nf_acquire(&self.rx.h.tail)
        return tail if tail - self.seen_tail <= self.head - self.seen_tail else 0

    cdef int _take(self, Message* m) noexcept nogil:
        """Copy one record out, then judge the copy. 1 message complete, 0 more to come, -1 broken."""
        cdef ShmRecord r
        cdef uint8_t* p = self.rx.ring + (self.tail & self.rx_mask)
        cdef uint64_t need
        memcpy(&r, p, HDR)
        need = HDR + _pad(r.len)
        if r.seq != self.rx_seq:
            self.reason = BAD_SEQ
        elif (r.len > self.rx_chunk or need > self.seen_head - self.tail or r.zero[0] | r.zero[1] | r.zero[2]
              or r.len != (r.left if r.left < self.rx_chunk else self.rx_chunk)):
            self.reason = BAD_LEN
        elif r.left > self.message_bytes_max:
            self.reason = TOO_LONG
        elif self.inbox_kind >= 0 and (r.left != self.left or r.kind != self.inbox_kind):
            self.reason = BAD_SEQ
        if self.reason:
            return -1
        if self.inbox_kind < 0:
            self.got, self.left = 0, r.left
            if self.inbox == NULL or self.inbox_cap < r.left:
                free(self.inbox)
                self.inbox_cap = r.left if r.left > 64 else 64
                self.inbox = <uint8_t*>malloc(self.inbox_cap)
                if self.inbox == NULL:
                    self.reason = NO_MEMORY
                    return -1
            self.inbox_kind = r.kind
        memcpy(self.inbox + self.got, p + HDR, r.len)
        if r.check != nf_hash(self.rx_keys, nf_hash(self.rx_keys, r.seq, <uint8_t*>&r, 24), self.inbox + self.got, r.len):
            self.reason = BAD_CHECK
            return -1
        self.got += r.len
        self.left -= r.len
        self.rx_seq += 1
        self.tail += need
        nf_release(&self.tx.h.tail, self.tail)
        self._ring_if(WANT_ROOM)
        if self.left:
            return 0
        m.data, m.n, m.kind = self.inbox, self.got, self.inbox_kind
        self.inbox_kind = -1
        self.bytes_received += self.got
        return 1

    # ---- sleeping and ending

    cdef bint announce_sleep(self) noexcept nogil:
        cdef uint64_t want = WANT_DATA
        cdef uint64_t word
        if self.reason or self.tx_reason:
            return False
        if not self.drain():
            want |= WANT_ROOM
        self.sleeps += 1
        word = self.sleeps << 2
        nf_release(&self.tx.h.sleep, word | want)
        nf_fence()
        if (nf_acquire(&self.rx.h.head) != self.tail or nf_acquire(&self.rx.h.closed) or self.peer_gone
                or (want & WANT_ROOM and nf_acquire(&self.rx.h.tail) != self.seen_tail)):
            nf_release(&self.tx.h.sleep, word)
            return False
        return True

    cdef void awake(self) noexcept nogil:
        if not self.reason:
            nf_release(&self.tx.h.sleep, self.sleeps << 2)

    cdef void look_for_death(self) noexcept nogil:
        """One poll(2) of the peer's pidfd and socket; what it wrote before is still read first."""
        cdef pollfd fds[2]
        fds[0].fd, fds[1].fd = self.pidfd, self.sock        # poll ignores negative ones
        fds[0].events = fds[1].events = POLLIN
        fds[0].revents = fds[1].revents = 0
        if poll(fds, 2, 0) > 0:
            self.peer_gone = True

    # ---- Python

    def peer_is_gone(self):
        """Ask the kernel now (one system call) whether the peer's process or socket has ended."""
        if not self.reason:
            self.look_for_death()
        return self.peer_gone

    def _why(self):
        return REASONS[self.reason]

    def crumble(self, uint64_t nbytes):
        """The peer is gone, and with it what waited for it: free so much of the segments, to be closed without a pause. Nothing but `close` may be
        called from here on. True: nothing is left but that."""
        self.reason = self.reason or HERE
        self.wait_at = self.wait_end
        return self.tx.h == NULL or (self.rx.crumble(nbytes) and self.tx.crumble(nbytes))

    def close(self):
        """Say goodbye, after a last flush; what the ring has no room for is dropped. Idempotent."""
        cdef uint64_t one = 1
        if self.tx is None or self.tx.h == NULL:
            return
        self.drain()
        nf_release(&self.tx.h.closed, 1)
        if self.bell_out >= 0:
            write(self.bell_out, &one, 8)
        self.reason = self.reason or HERE
        self.tx.close()
        self.rx.close()
