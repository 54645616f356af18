# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Function: base class of apps that run without the GIL. The contract is that of nfckpt/nf.py; only on_burst differs."""
import os

from libc.stdint cimport UINT64_MAX


cdef class NativeFunction:
    """Derive in Cython, set `ports` (and `tick_ms`) in __init__, override `declare` and the C method `on_burst`.

    on_burst(Burst b, uint64_t now) sets a verdict for every frame of `b`; `now` is ctx.now_ns. It returns 0; anything
    else is a broken invariant and stops the node. Count what you refuse in a structure of the arena.
    `declare`, `on_tick` and `announce` are Python methods as in NetworkFunction, with the GIL.
    """

    def __cinit__(self, *args, **kwargs):
        self.ports = ()
        self.tick_ms = 0
        self._random = int.from_bytes(os.urandom(8), "little")

    def seed(self, value):
        """Start `random_u64` from `value` (taken modulo 2**64): simulators call it, nobody else."""
        self._random = value & UINT64_MAX

    cdef int on_burst(self, Burst b, uint64_t now) noexcept nogil:
        return 0

    def declare(self, state):
        """As NetworkFunction.declare."""

    def process(self, Burst burst not None, uint64_t now_ns):
        """Run on_burst on `burst` from Python: for tests and simulators. Raises RuntimeError where a node would stop."""
        cdef int r
        with nogil:
            r = self.on_burst(burst, now_ns)
        if r:
            raise RuntimeError(f"on_burst returned {r}")

    def on_tick(self, ctx):
        """As NetworkFunction.on_tick."""

    def announce(self, ctx):
        """As NetworkFunction.announce."""
        return ()
