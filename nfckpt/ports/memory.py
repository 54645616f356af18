"""Memory ports: a segment in shared memory. What one endpoint sends, all others receive. No root, no kernel.

Picture     client -> | ring of 0 | -> a, b         three endpoints, three memfds; each is written by its
            node a -> | ring of 1 | -> client, b    owner alone and read by all others
            node b -> | ring of 2 | -> client, a

Worked example
        hub = MemoryHub(3)                                  # a parent makes it and keeps the fds
        spec = hub.endpoint_spec(1)                         # JSON-able; the child inherits hub.fds by number
        subprocess.Popen([...json.dumps(spec)...], pass_fds=hub.fds)
        port = open_endpoint(spec)                          # in the child
        left, right = MemoryPort.pair()                     # a cable within a process

A hub does not wait: who reads too late loses the oldest frames and counts them (rx_ring_drops). A pair does: the sender
is told "full" until the other end has read.

Promises
M1  A flush publishes all its frames to all receivers by one store. A sender killed at any instruction has sent each
    frame to everybody or to nobody; what it had published stays readable, in order.
M2  Nobody waits for a reader that is dead. Somebody who opens its endpoint goes on where it stopped (a burst the dead one
    was just reading comes again), or from now with reset=True. One owner at a time: the caller sees to that.
M3  Sent by others = rx_frames + rx_ring_drops + rx_oversize once rx has returned 0.
M4  Frames of one sender keep their order; frames of several come oldest first. ts is CLOCK_MONOTONIC ns at the flush.
M5  No endpoint can write into another's ring, and nothing found there is trusted: a bad length is counted as
    rx_oversize, positions that make no sense end the port (gone).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from nfckpt.native.memory_port import MemoryRing, make_ring

__all__ = ["MemoryHub", "MemoryPort", "open_endpoint"]


class MemoryPort(MemoryRing):
    """One endpoint of a hub. Made by `pair`, `from_fds`, `MemoryHub.open`."""

    @classmethod
    def pair(cls, frames: int = 1024, frame_bytes: int = 1522) -> tuple[MemoryPort, MemoryPort]:
        """Two ends of a cable: `frames` (a power of two) each way, of at most `frame_bytes` bytes; tx waits when full."""
        with MemoryHub(2, frames, frame_bytes, wait=True) as hub:
            return hub.open(0), hub.open(1)

    @classmethod
    def from_fds(
        cls, endpoint: int, fds: Sequence[int | str], *, reset: bool = False, name: str = ""
    ) -> MemoryPort:
        """Endpoint `endpoint` of the hub whose memfds are `fds`: numbers, or paths like /proc/PID/fd/N.

        The fds stay open and the caller's. Raises PortError when they do not hold such a hub.
        """
        opened: list[int] = []
        try:
            for fd in fds:
                if isinstance(fd, str):
                    opened.append(os.open(fd, os.O_RDWR | os.O_CLOEXEC))
            paths = iter(opened)
            numbers = [next(paths) if isinstance(fd, str) else fd for fd in fds]
            return cls(name or f"mem{endpoint}", endpoint, numbers, reset)
        finally:
            for number in opened:
                os.close(number)


class MemoryHub:
    """`endpoints` rings of `frames` frames (a power of two) of at most `frame_bytes` bytes, owned by whoever made them.

    Closing it closes the fds; ports that are open stay so. Raises ConfigError, PortError.
    """

    def __init__(self, endpoints: int, frames: int = 1024, frame_bytes: int = 1522, *, wait: bool = False) -> None:
        self.fds: list[int] = []
        try:
            for i in range(endpoints):
                self.fds.append(make_ring(i, endpoints, frames, frame_bytes, wait))
        except BaseException:
            self.close()
            raise

    def endpoint_spec(self, endpoint: int, *, by_path: bool = False) -> dict[str, Any]:
        """What `open_endpoint` and `open_port` need, JSON-able: for a child that inherits `fds` under the same numbers
        (pass_fds), or, by path, for any process of the same user while this one lives."""
        fds = [f"/proc/{os.getpid()}/fd/{fd}" for fd in self.fds] if by_path else list(self.fds)
        return {"scheme": "mem", "endpoint": endpoint, "fds": fds}

    def open(self, endpoint: int, *, reset: bool = False) -> MemoryPort:
        """The port of one endpoint, in this process."""
        return MemoryPort.from_fds(endpoint, self.fds, reset=reset)

    def close(self) -> None:
        """Close the fds. Idempotent."""
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> MemoryHub:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_endpoint(
    spec: dict[str, Any], fds: Sequence[int | str] | None = None, *, reset: bool = False
) -> MemoryPort:
    """The port that `MemoryHub.endpoint_spec` described; `fds` where they have other numbers here."""
    return MemoryPort.from_fds(spec["endpoint"], spec["fds"] if fds is None else fds, reset=reset)
