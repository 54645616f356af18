"""Trouble: why a pair is not protected, since when, and what an operator should do.

    rows of the event stream ──take──► Trouble ──diagnose(status)──► {"why", "since_s", "to_do"}, or None while it is protected

What it says is the newest of what ended or hinders protection: a standby lost, a takeover, a process that ends again and again, a
follower refused, a witness that is silent. Promises: it reads no clock but the one it was given (monotonic: a wall clock may jump).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from nfckpt.observe.stream import Row

__all__ = ["Trouble"]

AGAIN_AND_AGAIN = 4             # ends of one node's process since the pair was last protected
GAVE_UP = (2, 5)                # deploy/keeper.py starts no further process after these


class Trouble:
    """Call `take` with every row, in order; `diagnose` from any thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s, self._lock = now_s, threading.Lock()
        self._since_s = now_s()
        self._why = "the pair is just starting"
        self._to_do = ""
        self._protected = False
        self._ends: dict[str, list[str]] = {}           # node → how its processes ended since protection
        self._final: dict[str, str] = {}                # node → why its keeper starts no other
        self._hindrance: tuple[str, str] | None = None  # (why, what to do): stands until protection is back

    def take(self, row: Row) -> None:
        event, node = row["event"], str(row.get("node", ""))
        with self._lock:
            if event == "protected":
                self._protected, self._hindrance, self._to_do = True, None, ""
                self._ends.clear()
                return
            why = self._why_of(event, node, row)
            if why and self._protected:
                self._protected, self._since_s = False, self._now_s()
            self._why = why or self._why

    def _why_of(self, event: str, node: str, row: Row) -> str:
        if event == "exited":
            self._ends.setdefault(node, []).append(str(row.get("why", "")))
            if row.get("code") in GAVE_UP:
                self._final[node] = str(row["why"])
            return f"node {node} ended: {row.get('why')}"
        if event == "started":
            self._final.pop(node, None)
        elif event == "standby_lost":
            return f"{node} lost its standby: {row.get('reason')}"
        elif event == "solo":
            return self._why if not self._protected else f"{node} goes on alone: {row.get('reason')}"
        elif event == "takeover":
            return f"{node} took over in term {row.get('term')}: {row.get('reason')}"
        elif event == "receipt" and row.get("blank"):
            return str(row["reason"])
        elif event == "divergent":
            return f"the copy of node {node} differed from the active's state"
        elif event == "follower_refused":
            self._hindrance = f"{node} refuses its follower: {row.get('reason')}", "make both nodes the same: app, parameters, key, version"
        elif event in ("witness_silent", "witness_lost"):
            self._hindrance = "the witness does not answer: nobody can be recorded as standby", "is Ray's head alive? Else start the pair anew"
        elif event == "witness_foreign":
            self._hindrance = f"node {node} asks the witness of another pair: {row.get('error')}", "is it in the right cluster? Give each pair its own name"
        elif event == "keeper_lost":
            self._hindrance = f"node {node} has no keeper: {row.get('error')}", "is its machine up, and in the cluster? (`ray status`)"
        elif event == "keeper_back":
            self._hindrance = None
        elif event == "maintenance":
            return f"node {node} is in maintenance"
        return ""

    def diagnose(self, body: dict[str, Any]) -> dict[str, Any] | None:
        """`body`: a status with "protected" and "nodes". None: protected."""
        if body["protected"]:
            return None
        nodes: dict[str, dict[str, Any]] = body["nodes"]
        roles = {name: s.get("role") for name, s in nodes.items()}
        with self._lock:
            said = {"why": self._why, "since_s": round(self._now_s() - self._since_s, 3)}
            final = {n: why for n, why in self._final.items() if roles.get(n) == "down"}
            worn = {n: ends for n, ends in self._ends.items() if len(ends) >= AGAIN_AND_AGAIN}
            hindrance = self._hindrance
        if final:
            node, why = next(iter(final.items()))
            return {**said, "why": f"node {node} cannot run: {why}", "to_do": "put that right and start the pair anew"}
        if resting := [n for n, role in roles.items() if role == "maintenance"]:
            return {**said, "why": f"node {resting[0]} is in maintenance", "to_do": f"`nfckpt maintenance {resting[0]} --off` when it may run again"}
        if silent := [n for n, role in roles.items() if role == "silent"]:
            return {**said, "to_do": f"node {silent[0]} does not answer: stopped, stuck, or starved of CPU? Look at pid {nodes[silent[0]].get('pid')}"}
        if worn:
            node, ends = next(iter(worn.items()))
            return {**said, "why": f"node {node} ended {len(ends)} times since the pair was protected, last: {ends[-1]}",
                    "to_do": "its standard error says more; `nfckpt doctor` looks at the machine"}
        if hindrance:
            return {**said, "why": hindrance[0], "to_do": hindrance[1]}
        if "protecting" in roles.values():
            return {**said, "to_do": "nothing: the standby is being synced"}
        if "holding" in roles.values():
            return {**said, "to_do": "nothing: the standby's grant is being taken back, output waits for that"}
        return {**said, "to_do": "nothing yet: a standby is being started"}
