# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Parking: a frame the app means to keep counts as consumed once its bytes are here (DESIGN 2).

    region   | u32 used | u32 free_head | pad to 64 | slot 0 | slot 1 | ...
    slot     | u32 length (0: free) | u32 next free + 1 | u8 port | pad to 64 | 2048 bytes |
"""
from libc.string cimport memcpy

cdef enum:
    SLOT_DATA = 2048
    SLOT = SLOT_DATA + 64

cdef struct Slot:
    uint32_t length
    uint32_t next_free          # index + 1; 0 ends the list
    uint8_t port

cdef struct Head:
    uint32_t used
    uint32_t free_head          # index + 1 of the first returned slot; 0: none
    uint32_t fresh              # slots never used so far start here


cdef class Parking:
    """`capacity` frames of at most 2048 bytes in region `name` of the arena."""

    def __cinit__(self, Arena arena not None, uint32_t capacity, str name="parking"):
        self.arena = arena
        self.capacity = capacity
        self.off = arena.region(name, 64 + <uint64_t>capacity * SLOT, "parking", f"{capacity}")

    cdef int park(self, uint8_t port, const uint8_t* data, uint32_t n) noexcept nogil:
        """Handle of the slot, or -1 when parking is full or the frame too long."""
        cdef Head* head
        cdef Slot* slot
        cdef uint32_t i
        cdef uint64_t at
        if n == 0 or n > SLOT_DATA:
            return -1
        if (<const Head*>self.arena.read(self.off)).used >= self.capacity:
            return -1
        head = <Head*>self.arena.write(self.off, sizeof(Head))
        if head.free_head:
            i = head.free_head - 1
            head.free_head = (<const Slot*>self.arena.read(self.off + 64 + <uint64_t>i * SLOT)).next_free
        else:
            i = head.fresh
            head.fresh += 1
        head.used += 1
        at = self.off + 64 + <uint64_t>i * SLOT
        slot = <Slot*>self.arena.write(at, 64 + n)
        slot.length = n
        slot.next_free = 0
        slot.port = port
        memcpy(<uint8_t*>slot + 64, data, n)
        return <int>i

    def take(self, int handle):
        """(port, bytes) of a parked frame, and free its slot. Raises KeyError when nothing is parked there."""
        cdef uint64_t at = self.off + 64 + <uint64_t>handle * SLOT
        cdef const Slot* seen
        cdef Slot* slot
        cdef Head* head
        if handle < 0 or <uint32_t>handle >= self.capacity:
            raise KeyError(handle)
        seen = <const Slot*>self.arena.read(at)
        if seen.length == 0:
            raise KeyError(handle)
        frame = (<const uint8_t*>seen + 64)[:seen.length]
        port = seen.port
        slot = <Slot*>self.arena.write(at, sizeof(Slot))
        head = <Head*>self.arena.write(self.off, sizeof(Head))
        slot.length = 0
        slot.next_free = head.free_head
        head.free_head = handle + 1
        head.used -= 1
        return port, frame

    def __len__(self):
        return (<const Head*>self.arena.read(self.off)).used
