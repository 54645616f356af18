# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Staging: where a capture is written, whole, inside the poll; from here the channel takes it, the oldest first.

Picture     capture ─► [slot 0 | slot 1] ─► channel        both taken: the open epoch grows, nothing stalls

Why         A slot holds the longest record there can be, so a capture never asks for memory and cannot fail. The slots are
            reserved, not used: pages that were never written cost nothing, and what a rare great record took is given back
            when the channel has taken it.

Promises    T1 a slot is handed out only while nobody reads it: what is shipped is what was captured (I4, I5).
            T2 no allocation and, for records of up to KEEP_BYTES, no page fault in the steady state.
"""
from nfckpt.errors import StateError

from nfckpt.native.arena cimport CHECK, PAGE

cdef extern from "sys/mman.h" nogil:
    void* mmap_ "mmap"(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MADV_DONTNEED

cdef enum:
    MADV_POPULATE_WRITE = 23        # Linux 5.14; older kernels fault the pages in at the first records
    READY_BYTES = 1 << 20           # of each slot, taken at once: longer than the usual record
    KEEP_BYTES = 4 << 20            # of each slot, kept once it was used


cdef class Staging:
    """SLOTS slots of `slot_bytes`. Raises StateError when so much address space cannot be had."""

    def __cinit__(self, uint64_t slot_bytes):
        cdef void* p
        cdef uint32_t i
        slot_bytes = (slot_bytes + PAGE - 1) // PAGE * PAGE
        p = mmap_(NULL, slot_bytes * SLOTS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if p == <void*>-1:
            raise StateError(f"no room to stage {SLOTS} records of {slot_bytes} bytes", "lower arena_bytes or gate_bytes_max")
        self.mem, self.slot_bytes = <uint8_t*>p, slot_bytes
        for i in range(<uint32_t>SLOTS):
            madvise(self.mem + i * slot_bytes, min(slot_bytes, <uint64_t>READY_BYTES), MADV_POPULATE_WRITE)

    def __dealloc__(self):
        if self.mem != NULL:
            munmap(self.mem, self.slot_bytes * SLOTS)

    def clear(self):
        """What waits is nobody's any more."""
        self.count = 0

    cdef uint8_t* room(self) noexcept nogil:
        """A free slot, or NULL."""
        if self.count == SLOTS:
            return NULL
        return self.mem + (self.first + self.count) % SLOTS * self.slot_bytes

    cdef void put(self, uint64_t nbytes, uint64_t written, uint64_t captured_ns) noexcept nogil:
        """The slot of `room` holds a record of `nbytes`; `written`: what was written there before it was encoded."""
        cdef uint32_t i = (self.first + self.count) % SLOTS
        CHECK(self.count < SLOTS and nbytes <= written and written <= self.slot_bytes)
        self.nbytes[i], self.written[i], self.captured_ns[i] = nbytes, written, captured_ns
        self.count += 1

    cdef uint8_t* oldest(self) noexcept nogil:
        return self.mem + self.first * self.slot_bytes

    cdef uint64_t pop(self) noexcept nogil:
        """The channel took the oldest: its slot is free. Returns when it was captured."""
        cdef uint32_t i = self.first
        CHECK(self.count)
        if self.written[i] > KEEP_BYTES:
            madvise(self.mem + i * self.slot_bytes + KEEP_BYTES, (self.written[i] - KEEP_BYTES + PAGE - 1) // PAGE * PAGE, MADV_DONTNEED)
        self.first = (i + 1) % SLOTS
        self.count -= 1
        return self.captured_ns[i]
