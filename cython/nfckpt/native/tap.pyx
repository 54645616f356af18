# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Tap: what the standby sees of the segment, and which of it the app still owes an answer (DESIGN 4a).

Picture     frame on a port ──┬─ a credit's?           the active already answered for it       (rule 3, 4)
                              ├─ an expected output?   the active's own frame, seen leaving     (rule 4)
                              └─ else an input         buffered until an epoch names it         (rule 4)

            epoch ── names ───┬─ at the head of its port's queue, or found by key: taken out    (rule 2)
                   │          └─ not seen yet: becomes a credit                                 (rule 3)
                   └ outputs ── expected, with their bytes, until they are seen leaving         (rule 7)

Keys are multisets everywhere (rule 1): two identical ARP requests are two entries. Which of them a name means its time says: a record
tells how old the youngest frame is that it names, so none that came here more than a skew later is one of those. Without that, one that a
tap misses would put all that follow one place off, for good: each name would take the next frame of its kind, and rule 5 what lies between.
After a promotion `inputs` is what must be replayed, `expected` what must be re-emitted, and the filter goes on:
a late frame of the old active is `doubled`, never an input.

Times are CLOCK_MONOTONIC ns of this node: `stamp` of a frame is when its kernel saw it, `ts` that or, if later, the `ts` of the
one before it or when its port was last seen empty.
Promises    T1 a frame is consumed by exactly one of credit, expected, input.
            T2 nothing is evicted: a full queue is `overflow` and makes the tap inexact until `gap_until`.
            T3 trimming follows names of committed epochs only (I6).
