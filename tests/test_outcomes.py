"""Each loss has one outcome (I13): the table of nfckpt/ARCHITECTURE.md, a test a row, in the profiles where the row applies.

Real packet processes on packet sockets, in namespaces of their own, under numbered traffic both ways. A rig that a row leaves
whole and protected serves the next one of its profile: each row starts from "protected" and says what must be so afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nfckpt.failover.witness import Witness, WitnessView
from tests.pair_rig import stopped, until
from tests.veth_rig import VethRig

pytestmark = pytest.mark.timeout(120)
# scope: all rows of one profile after another, so that they can share a rig
BOTH = pytest.mark.parametrize("profile", ["host", "hosts"], scope="module")
HOSTS = pytest.mark.parametrize("profile", ["hosts"], scope="module")     # rows that speak of a link between machines
BOUNDS: dict[str, Any] = {"hang_ms_max": 400, "claim_ms_max": 400, "port_down_ms_max": 300}
WHOLE_S_MAX = 40.0


class Rigs:
    """One rig a profile, as long as it stays whole."""

    def __init__(self) -> None:
        self.rig: VethRig | None = None

    def of(self, profile: str) -> VethRig:
        if self.rig is not None and self.rig.profile != profile:
            self.drop()
        if self.rig is None:
            self.rig = VethRig(profile, **BOUNDS).__enter__()
        whole(self.rig)
        self.rig.traffic.go()
        self.rig.events.clear()
        time.sleep(0.05)
        return self.rig

    @contextlib.contextmanager
    def own(self, profile: str, **bounds: Any) -> Iterator[VethRig]:
        """One for a row that does not leave it whole, or has bounds of its own."""
        self.drop()
        with VethRig(profile, **{**BOUNDS, **bounds}) as rig:
            whole(rig)
            yield rig

    def drop(self) -> None:
        rig, self.rig = self.rig, None
        if rig is not None:
            rig.__exit__(None, None, None)


@pytest.fixture(scope="module")
def rigs() -> Iterator[Rigs]:
    rigs = Rigs()
    yield rigs
    rigs.drop()


@pytest.fixture
def rig(rigs: Rigs, profile: str) -> Iterator[VethRig]:
    """A protected pair under traffic. Afterwards: nothing lost, nothing doubled, protected again."""
    rig = rigs.of(profile)
    try:
        yield rig
        whole(rig)
        rig.check()
    except BaseException:
        rigs.drop()
        raise


def whole(rig: VethRig) -> None:
    """Wait until both nodes say so themselves: the witness knows it before they do."""
    rig.protected(timeout_s=WHOLE_S_MAX)
    until(lambda: all(s["protected"] and s["role"] in ("active", "standby") for s in rig.pair.status().values()), WHOLE_S_MAX)


def flows(rig: VethRig, frames: int = 200) -> None:
    """Output goes on from now."""
    until(lambda at=rig.traffic.received[0]: rig.traffic.received[0] > at + frames, 20)


def status(rig: VethRig, node: str) -> dict[str, Any]:
    return dict(rig.pair.status()[node])


def ended(rig: VethRig, node: str) -> int:
    return int(until(lambda: rig.seen("exited", node), 20)[0]["code"])


def handed_over(rig: VethRig, old: str, term: int) -> dict[str, Any]:
    """The active gave its role away, and ended; nothing was doubled, nothing missed. Returns the receipt."""
    assert ended(rig, old) == 4
    (receipt,) = rig.receipts(1)
    assert (receipt["reason"], receipt["term"], receipt["doubled"], receipt["active_missed"]) == ("handover", term + 1, 0, 0)
    return dict(receipt)


# ── the standby is lost ──────────────────────────────────────────────────────────────────────────


@BOTH
def test_standby_dead_with_outputs_held(rig: VethRig, profile: str) -> None:
    """Grant void → solo → what was held leaves, in order."""
    active, term = rig.active, rig.term
    with stopped(rig.pair.keepers[rig.standby].pid):            # so that something is held when it dies
        time.sleep(0.1)
        name = rig.kill_standby()
        (solo,) = until(lambda: rig.seen("solo", active))
    assert solo["released"] > 50 and rig.seen("standby_lost", active)[0]["proof"] is (profile == "host")
    flows(rig)
    whole(rig)
    assert (rig.active, rig.term, rig.standby) == (active, term, name) and not rig.seen("takeover")


@BOTH
def test_standby_hung(rig: VethRig, profile: str) -> None:
    """The same after the hang bound. When it wakes it is struck out: it ends, and comes back blank."""
    active, name, term, pid = rig.active, rig.standby, rig.term, rig.pair.keepers[rig.standby].pid
    with stopped(pid):
        (solo,) = until(lambda: rig.seen("solo", active))
        assert "silent" in rig.seen("standby_lost", active)[0]["reason"] and solo["released"] > 0
        flows(rig)
        assert rig.pair.witness.view().standby == ""
        before = rig.emitted(name)
    assert ended(rig, name) == (-signal.SIGKILL if profile == "host" else 3)
    whole(rig)
    assert (rig.active, rig.term) == (active, term) and rig.pair.keepers[name].pid != pid
    assert rig.emitted(name) == before


@BOTH
def test_standby_port_cut(rig: VethRig, profile: str) -> None:
    """Its tap does not see everything any more: `tap_gap` at once, and it gives up its place when the cable stays out."""
    active, name, term = rig.active, rig.standby, rig.term
    rig.bed.unplug(f"{name}.wan")
    try:
        until(lambda: status(rig, active).get("tap_gap"))
        assert not rig.pair.failover()                          # nobody is handed a term on a port that is dead
        assert ended(rig, name) == 7 and "no carrier" in rig.seen("exited", name)[0]["why"]
        until(lambda: status(rig, name).get("ports_down"))
        flows(rig)
        assert status(rig, active)["role"] == "solo" and not rig.seen("protecting")
    finally:
        rig.bed.plug(f"{name}.wan")
    whole(rig)
    until(lambda: not status(rig, active)["tap_gap"], WHOLE_S_MAX)
    assert (rig.active, rig.term) == (active, term)


# ── the active is lost ───────────────────────────────────────────────────────────────────────────


@BOTH
def test_standby_port_cut_off(rig: VethRig, profile: str) -> None:
    """Where carrier stays: it keeps its place, inexact, as long as it does not see what the active names; nobody is handed a term there."""
    active, name, term = rig.active, rig.standby, rig.term
    rig.bed.cut(f"{name}.lan")
    try:
        until(lambda: rig.seen("cut_off", name))
        assert [(e["role"], e["ports"]) for e in rig.seen("cut_off", name)] == [("standby", [0])]
        until(lambda: status(rig, active).get("tap_gap"))
        assert not rig.pair.failover()
        flows(rig)
        time.sleep(0.3)
        assert status(rig, active)["tap_gap"] and len(rig.seen("cut_off", name)) == 1
    finally:
        rig.bed.mend(f"{name}.lan")
    until(lambda: not status(rig, active).get("tap_gap"))
    assert (rig.active, rig.standby, rig.term) == (active, name, term)


@BOTH
def test_active_dead(rig: VethRig, profile: str) -> None:
    """Host: the kernel's word, the standing grant. Hosts: the witness, and the lease must run out."""
    term, new = rig.term, rig.standby
    old = rig.kill_active()
    assert rig.protected(term + 1, WHOLE_S_MAX) == new
    (receipt,) = rig.receipts(1)
    assert (receipt["proof"], receipt["exact"], receipt["term"], receipt["doubled"]) == (profile == "host", True, term + 1, 0)
    whole(rig)
    assert status(rig, new)["role"] == "active" and status(rig, old)["role"] == "standby"


