# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Structure: base of everything an app may keep in the arena.

Picture     region  | stamp u64 | the structure's own header ... | its arrays ... |
            stamp = first 8 bytes of SHA-256("nfckpt <kind> <params>"), little endian; 0 = never initialised.

Promises    T1 all that matters lies in the region, as offsets and indices: a copy of the arena mapped elsewhere
               with the same declarations goes on where the original stood.
            T2 zeros are a valid empty structure apart from the stamp (and a secret, where there is one): declaring
               costs one line, not the region.
            T3 the Python object is a view: making it again over the same bytes changes nothing.
"""
import hashlib

import numpy as np

from nfckpt.errors import StateError


cdef const int64_t[::1] int64_column(object numbers):
    """What Python gave as numbers, as one column; the usual case, a contiguous int64 array, as it stands."""
    cdef const int64_t[::1] column
    if isinstance(numbers, np.ndarray):
        try:
            column = numbers
            return column
        except (ValueError, BufferError):
            pass
    column = np.ascontiguousarray(numbers, np.int64).reshape(-1)
    return column


cdef Py_ssize_t pairs(const int64_t[::1] a, const int64_t[::1] b) except -1:
    """How many pairs two columns make: of equal length, or one of them a single number that stands for all."""
    if a.shape[0] == b.shape[0] or b.shape[0] == 1:
        return a.shape[0]
    if a.shape[0] == 1:
        return b.shape[0]
    raise StateError(f"columns of {a.shape[0]} and {b.shape[0]} numbers", "give equal lengths, or one number")


cdef class Structure:
    """Base class: `name`, `kind`, `params`, `offset` and `nbytes` of its region in `arena`."""

    cpdef bint declare(self, Arena arena, str name, str kind, str params, uint64_t nbytes,
                       str tracker="barrier", fallback="compare") except -1:
        """Declare the region; 1: it is new and its header is to be written, 0: it holds a structure already.

        Raises StateError when the region cannot be had or holds something else.
        """
        if arena is None or self.arena is not None:
            raise StateError(f"{kind} {name!r} has no arena, or has one already")
        self.arena = arena
        self.name, self.kind, self.params, self.nbytes = name, kind, params, nbytes
        self.offset = arena.region(name, nbytes, kind, params, tracker, fallback)
        cdef uint64_t stamp = int.from_bytes(hashlib.sha256(f"nfckpt {kind} {params}".encode()).digest()[:8], "little")
        cdef uint64_t seen = (<const uint64_t*>arena.read(self.offset))[0]
        if seen == stamp:
            return False
        if seen != 0:
            raise StateError(f"region {name!r} does not hold a {kind} of {params}",
                             "declare the same state, in the same order, as the arena was made with")
        (<uint64_t*>arena.write(self.offset, 8))[0] = stamp
        return True

    @property
    def fill(self):
        """Share in use, 0.0 to 1.0; None where there is no such thing."""
        return None

    @property
    def refused(self):
        """Requests refused because the structure was full, since the region was made."""
        return 0

    def describe(self):
        """dict(name, kind, bytes, fill, refused, tracker): one row of `nfckpt inspect`. `tracker` says why where it is not the
        one asked for: "compare (no mmu: …)"."""
        tracker, why = self.arena.trackers[self.name]
        return {"name": self.name, "kind": self.kind, "bytes": int(self.nbytes), "fill": self.fill, "refused": self.refused,
                "tracker": f"{tracker} ({why})" if why else tracker}
