from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfckpt.native.arena import Arena
from nfckpt.native.epoch import EpochWriter, Names
from nfckpt.native.gate import Gate

def capture_ns(
    writer: EpochWriter, arena: Arena, gate: Gate, names: Names, lines: NDArray[np.uint32], out: NDArray[np.uint8],
    marked: bool = ...,
) -> int: ...
def gather_ns(arena: Arena, lines: NDArray[np.uint32], out: NDArray[np.uint8]) -> int: ...

class ScanAndCopy:
    def __init__(self, memory: Any) -> None: ...
    def ns(self, lines: NDArray[np.uint32], out: NDArray[np.uint8]) -> int: ...
