"""Memory: a Transport within one process, for simulators and unit tests. No descriptor, no clock, no thread.

`memory_pair()` gives two ends. What `flush` moves lies in the peer's inbox at once; `inbox_bytes_max` is the ring, so
backpressure is real. A simulator that kills a node calls `crash()`: what was in flight is lost with it (DESIGN §8).
"""

from __future__ import annotations

from collections import deque

from nfckpt.errors import ConfigError
from nfckpt.wire.transport import KIND_MAX, MESSAGE_BYTES_MAX, SEND_BACKLOG_BYTES_MAX, Payload

__all__ = ["MemoryTransport", "memory_pair"]


class MemoryTransport:
    """One end; see `memory_pair`."""

    def __init__(self, message_bytes_max: int, send_backlog_bytes_max: int, inbox_bytes_max: int) -> None:
        self._message_max = message_bytes_max
        self._backlog_max = send_backlog_bytes_max
        self._inbox_max = inbox_bytes_max
        self._queue: deque[tuple[int, bytearray]] = deque()
        self._inbox: deque[tuple[int, bytearray]] = deque()
        self._inbox_bytes = 0
        self._peer: MemoryTransport
        self._reason: str | None = None
        self._last: str | None = None       # why, once the inbox is empty
        self.backlog = self.bytes_sent = self.bytes_received = 0

    @property
    def closed(self) -> str | None:
        return self._reason

    def send(self, kind: int, payload: Payload) -> bool:
        n = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        if not 0 <= kind <= KIND_MAX:
            raise ValueError(f"message kind {kind}: 0..{KIND_MAX}")
        if n > self._message_max:
            raise ConfigError(f"message of {n} bytes", f"message_bytes_max is {self._message_max}")
        if self._reason is not None or self._last is not None:
            return False
        self.flush()
        if self.backlog and self.backlog + 8 + n > self._backlog_max:
            return False
        self._queue.append((kind, bytearray(payload)))
        self.backlog += 8 + n
        self.bytes_sent += n
        self.flush()
        return True

    def flush(self) -> bool:
        peer = self._peer
        while self._queue and (not peer._inbox or peer._inbox_bytes < self._inbox_max):
            kind, body = self._queue.popleft()
            self.backlog -= 8 + len(body)
            if peer._reason is None:
                peer._inbox.append((kind, body))
                peer._inbox_bytes += 8 + len(body)
        return not self._queue

    def recv(self) -> tuple[int, memoryview] | None:
        if not self._inbox:
            self._reason = self._reason or self._last
            return None
        kind, body = self._inbox.popleft()
        self._inbox_bytes -= 8 + len(body)
        self.bytes_received += len(body)
        return kind, memoryview(body)

    def fileno(self) -> int:
        return -1

    def before_sleep(self) -> bool:
        return not self._inbox and self._last is None and self._reason is None

    def after_sleep(self) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        self._leave("the peer closed")

    def crash(self) -> None:
        """Die: nothing more is pushed, and what the peer has not received yet is lost."""
        self._peer._inbox.clear()
        self._peer._inbox_bytes = 0
        self._leave("the peer's process is dead")

    def _leave(self, last_words: str) -> None:
        if self._reason is None:
            if last_words == "the peer closed":
                self.flush()
            self._reason = "closed here"
            self._queue.clear()
            self._inbox.clear()
            self.backlog = self._inbox_bytes = 0
            self._peer._last = last_words


def memory_pair(
    *, message_bytes_max: int = MESSAGE_BYTES_MAX, send_backlog_bytes_max: int = SEND_BACKLOG_BYTES_MAX,
    inbox_bytes_max: int = 1 << 20,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends."""
    a, b = (MemoryTransport(message_bytes_max, send_backlog_bytes_max, inbox_bytes_max) for _ in range(2))
    a._peer, b._peer = b, a
    return a, b
