"""The demo where the kernel allows no namespaces: numbered frames through a pair over memory ports. No root, no network.

    sink ◄── hub "right" ──┬── a ──┬── hub "left" ◄── sender          one thread each way is enough: a sender that
                           └── b ──┘                                  numbers its frames, a sink that ticks them off

The pair, its processes, checkpoints and kills are the same as on the testbed; what is missing is the kernel's TCP, so the
tcp part of the result is all zeros, connections included. Profile hosts runs without the kernel's egress lease, which
memory ports cannot have.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.native.burst import Burst
from nfckpt.ports.memory import MemoryHub, MemoryPort

__all__ = ["MemoryStage", "NumberedFrames"]

HEAD = bytes.fromhex("020000000001" "020000000002" "88b5")      # 0x88B5: for local experiments (IEEE 802)
FRAME_BYTES = 64
FRAMES_S_MAX = 10_000       # what a Python thread sends beside two packet loops on two cores
RING_FRAMES = 1 << 16
TICK_S = 0.001
LATE_NS = 2_000_000
WINDOW_NS = 1_000_000_000   # what begins later than this after a kill has another cause
DRAIN_S_MAX = 3.0


class NumberedFrames:
    """Sender and sink on one thread. The same calls and result as Workload."""

    def __init__(self, out: MemoryPort, back: MemoryPort, frames_s: int) -> None:
        self.out, self.back, self.frames_s = out, back, min(frames_s, FRAMES_S_MAX)
        self.sent = self.received = self.duplicated = 0
        self._seen = bytearray()
        self._late: list[tuple[int, int]] = []      # (arrival, delay) of each frame later than LATE_NS
        self._kills: list[int] = []
        self._sending, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="numbered frames", daemon=True)

    def start(self) -> None:
        self._sending.set()
        self._began = time.monotonic()
        self._thread.start()

    def live(self) -> dict[str, dict[str, int]]:
        return {"udp server": {"received": self.received, "duplicated": self.duplicated}, "udp client": {"sent": self.sent}}

    def mark_kill(self, t_ns: int | None = None) -> None:
        self._kills.append(time.monotonic_ns() if t_ns is None else t_ns)

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def stop(self) -> dict[str, Any]:
        self._sending.clear()
        seconds = time.monotonic() - self._began
        deadline = time.monotonic() + DRAIN_S_MAX
        while self.received < self.sent and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)                             # a frame that left twice may still come
        self.close()
        overflow = int(self.back.counters()["rx_ring_drops"])
        udp = {"sent": self.sent, "received": self.received, "lost": self.sent - self.received,
               "duplicated": self.duplicated, "sink_overflow": overflow, "corrupt": 0, "source_changed": 0}
        none = dict.fromkeys(udp, 0)
        tcp = dict.fromkeys(("connections", "opened_during_outage", "failed", "reset", "corrupt", "source_changed"), 0)
        return {"valid": not overflow, "seconds": seconds, "tcp": tcp, "udp": udp, "udp_reverse": none, "web": None,
                "outage_ms": [self._outage_ms(t) for t in self._kills]}

    def _outage_ms(self, kill: int) -> float:
        delays = [delay for at, delay in self._late if at >= kill and at - delay <= kill + WINDOW_NS]
        return round(max(delays, default=0) / 1e6, 3)

    def _run(self) -> None:
        burst = Burst()
        began = time.monotonic()
        while not self._done.is_set():
            if self._sending.is_set():
                due = int((time.monotonic() - began) * self.frames_s) - self.sent
                stamp = time.monotonic_ns().to_bytes(8, "big")
                while due > 0:
                    n = min(due, 64)
                    frames = [HEAD + (self.sent + i).to_bytes(8, "big") + stamp + bytes(FRAME_BYTES - 30) for i in range(n)]
                    self._seen += bytes(n)
                    self.out.tx_burst(frames)
                    self.sent += n
                    due -= n
            while self._receive(burst):
                pass
            time.sleep(TICK_S)

    def _receive(self, burst: Burst) -> int:
        burst.reset()
        n = self.back.rx_burst(burst, 256)
        now = time.monotonic_ns()
        for frame in burst.frames():
            number = int.from_bytes(frame[14:22], "big")
            if self._seen[number]:
                self.duplicated += 1
            else:
                self._seen[number] = 1
                self.received += 1
                if (delay := now - int.from_bytes(frame[22:30], "big")) > LATE_NS:
                    self._late.append((now, delay))
        return int(n)


class MemoryStage:
    """Two memory hubs, a pair between them that counts, numbered frames through it."""

    def __init__(self, profile: str, frames_s: int, app: str = "nfckpt.apps.counter:Counter") -> None:
        self.hubs = [MemoryHub(3, RING_FRAMES) for _ in range(2)]
        self.pass_fds = tuple(fd for hub in self.hubs for fd in hub.fds)
        left, right = (hub.open(0) for hub in self.hubs)
        self.traffic = NumberedFrames(left, right, frames_s)
        self.config = PairConfig(
            name="demo-memory", app=app, profile=profile, bounds=Bounds(unsafe_no_egress_lease=True),
            nodes={node: NodeConfig(ports=[hub.endpoint_spec(i) for hub in self.hubs], address=f"127.0.0.1:{7720 + i}", cpu=i - 1)
                   for i, node in enumerate("ab", 1)})

    def __enter__(self) -> MemoryStage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.traffic.close()
        for hub in self.hubs:
            hub.close()

    def victim(self, node: str, pid: int) -> int:
        return pid
