# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""DeltaDecoder: the standby's half of nfckpt/checkpoint/delta.py, where the format is drawn."""
import zstandard

from nfckpt.errors import PeerError, StateError

from libc.stdint cimport UINT64_MAX, uint16_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset
from nfckpt.native.arena cimport LINE, PAGE
from nfckpt.native.burst cimport FRAME_MAX
from nfckpt.native.delta cimport (
    FROM_INPUT, NEXT, PLAIN_PAGES, RECENT, REPEAT, SAME_LENGTH, SAME_PORT, ZSTD_PAGES, get, get8, left, pad8, put64, get64, unfold,
)
from nfckpt.native.digest cimport nf_hash
from nfckpt.native.epoch cimport EPOCH_MAGIC, EPOCH_VERSION, HEADER_BYTES, OutputHead
from nfckpt.native.keyed_fifo cimport Entry, NO_ENTRY

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char* p, Py_ssize_t n, int flags)
    enum: PyBUF_READ

cdef extern from *:
    int __builtin_popcount(unsigned int) noexcept nogil

cdef enum Fault:
    CUT = 1
    OTHER_MAGIC = 2
    LARGE = 3
    COUNTS = 4
    PORTS = 5
    OUTPUT = 6
    PATCH = 7
    WORD = 8
    OUTSIDE = 9
    PAGES = 10
    LENGTH = 11
    MEMORY = 12
    OTHER_OUTPUTS = 13
    ORDER = 15

FAULTS = (
    "", "is cut short, or a number in it has no end", "has another magic (run the same nfckpt on both nodes)",
    "says it decodes to more than record_bytes_max", "has counts that it cannot hold", "has ports that do not fit its names",
    "has an output with a bad length or input", "has a patch that does not fit its output", "has a word that overruns its 8 bytes",
    "writes outside the arena", "has pages that do not decompress to what they should", "decodes to another length than it says",
    "finds no memory to decode it", "was given outputs that are not its own", "decodes to another record than was captured",
    "does not follow the record that was taken last",
)


cdef str delta_fault(int code):
    return f"encoded epoch {FAULTS[code]}"


cdef bint is_delta(const uint8_t* data, uint64_t n) noexcept nogil:
    return n >= 4 and memcmp(data, b"NFD2", 4) == 0