@BOTH
def test_active_stopped_and_continued(rig: VethRig, profile: str) -> None:
    """Fenced first, then the standby promotes: the hubs get no frame of it any more, however often it continues."""
    term, old, pid = rig.term, rig.active, rig.pair.keepers[rig.active].pid
    with stopped(pid):
        until(lambda: rig.seen("active", blank=False), 20)
        before = rig.emitted(old)
        flows(rig)
        if profile == "host":                                   # killed: it never continues
            assert ended(rig, old) == -signal.SIGKILL
    assert ended(rig, old) == (-signal.SIGKILL if profile == "host" else 3)
    assert rig.emitted(old) == before
    whole(rig)
    assert rig.term == term + 1 and rig.receipts(1)[0]["proof"] is False and rig.emitted(old) == before


@BOTH
def test_active_dead_with_acked_outputs_unreleased(rig: VethRig, profile: str) -> None:
    """The standby emits again what it did not see leave: here, what it acknowledged to an active that stands still."""
    term, old, new = rig.term, rig.active, rig.standby
    os.kill(rig.pair.keepers[new].pid, signal.SIGSTOP)          # nothing is acknowledged: the gate fills
    time.sleep(0.1)
    os.kill(rig.pair.keepers[old].pid, signal.SIGSTOP)
    before = rig.emitted(old)
    os.kill(rig.pair.keepers[new].pid, signal.SIGCONT)          # it takes what was on its way, and acknowledges it
    time.sleep(0.1)
    rig.pair.kill_active()
    rig.protected(term + 1, WHOLE_S_MAX)
    (receipt,) = rig.receipts(1)
    assert receipt["reemitted"] > 50 and (receipt["node"], receipt["doubled"], receipt["exact"]) == (new, 0, True)
    assert rig.emitted(old) == before


