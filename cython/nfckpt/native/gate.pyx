# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Output gate: I5 in one place. No output of epoch e leaves before commit(e), and each leaves once.

Picture     released_through   head          captured        tail
            ───────┬────────────┬───────────────┬──────────────┬──►  sequence number, one a frame, never reused
             sent  │ in the     │ committed or  │ of the open  │
                   │ port's ring│ shipped       │ epoch        │

States      closed: a frame leaves when its epoch is at most `committed`.
            open:   everything leaves at once (solo, by permission of the witness).

Where       in the port's transmit ring, staged until its epoch commits, where the port allows it: then a frame is copied once on its
            way out. In the gate's own bytes where it does not, or its ring is full; from there in the same order.

Promises    G1 frames leave in the order they were held, byte for byte.
            G2 a full gate refuses (hold returns False, counted), it never drops.
            G3 `released_through` counts only frames that the port's ring has given to the kernel.
            G4 an output numbered `leaving` of its port or higher has not begun to leave: who dies leaves that behind (native/life.pyx).
"""
from nfckpt.errors import StateError

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from nfckpt.native.fault cimport HALF_RELEASED, RELEASED, fault

cdef extern from *:
    """static void gate_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }   /* before what follows */"""
    void gate_store(uint64_t*, uint64_t) noexcept nogil

cdef enum:
    SLACK = 16384               # a wrap of the byte ring wastes less than this

cdef uint64_t ALL = 0xffffffffffffffff


cdef class Gate:
    """`capacity` frames (rounded up to a power of two) in `buf_bytes` bytes, in front of `ports` (list of Port)."""

    def __cinit__(self, list ports, uint32_t capacity=65536, uint64_t buf_bytes=16 << 20):
        cdef uint32_t n = 256
        if capacity > 1 << 24 or buf_bytes > <uint64_t>1 << 31 or buf_bytes < 4 * SLACK:
            raise StateError(f"a gate of {capacity} frames and {buf_bytes} bytes is out of bounds")
        while n < capacity:
            n *= 2
        self.capacity = n
        self.mask = n - 1
        self.buf_bytes = buf_bytes
        self.held = <Held*>calloc(n, sizeof(Held))
        self.buf = <uint8_t*>malloc(buf_bytes)
        if self.held == NULL or self.buf == NULL:
            raise MemoryError
        self._ports = PortSet(ports)
        self.committed = 0
        self._waiting = 0
        self.leaving, self.left = self._own_leaving, &self._own_left

    def __dealloc__(self):
        free(self.held)
        free(self.buf)

    def start_at(self, uint64_t seq):
        """Number the next frame `seq`: a promoted node goes on where the committed outputs ended."""
        if self.tail != self.head:
            raise StateError("the gate holds frames")
        self.head = self.tail = self.released_through = seq
        self.capture()

    cdef bint room(self, uint32_t frames, uint64_t nbytes) noexcept nogil:
        return (self.capacity - (self.tail - self.head) >= frames
                and self.buf_bytes - (self.buf_tail - self.buf_head) >= nbytes + SLACK)

    cdef bint crowded(self) noexcept nogil:
        """Half full, and some of it waits for a capture: until then input stops when the rest is full as well."""
        return self.tail != self.captured and ((self.tail - self.head) * 2 > self.capacity
                                               or (self.buf_tail - self.buf_head) * 2 > self.buf_bytes)

    cdef bint hold(self, uint8_t port, const uint8_t* data, uint32_t n, uint64_t epoch) noexcept nogil:
        cdef Held* h
        cdef uint64_t at
        if not self.room(1, n):
            self.refused_full += 1
            return False
        h = &self.held[<uint32_t>self.tail & self.mask]
        h.data = self._ports.stage(port, data, n) if self._behind[port] == 0 else NULL
        h.staged = h.data != NULL
        if not h.staged:
            at = self.buf_tail % self.buf_bytes
            if at + n > self.buf_bytes:
                self.buf_tail += self.buf_bytes - at
                at = 0
            memcpy(self.buf + at, data, n)
            h.data = self.buf + at
            self.buf_tail += n
            self._behind[port] += 1
        h.epoch = epoch
        h.end = self.buf_tail
        h.length = <uint16_t>n
        h.port = port
        self.uncaptured_bytes += (n + 7) & ~7
        self.tail += 1
        return True

    def keep_back(self, bint on):
        """From now on frames are held here, and not staged in their ports' rings: there nobody can take them back. Ends with False."""
        cdef int p
        for p in range(self._ports.n):
            self._behind[p] += 1 if on else -1

    def retract(self, uint64_t seq):
        """Forget the frames from number `seq` on, as if they had never been held. Raises StateError when one of them left, or was
        held while `keep_back` was off."""
        cdef uint64_t number
        cdef Held* h
        if not self.head <= seq <= self.tail or seq < self.captured:
            raise StateError(f"frames from {seq} on are not all held: {max(self.head, self.captured)} to {self.tail}")
        for number in range(seq, self.tail):
            if self.held[<uint32_t>number & self.mask].staged:
                raise StateError(f"frame {number} is staged in its port's ring", "keep_back(True) before it is held")
        for number in range(seq, self.tail):
            h = &self.held[<uint32_t>number & self.mask]
            self._behind[h.port] -= 1
            self.uncaptured_bytes -= (h.length + 7) & ~7
        self.tail = seq
        self.buf_tail = self.held[<uint32_t>(seq - 1) & self.mask].end if seq > self.head else self.buf_head

    def release(self):
        """Hand every frame whose epoch is committed to its port. Returns how many. A port that is full is retried
        at the next call; frames that a port refuses for good are counted in `refused_port`."""
        return self.leave()

    cdef int leave(self) noexcept nogil:
        cdef Held* h
        cdef int n = 0, r, p
        cdef bint full = False
        while self.head < self.tail:
            h = &self.held[<uint32_t>self.head & self.mask]
            if h.epoch > self.committed:
                break
            if h.staged:
                r = self._ports.publish(h.port)         # and it leaves at the flush
            else:
                gate_store(self.leaving + h.port, self.head + 1)
                r = self._ports.tx(h.port, h.data, h.length)
                if r == 0:
                    self._ports.flush(h.port)
                    r = self._ports.tx(h.port, h.data, h.length)
                    if r == 0:
                        full = True
                        break
                self._behind[h.port] -= 1
            if r < 0:
                self.refused_port += 1
            self.buf_head = h.end
            self.head += 1
            if n == 0:
                fault(HALF_RELEASED)
            n += 1
        if self.head == self.tail:              # start over at the first byte: what is in use stays in cache
            self.buf_head = self.buf_tail = 0
        if n or self._waiting or full:
            self._waiting = 0
            for p in range(self._ports.n):
                gate_store(self.leaving + p, self.head)
                if self._ports.flush(p) != 0:       # some wait, or the port is gone with what it had taken
                    self._waiting += 1
            if self._waiting == 0:
                self.released_through = self.head
                gate_store(self.left, self.head)
            fault(RELEASED)
        return n

    def commit(self, uint64_t epoch):
        """Frames of epochs up to `epoch` may leave. Commits only grow."""
        self.commit_through(epoch)

    cdef void commit_through(self, uint64_t epoch) noexcept nogil:
        if self.committed != ALL and epoch > self.committed:
            self.committed = epoch

    def open(self):
        """Everything may leave at once: this node is solo, by permission."""
        self.committed = ALL

    def shut(self, uint64_t epoch):
        """Hold again: what is held from now on waits for commit(its epoch); `epoch` is the last committed one."""
        self.committed = epoch

    def captured_all(self):
        """What is held now is nobody's epoch: it was let go by permission before protection began."""
        self.capture()

    cdef void capture(self) noexcept nogil:
        """What is held now is in a record."""
        self.captured = self.tail
        self.uncaptured_bytes = 0

    @property
    def is_open(self):
        return self.committed == ALL

    @property
    def leaving_through(self):
        """list, by port: outputs below this number have left, or have begun to."""
        return [int(self.leaving[p]) for p in range(self._ports.n)]

    @property
    def held_frames(self):
        """Frames waiting, in any state."""
        return int(self.tail - self.head)

    @property
    def uncaptured(self):
        """Frames of the open epoch."""
        return int(self.tail - self.captured)
