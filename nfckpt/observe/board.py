"""Board: a node's numbers where another process can read them at any time, without a word to the packet loop.

    packet loop ──one part a ms, all of it twice a second──► memfd ◄──pread── exporter (nice 15) ◄── HTTP ── Prometheus
                                                              │
                                        | length u32 | crc32 u32 | JSON, BOARD_BYTES_MAX at most |

Why a process and not a thread: a thread would share the packet loop's GIL, and one at nice 15 that holds it while the machine is busy
keeps the packet loop waiting for as long as the scheduler keeps it.

Promises    B1 the loop writes at its own pace, at most one part in a turn; reading costs it nothing.
            B2 a reader gets a whole board or none: what is torn fails its checksum and is read again.
            B3 the exporter ends with the packet process, however that ends (its standard input does); the board of a process that is
               stopped stays readable, and its age shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from nfckpt.config import Bounds

__all__ = ["BOARD_BYTES_MAX", "Board", "ExporterSpec", "read"]

BOARD_BYTES_MAX = 1 << 18
PUBLISH_MS = 500
MS = 1_000_000
HEAD = struct.Struct("<II")
READS_MAX = 20


class ExporterSpec(msgspec.Struct, frozen=True):
    """What the exporter is told, as a line of JSON on its standard input."""

    pair: str
    node: str
    profile: str
    address: str
    bounds: Bounds


class Board:
    """With an exporter behind it when `spec` is given. Call `turn` from the packet loop, about once a millisecond."""

    def __init__(self, spec: ExporterSpec | None = None) -> None:
        self.fd = os.memfd_create("nfckpt-board", os.MFD_CLOEXEC)
        self._parts: Iterator[dict[str, Any]] | None = None
        self._body: dict[str, Any] = {}
        self._due_ns = 0
        self._exporter: subprocess.Popen[bytes] | None = None
        if spec is not None:
            self._exporter = subprocess.Popen([sys.executable, "-m", "nfckpt.observe.exporter", str(self.fd)], pass_fds=(self.fd,),
                                              stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            assert self._exporter.stdin
            with contextlib.suppress(BrokenPipeError):
                os.write(self._exporter.stdin.fileno(), msgspec.json.encode(spec) + b"\n")

    def turn(self, now: int, parts: Callable[[], Iterator[dict[str, Any]]]) -> int | None:
        """Take the next of `parts()`, or show what came together. Returns the exporter's exit code, once, when it has ended."""
        if now < self._due_ns:
            return None
        if self._parts is None:
            self._parts, self._body = parts(), {}
        part = next(self._parts, None)
        if part is not None:
            self._body |= part
            return None
        self._due_ns, self._parts = now + PUBLISH_MS * MS, None
        self.show(self._body)
        if self._exporter is None or (code := self._exporter.poll()) is None:
            return None
        self._exporter = None
        return code

    def show(self, body: dict[str, Any]) -> None:
        """Write `body`, with its time, CLOCK_MONOTONIC ns."""
        text = msgspec.json.encode({**body, "at_ns": time.monotonic_ns()})
        if len(text) + HEAD.size <= BOARD_BYTES_MAX:       # else the last one stays, and its age shows
            os.pwrite(self.fd, HEAD.pack(len(text), zlib.crc32(text)) + text, 0)


def read(fd: int) -> dict[str, Any] | None:
    """The board, from any process that has its descriptor. None: nothing was shown yet."""
    for _ in range(READS_MAX):
        raw = os.pread(fd, BOARD_BYTES_MAX, 0)
        if len(raw) < HEAD.size:
            return None
        n, crc = HEAD.unpack_from(raw)
        text = raw[HEAD.size:HEAD.size + n]
        if zlib.crc32(text) == crc:
            body: dict[str, Any] = json.loads(text)
            return body
        time.sleep(0.001)
    return None