@BOTH
def test_active_dead_link_after_link(rigs: Rigs, profile: str) -> None:
    """Its machine goes down link after link, carrier or not, its process last, within a skew: what it let go into a link that was cut already
    is emitted again, what it did not get any more is replayed."""
    with rigs.own(profile, tap_skew_ms_max=300) as rig:
        rig.traffic.go()
        flows(rig)
        term, old, new = rig.term, rig.active, rig.standby
        for link in "wan", "lan", "rep":
            rig.bed.cut(f"{old}.{link}")
            time.sleep(0.06)
        rig.pair.kill_active()
        until(lambda: rig.seen("takeover", new), 20)
        for link in "wan", "lan", "rep":
            rig.bed.mend(f"{old}.{link}")
        rig.protected(term + 1, WHOLE_S_MAX)
        (receipt,) = rig.receipts(1)
        assert receipt["reemitted"] > 50 and (receipt["node"], receipt["doubled"], receipt["active_missed"]) == (new, 0, 0)
        flows(rig)
        rig.check()


@BOTH
def test_active_port_cut(rig: VethRig, profile: str) -> None:
    """A graceful switch to a standby that has carrier everywhere: it emits again what met the dead port, and replays its tap."""
    term, old, new = rig.term, rig.active, rig.standby
    rig.bed.unplug(f"{old}.wan")
    try:
        receipt = handed_over(rig, old, term)
        assert receipt["replayed"] > 0
        flows(rig)
        until(lambda: status(rig, old).get("ports_down"))
        assert status(rig, new)["role"] == "solo" and not rig.seen("protecting")    # not before it has carrier again
    finally:
        rig.bed.plug(f"{old}.wan")
    whole(rig)
    assert (rig.active, rig.term) == (new, term + 1) and rig.seen("port_down", old) and rig.seen("port_up", old)


@BOTH
def test_active_port_cut_off(rig: VethRig, profile: str) -> None:
    """The same where carrier stays, as when a switch further on dies: the standby sees what the active does not."""
    term, old, new = rig.term, rig.active, rig.standby
    rig.bed.cut(f"{old}.wan")
    try:
        receipt = handed_over(rig, old, term)
        assert receipt["replayed"] > 100 and receipt["reemitted"] > 100
        assert [(e["role"], e["ports"]) for e in rig.seen("cut_off", new)] == [("active", [1])] and len(rig.seen("switching", old)) == 1
        flows(rig)
    finally:
        rig.bed.mend(f"{old}.wan")
    whole(rig)
    assert (rig.active, rig.term) == (new, term + 1)


def begin_anew(rig: VethRig) -> None:
    """Let what was sent arrive, and count from 0: so does the app, which is about to lose its state."""
    t = rig.traffic
    t.pause()
    until(lambda: t.received == t.sent, 20)
    assert (t.doubled, t.strange) == (0, 0)
    t.forget()


@BOTH
def test_active_dead_in_solo(rig: VethRig, profile: str) -> None:
    """It was not protected: the service restarts blank, the receipt says what is gone, and whoever followed the lost term is refused."""
    active, name, term = rig.active, rig.standby, rig.term
    with stopped(rig.pair.keepers[name].pid):
        until(lambda: rig.seen("solo", active), 20)
        flows(rig)
        before = rig.emitted(name)
        begin_anew(rig)
        rig.pair.kill_active()
        (gone,) = until(lambda: rig.seen("receipt", blank=True), 20)
        assert f"no node held the state of term {term}" in gone["reason"] and (gone["term"], gone["exact"]) == (term + 1, False)
        if profile == "hosts":
            assert rig.active == active                         # the other one stands still, whole of the lost term
    if profile == "hosts":                                      # it wakes, and claims the term that is taken
        assert ended(rig, name) == 3 and "denied" in rig.seen("exited", name)[0]["why"]
        assert rig.emitted(name) == before
    whole(rig)
    assert rig.term == term + 1 and not rig.seen("takeover")
    rig.traffic.go()
    flows(rig)


