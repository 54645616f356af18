"""An app that does not survive some frames: a wire with a meter, and as many ways to go wrong as there are frames for it."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import TYPE_CHECKING

from nfckpt import Burst, NetworkFunction, PollingFunction

if TYPE_CHECKING:
    from nfckpt.native.arena import Arena
    from nfckpt.nf import Context, PollingAgent
    from nfckpt.state.state import State

HEAD = bytes.fromhex("02000000000102000000000a88b6")        # no frame of the rig begins so
HALF = bytes.fromhex("02000000000102000000000a88b7").ljust(60, b"\0")


def poison(way: str, n: int = 0) -> bytes:
    """A frame that goes wrong in that way."""
    return (HEAD + way.encode().ljust(16) + n.to_bytes(8, "big")).ljust(60, b"\0")


def way_of(frame: bytes) -> str:
    return frame[14:30].decode().strip() if frame.startswith(HEAD) else ""


def mapped(arena: Arena) -> int:
    """Where its bytes may be written, by those who go around it: the kernel lets nobody open or map it again."""
    inode = os.fstat(arena.fd).st_ino
    with open("/proc/self/maps") as f:
        return next(int(row.split("-")[0], 16) for row in f if row.split()[1] == "rw-s" and row.split()[4] == str(inode))


class Poisoned(NetworkFunction):
    """Writes state and emits a frame of its own before it goes wrong: nothing of that may stay."""

    ports = ("left", "right")

    def declare(self, state: State) -> None:
        self.totals = state.counters("totals", ["left_frames", "right_frames"])
        self.half = state.counters("half", ["poison"])
        self.spare = state.array("spare", "u8", (4096,))
        self.state = state

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        burst.send(slice(None), 1 - burst.port)
        for i in range(len(burst)):
            if way := way_of(burst.frame(i)):
                self.half.add("poison")
                self.spare[0] = 7
                ctx.send(0, HALF)
                burst.drop(i)
                self.goes_wrong(way)
            else:
                self.totals.add(int(burst.port[i]))

    def goes_wrong(self, way: str) -> None:
        if way == "raises":
            raise ValueError("cannot read this frame")
        if way == "stale view":
            self.spare.view[1] = 8                                      # read-only: numpy raises
        if way == "loops":
            while True:
                pass
        if way == "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        if way == "outside":
            ctypes.memset(mapped(self.state.arena) + self.spare.offset + 16384, 0xff, 512)      # past every call that marks


class PoisonedLate(Poisoned):
    """Its state is found to be written after it was."""

    def __init__(self, tracker: str) -> None:
        self.tracker = tracker

    def declare(self, state: State) -> None:
        super().declare(state)
        self.late = state.array("late", "u8", (512,), tracker=self.tracker)


class Polled(PollingFunction):
    ports = ("left", "right")

    def declare(self, state: State) -> None:
        self.totals = state.counters("totals", ["left_frames", "right_frames"])
        self.half = state.counters("half", ["poison"])

    def run(self, agent: PollingAgent, ctx: Context) -> None:
        burst = Burst()
        while agent.running:
            if not agent.rx_burst(burst):
                continue
            burst.send(slice(None), 1 - burst.port)
            for i in range(len(burst)):
                if way_of(burst.frame(i)):
                    self.half.add("poison")
                    ctx.send(0, HALF)
                    raise ValueError("cannot read this frame")
                self.totals.add(int(burst.port[i]))
            agent.tx_burst(burst)
