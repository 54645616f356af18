"""Memory rings, native side: one broadcast ring per sender, read by all others. Essay in nfckpt/ports/memory.py."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.burst cimport Burst
from nfckpt.native.port cimport Port

cdef enum:
    ENDPOINTS_MAX = 32
    DATA = 4096                 # where the slots begin

cdef extern from *:
    """
    #ifndef NFCKPT_MEMORY_PORT
    #define NFCKPT_MEMORY_PORT
    #include <stdint.h>
    typedef struct { _Alignas(64) uint64_t next; } nf_place;
    typedef struct {
        uint64_t magic; uint32_t version, endpoints, index, slots, frame_bytes, wait;
        _Alignas(64) uint64_t tail;
        _Alignas(64) uint64_t reserved;
        nf_place place[32];
    } nf_ring;
    typedef struct { uint64_t ts; uint32_t len, zero; uint8_t data[]; } nf_slot;
    _Static_assert(sizeof(nf_ring) == 192 + 32 * 64 && sizeof(nf_slot) == 16, "layout drawn in memory_port.pyx");
    #endif
    """
    ctypedef struct nf_place:
        uint64_t next
    ctypedef struct nf_ring:
        uint64_t magic, tail, reserved
        uint32_t version, endpoints, index, slots, frame_bytes, wait
        nf_place* place
    ctypedef struct nf_slot:
        uint64_t ts
        uint32_t len, zero
        uint8_t* data

cdef struct Source:             # one sender we listen to
    nf_ring* ring               # mapped read-only
    uint32_t index              # which endpoint
    uint64_t next               # position of the next frame to read; the shared copy is for a successor
    uint64_t end                # published, as far as we have looked

cdef class MemoryRing(Port):
    cdef nf_ring* own           # mapped writable; NULL once closed
    cdef nf_ring* closed        # what own was, while a gate may still read staged frames
    cdef Source sources[ENDPOINTS_MAX]
    cdef int n_sources
    cdef size_t map_bytes       # of each mapping
    cdef uint32_t slots, stride, frame_bytes
    cdef readonly uint32_t index
    cdef readonly bint wait     # tx answers "full" rather than overwrite what the slowest has not read
    cdef uint64_t tail          # our frames below it are published
    cdef uint64_t filled        # our frames below it are written; tail <= filled
    cdef uint32_t staged        # our frames written beyond `filled`, not yet committed
    cdef uint64_t room_to       # wait: our positions below it are free for sure

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil
    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int publish(self) noexcept nogil
    cdef nf_slot* _fill(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef bint _look(self, Source* s) noexcept nogil
    @cython.final
    cdef inline nf_slot* _slot(self, nf_ring* ring, uint64_t position) noexcept nogil:
        return <nf_slot*>(<uint8_t*>ring + DATA + (position & (self.slots - 1)) * self.stride)
    cdef int _take(self, Source* s, Burst b, uint8_t index) noexcept nogil
    cdef void _find_room(self) noexcept nogil
    cdef void _unmap(self) noexcept
