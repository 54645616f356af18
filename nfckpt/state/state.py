"""State: what an app's `declare(state)` receives; every structure it may keep, in one arena.

    def declare(self, state):
        state.flow_table("flows", capacity=100_000, key_bytes=16, value=[("port", "u2"), ("bytes", "u8")])
        state.port_pool("ports", lo=1024, hi=65535, protocols=2)
        state.counters("hits", ["in", "out"])

    later       state.flows.find(keys), state.hits.add("in", 32)

Both nodes run the same `declare` before the arena is sealed; names, order and parameters go into the layout digest,
which the handshake compares. The same declarations over a copy of an arena find its content and initialise nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from numpy.typing import DTypeLike

from nfckpt.errors import StateError
from nfckpt.native.arena import Arena
from nfckpt.native.structure import Structure
from nfckpt.native.typed_array import TypedArray
from nfckpt.state.counters import Counters
from nfckpt.state.flow_table import FlowTable
from nfckpt.state.port_pool import PortPool
from nfckpt.state.timer_wheel import TimerWheel
from nfckpt.state.values import Values

__all__ = ["State"]

S = TypeVar("S", bound=Structure)


class State:
    """Declares structures in `arena` and hands them out by name: `state.flows`, or `state["flows"]`.

    `seed`: at least 16 secret bytes that the runtime draws once for the pair. Structures that hash take a secret from
    it when their region is new; it is no part of the layout. Raises StateError for a name that is taken, is no
    identifier or is one of State's own, and wherever a structure does.
    """

    def __init__(self, arena: Arena, *, seed: bytes) -> None:
        if len(seed) < 16:
            raise StateError(f"a seed of {len(seed)} bytes", "give at least 16 random bytes")
        self.arena = arena
        self._seed = seed
        self._structures: dict[str, Structure] = {}

    # ---- declaring

    def flow_table(
        self, name: str, *, capacity: int, key_bytes: int, value: DTypeLike | int, touch_ms: float = 100.0
    ) -> FlowTable:
        """Records found by key. `value`: a dtype or a number of bytes. A flow's last_seen is written at most every
        `touch_ms`; it lives at least its timeout and at most touch_ms longer."""
        self._check(name)
        seed = hashlib.sha256(b"nfckpt flow table\0" + self._seed + name.encode()).digest()
        return self._keep(FlowTable(
            self.arena, name, capacity=capacity, key_bytes=key_bytes, value=value, touch_ns=round(touch_ms * 1e6), seed=seed
        ))

    def counters(self, name: str, names: Sequence[str] | int) -> Counters:
        """Named u64 counters, eight a line; a number n stands for the names "0" … "n-1"."""
        self._check(name)
        return self._keep(Counters(self.arena, name, names))

    def array(
        self, name: str, dtype: DTypeLike, shape: int | Sequence[int], *, tracker: str = "barrier", fallback: str | None = "compare"
    ) -> TypedArray:
        """A numpy array, zeros at first: read by `view`, written by `set`.

        With `tracker` "mmu" (the kernel notes written 4 KiB pages) or "compare" (against a copy: exact, slow) `view` is writable,
        for any code: numpy's `out=`, `readinto`, `recv_into`. Where the machine has no mmu tracker, `fallback` is used and
        `describe()` says so; with fallback=None that is a MachineError."""
        self._check(name)
        return self._keep(TypedArray(self.arena, name, dtype, shape, tracker, fallback))

    def port_pool(
        self, name: str, *, lo: int = 1024, hi: int = 65535, addresses: int = 1, protocols: int = 1
    ) -> PortPool:
        """Ports lo … hi (both included) of each pool; pool = address * protocols + protocol."""
        self._check(name)
        return self._keep(PortPool(self.arena, name, lo=lo, hi=hi, addresses=addresses, protocols=protocols))

    def timers(self, name: str, *, capacity: int, tick_ms: float = 10.0) -> TimerWheel:
        """One timer for each id 0 … capacity - 1; fires within a tick after its deadline."""
        self._check(name)
        return self._keep(TimerWheel(self.arena, name, capacity=capacity, tick_ns=round(tick_ms * 1e6)))

    def values(self, name: str, *, max_bytes: int = 4096) -> Values:
        """A small dict of str -> MessagePack-able, for what changes rarely."""
        self._check(name)
        return self._keep(Values(self.arena, name, max_bytes=max_bytes))

    def seal(self) -> None:
        """No more declarations. Idempotent."""
        self.arena.seal()

    def _check(self, name: str) -> None:
        if not name.isidentifier() or name.startswith("_") or hasattr(State, name) or name == "arena":
            raise StateError(f"a structure cannot be named {name!r}", "an identifier that State does not use itself")

    def _keep(self, structure: S) -> S:
        self._structures[structure.name] = structure
        return structure

    # ---- finding

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_structures"][name]
        except KeyError:
            raise AttributeError(f"state has no structure {name!r}; declare it in declare()") from None

    def __getitem__(self, name: str) -> Structure:
        return self._structures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._structures)

    def describe(self) -> list[dict[str, object]]:
        """One row per structure, in order: name, kind, bytes, fill (0.0 … 1.0 or None), refused."""
        return [s.describe() for s in self._structures.values()]
