"""KeyedFifo: a multiset of 64-bit keys in order of arrival, each with a time and (optionally) the frame's bytes."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    NO_ENTRY = 0xffffffff

cdef struct Entry:
    uint64_t key
    uint64_t ts                 # ns, of arrival or registration
    uint64_t seq                # of an output its sequence, of an input its stamp, of a credit the latest stamp that it is for
    uint64_t end                # byte position after its bytes: all before it is free once it is removed and oldest
    uint32_t off                # where the bytes are
    uint32_t length
    uint32_t next               # index of the next younger entry of the same bucket
    uint8_t port
    uint8_t live
    uint8_t indexed             # it is in its bucket
    uint8_t mark                # caller's flag

cdef struct Bucket:
    uint32_t first, last        # indices of its oldest and youngest entry

@cython.final
cdef class KeyedFifo:
    cdef Entry* entries         # ring, capacity a power of two
    cdef Bucket* buckets        # a quarter as many as entries: few are live, and a small table stays in cache
    cdef uint32_t bucket_mask
    cdef uint8_t* buf           # byte ring for frames, or NULL
    cdef readonly uint64_t head, tail       # entry numbers; index = number & mask
    cdef uint64_t unindexed     # entries from this number on are in no bucket yet
    cdef readonly uint32_t capacity, live
    cdef readonly uint64_t buf_bytes
    cdef uint64_t buf_head, buf_tail        # monotonic byte positions
    cdef uint32_t mask

    cdef bint room(self, uint32_t frames, uint64_t nbytes) noexcept nogil
    cdef uint32_t push(self, uint64_t key, uint64_t ts, uint64_t seq, uint8_t port,
                       const uint8_t* data, uint32_t n) noexcept nogil
    cdef void prefetch(self, uint64_t key) noexcept nogil
    cdef uint32_t find(self, uint64_t key) noexcept nogil
    cdef void _index(self) noexcept nogil
    cdef void _unindex(self, uint32_t index) noexcept nogil
    cdef void remove(self, uint32_t index) noexcept nogil
    cdef uint32_t oldest(self) noexcept nogil
    cdef uint32_t after(self, uint64_t number) noexcept nogil
    cdef void reset(self) noexcept nogil
