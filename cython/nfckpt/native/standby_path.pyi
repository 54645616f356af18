from nfckpt.native.arena import Arena
from nfckpt.native.channel import Channel
from nfckpt.native.patience import Patience
from nfckpt.native.tap import Tap

WHY_TIME: int
WHY_MAIL: int
WHY_IDLE: int

class StandbyPath:
    tap: Tap | None
    arena: Arena
    session: int
    term: int
    epoch: int
    next_seq: int
    released_through: int
    now_ns: int
    commit_ns: int
    heard_ns: int
    peer_stamp: int
    tap_open: bool
    silent: bool
    last_page: bool
    epochs: int
    divergent_epoch: int
    missing: bool
    def __init__(self, tap: Tap | None, arena: Arena, secret: bytes, now: int, n_ports: int = ..., record_bytes_max: int = ...) -> None: ...
    def begin(self, session: int, term: int, epoch: int) -> None: ...
    def attach(self, channel: Channel | None) -> None: ...
    @property
    def attached(self) -> bool: ...
    def heard(self, now: int) -> None: ...
    def commit(self, memory: memoryview | bytearray, now: int) -> bool: ...
    def raise_fault(self) -> None: ...
    def supply(self, outputs: memoryview | bytes) -> None: ...
    def window(self) -> tuple[int, int, int] | None: ...
    def released_at_most(self) -> int: ...
    def ack(self, number: int, now: int) -> bytes: ...
    def run(self, until_ns: int, patience: Patience) -> int: ...
