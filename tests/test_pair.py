"""What each loss leads to: real packet processes, really killed, stopped and misled, under traffic."""

from __future__ import annotations

import time

import pytest

from tests.pair_rig import COUNTER, LEFT, NAT, PairRig, pauses, stopped, until

BOTH = pytest.mark.parametrize("profile", ["host", "hosts"])
APPS = pytest.mark.parametrize("app", [COUNTER, NAT], ids=["python", "native"])


@BOTH
@APPS
def test_the_active_is_killed_five_times(profile: str, app: str) -> None:
    with PairRig(profile, app) as rig:
        for pause in pauses(seed=11, n=5):
            rig.protected()
            time.sleep(pause)
            rig.kill_active()
        rig.protected()
        rig.check()
        assert rig.term == 6
        for receipt in rig.receipts(5):
            assert (receipt["exact"], receipt["doubled"], receipt["active_missed"]) == (True, 0, 0)


@BOTH
def test_killed_the_moment_it_is_protected(profile: str) -> None:
    """The standby may not have been told yet that it is recorded: only the witness knows."""
    with PairRig(profile) as rig:
        for term in range(1, 5):
            rig.protected(term)
            rig.kill_active()
        rig.protected(5)
        rig.check()


@BOTH
def test_two_kills_50_ms_apart(profile: str) -> None:
    """The second hits while the next standby joins or syncs: nobody has the state any more. Both start blank, the first to
    register leads, and protection comes back."""
    with PairRig(profile, traffic=False) as rig:
        rig.kill_active()
        until(lambda: rig.seen("takeover"))
        time.sleep(0.05)
        pid = rig.pair.keepers[rig.active].pid
        assert rig.kill_active() and not rig.pair.witness.view().standby
        rig.protected(3)
        assert rig.term == 3 and rig.pair.status()[rig.active]["pid"] != pid
        assert len(rig.seen("active", blank=True)) == 2 and len(rig.seen("takeover")) == 1
        rig.traffic.go()
        time.sleep(0.2)
        rig.check()


@BOTH
@APPS
def test_the_standby_is_killed_three_times(profile: str, app: str) -> None:
    with PairRig(profile, app) as rig:
        for pause in pauses(seed=12, n=3):
            time.sleep(pause)
            before, active = rig.traffic.received[LEFT], rig.active
            rig.traffic.watch_gap()
            rig.kill_standby()
            until(lambda at=before: rig.traffic.received[LEFT] > at + 100)
            assert rig.protected() == active
            assert rig.traffic.gap_ns < 1e9
        rig.check()
        assert rig.term == 1 and len(rig.seen("standby_lost")) == 3 and len(rig.seen("protected")) == 4


@BOTH
def test_the_active_is_stopped_and_continues_later(profile: str) -> None:
    with PairRig(profile, hang_ms_max=200) as rig:
        old, pid = rig.active, rig.pair.keepers[rig.active].pid
        rig.traffic.watch_gap()
        with stopped(pid):
            until(lambda: rig.term == 2)
            before = rig.emitted(old)
            new = rig.active
            until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 100)
            if profile == "host":           # killed by the fence: it never continues
                until(lambda: rig.seen("exited", old, code=-9))
        assert new != old and rig.traffic.gap_ns < 1.5e9
        (ended,) = until(lambda: rig.seen("exited", old))
        assert ended["code"] == (-9 if profile == "host" else 3)
        assert rig.emitted(old) == before
        rig.protected(2)
        assert rig.receipts(1)[0]["proof"] is False
        rig.check()
        assert rig.emitted(old) == before


@BOTH
def test_the_standby_is_stopped_and_comes_back_blank(profile: str) -> None:
    with PairRig(profile, hang_ms_max=200) as rig:
        time.sleep(0.1)
        name, pid = rig.standby, rig.pair.keepers[rig.standby].pid
        rig.traffic.watch_gap()
        with stopped(pid):
            until(lambda: rig.seen("solo"))
            until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 100)
        assert 0.15e9 < rig.traffic.gap_ns < 1.2e9          # held for the hang bound, then let go
        (ended,) = until(lambda: rig.seen("exited", name))
        assert ended["code"] == (-9 if profile == "host" else 3), ended
        rig.protected()
        assert rig.term == 1 and rig.pair.keepers[name].pid != pid
        rig.check()


@BOTH
def test_a_planned_failover_loses_nothing(profile: str) -> None:
    with PairRig(profile) as rig:
        for term in (2, 3, 4):
            time.sleep(0.05)
            old = rig.protected(term - 1)
            assert rig.pair.failover()
            assert rig.protected(term) != old
            assert rig.term == term
            assert rig.seen("exited", old)[-1]["code"] == 4
        rig.check()
        assert [r["doubled"] for r in rig.receipts(3)] == [0, 0, 0]


def test_failover_of_an_unprotected_pair_is_refused() -> None:
    with PairRig(traffic=False, hang_ms_max=200) as rig, stopped(rig.pair.keepers[rig.standby].pid):
        until(lambda: rig.seen("solo"))
        assert not rig.pair.failover()


def test_what_status_says_while_protected() -> None:
    with PairRig() as rig:
        until(lambda: rig.traffic.received[LEFT] > 200)
        status = rig.pair.status()
        active, standby = status[rig.active], status[rig.standby]
        assert (active["role"], active["protected"], active["term"]) == ("active", True, 1)
        assert (standby["role"], standby["protected"], standby["term"]) == ("standby", True, 1)
        assert active["pid"] == rig.pair.keepers[rig.active].pid and standby["pid"] == rig.pair.keepers[rig.standby].pid
        assert 0 < active["commits"] <= active["epoch"] and active["commit_us_mean"] > 0
        assert (active["aborts"], active["tap_gap"], active["syncing"], active["gate_refused"]) == (0, False, False, 0)
        assert (standby["tap_gap"], standby["divergent"]) == (False, 0)
        assert active["channel"]["bytes_sent"] > 0 and active["agent"]["undecided"] == 0
        assert [p["rx_ring_drops"] for p in (*active["ports"].values(), *standby["ports"].values())] == [0] * 4
        rig.kill_active()
        rig.protected()
        assert set(rig.pair.status()[rig.active]) == set(active) | {"tap"} or set(rig.pair.status()[rig.active]) == set(active)
        rig.check()


@BOTH
def test_a_receipt_adds_up(profile: str) -> None:
    with PairRig(profile) as rig:
        time.sleep(0.2)
        old = rig.kill_active()
        rig.protected()
        rig.check()
        (receipt,) = rig.receipts(1)
        assert (receipt["term"], receipt["node"]) == (2, rig.active) and rig.active != old
        assert (receipt["proof"], receipt["exact"]) == (profile == "host", True)
        assert (receipt["doubled"], receipt["active_missed"], receipt["tap_missed"]) == (0, 0, 0)
        assert receipt["replayed"] >= receipt["uncommitted"] >= 0
        # each frame of either node is a numbered one, once: what was emitted again had not left before
        assert rig.emitted("a") + rig.emitted("b") == sum(rig.traffic.sent)
        steps = dict(receipt["steps_us"])
        assert abs(steps.pop("total") - sum(steps.values())) <= len(steps)
