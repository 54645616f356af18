"""The NAT on a dict whose whole state is pickled to another process at each burst; outputs leave when that process has it again as a
dict and says so. The other process is our own child: nothing a stranger sent is unpickled.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from nfckpt.bench.rivals.plain_nat import flow_of, translate

__all__ = ["PickleNat"]


class PickleNat:
    """`cpu`: of the other process."""

    about = "state pickled whole to a peer each burst"

    def __init__(self, ports: Iterator[int], cpu: int) -> None:
        self._ports, self._cpu = ports, cpu
        self._table: dict[tuple[int, int, int], list[int]] = {}         # flow → [external port, frames, last seen ns]

    def __enter__(self) -> PickleNat:
        self._sock, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen([sys.executable, "-m", __name__, str(theirs.fileno()), str(self._cpu)], pass_fds=[theirs.fileno()])
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()
        self._child.wait()

    def __call__(self, burst: Sequence[bytes]) -> list[bytes]:
        out = []
        now = time.monotonic_ns()
        for frame in burst:
            flow = flow_of(frame)
            entry = self._table.get(flow)
            if entry is None:
                entry = self._table[flow] = [next(self._ports), 0, 0]
            entry[1] += 1
            entry[2] = now
            out.append(translate(frame, entry[0]))
        state = pickle.dumps(self._table, pickle.HIGHEST_PROTOCOL)
        self._sock.sendall(len(state).to_bytes(8, "little") + state)
        if self._sock.recv(1) != b"k":
            raise ConnectionError("the pickling peer ended")
        return out


def _peer(fd: int, cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
    with socket.socket(fileno=fd) as sock, sock.makefile("rb") as stream:
        while head := stream.read(8):
            pickle.loads(stream.read(int.from_bytes(head, "little")))
            sock.sendall(b"k")


if __name__ == "__main__":
    _peer(int(sys.argv[1]), int(sys.argv[2]))
