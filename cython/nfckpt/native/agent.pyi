from collections.abc import Callable

from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import Names
from nfckpt.native.gate import Gate
from nfckpt.native.parking import Parking
from nfckpt.native.port import Port
from nfckpt.native.tap import Tap

class Agent:
    ports: list[Port]
    arena: Arena
    gate: Gate
    names: Names
    parking: Parking
    tap: Tap | None
    hook: Callable[[], bool] | None
    running: bool
    paused: bool
    recording: bool
    epoch: int
    ports_empty: int
    in_flight: int
    def __init__(self, ports: list[Port], arena: Arena, gate: Gate, secret: bytes, *, names_max: int = ...,
                 parking: Parking | None = ...) -> None: ...
    def rx_burst(self, burst: Burst, max_frames: int = ...) -> int: ...
    def tx_burst(self, burst: Burst) -> int: ...
    def drop(self, burst: Burst) -> int: ...
    def finish(self, burst: Burst) -> int: ...
    def park(self, burst: Burst, i: int) -> int: ...
    def emit(self, port: int, frame: bytes) -> bool: ...
    @property
    def handed_out(self) -> int: ...
    @property
    def pending(self) -> bool: ...
    def forget_names(self) -> None: ...
    def counters(self) -> dict[str, int]: ...
