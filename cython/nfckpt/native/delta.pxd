"""Delta: what encoder and decoder of epoch records share. The format is drawn in nfckpt/checkpoint/delta.py."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef NFCKPT_DELTA
    #define NFCKPT_DELTA
    #include <string.h>
    #include <stdint.h>
    static inline uint64_t nf_get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    static inline void nf_put64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
    #endif
    """
    uint64_t get64 "nf_get64"(const uint8_t* p) noexcept nogil
    void put64 "nf_put64"(uint8_t* p, uint64_t v) noexcept nogil

cdef enum:
    DELTA_MAGIC = 0x3244464e    # "NFD2"
    FROM_INPUT = 1              # head of an output
    SAME_PORT = 2
    SAME_LENGTH = 4
    NEXT = 8
    REPEAT = 0x80               # how a word changed
    RECENT = 8                  # words that it may repeat
    PLAIN_PAGES = 0             # how pages come
    ZSTD_PAGES = 1

cdef inline uint64_t pad8(uint64_t n) noexcept nogil:
    return (n + 7) & ~<uint64_t>7

cdef inline uint64_t fold(int64_t n) noexcept nogil:
    """Small for numbers near zero, of either sign."""
    return (<uint64_t>n << 1) ^ <uint64_t>(n >> 63)

cdef inline int64_t unfold(uint64_t n) noexcept nogil:
    return <int64_t>(n >> 1) ^ -<int64_t>(n & 1)

cdef inline uint8_t* put(uint8_t* p, uint64_t n) noexcept nogil:
    """A number, at most ten bytes. Returns where it ends."""
    while n >= 128:
        p[0] = <uint8_t>(n | 128)
        p += 1
        n >>= 7
    p[0] = <uint8_t>n
    return p + 1

cdef struct Cursor:             # what is left to read of a peer's bytes
    const uint8_t* p
    const uint8_t* end
    bint cut                  # something was read that is not there

cdef inline uint64_t left(Cursor* c) noexcept nogil:
    return c.end - c.p

cdef inline uint8_t get8(Cursor* c) noexcept nogil:
    if c.p == c.end:
        c.cut = True
        return 0
    c.p += 1
    return (c.p - 1)[0]

cdef inline uint64_t get(Cursor* c) noexcept nogil:
    """The next number; 0 and `cut` where it is cut off or has more than ten bytes."""
    cdef uint64_t n = 0
    cdef int shift = 0
    cdef uint8_t byte
    while shift < 70 and c.p < c.end:
        byte = c.p[0]
        c.p += 1
        if shift < 64:
            n |= <uint64_t>(byte & 127) << shift
        if byte < 128:
            return n
        shift += 7
    c.cut = True
    return 0
