"""A packet process outlives its keeper: it forwards on, and the keeper's next life takes it over as it is."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import msgspec
import pytest

from nfckpt.deploy.keeper import Keeper
from nfckpt.failover.witness import Answer
from nfckpt.wire.adoption import adopt
from tests.pair_rig import PairRig, stopped, until

BOTH = pytest.mark.parametrize("profile", ["host", "hosts"])
pytestmark = pytest.mark.timeout(120)


def rig_of(profile: str, orphan_ms: int, hang_ms: int = 4000) -> PairRig:
    rig = PairRig(profile, claim_ms_max=400, hang_ms_max=hang_ms, rate_frames_per_s=10_000)
    for keeper in rig.pair.keepers.values():
        keeper.spec = msgspec.structs.replace(keeper.spec, orphan_ms=orphan_ms)
    return rig


def lose_keeper(rig: PairRig, node: str) -> Keeper:
    """As if its process had died: the socket ends, nobody starts another, and what it sees later nobody hears."""
    keeper = rig.pair.keepers[node]
    keeper._stopping.set()
    keeper._on_event, keeper._ask = None, lambda q: Answer(q.verb, "wait", 0)
    assert keeper._sock is not None
    keeper._sock.shutdown(socket.SHUT_RDWR)
    until(lambda: Path(keeper.spec.run_dir, f"rig.{node}.keeper").exists())
    return keeper


def next_life(rig: PairRig, keeper: Keeper) -> Keeper:
    node = keeper.spec.node
    fresh = rig.pair.keepers[node] = Keeper(keeper.spec, rig.pair._ask, lambda name, at_ns, fields: rig.events.append((name, fields)))
    rig._stack.callback(fresh.stop)
    fresh.start()
    until(lambda: rig.seen("adopted", node))
    return fresh


def flows(rig: PairRig, frames: int = 200) -> None:
    until(lambda at=rig.traffic.received[0]: rig.traffic.received[0] > at + frames, 20)


@BOTH
@pytest.mark.parametrize("role", ["active", "standby"])
def test_the_next_life_adopts_a_running_process(profile: str, role: str) -> None:
    with rig_of(profile, 20_000) as rig:
        until(lambda: rig.seen("standby"))
        node, active = getattr(rig, role), rig.active
        old = lose_keeper(rig, node)
        pid = old.process.pid if old.process is not None else 0
        flows(rig)
        assert Path(f"/proc/{pid}").exists() and rig.term == 1 and rig.pair.view().standby
        fresh = next_life(rig, old)
        status = fresh.status()
        assert (fresh.pid, status["pid"], status["role"], status["protected"], fresh.starts) == (pid, pid, role, True, 0)
        until(lambda: not fresh.status()["unwitnessed"])
        rig.kill_standby() if role == "active" else rig.kill_active()       # its questions reach the witness again
        rig.protected(1 if role == "active" else 2, 40)
        assert (rig.active == active) is (role == "active")
        until(lambda: fresh.status()["role"] == "active" and fresh.status()["protected"], 40)
        assert rig.pair.failover()
        (row,) = until(lambda: rig.seen("exited", node), 20)
        assert row["code"] == 4, "of a process that is not its child, a keeper knows what it said itself"
        rig.protected(2 if role == "active" else 3, 40)
        rig.check()


@BOTH
def test_a_process_whose_keeper_does_not_come_back_ends(profile: str) -> None:
    with rig_of(profile, 700) as rig:
        until(lambda: rig.seen("standby"))
        node, began = rig.active, time.monotonic()
        old = lose_keeper(rig, node)
        rig.protected(0)
        until(lambda: rig.seen("takeover"), 20)
        assert time.monotonic() - began > 0.6 and old.process is not None and old.process.wait() == 10
        flows(rig)
        assert not Path(old.spec.run_dir, f"rig.{node}.keeper").exists()


@BOTH
@pytest.mark.parametrize("role", ["active", "standby"])
def test_a_process_without_keeper_accuses_no_silent_peer(profile: str, role: str) -> None:
    """Only the witness lets it act, and who could not act would only lose its peer. The peer speaks again before the witness does."""
    with rig_of(profile, 20_000, 1000) as rig:
        until(lambda: rig.seen("standby"))
        node, silent = getattr(rig, role), rig.standby if role == "active" else rig.active
        old = lose_keeper(rig, node)
        with stopped(rig.pair.keepers[silent].pid):
            time.sleep(1.5)
        flows(rig)
        status = next_life(rig, old).status()
        assert (status["role"], status["protected"], rig.term) == (role, True, 1)
        assert not rig.seen("standby_lost") and not rig.seen("takeover")
        rig.check()


def test_only_its_own_keeper_adopts_and_only_what_answers() -> None:
    with rig_of("host", 20_000) as rig:
        until(lambda: rig.seen("standby"))
        old = lose_keeper(rig, rig.active)
        assert adopt(msgspec.structs.replace(old.spec, key=bytes(32))) is None
        assert adopt(msgspec.structs.replace(old.spec, orphan_ms=1)) is None
        flows(rig)
        pid = old.process.pid if old.process is not None else 0
        with stopped(pid):                              # for less than the hang bound
            assert adopt(old.spec) is None