"""
from nfckpt.errors import StateError

from libc.stdint cimport UINT64_MAX
from libc.string cimport memcpy
from nfckpt.native.arena cimport CHECK
from nfckpt.native.burst cimport BURST_MAX, FRAME_MAX
from nfckpt.native.cut_off cimport CutOff
from nfckpt.native.digest cimport nf_frame_key
from nfckpt.native.fault cimport TAP_READ, fault
from nfckpt.native.keyed_fifo cimport Entry, NO_ENTRY
from nfckpt.native.port cimport Port
from nfckpt.native.port_set cimport raise_gone
from nfckpt.native.shipment cimport InputHead

cdef enum:
    REEMITTED = 1
    FRAMES_MAX = 1 << 25        # and a quarter more, where `recall` puts two queues together
    BYTES_MAX = 1 << 30
    NEAR = 64                   # entries from the head of a queue that are looked through: two taps differ by up to 44 places


cdef void append(KeyedFifo to, KeyedFifo queue) noexcept nogil:
    """All of `queue`, in order. `to` has the room."""
    cdef uint64_t number
    cdef Entry* e
    for number in range(queue.head, queue.tail):
        e = &queue.entries[<uint32_t>number & queue.mask]
        if e.live:
            to.entries[to.push(e.key, e.ts, e.seq, e.port, queue.buf + e.off, e.length)].mark = e.mark


cdef class Tap:
    """Over `ports` (list of Port). `secret`: 32 bytes shared by the pair; `skew_ns`: the most by which two taps of one
    segment may differ in time; `cut_off_ns`: how long a port of the active is cut off before it is `cut_off`, 0: never. `fed`: the active ships its inputs (`feed`), and until `unfed` nothing is read from the ports: outputs
    are not seen leaving then, and what was released counts as left. Raises StateError for more than 16 ports,
    and for more than 2**25 frames or 2**30 bytes."""

    def __cinit__(self, list ports, bytes secret, uint64_t skew_ns, uint32_t frames_max=65536,
                  uint64_t bytes_max=64 << 20, uint32_t expected_max=65536, uint64_t expected_bytes_max=32 << 20, *,
                  uint64_t cut_off_ns=0, bint fed=False):
        if len(secret) != 32:
            raise StateError("the tap's secret must be 32 bytes")
        if max(frames_max, expected_max) > FRAMES_MAX or max(bytes_max, expected_bytes_max) > BYTES_MAX:
            raise StateError(f"a tap of {max(frames_max, expected_max)} frames and {max(bytes_max, expected_bytes_max)} bytes is too large")
        memcpy(self.secret, <const uint8_t*>secret, 32)
        self._ports = PortSet(ports)
        self.skew_ns = skew_ns
        self.inputs = KeyedFifo(frames_max, bytes_max)
        self.credits = KeyedFifo(frames_max)
        self.expected = KeyedFifo(expected_max, expected_bytes_max)
        self.cut_off_ns = 0 if fed else cut_off_ns
        self._cut = CutOff(self.inputs, self.expected, 4 * (self.cut_off_ns + skew_ns) if self.cut_off_ns else 0)
        self._scratch = Burst()
        self.fed = self.discarding = fed
        self.reset()

    def reset(self):
        """Forget everything and discard unmatched frames until `open()`."""
        cdef int p
        self.inputs.reset()
        self.credits.reset()
        self.expected.reset()
        self._cut.reset()
        for p in range(MAX_PORTS):
            self.named_ts[p] = self.floor[p] = 0
            self.cursor[p] = 0
        self.buffering = False
        self.exact_ns = 0
        self.rt_old = self.rt_new = self.rt_at = 0
        self.gap_until = 0
        self.read_ns = 0

    def covers(self, uint64_t since):
        """Rule 9: True when on every port the active is known to have answered for all that came before `since`."""
        cdef int p
        for p in range(self._ports.n):
            if self.named_ts[p] < since:
                return False
        return True

    def open(self):
        """From now on unmatched frames are inputs (rule 9: while syncing, every epoch names them). What a ring dropped before is no gap."""
        self._drops = self._dropped()
        self.buffering = True

    def whole(self, uint64_t since=0):
        """The standby is whole: a name registered from now on and never seen counts as tap_missed. (One of before may be of
        a frame that came before the tap opened.) What came before `since` is over: the active answered for it, or emitted it."""
        cdef uint64_t number
        cdef int p
        cdef Entry* e
        for number in range(self.inputs.head, self.inputs.tail):
            e = &self.inputs.entries[<uint32_t>number & self.inputs.mask]
            if e.live and e.ts < since:
                self.inputs.remove(<uint32_t>number & self.inputs.mask)
        for p in range(MAX_PORTS):
            self.c[p].active_missed = 0
        self._cut.reset()
        self.exact_ns = self.read_ns

    # ── the segment ──────────────────────────────────────────────────────────────────────────────

    cdef bint _classify(self, uint64_t key, uint8_t port, uint64_t ts, uint64_t stamp, const uint8_t* data, uint32_t n) noexcept nogil:
        """True when the frame was kept as an input."""
        cdef uint32_t i = self.credits.find(key)
        while i != NO_ENTRY and stamp > self.credits.entries[i].seq:        # that name is of an earlier one, which will not come any more
            self._miss(i)
            i = self.credits.find(key)
        if i != NO_ENTRY:
            self.credits.remove(i)
            self.c[port].credited += 1
            self._shared_at(port, ts)
            return False
        i = NO_ENTRY if self.fed else self.expected.find(key)
        if i != NO_ENTRY:
            if self.expected.entries[i].mark == REEMITTED:
                self.c[port].doubled += 1
            else:
                self.c[port].observed += 1
                self._cut.left(port, self.expected.entries[i].seq)
            self.expected.remove(i)
            return False
        if not self.buffering:
            return False
        if self.inputs.push(key, ts, stamp, port, data, n) == NO_ENTRY:
            self.c[port].overflow += 1
            self._gap_at(ts)
            return False
        return True

    cdef void _named_at(self, uint8_t port, uint64_t ts) noexcept nogil:
        if ts > self.named_ts[port]:
            self.named_ts[port] = ts

    cdef void _shared_at(self, uint8_t port, uint64_t ts) noexcept nogil:
        """A named frame came here at `ts`."""
        self._named_at(port, ts)
        self._cut.shared(port, ts)

    cdef void _gap_at(self, uint64_t ts) noexcept nogil:
        """A frame of that time may be missing here. A gap only grows: a full queue's frame may be older than noted drops."""
        if ts + 4 * self.skew_ns > self.gap_until:
            self.gap_until = ts + 4 * self.skew_ns

    def poll(self, uint64_t now, int bursts_max=8):
        """Read every port until it is empty, or `bursts_max` bursts of it. `now`: read before the call. Returns frames read.
        Raises PortError when a port is gone."""
        cdef int n = self.look(now, bursts_max)
        if n < 0:
            raise_gone(self._ports)
        return n

    cdef int look(self, uint64_t now, int bursts_max) noexcept nogil:
        """`poll` without the GIL; -1: a port is gone."""
        if self.fed:
            return self.discard(now, bursts_max)
        cdef int i, p, n, total = 0, turn
        cdef uint64_t through = now
        for p in range(self._ports.n):
            for turn in range(bursts_max):
                self._scratch.clear()
                n = self._ports.rx(p, self._scratch, BURST_MAX)
                if n < 0:
                    return -1
                for i in range(n):
                    self._scratch.key[i] = nf_frame_key(self.secret, p, self._scratch.data(i), self._scratch.length[i])
                    self.expected.prefetch(self._scratch.key[i])
                for i in range(n):
                    # a ring's order is that of arrival. The kernel stamps a frame before it queues it, and a busy CPU may sit on it
                    # for longer than the skew: by its stamp, rule 5 would take it for one that the active never had
                    self.floor[p] = max(self.floor[p], self._scratch.ts[i])
                    self._classify(self._scratch.key[i], <uint8_t>p, self.floor[p], self._scratch.ts[i], self._scratch.data(i),
                                   self._scratch.length[i])
                total += n
                self.c[p].seen += n
                if n < BURST_MAX and self._scratch.has_room():
                    if self._scratch.hidden >> p & 1:
                        through = self.read_ns
                    elif self.floor[p] < now:
                        self.floor[p] = now         # empty then: what comes next arrives later
                    break
            else:
                through = self.read_ns      # this port still holds older frames
        self.read_ns = through
        if total:
            fault(TAP_READ)
        return total

    # ── instead of the segment: what the active ships (native/shipment.pyx) ──────────────────────

    cdef int discard(self, uint64_t now, int bursts_max) noexcept nogil:
        """`look` of a tap that is fed: 0, or -1: a port is gone."""
        cdef int p, n, turn
        self.read_ns = now
        if self.discarding:
            for p in range(self._ports.n):
                for turn in range(bursts_max):
                    self._scratch.clear()
                    n = self._ports.rx(p, self._scratch, BURST_MAX)
                    if n < 0:
                        return -1
                    if n < BURST_MAX:
                        break
        return 0

    cdef int feed(self, const uint8_t* data, uint64_t n, uint64_t now) noexcept nogil:
        """Frames of a shipment, head left off. Returns how many, or -1: it does not add up, and nothing of it was taken."""
        cdef const InputHead* head
        cdef uint64_t at = 0, step
        cdef int frames = 0
        while at < n:
            if n - at < sizeof(InputHead):
                return -1
            head = <const InputHead*>(data + at)
            step = sizeof(InputHead) + ((head.length + 7) & ~<uint64_t>7)
            if head.port >= self._ports.n or head.length > FRAME_MAX or step > n - at:
                return -1
            at += step
        at = 0
        while at < n:
            head = <const InputHead*>(data + at)
            at += sizeof(InputHead) + ((head.length + 7) & ~<uint64_t>7)
            self.stands[head.port] = head.number
            if head.length == 0:
                self.counted |= <uint32_t>1 << head.port
                continue
            self.c[head.port].seen += 1
            frames += 1
            # stamped 0: what comes in the channel's order is named in that order, whenever it came
            self._classify(nf_frame_key(self.secret, head.port, <const uint8_t*>(head + 1), head.length), <uint8_t>head.port, now, 0,
                           <const uint8_t*>(head + 1), head.length)
        return frames

    def unfed(self):
        """The active is gone, and everything it shipped is here: from now on the ports are read as any tap's."""
        self.fed = self.discarding = False

    def stood_at(self, int port):
        """The number of the last frame that the active had read of this port, counting all that came to its device, modulo 2**32; None: it
        did not say."""
        return int(self.stands[port]) if self.counted >> port & 1 else None

    cdef void forget(self, uint64_t through) noexcept nogil:
        """Outputs below this number have left: the only way in which a tap that is fed learns it."""
        cdef uint32_t i
        while True:
            i = self.expected.oldest()
            if i == NO_ENTRY or self.expected.entries[i].seq >= through:
                break
            self.expected.remove(i)

    # ── the tap's gaps ───────────────────────────────────────────────────────────────────────────

    def note_drops(self, uint64_t now):
        """Read the ports' drop counters; new drops make the tap inexact until credits have aged (rule 6)."""
        cdef uint64_t drops = self._dropped()
        if drops != self._drops and self.buffering and not self.fed:
            self._gap_at(now)
        self._drops = drops

    cdef uint64_t _dropped(self):
        cdef uint64_t drops = 0
        cdef Port port
        for port in self._ports.ports:
            port.refresh_counters()
            drops += port.c.rx_ring_drops
        return drops

    def note_gap(self, uint64_t now):
        """Frames may pass unseen now (a port without carrier): inexact until credits have aged."""
        if not self.fed:
            self._gap_at(now)

    # ── epochs ───────────────────────────────────────────────────────────────────────────────────

    def room_for(self, uint32_t names, uint32_t outputs, uint64_t output_bytes):
        """Whether an epoch with so much can be registered whole; if not it must wait (never half)."""
        return bool(self.fits(names, outputs, output_bytes))

    cdef bint fits(self, uint32_t names, uint32_t outputs, uint64_t output_bytes) noexcept nogil:
        return self.credits.room(names, 0) and self.expected.room(outputs, output_bytes + 16384)

    cdef uint32_t locate(self, uint64_t key, uint8_t port, uint64_t by) noexcept nogil:
        """The oldest input with this key, or NO_ENTRY: near the head of its port's queue, else wherever it is (rule 2). None that was
        stamped after `by`."""
        cdef uint32_t i
        cdef uint64_t number = max(self.cursor[port], self.inputs.head), end
        cdef Entry* e
        while number < self.inputs.tail:
            e = &self.inputs.entries[<uint32_t>number & self.inputs.mask]
            if e.live and e.port == port:
                break
            number += 1
        self.cursor[port] = number
        end = min(number + NEAR, self.inputs.tail)
        for number in range(number, end):
            e = &self.inputs.entries[<uint32_t>number & self.inputs.mask]
            if e.key == key and e.live and e.seq <= by:
                return <uint32_t>number & self.inputs.mask
        i = self.inputs.find(key)
        return i if i != NO_ENTRY and self.inputs.entries[i].seq <= by else <uint32_t>NO_ENTRY

    cdef void name(self, uint64_t key, uint8_t port, uint64_t now, uint64_t by) noexcept nogil:
        """An epoch answers for one frame, which came here at `by` at the latest."""
        cdef uint32_t i = self.locate(key, port, by)
        while i != NO_ENTRY and self.inputs.entries[i].ts + self.skew_ns < self.named_ts[port]:
            self.inputs.remove(i)           # rule 5: the active never had this one; it had the next of its kind
            self.c[port].active_missed += 1
            i = self.locate(key, port, by)
        if i != NO_ENTRY:
            self.c[port].matched += 1
            self._shared_at(port, self.inputs.entries[i].ts)
            self.inputs.remove(i)
        elif not self.fed and self.credits.push(key, now, by, port, NULL, 0) == NO_ENTRY:     # fed: it was read before shipping began
            CHECK(False)        # room_for() was asked first

    cdef bint expect(self, uint64_t seq, uint8_t port, const uint8_t* data, uint32_t n, uint64_t now) noexcept nogil:
        return self.expected.push(nf_frame_key(self.secret, port, data, n), now, seq, port, data, n) != NO_ENTRY

    def emptied(self, uint32_t ports, uint64_t since):
        """The active found these ports (bit mask) empty at some time after `since` (our clock): whatever arrived
        before that and is not named was never in its ring. The same word as a named frame of that time (rules 5, 9)."""
        self.mark_empty(ports, since)

    cdef void mark_empty(self, uint32_t ports, uint64_t since) noexcept nogil:
        cdef int p
        for p in range(self._ports.n):
            if ports >> p & 1:
                self._named_at(<uint8_t>p, since)

    def age(self, uint64_t released_through, uint64_t alive_ns=UINT64_MAX):
        """Rules 5, 6 and 7: what is older than the skew is settled. Call after each epoch and when idle. Age counts up to
        `read_ns`, not to now: a frame that still waits in a port's ring is not missing; and that of an output up to `alive_ns`, when
        the active lived, as far as is known: one that died within a skew may have let go into a port that was cut before it died."""
        self.settle(released_through, alive_ns)

    cdef void settle(self, uint64_t released_through, uint64_t alive_ns) noexcept nogil:
        cdef uint64_t now = self.read_ns
        cdef uint32_t i
        cdef uint64_t number
        cdef Entry* e
        # 5: older than a named frame of the same port, and not named: the active never had it
        number = self.inputs.head
        while number < self.inputs.tail:
            e = &self.inputs.entries[<uint32_t>number & self.inputs.mask]
            if e.live:
                if e.ts + self.skew_ns >= self.named_ts[e.port]:
                    break
                self._cut.disowned(e, self.inputs.buf)
                self.inputs.remove(<uint32_t>number & self.inputs.mask)
                self.c[e.port].active_missed += 1
            number = max(number + 1, self.inputs.head)
        # 6: named long ago, never seen
        while True:
            i = self.credits.oldest()
            if i == NO_ENTRY or self.credits.entries[i].ts + self.skew_ns >= now:
                break
            self._miss(i)
        # 7: released for longer than the skew by one that lives: it left, whether we saw it or not
        if released_through > self.rt_new:
            self.rt_new = released_through
        if min(now, alive_ns) > self.rt_at + self.skew_ns:
            while True:
                i = self.expected.oldest()
                if i == NO_ENTRY or self.expected.entries[i].seq >= self.rt_old:
                    break
                e = &self.expected.entries[i]
                if e.mark != REEMITTED:
                    self.c[e.port].unobserved += 1
                    self._cut.unobserved(e, self.expected.buf)
                self.expected.remove(i)
            self.rt_old = self.rt_new
            self.rt_at = now
            self._cut.age(now)

    cdef void _miss(self, uint32_t i) noexcept nogil:
        """Rule 6: the frame of this credit will not come any more."""
        cdef Entry* e = &self.credits.entries[i]
        self.credits.remove(i)
        if self.exact_ns and e.ts > self.exact_ns:
            self.c[e.port].tap_missed += 1
            self._cut.unseen(e)

    # ── takeover ─────────────────────────────────────────────────────────────────────────────────

    def cut_off(self):
        """Bit mask of the ports at which we see what the active does not, and nothing that both see, for `cut_off_ns`: a link of the
        active's is cut without loss of carrier."""
        return int(self._cut.ports(self.read_ns, self.cut_off_ns))

    def deaf(self):
        """Bit mask of the ports at which the active names what we never see, and nothing that both see, for as long: our link is cut."""
        return int(self._cut.ours(self.read_ns, self.cut_off_ns))

    def recall(self):
        """The active is gone. Where a port of it was cut off, what rules 5 and 7 gave up there goes back to its place: inputs before all others
        that are replayed, outputs before all others that are emitted again. Returns the bit mask of those ports."""
        cdef uint32_t ports = self._cut.ports(self.read_ns, 0)
        cdef CutOff cut = self._cut
        cdef KeyedFifo inputs, outputs
        cdef Entry* e
        cdef uint64_t number
        cdef int p
        if not ports:
            return 0
        inputs = KeyedFifo(self.inputs.capacity + cut.inputs.capacity, self.inputs.buf_bytes + cut.inputs.buf_bytes)
        outputs = KeyedFifo(self.expected.capacity + cut.outputs.capacity, self.expected.buf_bytes + cut.outputs.buf_bytes)
        for number in range(cut.inputs.head, cut.inputs.tail):
            e = &cut.inputs.entries[<uint32_t>number & cut.inputs.mask]
            if ports >> e.port & 1 and e.ts >= cut.alone[e.port].first:
                inputs.push(e.key, e.ts, e.seq, e.port, cut.inputs.buf + e.off, e.length)
                self.c[e.port].active_missed -= 1
        for number in range(cut.outputs.head, cut.outputs.tail):
            e = &cut.outputs.entries[<uint32_t>number & cut.outputs.mask]
            if ports >> e.port & 1 and e.seq >= cut.seen_through[e.port]:
                outputs.push(e.key, e.ts, e.seq, e.port, cut.outputs.buf + e.off, e.length)
                self.c[e.port].unobserved -= 1
        append(inputs, self.inputs)
        append(outputs, self.expected)
        self.inputs, self.expected = inputs, outputs
        for p in range(self._ports.n):
            self.cursor[p] = 0
            if ports & <uint32_t>1 << p:
                self.named_ts[p] = cut.shared_ts[p]
        cut.reset()
        return int(ports)

    def unseen_outputs(self):
        """list of (seq, port, bytes): committed outputs not seen leaving, in order. Marks them as re-emitted: none of them is forgotten
        any more, a late one would pass for an input."""
        cdef list out = []
        cdef Entry* e
        cdef uint64_t number = self.expected.head
        while number < self.expected.tail:
            e = &self.expected.entries[<uint32_t>number & self.expected.mask]
            if e.live and e.mark != REEMITTED:
                e.mark = REEMITTED
                out.append((e.seq, e.port, (<const uint8_t*>self.expected.buf + e.off)[:e.length]))
            number += 1
        self.rt_old = self.rt_new = 0
        return out

    cdef int take(self, Burst b, int max_frames) noexcept nogil:
        """Replay: move up to max_frames of the oldest inputs into b. Returns how many. What rule 5 had not come to, behind a frame
        of another port, is left out here: it would overtake its successors."""
        cdef uint32_t i
        cdef Entry* e
        cdef uint8_t* p
        cdef int n = 0
        while n < max_frames:
            i = self.inputs.after(self._lent)
            if i == NO_ENTRY:
                break
            e = &self.inputs.entries[i]
            if e.ts + self.skew_ns < self.named_ts[e.port]:
                self.inputs.remove(i)
                self.c[e.port].active_missed += 1
                continue
            p = b.append(e.length, e.port, e.ts)
            if p == NULL:
                break
            memcpy(p, self.inputs.buf + e.off, e.length)
            b.key[b.n - 1] = e.key
            if self._lending:
                self._lent = self.inputs.head + (i - <uint32_t>self.inputs.head & self.inputs.mask) + 1
            else:
                self.inputs.remove(i)
                self.c[e.port].replayed += 1
            n += 1
        return n

    def lend(self, bint on):
        """From now on frames that are replayed stay here until `consume` or `put_back`. False: no more; what is lent is consumed."""
        self.consume()
        self._lending = on

    def consume(self):
        """The app is done with what it was lent. Returns how many frames."""
        cdef int n = 0
        cdef uint32_t i
        cdef uint64_t lent = self._lent
        while self.inputs.live and self.inputs.head < lent:
            i = self.inputs.oldest()
            self.c[self.inputs.entries[i].port].replayed += 1
            self.inputs.remove(i)
            n += 1
        self._lent = 0
        return n

    def put_back(self):
        """The app never had what it was lent: it is replayed again, from the first on. Returns how many frames."""
        cdef int n = 0
        cdef uint64_t number
        for number in range(self.inputs.head, min(self._lent, self.inputs.tail)):
            n += self.inputs.entries[<uint32_t>number & self.inputs.mask].live
        self._lent = 0
        return n

    @property
    def ports(self):
        """The list it was made with."""
        return self._ports.ports

    @property
    def waiting_inputs(self):
        """Frames that would be replayed if the active died now."""
        return int(self.inputs.live)

    @property
    def waiting_outputs(self):
        """Committed outputs not yet seen leaving."""
        return int(self.expected.live)

    @property
    def waiting_credits(self):
        return int(self.credits.live)

    def is_exact(self, uint64_t now):
        """False while a gap of the tap may still hide a frame (state tap_gap)."""
        return now >= self.gap_until

    def counters(self):
        """dict of TapCounters, all ports together."""
        cdef list rows = self.port_counters()
        return {name: sum([row[name] for row in rows]) for name in rows[0]}

    def port_counters(self):
        """list of TapCounters as a dict, one a port."""
        cdef int p
        return [dict(self.c[p]) for p in range(self._ports.n)]

    def waiting_by_port(self):
        """list of int: `waiting_inputs` of each port. Looks at every one of them."""
        cdef uint64_t number
        cdef Entry* e
        cdef uint64_t n[MAX_PORTS]
        cdef int p
        for p in range(MAX_PORTS):
            n[p] = 0
        for number in range(self.inputs.head, self.inputs.tail):
            e = &self.inputs.entries[<uint32_t>number & self.inputs.mask]
            n[e.port] += e.live
        return [n[p] for p in range(self._ports.n)]

    # For tests and the simulator: the same kernels, one frame at a time.
    def offer(self, bytes frame, int port, uint64_t ts):
        """As if `frame` had been read from `port` at `ts`. True when it was kept as an input."""
        self.c[port].seen += 1
        return self._classify(nf_frame_key(self.secret, port, <const uint8_t*>frame, len(frame)), port, ts, ts,
                              <const uint8_t*>frame, len(frame))

    def name_frame(self, bytes frame, int port, uint64_t now, uint64_t age=0):
        """As if a record that comes at `now` named it; `age`: of the youngest frame that it names."""
        self.name(nf_frame_key(self.secret, port, <const uint8_t*>frame, len(frame)), port, now, now - age + self.skew_ns)

    def expect_frame(self, uint64_t seq, int port, bytes frame, uint64_t now):
        return bool(self.expect(seq, port, <const uint8_t*>frame, len(frame), now))

    def forget_released(self, uint64_t through):
        self.forget(through)

    def held_inputs(self):
        """list of (port, bytes): what would be replayed, in order."""
        cdef uint64_t number
        cdef Entry* e
        out = []
        for number in range(self.inputs.head, self.inputs.tail):
            e = &self.inputs.entries[<uint32_t>number & self.inputs.mask]
            if e.live:
                out.append((e.port, (<const uint8_t*>self.inputs.buf + e.off)[:e.length]))
        return out

    def oldest_input(self):
        """(port, ts, key, bytes) of the frame that is replayed next, or None."""
        cdef uint32_t i = self.inputs.oldest()
        cdef Entry* e
        if i == NO_ENTRY:
            return None
        e = &self.inputs.entries[i]
        return e.port, e.ts, e.key, (<const uint8_t*>self.inputs.buf + e.off)[:e.length]

    def replay(self, Burst burst not None, int max_frames=32):
        """Python side of `take`."""
        return self.take(burst, max_frames)
