"""FlowTable: fixed-size records found by key. The layout is drawn in flow_table.pyx."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from nfckpt.native.structure cimport Structure

cdef struct Head:               # the region's first line
    uint64_t stamp
    uint64_t secret[4]          # of the hash; none zero
    uint32_t free               # head of the free list, slot + 1; 0: empty
    uint32_t high               # slots [high, capacity) were never used
    uint32_t count              # records in use
    uint32_t hand               # next slot the sweep looks at
    uint64_t refused

cdef struct Record:             # then value bytes, then key bytes
    uint64_t last_seen          # ns
    uint32_t timeout_ms         # 0: the sweep's own
    uint32_t link               # bit 31: in use; the rest: next in chain or free list, slot + 1

cdef class FlowTable(Structure):
    cdef readonly uint32_t key_bytes, value_bytes, capacity      # key_bytes multiple of 4 up to 64; value_bytes multiple of 8
    cdef readonly uint64_t touch_ns
    cdef readonly object value_dtype
    cdef readonly object values, keys, seen     # read-only numpy views of all slots: value_dtype, uint8 (., key_bytes), u64 ns
    cdef tuple nothing                          # what expire returns when nothing was idle
    cdef uint32_t mask, stride, key_off         # buckets - 1; bytes of a record; its key's offset
    cdef uint64_t buckets, records              # offsets in the arena

    cdef int64_t find(self, const void* key) noexcept nogil
    cdef int64_t insert(self, const void* key, uint64_t now, bint* fresh) noexcept nogil
    cdef bint erase(self, int64_t slot) noexcept nogil
    cdef const void* key_at(self, int64_t slot) noexcept nogil
    cdef const void* value(self, int64_t slot) noexcept nogil
    cdef void* value_write(self, int64_t slot) noexcept nogil
    cdef void touch(self, int64_t slot, uint64_t now) noexcept nogil
    cdef uint64_t last_seen(self, int64_t slot) noexcept nogil
    cdef int sweep(self, uint64_t now, int budget, int64_t* out_slots, int out_max, uint64_t timeout_ns) noexcept nogil
    cdef void set_timeout(self, int64_t slot, uint64_t timeout_ns) noexcept nogil
    cdef void find_each(self, const void* keys, int n, int64_t* out_slots) noexcept nogil
    cdef Py_ssize_t open_keys(self, object keys, Py_buffer* b) except -1
    cdef const int64_t[::1] open_slots(self, object slots)
