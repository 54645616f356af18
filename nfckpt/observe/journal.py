"""Journal: all that a supervisor does with a pair's events: note, show, keep, pass on, run hooks, know what is wrong.

    pair ──on_event──► journal.stream ──┬─► events     the last ones in memory, all of them in `log`
                                        ├─► receipts   on disk, bounded, over the supervisor's own end
                                        ├─► trouble    why it is not protected
                                        ├─► fifo       where one is wanted
                                        └─► hooks      where the configuration has some
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nfckpt.config import PairConfig
from nfckpt.observe.events import EventLog, receipt_log, receipts_path
from nfckpt.observe.fifo import Fifo
from nfckpt.observe.hooks import HOOK_EVENTS_MAX, Hooks
from nfckpt.observe.stream import EventStream, Row
from nfckpt.observe.trouble import Trouble

__all__ = ["Journal", "bare"]


class Journal:
    """Of the pair `config`. Raises MachineError for a file, folder or pipe that cannot be."""

    def __init__(self, config: PairConfig, *, log: Path | None = None, fifo: Path | None = None,
                 on_error: Callable[[str], None] | None = None) -> None:
        self.stream, self.trouble = EventStream(), Trouble()
        self._undo = contextlib.ExitStack()
        try:
            self.events = EventLog(log, on_error)
            self._undo.callback(self.events.close)
            self.receipts = receipt_log(receipts_path(config.name, config.receipts_dir), config.bounds.receipts_bytes_max, on_error)
            self._undo.callback(self.receipts.close)
            pipe = Fifo(fifo, self.stream.say) if fifo is not None else None
            if pipe is not None:
                self._undo.callback(pipe.close)
            hooks = Hooks(config.name, config.hooks, self.stream.say)
            self._undo.callback(hooks.close)
            self._undo.callback(self.stream.close)          # first of all: hooks may end by themselves for as long as it waits
            self.stream.feed("trouble", self.trouble.take)
            self.stream.feed("log", self.events.add)
            self.stream.feed("receipts", self.receipts.add, wanted=lambda row: row["event"] == "receipt")
            if pipe is not None:
                self.stream.feed("fifo", pipe.write)
            if config.hooks:
                self.stream.feed("hooks", hooks.take, wanted=hooks.wanted, events_max=HOOK_EVENTS_MAX)
        except BaseException:
            self._undo.close()
            raise

    def close(self) -> None:
        """Readers get what waits, a hook that still runs after that is killed, files are closed. Idempotent."""
        self._undo.close()


def bare(row: Row) -> dict[str, Any]:
    """A receipt without its place in the stream."""
    return {name: value for name, value in row.items() if name not in ("n", "at_s", "event")}
