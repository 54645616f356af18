"""The event stream of a pair: one order for everybody, and nobody waits for a reader.

    keepers ──note()──► n = 1, 2, 3 … ──┬── inbox ─► feed "log"        a file of JSON lines (events.py)
    (any thread,                        ├── inbox ─► feed "terminal"
     never waits)                       ├── inbox ─► feed "fifo"       a named pipe (fifo.py)
                                        ├── inbox ─► feed "hooks"      commands, one after the other (hooks.py)
                                        └── inbox ─► async for row in stream

    {"n": 7, "time": "2026-03-01T09:30:00.123Z", "at_s": 4711.0123, "event": "takeover", "node": "b", "term": 2, …}

`n` is the order, and a gap in it is what this reader missed; `at_s` is CLOCK_MONOTONIC of the machine that reports; `time` is this
machine's wall clock, for people: nothing depends on it, and it may jump.

Promises    E1 every reader sees the rows in the same order, each once.
            E2 `note` never waits, for a disk, a pipe, a hook or a reader that is stuck.
            E3 a reader with INBOX_EVENTS_MAX rows unread misses what comes; that is an event, `reader_behind`, once until it has caught up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

__all__ = ["INBOX_EVENTS_MAX", "EventStream", "Feed", "Row"]

Row = dict[str, Any]
INBOX_EVENTS_MAX = 10_000


class _Inbox:
    """What one reader has not read. Guarded by the stream's lock, which nobody holds for longer than an append."""

    def __init__(self, name: str, lock: threading.RLock, events_max: int, wanted: Callable[[Row], bool] | None) -> None:
        self.name, self.events_max, self.wanted = name, events_max, wanted
        self.rows: deque[Row] = deque()
        self.behind, self.left_out = False, 0
        self.ready = threading.Condition(lock)
        self.wake: Callable[[], None] = self.ready.notify

    def offer(self, row: Row) -> bool:
        """False when the reader falls behind with this row."""
        if self.wanted is not None and not self.wanted(row):
            return True
        if len(self.rows) >= self.events_max:
            self.left_out += 1
            fell, self.behind = not self.behind, True
            return not fell
        self.rows.append(row)
        self.wake()
        return True

    def next(self) -> Row:
        row = self.rows.popleft()
        self.behind = self.behind and bool(self.rows)
        return row


class EventStream:
    """Call `note` from any thread: it is what pairs take as `on_event`. `async for row in stream` reads it in an event loop."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inboxes: list[_Inbox] = []
        self._feeds: list[Feed] = []
        self._n = 0
        self._closed = False

    def note(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        """Something happened at `at_ns` (CLOCK_MONOTONIC of where it happened)."""
        wall = time.time_ns()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall // 10**9))
        with self._lock:
            self._n += 1
            row = {"n": self._n, "time": f"{seconds}.{wall // 10**6 % 1000:03d}Z", "at_s": round(at_ns / 1e9, 6), "event": name, **fields}
            behind = [inbox.name for inbox in self._inboxes if not inbox.offer(row)]
            for reader in behind:
                self.say("reader_behind", reader=reader)

    def say(self, name: str, **fields: Any) -> None:
        """`note` of something that happens here and now."""
        self.note(name, time.monotonic_ns(), fields)

    def feed(self, name: str, take: Callable[[Row], object], *, wanted: Callable[[Row], bool] | None = None,
             events_max: int = INBOX_EVENTS_MAX) -> Feed:
        """Call `take(row)` for all that is `wanted` from now on, in order, on a thread of its own."""
        feed = Feed(self, self._join(name, events_max, wanted), take)
        self._feeds.append(feed)
        return feed

    def close(self, timeout_s: float = 2.0) -> None:
        """No more rows: readers read what waits, and end. Idempotent. A feed that is stuck is left alone after `timeout_s`."""
        with self._lock:
            self._closed = True
            for inbox in self._inboxes:
                inbox.wake()
        deadline = time.monotonic() + timeout_s
        for feed in self._feeds:
            feed.thread.join(max(0.0, deadline - time.monotonic()))

    def __aiter__(self) -> AsyncIterator[Row]:
        """The rows noted from now on, until `close`."""
        loop, come = asyncio.get_running_loop(), asyncio.Event()
        inbox = self._join("async", INBOX_EVENTS_MAX, None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):         # the loop was closed over an iterator that was not
                loop.call_soon_threadsafe(come.set)

        inbox.wake = wake
        return self._follow(inbox, come)

    async def _follow(self, inbox: _Inbox, come: asyncio.Event) -> AsyncIterator[Row]:
        try:
            while True:
                come.clear()
                with self._lock:
                    row, over = inbox.next() if inbox.rows else None, self._closed
                if row is not None:
                    yield row
                elif over:
                    return
                else:
                    await come.wait()
        finally:
            with self._lock:
                self._inboxes.remove(inbox)

    def _join(self, name: str, events_max: int, wanted: Callable[[Row], bool] | None) -> _Inbox:
        with self._lock:
            inbox = _Inbox(name, self._lock, events_max, wanted)
            self._inboxes.append(inbox)
        return inbox

    def _rows(self, inbox: _Inbox) -> Iterator[Row]:
        while True:
            with self._lock:
                while not inbox.rows:
                    if self._closed:
                        return
                    inbox.ready.wait()
                row = inbox.next()
            yield row


class Feed:
    """One reader with a thread. `error`: the OSError that `take` raised (a closed pipe); nothing is given to it after that."""

    def __init__(self, stream: EventStream, inbox: _Inbox, take: Callable[[Row], object]) -> None:
        self.error: OSError | None = None
        self._inbox = inbox
        self.thread = threading.Thread(target=self._run, args=(stream, take), name=f"events to {inbox.name}", daemon=True)
        self.thread.start()

    @property
    def left_out(self) -> int:
        """Rows that found its inbox full."""
        return self._inbox.left_out

    def _run(self, stream: EventStream, take: Callable[[Row], object]) -> None:
        for row in stream._rows(self._inbox):
            if self.error is None:
                try:
                    take(row)
                except OSError as e:
                    self.error = e
