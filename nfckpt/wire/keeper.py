"""What a packet process and its keeper (the Ray actor, local runner or embedding program that started it) say to each other.

One message a datagram on an inherited SOCK_SEQPACKET pair; JSON of one of the structs below. The end of the socket is
the end of the other side: a packet process without keeper waits for its next life where one may come (adoption.py), else
it stops; a keeper whose process ended tells the witness.

    process → keeper    WitnessAsk, Report, Reply
    keeper → process    WitnessSaid, Command
"""

from __future__ import annotations

import errno
import socket
from typing import Any

import msgspec

from nfckpt.config import PairConfig
from nfckpt.failover.witness import Answer, Question

__all__ = ["Command", "FromKeeper", "FromProcess", "NodeSpec", "Reply", "Report", "WitnessAsk", "WitnessSaid", "receive", "send"]

DATAGRAM_BYTES_MAX = 160 * 1024


class NodeSpec(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """All that a packet process needs to know at start. Sent as the first datagram; holds the pair's key."""

    config: PairConfig
    node: str
    key: bytes
    run_dir: str
    orphan_ms: int = 0
    """How long a process whose keeper is gone waits for the keeper's next life; 0: there is none to come."""


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag=True):
    pass


class WitnessAsk(_Message):
    question: Question


class Report(_Message):
    """Something happened. `at_ns`: CLOCK_MONOTONIC of the node."""

    name: str
    at_ns: int
    fields: dict[str, Any]


class Reply(_Message):
    """Answer to Command `number`."""

    number: int
    body: dict[str, Any]


class WitnessSaid(_Message):
    answer: Answer


class Command(_Message):
    """`verb`: status, failover, stop."""

    verb: str
    number: int = 0


FromProcess = WitnessAsk | Report | Reply
FromKeeper = WitnessSaid | Command

_encoder = msgspec.json.Encoder()
from_process: msgspec.json.Decoder[FromProcess] = msgspec.json.Decoder(FromProcess)
from_keeper: msgspec.json.Decoder[FromKeeper] = msgspec.json.Decoder(FromKeeper)


def send(sock: socket.socket, message: FromProcess | FromKeeper | NodeSpec) -> bool:
    """False when the other side is gone."""
    try:
        sock.send(_encoder.encode(message))
    except OSError as e:
        if e.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            raise
        return False
    return True


def receive(sock: socket.socket) -> bytes | None:
    """One datagram; None when nothing waits; b"" when the other side is gone."""
    try:
        return sock.recv(DATAGRAM_BYTES_MAX)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""
