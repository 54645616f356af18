"""The NAT with its table in Redis: for each frame one round trip that fetches the flow's port and notes the frame, two for the first
of a flow. A real redis-server on a Unix socket, in memory only; the protocol is RESP, spoken plainly.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nfckpt.bench.figure import UnavailableError
from nfckpt.bench.rivals.plain_nat import flow_of, translate

__all__ = ["RedisNat"]


class RedisNat:
    """`cpu`: of the server. Raises UnavailableError where there is no redis-server, or it does not start."""

    about = "state in Redis per packet"

    def __init__(self, ports: Iterator[int], cpu: int) -> None:
        self._ports, self._cpu = ports, cpu

    def __enter__(self) -> RedisNat:
        server = shutil.which("redis-server")
        if server is None:
            raise UnavailableError("no redis-server here", "Debian: apt-get install redis-server")
        self._dir = tempfile.TemporaryDirectory(prefix="nfckpt-redis-")
        path = Path(self._dir.name) / "s"
        self._server = subprocess.Popen([server, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir",
                                         self._dir.name], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            os.sched_setaffinity(self._server.pid, {self._cpu})
            self._sock = socket.socket(socket.AF_UNIX)
            deadline = time.monotonic() + 5
            while True:
                try:
                    self._sock.connect(str(path))
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    if time.monotonic() > deadline or self._server.poll() is not None:
                        raise UnavailableError("redis-server does not start") from None
                    time.sleep(0.01)
            self._replies = self._sock.makefile("rb")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()
        self._server.kill()
        self._server.wait()
        self._dir.cleanup()

    def _ask(self, *commands: tuple[bytes, ...]) -> list[bytes | None]:
        """All commands in one write; their replies, integers as text."""
        self._sock.sendall(b"".join(b"*%d\r\n" % len(c) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in c) for c in commands))
        return [self._reply() for _ in commands]

    def _reply(self) -> bytes | None:
        line = self._replies.readline()
        if not line or line[:1] == b"-":
            raise ConnectionError(f"redis said {line!r}")
        if line[:1] != b"$":
            return line[1:-2]
        n = int(line[1:])
        return self._replies.read(n + 2)[:-2] if n >= 0 else None

    def __call__(self, burst: Sequence[bytes]) -> list[bytes]:
        out = []
        now = b"%d" % time.monotonic_ns()
        for frame in burst:
            key = b"flow:%d:%d:%d" % flow_of(frame)
            port = self._ask((b"HGET", key, b"port"), (b"HINCRBY", key, b"frames", b"1"), (b"HSET", key, b"seen", now))[0]
            if port is None:
                port = b"%d" % next(self._ports)
                self._ask((b"HSET", key, b"port", port))
            out.append(translate(frame, int(port)))
        return out
