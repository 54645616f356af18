"""Ports around ports: FaultyPort spoils what passes, RecorderPort writes it down. They compose: Recorder(Faulty(memory)).

Worked example
        rough = FaultyPort(port, seed=7, rx=Faults(drop=0.01, reorder=0.02), tx=Faults(refuse=0.1))
        rough.faults                    # {"rx_drop": 3, "tx_refuse": 11, ...}: what was done

Promises
W1  The same seed and the same calls make the same faults; each direction has a generator of its own.
W2  Each frame either arrives, or is in `faults` (a frame dropped on its way in also counts as rx_ring_drops).
W3  A wrapper owns its port: closing it closes both. What kills the inner port makes the wrapper gone.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from nfckpt.errors import ConfigError
from nfckpt.native.burst import Burst
from nfckpt.ports.pcap import PcapWriter
from nfckpt.ports.port import Capabilities, Port, PortCounters, PythonPort

__all__ = ["Faults", "FaultyPort", "RecorderPort"]


class _Wrapper(PythonPort):
    kind = "wrapper"

    def __init__(self, inner: Port) -> None:
        self.inner = inner
        self.name = f"{self.kind}({inner.name})"
        self._burst = Burst()

    def _receive(self, max_frames: int) -> list[tuple[bytes, int]]:
        self._burst.reset()
        self.inner.rx_burst(self._burst, max_frames)
        return list(zip(self._burst.frames(), self._burst.ts.tolist(), strict=True))

    def py_flush(self) -> int:
        return self.inner.tx_flush()

    def discard(self) -> int:
        given_up = self.inner.discard()
        self.count("tx_errors", given_up)
        return given_up

    def counters(self) -> PortCounters:
        mine, inner = super().counters(), self.inner.counters()
        mine["rx_ring_drops"] += inner["rx_ring_drops"]
        mine["rx_oversize"] += inner["rx_oversize"]
        mine["rx_bad_checksum"] += inner["rx_bad_checksum"]
        return mine

    def fileno(self) -> int:
        return self.inner.fileno()

    def carrier(self) -> bool:
        return self.inner.carrier()

    def capabilities(self) -> Capabilities:
        inner = self.inner.capabilities()
        inner["kind"] = f"{self.kind}({inner['kind']})"
        return inner

    def close(self) -> None:
        super().close()
        self.inner.close()


@dataclass(frozen=True)
class Faults:
    """Probabilities per frame, 0 to 1, tried in this order; `refuse` (tx answers "full") only means something for tx."""

    refuse: float = 0.0
    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0            # up to reorder_frames_max later frames overtake it
    delay: float = 0.0              # by up to delay_ms_max; later frames overtake it
    reorder_frames_max: int = 4
    delay_ms_max: float = 1.0

    def __post_init__(self) -> None:
        for name in ("refuse", "drop", "duplicate", "reorder", "delay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}", "a probability, from 0 to 1")


@dataclass(eq=False)
class _Late:
    frame: bytes
    ts: int
    frames_left: int                # overtaken by so many more ...
    due_ns: int                     # ... and not before


class _Lane:
    """One direction: frames go in, come out spoiled."""

    def __init__(self, name: str, faults: Faults, seed: int, done: Counter[str], clock: Callable[[], int]) -> None:
        self.name, self.faults, self.done, self.clock = name, faults, done, clock
        self.random = random.Random(f"{seed}/{name}")
        self.late: list[_Late] = []

    def hit(self, fault: str) -> bool:
        probability: float = getattr(self.faults, fault)
        if probability and self.random.random() < probability:
            self.done[f"{self.name}_{fault}"] += 1
            return True
        return False

    def feed(self, frame: bytes, ts: int) -> list[tuple[bytes, int]]:
        """What comes out now that this frame went in, oldest first."""
        out: list[tuple[bytes, int]] = []
        if not self.hit("drop"):
            copies = 2 if self.hit("duplicate") else 1
            for _ in range(copies):
                if self.hit("reorder"):
                    self.late.append(_Late(frame, ts, self.random.randint(1, self.faults.reorder_frames_max) + 1, 0))
                elif self.hit("delay"):
                    wait_ns = int(self.random.random() * self.faults.delay_ms_max * 1e6)
                    self.late.append(_Late(frame, ts, 0, self.clock() + wait_ns))
                else:
                    out.append((frame, ts))
        for late in self.late:
            late.frames_left = max(0, late.frames_left - 1)
        return out + self.due()

    def due(self, idle: bool = False) -> list[tuple[bytes, int]]:
        """Late frames whose time has come; when the lane is idle nobody is left to overtake them."""
        if not self.late:
            return []
        now = self.clock()
        ready = [late for late in self.late if (idle or not late.frames_left) and late.due_ns <= now]
        self.late = [late for late in self.late if late not in ready]
        return [(late.frame, late.ts) for late in ready]


class FaultyPort(_Wrapper):
    """`inner` with seeded faults in each direction. `clock` (ns) times the delays. Raises ConfigError."""

    kind = "faulty"

    def __init__(
        self,
        inner: Port,
        seed: int,
        *,
        rx: Faults | None = None,
        tx: Faults | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(inner)
        self.faults: Counter[str] = Counter()
        self._rx_lane = _Lane("rx", rx or Faults(), seed, self.faults, clock)
        self._tx_lane = _Lane("tx", tx or Faults(), seed, self.faults, clock)
        self._out: deque[bytes] = deque()
        self.refused = 0            # frames the inner port refused for good

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        dropped = self.faults["rx_drop"]
        came = self._receive(max_frames)
        out = [] if came else self._rx_lane.due(idle=True)
        for frame, ts in came:
            out += self._rx_lane.feed(frame, ts)
        self.count("rx_ring_drops", self.faults["rx_drop"] - dropped)
        return out

    def py_tx(self, frame: bytes) -> bool | None:
        if self._tx_lane.hit("refuse") or not self._drain():
            return False
        refused = self.refused
        self._out.extend(f for f, _ in self._tx_lane.feed(frame, 0))
        self._drain()
        if self.refused == refused:
            return True
        self.count("tx_errors", self.refused - refused - 1)
        return None

    def py_flush(self) -> int:
        refused = self.refused
        self._out.extend(f for f, _ in self._tx_lane.due(idle=True))
        self._drain()
        self.count("tx_errors", self.refused - refused)
        return self.inner.tx_flush() + len(self._out) + len(self._tx_lane.late)

    def discard(self) -> int:
        given_up = len(self._out) + len(self._tx_lane.late)
        self._out.clear()
        self._tx_lane.late.clear()
        self.count("tx_errors", given_up)
        return given_up + super().discard()

    def _drain(self) -> bool:
        """Hand what is ready to the inner port; False: it is full."""
        while self._out:
            taken = self.inner.tx_frame(self._out[0])
            if taken == 0:
                return False
            self._out.popleft()
            self.refused += taken < 0
        return True


class RecorderPort(_Wrapper):
    """`inner`, and every frame it received or took written to the pcap at `path`. Raises PortError."""

    kind = "recorder"

    def __init__(self, inner: Port, path: str | os.PathLike[str]) -> None:
        super().__init__(inner)
        self._writer = PcapWriter(path)

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        came = self._receive(max_frames)
        for frame, ts in came:
            self._writer.write(frame, ts)
        return came

    def py_tx(self, frame: bytes) -> bool | None:
        taken = self.inner.tx_frame(frame)
        if taken > 0:
            self._writer.write(frame, time.monotonic_ns())
        return None if taken < 0 else taken > 0

    def close(self) -> None:
        super().close()
        self._writer.close()
