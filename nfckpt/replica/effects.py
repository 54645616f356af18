"""What a core asks its shell to do, performed in the order given. Cores never do I/O themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nfckpt.failover.witness import Question

__all__ = [
    "Ask", "DropPeer", "Effect", "Event", "KillPeer", "LeaseArm", "LeasePermanent", "LeaseStamp", "Promote", "Send", "Stop",
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
class LeaseArm:
    """Profile hosts: the kernel lets frames with `mark` pass for `ms` from now. Before the beat it belongs to is sent."""

    mark: int
    ms: int


@dataclass(frozen=True, slots=True)
class LeaseStamp:
    """Frames sent from now on carry `mark`: the standby answered its beat. The permanent mark, if any, is revoked."""

    mark: int


@dataclass(frozen=True, slots=True)
class LeasePermanent:
    """Nobody else may emit, so no lease limits us: frames carry `mark`, which does not run out."""

    mark: int


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


Effect = Send | Ask | DropPeer | KillPeer | LeaseArm | LeaseStamp | LeasePermanent | Promote | Stop | Event
