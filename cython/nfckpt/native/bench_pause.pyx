# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""For measurements: one capture, and beside it the least that any capture must do: a plain copy of the same bytes.

Each function first writes one byte of every line, as an app would (so caches and dirty pages are as after a burst), then
times the rest. All return ns.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from nfckpt.native.arena cimport CHECK, LINE, PAGE, Arena
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.epoch cimport EpochWriter, Header, Names, record_bytes_max
from nfckpt.native.gate cimport Gate
from nfckpt.native.mmu cimport mmu_open
from nfckpt.native.sync cimport PageSync
from nfckpt.native.tracker cimport LINES, Marks, Watch


def capture_ns(EpochWriter writer not None, Arena arena not None, Gate gate not None, Names names not None,
               const uint32_t[::1] lines, uint8_t[::1] out, bint marked=True):
    """The capture of `lines` (numbers) into `out`, written with marks or, `marked` False, by plain stores."""
    cdef Header want
    cdef Py_ssize_t i
    cdef uint64_t began, ended
    cdef PageSync none = PageSync(arena, 0)
    CHECK(<uint64_t>out.shape[0] >= record_bytes_max(arena, gate, names, 0))
    memset(&want, 0, sizeof(want))
    for i in range(lines.shape[0]):
        CHECK(lines[i] < arena.size // LINE)
        if marked:
            (<uint8_t*>arena.write(<uint64_t>lines[i] * LINE, 8))[0] += 1
        else:
            (arena.base + <uint64_t>lines[i] * LINE)[0] += 1
    began = monotonic_ns()
    writer.measure(arena, gate, names, want.epoch, none, False)
    writer.capture(arena, gate, names, &want, none, &out[0])
    ended = monotonic_ns()
    return int(ended - began)


def gather_ns(Arena arena not None, const uint32_t[::1] lines, uint8_t[::1] out):
    """Copies `lines` one after the other into `out`."""
    cdef Py_ssize_t i
    cdef uint64_t began
    CHECK(out.shape[0] >= lines.shape[0] * LINE)
    for i in range(lines.shape[0]):
        CHECK(lines[i] < arena.size // LINE)
        (arena.base + <uint64_t>lines[i] * LINE)[0] += 1
    began = monotonic_ns()
    for i in range(lines.shape[0]):
        memcpy(&out[i * LINE], arena.base + <uint64_t>lines[i] * LINE, LINE)
    return int(monotonic_ns() - began)


cdef class ScanAndCopy:
    """The same kernel's scan over a mapping of its own, and a plain copy of the pages it reports. `memory`: page aligned."""
    cdef Watch w
    cdef Marks m
    cdef object _memory

    def __cinit__(self, memory):
        cdef uint8_t[::1] view = memory
        self._memory = view
        self.w.base, self.w.n_pages = &view[0], <uint32_t>(view.shape[0] // PAGE)
        self.m.bits = <uint64_t*>calloc(self.w.n_pages, 8)
        self.m.log = <uint32_t*>calloc(self.w.n_pages, LINES * 4)
        if self.m.bits == NULL or self.m.log == NULL:
            raise MemoryError
        mmu_open(&self.w)

    def __dealloc__(self):
        if self.w.close != NULL:
            self.w.close(&self.w)
        free(self.m.bits)
        free(self.m.log)

    def ns(self, const uint32_t[::1] lines, uint8_t[::1] out):
        cdef Py_ssize_t i
        cdef uint64_t began, ended, n
        for i in range(lines.shape[0]):
            CHECK(lines[i] < <uint64_t>self.w.n_pages * 64)
            (self.w.base + <uint64_t>lines[i] * LINE)[0] += 1
        began = monotonic_ns()
        self.w.collect(&self.w, &self.m)
        n = self.m.n // LINES
        CHECK(n * PAGE <= <uint64_t>out.shape[0])
        for i in range(n):
            memcpy(&out[i * PAGE], self.w.base + <uint64_t>self.m.log[i * LINES] * LINE, PAGE)
        ended = monotonic_ns()
        for i in range(n):
            self.m.bits[self.m.log[i * LINES] // LINES] = 0
        self.m.n = 0
        return int(ended - began)
