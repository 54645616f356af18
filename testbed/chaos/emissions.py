"""Emissions: which node put frames on the segment, and when, seen from the hubs' own ports.

    hub_lan [a] [b], hub_wan [a] [b]: one packet ring each ─► merged by the kernel's time stamps ─► runs

    Run(node="a", first_ns, last_ns, frames)  Run(node="b", …)  Run(node="a", …)        one line a change of sender, both hubs together

A frame of an old term is one of a node that was not the active any more: it makes a run of its own where none belongs (I9). The hub sees a frame
of a node whose link is cut as well: that counts, so nobody hides behind a cut.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nfckpt.native.burst import Burst
from nfckpt.ports import open_port
from nfckpt.testbed.topology import NODES, Testbed

__all__ = ["Emissions", "Promotion", "Run", "stale_frames"]

LOOK_S = 0.004
SETTLED_NS = 5_000_000          # by then every ring has shown what came before
RING_FRAMES = 8192


@dataclass
class Run:
    node: str
    first_ns: int
    last_ns: int
    frames: int


@dataclass(frozen=True)
class Promotion:
    """`node` may emit; the first frame may leave at `from_ns`, CLOCK_MONOTONIC."""

    node: str
    from_ns: int


class Emissions:
    """Watches from `start` to `stop`, on a thread of its own."""

    def __init__(self, bed: Testbed) -> None:
        self.runs: list[Run] = []
        self.drops = 0
        self._ports = [(node, open_port({"scheme": "afpacket", "ifname": node, "netns": bed.ns(hub), "rx_ring_frames": RING_FRAMES,
                                         "tx_ring_frames": 64}))
                       for hub in ("hub_lan", "hub_wan") for node in NODES]
        self._late: list[tuple[np.ndarray, np.ndarray]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="emissions", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Idempotent."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        for _, port in self._ports:
            port.close()
        self._ports = []

    def _run(self) -> None:
        burst = Burst()
        while not self._done.wait(LOOK_S):
            self._look(burst, time.monotonic_ns() - SETTLED_NS)
        self._look(burst, 1 << 62)
        self.drops = sum(port.counters()["rx_ring_drops"] for _, port in self._ports)

    def _look(self, burst: Burst, settled_ns: int) -> None:
        for node, port in self._ports:
            while True:
                burst.reset()
                if not (n := port.rx_burst(burst, 256)):
                    break
                self._late.append((burst.ts.astype(np.int64), np.full(n, NODES.index(node), np.int8)))
                if n < 256:
                    break
        if not self._late:
            return
        at, who = (np.concatenate(part) for part in zip(*self._late, strict=True))
        order = np.argsort(at, kind="stable")
        at, who = at[order], who[order]
        ready = int(np.searchsorted(at, settled_ns))
        self._late = [(at[ready:], who[ready:])] if ready < len(at) else []
        self._add(at[:ready], who[:ready])

    def _add(self, at: np.ndarray, who: np.ndarray) -> None:
        if not len(at):
            return
        starts = np.concatenate(([0], np.flatnonzero(np.diff(who)) + 1, [len(who)]))
        for i, j in pairwise(starts):
            node, first, last = NODES[int(who[i])], int(at[i]), int(at[j - 1])
            if self.runs and self.runs[-1].node == node:
                self.runs[-1].last_ns, self.runs[-1].frames = last, self.runs[-1].frames + int(j - i)
            else:
                self.runs.append(Run(node, first, last, int(j - i)))


def stale_frames(runs: Sequence[Run], promotions: Sequence[Promotion]) -> int:
    """Frames of nodes that were not the active any more. `promotions`: in order of terms, all of the run's."""
    stale, term = 0, 0
    for run in runs:
        if promotions[term].node == run.node:
            continue
        later = next((i for i in range(term + 1, len(promotions))
                      if promotions[i].node == run.node and promotions[i].from_ns <= run.first_ns), None)
        if later is None:
            stale += run.frames
        else:
            term = later
    return stale
