"""A pair's folder for its sockets: private to this user, gone with the process that made it, sooner or later.

Whoever makes one holds a lock on it; the kernel lets go of that when the process ends, however it ends. So a folder whose
lock is free is nobody's, and the next one that is made removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["RunDir"]

PREFIX = "nfckpt-run-"


class RunDir:
    """`path`, mode 0700, until `close`."""

    def __init__(self) -> None:
        for old in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
            if (fd := _lock(old)) >= 0:
                shutil.rmtree(old, ignore_errors=True)
                os.close(fd)
        while True:
            self.path = tempfile.mkdtemp(prefix=PREFIX)
            self._fd = _lock(Path(self.path))
            if self._fd >= 0 and os.path.exists(self.path):
                return
            self.close()                # somebody took it for an old one before we had the lock

    def close(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def _lock(path: Path) -> int:
    """A descriptor that holds the lock of this folder of ours; -1 when it is gone, somebody else's, or locked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        if os.fstat(fd).st_uid != os.getuid():
            raise BlockingIOError
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd
