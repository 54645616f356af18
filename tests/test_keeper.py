"""Keeper: a command waits for its own answer only."""

from __future__ import annotations

import socket

import pytest

from nfckpt.config import NodeConfig, PairConfig
from nfckpt.deploy.keeper import Keeper
from nfckpt.errors import ProtectionError
from nfckpt.failover.witness import Witness
from nfckpt.wire import keeper as wire

CONFIG = PairConfig(name="k", app="tests.ray_app:Wire", nodes={n: NodeConfig(ports=["mem:0"]) for n in "ab"})


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
