"""What each loss leads to: real packet processes, really killed, stopped and misled, under traffic."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.deploy.local import LocalPair
from nfckpt.deploy.run_dir import RunDir
from nfckpt.errors import ConfigError, ProtectionError
from nfckpt.failover.witness import Answer, Question, WitnessView
from nfckpt.netns import in_netns
from nfckpt.testbed.topology import NODES, REP_IPS, Testbed
from tests.pair_rig import COUNTER, LEFT, NAT, PairRig, pauses, stopped, until

BOTH = pytest.mark.parametrize("profile", ["host", "hosts"])
APP = "tests.pair_apps:"
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
def test_an_array_that_numpy_writes_survives_kills(profile: str) -> None:
    """The app ends itself (code 8) when the watched array and the marked counters disagree, and so would a second life."""
    with PairRig(profile, APP + "Samples") as rig:
        rows = {row["name"]: row for row in rig.pair.status()[rig.active]["state"]}
        assert rows["hits"]["tracker"] == "mmu" and rows["totals"]["tracker"] == "barrier"
        for pause in pauses(seed=12, n=3):
            rig.protected()
            time.sleep(pause)
            rig.kill_active()
        rig.protected()
        rig.check()
        assert rig.term == 4 and not rig.seen("stopped")


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
            until(lambda: rig.active != old)
            until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 100)
            if profile == "host":           # killed by the fence: it never continues
                until(lambda: rig.seen("exited", old, code=-9))
        assert rig.traffic.gap_ns < 1.5e9
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
        assert 0.15e9 < rig.traffic.gap_ns < 2e9, rig.traffic.gap_ns         # held for the hang bound, then let go
        (ended,) = until(lambda: rig.seen("exited", name))
        assert ended["code"] == (-9 if profile == "host" else 3), ended
        rig.protected()
        assert rig.term == 1 and rig.pair.keepers[name].pid != pid
        assert not rig.seen("exited", code=1), "an epoch of the old session went into the new channel"
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
        assert [sum(row[name] for row in receipt["ports"]) for name in ("replayed", "reemitted", "lost")] \
            == [receipt["replayed"], receipt["reemitted"], receipt["lost"]]
        assert receipt["digests"]["active"] == receipt["digests"]["standby"]
        assert min(row["committed"] for row in receipt["ports"]) > 0
        steps = dict(receipt["steps_us"])
        assert steps.pop("replay") >= 0             # after the first frame could leave
        assert abs(steps.pop("total") - sum(steps.values())) <= len(steps)


@BOTH
def test_an_app_that_raises_half_way_through_a_burst(profile: str) -> None:
    """What the burst wrote before is not in the state; the standby runs the same frames again."""
    with PairRig(profile, APP + "RaisesOnce", app_args={"at": 200}) as rig:
        old = rig.active
        (ended,) = until(lambda: rig.seen("exited", old))
        assert ended["code"] == 8 and "half a burst" in ended["why"]
        assert rig.protected(2) != old
        rig.check()
        half = next(r["counts"]["0"] for r in rig.pair.status()[rig.active]["state"] if r["name"] == "half")
        assert half == sum(rig.traffic.sent)


@BOTH
def test_an_app_that_keeps_a_frame_for_a_while(profile: str) -> None:
    """Attempts are aborted and counted, input goes on, nothing of it shows outside."""
    with PairRig(profile, APP + "Keeps", app_args={"at": 100, "keep_ms": 100}, quiesce_ms_max=5, abort_max=1000) as rig:
        until(lambda: rig.pair.status()[rig.active].get("aborts"))
        until(lambda: rig.traffic.received[LEFT] > 300)
        status = rig.pair.status()[rig.active]
        assert status["aborts"] > 0 and status["protected"]
        rig.check()
        assert rig.term == 1 and not rig.seen("exited")


@BOTH
def test_an_app_that_never_lets_go(profile: str) -> None:
    with PairRig(profile, APP + "Keeps", app_args={"at": 100}, quiesce_ms_max=5, abort_max=10) as rig:
        old = rig.active
        (ended,) = until(lambda: rig.seen("exited", old))
        assert ended["code"] == 9 and "10 quiesce attempts" in ended["why"]
        rig.protected(2)
        rig.check()


@BOTH
def test_an_app_that_never_lets_go_keeps_its_state_while_nobody_else_has_it(profile: str) -> None:
    """To stop with a follower that is not whole would lose everything: the active goes on alone, and says so."""
    with PairRig(profile, APP + "Keeps", traffic=False, app_args={"at": 20}, quiesce_ms_max=5, abort_max=10) as rig:
        rig.kill_standby()
        until(lambda: rig.seen("solo"))
        rig.traffic.go()                                # the frame is kept before the next follower is there
        until(lambda: [f for f in rig.seen("solo") if "unprotectable" in f["reason"]])
        until(lambda: rig.seen("follower_refused"))
        until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 500)
        assert rig.term == 1 and not rig.seen("exited", rig.active) and rig.traffic.doubled == 0


@BOTH
def test_an_app_that_never_lets_go_may_go_on_without_protection(profile: str) -> None:
    with PairRig(profile, APP + "Keeps", app_args={"at": 100}, quiesce_ms_max=5, abort_max=10, unsafe_release_on_abort=True) as rig:
        until(lambda: rig.seen("solo"))
        until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 500)
        until(lambda: rig.seen("follower_refused"))
        assert "unprotectable" in rig.seen("follower_refused")[0]["reason"]
        assert rig.term == 1 and not rig.pair.status()[rig.active]["protected"] and not rig.seen("exited", rig.active)
        rig.traffic.pause()
        assert rig.traffic.doubled == 0


@BOTH
def test_the_keeper_of_the_active_is_gone(profile: str) -> None:
    with PairRig(profile) as rig:
        old = rig.active
        time.sleep(0.1)
        rig.pair.keepers[old]._sock.shutdown(socket.SHUT_RDWR)
        (ended,) = until(lambda: rig.seen("exited", old))
        assert ended["code"] == 10
        assert rig.protected(2) != old
        rig.check()


@BOTH
def test_the_keeper_of_the_standby_is_gone(profile: str) -> None:
    with PairRig(profile) as rig:
        name = rig.standby
        time.sleep(0.1)
        rig.pair.keepers[name]._sock.shutdown(socket.SHUT_RDWR)
        (ended,) = until(lambda: rig.seen("exited", name))
        assert ended["code"] == 10
        rig.protected()
        rig.check()
        assert rig.term == 1


def _silence(rig: PairRig) -> Callable[[], None]:
    """No question reaches the witness. Returns what ends that."""
    def nothing(question: Question) -> Answer:
        raise ConnectionError("no witness")

    for keeper in rig.pair.keepers.values():
        keeper._ask = nothing

    def again() -> None:
        for keeper in rig.pair.keepers.values():
            keeper._ask = rig.pair._ask
    return again


@BOTH
def test_protection_goes_on_without_the_witness(profile: str) -> None:
    with PairRig(profile, claim_ms_max=100) as rig:
        again = _silence(rig)
        until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 500)
        assert rig.pair.status()[rig.active]["protected"] and all(row["verb"] == "here" for row in rig.seen("witness_silent"))
        rig.kill_standby()              # whether it may go on alone only the witness knows, but for the kernel's word
        if profile == "hosts":
            until(lambda: len(rig.seen("witness_silent", verb="reclaim")) > 2)
            assert not rig.seen("solo")
        again()
        rig.protected()
        rig.check()
        assert rig.term == 1


@BOTH
def test_a_takeover_while_the_witness_is_silent(profile: str) -> None:
    """Proof still promotes (host), and the witness hears of it as soon as it hears anything; a claim waits for it (hosts)."""
    with PairRig(profile, claim_ms_max=100) as rig:
        old, new = rig.active, rig.standby
        until(lambda: rig.seen("standby", new))         # it was told: before that only the witness knows
        again = _silence(rig)
        rig.pair.keepers[old].kill(signal.SIGKILL)
        if profile == "host":
            until(lambda: rig.seen("active", new))
            until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 500)
            assert rig.term == 1
        else:
            until(lambda: len(rig.seen("witness_silent", verb="claim")) > 2)
            assert not rig.seen("active", new)
        again()
        assert rig.protected(2) == new
        rig.check()
        assert rig.term == 2 and rig.receipts(1)[0]["proof"] is (profile == "host")


def test_twenty_kills_in_a_row() -> None:
    """The keepers' process has as many descriptors and threads, and no more memory, after them than before."""
    def mine() -> tuple[int, int]:
        until(lambda: all(k._spare for k in rig.pair.keepers.values()))
        lasting = [t for t in threading.enumerate() if "try_it" not in t.name]      # node/priority.lower's, for an instant
        return len(os.listdir("/proc/self/fd")), len(lasting)

    def resident() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) << 10

    with PairRig(frames_s=1000) as rig:
        for n, pause in enumerate(pauses(seed=13, n=20, longest_s=0.05)):
            rig.protected(n + 1)
            time.sleep(pause)
            rig.kill_active()
            if n == 4:
                rig.protected(n + 2)
                before, resident_before = mine(), resident()
        rig.protected(21)
        rig.check()
        assert mine() == before and resident() - resident_before < 8 << 20
        assert [(r["exact"], r["doubled"]) for r in rig.receipts(20)] == [(True, 0)] * 20


