from collections.abc import Sequence

from nfckpt.native.arena import Arena
from nfckpt.native.gate import Gate
from nfckpt.native.sync import PageSync
from nfckpt.native.tap import Tap

MAGIC: int
VERSION: int
LAST: int

class Names:
    n: int
    capacity: int
    def __init__(self, capacity: int) -> None: ...

class EpochWriter:
    def __init__(self, secret: bytes) -> None: ...
    def build(self, arena: Arena, gate: Gate, names: Names, session: int, term: int, epoch: int, now_ns: int, echo_ns: int,
              ports_empty: int, sync: PageSync | None = ..., pages: bool = ..., ages: Sequence[int] = ...) -> bytearray: ...

class EpochRecord:
    applied: bool
    session: int
    term: int
    epoch: int
    now_ns: int
    released_through: int
    first_seq: int
    next_seq: int
    echo_ns: int
    ports_empty: int
    n_names: int
    n_outputs: int
    n_lines: int
    n_pages: int
    last: bool
    def __init__(self, memory: bytearray | memoryview, arena: Arena, n_ports: int) -> None: ...
    def register(self, tap: Tap, now: int) -> bool: ...
    def swap(self, arena: Arena) -> None: ...
    def unswap(self, arena: Arena) -> None: ...
    def agrees(self, arena: Arena, secret: bytes) -> bool: ...
