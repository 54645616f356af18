"""Keeper: what a silent witness misses is told later, and a command waits for its own answer only."""

from __future__ import annotations

import socket

import pytest

from nfckpt.config import NodeConfig, PairConfig
from nfckpt.deploy.keeper import Keeper
from nfckpt.errors import ProtectionError
from nfckpt.failover.witness import Answer, Question, Witness
from nfckpt.wire import keeper as wire

CONFIG = PairConfig(name="k", app="tests.ray_app:Wire", nodes={n: NodeConfig(ports=["mem:0"]) for n in "ab"})


def test_a_takeover_that_the_witness_did_not_hear_of_is_reported_before_the_next_question() -> None:
    witness, deaf = Witness(), False

    def ask(question: Question) -> Answer:
        if deaf:
            raise TimeoutError("no answer")
        return witness.ask(question)

    for q in Question("register", "a"), Question("register", "b"), Question("protected", "a", 1, "b"):
        witness.ask(q)
    b = Keeper(wire.NodeSpec(CONFIG, "b", bytes(32), ""), ask)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        deaf = True
        b._take(ours, wire.WitnessAsk(Question("took", "b", 2)))
        assert wire.receive(theirs) is None and witness.term == 1
        assert [name for name, _, _ in b.events] == ["witness_silent"]
        deaf = False
        b._take(ours, wire.WitnessAsk(Question("protected", "b", 2, "a")))
        said = [wire.from_keeper.decode(wire.receive(theirs) or b"") for _ in range(2)]
        assert [(m.answer.verb, m.answer.said) for m in said if isinstance(m, wire.WitnessSaid)] == [("took", "ok"), ("protected", "ok")]
        assert (witness.term, witness.holder, witness.standby) == (2, "b", "a")


def test_an_unanswered_command_is_forgotten() -> None:
    keeper = Keeper(wire.NodeSpec(CONFIG, "a", bytes(32), ""), Witness().ask)
    with pytest.raises(ProtectionError, match="no packet process"):
        keeper.command("failover")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        keeper._sock = ours
        with pytest.raises(ProtectionError, match="did not answer"):
            keeper.command("status", 0.01)
        keeper._take(ours, wire.Reply(2, {"late": True}))
        assert keeper._replies == {}
