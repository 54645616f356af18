# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Epoch record: what one checkpoint says, built inside the poll and applied by swap.

    0        4    6     8         16      24      32       40                 48          56
    +--------+----+-----+---------+-------+-------+--------+------------------+-----------+---------+
    | "NFE1" | v2 |flags| session | term  | epoch | now_ns | released_through | first_seq | echo_ns |
    +--------+----+-----+---------+-------+-------+--------+------------------+-----------+---------+
    64        68          72              76        80        84            88           96            104
    +---------+-----------+---------------+---------+---------+-------------+------------+-------------+-------------+
    | n_names | n_outputs | output_bytes  | n_lines | n_pages | ports_empty | window_off | window_hash | total_bytes |
    +---------+-----------+---------------+---------+---------+-------------+------------+-------------+-------------+
    112
    +-----------+
    | 16 × u16: | of each port, how old the youngest frame is that the record names, in units of 2**16 ns, rounded down
    +-----------+
    144
    keys    n_names × u64   · ports  n_names × u8, padded to 8
    outputs n_outputs × { u16 port · u16 length · u32 zero · bytes padded to 8 }   (output_bytes together)
    lines   n_lines × u32 number, padded to 8 · n_lines × 64 bytes
    pages   n_pages × u32 number, padded to 8 · n_pages × 4096 bytes                (sync only)

All little-endian. `echo_ns` is the last time stamp heard from the standby before the previous capture; `ports_empty` has
a bit for each port found empty since then. `window_*` is the rotating 256-byte check of the arena.

Promises    E1 a record is one instant: it is built between two polls with no frame in the app (I1, I4).
            E2 a record that does not add up raises PeerError before a byte of it is used (I14).
            E3 swap() and unswap() are each other's inverse and refuse to run twice (I8).
