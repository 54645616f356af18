"""Parts of a checked run (nf_life.py): where it dies, what it tells, its ports and the context the app sees."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nfckpt.native.agent import Agent
from nfckpt.native.burst import Burst
from nfckpt.native.function import NativeFunction
from nfckpt.native.port import Port
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.ports.port import PythonPort
from nfckpt.sim.nf_traffic import Step

__all__ = ["STAGES", "App", "CheckContext", "CheckPort", "Killed", "Outcome", "Witness", "die", "queue_of"]

App = NetworkFunction | PollingFunction | NativeFunction
STAGES = {
    "handed_out": "with the frames in the app's hands, none of them answered",
    "processed": "after the app's writes, before the epoch was captured",
    "captured": "after the capture, before the record was shipped",
    "shipped": "with the record in the channel: the standby takes it first",
    "applied": "when the standby had applied the record, undone it and applied it again",
    "acked": "when the standby had the epoch, before one output left",
    "half_released": "with half of the epoch's outputs on the segment",
    "released": "after the last output left",
}


class Killed(BaseException):
    """The active's process is no more. Apps do not catch it."""


class Witness:
    """What a run tells whoever watches the app; every method may be left out."""

    def begins(self, app: App, dead: App | None) -> None:
        """A life begins; `dead` is the app whose place it takes."""

    def before(self, step: Step, app: App) -> None: ...

    def after(self, step: Step, app: App) -> None: ...

    def calling(self, method: Callable[..., None], *args: Any) -> None:
        """Call the app."""
        method(*args)


@dataclass
class Outcome:
    """`outputs`: (port, frame, step number) in the order they left. `regions`: name → content, at the end. `error`: (step number,
    traceback) when the app raised. `unmarked`: regions where the standby has not what the active wrote. `redeclared`: regions that `declare` wrote at a
    takeover. `said`: counters of the agents."""

    outputs: list[tuple[int, bytes, int]] = field(default_factory=list)
    regions: dict[str, bytes] = field(default_factory=dict)
    error: tuple[int, str] | None = None
    unmarked: set[str] = field(default_factory=set)
    redeclared: set[str] = field(default_factory=set)
    said: dict[str, int] = field(default_factory=dict)

    def of_port(self, port: int) -> list[bytes]:
        return [frame for p, frame, _ in self.outputs if p == port]


class CheckPort(PythonPort):
    """One node's port. `left(port, index, frame)` is called for what is sent; `room`: frames it still takes (-1: any)."""

    def __init__(self, index: int, left: Callable[[CheckPort, int, bytes], None]) -> None:
        self.name = f"check:{index}"
        self._left, self._index = left, index
        self.queue: deque[tuple[bytes, int]] = deque()
        self._taken: list[bytes] = []
        self.room = -1

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        return [self.queue.popleft() for _ in range(min(max_frames, len(self.queue)))]

    def py_tx(self, frame: bytes) -> bool:
        if self.room == 0:
            return False
        self.room -= self.room > 0
        self._taken.append(frame)
        return True

    def py_flush(self) -> int:
        for frame in self._taken:
            self._left(self, self._index, frame)
        self._taken.clear()
        return 0


class CheckContext:
    """nfckpt.nf.Context, with time and chance out of step and seed."""

    def __init__(self, seed: int, agent: Agent) -> None:
        self._seed, self._agent = seed, agent
        self.soon: deque[Callable[[], None]] = deque()
        self.now_ns = 0

    def at(self, step: Step, offset: int) -> None:
        self.now_ns, self._place, self._draws = step.now_ns, (step.number, offset), 0

    def random_u64(self) -> int:
        self._draws += 1
        text = repr((self._seed, *self._place, self._draws)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    def send(self, port: int, frame: bytes) -> bool:
        return bool(self._agent.emit(port, frame))

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)

    def park(self, burst: Burst, i: int) -> int:
        return int(self._agent.park(burst, i))

    def unpark(self, handle: int) -> tuple[int, bytes]:
        port, frame = self._agent.parking.take(handle)
        return port, frame


def queue_of(port: Port) -> deque[tuple[bytes, int]]:
    """What it has not been asked for yet."""
    assert isinstance(port, CheckPort)
    return port.queue


def die(stage: str | None, *at: str) -> None:
    """Does the active die here?"""
    if stage in at:
        raise Killed
