"""Apps that go wrong in ways of their own: a wire with a meter each, and a flaw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nfckpt import Burst, NetworkFunction, PollingFunction

if TYPE_CHECKING:
    from nfckpt.nf import Context, PollingAgent
    from nfckpt.state.state import State


class RaisesOnce(NetworkFunction):
    """Counts and, in its first term only, raises half-way through the burst in which frame `at` comes."""

    ports = ("left", "right")

    def __init__(self, at: int) -> None:
        self.at = at

    def declare(self, state: State) -> None:
        self.totals = state.counters("totals", ["left_frames", "right_frames"])
        self.half = state.counters("half", 1)
        self.first = not self.totals.as_dict()["left_frames"]      # a second life finds a count

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        self.half.add("0", len(burst))
        if self.first and self.totals.as_dict()["left_frames"] >= self.at:
            burst.send(slice(None), 1 - burst.port)
            raise RuntimeError("half a burst")
        self.totals.add(burst.port, 1)
        burst.send(slice(None), 1 - burst.port)


class Keeps(PollingFunction):
    """Sends at once, but once `at` frames have passed it keeps the next one for `keep_ms`, polling on; 0: for ever. A second
    life keeps nothing."""

    ports = ("left", "right")

    def __init__(self, at: int, keep_ms: int = 0) -> None:
        self.at, self.keep_ns = at, keep_ms * 1_000_000

    def declare(self, state: State) -> None:
        self.totals = state.counters("totals", ["left_frames", "right_frames"])
        self.second = self.totals.as_dict()["left_frames"] > 0

    def run(self, agent: PollingAgent, ctx: Context) -> None:
        passed = 0
        held: Burst | None = None
        burst = Burst()
        while agent.running:
            if not agent.rx_burst(burst):
                continue
            self.totals.add(burst.port, 1)
            passed += len(burst)
            burst.send(slice(None), 1 - burst.port)
            if held is None and passed > self.at and not self.second:
                held, burst = burst, Burst()
                until_ns = ctx.now_ns + self.keep_ns
                while agent.running and (not self.keep_ns or ctx.now_ns < until_ns):
                    if agent.rx_burst(burst):
                        self.totals.add(burst.port, 1)
                        burst.send(slice(None), 1 - burst.port)
                        agent.tx_burst(burst)
                agent.tx_burst(held)
            else:
                agent.tx_burst(burst)


class Samples(NetworkFunction):
    """Counts each frame twice: in marked counters, and with plain numpy in an array that the mmu tracker watches. Raises when the
    two disagree, in its first life or in one over a committed arena (I4). Ticks are counted with no frame about."""

    ports = ("left", "right")
    tick_ms = 1

    def declare(self, state: State) -> None:
        self.totals = state.counters("totals", ["left_frames", "right_frames"])
        self.ticks = state.array("ticks", np.uint64, 1, tracker="mmu", fallback=None)
        self.hits = state.array("hits", np.uint64, (2, 1024), tracker="mmu", fallback=None)
        self.agree()

    def agree(self) -> None:
        if self.hits.view.sum(1).tolist() != self.totals.values.tolist():
            raise RuntimeError(f"array {self.hits.view.sum(1)}, counters {self.totals.values}")

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        self.totals.add(burst.port, 1)
        np.add.at(self.hits.view, (burst.port, ctx.random_u64() % 1024), 1)
        self.agree()
        burst.send(slice(None), 1 - burst.port)

    def on_tick(self, ctx: Context) -> None:
        self.ticks.view[0] += 1
