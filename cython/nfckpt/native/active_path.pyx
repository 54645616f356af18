# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""ActivePath: acks in, releases out, captures: the poll boundary of the active, without the GIL.

Picture     boundary(now)   channel ─acks─► engine.ack ─► gate.commit ─► gate.leave ─► ports
                            due, in_flight == 0 ─► writer.capture ─► the ring itself, or staging ─► channel (or `staged`, where Python carries it)
            run()           boundary, receive, on_burst, complete, and again, until Python has something to do

Who decides nothing here does: replica/active.py owns the states, sets `holding` and `sync_pages`, and is asked for everything that
is no ack. A native Channel (shared memory, TCP) is attached; without one (a simulator's) Python carries records and acks.

Promises    I5: commit comes from acks of the present session only, for epochs that were shipped.
            I1: a capture only with no frame in the app.
"""
from nfckpt.errors import PeerError, StateError

from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport calloc, free
from nfckpt.native.ack cimport ACK_BYTES, Ack, KIND_ACK, KIND_EPOCH
from nfckpt.native.agent cimport raise_unsendable
from nfckpt.native.burst cimport Burst
from nfckpt.native.channel cimport Channel, Message
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.arena cimport LINE
from nfckpt.native.epoch cimport Header, OutputHead, record_bytes_max
from nfckpt.native.fault cimport (
    ACK_READ, BEFORE_CAPTURE, CAPTURED, PAGES_CAPTURED, SHIPPED, board, digest_due, fault, note_digest,
)
from nfckpt.native.function cimport NativeFunction
from nfckpt.native.gate cimport Gate, Held
from nfckpt.native.patience cimport Patience
from nfckpt.native.port_set cimport raise_gone

cdef enum:
    BUCKETS = 4096

cdef enum Why:
    TIME = 0                    # `until_ns` has come
    MAIL = 1                    # a message that is no ack waits, or the channel ended
    IDLE = 2                    # nothing came, and patience is at its end
    GONE = 3                    # a port is gone
    APP = 4                     # the app's on_burst did not return 0
    UNSENDABLE = 5              # a frame was sent to a port that does not exist, or with a length that no frame has


cdef class ActivePath:
    """`pages_max`: pages that may ride on one epoch of a sync; `pause_us`: how long a poll with pages may take, about."""

    def __cinit__(self, Agent agent not None, Engine engine not None, EpochWriter writer not None, uint32_t pages_max,
                  uint64_t pause_us=250):
        self.agent, self.engine, self.writer = agent, engine, writer
        self.sync = PageSync(agent.arena, pages_max, pause_us)
        self.staging = Staging(record_bytes_max(agent.arena, agent.gate, agent.names, pages_max))
        self.leave_until_ns = UINT64_MAX

    def begin(self, uint64_t session, uint64_t term, uint64_t now):
        """A follower was let in: a new session, nothing heard yet."""
        self.session, self.term = session, term
        self.peer_stamp = self.echo_ns = 0
        self.heard_ns = now
        self.staging.clear()
        self.over = False
        if self.encodes:
            self._encoder.restart()

    def end(self):
        """The session is over: what is staged is nobody's, and nothing is captured until the next one begins."""
        self.staging.clear()
        self.over = True
        self.shipping = False
        self.agent.ship(None)

    def attach(self, Channel channel):
        """Acks come from, and records go to, this channel; None: Python carries them."""
        self.has_channel = channel is not None
        self.channel = channel
        if self.shipment is not None:
            self.shipment.attach(channel)

    def ship_inputs(self):
        """Standbys have no tap: from now on each gets its inputs from here, once its own buffer is open."""
        self.shipment = Shipment()

    def encode_with(self, DeltaEncoder encoder):
        """Records of sessions that begin from now on go through `encoder`: the channel is one where bytes cost. None: as they are."""
        self.encodes = encoder is not None
        if encoder is not None:
            self._encoder = encoder
        self.agent.keep_inputs(encoder.kept if encoder is not None else None)

    def tap_opened(self):
        """The follower's tap buffers: outputs may be told by their inputs, and inputs be shipped."""
        if self.shipment is not None:
            self.shipment.begin(self.session)
            self.agent.ship(self.shipment)
            self.shipping = True
        if self.encodes:
            self._encoder.from_inputs = True

    def tell_released(self):
        """What left since, to a standby that cannot see it: once a ms."""
        if self.shipping and self.has_channel:
            self.shipment.send(self.agent.gate.released_through)

    def shipment_out(self):
        """Where Python carries it: the INPUTS message that waits, or None."""
        return self.shipment.take(self.agent.gate.released_through) if self.shipping else None

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
                fault(ACK_READ)
        return 0

    cdef int mail(self, uint64_t now) noexcept nogil:
        """Take all acks that have come: how many. -1: what comes next is for Python, or the channel has ended."""
        cdef Message m
        cdef int r, n = 0
        while True:
            r = self.channel.pop(&m)
            if r != 1:
                return n if r == 0 else -1
            if m.kind != KIND_ACK or self.session == 0 or self.over or self.take_ack(m.data, m.n, now, True) < 0:
                self.channel.put_back(&m)
                return -1
            n += 1

    def take_acks(self, uint64_t now):
        """Take all acks that have come, and hand on what waits: how many. -1: what comes next is for Python, or the channel has ended."""
        cdef int n = self.mail(now)
        self.channel.drain()
        return n

    @property
    def attached(self):
        """Acks and records go through a channel by themselves."""
        return bool(self.has_channel)

    def heard(self, uint64_t now):
        """Some other message of the follower."""
        self.heard_ns = now

    # ── captures ─────────────────────────────────────────────────────────────────────────────────

    def poll(self, uint64_t now):
        """Cut if it is due. True: answer "no packets". The record, if one was captured, is in `staged`."""
        return bool(self.cut(now))

    cdef bint cut(self, uint64_t now) noexcept nogil:
        cdef Header want
        cdef bint crowded, after_cut = self.captured
        cdef uint64_t n, coded
        cdef uint8_t* buf
        cdef uint8_t* in_place
        self.captured = False
        if not self.holding or self.over:
            return False
        self.pages_ride = self.sync_pages and self.sync.ready(self.engine.committed)
        crowded = self.agent.names.n * 2 > self.agent.names.capacity or self.agent.gate.crowded()
        # pages alone are no reason to cut twice in a row: between two groups the app gets its packets
        if self.engine.is_due(now, (self.pages_ride and not after_cut) or self.agent.has_pending(now), crowded,
                              self.agent.gate.tail - self.agent.gate.captured, <uint64_t>self.agent.arena.marks.n * LINE) < 0:
            return False
        buf = self.staging.room()
        if self.shipping and not self.shipment.clear(self.agent.gate.released_through):
            buf = NULL                      # a record follows the frames that it names
        if buf == NULL:                     # the channel is behind: the open epoch grows
            self.staging_full += 1
            return False
        if self.agent.in_flight:
            return self.engine.quiet(now)
        fault(BEFORE_CAPTURE)
        want.session = self.session
        want.term = self.term
        want.epoch = self.engine.epoch
        want.now_ns = <uint64_t>(<int64_t>now + self.clock_offset_ns)
        want.echo_ns = self.echo_ns
        want.ports_empty = self.agent.ports_empty
        self.agent.ages(now, want.ages)
        n = self.writer.measure(self.agent.arena, self.agent.gate, self.agent.names, want.epoch, self.sync, self.pages_ride)
        # straight into the ring where it allows and nothing waits before it
        in_place = self.channel.reserve(n) if self.has_channel and not self.encodes and self.staging.count == 0 else NULL
        self.writer.capture(self.agent.arena, self.agent.gate, self.agent.names, &want, self.sync, buf if in_place == NULL else in_place)
        if digest_due(want.epoch):
            note_digest(board, want.session, want.epoch, self.agent.arena.base, self.agent.arena.size)
        fault(CAPTURED)
        if self.pages_ride:
            fault(PAGES_CAPTURED)
        self.captured = True
        self.cut_ns = now
        self.echo_ns = self.peer_stamp
        self.agent.ports_empty = 0
        if self.sync.done:
            self.sync_pages = False
        self.engine.capture()
        self.agent.epoch = self.engine.epoch
        if in_place != NULL:
            self.channel.publish(KIND_EPOCH, n)
            self.engine.took(now)
            fault(SHIPPED)
            return True
        coded = self._encoder.encode(buf, n, self.agent._ports.n) if self.encodes else n
        self.staging.put(coded, n, now)
        if self.has_channel:
            self.push()
        return True

    cdef void push(self) noexcept nogil:
        """Hand on what is staged. Behind a record that the channel has only half handed on, the next waits here rather than in its
        backlog: there it would be copied once more."""
        while self.staging.count:
            if self.channel.waiting() and not self.channel.drain():
                return
            if self.channel.push(KIND_EPOCH, self.staging.oldest(), self.staging.nbytes[self.staging.first]) != 1:
                break
            self.engine.took(self.staging.pop())
            fault(SHIPPED)
        self.channel.drain()

    @property
    def staged(self):
        """The oldest captured record that the channel has not taken yet, or None. Valid until `shipped`."""
        if self.staging.count == 0:
            return None
        return <uint8_t[:self.staging.nbytes[self.staging.first]]>self.staging.oldest()

    def shipped(self):
        """The channel took `staged`."""
        self.engine.took(self.staging.pop())

    # ── what a capture costs ─────────────────────────────────────────────────────────────────────

    cdef bint timed(self) noexcept nogil:
        """Does somebody ask how long the poll took that has just captured?"""
        return self.pages_ride or self.engine.hold.adaptive or self.pause_ns != NULL

    def spent(self, uint64_t ns):
        """The poll that captured took `ns`, shipping included. For a loop in Python; `run` sees for itself."""
        self.charge(ns)

    cdef void charge(self, uint64_t ns) noexcept nogil:
        if self.pages_ride:                 # the sync's cost bounds its groups, and says nothing about the hold
            self.sync.took(ns)
        else:
            self.engine.hold.spent(self.cut_ns, ns)
        if self.pause_ns != NULL:
            self.note_pause(ns)

    def outputs_of(self, epoch):
        """OUTPUTS (wire/messages.py) of a shipped epoch, whole, as its record has them: the gate holds them until it is committed.
        Raises PeerError for any other epoch."""
        cdef Gate gate = self.agent.gate
        cdef uint64_t seq
        cdef Held* held
        cdef OutputHead head
        if not self.engine.committed < epoch < self.engine.epoch:
            raise PeerError(f"outputs of epoch {epoch} were asked for (committed {self.engine.committed})")
        parts = [int(self.session).to_bytes(8, "little"), epoch.to_bytes(8, "little")]
        for seq in range(gate.head, gate.captured):
            held = &gate.held[<uint32_t>seq & gate.mask]
            if held.epoch == epoch:
                head.port, head.length, head.zero = held.port, held.length, 0
                parts.append((<const uint8_t*>&head)[:sizeof(OutputHead)])
                parts.append(held.data[:held.length].ljust((held.length + 7) // 8 * 8, b"\0"))
        return b"".join(parts)

    def beat(self):
        """(echo_ns, ports_empty) for a beat: the same word as a record carries, and it starts anew. While the open epoch has
        consumed frames that no record names yet, "empty" would disown them: then the mask is 0 and nothing starts anew. So
        too while a record waits in staging: the beat overtakes it."""
        cdef uint64_t echo = self.echo_ns
        cdef uint32_t empty = self.agent.ports_empty
        if self.agent.names.n or self.staging.count:
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
                    out[name] = (i + 1) * 16 / 1000.0
        return out

    def __dealloc__(self):
        free(self.pauses_seen)

    # ── without the GIL ──────────────────────────────────────────────────────────────────────────

    cdef int boundary(self, uint64_t now) noexcept nogil:
        """0 read on, 1 answer "no packets", 2 Python has a message to look at (or the channel ended)."""
        cdef bint stop
        self.polls += 1
        if self.has_channel:
            if self.mail(now) < 0:
                return 2
            self.push()
        stop = self.cut(now)
        # what was committed leaves in a poll that does not capture: that keeps the pause short, and the next poll is near
        if not self.captured and now < self.leave_until_ns:
            self.agent.gate.leave()
        return stop

    def run(self, NativeFunction app not None, Burst burst not None, int max_frames, uint64_t until_ns, Patience patience not None):
        """Poll, and poll again, until there is something for Python: returns one of WHY. `burst` owns no frame."""
        cdef int why = TIME, n
        cdef uint64_t now
        cdef Agent agent = self.agent
        with nogil:
            while True:
                now = monotonic_ns()
                if now >= until_ns:
                    break
                agent.c.polls += 1
                n = self.boundary(now)
                if n:
                    if self.captured and self.timed():
                        self.charge(monotonic_ns() - now)
                    if n == 2:
                        why = MAIL
                        break
                    patience.busy()
                    continue
                burst.clear()
                n = agent.receive(burst, max_frames, now)
                if n == 0:
                    if patience.idle(now):
                        why = IDLE
                        break
                    continue
                if n < 0:
                    why = GONE
                    break
                patience.busy()
                if self.holding:
                    self.writer.ask(agent.arena, self.engine.epoch)
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
