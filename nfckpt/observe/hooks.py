"""Hooks: commands that a pair's events start. In order, one at a time, awaited, each with a time limit.

    [[hooks]]
    on = ["takeover", "solo"]                 # names of events; ["*"] for all
    run = ["/usr/local/sbin/page", "edge"]    # program and arguments; no shell
    hook_s_max = 5.0

The event is one line of JSON on its standard input, and NFCKPT_PAIR, NFCKPT_EVENT, NFCKPT_NODE, NFCKPT_TERM in its environment.

Promises    K1 never two at once; the next event's hooks start when the last one's are over.
            K2 one that takes longer than `hook_s_max` is killed with all it started (its process group): event `hook_timeout`.
               One that ends otherwise than by 0, or cannot be started: `hook_failed`, with the end of what it said.
            K3 no frame, epoch or takeover waits for a hook. With HOOK_EVENTS_MAX waiting, further ones are `reader_behind`.
            K4 what happens to a hook starts none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nfckpt.config import Hook
from nfckpt.observe.stream import Row

__all__ = ["HOOK_EVENTS_MAX", "Hooks"]

HOOK_EVENTS_MAX = 1000
SAID_BYTES_MAX = 300
NICE = 15
NONE_OF_OURS = ("hook_timeout", "hook_failed")


class Hooks:
    """`take(row)` runs what the event asks for and returns when it is over. `say(event, **fields)` tells what went wrong."""

    def __init__(self, pair: str, hooks: Sequence[Hook], say: Callable[..., None]) -> None:
        self.pair, self.hooks, self._say = pair, hooks, say
        self._stopping = threading.Event()
        self._running: subprocess.Popen[bytes] | None = None

    def wanted(self, row: Row) -> bool:
        return row["event"] not in NONE_OF_OURS and any(_matches(hook, row) for hook in self.hooks)

    def take(self, row: Row) -> None:
        for hook in self.hooks:
            if _matches(hook, row) and not self._stopping.is_set():
                self._run(hook, row)

    def close(self) -> None:
        """Start no more; the one that runs is killed. Idempotent."""
        self._stopping.set()
        if (running := self._running) is not None:
            _kill(running)

    def _run(self, hook: Hook, row: Row) -> None:
        about = {"hook": hook.run[0], "on": row["event"], "of": row["n"]}
        environment = {**os.environ, "NFCKPT_PAIR": self.pair, "NFCKPT_EVENT": str(row["event"]),
                       "NFCKPT_NODE": str(row.get("node", "")), "NFCKPT_TERM": str(row.get("term", ""))}
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as said:     # files: a pipe could be kept open by what it leaves behind
            told.write(json.dumps(row, default=str).encode() + b"\n")
            told.seek(0)
            try:
                self._running = process = subprocess.Popen(
                    hook.run, stdin=told, stdout=said, stderr=said, env=environment, start_new_session=True)
            except OSError as e:
                self._say("hook_failed", **about, said=f"cannot start it: {e.strerror}")
                return
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
            if self._stopping.is_set():
                _kill(process)
            try:
                code = process.wait(hook.hook_s_max)
            except subprocess.TimeoutExpired:
                _kill(process)
                process.wait()
                self._say("hook_timeout", **about, hook_s_max=hook.hook_s_max)
                return
            finally:
                self._running = None
            if code and not self._stopping.is_set():
                said.seek(max(0, said.seek(0, os.SEEK_END) - SAID_BYTES_MAX))
                self._say("hook_failed", **about, code=code, said=said.read().decode(errors="replace").strip())


def _matches(hook: Hook, row: dict[str, Any]) -> bool:
    return "*" in hook.on or row["event"] in hook.on


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