"""
from nfckpt.errors import PeerError, StateError

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from nfckpt.native.arena cimport CHECK, __builtin_prefetch, LINE, PAGE
from nfckpt.native.burst cimport FRAME_MAX
from nfckpt.native.digest cimport nf_hash
from nfckpt.native.fault cimport HALF_APPLIED, fault
from nfckpt.native.gate cimport Held
from nfckpt.native.staging cimport Staging

MAGIC = EPOCH_MAGIC
VERSION = EPOCH_VERSION
LAST = SYNC_LAST


cdef inline uint64_t pad8(uint64_t n) noexcept nogil:
    return (n + 7) & ~<uint64_t>7


cdef inline void pad_with_zeros(uint8_t* p, uint64_t n) noexcept nogil:
    """What follows n bytes up to a multiple of 8; the bytes themselves come next, so they may be written too."""
    if n & 7:
        (<uint64_t*>(p + (n & ~<uint64_t>7)))[0] = 0


cdef uint64_t window_at(uint64_t epoch, uint64_t used) noexcept nogil:
    """The window of this epoch: 256-byte blocks in an order that visits all of them."""
    cdef uint64_t blocks = used // WINDOW
    return (epoch * <uint64_t>2654435761) % blocks * WINDOW


cdef inline void ask_window(Arena arena, uint64_t off) noexcept nogil:
    cdef int line
    for line in range(WINDOW // LINE):
        __builtin_prefetch(arena.base + off + line * LINE, 0)


cdef class Names:
    """Keys of the frames that the open epoch consumed, in order; room for `capacity`."""

    def __cinit__(self, uint32_t capacity):
        self.capacity = capacity
        self.key = <uint64_t*>malloc(capacity * 8)
        self.port = <uint8_t*>malloc(capacity)
        if self.key == NULL or self.port == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.key)
        free(self.port)


cdef uint64_t record_bytes_max(Arena arena, Gate gate, Names names, uint32_t pages_max) noexcept nogil:
    """Length of the longest record there can be: every line written, a full gate, every frame named, a whole group."""
    return (HEADER_BYTES + pad8(<uint64_t>names.capacity * 9 + 8) + <uint64_t>gate.capacity * (sizeof(OutputHead) + 8) + gate.buf_bytes
            + <uint64_t>arena.n_pages * 64 * (4 + LINE) + 8 + <uint64_t>pages_max * (4 + PAGE) + 8)


cdef class EpochWriter:
    """Builds records. `secret`: 32 bytes shared by the pair."""

    def __cinit__(self, bytes secret):
        if len(secret) != 32:
            raise StateError("the secret must be 32 bytes")
        memcpy(self.secret, <const uint8_t*>secret, 32)

    def build(self, Arena arena not None, Gate gate not None, Names names not None, uint64_t session, uint64_t term,
              uint64_t epoch, uint64_t now_ns, uint64_t echo_ns, uint32_t ports_empty, PageSync sync=None,
              bint pages=True, ages=()):
        """Capture: drain marks, names and uncaptured outputs into one record, a bytearray. With `pages` the next group of `sync`
        rides along; flag LAST is set when no page is left. `ages`: of the youngest frame of each port, in units of 2**16 ns."""
        cdef Header want
        cdef PageSync none = PageSync(arena, 0) if sync is None else sync
        cdef Staging memory = Staging(record_bytes_max(arena, gate, names, none.group_max))
        want.session, want.term, want.epoch = session, term, epoch
        want.now_ns, want.echo_ns, want.ports_empty = now_ns, echo_ns, ports_empty
        memset(want.ages, 0, sizeof(want.ages))
        for i, age in enumerate(ages[:MAX_PORTS]):
            want.ages[<int>i] = age
        cdef uint8_t* buf = memory.room()
        cdef uint64_t n = self.measure(arena, gate, names, epoch, none, pages)
        self.capture(arena, gate, names, &want, none, buf)
        return bytearray(buf[:n])

    cdef void ask(self, Arena arena, uint64_t epoch) noexcept nogil:
        """The window of `epoch` is cold memory, but known before its capture: let it come while the app works."""
        ask_window(arena, window_at(epoch, arena._top))

    cdef uint64_t measure(self, Arena arena, Gate gate, Names names, uint64_t epoch, PageSync sync, bint pages) noexcept nogil:
        """How many bytes a capture of epoch `epoch` takes; nothing is drained yet. `pages`: a group of `sync` rides along."""
        self.n_pages = 0
        arena.collect()
        self.syncing = not sync.done
        if self.syncing:
            sync.forget_unsent()
            if pages:
                self.n_pages = sync.choose(epoch)
        self.n_lines = arena.marks.n
        self.output_bytes = (gate.tail - gate.captured) * sizeof(OutputHead) + gate.uncaptured_bytes
        self.total = (HEADER_BYTES + names.n * 8 + pad8(names.n) + self.output_bytes + pad8(self.n_lines * 4) + self.n_lines * LINE
                      + pad8(<uint64_t>self.n_pages * 4) + <uint64_t>self.n_pages * PAGE)
        return self.total

    cdef void capture(self, Arena arena, Gate gate, Names names, Header* want, PageSync sync, uint8_t* buf) noexcept nogil:
        """`build` without the GIL, into `buf`, which has room for what `measure` has just said. `want` has session, term, epoch,
        now_ns, echo_ns, ports_empty, ages."""
        cdef uint64_t seq, p
        cdef uint32_t i
        cdef Held* held
        cdef Header* h
        cdef OutputHead* oh
        h = <Header*>buf
        memset(h, 0, HEADER_BYTES)
        h.magic = EPOCH_MAGIC
        h.version = EPOCH_VERSION
        h.session = want.session
        h.term = want.term
        h.epoch = want.epoch
        h.now_ns = want.now_ns
        h.echo_ns = want.echo_ns
        h.ports_empty = want.ports_empty
        if names.n:
            memcpy(h.ages, want.ages, sizeof(h.ages))
        h.released_through = gate.released_through
        h.first_seq = gate.captured
        h.n_names = names.n
        p = HEADER_BYTES
        memcpy(buf + p, names.key, names.n * 8)
        p += names.n * 8
        pad_with_zeros(buf + p, names.n)
        memcpy(buf + p, names.port, names.n)
        p += pad8(names.n)
        names.n = 0
        # outputs
        h.n_outputs = <uint32_t>(gate.tail - gate.captured)
        h.output_bytes = <uint32_t>self.output_bytes
        for seq in range(gate.captured, gate.tail):
            held = &gate.held[<uint32_t>seq & gate.mask]
            oh = <OutputHead*>(buf + p)
            oh.port = held.port
            oh.length = held.length
            oh.zero = 0
            p += sizeof(OutputHead)
            pad_with_zeros(buf + p, held.length)
            memcpy(buf + p, held.data, held.length)
            p += pad8(held.length)
        gate.capture()
        # lines
        h.n_lines = <uint32_t>self.n_lines
        pad_with_zeros(buf + p, self.n_lines * 4)
        arena.drain(<uint32_t*>(buf + p), buf + p + pad8(self.n_lines * 4))
        p += pad8(self.n_lines * 4) + self.n_lines * LINE
        # pages of a sync
        h.n_pages = self.n_pages
        pad_with_zeros(buf + p, self.n_pages * 4)
        memcpy(buf + p, sync.chosen, self.n_pages * 4)
        p += pad8(self.n_pages * 4)
        for i in range(self.n_pages):
            memcpy(buf + p, arena.base + <uint64_t>sync.chosen[i] * PAGE, PAGE)
            p += PAGE
        if self.syncing and sync.done:
            h.flags |= SYNC_LAST
        h.window_off = window_at(h.epoch, arena._top)
        h.window_hash = nf_hash(self.secret, h.epoch, arena.base + h.window_off, WINDOW)
        h.total_bytes = p
        CHECK(p == self.total)



# ── a received record ────────────────────────────────────────────────────────────────────────────

FAULTS = (
    "", "is shorter than its header", "has another magic or version (run the same nfckpt on both nodes)",
    "has another length than it says", "has names or outputs that overrun it", "names a port that does not exist",
    "has an output with a bad length or port", "has outputs that do not fill their bytes",
    "has lines and pages that do not fill it", "writes outside the arena", "checks a window outside the arena",
)


cdef str record_fault(int code):
    return f"epoch record {FAULTS[code]}"


cdef int record_parse(Record* r, uint8_t* base, uint64_t total, Arena arena, int n_ports) noexcept nogil:
    """Point r into the record at `base` after checking every count, length, offset and index in it. 0, or an index of
    FAULTS: nothing of it may be used then. 32-bit counts times at most 4100 bytes: no sum passes 2**64."""
    cdef uint64_t p, q = 0
    cdef uint32_t i
    cdef Header* h = <Header*>base
    cdef OutputHead* oh
    if total < HEADER_BYTES:
        return 1
    if h.magic != EPOCH_MAGIC or h.version != EPOCH_VERSION:
        return 2
    if h.total_bytes != total:
        return 3
    r.h = h
    p = HEADER_BYTES
    r.keys = <uint64_t*>(base + p)
    p += <uint64_t>h.n_names * 8
    r.ports = base + p
    p += pad8(h.n_names)
    r.outputs = base + p
    p += h.output_bytes
    if p > total:
        return 4
    for i in range(h.n_names):
        if r.ports[i] >= n_ports:
            return 5
    for i in range(h.n_outputs):
        if q + sizeof(OutputHead) > h.output_bytes:
            return 6
        oh = <OutputHead*>(r.outputs + q)
        q += sizeof(OutputHead) + pad8(oh.length)
        if q > h.output_bytes or oh.port >= n_ports or oh.length > FRAME_MAX or oh.length == 0:
            return 6
    if q != h.output_bytes:
        return 7
    r.line_no = <uint32_t*>(base + p)
    p += pad8(<uint64_t>h.n_lines * 4)
    r.lines = base + p
    p += <uint64_t>h.n_lines * LINE
    r.page_no = <uint32_t*>(base + p)
    p += pad8(<uint64_t>h.n_pages * 4)
    r.pages = base + p
    p += <uint64_t>h.n_pages * PAGE
    if p != total:
        return 8
    for i in range(h.n_lines):
        if r.line_no[i] >= <uint64_t>arena.n_pages * 64:
            return 9
    for i in range(h.n_pages):
        if r.page_no[i] >= arena.n_pages:
            return 9
    if h.window_off > arena.size - WINDOW:
        return 10
    return 0


cdef bint record_register(Record* r, Tap tap, uint64_t now, uint64_t captured_by) noexcept nogil:
    """Names and expected outputs go into the tap, all or nothing: False when there is no room now (rule 3). `captured_by`: when the record
    was captured, at the latest, by the clock of the tap."""
    cdef Header* h = r.h
    cdef uint64_t by[MAX_PORTS]
    cdef uint32_t i
    cdef uint64_t q = 0
    cdef OutputHead* oh
    if not tap.fits(h.n_names, h.n_outputs, h.output_bytes):
        return False
    for i in range(h.n_outputs):
        oh = <OutputHead*>(r.outputs + q)
        q += sizeof(OutputHead)
        CHECK(tap.expect(h.first_seq + i, <uint8_t>oh.port, r.outputs + q, oh.length, now))
        q += pad8(oh.length)
    for i in range(<uint32_t>tap._ports.n if h.n_names else 0):
        by[i] = captured_by - (<uint64_t>h.ages[i] << AGE_BITS) + tap.skew_ns
    for i in range(h.n_names):
        tap.name(r.keys[i], r.ports[i], now, by[r.ports[i]])
    if h.ports_empty:
        tap.mark_empty(h.ports_empty, h.echo_ns)
    return True


cdef extern from *:
    """
    #include <stdint.h>
    /* 64 bytes, 16 at a time: left to itself the compiler swaps word by word, for the two might overlap */
    typedef uint64_t nf_wide __attribute__((vector_size(16), aligned(8), may_alias));
    static inline void nf_swap_line(void *a, void *b) {
        nf_wide *x = (nf_wide *)a, *y = (nf_wide *)b;
        for (int i = 0; i < 4; i++) { nf_wide t = x[i]; x[i] = y[i]; y[i] = t; }
    }
    """
    void swap_line "nf_swap_line"(void* a, void* b) noexcept nogil


cdef inline void _swap_line(Record* r, Arena arena, uint32_t i) noexcept nogil:
    swap_line(arena.base + <uint64_t>r.line_no[i] * LINE, r.lines + <uint64_t>i * LINE)


cdef inline void _swap_page(Record* r, Arena arena, uint32_t i) noexcept nogil:
    cdef uint32_t line
    for line in range(PAGE // LINE):
        swap_line(arena.base + <uint64_t>r.page_no[i] * PAGE + line * LINE, r.pages + <uint64_t>i * PAGE + line * LINE)


cdef void record_ask(Record* r, Arena arena) noexcept nogil:
    """An apply comes soon: its first lines and its window lie anywhere, ask for them all before the first is needed."""
    cdef uint32_t i
    for i in range(min(r.h.n_lines, <uint32_t>ASK_LINES)):
        __builtin_prefetch(arena.base + <uint64_t>r.line_no[i] * LINE, 1)
    ask_window(arena, r.h.window_off)


cdef void record_apply(Record* r, Arena arena) noexcept nogil:
    """Exchange the record's lines and pages with the arena's: the record becomes the undo log."""
    cdef uint32_t i
    for i in range(r.h.n_lines):
        if i + ASK_LINES < r.h.n_lines:
            __builtin_prefetch(arena.base + <uint64_t>r.line_no[i + ASK_LINES] * LINE, 1)
        if i == r.h.n_lines >> 1:
            fault(HALF_APPLIED)
        _swap_line(r, arena, i)
    for i in range(r.h.n_pages):
        _swap_page(r, arena, i)


cdef void record_undo(Record* r, Arena arena) noexcept nogil:
    """Inverse of record_apply, last first: a line may lie in a page, and a peer may name one twice."""
    cdef uint32_t i
    for i in range(r.h.n_pages, 0, -1):
        _swap_page(r, arena, i - 1)
    for i in range(r.h.n_lines, 0, -1):
        _swap_line(r, arena, i - 1)


cdef bint record_agrees(Record* r, Arena arena, const uint64_t* secret) noexcept nogil:
    """After the apply: does the active's 256-byte window read the same here?"""
    return nf_hash(secret, r.h.epoch, arena.base + r.h.window_off, WINDOW) == r.h.window_hash


