"""Fault points: named instants at which a packet process can be told to die. fault.pyx has the story and the names.

    from nfckpt.native.fault cimport CAPTURED, fault
    fault(CAPTURED)             # unarmed: one load and one branch that is never taken
"""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:                      # in the order of POINTS
    FRAMES_READ, FRAMES_DECIDED, HALF_HELD, BURST_HELD
    BEFORE_CAPTURE, CAPTURED, SHIPPED, ACK_READ, HALF_RELEASED, RELEASED
    TAP_READ, RECORD_READ, REGISTERED, ACKED, HALF_APPLIED, APPLIED
    PAGES_CAPTURED, PAGES_APPLIED
    HALF_REPLAYED
    NATIVE_POINTS               # those after it are Python's

cdef struct Slot:               # 64 bytes
    uint64_t hits               # times the point was reached, over all lives of the node
    uint64_t at                 # strike at the first hit from this number on
    uint64_t struck_ns          # when it last struck, CLOCK_MONOTONIC
    uint64_t struck             # times it struck
    uint32_t action             # 0: pass by
    uint32_t ms                 # of a delay
    uint64_t zero[3]

cdef struct Seen:               # 32 bytes: a digest of the whole arena
    uint64_t number             # of the entry, from 1 on; written last
    uint64_t session, epoch, digest

cdef struct Board:
    uint64_t magic
    uint64_t points
    uint64_t digest_every       # epochs; 0: never
    uint64_t digests            # written so far
    uint64_t zero[4]
    Slot slot[64]
    Seen seen[256]

cdef Board* board               # NULL: nothing is armed

cdef void strike(Board* b, int point) noexcept nogil
cdef void note_digest(Board* b, uint64_t session, uint64_t epoch, const unsigned char* base, uint64_t n) noexcept nogil

cdef inline void fault(int point) noexcept nogil:
    if board != NULL:
        strike(board, point)

cdef inline bint digest_due(uint64_t epoch) noexcept nogil:
    return board != NULL and board.digest_every and epoch % board.digest_every == 0
