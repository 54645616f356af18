"""Planned work: a node in maintenance, and a preferred node that takes its role back; under traffic, nothing lost or doubled."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
import pytest

from nfckpt.config import check, loads
from nfckpt.deploy.pair import PairBase
from nfckpt.deploy.preempt import Preempt
from nfckpt.errors import ConfigError, ProtectionError
from nfckpt.failover.witness import WitnessView
from tests.pair_rig import PairRig, until

BOTH = pytest.mark.parametrize("profile", ["host", "hosts"])


@BOTH
def test_a_standby_in_maintenance_is_not_started_again_until_it_is_over(profile: str) -> None:
    with PairRig(profile) as rig:
        keeper = rig.pair.keepers["b"]
        starts = keeper.starts
        assert rig.pair.maintenance("b") == "a"
        until(lambda: rig.pair.status()["b"]["role"] == "maintenance")
        until(lambda: rig.pair.status()["a"]["role"] == "solo")
        time.sleep(0.3)
        assert keeper.starts == starts and keeper.pid == 0 and rig.pair.maintenance("b") == "a"
        with pytest.raises(ProtectionError, match="not protected"):
            rig.pair.maintenance("a")                       # nobody could go on
        assert rig.pair.maintenance("b", False) == "a"
        assert rig.protected() == "a" and keeper.starts == starts + 1
        assert [len(rig.seen(name, "b")) for name in ("maintenance", "maintained")] == [1, 1]
        rig.check()


@BOTH
def test_an_active_hands_its_role_over_first(profile: str) -> None:
    with PairRig(profile) as rig:
        assert rig.pair.maintenance("a") == "b" and rig.term == 2
        until(lambda: rig.pair.status()["a"]["role"] == "maintenance")
        assert rig.receipts(1)[0]["reason"] == "handover"
        rig.pair.maintenance("a", False)
        assert rig.protected() == "b"
        rig.check()


@pytest.mark.parametrize(("standby", "asked"), [("b", 3), ("", 1)])
def test_the_active_may_hear_of_its_record_later_than_the_caller(standby: str, asked: int) -> None:
    answers = iter([False, False, True])

    class Keeper:
        asked = 0

        def command(self, verb: str, timeout_s: float = 1.0) -> dict[str, Any]:
            self.asked += 1
            return {"ok": next(answers)}

    class Pair(PairBase):
        def view(self) -> WitnessView:
            return WitnessView(1, "a", standby)

    keeper, pair = Keeper(), Pair()
    pair.keepers = {"a": keeper}        # type: ignore[dict-item]
    assert pair.failover() is bool(standby) and keeper.asked == asked


def test_a_node_that_this_pair_has_not() -> None:
    with PairRig(traffic=False) as rig, pytest.raises(ProtectionError, match="no node 'c'"):
        rig.pair.maintenance("c")


def test_a_life_that_begins_while_maintenance_is_asked_for_ends_too() -> None:
    """Off and on again at once, at every moment of a start."""
    with PairRig(traffic=False) as rig:
        keeper = rig.pair.keepers["b"]
        for n in range(12):
            keeper.maintain(False)
            time.sleep(0.02 * n)
            keeper.maintain(True)
            until(lambda: keeper.pid == 0 and rig.pair.status()["b"]["role"] == "maintenance")
        keeper.maintain(False)
        assert rig.protected() == "a"


@BOTH
def test_the_preferred_node_takes_its_role_back(profile: str) -> None:
    with PairRig(profile, preempt="a") as rig:
        for term in (3, 5):
            assert rig.kill_active() == "a"
            until(lambda term=term: rig.term >= term, 20)           # b by the death, then a by the switch
            assert rig.protected(term) == "a"
        assert [r["reason"] == "handover" for r in rig.receipts(4)] == [False, True] * 2
        assert len(rig.seen("preempting", "a")) == 2 and not rig.seen("preempt_refused")
        rig.check()


def test_without_preempt_whoever_leads_goes_on() -> None:
    with PairRig() as rig:
        rig.kill_active()
        assert rig.protected() == "b"
        time.sleep(0.5)
        assert rig.active == "b" and rig.term == 2
        rig.check()


class Switches:
    """Counts the switches of a Preempt, and refuses the first `refused`."""

    def __init__(self, delay_s: float, refused: int = 0) -> None:
        self.at: list[float] = []
        self.said: list[str] = []
        self._refused = refused
        self.preempt = Preempt("a", delay_s, self._switch, lambda name, at_ns, fields: self.said.append(name))

    def _switch(self) -> None:
        self.at.append(time.monotonic())
        if len(self.at) <= self._refused:
            raise ProtectionError("not now")

    def note(self, name: str, node: str) -> None:
        self.preempt.note(name, 0, {"node": node})


def test_the_delay_counts_from_the_last_loss_of_protection() -> None:
    s = Switches(0.2)
    try:
        s.note("protected", "b")
        time.sleep(0.15)
        s.note("solo", "b")
        time.sleep(0.15)
        assert s.at == []
        began = time.monotonic()
        s.note("protected", "b")
        until(lambda: s.at)
        assert s.at[0] - began >= 0.19
        s.note("protected", "a")
        time.sleep(0.3)
        assert len(s.at) == 1 and s.said == ["preempting"]
    finally:
        s.preempt.close()


def test_a_refused_switch_is_tried_again_and_said() -> None:
    s = Switches(0.0, refused=1)
    try:
        s.note("protected", "b")
        until(lambda: len(s.at) == 2)
        assert s.said == ["preempting", "preempt_refused", "preempting"] and s.at[1] - s.at[0] >= 0.99
    finally:
        s.preempt.close()
    assert not any(t.name == "preempt" for t in threading.enumerate())


def test_a_preferred_node_that_is_none() -> None:
    config = loads(EXAMPLE)
    assert (config.preempt, config.preempt_delay_s) == ("a", 30.0)
    with pytest.raises(ConfigError, match="preempt = 'c': no such node"):
        check(msgspec.structs.replace(config, preempt="c"))
    with pytest.raises(ConfigError, match="preempt_delay_s"):
        check(msgspec.structs.replace(config, preempt_delay_s=-1.0))


EXAMPLE = """
[pair]
name = "edge"
app = "m:C"
preempt = "a"
preempt_delay_s = 30
[nodes.a]
ports = ["mem:0"]
[nodes.b]
ports = ["mem:1"]
"""