@BOTH
@pytest.mark.parametrize("differs, said", [
    ({"app_args": {"flows_max": 1024}}, "the state's layout differs: run the same app with the same parameters on both nodes"),
    ({"app": "nfckpt.apps.firewall:Firewall"}, "the state's layout differs"),
], ids=["parameters", "app"])
def test_a_follower_with_another_layout_is_refused(profile: str, differs: dict[str, object], said: str) -> None:
    with PairRig(profile, b_differs=differs) as rig:
        with pytest.raises(ConfigError, match=f"node b cannot run: .*{said}"):
            rig.protected()
        assert rig.seen("exited", "b")[0]["code"] == 5
        assert said in rig.seen("follower_refused", "a")[0]["reason"]
        rig.traffic.go()
        time.sleep(0.2)
        assert rig.pair.keepers["b"].starts == 1 and rig.term == 1
        rig.check()


def test_a_follower_of_another_pair_is_refused() -> None:
    with PairRig("hosts", b_differs={"name": "other"}) as rig:
        with pytest.raises(ConfigError, match="this is pair 'rig', not 'other'"):
            rig.protected()
        assert rig.seen("exited", "b")[0]["code"] == 5


@BOTH
def test_a_follower_with_another_key_is_refused(profile: str) -> None:
    """Host: told so. Hosts: nothing of the other key can be believed, so the follower tries again; both sides say why."""
    with PairRig(profile, b_differs={"key": bytes(32)}, join_ms_max=300) as rig:
        with pytest.raises(ConfigError if profile == "host" else ProtectionError, match="another key"):
            rig.protected(timeout_s=3)
        assert rig.seen("exited", "b")[0]["code"] == (5 if profile == "host" else 11)
        assert "another key" in rig.seen("follower_refused", "a")[0]["reason"] and len(rig.seen("follower_refused")) <= 5


