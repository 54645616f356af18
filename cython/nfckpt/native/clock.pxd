"""CLOCK_MONOTONIC without the GIL."""
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #ifndef NFCKPT_CLOCK
    #define NFCKPT_CLOCK
    #include <stdint.h>
    #include <time.h>
    static inline uint64_t nf_monotonic_ns(void) {
        struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec; }
    #endif
    """
    uint64_t monotonic_ns "nf_monotonic_ns"() noexcept nogil
