# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""FlowTable: fixed-size records found by key, in the arena.

Picture     | Head, 1 line | buckets: u32 each, slot + 1 of a chain's first record | records, `stride` bytes each |
            record  | last_seen u64 | timeout_ms u32 | in use + next u32 | value ... | key ... |

            An IPv4 5-tuple (16 bytes with padding) and a value of 32 bytes make a record of 64: one line. A packet on
            a known flow dirties that line and no other; a new flow dirties three (record, bucket, head), an erase
            two or three. The value stands before the key so that value and last_seen share the first line.

Hash        nf_hash under a secret that lies in the region: nobody outside can aim flows at one chain. Buckets number at
            least 1.5 x capacity. Chains and free list are linked by index: no tombstones, nothing ever moves, a slot
            stays valid until it is erased.

Promises    F1 capacity is exact: insert number capacity + 1 is refused, counted, and changes nothing else.
            F2 a sweep never names a record that was touched within its timeout, whatever `touch_ns`; it may be
               up to touch_ns (+ 1 ms where the record has its own timeout) late.
            F3 the same calls on the same bytes give the same bytes.
"""
import numpy as np

from nfckpt.errors import StateError

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport UINT32_MAX, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from nfckpt.native.arena cimport CHECK, LINE, Arena
from nfckpt.native.digest cimport nf_hash
from nfckpt.native.structure cimport int64_column

cdef extern from *:
    """
    #define nf_prefetch(p) __builtin_prefetch(p)
    /* n is a multiple of 4; memcmp() is a call, this is two or three compares */
    static inline int nf_same(const uint8_t *a, const uint8_t *b, uint32_t n) {
        uint64_t x, y; uint32_t u, v;
        for (; n >= 8; a += 8, b += 8, n -= 8) { memcpy(&x, a, 8); memcpy(&y, b, 8); if (x != y) return 0; }
        if (n) { memcpy(&u, a, 4); memcpy(&v, b, 4); return u == v; }
        return 1;
    }
    """
    void nf_prefetch(const void* p) noexcept nogil
    bint nf_same(const uint8_t* a, const uint8_t* b, uint32_t n) noexcept nogil

cdef enum:
    USED = 0x80000000
    NEXT = 0x7fffffff
    CHUNK = 32                  # keys looked up side by side
    CAPACITY_MAX = 1 << 30

cdef uint64_t MS = 1000000
_NONE = np.empty(0, np.int64)


cdef inline const Head* head(FlowTable t) noexcept nogil:
    return <const Head*>t.arena.read(t.offset)

cdef inline Head* head_write(FlowTable t) noexcept nogil:
    return <Head*>t.arena.write(t.offset, sizeof(Head))

cdef inline uint64_t at(FlowTable t, uint32_t slot) noexcept nogil:
    CHECK(slot < t.capacity)
    return t.records + <uint64_t>slot * t.stride

cdef inline const Record* record(FlowTable t, uint32_t slot) noexcept nogil:
    return <const Record*>t.arena.read(at(t, slot))

cdef inline Record* record_write(FlowTable t, uint32_t slot) noexcept nogil:
    return <Record*>t.arena.write(at(t, slot), sizeof(Record))

cdef inline uint64_t in_use(FlowTable t, int64_t slot) noexcept nogil:
    """Offset of the record in a slot that must be in use."""
    CHECK(slot >= 0 and slot < t.capacity)
    cdef uint64_t off = at(t, <uint32_t>slot)
    CHECK(((<const Record*>t.arena.read(off)).link & USED) != 0)
    return off

cdef inline uint64_t bucket_of(FlowTable t, const void* key) noexcept nogil:
    """Offset of the key's bucket."""
    return t.buckets + 4 * (nf_hash(head(t).secret, 0, <const uint8_t*>key, t.key_bytes) & t.mask)

cdef inline int64_t walk(FlowTable t, uint64_t bucket, const void* key) noexcept nogil:
    """The chain's slot that holds the key, or -1."""
    cdef uint32_t link = (<const uint32_t*>t.arena.read(bucket))[0]
    cdef const uint8_t* r
    while link != 0:
        r = <const uint8_t*>record(t, link - 1)
        if nf_same(r + t.key_off, <const uint8_t*>key, t.key_bytes):
            return link - 1
        link = (<const Record*>r).link & NEXT
    return -1


