# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""DeltaEncoder: the active's half of nfckpt/checkpoint/delta.py, where the format is drawn. Runs when a record is shipped."""
import zstandard

from nfckpt.errors import StateError

from libc.stdint cimport uint16_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memset
from nfckpt.native.arena cimport CHECK, LINE, PAGE
from nfckpt.native.burst cimport BURST_MAX, FRAME_MAX
from nfckpt.native.delta cimport (
    DELTA_MAGIC, FROM_INPUT, NEXT, PLAIN_PAGES, RECENT, REPEAT, SAME_LENGTH, SAME_PORT, ZSTD_PAGES, fold, pad8, put, put64,
)
from nfckpt.native.digest cimport nf_hash
from nfckpt.native.epoch cimport OutputHead, record_parse
from nfckpt.native.port_set cimport MAX_PORTS

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t nf_xor64(const uint8_t *a, const uint8_t *b) {
        uint64_t x, y; memcpy(&x, a, 8); memcpy(&y, b, 8); return x ^ y; }
    /* the first place from `at` on where a and b differ; n: nowhere */
    static inline uint32_t nf_differs(const uint8_t *a, const uint8_t *b, uint32_t at, uint32_t n) {
        for (; at + 8 <= n; at += 8) {
            uint64_t x = nf_xor64(a + at, b + at);
            if (x) return at + (__builtin_ctzll(x) >> 3);
        }
        while (at < n && a[at] == b[at]) at++;
        return at;
    }
    /* the first place from `at` on with three equal bytes, for less is not worth two numbers; or where they are equal up to n */
    static inline uint32_t nf_settles(const uint8_t *a, const uint8_t *b, uint32_t at, uint32_t n) {
        const uint64_t low = 0x7f7f7f7f7f7f7f7f;
        uint32_t equal = 0;
        for (; at + 8 <= n; at += 6) {
            uint64_t x = nf_xor64(a + at, b + at), zero = ~(((x & low) + low) | x | low);   /* bit 7 of each byte that is 0 */
            zero &= zero >> 8 & zero >> 16;
            if (zero) return at + (__builtin_ctzll(zero) >> 3);
        }
        for (; at < n && equal < 3; at++) equal = a[at] == b[at] ? equal + 1 : 0;
        return at - equal;
    }
    """
    uint32_t differs "nf_differs"(const uint8_t* a, const uint8_t* b, uint32_t at, uint32_t n) noexcept nogil
    uint32_t settles "nf_settles"(const uint8_t* a, const uint8_t* b, uint32_t at, uint32_t n) noexcept nogil
    int __builtin_ctzll(uint64_t) noexcept nogil
    int __builtin_clzll(uint64_t) noexcept nogil
    void __builtin_prefetch(const void*, int) noexcept nogil

cdef extern from "string.h" nogil:
    void* memmove(void*, const void*, size_t)

cdef extern from "sys/mman.h" nogil:
    void* mmap_ "mmap"(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_HUGEPAGE, MADV_DONTNEED

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char* p, Py_ssize_t n, int flags)
    enum: PyBUF_READ

cdef enum:                                  # most bytes that each takes here
    HEAD_MAX = 20 + 15 * 10 + MAX_PORTS * 3
    OUTPUT_MAX = 1 + 1 + 3 + 5              # beside its own
    LINE_MAX = 5 + 1 + 8 + LINE
    ZSTD_LEVEL = -1                         # 1.1 ms per MiB of flow records, 0.1 per MiB that does not compress


cdef class DeltaEncoder:
    """Encodes the records of one session, in order. `names`, `outputs`: how many an epoch may have. The shadow takes as much
    memory as the arena has been written. Raises StateError when it cannot be had."""

    def __cinit__(self, Arena arena not None, bytes secret, uint32_t names, uint32_t outputs):
        cdef void* p
        if len(secret) != 32:
            raise StateError("the secret must be 32 bytes")
        memcpy(self.secret, <const uint8_t*>secret, 32)
        self.arena = arena
        self.kept = KeptInputs(names, outputs)
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        p = mmap_(NULL, arena.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if p == <void*>-1:
            raise StateError(f"no memory for a shadow of {arena.size} bytes", "lower arena_bytes or free memory")
        self.shadow = <uint8_t*>p
        madvise(p, arena.size, MADV_HUGEPAGE)

    def __dealloc__(self):
        if self.shadow != NULL:
            munmap(self.shadow, self.arena.size)
        free(self.buf)

    def restart(self):
        """A blank standby: its arena is zeros and its tap is shut."""
        madvise(self.shadow, self.arena.size, MADV_DONTNEED)
        memset(&self.before, 0, sizeof(Header))
        self.frame_bytes = self.state_bytes = self.plain_records = 0
        self.from_inputs = False

    def encode_record(self, uint8_t[::1] record not None, int n_ports):
        """What to send for `record`: the encoded form, or the same bytes."""
        cdef bytearray copy = bytearray(record)
        return bytes(copy[:self.encode(<uint8_t*><char*>copy, len(copy), n_ports)])

    cdef uint64_t encode(self, uint8_t* record, uint64_t n, int n_ports) noexcept nogil:
        """Put the encoded form where the record of `n` bytes is; its bytes. `n`: the record stays, for the encoded form is not
        smaller, or there was no memory to make it."""
        cdef Record r
        cdef Header* h
        cdef Header* b = &self.before
        cdef uint8_t* p
        cdef uint8_t* frames
        cdef uint64_t need, size, names_and_outputs
        cdef int i
        cdef void* grown
        CHECK(record_parse(&r, record, n, self.arena, n_ports) == 0)
        h = r.h
        names_and_outputs = <uint64_t>h.n_names * 9 + h.output_bytes - <uint64_t>h.n_outputs * sizeof(OutputHead)
        need = (HEAD_MAX + <uint64_t>h.n_names * 14 + <uint64_t>h.n_outputs * OUTPUT_MAX + h.output_bytes
                + <uint64_t>h.n_lines * LINE_MAX + <uint64_t>h.n_pages * (PAGE + 5) + 64)
        if need > self.capacity:
            grown = realloc(self.buf, need * 5 // 4)
            if grown == NULL:
                self.follow(&r)
                self.plain_records += 1
                return n
            self.buf, self.capacity = <uint8_t*>grown, need * 5 // 4
        put64(self.buf, DELTA_MAGIC)
        put64(self.buf + 4, nf_hash(self.secret, h.epoch, record, <uint32_t>n))
        put64(self.buf + 12, h.window_hash)
        p = put(self.buf + 20, n)
        p = put(p, h.flags)
        p = put(p, h.session ^ b.session)
        p = put(p, h.term ^ b.term)
        p = put(p, h.epoch)
        p = put(p, fold(<int64_t>(h.now_ns - b.now_ns)))
        p = put(p, fold(<int64_t>(h.released_through - b.released_through)))
        p = put(p, fold(<int64_t>(h.first_seq - b.first_seq - b.n_outputs)))
        p = put(p, fold(<int64_t>(h.echo_ns - b.echo_ns)))
        p = put(p, h.ports_empty)
        p = put(p, h.window_off)
        p = put(p, h.n_names)
        p = put(p, h.n_outputs)
        p = put(p, h.n_lines)
        p = put(p, h.n_pages)
        for i in range(n_ports if h.n_names else 0):
            p = put(p, h.ages[i])
        frames = p
        p = self.put_frames(p, &r)
        size = p - frames
        p = self.put_lines(p, &r)
        if h.n_pages:
            p = self.put_pages(p, &r)
        CHECK(<uint64_t>(p - self.buf) <= self.capacity)
        self.follow(&r)
        if <uint64_t>(p - self.buf) >= n:
            self.frame_bytes += names_and_outputs
            self.state_bytes += n - names_and_outputs
            self.plain_records += 1
            return n
        self.frame_bytes += size
        self.state_bytes += <uint64_t>(p - self.buf) - size
        memcpy(record, self.buf, p - self.buf)
        return p - self.buf

    cdef void follow(self, Record* r) noexcept nogil:
        """The standby will hold `r`."""
        cdef uint32_t i
        self.before = r.h[0]
        for i in range(r.h.n_lines):
            memcpy(self.shadow + <uint64_t>r.line_no[i] * LINE, r.lines + <uint64_t>i * LINE, LINE)
        for i in range(r.h.n_pages):
            memcpy(self.shadow + <uint64_t>r.page_no[i] * PAGE, r.pages + <uint64_t>i * PAGE, PAGE)

    cdef uint8_t* put_frames(self, uint8_t* p, Record* r) noexcept nogil:
        cdef uint32_t i = 0, j, k, n_names = r.h.n_names, next_base = 0
        cdef uint64_t q = 0, key, length_before = 0
        cdef uint16_t port_before = 0
        cdef OutputHead* oh
        cdef uint8_t* head
        cdef uint8_t* after
        cdef const uint8_t* data
        memcpy(p, r.keys, <uint64_t>n_names * 8)
        p += <uint64_t>n_names * 8
        while i < n_names:
            j = i
            while j < n_names and r.ports[j] == r.ports[i]:
                j += 1
            p[0] = r.ports[i]
            p = put(p + 1, j - i)
            i = j
        for k in range(r.h.n_outputs):
            oh = <OutputHead*>(r.outputs + q)
            data = r.outputs + q + sizeof(OutputHead)
            q += sizeof(OutputHead) + pad8(oh.length)
            head = p
            head[0] = 0
            p += 1
            if oh.port == port_before:
                head[0] |= SAME_PORT
            else:
                p[0] = <uint8_t>oh.port
                p += 1
            if oh.length == length_before:
                head[0] |= SAME_LENGTH
            else:
                p = put(p, oh.length)
            port_before, length_before = oh.port, oh.length
            if self.from_inputs and n_names:
                key = self.kept.made_from[(r.h.first_seq + k) & self.kept.mask]
                j = next_base if next_base < n_names else 0
                for i in range(min(n_names, <uint32_t>BURST_MAX)):
                    if r.keys[j] == key:
                        break
                    j = j + 1 if j + 1 < n_names else 0
                if r.keys[j] == key and j < self.kept.capacity and self.kept.key[j] == key and self.kept.length[j]:
                    after = p if j == next_base else put(p, j)
                    after = self.put_patch(after, p + oh.length, j, data, oh.length)
                    if after != NULL:
                        head[0] |= FROM_INPUT | (NEXT if j == next_base else 0)
                        next_base = j + 1
                        p = after
                        continue
            memcpy(p, data, oh.length)
            p += oh.length
        return p

    cdef uint8_t* put_patch(self, uint8_t* p, const uint8_t* limit, uint32_t base, const uint8_t* data, uint32_t n) noexcept nogil:
        """NULL: it would not end before `limit`."""
        cdef const uint8_t* old = self.kept.buf + self.kept.off[base]
        cdef uint32_t n_old = self.kept.length[base], at = 0, start
        cdef uint8_t longer[FRAME_MAX]
        if n_old < n:
            memcpy(longer, old, n_old)
            memset(longer + n_old, 0, n - n_old)
            old = longer
        while True:
            start = at
            at = differs(data, old, at, n)
            if p + 4 > limit:
                return NULL
            p = put(p, at - start)
            if at == n:
                return p
            start = at
            at = settles(data, old, at, n)
            if p + 2 + (at - start) > limit:
                return NULL
            p = put(p, at - start)
            memcpy(p, data + start, at - start)
            p += at - start
            if at == n:
                return p

    cdef uint8_t* put_lines(self, uint8_t* p, Record* r) noexcept nogil:
        cdef uint64_t recent[RECENT]            # words told by difference, a ring; `head` is the youngest
        cdef uint64_t saved[RECENT]
        cdef uint8_t how[8]
        cdef uint8_t how_before[8]
        cdef uint8_t data[LINE + 8]             # 8 more: a word is stored whole before its length counts
        cdef uint64_t x, v
        cdef uint64_t* old
        cdef uint64_t* new
        cdef uint32_t i, w, k, n_how, n_data, head = 0, saved_head
        cdef int64_t before = 0
        cdef int first, n
        cdef uint8_t mask, mask_before = 0
        cdef bint same
        memset(recent, 0, sizeof(recent))
        for i in range(r.h.n_lines):
            __builtin_prefetch(self.shadow + <uint64_t>r.line_no[i] * LINE, 1)
        for i in range(r.h.n_lines):
            old = <uint64_t*>(self.shadow + <uint64_t>r.line_no[i] * LINE)
            new = <uint64_t*>(r.lines + <uint64_t>i * LINE)
            memcpy(saved, recent, sizeof(recent))
            saved_head = head
            mask = 0
            n_how = n_data = 0
            for w in range(8):
                v = new[w]
                x = old[w] ^ v
                if x == 0:
                    continue
                mask |= <uint8_t>(1 << w)
                k = 0
                while k < RECENT and recent[(head - k) % RECENT] != v:
                    k += 1
                if k < RECENT:
                    how[n_how] = <uint8_t>(REPEAT | k)
                else:
                    first = __builtin_ctzll(x) >> 3
                    n = 8 - (__builtin_clzll(x) >> 3) - first
                    how[n_how] = <uint8_t>(first | (n - 1) << 3)
                    put64(data + n_data, x >> (8 * first))
                    n_data += n
                    head += 1
                    recent[head % RECENT] = v
                n_how += 1
            if mask == 0:                       # marked, and written with what it was
                mask = 1
                how[0] = data[0] = 0
                n_how = n_data = 1
                head += 1                       # a difference like any other, of nothing
                recent[head % RECENT] = new[0]
            elif n_how + n_data > LINE:
                mask = 0
                n_how, n_data = 0, LINE
                memcpy(data, new, LINE)
                memcpy(recent, saved, sizeof(recent))
                head = saved_head
            same = mask == mask_before and memcmp(how, how_before, n_how) == 0
            p = put(p, fold(<int64_t>r.line_no[i] - before) << 1 | same)
            before = r.line_no[i]
            if not same:
                p[0] = mask
                memcpy(p + 1, how, n_how)
                p += 1 + n_how
                mask_before = mask
                memcpy(how_before, how, n_how)
            memcpy(p, data, n_data)
            p += n_data
        return p

    cdef uint8_t* put_pages(self, uint8_t* p, Record* r) noexcept nogil:
        cdef uint64_t n = <uint64_t>r.h.n_pages * PAGE, squeezed
        cdef uint32_t i
        cdef int64_t before = 0
        cdef uint8_t* how
        for i in range(r.h.n_pages):
            p = put(p, fold(<int64_t>r.page_no[i] - before))
            before = r.page_no[i]
        how = p
        squeezed = self.squeeze(r.pages, n, p + 11)
        if squeezed:
            how[0] = ZSTD_PAGES
            p = put(p + 1, squeezed)
            memmove(p, how + 11, squeezed)
            return p + squeezed
        how[0] = PLAIN_PAGES
        memcpy(p + 1, r.pages, n)
        return p + 1 + n

    cdef uint64_t squeeze(self, const uint8_t* pages, uint64_t n, uint8_t* out) noexcept with gil:
        """Bytes of the zstd frame at `out`, 0 where it saves less than a sixteenth. Only groups of a sync come here: the one place
        of the hot path that takes the GIL."""
        cdef bytes frame
        try:
            frame = self._zstd.compress(PyMemoryView_FromMemory(<char*>pages, n, PyBUF_READ))
        except (MemoryError, zstandard.ZstdError):
            return 0
        if <uint64_t>len(frame) > n - n // 16:
            return 0
        memcpy(out, <const uint8_t*>frame, len(frame))
        return len(frame)