# ── a link is lost ───────────────────────────────────────────────────────────────────────────────


@HOSTS
@pytest.mark.parametrize("lost", ["all", "acks", "records"])
def test_replication_link(rig: VethRig, profile: str, lost: str) -> None:
    """Both live, and the witness hears both: the active is preferred and goes on alone, the standby is refused and comes back blank."""
    active, name, term = rig.active, rig.standby, rig.term
    rig.traffic.watch_gap()
    with rig.cut("a.rep") if lost == "all" else rig.deaf(active if lost == "acks" else name):
        until(lambda: rig.seen("solo", active), 20)
        assert ended(rig, name) == 3 and "the claim" in rig.seen("exited", name)[0]["why"]
        flows(rig)
        assert status(rig, active)["role"] == "solo"
    whole(rig)
    assert (rig.active, rig.term) == (active, term) and not rig.seen("takeover")


@HOSTS
def test_records_lost_and_the_active_does_not_answer(rig: VethRig, profile: str) -> None:
    """The witness asks the active first, in vain: after claim_ms the standby has the term, and emits once the lease has run out."""
    old, new, term = rig.active, rig.standby, rig.term
    with rig.deaf(new), rig.no_witness(old):
        until(lambda: rig.seen("active", new), 20)
        before = rig.emitted(old)
        flows(rig)
        assert status(rig, old)["role"] == "holding" and rig.emitted(old) == before
    assert ended(rig, old) == 3
    whole(rig)
    assert (rig.active, rig.term) == (new, term + 1)


@HOSTS
def test_active_cut_off_from_standby_and_witness(rig: VethRig, profile: str) -> None:
    """It holds its output, and its lease ends; the standby promotes. When it hears the witness again it is fenced."""
    old, new, term = rig.active, rig.standby, rig.term
    with rig.cut("a.rep"), rig.no_witness(old):
        until(lambda: rig.seen("active", new), 20)
        before = rig.emitted(old)
        flows(rig)
        seen = until(lambda: (s := status(rig, old))["unwitnessed"] and s)
        assert seen["role"] == "holding" and seen["outputs_held"] > 0 and rig.emitted(old) == before
    assert ended(rig, old) == 3 and f"{new} holds term {term + 1}" in rig.seen("exited", old)[0]["why"]
    whole(rig)
    assert (rig.active, rig.term) == (new, term + 1)


# ── the witness is lost ──────────────────────────────────────────────────────────────────────────


@BOTH
def test_witness_dead(rig: VethRig, profile: str) -> None:
    """The pair goes on, and shows it. Proof still promotes on one host; without proof nobody is promoted until it is heard again."""
    old, new, term = rig.active, rig.standby, rig.term
    with rig.no_witness():
        until(lambda: len(rig.seen("unwitnessed")) == 2)
        assert all(s["unwitnessed"] and s["protected"] for s in rig.pair.status().values())
        flows(rig)
        rig.pair.keepers[old].kill(signal.SIGKILL)
        if profile == "host":
            until(lambda: rig.seen("active", new))
            flows(rig)
            assert rig.term == term                             # it does not know yet
        else:
            until(lambda: len(rig.seen("witness_silent", new, verb="claim")) > 1, 20)
            assert not rig.seen("active", new)
    whole(rig)
    assert (rig.active, rig.term) == (new, term + 1) and len(rig.seen("witnessed", new)) == 1
    assert rig.receipts(1)[0]["proof"] is (profile == "host")


@BOTH
def test_witness_dead_and_the_active_suspected(rig: VethRig, profile: str) -> None:
    """when_alone = stop: the standby claims again and again; its tap keeps what comes meanwhile."""
    old, new, term = rig.active, rig.standby, rig.term
    with stopped(rig.pair.keepers[old].pid):
        with rig.no_witness():
            until(lambda: len(rig.seen("witness_silent", new, verb="claim")) > 1, 20)
            assert not rig.seen("active", new) and status(rig, new)["unwitnessed"]
        until(lambda: rig.seen("active", new), 20)
    whole(rig)
    assert (rig.active, rig.term) == (new, term + 1)


