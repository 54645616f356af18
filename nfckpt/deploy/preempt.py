"""Preempt: the node that is to lead takes its role back, by a planned switch, once the pair has been protected for long enough.

    events of the pair ──note──► Preempt ──protected for delay_s, and led by the other──► pair.switch()

Off without `preempt` in the configuration: then whoever leads goes on. `preempt_delay_s` lets a machine that just came back prove
itself first; each loss of protection meanwhile starts it anew. A switch that is refused is tried again after a second or the delay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from nfckpt.errors import NfckptError

__all__ = ["Preempt"]

RETRY_S_MIN = 1.0
ENDS_PROTECTION = ("standby_lost", "solo", "takeover", "exited", "switching", "maintenance")


class Preempt:
    """`switch()` is called on a thread of this object, which ends with `close`. `say(name, at_ns, fields)`: what it does, as an event."""

    def __init__(self, node: str, delay_s: float, switch: Callable[[], Any], say: Callable[[str, int, dict[str, Any]], None]) -> None:
        self._node, self._delay_s, self._switch, self._say = node, delay_s, switch, say
        self._due_s = 0.0               # 0: nothing to take back
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if node:
            self._thread = threading.Thread(target=self._run, name="preempt", daemon=True)
            self._thread.start()

    def note(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        """Every event of the pair, in any order of the nodes; waits for nothing."""
        with self._changed:
            if name == "protected":
                self._due_s = time.monotonic() + self._delay_s if fields["node"] != self._node else 0.0
            elif name in ENDS_PROTECTION:
                self._due_s = 0.0
            self._changed.notify()

    def close(self) -> None:
        """Idempotent; not from within `switch`."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._wait():
            self._say("preempting", time.monotonic_ns(), {"node": self._node})
            try:
                self._switch()
            except NfckptError as e:
                self._say("preempt_refused", time.monotonic_ns(), {"node": self._node, "error": e.message})

    def _wait(self) -> bool:
        """Until it is due: True; until closed: False."""
        with self._changed:
            while not self._closed:
                left = self._due_s - time.monotonic() if self._due_s else None
                if left is not None and left <= 0:
                    self._due_s = time.monotonic() + max(RETRY_S_MIN, self._delay_s)
                    return True
                self._changed.wait(left)
            return False