cdef class FlowTable(Structure):
    """FlowTable(arena, name, *, capacity, key_bytes, value, touch_ns, seed): the native half.

    `value` is a number of bytes or a numpy dtype without objects; the room taken is rounded up to a multiple of 8.
    `seed` is 32 bytes, the same on both nodes; it is used only when the region is new and stays out of `params`.
    Raises StateError for a key that is not 4, 8, …, 64 bytes, a value of 0 or more than 4096 bytes, a capacity outside
    1 … 2**30, or an arena that has no room. Python code uses nfckpt.state.FlowTable, which is this under shorter names.
    """

    def __cinit__(self, Arena arena not None, str name not None, *, capacity, key_bytes, value,
                  touch_ns=100_000_000, bytes seed not None):
        dtype = np.dtype((np.void, value)) if isinstance(value, int) else np.dtype(value)
        if key_bytes % 4 or not 4 <= key_bytes <= 64:
            raise StateError(f"flow table {name!r}: key of {key_bytes} bytes", "pad it to a multiple of 4, at most 64")
        if dtype.hasobject or not 1 <= dtype.itemsize <= 4096:
            raise StateError(f"flow table {name!r}: value of {dtype}", "1 to 4096 bytes, no Python objects")
        if not 1 <= capacity <= CAPACITY_MAX:
            raise StateError(f"flow table {name!r}: capacity {capacity}", f"1 to {CAPACITY_MAX} records")
        if len(seed) != 32:
            raise StateError(f"flow table {name!r}: a seed of {len(seed)} bytes", "give 32 random bytes")
        self.value_dtype = dtype
        self.key_bytes, self.capacity, self.touch_ns = key_bytes, capacity, touch_ns
        self.value_bytes = (dtype.itemsize + 7) & ~7
        self.key_off = sizeof(Record) + self.value_bytes
        cdef uint32_t n = self.key_off + self.key_bytes
        self.stride = 32 if n <= 32 else (n + LINE - 1) // LINE * LINE
        cdef uint64_t buckets = 16
        while buckets * 2 < <uint64_t>self.capacity * 3:
            buckets *= 2
        self.mask = <uint32_t>(buckets - 1)
        fresh = self.declare(
            arena, name, "flow_table",
            f"capacity={capacity} key={key_bytes} value={dtype.descr if dtype.names else dtype.str}/{dtype.itemsize}"
            f" touch_ns={touch_ns}",
            sizeof(Head) + 4 * buckets + <uint64_t>self.capacity * self.stride)
        self.buckets = self.offset + sizeof(Head)
        self.records = self.buckets + 4 * buckets
        self.seen = self._column(np.uint64, self.records)
        self.values = self._column(dtype, self.records + sizeof(Record))
        self.keys = self._column(np.uint8, self.records + self.key_off, (self.key_bytes,))
        self.nothing = _NONE, np.empty((0, key_bytes), np.uint8), np.empty(0, dtype)
        cdef Head* h
        cdef int i
        if fresh:
            h = head_write(self)
            memcpy(h.secret, <const uint8_t*>seed, 32)
            for i in range(4):
                h.secret[i] |= 1        # nf_hash wants none to be zero

    # ---- kernels

    cdef int64_t find(self, const void* key) noexcept nogil:
        """Slot of the key, or -1. Writes nothing."""
        return walk(self, bucket_of(self, key), key)

    cdef void find_each(self, const void* keys, int n, int64_t* out_slots) noexcept nogil:
        """`find` for n keys that lie one after the other. The misses of the cache overlap: for tables larger than it."""
        cdef uint64_t bucket[CHUNK]
        cdef const uint8_t* k = <const uint8_t*>keys
        cdef const uint8_t* r
        cdef uint32_t link
        cdef int i, first = 0, m
        while first < n:
            m = min(n - first, <int>CHUNK)
            for i in range(m):
                bucket[i] = bucket_of(self, k + <uint64_t>i * self.key_bytes)
                nf_prefetch(self.arena.read(bucket[i]))
            for i in range(m):
                link = (<const uint32_t*>self.arena.read(bucket[i]))[0]
                if link != 0:
                    r = <const uint8_t*>record(self, link - 1)
                    nf_prefetch(r)
                    nf_prefetch(r + self.key_off + self.key_bytes - 1)
            for i in range(m):
                out_slots[first + i] = walk(self, bucket[i], k + <uint64_t>i * self.key_bytes)
            k += <uint64_t>m * self.key_bytes
            first += m

    cdef int64_t insert(self, const void* key, uint64_t now, bint* fresh) noexcept nogil:
        """Slot of the key, made with a value of zeros when it was not there (`fresh`); touched either way. -1: full."""
        cdef uint64_t bucket = bucket_of(self, key)
        cdef int64_t found = walk(self, bucket, key)
        fresh[0] = False
        if found >= 0:
            self.touch(found, now)
            return found
        cdef Head* h = head_write(self)
        cdef uint32_t slot
        if h.free != 0:
            slot = h.free - 1
            h.free = record(self, slot).link & NEXT
        elif h.high < self.capacity:
            slot = h.high
            h.high += 1
        else:
            h.refused += 1
            return -1
        h.count += 1
        cdef uint32_t* first = <uint32_t*>self.arena.write(bucket, 4)
        cdef uint8_t* r = <uint8_t*>self.arena.write(at(self, slot), self.key_off + self.key_bytes)
        memset(r + sizeof(Record), 0, self.value_bytes)
        memcpy(r + self.key_off, key, self.key_bytes)
        (<Record*>r).last_seen = now
        (<Record*>r).timeout_ms = 0
        (<Record*>r).link = first[0] | USED
        first[0] = slot + 1
        fresh[0] = True
        return slot

    cdef bint erase(self, int64_t slot) noexcept nogil:
        """False when the slot was not in use. Its key and value stay readable until the slot is used again."""
        if slot < 0 or slot >= self.capacity or not record(self, <uint32_t>slot).link & USED:
            return False
        cdef uint32_t me = <uint32_t>slot + 1, before = 0, link
        cdef uint64_t bucket = bucket_of(self, self.key_at(slot))
        link = (<const uint32_t*>self.arena.read(bucket))[0]
        while link != me:
            CHECK(link != 0)            # a record in use is in its chain
            before = link
            link = record(self, link - 1).link & NEXT
        cdef Head* h = head_write(self)
        cdef Record* r = record_write(self, me - 1)
        link = r.link & NEXT
        if before:
            record_write(self, before - 1).link = link | USED
        else:
            (<uint32_t*>self.arena.write(bucket, 4))[0] = link
        r.link = h.free
        h.free = me
        h.count -= 1
        return True

    cdef const void* key_at(self, int64_t slot) noexcept nogil:
        return self.arena.read(in_use(self, slot) + self.key_off)

    cdef const void* value(self, int64_t slot) noexcept nogil:
        return self.arena.read(in_use(self, slot) + sizeof(Record))

    cdef void* value_write(self, int64_t slot) noexcept nogil:
        """Marks the value's lines. Good until the app polls: after that, ask again."""
        return self.arena.write(in_use(self, slot) + sizeof(Record), self.value_bytes)

    cdef void touch(self, int64_t slot, uint64_t now) noexcept nogil:
        """last_seen = now, unless the stored time is younger than touch_ns: a busy flow writes ten times a second."""
        cdef const Record* r = <const Record*>self.arena.read(in_use(self, slot))
        if now > r.last_seen and now - r.last_seen >= self.touch_ns:
            record_write(self, <uint32_t>slot).last_seen = now

    cdef uint64_t last_seen(self, int64_t slot) noexcept nogil:
        return (<const Record*>self.arena.read(in_use(self, slot))).last_seen

    cdef void set_timeout(self, int64_t slot, uint64_t timeout_ns) noexcept nogil:
        """The record's own idle timeout, rounded up to 1 ms, at most 49 days; 0: the sweep's."""
        cdef uint64_t ms = timeout_ns // MS + (timeout_ns % MS != 0)
        if ms > UINT32_MAX:
            ms = UINT32_MAX
        if (<const Record*>self.arena.read(in_use(self, slot))).timeout_ms != ms:
            record_write(self, <uint32_t>slot).timeout_ms = <uint32_t>ms

    cdef int sweep(self, uint64_t now, int budget, int64_t* out_slots, int out_max, uint64_t timeout_ns) noexcept nogil:
        """Clock hand: look at up to `budget` slots (once round at most), name those idle longer than their timeout."""
        cdef const Head* h = head(self)
        cdef uint32_t hand = h.hand, high = h.high, left
        cdef const Record* r
        cdef uint64_t limit
        cdef int n = 0
        if high == 0 or budget <= 0:
            return 0
        left = min(<uint32_t>budget, high)
        while left > 0 and n < out_max:
            if hand >= high:
                hand = 0
            r = record(self, hand)
            if r.link & USED:
                limit = (r.timeout_ms * MS if r.timeout_ms else timeout_ns) + self.touch_ns
                if now > r.last_seen and now - r.last_seen > limit:
                    out_slots[n] = hand
                    n += 1
            hand += 1
            left -= 1
        if hand != h.hand:
            head_write(self).hand = hand
        return n

    # ---- batches, from Python: one crossing a call

    cdef Py_ssize_t open_keys(self, object keys, Py_buffer* b) except -1:
        """Map n keys, 2-D uint8 or any other contiguous array of that size, and return n. The caller releases `b`."""
        cdef Py_ssize_t width
        if PyObject_GetBuffer(keys, b, PyBUF_C_CONTIGUOUS) < 0:
            return -1
        width = b.shape[1] * b.itemsize if b.ndim == 2 else b.itemsize
        if b.ndim <= 2 and (width == self.key_bytes or (b.ndim == 1 and width == 1 and b.len % self.key_bytes == 0)):
            return b.len // self.key_bytes
        PyBuffer_Release(b)
        raise StateError(f"flow table {self.name!r}: keys of shape {np.shape(keys)}, {width} bytes each",
                         f"give uint8 (n, {self.key_bytes}), C order")

    cdef const int64_t[::1] open_slots(self, object slots):
        """Slots as int64, each checked to be in use: a kernel would stop the node."""
        cdef const int64_t[::1] s = int64_column(slots)
        cdef Py_ssize_t i
        for i in range(s.shape[0]):
            if s[i] < 0 or s[i] >= self.capacity or not record(self, <uint32_t>s[i]).link & USED:
                raise StateError(f"flow table {self.name!r}: slot {s[i]} is not in use", "find or insert gives slots; -1 is none")
        return s

    def find_many(self, keys):
        """Slots of the keys, int64 (n,), -1 where there is none. keys: uint8 (n, key_bytes), or any contiguous array of
        that size. Raises StateError for another width, ValueError for keys that are not contiguous."""
        cdef Py_buffer b
        cdef Py_ssize_t n = self.open_keys(keys, &b)
        cdef object out
        cdef int64_t[::1] o
        try:
            out = np.empty(n, np.int64)
            if n:
                o = out
                self.find_each(b.buf, <int>n, &o[0])
            return out
        finally:
            PyBuffer_Release(&b)

    def insert_many(self, keys, uint64_t now):
        """(slots int64 (n,), fresh bool (n,)): slot -1 where the table was full; a key that was there is touched."""
        cdef Py_buffer b
        cdef Py_ssize_t i, n = self.open_keys(keys, &b)
        cdef object out, new
        cdef int64_t[::1] o
        cdef uint8_t[::1] f
        cdef bint fresh = False
        try:
            out, new = np.empty(n, np.int64), np.empty(n, np.uint8)
            o, f = out, new
            for i in range(n):
                o[i] = self.insert(<const uint8_t*>b.buf + i * self.key_bytes, now, &fresh)
                f[i] = fresh
            return out, new.view(np.bool_)
        finally:
            PyBuffer_Release(&b)

    def erase_many(self, slots):
        """Erase; returns how many were in use. Slots that are not (or -1) are passed over."""
        cdef const int64_t[::1] s = int64_column(slots)
        cdef Py_ssize_t i, n = 0
        for i in range(s.shape[0]):
            n += self.erase(s[i])
        return n

    def touch_many(self, slots, uint64_t now):
        """The flows in `slots` were seen at `now` (ns)."""
        cdef const int64_t[::1] s = self.open_slots(slots)
        cdef Py_ssize_t i
        for i in range(s.shape[0]):
            self.touch(s[i], now)

    def set_timeout_many(self, slots, uint64_t timeout_ns):
        """Own idle timeout of the flows in `slots`; 0 gives them back the sweep's."""
        cdef const int64_t[::1] s = self.open_slots(slots)
        cdef Py_ssize_t i
        for i in range(s.shape[0]):
            self.set_timeout(s[i], timeout_ns)

    def sweep_many(self, uint64_t now, uint64_t timeout_ns, int budget):
        """Up to 256 slots, int64 (n,), that the clock hand found idle among the next `budget`; nothing is erased."""
        cdef int64_t found[256]
        cdef int n = self.sweep(now, budget, found, 256, timeout_ns)
        return np.array(<int64_t[:n]>found) if n else _NONE

    def expire(self, uint64_t now, uint64_t timeout_ns, int budget=256):
        """Erase flows idle longer than `timeout_ns` (or their own timeout) among the next `budget` slots, at most 256.

        Returns copies (slots, keys, values) of the erased, so that what they held (a port, say) can be given back. Call it
        on each poll with a small budget: the clock hand goes on where it stopped, after a takeover too.
        """
        slots = self.sweep_many(now, timeout_ns, budget)
        if slots is _NONE:
            return self.nothing
        gone = slots, self.keys[slots], self.get(slots)
        self.erase_many(slots)
        return gone

    def get(self, slots):
        """Copy of the values in `slots`, dtype `value_dtype` (n,). Raises StateError for a slot that is not in use."""
        cdef const int64_t[::1] s = self.open_slots(slots)
        cdef size_t n = self.value_dtype.itemsize, i
        cdef object out = np.empty(s.shape[0], self.value_dtype)
        if s.shape[0] == 0:
            return out
        cdef uint8_t[::1] into = out.view(np.uint8)
        for i in range(<size_t>s.shape[0]):         # numpy's own gather of records takes 120 ns each
            memcpy(&into[i * n], self.value(s[i]), n)
        return out

    def put(self, slots, records):
        """Write values (broadcast to `slots`, cast to `value_dtype`); a value that stays the same dirties nothing."""
        cdef const int64_t[::1] s = self.open_slots(slots)
        cdef size_t n = self.value_dtype.itemsize, i
        cdef object a = np.zeros(s.shape[0], self.value_dtype)      # zeros: padding is compared and copied too
        a[...] = records
        if s.shape[0] == 0:
            return
        cdef const uint8_t[::1] src = a.view(np.uint8)
        for i in range(<size_t>s.shape[0]):
            if memcmp(self.value(s[i]), &src[i * n], n) != 0:
                memcpy(self.arena.write(in_use(self, s[i]) + sizeof(Record), n), &src[i * n], n)

    # ---- views: of all slots, read-only

    def _column(self, dtype, uint64_t at, tuple shape=()):
        return np.ndarray((self.capacity, *shape), dtype, self.arena.view(), at,
                          (self.stride, *[1] * len(shape)))

    @property
    def slots(self):
        """Slots in use, ascending, int64 (n,). Reads the whole table."""
        link = self._column(np.uint32, self.records + 12)[:head(self).high]
        return np.flatnonzero(link & <uint32_t>USED).astype(np.int64)

    def __len__(self):
        return head(self).count

    def __iter__(self):
        """(key bytes, value, last_seen ns) of each record: for looking, not for the hot path."""
        for slot in self.slots:
            yield self.keys[slot].tobytes(), self.values[slot], int(self.seen[slot])

    @property
    def fill(self):
        return <double>head(self).count / <double>self.capacity

    @property
    def refused(self):
        """Inserts refused because all slots were in use."""
        return head(self).refused
