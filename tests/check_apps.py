"""Apps with one flaw each, for check_nf to name: the flaw is the only thing wrong with them."""

from __future__ import annotations

import datetime
import os
import random
import secrets
import time
import uuid
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from nfckpt import Burst, NetworkFunction, PollingFunction

if TYPE_CHECKING:
    from nfckpt.nf import Context, PollingAgent
    from nfckpt.state.state import State

SEEN: dict[int, int] = {}


class Stamps(NetworkFunction):
    """Good: writes the number of the flow's frame, and a number drawn once a flow, into each frame. Base of the bad ones."""

    ports = ("left", "right")

    def declare(self, state: State) -> None:
        self.totals = state.counters("totals", ["left", "right"])
        self.nonce = state.array("nonce", "u8", 1)

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        if not self.nonce[0]:
            self.nonce[0] = ctx.random_u64()
        for i in range(len(burst)):
            self.totals.add(int(burst.port[i]))
            self.stamp(burst, i, int(self.totals.values.sum()), int(self.nonce[0]))
        burst.send(slice(None), 1 - burst.port)

    def stamp(self, burst: Burst, i: int, number: int, nonce: int = 0) -> None:
        burst.set_frame(i, burst.frame(i)[:14] + number.to_bytes(8, "big") + nonce.to_bytes(8, "big") + bytes(30))


class Watched(Stamps):
    """Good: counts with plain numpy in an array whose tracker finds it, and keeps the view."""

    def __init__(self, tracker: str) -> None:
        self.tracker = tracker

    def declare(self, state: State) -> None:
        super().declare(state)
        self.numbers = state.array("numbers", np.uint64, (2, 8), tracker=self.tracker).view

    def stamp(self, burst: Burst, i: int, number: int, nonce: int = 0) -> None:
        self.numbers[1, 3] += 1
        super().stamp(burst, i, int(self.numbers[1, 3]), nonce)


class Forgets(Stamps):
    """The number lives on self."""

    frames = 0

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        for i in range(len(burst)):
            self.frames += 1
            self.stamp(burst, i, self.frames)
        burst.send(slice(None), 1 - burst.port)


class ForgetsSilently(Stamps):
    """No output shows it, but the number on self is lost all the same."""

    def __init__(self) -> None:
        self.histogram = [0, 0]

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        for port in burst.port.tolist():
            self.histogram[port] += 1
        super().on_burst(burst, ctx)


class FirstOnly(Stamps):
    """Each life begins with a greeting."""

    def __init__(self) -> None:
        self.greeted = False
        self.scratch = 0

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        self.scratch = len(burst)
        if not self.greeted:
            ctx.send(0, b"\xff" * 12 + b"\x88\xb5" + b"good morning".ljust(46))
        self.greeted = True
        super().on_burst(burst, ctx)


class InModule(Stamps):
    def on_burst(self, burst: Burst, ctx: Context) -> None:
        SEEN[0] = SEEN.get(0, 0) + len(burst)
        super().on_burst(burst, ctx)


class InClass(Stamps):
    flows: dict[int, int] = {}

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        self.flows[len(self.flows)] = 1
        super().on_burst(burst, ctx)


class DeclaresAnew(Stamps):
    """First content written whatever the arena has."""

    def declare(self, state: State) -> None:
        super().declare(state)
        self.totals.put("left", 100)


class Reads(Stamps):
    """What it reads goes nowhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.own = random.Random(1)
        self.rng = np.random.default_rng(1)

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        READS[self.what](self)
        super().on_burst(burst, ctx)


READS = {
    "time.time": lambda app: time.time(),
    "time.monotonic": lambda app: monotonic(),
    "datetime.datetime.now": lambda app: datetime.datetime.now(),
    "random.random": lambda app: random.random(),
    "random.randint": lambda app: random.randint(0, 9),
    "os.urandom": lambda app: os.urandom(4),
    "secrets.token_bytes": lambda app: secrets.token_bytes(4),
    "uuid.uuid4": lambda app: uuid.uuid4(),
    "numpy.random": lambda app: np.random.random(),
}


class Raises(Stamps):
    def on_burst(self, burst: Burst, ctx: Context) -> None:
        super().on_burst(burst, ctx)
        if self.totals["left"] > 20:
            raise ValueError("more than 20")


class AnnounceWrites(Stamps):
    def announce(self, ctx: Context) -> list[tuple[int, bytes]]:
        self.totals.add("left")
        return []


class Cached(Stamps):
    """Good: a cache that is made again from the arena."""

    def __init__(self) -> None:
        self._half: int | None = None

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        super().on_burst(burst, ctx)
        self._half = int(self.totals.values.sum()) // 2


class Polls(PollingFunction):
    """Good, unless `forgets`: then the number of the next frame lives on self."""

    ports = ("left", "right")

    def __init__(self, forgets: bool = False, keeps: bool = False) -> None:
        self.forgets, self.keeps, self.number = forgets, keeps, 0

    def declare(self, state: State) -> None:
        self.next = state.array("next", "u8", 1)

    def run(self, agent: PollingAgent, ctx: Context) -> None:
        burst, held = Burst(), Burst()
        while agent.running:
            if not agent.rx_burst(burst, 5):
                continue
            for i in range(len(burst)):
                number = self.number if self.forgets else int(self.next[0])
                burst.set_frame(i, burst.frame(i)[:14] + number.to_bytes(8, "big") + bytes(38))
                self.next[0] = number + 1
                if self.forgets:
                    self.number = number + 1
            burst.send(slice(None), 1 - burst.port)
            if self.keeps:                      # two bursts are answered together
                burst, held = held, burst
                if not agent.rx_burst(burst, 5):
                    agent.rx_burst(burst, 5)
                burst.send(slice(None), 1 - burst.port)
                agent.tx_burst(held)
                agent.drop(held)
            agent.tx_burst(burst)
            agent.drop(burst)