cdef class DeltaDecoder:
    """Decodes the records of one session, in order: `decode`, and `follow` once the record was taken."""

    def __cinit__(self, bytes secret, uint64_t record_bytes_max=256 << 20):
        if len(secret) != 32:
            raise StateError("the secret must be 32 bytes")
        memcpy(self.secret, <const uint8_t*>secret, 32)
        self.record_bytes_max = record_bytes_max

    def __dealloc__(self):
        free(self.buf)

    def decode_record(self, const uint8_t[::1] data not None, Arena arena not None, Tap tap not None, int n_ports):
        """The record, a bytearray; None when the tap lacks an input of it. Raises PeerError with the reason."""
        cdef int r = self.decode(&data[0] if data.shape[0] else NULL, data.shape[0], arena, tap, n_ports)
        if r == NO_INPUT:
            return None
        if r:
            raise PeerError(delta_fault(r))
        return bytearray((<const uint8_t*>self.buf)[:self.n])

    def follow_record(self, uint8_t[::1] record not None):
        """`record` (decoded, or come plain) was taken."""
        if record.shape[0] < HEADER_BYTES:
            raise StateError("not a record")
        self.follow(<Header*>&record[0])

    cdef void begin(self, uint64_t epoch) noexcept nogil:
        """A session, whose first record is `epoch`. (One that was just made begins with epoch 1.)"""
        memset(&self.before, 0, sizeof(Header))
        self.before.epoch = epoch - 1

    cdef void follow(self, const Header* h) noexcept nogil:
        """The record with this header was taken: the next one is told by it."""
        self.before = h[0]
        self.outputs = NULL

    cdef int decode(self, const uint8_t* data, uint64_t n, Arena arena, Tap tap, int n_ports) noexcept nogil:
        """0: the record is in self.buf, self.n bytes; NO_INPUT; or an index of FAULTS. Nothing else has changed."""
        cdef Cursor c
        cdef Header got
        cdef Header* h = &got
        cdef Header* b = &self.before
        cdef uint64_t check, total, at, need, names, outputs, lines, pages
        cdef uint32_t i, run
        cdef uint8_t port
        cdef int r
        cdef void* grown
        if not is_delta(data, n):
            return OTHER_MAGIC
        if n < 20:
            return CUT
        c.p, c.end, c.cut = data + 20, data + n, False
        memset(h, 0, sizeof(Header))
        h.magic, h.version = EPOCH_MAGIC, EPOCH_VERSION
        check = get64(data + 4)
        h.window_hash = get64(data + 12)
        total = get(&c)
        h.flags = <uint16_t>get(&c)
        h.session = b.session ^ get(&c)
        h.term = b.term ^ get(&c)
        h.epoch = get(&c)
        h.now_ns = b.now_ns + <uint64_t>unfold(get(&c))
        h.released_through = b.released_through + <uint64_t>unfold(get(&c))
        h.first_seq = b.first_seq + b.n_outputs + <uint64_t>unfold(get(&c))
        h.echo_ns = b.echo_ns + <uint64_t>unfold(get(&c))
        h.ports_empty = <uint32_t>get(&c)
        h.window_off = get(&c)
        names = get(&c)
        outputs = get(&c)
        lines = get(&c)
        pages = get(&c)
        for i in range(n_ports if names else 0):
            h.ages[i] = <uint16_t>get(&c)
        if c.cut:
            return CUT
        if h.epoch != b.epoch + 1:
            return ORDER
        if total > self.record_bytes_max:
            return LARGE
        # each costs bytes here, and in the record at least as many: no product below passes 2**64
        if names > left(&c) // 8 or outputs > left(&c) or lines > left(&c) or pages > left(&c):
            return COUNTS
        need = (HEADER_BYTES + names * 8 + pad8(names) + outputs * 16 + pad8(lines * 4) + lines * LINE + pad8(pages * 4)
                + pages * PAGE)
        if total < need or total % 8:
            return COUNTS
        h.n_names, h.n_outputs, h.n_lines, h.n_pages = <uint32_t>names, <uint32_t>outputs, <uint32_t>lines, <uint32_t>pages
        h.total_bytes = total
        if total > self.capacity:
            grown = realloc(self.buf, total)
            if grown == NULL:
                return MEMORY
            self.buf, self.capacity = <uint8_t*>grown, total
        at = HEADER_BYTES
        memcpy(self.buf + at, c.p, names * 8)
        c.p += names * 8
        at += names * 8
        put64(self.buf + at + pad8(names) - 8 if names else self.buf, 0)
        i = 0
        while i < names:
            port = get8(&c)
            need = get(&c)
            if c.cut or need == 0 or need > names - i:
                return PORTS
            run = <uint32_t>need
            memset(self.buf + at + i, port, run)
            i += run
        at += pad8(names)
        r = self.get_outputs(&c, h, at, tap)
        if r:
            return r
        at += h.output_bytes
        if at + pad8(lines * 4) + lines * LINE + pad8(pages * 4) + pages * PAGE != total:
            return LENGTH
        r = self.get_lines(&c, h, at, arena)
        if r:
            return r
        at += pad8(lines * 4) + lines * LINE
        if pages:
            r = self.get_pages(&c, h, at, arena)
            if r:
                return r
        if c.p != c.end:
            return LENGTH
        memcpy(self.buf, h, HEADER_BYTES)
        self.n = total
        return 0 if nf_hash(self.secret, h.epoch, self.buf, <uint32_t>total) == check else DELTA_MISMATCH

    cdef int get_outputs(self, Cursor* c, Header* h, uint64_t at, Tap tap) noexcept nogil:
        cdef const uint64_t* keys = <const uint64_t*>(self.buf + HEADER_BYTES)
        cdef uint64_t k, q = 0, start = at, port = 0, length = 0, base, next_base = 0, done, n
        cdef uint64_t tail = h.total_bytes - pad8(<uint64_t>h.n_lines * 4) - <uint64_t>h.n_lines * LINE \
            - pad8(<uint64_t>h.n_pages * 4) - <uint64_t>h.n_pages * PAGE        # `need` fits: it does not pass below at
        cdef uint8_t head
        cdef uint8_t* out
        cdef OutputHead* oh
        cdef const OutputHead* given = NULL
        cdef uint32_t i
        cdef Entry* e
        for k in range(h.n_outputs):
            head = get8(c)
            if not head & SAME_PORT:
                port = get8(c)
            if not head & SAME_LENGTH:
                length = get(c)
            if c.cut:
                return CUT
            if head > 15 or length == 0 or length > FRAME_MAX or at + sizeof(OutputHead) + pad8(length) > tail:
                return OUTPUT
            if self.outputs != NULL:
                given = <const OutputHead*>(self.outputs + q)
                if q + sizeof(OutputHead) > self.outputs_bytes:
                    return OTHER_OUTPUTS
                q += sizeof(OutputHead) + pad8(length)
                if q > self.outputs_bytes or given.port != port or given.length != length:
                    return OTHER_OUTPUTS
            oh = <OutputHead*>(self.buf + at)
            oh.port, oh.length, oh.zero = <uint16_t>port, <uint16_t>length, 0
            out = self.buf + at + sizeof(OutputHead)
            at += sizeof(OutputHead) + pad8(length)
            put64(self.buf + at - 8, 0)
            if not head & FROM_INPUT:
                if length > left(c):
                    return CUT
                memcpy(out, c.p, length)
                c.p += length
                continue
            base = next_base if head & NEXT else get(c)
            if base >= h.n_names:
                return OUTPUT
            next_base = base + 1
            i = tap.locate(keys[base], (<const uint8_t*>(keys + h.n_names))[base], UINT64_MAX) if tap is not None else <uint32_t>NO_ENTRY
            if i != NO_ENTRY:
                e = &tap.inputs.entries[i]
                n = min(length, <uint64_t>e.length)
                memcpy(out, tap.inputs.buf + e.off, n)
                memset(out + n, 0, length - n)
            elif given == NULL:
                return NO_INPUT
            done = 0
            while done < length:
                n = get(c)
                if c.cut or n > length - done:
                    return PATCH
                done += n
                if done == length:
                    break
                n = get(c)
                if c.cut or n == 0 or n > length - done or n > left(c):
                    return PATCH
                memcpy(out + done, c.p, n)
                c.p += n
                done += n
            if given != NULL:
                memcpy(out, <const uint8_t*>given + sizeof(OutputHead), length)
        h.output_bytes = <uint32_t>(at - start)
        return 0

    cdef int get_lines(self, Cursor* c, Header* h, uint64_t at, Arena arena) noexcept nogil:
        cdef uint64_t recent[RECENT]
        cdef uint64_t number = 0, x
        cdef uint32_t i, j, w, head = 0, first, n
        cdef uint8_t mask = 0, how
        cdef uint8_t hows[8]
        cdef bint same
        cdef uint32_t* numbers = <uint32_t*>(self.buf + at)
        cdef uint64_t* line
        memset(recent, 0, sizeof(recent))
        if h.n_lines & 1:
            numbers[h.n_lines] = 0
        line = <uint64_t*>(self.buf + at + pad8(<uint64_t>h.n_lines * 4))
        for i in range(h.n_lines):
            x = get(c)
            same = x & 1
            number += <uint64_t>unfold(x >> 1)
            if not same:
                mask = get8(c)
                for j in range(__builtin_popcount(mask)):
                    hows[j] = get8(c)
            if c.cut:
                return CUT
            if number >= <uint64_t>arena.n_pages * 64:
                return OUTSIDE
            numbers[i] = <uint32_t>number
            if mask == 0:
                if left(c) < LINE:
                    return CUT
                memcpy(line, c.p, LINE)
                c.p += LINE
                line += 8
                continue
            memcpy(line, arena.base + number * LINE, LINE)
            j = 0
            for w in range(8):
                if not mask >> w & 1:
                    continue
                how = hows[j]
                j += 1
                if how & REPEAT:
                    if how & ~(REPEAT | RECENT - 1):
                        return WORD
                    line[w] = recent[(head - (how & RECENT - 1)) % RECENT]
                    continue
                first, n = how & 7, (how >> 3) + 1
                if first + n > 8:
                    return WORD
                if left(c) < n:
                    return CUT
                x = 0
                memcpy(&x, c.p, n)
                c.p += n
                line[w] ^= x << (8 * first)
                head += 1
                recent[head % RECENT] = line[w]
            line += 8
        return 0

    cdef int get_pages(self, Cursor* c, Header* h, uint64_t at, Arena arena) noexcept nogil:
        cdef uint32_t* numbers = <uint32_t*>(self.buf + at)
        cdef uint8_t* out = self.buf + at + pad8(<uint64_t>h.n_pages * 4)
        cdef uint64_t number = 0, n, want = <uint64_t>h.n_pages * PAGE
        cdef uint32_t i
        cdef uint8_t how
        if h.n_pages & 1:
            numbers[h.n_pages] = 0
        for i in range(h.n_pages):
            number += <uint64_t>unfold(get(c))
            if c.cut:
                return CUT
            if number >= arena.n_pages:
                return OUTSIDE
            numbers[i] = <uint32_t>number
        how = get8(c)
        n = want if how == PLAIN_PAGES else get(c)
        if c.cut or n > left(c):
            return CUT
        if how == PLAIN_PAGES:
            memcpy(out, c.p, n)
        elif how != ZSTD_PAGES or not self.unsqueeze(c.p, n, out, want):
            return PAGES
        c.p += n
        return 0

    cdef bint unsqueeze(self, const uint8_t* data, uint64_t n, uint8_t* pages, uint64_t want) noexcept with gil:
        """True when `data` is one zstd frame of exactly `want` bytes, which are now in `pages`."""
        cdef bytes got
        try:
            frame = PyMemoryView_FromMemory(<char*>data, n, PyBUF_READ)
            if zstandard.frame_content_size(frame) != want:     # before a byte is allocated for it
                return False
            got = zstandard.ZstdDecompressor(max_window_size=1 << 23).decompress(frame, allow_extra_data=False)
        except (MemoryError, zstandard.ZstdError):
            return False
        if <uint64_t>len(got) != want:
            return False
        memcpy(pages, <const uint8_t*>got, want)
        return True
