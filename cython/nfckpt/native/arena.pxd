"""Arena: all state of the app in one memfd; structures mark the 64-byte lines they are about to write.

Use from your own package:  from nfckpt.native.arena cimport Arena
"""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

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
    LINE = 64
    PAGE = 4096

cdef class Arena:
    cdef uint8_t* base          # PROT_READ|PROT_WRITE mapping, page aligned
    cdef readonly uint64_t size     # bytes, a multiple of PAGE
    cdef readonly int fd            # the memfd
    cdef readonly uint32_t n_pages
    cdef uint64_t* bits         # one word a page, one bit a line: written since the last drain
    cdef uint32_t* touched      # pages whose word is not zero, in order of first write
    cdef uint32_t n_touched
    cdef bint undoable          # pages are saved before their first write: see begin_undo
    cdef uint8_t* saved         # page by page, in the order of `touched`
    cdef uint64_t saved_pages   # room in `saved`
    cdef object _names          # name -> (offset, bytes, kind, params)
    cdef uint64_t _top
    cdef bint _sealed
    cdef object _map

    @cython.final
    cdef inline void mark(self, uint64_t off, uint64_t n) noexcept nogil:
        """Say that bytes [off, off+n) are about to be written. Cost: ~1 ns while in cache."""
        cdef uint64_t line, last, page
        cdef uint64_t w, m
        CHECK(n > 0 and off + n <= self.size)
        line = off >> 6
        last = (off + n - 1) >> 6
        while line <= last:
            page = line >> 6
            w = self.bits[page]
            m = <uint64_t>1 << (line & 63)
            if w == 0:
                self.touched[self.n_touched] = <uint32_t>page
                self.n_touched += 1
                if self.undoable:
                    self.save(page)
            self.bits[page] = w | m
            line += 1

    @cython.final
    cdef inline void* write(self, uint64_t off, uint64_t n) noexcept nogil:
        """Mark, then hand out the pointer: the only way to a writable byte."""
        self.mark(off, n)
        return self.base + off

    @cython.final
    cdef inline void expect(self, uint64_t off) noexcept nogil:
        """A write of the line at `off` comes soon: ask for it and for its mark, all of a burst before the first is needed."""
        __builtin_prefetch(self.base + off, 1)
        __builtin_prefetch(&self.bits[off >> 12], 1)

    @cython.final
    cdef inline const void* read(self, uint64_t off) noexcept nogil:
        return self.base + off

    @cython.final
    cdef void save(self, uint64_t page) noexcept nogil
    cpdef uint64_t region(self, str name, uint64_t nbytes, str kind=*, str params=*) except? 0
    cpdef uint64_t dirty_lines(self)
    @cython.final
    cdef uint64_t count_dirty(self) noexcept nogil
    @cython.final
    cdef void clear_dirty(self) noexcept nogil
