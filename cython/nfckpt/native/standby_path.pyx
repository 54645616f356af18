# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""StandbyPath: what the standby does with every frame and every record, without the GIL.

Order of one epoch (I7)     whole in private memory → checked → session, term and number as due → names and outputs registered
                            → **ack** → swapped into the arena → its window compared
An encoded one (checkpoint/delta.py) is decoded first: against the arena, which is at the epoch before, and the tap.

A native Channel (shared memory, TCP) is attached and serves `run`; without one (a simulator's) Python calls `commit`. States
are replica/standby.py's; everything that is no epoch is handed to it.
"""
from nfckpt.errors import PeerError, StateError

from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t
from libc.string cimport memcpy
from nfckpt.native.ack cimport ACK_BYTES, Ack, CUT_OFF, KIND_ACK, KIND_EPOCH, KIND_INPUTS, PORT_DOWN, TAP_GAP
from nfckpt.native.channel cimport Channel, Message
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.delta_decoder cimport DELTA_MISMATCH, DeltaDecoder, NO_INPUT, delta_fault, is_delta
from nfckpt.native.digest cimport nf_hash
from nfckpt.native.epoch cimport (
    Record, SYNC_LAST, WINDOW, record_agrees, record_apply, record_ask, record_fault, record_parse, record_register,
)
from nfckpt.native.fault cimport (
    ACKED, APPLIED, PAGES_APPLIED, RECORD_READ, REGISTERED, board, digest_due, fault, note_digest,
)
from nfckpt.native.keyed_fifo cimport Entry
from nfckpt.native.patience cimport Patience
from nfckpt.native.port_set cimport MAX_PORTS, raise_gone
from nfckpt.native.shipment cimport ShipmentHead

cdef enum:
    BATCH = 16                  # records between two looks at the tap, and bursts of 256 a look reads of each port: what
    LOOK = 32                   # the records of full bursts answer for. Less, and under load the ports' rings overflow
    SECOND = 1000000000

cdef enum Why:
    TIME = 0
    MAIL = 1                    # a message for Python waits, or the channel ended
    IDLE = 2                    # nothing came, and patience is at its end
    GONE = 3
    DEAD = 4                    # the kernel says that the active is

cdef enum Fault:                # of `take`; 1 to 99 are those of record_parse, from 200 those of DeltaDecoder
    OTHER_SESSION = 100
    OTHER_EPOCH = 101
    EARLY_PAGES = 102
    UNSENT_STAMP = 103
    ENCODED = 200


cdef class StandbyPath:
    """`arena` is blank; `secret`: 32 bytes shared by the pair; `n_ports`: of the active; `record_bytes_max`: the most that an encoded
    record may say it decodes to. Without a `tap` the state is followed and nothing can be replayed or emitted again: names and
    outputs are checked, not kept."""

    def __cinit__(self, Tap tap, Arena arena not None, bytes secret, uint64_t now, int n_ports=0,
                  uint64_t record_bytes_max=256 << 20):
        if len(secret) != 32:
            raise StateError("the secret must be 32 bytes")
        if n_ports > MAX_PORTS:
            raise StateError(f"an active of {n_ports} ports; at most {MAX_PORTS}")
        memcpy(self.secret, <const uint8_t*>secret, 32)
        self.tap, self.arena = tap, arena
        self.has_tap = tap is not None
        self.n_ports = len(tap.ports) if self.has_tap else n_ports
        self.heard_ns = now
        self._decoder = DeltaDecoder(secret, record_bytes_max)

    def begin(self, uint64_t session, uint64_t term, uint64_t epoch):
        """The active let us in: its first record will be `epoch`."""
        self.session, self.term, self.epoch = session, term, epoch - 1
        self._apart = self._apart_before = INT64_MAX
        self._decoder.begin(epoch)

    def attach(self, Channel channel):
        """Records come from, and acks go to, this channel; None: Python carries them."""
        self.has_channel = channel is not None
        self.channel = channel

    def watch(self, LifeWatch life):
        """`run` ends as soon as this life does; None: nobody's."""
        self.has_watch = life is not None
        self._watch = life

    @property
    def attached(self):
        """Acks go into a channel by themselves."""
        return bool(self.has_channel)

    def heard(self, uint64_t now):
        """Some other message of the active."""
        self.heard_ns = now

    def echoed(self, uint64_t stamp_ns):
        """The active answers this stamp of ours: it lived then."""
        self.alive_ns = max(self.alive_ns, stamp_ns)

    # ── one record ───────────────────────────────────────────────────────────────────────────────

    def commit(self, uint8_t[::1] memory not None, uint64_t now):
        """Take one record: register, apply. True: send an ack now. False: nothing was taken; later: no room in the tap, or
        (`missing`) it lacks an input that the record is told by; or never: `divergent_epoch`.

        `memory` is writable, private, and the record's for good. Raises PeerError when the record does not belong here.
        """
        cdef int r = self.take(&memory[0], memory.shape[0], now, now) if memory.shape[0] else -1
        if r < 0:
            self.raise_fault()
        return r == 1

    def raise_fault(self):
        """Raise PeerError for what `take` refused."""
        if self.fault == OTHER_SESSION:
            raise PeerError(f"epoch of another session or term; ours is {self.session}, {self.term}")
        if self.fault == OTHER_EPOCH:
            raise PeerError(f"an epoch came where {self.epoch + 1} was due")
        if self.fault == EARLY_PAGES:
            raise PeerError("pages before the tap was opened")
        if self.fault == UNSENT_STAMP:
            raise PeerError("an epoch answers a time stamp that was never sent")
        if self.fault >= ENCODED:
            raise PeerError(delta_fault(self.fault - ENCODED))
        raise PeerError(record_fault(self.fault or 1))

    def supply(self, const uint8_t[::1] outputs not None):
        """The outputs of the record that waits, whole: its inputs are not needed any more."""
        self._given = outputs
        self._decoder.outputs = &outputs[0] if outputs.shape[0] else NULL
        self._decoder.outputs_bytes = outputs.shape[0]

    cdef int take(self, uint8_t* data, uint64_t n, uint64_t now, uint64_t came) noexcept nogil:
        """`came`: read after the record was; `now`: before the tap was looked at last. 1 taken, 0 not now (see `commit`), -1 refused (self.fault)."""
        cdef Record r
        cdef Ack ack
        cdef int d
        fault(RECORD_READ)
        self.missing = False
        if is_delta(data, n):
            d = self._decoder.decode(data, n, self.arena, self.tap, self.n_ports)
            if d == NO_INPUT and self.has_tap and self.tap.look(now, 8) >= 0:        # it may have come since the last look
                d = self._decoder.decode(data, n, self.arena, self.tap, self.n_ports)
            if d == NO_INPUT:
                self.missing = True
                return 0
            if d == DELTA_MISMATCH:         # what it is told by reads differently here
                self.divergent_epoch = self.epoch + 1
                return 0
            if d:
                self.fault = ENCODED + d
                return -1
            data, n = self._decoder.buf, self._decoder.n
        self.fault = record_parse(&r, data, n, self.arena, self.n_ports)
        if self.fault:
            return -1
        if r.h.session != self.session or r.h.term != self.term or self.session == 0:
            self.fault = OTHER_SESSION
        elif r.h.epoch != self.epoch + 1:
            self.fault = OTHER_EPOCH
        elif r.h.n_pages and self.has_tap and not self.tap_open:
            self.fault = EARLY_PAGES
        elif r.h.echo_ns > now:             # rule 5 would take every frame of until then for answered
            self.fault = UNSENT_STAMP
        if self.fault:
            return -1
        record_ask(&r, self.arena)
        if self.has_tap and not record_register(&r, self.tap, now, self.captured_by(r.h, came)):
            return 0
        fault(REGISTERED)
        self.heard_ns = now                 # not before: one that waits is offered again and again, and is no sign of life
        self.alive_ns = max(self.alive_ns, r.h.echo_ns)
        self._decoder.follow(r.h)
        self.epoch = r.h.epoch
        self.next_seq = r.h.first_seq + r.h.n_outputs
        self.released(min(r.h.released_through, self.next_seq))
        self.now_ns = r.h.now_ns
        self.commit_ns = now
        self.window_off, self.window_hash = r.h.window_off, r.h.window_hash
        if self.has_channel:
            self.ack_head[r.h.epoch % ACKS] = UINT64_MAX        # unsent
            if not self.silent:
                self.fill_ack(&ack, r.h.epoch, now)
                self.channel.push(KIND_ACK, <uint8_t*>&ack, ACK_BYTES)
                self.ack_head[r.h.epoch % ACKS] = self.channel.pushed_to()
            self.ack_seq[r.h.epoch % ACKS] = self.next_seq
        fault(ACKED)
        record_apply(&r, self.arena)
        fault(APPLIED)
        if r.h.n_pages:
            fault(PAGES_APPLIED)
        self.epochs += 1
        if r.h.flags & SYNC_LAST:
            self.last_page = True
        if self.last_page and digest_due(r.h.epoch):
            note_digest(board, r.h.session, r.h.epoch, self.arena.base, self.arena.size)
        if self.last_page and not record_agrees(&r, self.arena, self.secret):
            self.divergent_epoch = r.h.epoch
        return 1

    cdef uint64_t captured_by(self, const Header* h, uint64_t came) noexcept nogil:
        """When this record, which is here at `came`, was captured, at the latest and by our clock. None is here before it was captured, so the
        least difference of this second and the one before bounds how far the clocks are apart."""
        cdef int64_t apart = <int64_t>(came - h.now_ns)
        if came - self._apart_ns > SECOND:
            self._apart_before = self._apart if came - self._apart_ns <= 2 * <uint64_t>SECOND else INT64_MAX
            self._apart, self._apart_ns = apart, came
        self._apart = min(self._apart, apart)
        return h.now_ns + <uint64_t>min(self._apart, self._apart_before)

    # ── inputs, where the active ships them ──────────────────────────────────────────────────────

    def inputs(self, const uint8_t[::1] payload not None, uint64_t now):
        """Take one shipment (native/shipment.pyx). Raises PeerError when it does not belong here."""
        if not payload.shape[0] or not self.feed(&payload[0], payload.shape[0], now):
            raise PeerError(f"a shipment of {payload.shape[0]} bytes that does not add up, or of another session")

    cdef bint feed(self, const uint8_t* data, uint64_t n, uint64_t now) noexcept nogil:
        cdef const ShipmentHead* head = <const ShipmentHead*>data
        if (n < sizeof(ShipmentHead) or head.session != self.session or self.session == 0 or not self.has_tap or not self.tap.fed
                or self.tap.feed(data + sizeof(ShipmentHead), n - sizeof(ShipmentHead), now) < 0):
            return False
        self.heard_ns = now
        self.released(min(head.released_through, self.next_seq))
        return True

    cdef void released(self, uint64_t through) noexcept nogil:
        if through > self.released_through:
            self.released_through = through
        if self.has_tap and self.tap.fed:
            self.tap.forget(self.released_through)

    def left(self, uint64_t through):
        """The active's word that every output below this number has left."""
        self.released(min(through, self.next_seq))

    def settle_fed(self):
        """The active is gone: what its gate, on one kernel, left behind of what had left."""
        if self.has_watch and self.tap.fed:
            self.released(min(self._watch.left(), self.next_seq))

    cdef void fill_ack(self, void* out, uint64_t number, uint64_t now) noexcept nogil:
        cdef Ack* ack = <Ack*>out
        ack.session, ack.epoch = self.session, number
        ack.stamp_ns, ack.echo_ns = now, self.peer_stamp
        ack.amount = self.tap.inputs.live if self.has_tap else 0
        ack.flags = TAP_GAP if self.has_tap and now < self.tap.gap_until else 0
        if self.port_down:
            ack.flags |= PORT_DOWN
        if self.cut_off:
            ack.flags |= CUT_OFF

    def window(self):
        """(offset, the active's hash, ours now) of the 256 bytes that the last committed epoch checks: equal while the arena is that
        epoch's (I8). Keyed: it tells a stranger nothing. None before the first epoch."""
        if not self.commit_ns:
            return None
        return self.window_off, self.window_hash, nf_hash(self.secret, self.epoch, self.arena.base + self.window_off, WINDOW)

    def released_at_most(self):
        """No output with this number or a higher one can have left: the active, dead now, had not read the ack that lets it
        go. Over TCP, which does not tell, it may have read all; 2**64 - 1 without a channel."""
        cdef uint64_t epoch, read
        if not self.has_channel:
            return int(UINT64_MAX)
        read = self.channel.read_by_peer()
        for epoch in range(self.epoch, max(0, <int64_t>self.epoch - ACKS), -1):
            if 0 < self.ack_head[epoch % ACKS] <= read and self.ack_head[epoch % ACKS] != UINT64_MAX:
                return int(self.ack_seq[epoch % ACKS])
        return 0

    def may_still_come(self):
        """Was a committed output not seen that the active, dead now, can have sent? Where its life is watched only what it had begun
        to send; elsewhere what it had read the ack of."""
        cdef uint64_t number, below = 0 if self.has_watch else self.released_at_most()
        cdef Entry* e
        if self.tap.fed:
            return False                    # it would pass unseen
        for number in range(self.tap.expected.head, self.tap.expected.tail):
            e = &self.tap.expected.entries[<uint32_t>number & self.tap.expected.mask]
            if e.live and e.seq < (self._watch.leaves(e.port) if self.has_watch else below):
                return True
        return False

    def ack(self, uint64_t number, uint64_t now):
        """The 40 bytes of an ACK of epoch `number` (or a BEAT_ACK of beat `number`)."""
        cdef Ack ack
        self.fill_ack(&ack, number, now)
        return (<const uint8_t*>&ack)[:ACK_BYTES]

    # ── without the GIL ──────────────────────────────────────────────────────────────────────────

    def run(self, uint64_t until_ns, Patience patience not None):
        """Follow until there is something for Python: returns one of WHY. Raises PortError, PeerError."""
        cdef int why = TIME, n, r = 0, batch
        cdef uint64_t now
        cdef Message m
        with nogil:
            while True:
                now = monotonic_ns()
                if now >= until_ns:
                    break
                if self.has_watch and self._watch.dead():
                    why = DEAD
                    break
                n = self.tap.look(now, LOOK) if self.has_tap else 0
                if n < 0:
                    why = GONE
                    break
                batch = 0
                while batch < BATCH:
                    r = self.channel.pop(&m)
                    if r != 1:
                        break
                    if m.kind == KIND_INPUTS and self.feed(m.data, m.n, now):
                        batch += 1
                        continue
                    if m.kind != KIND_EPOCH or self.take(m.data, m.n, now, monotonic_ns()) != 1:
                        self.channel.put_back(&m)
                        why = MAIL
                        break
                    batch += 1
                    if self.divergent_epoch:
                        why = MAIL
                        break
                self.channel.drain()
                if batch and self.has_tap:
                    self.tap.settle(self.released_through, self.alive_ns)
                if r < 0:
                    why = MAIL
                if why == MAIL:
                    break
                if n or batch:
                    patience.busy()
                elif patience.idle(now):
                    why = IDLE
                    break
        if why == GONE:
            raise_gone(self.tap._ports)
        return why


WHY_TIME, WHY_MAIL, WHY_IDLE = TIME, MAIL, IDLE