cdef class EpochRecord:
    """A record out of `memory` (a writable buffer that no peer can write), checked against the receiver's arena.

    Raises PeerError with the reason when it does not add up.
    """

    def __cinit__(self, memory, Arena arena not None, int n_ports):
        cdef uint8_t[::1] view = memory
        cdef int fault = record_parse(&self.r, &view[0], view.shape[0], arena, n_ports) if view.shape[0] else 1
        if fault:
            raise PeerError(record_fault(fault))
        self._memory = view

    def register(self, Tap tap not None, uint64_t now):
        """Names and expected outputs go into the tap, all or nothing: False when there is no room now (rule 3)."""
        return bool(record_register(&self.r, tap, now, now))

    def swap(self, Arena arena not None):
        """Apply: exchange this record's lines and pages with the arena's. The record becomes the undo log."""
        CHECK(not self.applied)
        record_apply(&self.r, arena)
        self.applied = True

    def unswap(self, Arena arena not None):
        """Undo the swap: the arena is again what it was before."""
        CHECK(self.applied)
        record_undo(&self.r, arena)
        self.applied = False

    def agrees(self, Arena arena not None, bytes secret not None):
        """After the swap: does the active's 256-byte window read the same here?"""
        return bool(record_agrees(&self.r, arena, <const uint64_t*><const uint8_t*>secret))

    session = property(lambda self: (<EpochRecord>self).r.h.session)
    term = property(lambda self: (<EpochRecord>self).r.h.term)
    epoch = property(lambda self: (<EpochRecord>self).r.h.epoch)
    now_ns = property(lambda self: (<EpochRecord>self).r.h.now_ns)
    released_through = property(lambda self: (<EpochRecord>self).r.h.released_through)
    first_seq = property(lambda self: (<EpochRecord>self).r.h.first_seq)
    echo_ns = property(lambda self: (<EpochRecord>self).r.h.echo_ns)
    ports_empty = property(lambda self: (<EpochRecord>self).r.h.ports_empty)
    n_names = property(lambda self: (<EpochRecord>self).r.h.n_names)
    n_outputs = property(lambda self: (<EpochRecord>self).r.h.n_outputs)
    n_lines = property(lambda self: (<EpochRecord>self).r.h.n_lines)
    n_pages = property(lambda self: (<EpochRecord>self).r.h.n_pages)
    next_seq = property(lambda self: (<EpochRecord>self).r.h.first_seq + (<EpochRecord>self).r.h.n_outputs)
    last = property(lambda self: bool((<EpochRecord>self).r.h.flags & SYNC_LAST))
