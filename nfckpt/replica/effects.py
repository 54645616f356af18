"""What a core asks its shell to do, performed in the order given. Cores never do I/O themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nfckpt.failover.witness import Question

__all__ = [
    "Ask", "DropPeer", "Effect", "Event", "KillPeer", "LeasePermanent", "LeaseUntil", "Promote", "Send", "Stop",
]


@dataclass(frozen=True, slots=True)
class Send:
    """Put one message on the channel. The shell keeps it until the channel takes it, in order."""

    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the witness; the answer comes back through `on_witness`."""

    question: Question


@dataclass(frozen=True, slots=True)
class DropPeer:
    """Close the channel to the peer."""

    reason: str


@dataclass(frozen=True, slots=True)
class KillPeer:
    """Profile host: SIGKILL to the peer's packet process by its pidfd. The core then waits for the proof of its death."""


@dataclass(frozen=True, slots=True)
class LeaseUntil:
    """Profile hosts: frames may leave until `mono_ns` and no longer, whatever becomes of this process."""

    mono_ns: int


@dataclass(frozen=True, slots=True)
class LeasePermanent:
    """Profile hosts: nobody else may emit, so no lease limits us."""


@dataclass(frozen=True, slots=True)
class Promote:
    """The arena is settled: start the app as the active of `term`."""

    term: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End this process: fenced, or nothing left to do. `code` tells the keeper why."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something an operator may want to know."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


Effect = Send | Ask | DropPeer | KillPeer | LeaseUntil | LeasePermanent | Promote | Stop | Event
