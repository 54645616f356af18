"""Segment: one direction's memory of a shared-memory channel. Drawn in shm_segment.pyx."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef NFCKPT_ATOMIC
    #define NFCKPT_ATOMIC
    #include <stdint.h>
    static inline uint64_t nf_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void nf_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void nf_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    #endif
    """
    uint64_t nf_acquire(const uint64_t* p) noexcept nogil
    void nf_release(uint64_t* p, uint64_t v) noexcept nogil
    void nf_fence() noexcept nogil

cdef enum:
    SEG_HEADER = 4096           # bytes before the ring
    SEG_VERSION = 1

cdef struct SegHeader:          # offsets are part of the format: see shm_segment.pyx
    uint8_t magic[8]
    uint32_t version
    uint32_t role
    uint64_t ring_bytes
    uint8_t session[16]
    uint8_t pad0[24]
    uint64_t head               # 64: bytes its owner has written into this ring, ever
    uint8_t pad1[56]
    uint64_t tail               # 128: bytes its owner has read out of the other ring, ever
    uint8_t pad2[56]
    uint64_t sleep              # 192: sleep number << 2 | wants room << 1 | wants data
    uint8_t pad3[56]
    uint64_t closed             # 256: 1 once its owner has said goodbye

cdef class Segment:
    cdef SegHeader* h
    cdef uint8_t* ring          # mapped twice in a row: no copy ever wraps
    cdef readonly uint64_t ring_bytes
    cdef uint64_t mapped        # bytes of address space
    cdef uint64_t ready         # bytes from the start that have their memory
    cdef readonly int fd        # the memfd, or -1 once given up
    cdef readonly bint writable
    cdef void unmap(self) noexcept nogil
    cdef _map(self, uint64_t ring_bytes, bint writable)
