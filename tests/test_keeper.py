"""Keeper: a command waits for its own answer only; the process of the next life is there before it is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nfckpt.config import NodeConfig, PairConfig
from nfckpt.deploy.keeper import Keeper, _receive
from nfckpt.errors import ProtectionError
from nfckpt.failover.witness import Answer, Question, Witness
from nfckpt.node.priority import lower, restore
from nfckpt.wire import keeper as wire
from tests.pair_rig import PairRig, until

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


def test_a_blank_node_says_which_term_it_led_last() -> None:
    """Its keeper remembers: the witness may not have heard of it. What a killed process said last is read too."""
    witness = Witness()
    for q in (Question("register", "b", life="1"), Question("register", "a", life="2"), Question("protected", "b", 1, "a")):
        witness.ask(q)
    keeper = Keeper(wire.NodeSpec(CONFIG, "a", bytes(32), ""), witness.ask)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            wire.send(theirs, wire.WitnessAsk(Question("took", "a", 2)))
            wire.send(ours, wire.Command("status"))
        raw = _receive(ours)
        assert raw and _receive(ours) == b""
        keeper._take(ours, wire.from_process.decode(raw))
    while not keeper._questions.empty():                # nobody carries them: the witness is silent
        keeper._questions.get()
    keeper._take(ours, wire.WitnessAsk(Question("register", "a", life="3")))
    row = keeper._questions.get()
    assert row is not None and row[0] == Question("register", "a", 2, life="3")
    assert witness.ask(row[0]).said == "follow"         # b's process still holds term 1, for all that is known
    assert witness.ask(Question("register", "b", life="4")) == Answer("register", "lead", 3, "b")


def test_a_keeper_that_adopts_a_leader_knows_its_term() -> None:
    keeper = Keeper(wire.NodeSpec(CONFIG, "a", bytes(32), ""), Witness().ask)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for fields, term in (({"pid": 1, "term": 7, "leads": False, "other": ""}, 0), ({"pid": 1, "term": 7, "leads": True, "other": ""}, 7)):
            keeper._take(ours, wire.Report("adopted", 1, fields))
            keeper._take(ours, wire.WitnessAsk(Question("register", "a", life="x")))
            row = keeper._questions.get()
            assert row is not None and row[0].term == term


def test_a_machine_without_room_for_a_spare_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node that is protected now must not pay for it."""
    def nothing(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    keeper = Keeper(wire.NodeSpec(CONFIG, "a", bytes(32), ""), Witness().ask)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(subprocess, "Popen", nothing)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        keeper._take(ours, wire.Report("protected", 1, {"peer": "b", "term": 1}))
    assert [name for name, _, _ in keeper.events] == ["no_spare", "protected"] and keeper._spare is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_next_life_is_a_process_that_waits_already() -> None:
    with PairRig() as rig:
        keeper = rig.pair.keepers["b"]
        spare = until(lambda: keeper._spare)[1].pid
        assert spare != keeper.pid
        rig.kill_standby()
        until(lambda: keeper.pid == spare)
        rig.protected()
        after = until(lambda: keeper._spare)[1].pid                 # and one for the life after
        assert after != spare
        os.kill(after, signal.SIGKILL)                              # somebody ends it: the node starts all the same
        until(lambda: not running(after) or Path(f"/proc/{after}/stat").read_text().split()[2] == "Z")
        rig.kill_standby()
        until(lambda: keeper.starts == 3 and keeper.pid not in (0, after))
        rig.protected()
        waiting = [until(lambda k=k: k._spare)[1].pid for k in rig.pair.keepers.values()]
        rig.check()
    assert not any(map(running, waiting))


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="without privilege there is no way back from a lower priority, so none is taken")
def test_a_spare_has_the_lowest_priority_until_it_is_needed() -> None:
    with PairRig(traffic=False) as rig:
        keeper = rig.pair.keepers["b"]
        spare = until(lambda: keeper._spare)[1].pid
        until(lambda: os.getpriority(os.PRIO_PROCESS, spare) == 19)
        rig.kill_standby()
        until(lambda: keeper.pid == spare)
        rig.protected()
        assert os.getpriority(os.PRIO_PROCESS, spare) == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="without privilege there is no way back from a lower priority, so none is taken")
def test_a_process_that_is_needed_in_the_middle_of_its_imports_is_raised_there() -> None:
    """On a busy machine the lowest priority never comes to their end."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    try:
        lower(child.pid)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
        restore(child.pid)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        child.kill()
        child.wait()


def test_a_spare_ends_with_its_keeper() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        spare = subprocess.Popen([sys.executable, "-m", "nfckpt.node", str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        ours.close()
        assert spare.wait(20) == 10