@BOTH
def test_witness_dead_and_the_standby_suspected(rig: VethRig, profile: str) -> None:
    """when_alone = stop: the active emits nothing until the witness has struck the standby out."""
    active, name, term = rig.active, rig.standby, rig.term
    with stopped(rig.pair.keepers[name].pid):
        with rig.no_witness():
            until(lambda: len(rig.seen("witness_silent", active, verb="reclaim" if profile == "hosts" else "solo")) > 1, 20)
            before = rig.emitted(active)
            time.sleep(0.1)
            assert status(rig, active)["role"] == "holding" and rig.emitted(active) == before
        until(lambda: rig.seen("solo", active), 20)
    whole(rig)
    assert (rig.active, rig.term) == (active, term)


@BOTH
def test_witness_restarted(rig: VethRig, profile: str) -> None:
    """It is blank: it grants nothing before both nodes have said what they are; then it knows what its predecessor knew."""
    active, name, term = rig.active, rig.standby, rig.term
    with rig.no_witness(name):
        rig.pair.witness = Witness("ab", mark=7)
        until(lambda: rig.pair.view().missing == (name,))
        with stopped(rig.pair.keepers[name].pid):
            until(lambda: rig.seen("standby_lost", active), 20)
            until(lambda: status(rig, active)["unwitnessed"])
            assert status(rig, active)["role"] == "holding" and rig.pair.view() == WitnessView(term, active, name, (name,))
            rig.pair.force_witness()                            # an operator's word: `nfckpt witness --force`
            until(lambda: rig.seen("solo", active), 20)
            flows(rig)
    whole(rig)
    assert (rig.active, rig.term) == (active, term)
    rig.pair.witness = Witness("ab", mark=8)
    until(lambda: rig.pair.view() == WitnessView(term, active, name))
    rig.pair.kill_active()
    rig.protected(term + 1, WHOLE_S_MAX)
    assert rig.active == name


@BOTH
def test_witness_dead_and_unsafe_continue(rigs: Rigs, profile: str) -> None:
    """when_alone = unsafe_continue: after claim_ms_max each goes on by itself, and the witness is told when it is back."""
    with rigs.own(profile, when_alone="unsafe_continue") as rig:
        active, name = rig.active, rig.standby
        with stopped(rig.pair.keepers[name].pid):
            with rig.no_witness():
                until(lambda: rig.seen("alone", active), 20)
                flows(rig)
                assert status(rig, active)["role"] == "solo" and rig.pair.witness.view() == WitnessView(1, active, name)
            until(lambda: rig.pair.view() == WitnessView(1, active, ""))        # whoever is heard first is right: here, the one that lives
        whole(rig)
        assert (rig.active, rig.term) == (active, 1)
        rig.events.clear()
        with stopped(rig.pair.keepers[active].pid):
            with rig.no_witness():
                until(lambda: rig.seen("alone", name, term=2), 20)
                until(lambda: rig.seen("active", name), 20)
                flows(rig)
                assert rig.term == 1
            until(lambda: rig.term == 2)                        # else the other one, which wakes, might be heard first
        whole(rig)
        assert (rig.active, rig.term) == (name, 2)
        rig.check()


@BOTH
def test_active_dead_while_the_standby_syncs(rigs: Rigs, profile: str) -> None:
    """Not protected either: what a syncing standby has is not whole, and it ends with the active that it was to protect."""
    with rigs.own(profile, tap_skew_ms_max=300) as rig:         # a sync takes two skews at least: time enough to strike
        name = rig.standby
        begin_anew(rig)
        rig.events.clear()
        rig.kill_standby()
        until(lambda: rig.seen("syncing", name), 20)
        rig.pair.kill_active()
        (row,) = until(lambda: rig.seen("exited", name, code=11), 20)
        assert "before it was whole" in row["why"]
        (gone,) = until(lambda: rig.seen("receipt", blank=True), 20)
        assert "no node held the state of term 1" in gone["reason"] and gone["term"] == 2
        whole(rig)
        assert rig.term == 2 and not rig.seen("takeover")
        rig.traffic.go()
        flows(rig)
        rig.check()
