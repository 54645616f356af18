"""Marks, and what a tracker that is not the structures' own looks like to the arena.

    barrier     mark() below, before a write                            every structure
    mmu         the kernel write-protects the region's pages: mmu.pyx   any writer of the mapping
    compare     memcmp against a private copy: compare.pyx              any writer of the bytes; cost: the region

All three end in the same marks, so a capture has one path: before it, collect() of each Watch turns what was written since
the last one into marks. A bit says that a line is in the log already; so everything costs what was written, never the arena.

Undo        a page is saved when the first of its lines is logged: barrier only, the others find a write after it was made.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    LINE = 64
    PAGE = 4096
    LINES = 64                  # of a page: one bit each of one word
    ALL_LINES = 0xffffffffffffffff

cdef struct Undo:               # pages as they were before they were written
    void (*save)(Undo*, uint64_t page) noexcept nogil
    uint8_t* base
    uint32_t* page              # numbers and bytes of the n saved pages, oldest first; there is room for so many
    uint8_t* saved
    uint64_t n, room

cdef struct Marks:
    uint64_t* bits              # one word a page, one bit a line: written since the last drain
    uint32_t* log               # these lines, in order of first write
    uint64_t n
    Undo* undo                  # NULL unless the writes are to be undoable

cdef extern from *:
    int __builtin_ctzll(uint64_t) noexcept nogil

cdef inline void save_before(Marks* m, uint64_t page) noexcept nogil:
    """A line of this page is about to be logged."""
    if m.undo != NULL and m.bits[page] == 0:
        m.undo.save(m.undo, page)

cdef inline void mark_page(Marks* m, uint64_t page, uint64_t lines) noexcept nogil:
    """These of a page's lines were written, or are about to be."""
    cdef uint32_t first = <uint32_t>(page * LINES), k
    cdef uint64_t new = lines & ~m.bits[page]
    save_before(m, page)
    m.bits[page] |= new
    if new == ALL_LINES:
        for k in range(LINES):
            m.log[m.n + k] = first + k
        m.n += LINES
        return
    while new:
        m.log[m.n] = first + <uint32_t>__builtin_ctzll(new)
        m.n += 1
        new &= new - 1

cdef struct Watch:              # one region with an mmu or compare tracker, in one mapping
    uint8_t* base               # first byte of the region's first page
    uint32_t page, n_pages      # numbered in the arena
    uint8_t* shadow             # compare: what was last collected
    void* found                 # mmu: where the kernel answers
    int uffd, pagemap           # mmu
    uint64_t scan_faults        # mmu: scans that failed; the whole region was marked instead
    void (*collect)(Watch*, Marks*) noexcept nogil
    void (*close)(Watch*) noexcept nogil
