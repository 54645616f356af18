# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Mmu tracker: the kernel write-protects the region's pages and notes who was written.

Picture     protect all ─► any write: the kernel lifts the page's protection, the writer goes on (~1 µs, once a page and epoch)
                ▲                                                  │
                └── one ioctl tells which pages are unprotected, and protects them again, page by page atomically ◄── collect()

Which       userfaultfd with WP_ASYNC, and PAGEMAP_SCAN: Linux 6.7 (Documentation/admin-guide/mm/pagemap.rst, userfaultfd.rst).
            USER_MODE_ONLY, so that nobody needs a privilege; writes by system calls (recv, read) into the region are seen all the
            same. 4 KiB pages only: the first write into a huge one would split it.

Promises    M1 a page written through this mapping since the last collect() is marked whole; reads mark nothing.
            M2 used only where it was seen to work just before: probe() writes a page and must find that page and no other.
               (Soft-dirty, its predecessor, says on some kernels that nothing was ever written.)
            M3 tracking is per mapping: Arena.seal() makes another writable one impossible, and a forked child has none.

Cost        Page tables for the region, 1/512 of it, and per collect() 0.3 ms a GiB.
"""
import mmap
import os

from nfckpt.errors import MachineError

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset, strerror

from nfckpt.native.tracker cimport ALL_LINES, PAGE, Marks, Watch, mark_page

cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* From linux/userfaultfd.h and linux/fs.h, which may be older than the kernel. */
    struct nf_uffd_api { uint64_t api, features, ioctls; };
    struct nf_uffd_register { uint64_t start, len, mode, ioctls; };
    struct nf_uffd_protect { uint64_t start, len, mode; };
    typedef struct { uint64_t start, end, categories; } nf_page_region;
    typedef struct { uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages,
                              category_inverted, category_mask, category_anyof_mask, return_mask; } nf_scan;
    #define NF_UFFDIO_API       _IOWR(0xAA, 0x3F, struct nf_uffd_api)
    #define NF_UFFDIO_REGISTER  _IOWR(0xAA, 0x00, struct nf_uffd_register)
    #define NF_UFFDIO_PROTECT   _IOWR(0xAA, 0x06, struct nf_uffd_protect)
    #define NF_PAGEMAP_SCAN     _IOWR('f', 16, nf_scan)
    enum { NF_USER_MODE_ONLY = 1, NF_WP_HUGETLBFS_SHMEM = 1 << 12, NF_WP_UNPOPULATED = 1 << 13, NF_WP_ASYNC = 1 << 15,
           NF_REGISTER_WP = 2, NF_PROTECT = 1, NF_SCAN_PROTECTS = 1, NF_SCAN_CHECKS = 2, NF_WRITTEN = 2 };

    /* What failed, or NULL; *fd is open then. */
    static const char *nf_mmu_protect(uint8_t *base, uint64_t n, int *fd) {
        struct nf_uffd_api api = { 0xAA, NF_WP_HUGETLBFS_SHMEM | NF_WP_UNPOPULATED | NF_WP_ASYNC, 0 };
        struct nf_uffd_register reg = { (uint64_t)base, n, NF_REGISTER_WP, 0 };
        struct nf_uffd_protect wp = { (uint64_t)base, n, NF_PROTECT };
        *fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | NF_USER_MODE_ONLY);
        if (*fd < 0) return "userfaultfd";
        if (madvise(base, n, MADV_NOHUGEPAGE)) return "no huge pages";
        if (ioctl(*fd, NF_UFFDIO_API, &api)) return "userfaultfd with WP_ASYNC";
        if (ioctl(*fd, NF_UFFDIO_REGISTER, &reg)) return "registering the region";
        if (ioctl(*fd, NF_UFFDIO_PROTECT, &wp)) return "write protection";
        return NULL;
    }
    /* Pages of [start, end) written since they were last protected; protects them. Ranges, or -1. *next: where to go on. */
    static int64_t nf_mmu_scan(int pagemap, uint64_t start, uint64_t end, nf_page_region *out, uint64_t room, uint64_t *next) {
        nf_scan a = { sizeof a, NF_SCAN_PROTECTS | NF_SCAN_CHECKS, start, end, 0, (uint64_t)out, room, 0,
                      0, NF_WRITTEN, 0, NF_WRITTEN };
        int64_t n = ioctl(pagemap, NF_PAGEMAP_SCAN, &a);
        *next = a.walk_end;
        return n;
    }
    """
    ctypedef struct Range "nf_page_region":
        uint64_t start, end, categories
    const char* nf_mmu_protect(uint8_t*, uint64_t, int*) noexcept nogil
    int64_t nf_mmu_scan(int, uint64_t, uint64_t, Range*, uint64_t, uint64_t*) noexcept nogil

