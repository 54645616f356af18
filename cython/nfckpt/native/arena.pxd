"""Arena: all state of the app in one memfd; structures mark the 64-byte lines they are about to write.

Use from your own package:  from nfckpt.native.arena cimport Arena
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native cimport tracker
from nfckpt.native.tracker cimport ALL_LINES, Marks, Undo, Watch, mark_page, save_before

cdef extern from *:
    """
    #ifndef NFCKPT_CHECK
    #define NFCKPT_CHECK
    #include <stdio.h>
    #include <stdlib.h>
    /* assert() in a noexcept nogil function would print and go on; a kernel that finds its own
       invariant broken must stop the node instead: the standby holds the last good state. */
    #define CHECK(c) do { if (__builtin_expect(!(c), 0)) { \
        fprintf(stderr, "nfckpt: CHECK(%s) failed at %s:%d\\n", #c, __FILE__, __LINE__); abort(); } } while (0)
    #endif
    """
    void CHECK(bint c) noexcept nogil
    void __builtin_prefetch(const void*, int) noexcept nogil

cdef enum:
    LINE = tracker.LINE
    PAGE = tracker.PAGE

cdef class Arena:
    cdef uint8_t* base          # PROT_READ|PROT_WRITE mapping, page aligned
    cdef readonly uint64_t size     # bytes, a multiple of PAGE
    cdef readonly int fd            # the memfd
    cdef readonly uint32_t n_pages
    cdef Marks marks            # what was written since the last drain
    cdef Undo _undo
    cdef Watch* watches         # one for each region whose tracker is mmu or compare
    cdef uint32_t n_watches
    cdef uint64_t _look_ns      # when written() may look at them again
    cdef object _names          # name -> (offset, bytes, kind, params)
    cdef object _trackers       # name -> (tracker, why it is not the one asked for)
    cdef uint64_t _top
    cdef bint _sealed
    cdef object _map
    cdef int _pid               # of the process that has the mapping: a forked child has none

    @cython.final
    cdef inline void mark(self, uint64_t off, uint64_t n) noexcept nogil:
        """Say that bytes [off, off+n) are about to be written. Cost: ~1 ns while in cache."""
        cdef uint64_t line = off >> 6, last = (off + n - 1) >> 6, lines
        CHECK(n > 0 and off + n <= self.size)
        if line == last:
            lines = <uint64_t>1 << (line & 63)
            if not self.marks.bits[line >> 6] & lines:
                save_before(&self.marks, line >> 6)
                self.marks.bits[line >> 6] |= lines
                self.marks.log[self.marks.n] = <uint32_t>line
                self.marks.n += 1
            return
        lines = <uint64_t>ALL_LINES << (line & 63)
        while (line ^ last) >> 6:               # goes on in the next page
            mark_page(&self.marks, line >> 6, lines)
            line = ((line >> 6) + 1) << 6
            lines = ALL_LINES
        mark_page(&self.marks, last >> 6, lines & (<uint64_t>ALL_LINES >> (63 - (last & 63))))

    @cython.final
    cdef inline void* write(self, uint64_t off, uint64_t n) noexcept nogil:
        """Mark, then hand out the pointer: the only way to a writable byte."""
        self.mark(off, n)
        return self.base + off

    @cython.final
    cdef inline void expect(self, uint64_t off) noexcept nogil:
        """A write of the line at `off` comes soon: ask for it and for its mark, all of a burst before the first is needed."""
        __builtin_prefetch(self.base + off, 1)
        __builtin_prefetch(&self.marks.bits[off >> 12], 1)

    @cython.final
    cdef inline const void* read(self, uint64_t off) noexcept nogil:
        return self.base + off

    @cython.final
    cdef inline void collect(self) noexcept nogil:
        """Before marks are looked at: what the other trackers found becomes marks too."""
        if self.n_watches:
            self._collect()

    @cython.final
    cdef inline bint written(self, uint64_t now_ns) noexcept nogil:
        """Is anything marked? Regions with another tracker are looked at now and then only: see _look."""
        return self.marks.n > 0 or (self.n_watches > 0 and self._look(now_ns))

    cpdef uint64_t region(self, str name, uint64_t nbytes, str kind=*, str params=*, str tracker=*, fallback=*) except? 0
    cpdef uint64_t dirty_lines(self)
    cdef int _watch(self, str how, uint64_t off, uint64_t nbytes) except -1
    @cython.final
    cdef void _collect(self) noexcept nogil
    @cython.final
    cdef bint _look(self, uint64_t now_ns) noexcept nogil
    @cython.final
    cdef void drain(self, uint32_t* number, uint8_t* lines) noexcept nogil
    @cython.final
    cdef void clear_dirty(self) noexcept nogil
