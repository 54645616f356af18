"""The lines between the workload and its programs.

    stdin   go | mark | halt | report              mark: note what was sent so far.  halt: send nothing more.
                                                   report [7, 9, …]: settle, say the result, exit; what the other side sent, by stream
    stdout  {"event": "ready"} {"event": "live", …} {"event": "halted", …} {"event": "result", …}

The end of stdin means that the workload died: the program exits at once, so nothing of it stays behind.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
from typing import Any

__all__ = ["LIVE_S", "Control", "config", "cpu_s", "emit"]

LIVE_S = 0.25       # seconds between two `live` events


class Control:
    """Commands from stdin, without blocking longer than asked."""

    def __init__(self) -> None:
        os.set_blocking(0, False)
        self._rest = b""

    def wait(self, seconds: float) -> list[str]:
        """Commands that came within `seconds`, returning with the first. Exits the process at the end of stdin."""
        return self.read() if select.select([0], [], [], seconds)[0] else []

    def read(self) -> list[str]:
        """Commands that are there now."""
        try:
            data = os.read(0, 4096)
        except BlockingIOError:
            return []
        if not data:
            os._exit(1)         # threads in native loops must not hold us up
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode() for line in lines]


def emit(event: str, **fields: Any) -> None:
    try:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)


def config() -> dict[str, Any]:
    """What the workload wants of this program: one JSON object in the first argument."""
    wanted: dict[str, Any] = json.loads(sys.argv[1])
    return wanted


def cpu_s() -> float:
    """Processor seconds this process has used, its ended children included, user and kernel."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(u.ru_utime + u.ru_stime for u in used), 3)
