"""Events on disk and in memory: JSON lines in a file that grows to a bound, and the last ones for whoever asks.

    {"n": 7, "time": "2026-03-01T09:30:00.123Z", "at_s": 4711.0123, "event": "takeover", "node": "b", "term": 2, "outage_us": 2950}

Rows are those of `stream.py`. Promises: memory holds `EVENTS_MAX` rows; a file grows to its bound, then becomes FILE.1 (the one before
that goes); a line is in the file whole or not at all; a file that cannot be written is said once (`on_error`), counted in
`unwritten`, and the pair goes on.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from nfckpt.errors import MachineError
from nfckpt.observe.stream import Row

__all__ = ["EventLog", "read_rows", "receipt_log", "receipts_path"]

EVENTS_MAX = 1000
FILE_BYTES_MAX = 16 << 20


class EventLog:
    """Call `add` from any thread. `path`: the file, appended to; None: memory only. Raises MachineError when it cannot be opened."""

    def __init__(self, path: str | Path | None = None, on_error: Callable[[str], None] | None = None,
                 file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self.rows: deque[Row] = deque(maxlen=EVENTS_MAX)
        self.unwritten = 0
        self._path, self._on_error, self._bytes_max = Path(path) if path is not None else None, on_error, file_bytes_max
        self._lock = threading.Lock()
        self._fd = -1
        if self._path is not None:
            try:
                self._open(self._path)
            except OSError as e:
                raise MachineError(f"cannot write {path}: {e.strerror}", "choose another file") from None

    def add(self, row: Row) -> None:
        """Note one row."""
        with self._lock:
            self.rows.append(row)
            if self._path is not None:
                self._write(self._path, json.dumps(row, default=str).encode() + b"\n")

    def close(self) -> None:
        """Close the file. Idempotent; what is added later stays in memory."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd, self._path = -1, None

    def _open(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        seen = os.fstat(self._fd)
        self._size = seen.st_size if stat.S_ISREG(seen.st_mode) else None      # a terminal or pipe never becomes FILE.1

    _size: int | None = None

    def _write(self, path: Path, line: bytes) -> None:
        try:
            if self._size is not None and self._size and self._size + len(line) > self._bytes_max:
                os.close(self._fd)
                self._fd = -1
                path.replace(path.with_name(path.name + ".1"))
            if self._fd < 0:
                self._open(path)
            written = os.write(self._fd, line)
            if written < len(line):
                if self._size is not None:
                    os.ftruncate(self._fd, self._size)
                raise OSError(28, os.strerror(28))
            if self._size is not None:
                self._size += written
        except OSError as e:
            self.unwritten += 1
            if self.unwritten == 1 and self._on_error is not None:
                self._on_error(f"events are not written any more: {path}: {e.strerror} (free space; the pair goes on)")


def receipts_path(pair: str, folder: str = "") -> Path:
    """Where the receipts of `pair` are kept. `folder`: the configuration's `receipts_dir`."""
    if not folder:
        base = os.environ.get("STATE_DIRECTORY") or os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        folder = str(Path(base, "nfckpt"))
    return Path(folder, f"{pair}.receipts.jsonl")


def receipt_log(path: Path, file_bytes_max: int, on_error: Callable[[str], None] | None = None) -> EventLog:
    """The receipts of this pair, those of earlier runs first. Raises MachineError when the folder cannot be made or written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise MachineError(f"no folder for receipts {path.parent}: {e.strerror}", "set [pair] receipts_dir") from None
    log = EventLog(path, on_error, file_bytes_max)
    log.rows.extend(read_rows(path))
    return log


def read_rows(path: Path) -> list[Row]:
    """What FILE.1 and FILE hold, oldest first. A line that is none (a full disk, a hand) is passed over."""
    rows: list[Row] = []
    for file in (path.with_name(path.name + ".1"), path):
        try:
            lines = file.read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
    return rows
