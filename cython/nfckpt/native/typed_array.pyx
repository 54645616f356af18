# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TypedArray: dtype and shape over a region. Read with numpy, write with `set`.

    weights = state.array("weights", np.float64, (64, 8))
    weights.view[3].sum()                       # read-only view: numpy as usual
    weights.set((3, slice(None)), 0.5)          # marks one line, writes eight values

A view handed out writable could not mark; so there is none. In native code `write(i, n)` marks and gives the pointer.

    samples = state.array("samples", np.float32, 1_000_000, tracker="mmu")
    np.multiply(samples.view, 0.5, out=samples.view)        # a writable view: any code may write, the kernel tells which pages
"""
import numpy as np

from nfckpt.errors import StateError

from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t

from nfckpt.native.arena cimport CHECK, LINE, Arena
from nfckpt.native.structure cimport int64_column


cdef class TypedArray(Structure):
    """TypedArray(arena, name, dtype, shape, tracker="barrier", fallback="compare"): see Arena.region for the last two.

    Raises StateError for a dtype with Python objects or an empty shape.
    """

    def __cinit__(self, Arena arena not None, str name not None, dtype, shape, str tracker="barrier", fallback="compare"):
        self.dtype = np.dtype(dtype)
        self.shape = tuple(int(d) for d in (shape if hasattr(shape, "__len__") else (shape,)))
        if self.dtype.hasobject or self.dtype.itemsize == 0:
            raise StateError(f"array {name!r}: dtype {self.dtype}", "numbers, bytes or records of them")
        if any(d < 1 for d in self.shape):
            raise StateError(f"array {name!r}: shape {self.shape}", "every dimension at least 1")
        size = 1
        for d in self.shape:
            size *= d
        if size * self.dtype.itemsize > arena.size:
            raise StateError(f"array {name!r} of {size * self.dtype.itemsize} bytes", "raise arena_bytes")
        self.size, self.item = size, self.dtype.itemsize
        self.declare(arena, name, "array",
                     f"{self.dtype.descr if self.dtype.names else self.dtype.str}/{self.item} {self.shape}",
                     LINE + self.size * self.item, tracker, fallback)
        self.first = self.offset + LINE
        self.tracked = tracker != "barrier"
        if self.tracked:
            self._raw = np.ndarray(self.shape, self.dtype, arena.writable(name), LINE)
            return
        cdef uint8_t[::1] memory = <uint8_t[:self.size * self.item]>(self.arena.base + self.first)
        self._raw = np.asarray(memory).view(self.dtype).reshape(self.shape)

    cdef const void* read(self, uint64_t i) noexcept nogil:
        CHECK(i < self.size)
        return self.arena.read(self.first + i * self.item)

    cdef void* write(self, uint64_t i, uint64_t n) noexcept nogil:
        CHECK(i < self.size and n <= self.size - i)
        return self.arena.write(self.first + i * self.item, n * self.item)

    @property
    def view(self):
        """numpy view; writable where the tracker is mmu or compare. It keeps the arena alive."""
        if self.tracked:
            return self._raw
        return np.ndarray(self.shape, self.dtype, self.arena.view(), self.first)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.view, dtype=dtype)

    def __getitem__(self, index):
        """view[index]: a scalar, a read-only view or (fancy index) a copy, as numpy does it."""
        return self.view[index]

    def set(self, index, value):
        """array[index] = value: numpy's rules and numpy's errors for both.

        Marks the elements named by the index before it writes them. Numbers and slices that select one contiguous run
        cost what they write; other slices, index arrays and masks take 8 bytes of scratch per element of the array.
        Raises StateError for a field name: write whole records.
        """
        if self.tracked:
            self._raw[index] = value
            return
        if not isinstance(index, tuple):
            index = (index,)
        if any(isinstance(i, (str, list)) and len(i) and isinstance(i[0], str) for i in index):
            raise StateError(f"array {self.name!r}: set by field name {index}", "set whole records")
        cdef object target = None
        cdef uint64_t n
        if all(isinstance(i, (int, slice, np.integer)) for i in index):
            target = self._raw[(*index, Ellipsis)]              # a view, of no dimension where one element is meant
        if target is not None and target.flags.c_contiguous:
            n = target.nbytes
            if n:
                self.arena.mark(<uint64_t><uintptr_t>target.ctypes.data - <uint64_t><uintptr_t>self.arena.base, n)
        else:
            self._mark_each(np.arange(self.size).reshape(self.shape)[index])
        self._raw[index] = value

    def __setitem__(self, index, value):
        """As `set`."""
        self.set(index, value)

    def _mark_each(self, numbers):
        cdef const int64_t[::1] which = int64_column(numbers)
        cdef Py_ssize_t i
        for i in range(which.shape[0]):
            self.write(<uint64_t>which[i], 1)
