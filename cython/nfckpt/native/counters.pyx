# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Counters: named u64 counters that survive a takeover exactly, eight to a line.

Picture     | stamp line | c0 c1 ... c7 | c8 ... |      counters bumped together: name them one after the other

Counters wrap at 2**64. `n = counters.index("dropped")` once, then `counters.add(n, 1)` in native code. Counting once per
packet costs one dirty line per poll, not per packet: lines merge within an epoch.
"""
import numpy as np

from nfckpt.errors import StateError

from libc.stdint cimport int64_t, uint32_t, uint64_t

from nfckpt.native.arena cimport CHECK, LINE, Arena
from nfckpt.native.structure cimport int64_column, nth, pairs


cdef class Counters(Structure):
    """Counters(arena, name, names): the native half; nfckpt.state.Counters has the names Python code uses.

    A number n instead of names stands for "0" … "n-1". Raises StateError where names repeat or there is none.
    """

    def __cinit__(self, Arena arena not None, str name not None, names):
        names = tuple(str(s) for s in (range(names) if isinstance(names, int) else names))
        if not names or len(set(names)) != len(names):
            raise StateError(f"counters {name!r}: names {names}", "give each counter a name of its own")
        self.names = names
        self.n = len(names)
        self.declare(arena, name, "counters", ",".join(map(repr, names)), LINE + 8 * <uint64_t>self.n)
        self.first = self.offset + LINE

    cdef void add(self, uint32_t i, uint64_t n) noexcept nogil:
        CHECK(i < self.n)
        (<uint64_t*>self.arena.write(self.first + 8 * <uint64_t>i, 8))[0] += n

    cdef uint64_t read(self, uint32_t i) noexcept nogil:
        CHECK(i < self.n)
        return (<const uint64_t*>self.arena.read(self.first + 8 * <uint64_t>i))[0]

    cdef void put(self, uint32_t i, uint64_t value) noexcept nogil:
        CHECK(i < self.n)
        (<uint64_t*>self.arena.write(self.first + 8 * <uint64_t>i, 8))[0] = value

    cpdef uint32_t index(self, str name) except? 0xffffffff:
        """Number of the counter. Raises StateError where there is none of that name."""
        try:
            return self.names.index(name)
        except ValueError:
            raise StateError(f"counters {self.name!r} has no {name!r}", f"it has {', '.join(self.names)}") from None

    def add_many(self, which, n=1):
        """Add `n` to the counter(s) `which`: a name, a number, or a column of numbers, which may repeat; n is one number
        (0 … 2**64 - 1) or a column of the same length (below 2**63 each)."""
        if isinstance(which, str):
            self.add(self.index(which), n)
            return
        cdef const int64_t[::1] index = int64_column(which), more = int64_column(n if not isinstance(n, int) else 1)
        cdef uint64_t times = n if isinstance(n, int) else 1
        cdef Py_ssize_t i, m = pairs(index, more)
        for i in range(index.shape[0]):
            if not 0 <= index[i] < self.n:
                raise StateError(f"counters {self.name!r} has no number {index[i]}", f"numbers are 0 to {self.n - 1}")
        for i in range(m):
            if nth(more, i) != 0 and times != 0:
                self.add(<uint32_t>nth(index, i), times * <uint64_t>nth(more, i))

    def put_one(self, str name, uint64_t value):
        """Set one counter (a gauge)."""
        self.put(self.index(name), value)

    @property
    def values(self):
        """Read-only view, uint64 (n,), in the order of `names`."""
        return np.ndarray(self.n, np.uint64, self.arena.view(), self.first)

    def __getitem__(self, str name):
        return self.read(self.index(name))

    def __len__(self):
        return self.n

    def __iter__(self):
        return iter(self.names)

    def as_dict(self):
        """dict name -> value."""
        return dict(zip(self.names, self.values.tolist()))
