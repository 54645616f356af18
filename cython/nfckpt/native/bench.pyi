from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.function import NativeFunction
from nfckpt.native.memory_port import MemoryRing
from nfckpt.native.port import Port
from nfckpt.native.shm_ring import ShmRing

class Generator(Port):
    made: int
    limit: int
    def __init__(self, frames: Sequence[bytes], limit: int = ..., *, numbered: bool = ...) -> None: ...

class Fed(Port):
    generator: Generator
    def __init__(self, generator: Generator, source: MemoryRing, port: MemoryRing) -> None: ...

class LineWriter(NativeFunction):
    whole: int
    def __init__(self, nbytes: int = ...) -> None: ...
    def watch(self, agent: Agent | None, frames: int) -> None: ...

def write_lines(arena: Arena, lines: NDArray[np.uint32]) -> None: ...
def gather(arena: Arena, lines: NDArray[np.uint32], into: NDArray[np.uint8]) -> int: ...
def timed_cut(path: ActivePath) -> int: ...
def delays(path: ActivePath, app: NativeFunction, burst: Burst, frames: int, out: NDArray[np.uint32]) -> None: ...
def echo(ring: ShmRing, until_ns: int) -> int: ...
def ping(ring: ShmRing, nbytes: int, window: int, rounds: int, until_ns: int, took: NDArray[np.uint32] | None = ...) -> int: ...
