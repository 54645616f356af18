"""Internet checksum (RFC 1071) and its incremental update (RFC 1624, equation 3).

Picture     HC' = ~(~HC + ~m + m')      m: a 16-bit word before, m': after, HC: the checksum field
            delta = sum of (~m + m') over all words that change; one delta may patch several fields
            (the IP header, the TCP header through its pseudo-header, an ICMP error around the packet).

The sum does not care about byte order (RFC 1071, 2B), so words are loaded as they lie. Word boundaries must be
even from the start of what the checksum covers; every header field we change is.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef NFCKPT_CHECKSUM
    #define NFCKPT_CHECKSUM
    #include <stdint.h>
    #include <string.h>
    static inline uint16_t nf_get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
    static inline uint32_t nf_get32(const uint8_t *p) {
        return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }
    static inline uint64_t nf_get48(const uint8_t *p) { return (uint64_t)nf_get16(p) << 32 | nf_get32(p + 2); }
    static inline void nf_set16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
    static inline void nf_set32(uint8_t *p, uint32_t v) {
        nf_set16(p, (uint16_t)(v >> 16)); nf_set16(p + 2, (uint16_t)v); }
    static inline void nf_set48(uint8_t *p, uint64_t v) {
        nf_set16(p, (uint16_t)(v >> 32)); nf_set32(p + 2, (uint32_t)v); }

    static inline uint16_t nf_fold16(uint64_t acc) {
        acc = (acc & 0xffffffff) + (acc >> 32); acc = (acc & 0xffff) + (acc >> 16);
        acc = (acc & 0xffff) + (acc >> 16); acc = (acc & 0xffff) + (acc >> 16); return (uint16_t)acc; }
    static inline uint64_t nf_sum(const uint8_t *p, uint32_t n, uint64_t acc) {
        uint32_t w; uint16_t h = 0;
        while (n >= 4) { memcpy(&w, p, 4); acc += w; p += 4; n -= 4; }
        if (n >= 2) { memcpy(&h, p, 2); acc += h; p += 2; n -= 2; }
        if (n) { h = 0; memcpy(&h, p, 1); acc += h; }
        return acc; }
    /* Overwrite n bytes (even) at `at`, return what the change adds to the one's complement sum. */
    static inline uint64_t nf_swap(uint8_t *at, const uint8_t *to, uint32_t n) {
        uint64_t delta = 0; uint16_t old, now; uint32_t k;
        for (k = 0; k < n; k += 2) {
            memcpy(&old, at + k, 2); memcpy(&now, to + k, 2);
            delta += (uint16_t)~old; delta += now; memcpy(at + k, to + k, 2); }
        return delta; }
    static inline uint64_t nf_swap16(uint8_t *at, uint16_t v) { uint8_t t[2]; nf_set16(t, v); return nf_swap(at, t, 2); }
    static inline uint64_t nf_swap32(uint8_t *at, uint32_t v) { uint8_t t[4]; nf_set32(t, v); return nf_swap(at, t, 4); }
    /* Patch a checksum field; returns what the change of the field itself adds to a sum around it. */
    static inline uint64_t nf_patch(uint8_t *field, uint64_t delta) {
        uint16_t old, now; memcpy(&old, field, 2);
        now = (uint16_t)~nf_fold16((uint16_t)~old + delta); memcpy(field, &now, 2);
        return (uint64_t)(uint16_t)~old + now; }
    /* UDP over IPv4: 0 means "none" and stays; a computed 0 is sent as 0xffff (RFC 768). */
    static inline uint64_t nf_patch_udp(uint8_t *field, uint64_t delta) {
        uint16_t old, now; memcpy(&old, field, 2);
        if (!old) return 0;
        now = (uint16_t)~nf_fold16((uint16_t)~old + delta); if (!now) now = 0xffff; memcpy(field, &now, 2);
        return (uint64_t)(uint16_t)~old + now; }
    #endif
    """
    uint16_t get16 "nf_get16"(const uint8_t* p) noexcept nogil
    uint32_t get32 "nf_get32"(const uint8_t* p) noexcept nogil
    uint64_t get48 "nf_get48"(const uint8_t* p) noexcept nogil
    void set16 "nf_set16"(uint8_t* p, uint16_t v) noexcept nogil
    void set32 "nf_set32"(uint8_t* p, uint32_t v) noexcept nogil
    void set48 "nf_set48"(uint8_t* p, uint64_t v) noexcept nogil
    uint16_t fold16 "nf_fold16"(uint64_t acc) noexcept nogil
    uint64_t sum_bytes "nf_sum"(const uint8_t* p, uint32_t n, uint64_t acc) noexcept nogil
    uint64_t swap_bytes "nf_swap"(uint8_t* at, const uint8_t* to, uint32_t n) noexcept nogil
    uint64_t swap16 "nf_swap16"(uint8_t* at, uint16_t v) noexcept nogil
    uint64_t swap32 "nf_swap32"(uint8_t* at, uint32_t v) noexcept nogil
    uint64_t patch "nf_patch"(uint8_t* field, uint64_t delta) noexcept nogil
    uint64_t patch_udp "nf_patch_udp"(uint8_t* field, uint64_t delta) noexcept nogil