cdef extern from "unistd.h" nogil:
    int close(int)

cdef enum:
    RANGES = 512


cdef bint mmu_open(Watch* w) except -1:
    """Protect and watch the pages of `w`, after probe(). Raises MachineError when that cannot be had."""
    probe()
    _open(w)
    return True


cdef int _open(Watch* w) except -1:
    cdef int fault
    cdef const char* what
    w.found = NULL
    w.uffd = w.pagemap = -1
    what = nf_mmu_protect(w.base, <uint64_t>w.n_pages * PAGE, &w.uffd)
    if what != NULL:
        fault = errno
        mmu_close(w)
        raise MachineError(f"{what.decode()}: {strerror(fault).decode()}", HINT)
    w.collect = mmu_collect
    w.close = mmu_close
    w.found = malloc(RANGES * sizeof(Range))
    try:
        w.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        mmu_close(w)
        raise MachineError(f"/proc/self/pagemap: {e.strerror}", HINT) from None
    if w.found == NULL:
        mmu_close(w)
        raise MemoryError
    return 0


HINT = 'the mmu tracker needs Linux 6.7 and userfaultfd; tracker="compare" works everywhere'


cdef void mmu_collect(Watch* w, Marks* m) noexcept nogil:
    cdef uint64_t first = <uint64_t>w.base, at = first, end = first + <uint64_t>w.n_pages * PAGE, page
    cdef Range* r = <Range*>w.found
    cdef int64_t n, i
    while at < end:
        n = nf_mmu_scan(w.pagemap, at, end, r, RANGES, &at)
        if n < 0:               # no memory in the kernel, say: what it has protected already we do not know
            w.scan_faults += 1
            for page in range(w.n_pages):
                mark_page(m, w.page + page, ALL_LINES)
            return
        for i in range(n):
            for page in range((r[i].start - first) // PAGE, (r[i].end - first) // PAGE):
                mark_page(m, w.page + page, ALL_LINES)


cdef void mmu_close(Watch* w) noexcept nogil:
    """The last close of the userfaultfd lifts all protection."""
    if w.uffd >= 0:
        close(w.uffd)
    if w.pagemap >= 0:
        close(w.pagemap)
    free(w.found)


def probe():
    """See it work, on sixteen pages of a memfd: raises MachineError with what was seen instead. About 0.1 ms."""
    cdef Watch w
    cdef Marks m
    cdef uint64_t bits[16]
    cdef uint32_t log[16 * 64]
    cdef uint8_t[::1] memory
    try:
        fd = os.memfd_create("nfckpt-probe", os.MFD_CLOEXEC)
    except OSError as e:
        raise MachineError(f"memfd: {e.strerror}", HINT) from None
    try:
        os.ftruncate(fd, 16 * PAGE)
        memory = mmap.mmap(fd, 16 * PAGE)
    finally:
        os.close(fd)
    memset(&w, 0, sizeof(w))
    w.base, w.n_pages = &memory[0], 16
    m.bits, m.log, m.undo = bits, log, NULL
    memory[0] = 1               # one page that is there already
    _open(&w)
    try:
        for page in (0, 7, 15):
            memset(bits, 0, sizeof(bits))
            m.n = 0
            memory[page * PAGE + 100] += 1
            sum(memory[::PAGE])                     # reading is no writing
            mmu_collect(&w, &m)
            seen = [i for i in range(16) if bits[i]]
            if seen != [page]:
                raise MachineError(f"page {page} was written, the kernel reports {seen}", HINT)
        m.n = 0
        mmu_collect(&w, &m)
        if m.n or w.scan_faults:
            raise MachineError("the kernel reports pages that nobody wrote", HINT)
    finally:
        mmu_close(&w)