def test_a_refusal_for_now_is_asked_again() -> None:
    """A standby that comes back before its predecessor's grant is void finds the active busy with that."""
    with PairRig("hosts", claim_ms_max=100) as rig:
        again = _silence(rig)
        for keeper in rig.pair.keepers.values():            # all but the question whether it may go on alone
            keeper._ask = lambda q, ask=keeper._ask: ask(q) if q.verb == "reclaim" else rig.pair._ask(q)
        name = rig.kill_standby()
        until(lambda: len(rig.seen("witness_silent", verb="reclaim")) > 2)
        time.sleep(1)
        again()
        rig.protected()
        assert not rig.pair.keepers[name].gave_up and rig.term == 1
        rig.check()


@BOTH
def test_a_pair_that_is_closed_ends_in_order_and_leaves_nothing(profile: str) -> None:
    with PairRig(profile) as rig:
        until(lambda: rig.traffic.received[LEFT] > 100)
        pids = [keeper.pid for keeper in rig.pair.keepers.values()]
        folder, fds = Path(rig.pair._run_dir.path), len(os.listdir("/proc/self/fd"))
        rig.pair.close()
        assert [keeper.last_exit for keeper in rig.pair.keepers.values()] == [(0, "stopped by its keeper")] * 2
        assert not rig.seen("takeover") and not folder.exists()
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert len(os.listdir("/proc/self/fd")) <= fds - 3      # two sockets to processes, the folder


