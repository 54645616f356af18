# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Interface agent: rx_burst / tx_burst as with DPDK, and nothing else to cooperate with (I2).

Picture     app ── rx_burst ──► hook(): acks in, releases out, maybe a capture ──► "no packets" or frames
            app ── tx_burst ──► gate, under the open epoch ─ ─ commit ─ ─► segment

            in_flight = handed out − sent − dropped − parked.  A capture needs in_flight == 0 (I1); while a cut is
            wanted and frames are out, every poll answers "no packets": the quiesce of the classic scheme.

Who calls   one thread, the one that polls. The hook is the node's; it returns True when the answer must be "no packets".
"""
from time import monotonic_ns

from nfckpt.errors import StateError

from libc.string cimport memcpy, memset
from nfckpt.native.arena cimport CHECK
from nfckpt.native.burst cimport BURST_MAX, DONE, DROP, FRAME_MAX, OWNED, SEND
from nfckpt.native.digest cimport nf_frame_key
from nfckpt.native.epoch cimport AGE_BITS
from nfckpt.native.fault cimport BURST_HELD, FRAMES_DECIDED, FRAMES_READ, HALF_HELD, HALF_REPLAYED, fault
from nfckpt.native.headers cimport parse
from nfckpt.native.port_set cimport raise_gone


cdef int must_be_handed_out(Agent agent, Burst burst) except -1:
    """A frame that was never handed out must not be given back: in_flight would pass below 0 and no cut come again."""
    cdef uint32_t i, n = 0
    for i in range(burst.n):
        n += burst.verdict[i] != DONE
    if n > agent.in_flight:
        raise StateError(f"a burst gives back {n} frames of {agent.in_flight} handed out", "send frames of your own with emit")
    return 0


cdef object raise_unsendable(Agent agent, Burst burst):
    """Raise StateError for the frame that `send` stopped at."""
    cdef int i
    for i in range(burst.n):
        if burst.verdict[i] == SEND and not (burst.out_port[i] < agent._ports.n and 0 < burst.length[i] <= FRAME_MAX):
            raise StateError(f"a frame of {burst.length[i]} bytes was sent to port {burst.out_port[i]} of {agent._ports.n}",
                             f"frames have 1 to {FRAME_MAX} bytes")
    raise StateError("a frame was sent that cannot be")


cdef class Agent:
    """Over `ports` (list of Port), an arena and a gate. `secret`: 32 bytes shared by the pair."""

    def __cinit__(self, list ports, Arena arena not None, Gate gate not None, bytes secret, *,
                  uint32_t names_max=16384, Parking parking=None):
        if len(secret) != 32:
            raise StateError("the agent's secret must be 32 bytes")
        memcpy(self.secret, <const uint8_t*>secret, 32)
        self._ports = PortSet(ports)
        self.arena = arena
        self.gate = gate
        self.names = Names(names_max)
        self.parking = parking
        self.running = True
        self.frames_max = BURST_MAX
        self.epoch = 1
        self.hook = None

    def rx_burst(self, Burst burst not None, int max_frames=32, *, uint64_t now=0):
        """Fill `burst` with up to `max_frames` (≤ 256) frames and parse their headers. Returns how many; 0 means "no
        packets", for whatever reason. `now`: the time, where this machine's clock does not keep it (a simulator's). Raises StateError when the burst still owns frames, PortError when a port is gone."""
        cdef int n, i
        self.c.polls += 1
        for i in range(burst.n):
            if burst.verdict[i] != DONE:
                raise StateError("rx_burst into a burst that still owns frames", "tx_burst or drop them first")
        burst.clear()
        if self.hook is not None and self.hook():
            return 0
        n = self.receive(burst, max_frames, now or monotonic_ns())
        if n < 0:
            raise_gone(self._ports)
        return n

    cdef bint has_room(self, Burst burst, int max_frames) noexcept nogil:
        return (self.names.n + max_frames <= self.names.capacity
                and self.gate.room(4 * <uint32_t>max_frames, 2 * <uint64_t>burst.buf_bytes))

    def admits(self, Burst burst not None, int max_frames):
        """Whether the app may make output now: what rx_burst asks before it hands out frames, and the caller of a timer before it."""
        return self.running and not self.paused and self.has_room(burst, max_frames)

    cdef int receive(self, Burst burst, int max_frames, uint64_t now) noexcept nogil:
        """rx_burst after the poll boundary, without the GIL. `burst` is empty. -1: a port is gone."""
        cdef int n, i
        if not self.running or self.paused:
            return 0
        if max_frames > self.frames_max:
            max_frames = self.frames_max
        if not self.has_room(burst, max_frames):
            self.c.backpressure += 1
            return 0
        n = self.read(burst, max_frames, now)
        if n > 0:
            parse(burst, 0, n)
            self.in_flight += n
            self.c.handed_out += n
            for i in range(n):
                self.c.malformed += burst.malformed[i]
            fault(FRAMES_READ)
        return n

    cdef int read(self, Burst b, int max_frames, uint64_t now) noexcept nogil:
        cdef int i, k, n, want, at, n_ports = self._ports.n
        if self.shipping and not self._shipment.clear(self.gate.released_through):
            return 0
        if self.has_tap:
            if self._tap.look(now, 8) < 0:
                return -1
            if self._tap.take(b, max_frames):
                fault(HALF_REPLAYED)
            for i in range(b.n):
                self._youngest[b.port[i]] = max(self._youngest[b.port[i]], b.ts[i])
        else:
            self._turn = (self._turn + 1) % n_ports
            for k in range(n_ports):
                i = (self._turn + k) % n_ports
                want = max_frames - b.n
                if want == 0:
                    break
                n = self._ports.rx(i, b, want)
                if n < 0:
                    return -1
                for at in range(b.n - n, b.n):      # a ring's order is not that of its stamps: see Tap.look
                    self._youngest[i] = max(self._youngest[i], b.ts[at])
                if n < want and b.has_room() and not b.hidden >> i & 1:
                    self.ports_empty |= <uint32_t>1 << i
        if self.recording:
            for i in range(b.n):
                b.key[i] = nf_frame_key(self.secret, b.port[i], b.data(i), b.length[i])
                if self.keeping:
                    self._kept.keep(self.names.n, b.key[i], b.data(i), b.length[i])
                self.names.key[self.names.n] = b.key[i]
                self.names.port[self.names.n] = b.port[i]
                self.names.n += 1
        if self.shipping and b.n:
            self._shipment.add(b)
            self._shipment.send(self.gate.released_through)
        if self.n_poisons:
            self.sift(b, now)
        return b.n

    cdef void ages(self, uint64_t now, uint16_t* out) noexcept nogil:
        """Of each port, how old the youngest frame is that was read since the last call, in units of 2**16 ns, rounded down; 0 where there
        is none, or one of which nobody knows when it came."""
        cdef int i
        memset(out, 0, MAX_PORTS * sizeof(uint16_t))
        for i in range(self._ports.n):
            out[i] = <uint16_t>min((now - min(now, self._youngest[i])) >> AGE_BITS, <uint64_t>0xffff) if self._youngest[i] else 0
            self._youngest[i] = 0

    # ── poison: frames that the app does not survive ─────────────────────────────────────────────

    cdef void sift(self, Burst b, uint64_t now) noexcept nogil:
        """Take quarantined frames out of `b`. They are consumed: named before, and counted."""
        cdef int i, k, n = 0
        cdef uint64_t key
        for i in range(b.n):
            key = nf_frame_key(self.secret, b.port[i], b.data(i), b.length[i])
            for k in range(self.n_poisons):
                if self.poisons[k].key == key:
                    break
            else:
                b.off[n], b.length[n], b.port[n], b.ts[n], b.key[n] = b.off[i], b.length[i], b.port[i], b.ts[i], b.key[i]
                n += 1
                continue
            self.c.quarantined += 1
        b.n = n
        k = 0
        while k < self.n_poisons:
            if self.poisons[k].until_ns <= now:
                self.n_poisons -= 1
                self.poisons[k] = self.poisons[self.n_poisons]
            else:
                k += 1

    def quarantine(self, uint64_t key, uint64_t until_ns):
        """Drop frames with this key until then. Raises StateError when 64 are remembered already."""
        if self.n_poisons == POISONS_MAX:
            raise StateError(f"{POISONS_MAX} frames are quarantined already")
        self.poisons[self.n_poisons].key, self.poisons[self.n_poisons].until_ns = key, until_ns
        self.n_poisons += 1

    def start_over(self, Parking parking):
        """Another app takes the place of one that failed, over the same arena: frames that the old one had are nobody's."""
        self.parking, self.in_flight = parking, 0

    def tx_burst(self, Burst burst not None):
        """Frames with verdict SEND go into the gate, those with DROP are dropped; both become DONE. Returns how many were
        sent. A frame the gate has no room for keeps its verdict and stays owned by the app: send it again or drop it.
        Raises StateError for an output port that does not exist, and for frames that were not handed out."""
        must_be_handed_out(self, burst)
        cdef int sent = self.send(burst)
        if sent < 0:
            raise_unsendable(self, burst)
        return sent

    cdef int send(self, Burst burst) noexcept nogil:
        """tx_burst without the GIL. -1: a frame was sent to a port that does not exist, or with a length that no frame has."""
        cdef int i, sent = 0, done = 0
        cdef uint8_t v
        cdef bint unsendable = False
        fault(FRAMES_DECIDED)
        for i in range(burst.n):
            v = burst.verdict[i]
            if v == SEND:
                if burst.out_port[i] >= self._ports.n or not 0 < burst.length[i] <= FRAME_MAX:
                    unsendable = True
                    break
                if not self.gate.hold(burst.out_port[i], burst.data(i), burst.length[i], self.epoch):
                    self.c.refused_full += 1
                    continue
                if self.keeping:
                    self._kept.made(self.gate.tail - 1, burst.key[i])
                if sent == 0:
                    fault(HALF_HELD)
                sent += 1
            elif v == DROP:
                self.c.dropped += 1
            else:
                continue
            burst.verdict[i] = DONE
            done += 1
        self.c.sent += sent
        self.in_flight -= done
        fault(BURST_HELD)
        return -1 if unsendable else sent

    def drop(self, Burst burst not None):
        """Drop every frame the app still owns in `burst`. Returns how many."""
        must_be_handed_out(self, burst)
        return self.let_go(burst)

    cdef int let_go(self, Burst burst) noexcept nogil:
        cdef int i, n = 0
        for i in range(burst.n):
            if burst.verdict[i] != DONE:
                burst.verdict[i] = DONE
                n += 1
        self.in_flight -= n
        self.c.dropped += n
        return n

    def finish(self, Burst burst not None):
        """tx_burst, then drop what is left: frames without a verdict are counted as undecided."""
        must_be_handed_out(self, burst)
        cdef int sent = self.complete(burst)
        if sent < 0:
            raise_unsendable(self, burst)
        return sent

    cdef int complete(self, Burst burst) noexcept nogil:
        cdef int i, sent = self.send(burst)
        if sent < 0:
            return -1
        if self.in_flight == 0:         # the app decided on every frame
            return sent
        for i in range(burst.n):
            if burst.verdict[i] == OWNED:
                self.c.undecided += 1
        self.let_go(burst)
        return sent

    def park(self, Burst burst not None, int i):
        """Move frame i into the replicated parking region. Returns its handle, or -1 when parking is full (counted):
        the frame then stays owned. `parking.take(handle)` gives (port, bytes) back, after a takeover as well."""
        cdef int handle = -1
        if i < 0 or i >= burst.n or burst.verdict[i] == DONE:
            raise IndexError(i)
        must_be_handed_out(self, burst)
        if self.parking is not None:
            handle = self.parking.park(burst.port[i], burst.data(i), burst.length[i])
        if handle < 0:
            self.c.refused_parking += 1
            return -1
        burst.verdict[i] = DONE
        self.in_flight -= 1
        self.c.parked += 1
        return handle

    def emit(self, int port, bytes frame):
        """A frame the app made: held like any other output. False when the gate is full (counted)."""
        cdef uint32_t n = len(frame)
        if port < 0 or port >= self._ports.n or n == 0 or n > 9216:
            raise StateError(f"emit of {n} bytes to port {port} of {self._ports.n}")
        if not self.gate.hold(<uint8_t>port, <const uint8_t*>frame, n, self.epoch):
            self.c.refused_full += 1
            return False
        self.c.made += 1
        return True

    @property
    def handed_out(self):
        """Frames given to the app since the start."""
        return self.c.handed_out

    @property
    def pending(self):
        """True when the open epoch has something to say: frames consumed, outputs held, lines written."""
        return bool(self.has_pending(monotonic_ns()))

    cdef bint has_pending(self, uint64_t now) noexcept nogil:
        return self.names.n > 0 or self.gate.tail != self.gate.captured or self.arena.written(now)

    @property
    def ports(self):
        """The list it was made with."""
        return self._ports.ports

    @property
    def tap(self):
        """While not None, frames come through this tap's filter, what it holds first: set at a takeover."""
        return self._tap if self.has_tap else None

    @tap.setter
    def tap(self, Tap tap):
        self.has_tap = tap is not None
        if tap is not None:
            self._tap = tap

    cdef keep_inputs(self, KeptInputs kept):
        """From the next epoch on, keep what outputs are made from; None: no more."""
        self.keeping = kept is not None
        if kept is not None:
            self._kept = kept

    cdef ship(self, Shipment shipment):
        """From the next poll on, what is read goes to the standby first; None: no more."""
        self.shipping = shipment is not None
        if shipment is not None:
            self._shipment = shipment

    def forget_names(self):
        """Start of a new protection: what was consumed before is nobody's business."""
        self.names.n = 0

    def counters(self):
        """dict of AgentCounters."""
        return dict(self.c)
