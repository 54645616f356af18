# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Arena: all state of the app, in one memfd, as named regions at fixed offsets.

Picture     base                                                                     base+size
            | header page | region "flows" ........ | region "ports" ... | unused ... |
            every region starts on a page; inside there are offsets only, never pointers.

Why         A capture copies the lines that were marked since the last one and nothing else, so it costs what
            was written, never what is stored. A structure calls `write(off, n)` and gets the pointer: marking
            cannot be forgotten. Python sees regions through a second, read-only mapping. A region may have another
            tracker instead (tracker.pxd): then any code may write it, and collect() finds out what was written.

Promises    A1 a byte handed out writable was marked first.
            A2 regions are declared before `seal()`, each name once, in the same order on both nodes: the
               layout digest (SHA-256 over name, offset, bytes, kind, params) is compared in the handshake. Trackers are
               no part of it: how a node learns of a write is its own affair, and one that lacks a feature still pairs.
            A3 a new arena reads as zeros.
            A4 after `seal()` the kernel lets nobody map or write the memfd any more: what is written passes the trackers.
               A forked child does not have the arena.
"""
import fcntl
import hashlib
import mmap
import os

import numpy as np

from nfckpt.errors import ConfigError, MachineError, StateError

from libc.errno cimport EFAULT, EINVAL, ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close, getpid

from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.compare cimport compare_open
from nfckpt.native.mmu cimport mmu_open
from nfckpt.native.tracker cimport LINES, Undo

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo

cdef extern from "sys/mman.h" nogil:
    void* mmap_ "mmap"(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED, MADV_HUGEPAGE, MADV_DONTFORK

cdef extern from *:
    void __builtin_prefetch(const void*, int) noexcept nogil

cdef enum:
    MADV_POPULATE_WRITE = 23    # Linux 5.14; older kernels refuse it, and fault the pages in one by one
    MADV_COLLAPSE = 25          # Linux 6.1, whatever shmem_enabled says: see madvise(2); older kernels refuse it
    HUGE = 2 << 20
    LOOK_NS = 1000000           # between two looks at regions that mark nothing themselves, while nothing else is pending
    LOOK_SHARE = 20             # and at least so many times as long as the last look took
    AHEAD = 24                  # lines asked for before they are copied,
    AHEAD_FROM = 256            # where there are more than the nearest cache holds


cdef class Arena:
    """State of one app: `nbytes` bytes (rounded up to 4096) in a memfd, tracked by 64-byte lines.

    `Arena(nbytes)` makes a new one; `Arena(fd=…)` maps one that a parent holds.
    The arena owns the fd. Raises ConfigError for a size that is not positive, StateError when memory cannot be had or the fd
    may not be mapped for writing: it is no arena, or was sealed in another mapping.
    """

    def __cinit__(self, nbytes=0, *, int fd=-1):
        cdef void* p
        self.fd = fd
        self._pid = getpid()
        if fd < 0:
            if nbytes <= 0 or nbytes > (1 << 38):
                raise ConfigError(f"arena of {nbytes} bytes", "arena_bytes must lie between 4096 and 2**38: records number its 64-byte lines in 32 bits")
            nbytes = (int(nbytes) + PAGE - 1) // PAGE * PAGE
            self.fd = fd = os.memfd_create("nfckpt-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(fd, nbytes)
            except OSError as e:
                raise StateError(f"arena of {nbytes} bytes: {e.strerror}", "lower arena_bytes") from None
        else:
            nbytes = os.fstat(fd).st_size
            if nbytes == 0 or nbytes % PAGE:
                raise StateError(f"fd {fd} holds {nbytes} bytes: not an arena")
        self.size = nbytes
        self.n_pages = nbytes // PAGE
        p = map_aligned(fd, nbytes)
        if p == NULL:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & F_SEAL_FUTURE_WRITE:
                raise StateError("this arena is sealed: writes through a second mapping would not be tracked",
                                 "map it before seal()")
            raise StateError(f"cannot map an arena of {nbytes} bytes", "lower arena_bytes or free memory")
        self.base = <uint8_t*>p
        madvise(p, nbytes, MADV_DONTFORK)
        self.marks.bits = <uint64_t*>zeros(<uint64_t>self.n_pages * 8)
        self.marks.log = <uint32_t*>zeros(<uint64_t>self.n_pages * LINES * 4)
        if self.marks.bits == NULL or self.marks.log == NULL:
            raise StateError(f"no memory to track an arena of {nbytes} bytes", "lower arena_bytes")
        madvise(self.marks.bits, <uint64_t>self.n_pages * 8, MADV_HUGEPAGE)      # touched anywhere: one entry of the TLB, not hundreds
        self._names = {}
        self._trackers = {}
        self._top = PAGE            # page 0 is the runtime's own: see nfckpt/state/runtime
        self._sealed = False
        self._map = None

    def __dealloc__(self):      # no Python: at the end of the interpreter modules are gone
        cdef uint32_t i
        for i in range(self.n_watches):
            self.watches[i].close(&self.watches[i])
        if self.base != NULL and getpid() == self._pid:      # in a forked child something else may lie there
            munmap(self.base, self.size)
        free(self.watches)
        free(self._undo.page)
        free(self._undo.saved)
        unmap(self.marks.bits, <uint64_t>self.n_pages * 8)
        unmap(self.marks.log, <uint64_t>self.n_pages * LINES * 4)
        if self.fd >= 0:
            close(self.fd)

    cpdef uint64_t region(self, str name, uint64_t nbytes, str kind="bytes", str params="", str tracker="barrier",
                          fallback="compare") except? 0:
        """Declare a region and return its offset in bytes (page aligned). Its `tracker`, "barrier", "mmu" or "compare", is armed
        from here on; where this machine has no "mmu" it is `fallback`, and `trackers` says so.

        Raises StateError when the name is taken, the arena is sealed, it does not fit, or there is no memory for "compare";
        MachineError when there is no "mmu" and `fallback` is None.
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
        if tracker not in TRACKERS or fallback not in ("compare", None):
            raise StateError(f"region {name!r}: tracker {tracker!r}, fallback {fallback!r}",
                             "one of barrier, mmu, compare; fallback compare or None")
        why = None
        if tracker == "mmu":
            try:
                self._watch(tracker, off, nbytes)
            except MachineError as e:
                if fallback is None:
                    raise MachineError(f"region {name!r} insists on the mmu tracker: {e.message}", e.hint) from None
                tracker, why = fallback, f"no mmu: {e.message}"
        if tracker == "compare":
            self._watch(tracker, off, nbytes)
        self._top = off + (nbytes + PAGE - 1) // PAGE * PAGE
        self._names[name] = (int(off), int(nbytes), kind, params)
        self._trackers[name] = (tracker, why)
        return off

    cdef int _watch(self, str how, uint64_t off, uint64_t nbytes) except -1:
        cdef Watch* w = <Watch*>realloc(self.watches, (self.n_watches + 1) * sizeof(Watch))
        if w == NULL:
            raise MemoryError
        self.watches = w
        w += self.n_watches
        memset(w, 0, sizeof(Watch))
        w.base = self.base + off
        w.page, w.n_pages = <uint32_t>(off // PAGE), <uint32_t>((nbytes + PAGE - 1) // PAGE)
        if how == "mmu":
            mmu_open(w)
        elif not compare_open(w):
            raise StateError(f"no memory for the shadow of {nbytes} bytes", "another tracker, or a smaller region")
        self.n_watches += 1
        return 0

    def populate(self, uint64_t nbytes=0):
        """Take the memory of the first `nbytes` (0: all) now instead of page by page at the first writes, in huge pages where the
        kernel has them: a line anywhere is then one entry of the TLB away, 1 GiB is there in 0.1 s instead of 0.8 s, and a dead
        node's memory is gone in a sixtieth of the time. Returns the bytes that lie in huge pages now. Raises MachineError when there is
        not so much: asked first, since the kernel would rather kill somebody than refuse.
        """
        cdef uint64_t end = min(nbytes or self.size, self.size), off = 0, huge_bytes = 0, n
        cdef bint huge = True, full = False
        with open("/proc/meminfo") as f:
            available = next(int(row.split()[1]) * 1024 for row in f if row.startswith("MemAvailable"))
        if end <= available:
            with nogil:
                while off < end and not full:
                    n = min(<uint64_t>HUGE, self.size - off)
                    if huge and n == HUGE and huge_page(self.base + off, &huge):
                        huge_bytes += n
                    else:
                        full = madvise(self.base + off, n, MADV_POPULATE_WRITE) != 0 and errno in (ENOMEM, EFAULT)
                    off += n
        if end > available or full:
            raise MachineError(f"no memory for an arena of {end} bytes: {available} available", "lower arena_bytes or free memory")
        return huge_bytes

    def touch(self):
        """Make this mapping's way to every page that there is, so that no first access waits for it. Takes no memory but for tables."""
        madvise(self.base, self.size, MADV_POPULATE_WRITE)

    def seal(self):
        """No region can be declared any more, and nobody can map the memfd for writing or cut it any more. Idempotent."""
        self._sealed = True
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)

    def forget_regions(self):
        """As before the first region(), with all that is stored: a fresh app declares its state again, over it.

        Raises StateError where a region has a tracker of its own."""
        if self.n_watches:
            raise StateError("a region with an mmu or compare tracker is watched for as long as its arena lives")
        self._names.clear()
        self._trackers.clear()
        self._top, self._sealed = PAGE, False

    @property
    def regions(self):
        """dict name -> (offset, bytes, kind, params)."""
        return dict(self._names)

    @property
    def trackers(self):
        """dict name -> (tracker, None or why it is not the one asked for)."""
        return dict(self._trackers)

    @property
    def scan_faults(self):
        """Scans for written pages that the kernel refused: the whole region was sent each time."""
        cdef uint32_t i
        return sum(self.watches[i].scan_faults for i in range(self.n_watches))

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

    def writable(self, str name):
        """Writable memoryview of a region whose tracker sees every write; it keeps the arena alive. Raises StateError for one whose
        structure must mark."""
        if self._trackers[name][0] == "barrier":
            raise StateError(f"region {name!r} is written through calls that mark", 'tracker="mmu" lets any code write it')
        off, n = self._names[name][:2]
        return memoryview(Writable(self, off, n))

    def write_bytes(self, uint64_t off, bytes data):
        """Mark and write `data` at byte offset `off`. Raises StateError outside the arena."""
        cdef uint64_t n = len(data)
        if n == 0:
            return
        if off > self.size or n > self.size - off:
            raise StateError(f"write of {n} bytes at {off} outside an arena of {self.size}")
        memcpy(self.write(off, n), <const uint8_t*>data, n)

    # ── what was written ─────────────────────────────────────────────────────────────────────────

    @cython.final
    cdef void _collect(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.n_watches):
            self.watches[i].collect(&self.watches[i], &self.marks)

    @cython.final
    cdef bint _look(self, uint64_t now_ns) noexcept nogil:
        """Nothing is marked, no frame was consumed and none is held, so only a tick or a callback can have written, and nothing
        that left depends on it: it may be seen later, as if the tick had come later. So at most one look in LOOK_NS, and
        no more than 1/LOOK_SHARE of the time. A capture for any other reason collects all the same."""
        cdef uint64_t began
        if now_ns < self._look_ns:
            return False
        began = monotonic_ns()
        self._collect()
        self._look_ns = now_ns + max(<uint64_t>LOOK_NS, LOOK_SHARE * (monotonic_ns() - began))
        return self.marks.n > 0

    cpdef uint64_t dirty_lines(self):
        """Lines written since the last drain."""
        self.collect()
        return self.marks.n

    def dirty_line_numbers(self):
        """Numbers of the lines written since the last drain, ascending, uint32. For tests and inspection."""
        self.collect()
        return np.sort(np.asarray(<uint32_t[:self.marks.n]>self.marks.log)) if self.marks.n else np.zeros(0, np.uint32)

    @cython.final
    cdef void drain(self, uint32_t* number, uint8_t* lines) noexcept nogil:
        """Take the marks: numbers and bytes of the marks.n lines, in order of first write."""
        cdef const uint32_t* log = self.marks.log
        cdef const uint8_t* base = self.base
        cdef uint64_t i, n = self.marks.n, ahead = AHEAD if n >= AHEAD_FROM else n
        memcpy(number, log, n * 4)
        for i in range(n):                  # nothing else in this loop: a test for runs cost a third of it where there are none
            if i + ahead < n:
                __builtin_prefetch(base + <uint64_t>log[i + ahead] * LINE, 0)
            memcpy(lines + i * LINE, base + <uint64_t>log[i] * LINE, LINE)
        self.clear_dirty()

    @cython.final
    cdef void clear_dirty(self) noexcept nogil:
        cdef const uint32_t* log = self.marks.log
        cdef uint64_t* bits = self.marks.bits
        cdef uint64_t i
        for i in range(self.marks.n):       # a loop of its own: with the copy in it, both wait for each other's cache misses
            bits[log[i] // LINES] = 0
        self.marks.n = 0

    def forget_writes(self):
        """Drop all marks: what was written so far will be sent as whole pages (start of a sync)."""
        self.collect()
        self.clear_dirty()

    # ── undo ─────────────────────────────────────────────────────────────────────────────────────

    def begin_undo(self):
        """From now on `undo` leads back to this instant. Drops all marks; costs a page's copy at the first write to each page.

        Raises StateError where a region's tracker finds a write only after it was made: see `undoable`."""
        if not self.undoable:
            raise StateError("writes of a region with an mmu or compare tracker cannot be undone", "see Arena.undoable")
        self.clear_dirty()
        self._undo.save, self._undo.base, self._undo.n = save_page, self.base, 0
        self.marks.undo = &self._undo

    def undo(self):
        """Back to `begin_undo`, which stays the instant to go back to. Raises StateError when there was none."""
        if self.marks.undo == NULL:
            raise StateError("nothing was saved to go back to", "begin_undo() first")
        while self._undo.n:         # youngest first: a page whose marks were taken since was saved again
            self._undo.n -= 1
            memcpy(self.base + <uint64_t>self._undo.page[self._undo.n] * PAGE, self._undo.saved + self._undo.n * PAGE, PAGE)
        self.clear_dirty()

    def end_undo(self):
        """What was written stays. Idempotent."""
        free(self._undo.page)
        free(self._undo.saved)
        memset(&self._undo, 0, sizeof(Undo))
        self.marks.undo = NULL

    @property
    def undoable(self):
        """Does every structure mark before it writes?"""
        return self.n_watches == 0


TRACKERS = ("barrier", "mmu", "compare")
F_SEAL_FUTURE_WRITE = 0x10      # linux/fcntl.h; not in Python's fcntl before 3.13


cdef void save_page(Undo* u, uint64_t page) noexcept nogil:
    if u.n == u.room:
        u.room = 2 * u.room + 16
        u.page = <uint32_t*>realloc(u.page, u.room * 4)
        u.saved = <uint8_t*>realloc(u.saved, u.room * PAGE)
        CHECK(u.page != NULL and u.saved != NULL)       # no memory to undo with: the node stops, as it would for the exception
    u.page[u.n] = <uint32_t>page
    memcpy(u.saved + u.n * PAGE, u.base + page * PAGE, PAGE)
    u.n += 1


cdef void* map_aligned(int fd, uint64_t nbytes) noexcept nogil:
    """The memfd, writable, where huge pages can be mapped; NULL when it cannot be had."""
    cdef uint8_t* room = <uint8_t*>mmap_(NULL, nbytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef uint64_t before = HUGE - (<uint64_t>room & (HUGE - 1)), after = HUGE - before
    cdef void* p
    if room == <uint8_t*>-1:
        return NULL
    p = mmap_(room + before, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0)
    munmap(room, before)
    if after:
        munmap(room + before + nbytes, after)
    if p == <void*>-1:
        munmap(room + before, nbytes)
        return NULL
    return p


cdef bint huge_page(uint8_t* at, bint* can) noexcept nogil:
    """Make these HUGE bytes one page. `can` becomes False where this kernel makes none."""
    madvise(at, PAGE, MADV_POPULATE_WRITE)      # a range without any page is refused
    if madvise(at, HUGE, MADV_COLLAPSE) == 0:
        return True
    can[0] = errno != EINVAL
    return False


cdef void* zeros(uint64_t nbytes) noexcept nogil:
    """Address space that becomes memory where it is written; NULL when there is none."""
    cdef void* p = mmap_(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if p == <void*>-1 else p


cdef void unmap(void* p, uint64_t nbytes) noexcept nogil:
    if p != NULL:
        munmap(p, nbytes)


cdef class Writable:
    """Buffer of a part of an arena, which lives as long as the buffer does."""
    cdef Arena arena
    cdef uint64_t off, n

    def __cinit__(self, Arena arena not None, uint64_t off, uint64_t n):
        self.arena, self.off, self.n = arena, off, n

    def __getbuffer__(self, Py_buffer* b, int flags):
        PyBuffer_FillInfo(b, self, self.arena.base + self.off, <Py_ssize_t>self.n, False, flags)
