"""Keyed 64-bit digest of a frame: its name between two taps of one segment (DESIGN 4a rule 1).

Multiply-fold hash (64x64 -> 128 bits, halves xored) over 16 bytes a step and lane, every word xored with a secret of the
pair: without the secrets nobody outside can aim two frames at one name. Frames are padded with zeros to 60 bytes
first, because a wire may pad them; the port is part of the name. Not a MAC: records and channels have their own.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #ifndef NFCKPT_DIGEST
    #define NFCKPT_DIGEST
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t nf_fold(uint64_t a, uint64_t b) {
        __uint128_t p = (__uint128_t)a * b; return (uint64_t)p ^ (uint64_t)(p >> 64); }
    static inline uint64_t nf_load(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
    /* k: 4 secret words, none zero. Two lanes of 16 bytes; from 128 bytes on four, joined at the end, because one lane
       waits for its multiplication. A tail shorter than 32 bytes is read as the last 32 bytes, which overlap. */
    static inline void nf_two(const uint64_t *k, const uint8_t *p, uint64_t *h, uint64_t *g) {
        *h = nf_fold(nf_load(p) ^ k[1], nf_load(p + 8) ^ *h);
        *g = nf_fold(nf_load(p + 16) ^ k[2], nf_load(p + 24) ^ *g); }
    static inline uint64_t nf_hash(const uint64_t *k, uint64_t seed, const uint8_t *p, uint32_t n) {
        uint64_t h = nf_fold(seed ^ k[0], n ^ k[1]), g = h ^ k[3];
        uint32_t left = n;
        if (left >= 128) {
            uint64_t c = h ^ k[2], d = h ^ k[1];
            do {
                nf_two(k, p, &h, &g);
                c = nf_fold(nf_load(p + 32) ^ k[3], nf_load(p + 40) ^ c);
                d = nf_fold(nf_load(p + 48) ^ k[0], nf_load(p + 56) ^ d);
                p += 64; left -= 64;
            } while (left >= 64);
            h = nf_fold(h ^ k[0], c ^ k[3]);
            g = nf_fold(g ^ k[1], d ^ k[2]);
        }
        for (; left >= 32; p += 32, left -= 32) nf_two(k, p, &h, &g);
        if (left && n >= 32) nf_two(k, p + left - 32, &h, &g);
        else if (left) {
            uint8_t t[32]; memset(t, 0, 32); memcpy(t, p, left);
            nf_two(k, t, &h, &g);
        }
        return nf_fold(h ^ k[2], g ^ k[3]);
    }
    static inline uint64_t nf_frame_key(const uint64_t *k, uint32_t port, const uint8_t *p, uint32_t n) {
        if (n < 60) { uint8_t t[60]; memset(t, 0, 60); memcpy(t, p, n); return nf_hash(k, port, t, 60); }
        return nf_hash(k, port, p, n);
    }
    #endif
    """
    uint64_t nf_hash(const uint64_t* k, uint64_t seed, const uint8_t* p, uint32_t n) noexcept nogil
    uint64_t nf_frame_key(const uint64_t* k, uint32_t port, const uint8_t* p, uint32_t n) noexcept nogil
