"""Round trip: the physical limit of a commit. A record of n bytes to another process, which copies it out and answers.

    with ChannelPair("tcp") as pair:
        ns = pair.round_trips(4096, 1000)           # one at a time, both ends spinning, no GIL
        rate = pair.bytes_per_s(1 << 20, 200)       # as fast as there is room

Picture     this process, CPU 0 ──── record, n bytes ───► child, CPU 1: pop (copied out, verified), push 40 bytes
                                ◄──── answer, 40 bytes ──

The same Channel as between two nodes, and nothing else: no app, no capture, no tap. `shm` is profile host, `tcp` profile hosts over
loopback. What a protected frame waits longer than this is ours, not the channel's.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from types import TracebackType

import numpy as np

from nfckpt.native.channel import Channel
from nfckpt.native.round_trip import echo, ping, pour
from nfckpt.wire.shm import ShmConnect, ShmOptions
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions

__all__ = ["ChannelPair"]

START_S_MAX = 10.0
_SHM = ShmOptions(ring_bytes=4 << 20, handshake_ms_max=10_000)
_TCP = TcpOptions(bytes(32), handshake_ms_max=10_000)       # both ends are ours, on this machine: no secret


class ChannelPair:
    """`transport`: "shm" or "tcp". A context manager: the child lives as long as it does. One thread makes all calls."""

    def __init__(self, transport: str, *, cpus: tuple[int, int] | None = (0, 1)) -> None:
        self.transport, self._cpus = transport, cpus
        self.channel: Channel

    def __enter__(self) -> ChannelPair:
        family, kind = (socket.AF_UNIX, socket.SOCK_SEQPACKET) if self.transport == "shm" else (socket.AF_UNIX, socket.SOCK_STREAM)
        ours, theirs = socket.socketpair(family, kind)
        listener = socket.create_server(("127.0.0.1", 0)) if self.transport == "tcp" else None
        cpu = -1 if self._cpus is None else self._cpus[1]
        port = listener.getsockname()[1] if listener is not None else 0
        self._child = subprocess.Popen([sys.executable, "-m", __name__, str(theirs.fileno()), str(port), str(cpu)],
                                       pass_fds=[theirs.fileno()])
        theirs.close()
        self._affinity = os.sched_getaffinity(0)
        _pin(-1 if self._cpus is None else self._cpus[0])
        if listener is None:
            self.channel = _wait(ShmConnect(ours, _SHM))
        else:
            serving = TcpListener(listener, _TCP)
            self.channel = _wait(serving)
            serving.close()
            ours.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.channel.close()
        try:
            self._child.wait(START_S_MAX)
        finally:
            self._child.kill()
            self._child.wait()
            os.sched_setaffinity(0, self._affinity)

    def round_trips(self, nbytes: int, rounds: int) -> np.ndarray:
        """uint64 array, shape (rounds,): nanoseconds each. Raises RuntimeError when the child is gone."""
        out = np.zeros(rounds, np.uint64)
        if not ping(self.channel, os.urandom(nbytes), out):
            raise RuntimeError(f"the channel ended: {self.channel.closed}")
        return out

    def bytes_per_s(self, nbytes: int, count: int) -> float:
        """Payload bytes a second of `count` messages of `nbytes`, all of them answered at the end."""
        ns = pour(self.channel, os.urandom(nbytes), count)
        if ns == 0:
            raise RuntimeError(f"the channel ended: {self.channel.closed}")
        return nbytes * count * 1e9 / ns


def _pin(cpu: int) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if cpu >= 0 and len(allowed) > 1:
        os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})


def _wait(end: ShmConnect | TcpConnect | TcpListener) -> Channel:
    late = time.monotonic() + START_S_MAX
    while (channel := end.poll()) is None:
        if time.monotonic() > late:
            raise RuntimeError("the other end did not come")
        time.sleep(0.0002)
    return channel


def _child(fd: int, port: int, cpu: int) -> None:
    _pin(cpu)
    if port == 0:
        channel = _wait(ShmConnect(socket.socket(fileno=fd), _SHM, role="acceptor"))
    else:
        channel = _wait(TcpConnect(("127.0.0.1", port), _TCP))
    echo(channel)
    channel.close()


if __name__ == "__main__":
    _child(*(int(a) for a in sys.argv[1:]))