ORPHAN = """
import sys, time
from tests.pair_rig import PairRig
rig = PairRig(traffic=False).__enter__()
print(rig.pair._run_dir.path, *(keeper.pid for keeper in rig.pair.keepers.values()), flush=True)
time.sleep(60)
"""


def test_the_whole_program_is_killed() -> None:
    """Both packet processes end with it, and the next pair removes the folder that it left."""
    program = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        assert program.stdout is not None
        folder, *pids = program.stdout.readline().split()
        with contextlib.closing(RunDir()) as other:
            assert Path(folder).exists() and Path(other.path).exists()          # not while it lives
    finally:
        program.kill()
        program.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    with contextlib.closing(RunDir()):
        assert not Path(folder).exists()


@BOTH
def test_a_port_vanishes(profile: str) -> None:
    """The active's device is deleted under it: it ends, the standby goes on; it comes back when its device does not, and ends again."""
    numbers = [n.to_bytes(8, "big") for n in range(100)]
    with Testbed("nfpair") as bed, contextlib.ExitStack() as stack:
        config = PairConfig(
            name="veth", app=COUNTER, profile=profile,
            bounds=Bounds(arena_bytes=8 << 20, rx_ring_frames=1024, tx_ring_frames=1024),
            nodes={node: NodeConfig(ports=[f"afpacket:{dev}@{bed.ns(node)}" for dev in ("lan", "wan")],
                                    address=f"{REP_IPS[node]}:7701", netns=bed.ns(node)) for node in NODES})
        client, server = (stack.enter_context(_raw(bed.ns(role))) for role in ("client", "server"))
        pair = stack.enter_context(LocalPair(config))
        old = pair.wait_protected()
        assert _through(client, server, numbers[:50]) == numbers[:50]
        in_netns(bed.ns(old), _delete_wan)
        keeper = pair.keepers[old]
        until(lambda: keeper.last_exit)
        new = until(lambda: pair.active if pair.active not in ("", old) else "")
        assert keeper.last_exit is not None and keeper.last_exit[0] == 7, keeper.last_exit
        until(lambda: pair.status()[new]["role"] == "solo")
        assert _through(client, server, numbers[50:]) == numbers[50:]
        until(lambda: keeper.starts > 2)
        assert pair.witness.view() == WitnessView(2, new, "")


def _raw(ns: str) -> socket.socket:
    def make() -> socket.socket:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.bind(("eth0", 0x88B5))
        s.settimeout(1)
        return s
    return in_netns(ns, make)


def _delete_wan() -> None:
    with IPRoute() as ip:
        ip.link("del", index=ip.link_lookup(ifname="wan")[0])


def _through(client: socket.socket, server: socket.socket, numbers: list[bytes]) -> list[bytes]:
    head = bytes.fromhex("020000000001" "020000000002" "88b5")
    for number in numbers:
        client.send(head + number + bytes(38))
    came = []
    with contextlib.suppress(TimeoutError):
        while len(came) < len(numbers):
            came.append(server.recv(2048)[14:22])
    return came
