"""Events of a pair: the last ones in memory, all of them as JSON lines in a file where one is wanted.

    {"at_s": 4711.0123, "event": "takeover", "node": "b", "term": 2, "reason": "…", "outage_us": 2950}

at_s is CLOCK_MONOTONIC of the node that reports. Promises: memory holds `EVENTS_MAX` rows; a file grows to FILE_BYTES_MAX, then becomes
FILE.1 (the one before that goes); a line is in the file whole or not at all; a file that cannot be written is said once
(`on_error`), counted in `unwritten`, and the pair goes on. A `Scribe` stands between the keepers, whom nothing may hold up,
and a disk or terminal that may be slow.
"""

from __future__ import annotations

import json
import os
import queue
import stat
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfckpt.errors import MachineError

__all__ = ["EventLog", "Scribe"]

EVENTS_MAX = 1000
SCRIBE_EVENTS_MAX = 10_000
FILE_BYTES_MAX = 16 << 20


class EventLog:
    """Call `add` from any thread. `path`: the file, appended to; None: memory only. Raises MachineError when it cannot be opened."""

    def __init__(self, path: str | Path | None = None, on_error: Callable[[str], None] | None = None,
                 file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self.rows: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self.receipts: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self.unwritten = 0
        self._path, self._on_error, self._bytes_max = Path(path) if path is not None else None, on_error, file_bytes_max
        self._lock = threading.Lock()
        self._fd = -1
        if self._path is not None:
            try:
                self._open(self._path)
            except OSError as e:
                raise MachineError(f"cannot write {path}: {e.strerror}", "choose another file for --log") from None

    def add(self, name: str, at_ns: int, fields: dict[str, Any]) -> dict[str, Any]:
        """Note one event; returns its row."""
        row = {"at_s": round(at_ns / 1e9, 6), "event": name, **fields}
        with self._lock:
            self.rows.append(row)
            if name == "receipt":
                self.receipts.append(fields)
            if self._path is not None:
                self._write(self._path, json.dumps(row, default=str).encode() + b"\n")
        return row

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


class Scribe:
    """Notes events in `log` and shows them by `say(row)`, in one order, on a thread of its own.

    `note` never waits: with SCRIBE_EVENTS_MAX of them unshown, further ones are left out and counted in `left_out`.
    `error`: what `say` raised (a closed pipe); nothing is shown after it.
    """

    def __init__(self, log: EventLog, say: Callable[[dict[str, Any]], None]) -> None:
        self.log, self.left_out = log, 0
        self.error: OSError | None = None
        self._say = say
        self._queue: queue.Queue[tuple[str, int, dict[str, Any]] | None] = queue.Queue(SCRIBE_EVENTS_MAX)
        self._thread = threading.Thread(target=self._run, name="scribe", daemon=True)
        self._thread.start()

    def note(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        """Call from any thread."""
        try:
            self._queue.put_nowait((name, at_ns, fields))
        except queue.Full:
            self.left_out += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Show what waits, at most `timeout_s` long."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            row = self.log.add(*event)
            if self.error is None:
                try:
                    self._say(row)
                except OSError as e:
                    self.error = e
