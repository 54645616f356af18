# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""For measurements: ports that make their own traffic, a function that writes one line a frame, and the limits.

The limits are what no checkpoint can be faster than: `gather` copies the same lines with nothing else; `ScanAndCopy` asks the
kernel for the written pages and copies them; `ping` sends records of the same size to a peer that only copies out and answers (`echo`).
"""
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from nfckpt.native.active_path cimport ActivePath
from nfckpt.native.agent cimport Agent
from nfckpt.native.arena cimport CHECK, LINE, PAGE, Arena
from nfckpt.native.burst cimport Burst, SEND
from nfckpt.native.channel cimport Channel, Message
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.epoch cimport EpochWriter, Header, Names, record_bytes_max
from nfckpt.native.function cimport NativeFunction
from nfckpt.native.gate cimport Gate
from nfckpt.native.memory_port cimport MemoryRing
from nfckpt.native.mmu cimport mmu_open
from nfckpt.native.port cimport Port
from nfckpt.native.sync cimport PageSync
from nfckpt.native.tracker cimport LINES, Marks, Watch


cdef enum:
    FRAMES_MAX = 4096
    FRAME_BYTES = 256
    SLOTS = 2048                # of a generator's transmit ring
    SLOT_BYTES = 64             # a longer frame waits in the gate
    PING = 250                  # no kind of the product's: StandbyPath.run leaves it to us
    PONG = 251
    PONG_BYTES = 40             # as an ack
    PING_BYTES_MAX = 1 << 20
    NEVER = 0                   # no epoch has this number


# ── ports that make their own traffic ────────────────────────────────────────────────────────────

cdef class Generator(Port):
    """Endless frames in, the given ones in turn; frames out are counted and forgotten.

    `numbered`: the last 8 bytes of each say which it is. `limit`: frames in all (None: no end); may be moved.
    Raises ValueError for more than 4096 frames, or frames of other than 42 to 256 bytes.
    """
    cdef uint8_t* bytes_
    cdef uint32_t length[FRAMES_MAX]
    cdef uint32_t n, at                 # frames, and which comes next
    cdef bint numbered
    cdef readonly uint64_t made
    cdef public uint64_t limit
    cdef Agent agent
    cdef bint paced
    cdef int per_epoch
    cdef bytearray _memory              # what bytes_ points into
    cdef uint8_t ring[SLOTS * SLOT_BYTES]
    cdef uint64_t staged, published

    def __init__(self, frames, limit=None, *, bint numbered=True):
        cdef int i
        frames = [bytes(frame) for frame in frames]
        if not 1 <= len(frames) <= FRAMES_MAX or not all(42 <= len(frame) <= FRAME_BYTES for frame in frames):
            raise ValueError(f"1 to {FRAMES_MAX} frames of 42 to {FRAME_BYTES} bytes")
        self.name, self.n, self.numbered = "generator", <uint32_t>len(frames), numbered
        self.limit = UINT64_MAX if limit is None else limit
        self._memory = bytearray(b"".join(frame.ljust(FRAME_BYTES, b"\0") for frame in frames))
        cdef uint8_t[::1] view = self._memory
        self.bytes_ = &view[0]
        for i in range(<int>self.n):
            self.length[i] = <uint32_t>len(frames[i])

    cdef const uint8_t* next(self, uint32_t* n) noexcept nogil:
        cdef uint8_t* p = self.bytes_ + self.at * FRAME_BYTES       # our own memory: nobody else sees `_memory`
        n[0] = self.length[self.at]
        self.at = self.at + 1 if self.at + 1 < self.n else 0
        if self.numbered:
            memcpy(p + n[0] - 8, &self.made, 8)
        self.made += 1
        return p

    def pace(self, Agent agent, int per_epoch):
        """From now on no more than `per_epoch` frames while one epoch of `agent` is open; None: as fast as they are read."""
        self.agent, self.paced, self.per_epoch = agent, agent is not None, per_epoch

    cdef int left(self, int wanted) noexcept nogil:
        if self.paced:
            wanted = min(wanted, self.per_epoch - <int>self.agent.names.n)
            if wanted <= 0:
                return 0
        if self.limit - self.made >= <uint64_t>wanted and self.limit >= self.made:
            return wanted
        return <int>(self.limit - self.made) if self.limit > self.made else 0

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        cdef int i
        cdef uint8_t* p
        cdef const uint8_t* data
        cdef uint32_t n
        cdef uint64_t now = monotonic_ns()
        max_frames = self.left(max_frames)
        for i in range(max_frames):
            p = b.append(self.length[self.at], index, now)
            if p == NULL:
                return i
            data = self.next(&n)
            memcpy(p, data, n)
        self.c.rx_frames += max_frames
        return max_frames

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        self.c.tx_frames += 1
        self.c.tx_bytes += n
        return 1

    cdef int flush(self) noexcept nogil:
        return 0

    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil:
        cdef uint8_t* p
        if self.staged - self.published == SLOTS or n > SLOT_BYTES:
            return NULL
        p = self.ring + (self.staged % SLOTS) * SLOT_BYTES
        memcpy(p, data, n)
        self.staged += 1
        return p

    cdef int publish(self) noexcept nogil:
        self.published += 1
        self.c.tx_frames += 1
        return 1


cdef class Fed(Port):
    """A memory port that is fed as it is read: `source` sends the frames of `generator` into the segment, where `port` receives
    them, and so does everybody else. What a third machine would do, done here: its cost is counted as ours."""
    cdef MemoryRing source, port
    cdef readonly Generator generator

    def __init__(self, Generator generator not None, MemoryRing source not None, MemoryRing port not None):
        self.name, self.generator, self.source, self.port = port.name, generator, source, port

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        cdef int i, n
        cdef uint32_t length
        cdef const uint8_t* data
        for i in range(self.generator.left(max_frames)):
            data = self.generator.next(&length)
            self.source.tx(data, length)
        self.source.flush()
        n = self.port.rx(b, max_frames, index)
        self.c = self.port.c
        return n

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        return self.port.tx(data, n)

    cdef int flush(self) noexcept nogil:
        return self.port.flush()

    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil:
        return self.port.stage(data, n)

    cdef int publish(self) noexcept nogil:
        return self.port.publish()


# ── a function ───────────────────────────────────────────────────────────────────────────────────

cdef class LineWriter(NativeFunction):
    """Sends every frame back, one bit of its destination changed (an output is no input), and for each adds one to a counter in a
    line chosen uniformly from `nbytes` of arena (0: writes nothing).

    After `watch(agent, frames)` it counts in `whole` the epochs that consumed exactly so many frames.
    """
    cdef uint64_t nbytes, off, lines
    cdef Arena arena
    cdef Agent agent
    cdef bint watched
    cdef uint64_t epoch, frames, wanted
    cdef readonly uint64_t whole

    def __init__(self, uint64_t nbytes=1 << 20):
        self.ports = ("in",)
        self.nbytes = nbytes

    def declare(self, state):
        self.arena = state.arena
        self.lines = self.nbytes // LINE
        if self.lines:
            self.off = self.arena.region("lines", self.nbytes, "bench", str(self.nbytes))

    def watch(self, Agent agent, uint64_t frames):
        """Count epochs of `frames` frames from now on; the epoch that is open now ends the last count."""
        self.whole += self.watched and self.frames == self.wanted
        self.agent, self.watched = agent, agent is not None
        self.wanted, self.epoch, self.frames = frames, NEVER, 0

    cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil:
        cdef int i
        cdef uint64_t* p
        cdef uint64_t at[256]
        if self.watched:
            if self.agent.epoch != self.epoch:
                self.whole += self.frames == self.wanted
                self.epoch, self.frames = self.agent.epoch, 0
            self.frames += b.n
        if self.lines:
            for i in range(b.n):            # as an app that looks up a whole burst would: ask first, then touch
                at[i] = self.off + (((self.random_u64() >> 32) * self.lines) >> 32) * LINE
                self.arena.expect(at[i])
        for i in range(b.n):
            if self.lines:
                p = <uint64_t*>self.arena.write(at[i], LINE)
                p[0] += 1
                p[7] ^= p[0]
            b.data(i)[5] ^= 1
            b.verdict[i] = SEND
            b.out_port[i] = 0
        return 0


# ── single mechanisms, timed ─────────────────────────────────────────────────────────────────────

def write_lines(Arena arena not None, const uint32_t[::1] lines not None, bint marked=True):
    """Write one word in each of these 64-byte lines, marking them; or not `marked`: by plain stores, for an mmu tracker to find."""
    cdef Py_ssize_t i
    cdef uint64_t off
    with nogil:
        for i in range(lines.shape[0]):
            off = <uint64_t>lines[i] * LINE
            CHECK(off < arena.size)
            (<uint64_t*>(arena.write(off, LINE) if marked else arena.base + off))[0] += 1


def gather(Arena arena not None, const uint32_t[::1] lines not None, uint8_t[::1] into not None):
    """Copy these lines, one after the other, into `into` (64 bytes a line), and nothing else. Returns ns."""
    cdef Py_ssize_t i, n = lines.shape[0]
    cdef uint64_t began
    if into.shape[0] < n * LINE:
        raise ValueError("no room for the lines")
    with nogil:
        began = monotonic_ns()
        for i in range(n):
            memcpy(&into[i * LINE], arena.base + <uint64_t>lines[i] * LINE, LINE)
        began = monotonic_ns() - began
    return began


cdef class ScanAndCopy:
    """The kernel's scan over a mapping of our own, and a plain copy of the pages it reports. `memory`: a mapping, page aligned.

    Raises MachineError where such a scan cannot be had.
    """
    cdef Watch w
    cdef Marks m
    cdef object _memory

    def __cinit__(self, memory):
        cdef uint8_t[::1] view = memory
        self._memory = view
        self.w.base, self.w.n_pages = &view[0], <uint32_t>(view.shape[0] // PAGE)
        self.m.bits = <uint64_t*>calloc(self.w.n_pages, 8)
        self.m.log = <uint32_t*>calloc(self.w.n_pages, LINES * 4)
        if self.m.bits == NULL or self.m.log == NULL:
            raise MemoryError
        mmu_open(&self.w)

    def __dealloc__(self):
        if self.w.close != NULL:
            self.w.close(&self.w)
        free(self.m.bits)
        free(self.m.log)

    def ns(self, const uint32_t[::1] lines not None, uint8_t[::1] into not None):
        """Write one byte in each of these lines; then scan and copy their pages into `into`. Returns ns of the latter."""
        cdef Py_ssize_t i
        cdef uint64_t began, n
        with nogil:
            for i in range(lines.shape[0]):
                CHECK(lines[i] < <uint64_t>self.w.n_pages * LINES)
                (self.w.base + <uint64_t>lines[i] * LINE)[0] += 1
            began = monotonic_ns()
            self.w.collect(&self.w, &self.m)
            n = self.m.n // LINES
            CHECK(n * PAGE <= <uint64_t>into.shape[0])
            for i in range(<Py_ssize_t>n):
                memcpy(&into[i * PAGE], self.w.base + <uint64_t>self.m.log[i * LINES] * LINE, PAGE)
            began = monotonic_ns() - began
            for i in range(<Py_ssize_t>n):
                self.m.bits[self.m.log[i * LINES] // LINES] = 0
            self.m.n = 0
        return began


def timed_capture(EpochWriter writer not None, Arena arena not None, Gate gate not None, Names names not None, uint64_t epoch,
                  uint8_t[::1] into not None):
    """The capture of epoch `epoch` into `into`, which has room for any. Returns (ns, bytes)."""
    cdef Header want
    cdef uint64_t began, n
    cdef PageSync none = PageSync(arena, 0)
    CHECK(<uint64_t>into.shape[0] >= record_bytes_max(arena, gate, names, 0))
    memset(&want, 0, sizeof(want))
    want.session, want.term, want.epoch = 1, 1, epoch
    with nogil:
        writer.ask(arena, epoch)            # as ActivePath.run does, before the app works
        began = monotonic_ns()
        n = writer.measure(arena, gate, names, epoch, none, False)
        writer.capture(arena, gate, names, &want, none, &into[0])
        began = monotonic_ns() - began
    return began, n


def timed_cut(ActivePath path not None):
    """One capturing poll. Returns ns. Raises RuntimeError when it was none."""
    cdef uint64_t began
    cdef bint cut
    with nogil:
        began = monotonic_ns()
        cut = path.cut(began)
        began = monotonic_ns() - began
    if not cut:
        raise RuntimeError("nothing was captured")
    return began


def delays(ActivePath path not None, NativeFunction app not None, Burst burst not None, int frames, uint32_t[::1] out not None):
    """For each of `out`: one burst of `frames`; ns from the end of the app's call until all its outputs have left. Raises
    RuntimeError when they do not within a second."""
    cdef Py_ssize_t k
    cdef uint64_t began = 0, now = 0
    cdef Agent agent = path.agent
    cdef bint late = False
    with nogil:
        for k in range(out.shape[0]):
            now = monotonic_ns()
            burst.clear()
            if agent.receive(burst, frames, now) != frames:
                late = True
                break
            if path.holding:                # as ActivePath.run does
                path.writer.ask(agent.arena, path.engine.epoch)
            if app.on_burst(burst, now) or agent.complete(burst) != frames:
                late = True
                break
            began = monotonic_ns()
            while True:
                now = monotonic_ns()
                if path.boundary(now) == 2:
                    late = True
                if agent.gate.head == agent.gate.tail:
                    break
                if now - began > 1000000000:
                    late = True
                if late:
                    break
            if late:
                break
            out[k] = <uint32_t>(monotonic_ns() - began)
    if late:
        raise RuntimeError("outputs did not leave")


def echo(Channel channel not None, uint64_t until_ns):
    """Copy out and answer every ping until `until_ns`; ends early at any other message. Returns how many."""
    cdef Message m
    cdef uint8_t pong[PONG_BYTES]
    cdef uint64_t n = 0
    cdef int r
    memset(pong, 0, PONG_BYTES)
    with nogil:
        while monotonic_ns() < until_ns:
            r = channel.pop(&m)
            if r < 0:
                break
            if r == 0:
                continue
            if m.kind != PING:
                channel.put_back(&m)
                break
            channel.push(PONG, pong, PONG_BYTES)
            channel.drain()
            n += 1
    return n


def ping(Channel channel not None, uint64_t nbytes, uint32_t window, uint64_t rounds, uint64_t until_ns, uint32_t[::1] took=None):
    """Send pings of `nbytes` bytes, at most `window` unanswered, until `rounds` are answered or `until_ns`; then wait for the
    answers. With a window of 1, `took` gets each round trip in ns. Returns how many. Raises RuntimeError when the peer ends."""
    cdef Message m
    cdef uint64_t sent = 0, answered = 0, began = 0, now
    if not 0 < nbytes <= PING_BYTES_MAX:
        raise ValueError(f"a ping of {nbytes} bytes")
    cdef uint8_t[::1] data = bytearray(nbytes)
    cdef int r = 0
    cdef bint more = True
    with nogil:
        while True:
            now = monotonic_ns()
            more = more and now < until_ns and sent < rounds
            if more and sent - answered < window:
                if sent == answered:
                    began = now
                if channel.push(PING, &data[0], nbytes) == 1:
                    sent += 1
            r = channel.pop(&m)
            if r < 0 or (r == 1 and m.kind != PONG):
                r = -1
                break
            if r == 1:
                if took is not None and window == 1 and <Py_ssize_t>answered < took.shape[0]:
                    took[answered] = <uint32_t>(monotonic_ns() - began)
                answered += 1
            channel.drain()
            if not more and sent == answered:
                break
    if r < 0:
        raise RuntimeError("the peer ended")
    return answered


def fill(Arena arena not None, str region, uint64_t seed):
    """Fill a region with incompressible bytes (splitmix64), unmarked: what was there before protection began."""
    cdef uint64_t i, z, n, off, step = 0x9e3779b97f4a7c15, m1 = 0xbf58476d1ce4e5b9, m2 = 0x94d049bb133111eb
    off, n = arena._names[region][:2]
    cdef uint64_t* p = <uint64_t*>(arena.base + off)
    with nogil:
        for i in range(n // 8):
            seed += step
            z = (seed ^ (seed >> 30)) * m1
            z = (z ^ (z >> 27)) * m2
            p[i] = z ^ (z >> 31)
