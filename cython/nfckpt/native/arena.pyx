# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Arena: all state of the app, in one memfd, as named regions at fixed offsets.

Picture     base                                                                     base+size
            | header page | region "flows" ........ | region "ports" ... | unused ... |
            every region starts on a page; inside there are offsets only, never pointers.

Why         A capture copies the lines that were marked since the last one and nothing else, so it costs what
            was written, never what is stored. A structure calls `write(off, n)` and gets the pointer: marking
            cannot be forgotten. Python sees regions through a second, read-only mapping.

Promises    A1 a byte handed out writable was marked first.
            A2 regions are declared before `seal()`, each name once, in the same order on both nodes: the
               layout digest (SHA-256 over name, offset, bytes, kind, params) is compared in the handshake.
            A3 a new arena reads as zeros.
"""
import hashlib
import mmap
import os

import numpy as np

from nfckpt.errors import ConfigError, MachineError, StateError

from libc.errno cimport EFAULT, ENOMEM, errno
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

cimport cython

cdef extern from "sys/mman.h" nogil:
    void* mmap_ "mmap"(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    enum: PROT_READ, PROT_WRITE, MAP_SHARED, MADV_HUGEPAGE
cdef enum:
    MADV_POPULATE_WRITE = 23        # Linux 5.14; older kernels refuse it, and fault the pages in one by one


cdef class Arena:
    """State of one app: `nbytes` bytes (rounded up to 4096) in a memfd, tracked by 64-byte lines.

    `Arena(nbytes)` makes a new one; `Arena(fd=…)` maps one that a parent holds.
    Raises ConfigError for a size that is not positive, StateError when memory cannot be had.
    """

    def __cinit__(self, nbytes=0, *, int fd=-1):
        cdef void* p
        if fd < 0:
            if nbytes <= 0 or nbytes > (1 << 38):
                raise ConfigError(f"arena of {nbytes} bytes", "arena_bytes must lie between 4096 and 2**38: records number its 64-byte lines in 32 bits")
            nbytes = (int(nbytes) + PAGE - 1) // PAGE * PAGE
            fd = os.memfd_create("nfckpt-arena", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, nbytes)
            except OSError as e:
                os.close(fd)
                raise StateError(f"arena of {nbytes} bytes: {e.strerror}", "lower arena_bytes") from None
        else:
            nbytes = os.fstat(fd).st_size
            if nbytes == 0 or nbytes % PAGE:
                raise StateError(f"fd {fd} holds {nbytes} bytes: not an arena")
        self.fd = fd
        self.size = nbytes
        self.n_pages = nbytes // PAGE
        p = mmap_(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if p == <void*>-1:
            os.close(fd)
            self.fd = -1
            raise StateError(f"cannot map an arena of {nbytes} bytes", "lower arena_bytes or free memory")
        self.base = <uint8_t*>p
        madvise(p, nbytes, MADV_HUGEPAGE)
        self.bits = <uint64_t*>calloc(self.n_pages, 8)
        self.touched = <uint32_t*>calloc(self.n_pages, 4)
        if self.bits == NULL or self.touched == NULL:
            raise StateError(f"no memory to track an arena of {nbytes} bytes", "lower arena_bytes")
        self.n_touched = 0
        self._names = {}
        self._top = PAGE            # page 0 is the runtime's own: see nfckpt/state/runtime
        self._sealed = False
        self._map = None

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)
        free(self.bits)
        free(self.touched)
        free(self.saved)
        if self.fd >= 0:
            os.close(self.fd)

    cpdef uint64_t region(self, str name, uint64_t nbytes, str kind="bytes", str params="") except? 0:
        """Declare a region and return its offset in bytes (page aligned).

        Raises StateError when the name is taken, the arena is sealed, or it does not fit.
        """
        if self._sealed:
            raise StateError(f"region {name!r} declared after start", "declare all state in declare()")
        if name in self._names:
            raise StateError(f"region {name!r} declared twice", "give each region its own name")
        if nbytes == 0:
            raise StateError(f"region {name!r} has no bytes")
        cdef uint64_t off = self._top
        if nbytes > self.size - off:
            raise StateError(
                f"region {name!r} of {nbytes} bytes does not fit: {self.size - off} of {self.size} left",
                "raise arena_bytes or declare less")
        self._top = off + (nbytes + PAGE - 1) // PAGE * PAGE
        self._names[name] = (int(off), int(nbytes), kind, params)
        return off

    def populate(self):
        """Take the memory of a new arena now instead of page by page at the first writes. Raises MachineError when there is not so
        much: asked first, since the kernel would rather kill somebody than refuse."""
        with open("/proc/meminfo") as f:
            available = next(int(row.split()[1]) * 1024 for row in f if row.startswith("MemAvailable"))
        if self.size > available or madvise(self.base, self.size, MADV_POPULATE_WRITE) and errno in (ENOMEM, EFAULT):
            raise MachineError(f"no memory for an arena of {self.size} bytes: {available} available", "lower arena_bytes or free memory")

    def seal(self):
        """No region can be declared any more. Idempotent."""
        self._sealed = True

    @property
    def regions(self):
        """dict name -> (offset, bytes, kind, params)."""
        return dict(self._names)

    @property
    def used(self):
        """Bytes from the start to the end of the last region."""
        return int(self._top)

    def layout_digest(self):
        """32 bytes that two nodes must share before one may apply the other's lines (I14)."""
        h = hashlib.sha256(b"nfckpt layout 1")
        h.update(str(self.size).encode())
        for name, row in self._names.items():
            h.update(repr((name, row)).encode())
        return h.digest()

    def digest(self):
        """32 bytes over the whole used content, for comparing two arenas."""
        return hashlib.sha256(self.view()[: self._top]).digest()

    def view(self, name=None):
        """Read-only uint8 array of the whole arena, or of one region, from a second mapping."""
        if self._map is None:
            self._map = np.frombuffer(mmap.mmap(self.fd, self.size, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8)
        if name is None:
            return self._map
        off, n = self._names[name][:2]
        return self._map[off:off + n]

    def write_bytes(self, uint64_t off, bytes data):
        """Mark and write `data` at byte offset `off`. Raises StateError outside the arena."""
        cdef uint64_t n = len(data)
        if n == 0:
            return
        if off > self.size or n > self.size - off:
            raise StateError(f"write of {n} bytes at {off} outside an arena of {self.size}")
        memcpy(self.write(off, n), <const uint8_t*>data, n)

    cpdef uint64_t dirty_lines(self):
        """Lines marked since the last drain."""
        return self.count_dirty()

    cdef uint64_t count_dirty(self) noexcept nogil:
        cdef uint64_t n = 0, w
        cdef uint32_t i
        for i in range(self.n_touched):
            w = self.bits[self.touched[i]]
            while w:
                w &= w - 1
                n += 1
        return n

    def dirty_line_numbers(self):
        """Numbers of the lines marked since the last drain, ascending, uint32. For tests and inspection."""
        marks = np.zeros((self.n_pages, 8), np.uint8)
        cdef uint32_t i
        for i in range(self.n_touched):
            marks[self.touched[i]] = np.frombuffer(
                int(self.bits[self.touched[i]]).to_bytes(8, "little"), np.uint8)
        return np.flatnonzero(np.unpackbits(marks.reshape(-1), bitorder="little")).astype(np.uint32)

    @cython.final
    cdef void clear_dirty(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.n_touched):
            self.bits[self.touched[i]] = 0
        self.n_touched = 0

    # Undo: a page is saved when its first line is marked, so before it is written. Marking first is what makes that possible.

    def begin_undo(self):
        """From now on `undo` leads back to this instant. Drops all marks; costs a page's copy at the first write to each page."""
        self.clear_dirty()
        self.undoable = True

    def end_undo(self):
        """What was written stays. Idempotent."""
        self.undoable = False
        free(self.saved)
        self.saved, self.saved_pages = NULL, 0

    @cython.final
    cdef void save(self, uint64_t page) noexcept nogil:
        cdef uint64_t room
        cdef void* p
        if self.n_touched > self.saved_pages:
            room = 2 * self.saved_pages + 16
            p = realloc(self.saved, room * PAGE)
            CHECK(p != NULL)            # no memory to undo with: the node stops, as it would for the exception
            self.saved, self.saved_pages = <uint8_t*>p, room
        memcpy(self.saved + <uint64_t>(self.n_touched - 1) * PAGE, self.base + page * PAGE, PAGE)

    def undo(self):
        """Back to `begin_undo`, which stays the instant to go back to. Raises StateError when there was none."""
        cdef uint32_t i
        if not self.undoable:
            raise StateError("nothing was saved to go back to", "begin_undo() first")
        for i in range(self.n_touched):
            memcpy(self.base + <uint64_t>self.touched[i] * PAGE, self.saved + <uint64_t>i * PAGE, PAGE)
        self.clear_dirty()

    def forget_writes(self):
        """Drop all marks: what was written so far will be sent as whole pages (start of a sync)."""
        self.clear_dirty()
