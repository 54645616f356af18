"""Bench: your app as a real pair of processes, on segments in memory. No root, no network: what a test of an app needs.

    with Bench("rate_limiter:RateLimiter", tokens_max=100, tokens_per_s=0.001) as bench:
        bench.send(0, frames[:300])             # into the segment of port 0
        bench.kill()                            # SIGKILL to the active's packet process
        bench.send(0, frames[300:])
        assert bench.receive(1) == expected     # what came out of port 1: nothing lost, nothing twice
        assert bench.counts["limiter"] == {"passed": 100, "refused": 900}

Picture     bench ──┬── a ──┬── bench         a segment for each port of the app: endpoint 0 is the bench, 1 and 2 are the
                    └── b ──┘                 nodes. Both nodes hear every frame, as on a hub.

Profile host. Nodes import the app from wherever this process would: its script's folder, PYTHONPATH, site-packages.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.deploy.local import LocalPair
from nfckpt.errors import PortError, ProtectionError
from nfckpt.native.burst import Burst
from nfckpt.ports.memory import MemoryHub

__all__ = ["Bench"]

RING_FRAMES = 1 << 14       # what a node may fall behind before it loses frames
TICK_S = 0.001


class Bench:
    """`app`: "module:Class"; `app_args` go to its constructor; `ports`: how many it has. Raises as LocalPair does.

    One thread makes all calls. `pair` is the LocalPair: status, failover, keepers.
    """

    def __init__(self, app: str, *, ports: int = 2, bounds: Bounds | None = None, **app_args: Any) -> None:
        self._stack = contextlib.ExitStack()
        hubs = [self._stack.enter_context(MemoryHub(3, RING_FRAMES)) for _ in range(ports)]
        self._ends = [self._stack.enter_context(hub.open(0)) for hub in hubs]
        self._burst = Burst()
        self.pair = LocalPair(PairConfig(
            name=re.sub(r"\W", "-", app)[:40], app=app, app_args=app_args, bounds=bounds or Bounds(),
            nodes={name: NodeConfig(ports=[hub.endpoint_spec(i, by_path=True) for hub in hubs]) for i, name in enumerate("ab", 1)}))

    def __enter__(self) -> Bench:
        """Start both nodes; returns once they are protected."""
        self._stack.enter_context(self.pair)
        try:
            self.pair.wait_protected()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def send(self, port: int, frames: Sequence[bytes], frames_per_s: int = 20_000) -> None:
        """Send frames of at least 14 and at most 1522 bytes into the segment of app port `port`, no faster than that."""
        step = max(1, round(frames_per_s * TICK_S))
        for first in range(0, len(frames), step):
            if self._ends[port].tx_burst(frames[first:first + step]) != len(frames[first:first + step]) or \
                    self._ends[port].counters()["tx_errors"]:
                raise PortError("a frame was refused", "14 to 1522 bytes")
            time.sleep(TICK_S)

    def receive(self, port: int, quiet_s: float = 0.3) -> list[bytes]:
        """All frames that came out of app port `port` since the last call, once none has come for `quiet_s`."""
        out: list[bytes] = []
        since = time.monotonic()
        while time.monotonic() - since < quiet_s:
            self._burst.reset()
            if self._ends[port].rx_burst(self._burst, 256):
                out += self._burst.frames()
                since = time.monotonic()
            else:
                time.sleep(TICK_S)
        if lost := self._ends[port].counters()["rx_ring_drops"]:
            raise PortError(f"the bench lost {lost} frames itself", f"receive before {RING_FRAMES} wait")
        return out

    def kill(self) -> str:
        """SIGKILL to the active's packet process, while whatever was sent is under way. Returns the node's name."""
        return self.pair.kill_active()[0]

    def wait_protected(self, timeout_s: float = 20.0) -> str:
        """Block until there is an active and it has a standby again. Returns the active's name. Raises ProtectionError."""
        return self.pair.wait_protected(timeout_s)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Counters of the app, as the active has them now: name of the group → name → count (the first 64 of a group).

        Raises ProtectionError while nobody is active."""
        status = self.pair.status().get(self.pair.active, {})
        if "state" not in status:
            raise ProtectionError("nobody is active now", "wait_protected() first")
        return {row["name"]: row["counts"] for row in status["state"] if "counts" in row}
