"""Events into a named pipe: for a shell script or a daemon that reads lines.

    mkfifo is ours where there is none      no reader      rows are for nobody: nothing is kept for one that comes later
    nfckpt run --fifo /run/edge.events      a reader       each row is one line, whole, in order
    while read -r line; do …; done < it     it reads not   the pipe fills (64 KiB): `fifo_full`, rows are left out whole and counted;
                                                           once there is room `fifo_drained` says how many
                                            it went away   the next reader begins with the next row

Promises    F1 nothing ever waits for the reader.  F2 a line is written whole or not at all, also one longer than PIPE_BUF.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

from nfckpt.errors import MachineError
from nfckpt.observe.stream import Row

__all__ = ["Fifo"]


class Fifo:
    """`say(event, **fields)`: how it tells that it is full. Call `write` from one thread. Raises MachineError for a path that is none."""

    def __init__(self, path: str | Path, say: Callable[..., None]) -> None:
        self.path, self._say = Path(path), say
        self._fd, self._rest = -1, b""
        self._left_out = 0
        try:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self.path, 0o600)
            if not stat.S_ISFIFO(self.path.stat().st_mode):
                raise FileExistsError(errno.EEXIST, "it exists, and is no named pipe")
        except OSError as e:
            raise MachineError(f"no named pipe {path}: {e.strerror}", "choose another path for --fifo") from None

    def write(self, row: Row) -> None:
        """One line, now or never."""
        try:
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._push()
            if self._rest:
                raise BlockingIOError
            self._rest = json.dumps(row, default=str).encode() + b"\n"
            try:
                self._push()
            except BlockingIOError:                 # not a byte of it is out
                self._rest = b""
                raise
        except BlockingIOError:
            self._full()
        except OSError as e:                        # no reader (ENXIO), or none any more (EPIPE)
            self.close()
            if e.errno not in (errno.ENXIO, errno.EPIPE, errno.ENOENT):
                raise
        else:
            if self._left_out:
                left, self._left_out = self._left_out, 0
                self._say("fifo_drained", path=str(self.path), left_out=left)

    def _push(self) -> None:
        """What the pipe did not take at once, of a line longer than PIPE_BUF, goes first the next time."""
        if self._rest:
            self._rest = self._rest[os.write(self._fd, self._rest):]

    def _full(self) -> None:
        self._left_out += 1
        if self._left_out == 1:
            self._say("fifo_full", path=str(self.path))

    def close(self) -> None:
        """Let go of the pipe; it stays for its readers. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._rest = -1, b""
