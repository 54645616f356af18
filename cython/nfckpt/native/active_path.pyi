from nfckpt.native.agent import Agent
from nfckpt.native.burst import Burst
from nfckpt.native.channel import Channel
from nfckpt.native.engine import Engine
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.patience import Patience
from nfckpt.native.staging import Staging
from nfckpt.native.sync import PageSync

WHY_TIME: int
WHY_MAIL: int
WHY_IDLE: int

class ActivePath:
    agent: Agent
    engine: Engine
    writer: EpochWriter
    holding: bool
    sync_pages: bool
    session: int
    term: int
    clock_offset_ns: int
    leave_until_ns: int
    peer_stamp: int
    echo_ns: int
    heard_ns: int
    commits: int
    hold_ns_sum: int
    peer_inputs: int
    peer_flags: int
    sync: PageSync
    staging: Staging
    staging_full: int
    captured: bool
    pages_ride: bool
    polls: int
    def __init__(self, agent: Agent, engine: Engine, writer: EpochWriter, pages_max: int, pause_us: int = ...) -> None: ...
    def begin(self, session: int, term: int, now: int) -> None: ...
    def end(self) -> None: ...
    def attach(self, channel: Channel | None) -> None: ...
    @property
    def attached(self) -> bool: ...
    def on_ack(self, payload: memoryview | bytes, now: int, commits: bool) -> None: ...
    def take_acks(self, now: int) -> int: ...
    def heard(self, now: int) -> None: ...
    def poll(self, now: int) -> bool: ...
    @property
    def staged(self) -> memoryview | None: ...
    def shipped(self) -> None: ...
    def spent(self, ns: int) -> None: ...
    def beat(self) -> tuple[int, int]: ...
    def measure(self, on: bool) -> None: ...
    def pauses(self) -> dict[str, float]: ...
    def run(self, app: NativeFunction, burst: Burst, max_frames: int, until_ns: int, patience: Patience) -> int: ...
