# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""ActivePath: acks in, releases out, captures: the poll boundary of the active, without the GIL.

Picture     boundary(now)   ring ─acks─► engine.ack ─► gate.commit ─► gate.leave ─► ports
                            due, in_flight == 0 ─► writer.capture ─► ring (or staged, for a channel that Python drives)
            run()           boundary, receive, on_burst, complete, and again, until Python has something to do

Who decides nothing here does: replica/active.py owns the states, sets `holding` and `sync_pages`, and is asked for everything that
is no ack. One implementation serves both transports: shared memory calls it from `run`, TCP through `on_ack` and `captured`.

Promises    I5: commit comes from acks of the present session only, for epochs that were shipped.
            I1: a capture only with no frame in the app.
"""
from nfckpt.errors import PeerError, StateError

from libc.stdlib cimport calloc, free
from nfckpt.native.ack cimport ACK_BYTES, Ack, KIND_ACK, KIND_EPOCH
from nfckpt.native.agent cimport raise_unsendable
from nfckpt.native.burst cimport Burst
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.epoch cimport Header
from nfckpt.native.function cimport NativeFunction
from nfckpt.native.port_set cimport raise_gone
from nfckpt.native.shm_ring cimport ShmMessage

cdef enum:
    SCAN_PAGES_MAX = 1024
    BUCKETS = 4096

cdef enum Why:
    TIME = 0                    # `until_ns` has come
    MAIL = 1                    # a message that is no ack waits, or the channel ended
    IDLE = 2                    # nothing came for `spin_ns`
    GONE = 3                    # a port is gone
    APP = 4                     # the app's on_burst did not return 0
    UNSENDABLE = 5              # a frame was sent to a port that does not exist, or with a length that no frame has


cdef class ActivePath:
    """`pages_max`: pages that may ride on one epoch of a sync."""

    def __cinit__(self, Agent agent not None, Engine engine not None, EpochWriter writer not None, uint32_t pages_max):
        self.agent, self.engine, self.writer, self.pages_max = agent, engine, writer, pages_max

    def begin(self, uint64_t session, uint64_t term, uint64_t now):
        """A follower was let in: a new session, nothing heard yet."""
        self.session, self.term = session, term
        self.peer_stamp = self.echo_ns = 0
        self.heard_ns = now
        self.staged_bytes = 0
        self.over = False

    def end(self):
        """The session is over: what is staged is nobody's, and nothing is captured until the next one begins."""
        self.staged_bytes = 0
        self.over = True

    def attach(self, ShmRing ring):
        """Acks come from, and records go to, this ring; None: Python carries them."""
        self.has_ring = ring is not None
        if ring is not None:
            self._ring = ring

    # ── acks ─────────────────────────────────────────────────────────────────────────────────────

    def on_ack(self, const uint8_t[::1] payload not None, uint64_t now, bint commits):
        """Take one ACK (`commits`) or BEAT_ACK. Raises PeerError when it does not belong to this session or its epochs."""
        cdef int r = self.take_ack(&payload[0], payload.shape[0], now, commits) if payload.shape[0] else -1
        if r == -1:
            raise PeerError(f"ack of {payload.shape[0]} bytes, not {ACK_BYTES}")
        if r == -2:
            raise PeerError("ack of another session")
        if r == -3:
            raise PeerError(f"ack of an epoch that was not shipped (committed {self.engine.committed})")

    cdef int take_ack(self, const uint8_t* p, uint64_t n, uint64_t now, bint commits) noexcept nogil:
        cdef const Ack* ack = <const Ack*>p
        cdef uint64_t captured_ns = 0
        cdef int r
        if n != ACK_BYTES:
            return -1
        if ack.session != self.session:
            return -2
        self.heard_ns = now
        self.peer_stamp = ack.stamp_ns
        self.peer_inputs = ack.amount
        self.peer_flags = ack.flags
        if commits:
            r = self.engine.ack(ack.epoch, &captured_ns)
            if r < 0:
                return -3
            if r:
                self.agent.gate.commit_through(ack.epoch)
                self.commits += 1
                self.hold_ns_sum += now - captured_ns
        return 0

    @property
    def attached(self):
        """Acks and records go through a ring by themselves."""
        return bool(self.has_ring)

    def heard(self, uint64_t now):
        """Some other message of the follower."""
        self.heard_ns = now

    # ── captures ─────────────────────────────────────────────────────────────────────────────────

    def poll(self, uint64_t now):
        """Cut if it is due. True: answer "no packets". The record, if one was captured, is in `staged`."""
        return bool(self.cut(now))

    cdef bint cut(self, uint64_t now) noexcept nogil:
        cdef Header want
        cdef bint crowded
        if not self.holding or self.over or self.staged_bytes:
            return False
        crowded = self.agent.names.n * 2 > self.agent.names.capacity or self.agent.gate.crowded()
        if not self.engine.is_due(now, self.sync_pages or self.agent.has_pending(), crowded):
            return False
        if self.agent.in_flight:
            return self.engine.quiet(now)
        want.session = self.session
        want.term = self.term
        want.epoch = self.engine.epoch
        want.now_ns = <uint64_t>(<int64_t>now + self.clock_offset_ns)
        want.echo_ns = self.echo_ns
        want.ports_empty = self.agent.ports_empty
        self.staged_bytes = self.writer.capture(self.agent.arena, self.agent.gate, self.agent.names, &want,
                                                self.pages_max if self.sync_pages else 0, SCAN_PAGES_MAX)
        if self.staged_bytes < 0:           # no memory for the record: nothing was drained, the epoch grows
            self.staged_bytes = 0
            return False
        self.staged_ns = now
        self.echo_ns = self.peer_stamp
        self.agent.ports_empty = 0
        if self.sync_pages and self.writer.sync_done:
            self.sync_pages = False
        self.engine.capture()
        self.agent.epoch = self.engine.epoch
        if self.has_ring:
            self.push()
        return True

    cdef bint push(self) noexcept nogil:
        if self._ring.push(KIND_EPOCH, self.writer.buf, <uint64_t>self.staged_bytes) != 1:
            return False
        self.staged_bytes = 0
        self.engine.took(self.staged_ns)
        return True

    @property
    def staged(self):
        """The captured record that the channel has not taken yet, or None. Valid until `shipped`."""
        if self.staged_bytes == 0:
            return None
        return <uint8_t[:self.staged_bytes]>self.writer.buf

    def shipped(self):
        """The channel took `staged`."""
        self.staged_bytes = 0
        self.engine.took(self.staged_ns)

    def beat(self):
        """(echo_ns, ports_empty) for a beat: the same word as a record carries, and it starts anew. While the open epoch has
        consumed frames that no record names yet, "empty" would disown them: then the mask is 0 and nothing starts anew. So
        too while a record waits in staging: the beat overtakes it."""
        cdef uint64_t echo = self.echo_ns
        cdef uint32_t empty = self.agent.ports_empty
        if self.agent.names.n or self.staged_bytes:
            return int(echo), 0
        self.echo_ns = self.peer_stamp
        self.agent.ports_empty = 0
        return int(echo), int(empty)

    # ── how long a capturing poll takes ──────────────────────────────────────────────────────────

    def measure(self, bint on):
        """Start (anew) or stop noting how long each capturing poll takes, clock reads included."""
        if on:
            free(self.pauses_seen)
            self.pause_ns = <uint32_t*>calloc(BUCKETS, 4)
            self.pauses_seen = self.pause_ns
        else:
            self.pause_ns = NULL

    cdef void note_pause(self, uint64_t ns) noexcept nogil:
        cdef uint64_t b = ns // 16
        self.pause_ns[b if b < BUCKETS else BUCKETS - 1] += 1

    def pauses(self):
        """dict pause_us_p50, pause_us_p99 of the last measurement, µs."""
        cdef uint64_t total = 0, run = 0
        cdef int i
        out = {}
        if self.pauses_seen == NULL:
            return out
        for i in range(BUCKETS):
            total += self.pauses_seen[i]
        for i in range(BUCKETS):
            run += self.pauses_seen[i]
            for name, share in (("pause_us_p50", 0.5), ("pause_us_p99", 0.99)):
                if name not in out and total and run >= share * total:
                    out[name] = (i + 1) * 16 / 1000.0        # C ints: without the point it would be cut off
        return out

    def __dealloc__(self):
        free(self.pauses_seen)

    # ── without the GIL ──────────────────────────────────────────────────────────────────────────

    cdef int boundary(self, uint64_t now) noexcept nogil:
        """0 read on, 1 answer "no packets", 2 Python has a message to look at (or the channel ended)."""
        cdef ShmMessage m
        cdef int r
        self.polls += 1
        if self.has_ring:
            while True:
                r = self._ring.pop(&m)
                if r != 1:
                    break
                if m.kind != KIND_ACK or self.take_ack(m.data, m.n, now, True) < 0:
                    self._ring.put_back(&m)
                    return 2
            if r < 0:
                return 2
            if self._ring.wait_at != self._ring.wait_end:       # nobody else does until the next push, which may wait for these acks
                self._ring.drain()
            if self.staged_bytes and not self.push():
                self.agent.gate.leave()
                return 0
        self.agent.gate.leave()
        return self.cut(now)

    def run(self, NativeFunction app not None, Burst burst not None, int max_frames, uint64_t until_ns, uint64_t spin_ns):
        """Poll, and poll again, until there is something for Python: returns one of WHY. `burst` owns no frame."""
        cdef int why = TIME, n
        cdef uint64_t now, idle_ns = 0
        cdef Agent agent = self.agent
        with nogil:
            while True:
                now = monotonic_ns()
                if now >= until_ns:
                    break
                agent.c.polls += 1
                n = self.boundary(now)
                if n:
                    if self.pause_ns != NULL and n == 1:
                        self.note_pause(monotonic_ns() - now)
                    if n == 2:
                        why = MAIL
                        break
                    idle_ns = 0
                    continue
                burst.clear()
                n = agent.receive(burst, max_frames, now)
                if n == 0:
                    if idle_ns == 0:
                        idle_ns = now
                    elif now - idle_ns > spin_ns:
                        why = IDLE
                        break
                    continue
                if n < 0:
                    why = GONE
                    break
                idle_ns = 0
                if app.on_burst(burst, <uint64_t>(<int64_t>now + self.clock_offset_ns)):
                    why = APP
                    break
                if agent.complete(burst) < 0:
                    why = UNSENDABLE
                    break
        if why == GONE:
            raise_gone(agent._ports)
        if why == APP:
            raise RuntimeError("on_burst found a broken invariant")
        if why == UNSENDABLE:
            raise_unsendable(agent, burst)
        return why


WHY_TIME, WHY_MAIL, WHY_IDLE = TIME, MAIL, IDLE
