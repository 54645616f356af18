# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""KeyedFifo: a multiset of keys in order of arrival; the one structure behind tap, credits and expected outputs.

Picture     entries   head ──► [k1][ x ][k3][k1][k7] ◄── tail        x: removed, its room comes back when head passes
            buckets   h(k1) ─► oldest k1 ─► younger k1               find() gives the oldest: identical frames are counted
                      made by find() for what was pushed since the last one: whoever takes entries in order pays for none
            bytes     one ring, freed in the same order as entries

Cost        push, remove of the oldest, find: O(1) expected; nothing is allocated after construction.
Promises    F1 find(k) returns the oldest live entry of k or NO_ENTRY.  F2 push returns NO_ENTRY when full, never evicts.
"""
from nfckpt.errors import StateError

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from nfckpt.native.arena cimport CHECK


cdef extern from *:
    void __builtin_prefetch(const void*, int) noexcept nogil


cdef inline uint32_t _bucket(uint64_t key, uint32_t mask) noexcept nogil:
    return <uint32_t>(key ^ (key >> 29)) & mask


cdef class KeyedFifo:
    """`capacity` entries (rounded up to a power of two), `buf_bytes` bytes for frames (0: keys only)."""

    def __cinit__(self, uint32_t capacity, uint64_t buf_bytes=0):
        cdef uint32_t n = 64
        if capacity > 1 << 26 or buf_bytes > <uint64_t>1 << 31:
            raise StateError(f"a queue of {capacity} frames and {buf_bytes} bytes is too large")
        while n < capacity:
            n *= 2
        self.capacity = n
        self.mask = n - 1
        self.buf_bytes = buf_bytes
        self.entries = <Entry*>calloc(n, sizeof(Entry))
        self.bucket_mask = n // 4 - 1
        self.buckets = <Bucket*>malloc(n // 4 * sizeof(Bucket))
        self.buf = <uint8_t*>malloc(buf_bytes) if buf_bytes else NULL
        if self.entries == NULL or self.buckets == NULL or (buf_bytes and self.buf == NULL):
            raise MemoryError
        self.reset()

    def __dealloc__(self):
        free(self.entries)
        free(self.buckets)
        free(self.buf)

    cdef void reset(self) noexcept nogil:
        memset(self.buckets, 0xff, self.capacity // 4 * sizeof(Bucket))
        self.head = self.tail = self.unindexed = 0
        self.live = 0
        self.buf_head = self.buf_tail = 0

    cdef bint room(self, uint32_t frames, uint64_t nbytes) noexcept nogil:
        """Whether `frames` frames of `nbytes` bytes together fit for certain (a wrap may waste one frame's bytes)."""
        if self.capacity - (self.tail - self.head) < frames:
            return False
        return self.buf == NULL or self.buf_bytes - (self.buf_tail - self.buf_head) >= nbytes + 16384

    cdef uint32_t push(self, uint64_t key, uint64_t ts, uint64_t seq, uint8_t port,
                       const uint8_t* data, uint32_t n) noexcept nogil:
        cdef uint32_t i
        cdef uint64_t at = 0, skip
        cdef Entry* e
        if self.tail - self.head == self.capacity:
            return NO_ENTRY
        if self.buf != NULL:
            at = self.buf_tail % self.buf_bytes
            skip = self.buf_bytes - at if at + n > self.buf_bytes else 0
            if self.buf_bytes - (self.buf_tail - self.buf_head) < n + skip:
                return NO_ENTRY
            if skip:
                self.buf_tail += skip
                at = 0
            memcpy(self.buf + at, data, n)
            self.buf_tail += n
        i = <uint32_t>self.tail & self.mask
        e = &self.entries[i]
        e.key = key
        e.ts = ts
        e.seq = seq
        e.off = <uint32_t>at
        e.end = self.buf_tail
        e.length = n
        e.port = port
        e.live = 1
        e.indexed = e.mark = 0
        self.tail += 1
        self.live += 1
        return i

    cdef void prefetch(self, uint64_t key) noexcept nogil:
        """find of `key` comes soon."""
        __builtin_prefetch(&self.buckets[_bucket(key, self.bucket_mask)], 1)

    cdef uint32_t find(self, uint64_t key) noexcept nogil:
        cdef uint32_t i
        if self.live == 0:
            return NO_ENTRY
        if self.unindexed < self.tail:
            self._index()
        i = self.buckets[_bucket(key, self.bucket_mask)].first
        while i != NO_ENTRY and self.entries[i].key != key:
            i = self.entries[i].next
        return i

    cdef void _index(self) noexcept nogil:
        """Put every live entry into its bucket, behind the older ones."""
        cdef uint64_t number
        cdef uint32_t i
        cdef Entry* e
        cdef Bucket* b
        for number in range(max(self.unindexed, self.head), self.tail):
            i = <uint32_t>number & self.mask
            e = &self.entries[i]
            if not e.live:
                continue
            e.next = NO_ENTRY
            b = &self.buckets[_bucket(e.key, self.bucket_mask)]
            if b.last == NO_ENTRY:
                b.first = i
            else:
                self.entries[b.last].next = i
            b.last = i
            e.indexed = 1
        self.unindexed = self.tail

    cdef void _unindex(self, uint32_t index) noexcept nogil:
        cdef Entry* e = &self.entries[index]
        cdef Bucket* b = &self.buckets[_bucket(e.key, self.bucket_mask)]
        cdef uint32_t i = b.first, before = NO_ENTRY
        while i != index:
            CHECK(i != NO_ENTRY)
            before = i
            i = self.entries[i].next
        if before == NO_ENTRY:
            b.first = e.next
        else:
            self.entries[before].next = e.next
        if b.last == index:
            b.last = before

    cdef void remove(self, uint32_t index) noexcept nogil:
        cdef Entry* e = &self.entries[index]
        CHECK(e.live)
        if e.indexed:
            self._unindex(index)
        e.live = 0
        self.live -= 1
        while self.head < self.tail and not self.entries[<uint32_t>self.head & self.mask].live:
            e = &self.entries[<uint32_t>self.head & self.mask]
            self.buf_head = e.end
            self.head += 1
        if self.live == 0:          # start over at the first slot and byte: what is in use stays in cache
            self.head = self.tail = self.unindexed = (self.tail + self.mask) & ~<uint64_t>self.mask
            if self.buf != NULL:
                self.buf_head = self.buf_tail = 0

    cdef uint32_t oldest(self) noexcept nogil:
        """Index of the oldest live entry, or NO_ENTRY."""
        return <uint32_t>self.head & self.mask if self.head < self.tail else <uint32_t>NO_ENTRY

    cdef uint32_t after(self, uint64_t number) noexcept nogil:
        """Index of the first live entry whose number is >= `number`, or NO_ENTRY."""
        if number < self.head:
            number = self.head
        while number < self.tail:
            if self.entries[<uint32_t>number & self.mask].live:
                return <uint32_t>number & self.mask
            number += 1
        return NO_ENTRY
