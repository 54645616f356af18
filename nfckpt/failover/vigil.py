"""Vigil: is there a witness? Sans-I/O; both roles keep it, node/shell.py carries it.

Picture     here ──► ok            every claim_ms_max / 2; nothing depends on the answer while nobody is lost
            here ──► (silence)     after claim_ms_max: event `unwitnessed`, shown in status: proof still promotes on one host, but
                                   what needs a grant waits (bounds.when_alone)
            here ──► wait, mark 9  the witness is a new one and blank (W8): said again with its mark, at once
            here ──► ok            event `witnessed`

Promises    V1 at most one question in claim_ms_max / 2, and one more for each new mark.
            V2 a mark is repeated only in a question that was made after the mark was heard: so all that an earlier witness ever
               answered has been heard by then too.
"""

from __future__ import annotations

from nfckpt.failover.witness import Answer, Question
from nfckpt.replica.effects import Ask, Effect, Event

__all__ = ["Vigil"]

MS = 1_000_000


class Vigil:
    """`now`: when the witness was heard last; `unwitnessed`: it has not been for longer than claim_ms_max."""

    def __init__(self, node: str, claim_ms_max: int, now: int) -> None:
        self.node, self.patience_ns = node, claim_ms_max * MS
        self.heard_ns = now
        self.unwitnessed = False
        self._asked_ns = now
        self._mark = 0

    def heard(self, now: int, answer: Answer) -> list[Effect]:
        """Any answer of the witness to any question of this node."""
        if answer.verb == "here" and answer.number != self._mark:
            self._mark, self._asked_ns = answer.number, 0
        if answer.said == "wait":
            return []
        self.heard_ns = now
        if not self.unwitnessed:
            return []
        self.unwitnessed = False
        return [Event("witnessed", {})]

    def tick(self, now: int, *, term: int, leads: bool, other: str) -> list[Effect]:
        """About once a millisecond, with what this node is: see Question."""
        effects: list[Effect] = []
        if now - self._asked_ns > self.patience_ns // 2:
            self._asked_ns = now
            effects.append(Ask(Question("here", self.node, term, other, number=self._mark, leads=leads)))
        if not self.unwitnessed and now - self.heard_ns > self.patience_ns:
            self.unwitnessed = True
            effects.append(Event("unwitnessed", {"silent_ms": (now - self.heard_ns) // MS}))
        return effects
