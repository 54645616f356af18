"""Frames that the app does not survive: one written outcome for each way to go wrong, in real pairs under traffic.

| the app             | the active                                  | its standby, after the takeover                                  |
|---------------------|---------------------------------------------|------------------------------------------------------------------|
| raises              | ends (code 8), half a burst never commits   | undoes, quarantines the frame, goes on                            |
| stale view, written | numpy raises: the same                      | the same                                                          |
| loops for ever      | silent: fenced; ends by signal 26           | interrupted after burst_ms_max of CPU time, then as raises        |
| crashes natively    | ends by its signal                          | ends as well: the pair begins anew, blank                         |
| writes outside      | goes on                                     | `divergent`: comes back blank and is synced anew                  |
| keeps frames        | unprotectable (tests/test_pair.py)          | takes over                                                        |
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nfckpt.errors import StateError
from nfckpt.native.arena import Arena
from nfckpt.native.gate import Gate
from nfckpt.observe.quarantine import Quarantine
from nfckpt.ports.pcap import PcapReader
from nfckpt.state.state import State
from tests.native_lab import SECRET, ListPort
from tests.pair_rig import LEFT, RIGHT, PairRig, until
from tests.poison_apps import HALF, poison

BOTH = pytest.mark.parametrize("profile", ["host", "hosts"])
APP = "tests.poison_apps:"


def quarantined(rig: PairRig, frame: bytes, n: int = 1) -> list[dict[str, Any]]:
    """Send it, and wait until the survivor has taken out `n`."""
    rig.traffic.extra.append((LEFT, frame))
    return until(lambda: len(found := rig.seen("quarantined")) >= n and found, 20)


def row(rig: PairRig, name: str) -> dict[str, int]:
    return next(r["counts"] for r in rig.pair.status()[rig.active]["state"] if r["name"] == name)


@BOTH
@pytest.mark.parametrize("app, way", [("Poisoned", "raises"), ("Poisoned", "stale view"), ("Poisoned", "loops"), ("Polled", "raises")])
def test_a_second_death_on_the_same_frame(profile: str, app: str, way: str, tmp_path: Path) -> None:
    """The second node lives: nothing of the frame stays, everything else passes once, and the frame's like is dropped."""
    with PairRig(profile, APP + app, quarantine_dir=str(tmp_path / "q"), loop_ms_max=1000) as rig:
        until(lambda: rig.traffic.received[LEFT] > 50)
        old, frame = rig.active, poison(way)
        (event,) = quarantined(rig, frame)
        assert event["node"] != old and event["term"] == 2
        assert rig.protected(2, 20) != old
        for _ in range(3):                                  # as a sender that hears nothing
            rig.traffic.extra.append((LEFT, frame))
        until(lambda: rig.pair.status()[rig.active]["agent"]["quarantined"] == 3)
        rig.check()
        assert rig.term == 2 and row(rig, "half") == {"poison": 0} and HALF not in rig.traffic.other
        assert rig.pair.status()[rig.active]["quarantined"] == 1
        (receipt,) = rig.receipts(1)
        assert (receipt["quarantined"], receipt["exact"], receipt["doubled"]) == (1, True, 0)
        (ended,) = rig.seen("exited")
        expected = {"host": -9, "hosts": -signal.SIGVTALRM}[profile] if way == "loops" else 8
        assert ended["node"] == old and ended["code"] == expected
        reader = PcapReader(event["pcap"])
        assert reader.read()[0] == frame and reader.read() is None          # type: ignore[index]
        text = Path(event["pcap"]).with_suffix(".txt").read_text()
        said = {"raises": "cannot read this frame", "stale view": "read-only", "loops": "burst_ms_max"}[way]
        assert said in text and "poison_apps.py" in text and event["key"] in text and said in event["error"]
        assert (tmp_path / "q").stat().st_mode & 0o777 == 0o700 and Path(event["pcap"]).stat().st_mode & 0o777 == 0o600


def test_the_survivor_is_as_good_as_any_active(tmp_path: Path) -> None:
    """Killed after a quarantine, its own standby has all of its state."""
    with PairRig("host", APP + "Poisoned", quarantine_dir=str(tmp_path)) as rig:
        quarantined(rig, poison("raises"))
        rig.protected(2)
        time.sleep(0.05)
        rig.kill_active()
        rig.protected(3)
        rig.check()
        assert row(rig, "half") == {"poison": 0}


def test_several_in_one_replay(tmp_path: Path) -> None:
    with PairRig("host", APP + "Poisoned", quarantine_dir=str(tmp_path)) as rig:
        for n in range(3):
            rig.traffic.extra.append((LEFT if n else RIGHT, poison("raises", n)))
        assert sorted(e["port"] for e in quarantined(rig, poison("raises", 3), 4)) == [0, 0, 0, 1]
        rig.protected(2)
        rig.check()
        assert rig.receipts(1)[0]["quarantined"] == 4 and len(list(tmp_path.glob("*.pcap"))) == 4


def test_more_than_may_be_quarantined_stop_the_node() -> None:
    """Q3: then the pair begins anew, blank."""
    with PairRig("host", APP + "Poisoned", quarantine_frames_max=1) as rig:
        for n in range(3):
            rig.traffic.extra.append((LEFT, poison("raises", n)))
        until(lambda: len(rig.seen("active", blank=True)) == 2, 20)
        assert len(rig.seen("quarantined")) == 1 and [e["code"] for e in rig.seen("exited")] == [8, 8]


@BOTH
def test_a_native_crash_takes_both(profile: str) -> None:
    """No process survives it, wherever it happens: the pair begins anew, and serves."""
    with PairRig(profile, APP + "Poisoned") as rig:
        rig.traffic.extra.append((LEFT, poison("crashes")))
        until(lambda: len(rig.seen("active", blank=True)) == 2, 20)
        rig.protected(3, 20)
        assert [e["code"] for e in rig.seen("exited")][:2] == [-signal.SIGSEGV] * 2
        until(lambda at=rig.traffic.received[LEFT]: rig.traffic.received[LEFT] > at + 200)
        assert not rig.seen("quarantined")


@BOTH
def test_a_write_outside_is_found_and_the_standby_synced_anew(profile: str) -> None:
    with PairRig(profile, APP + "Poisoned") as rig:
        active, standby = rig.active, rig.standby
        rig.traffic.extra.append((LEFT, poison("outside")))
        until(lambda: rig.seen("divergent", standby), 20)
        (ended,) = until(lambda: rig.seen("exited", standby))
        assert ended["code"] == 6
        until(lambda: len(rig.seen("protected")) == 2)
        assert rig.active == active and rig.term == 1
        rig.check()


# ── what it is made of ───────────────────────────────────────────────────────────────────────────

def test_undo_leads_back_to_the_instant() -> None:
    arena = Arena(1 << 20)
    state = State(arena, seed=SECRET)
    words = state.array("words", "u8", (20_000,))
    counts = state.counters("counts", ["a"])
    state.seal()
    words[:] = 5
    counts.add("a", 3)
    before = arena.digest()
    arena.begin_undo()
    for step in (1, 700, 3):                    # many pages, some of them again
        words[::step] = step
        counts.add("a", step)
    assert arena.digest() != before
    arena.undo()
    assert arena.digest() == before and arena.dirty_lines() == 0 and counts["a"] == 3
    words[17] = 9                               # it is still undoable, from the same instant
    arena.undo()
    assert arena.digest() == before
    words[17] = 9
    arena.begin_undo()                          # a new instant
    words[18] = 9
    arena.undo()
    assert (int(words[17]), int(words[18])) == (9, 5)
    arena.end_undo()
    words[18] = 1
    with pytest.raises(Exception, match="nothing was saved"):
        arena.undo()


def test_marks_taken_in_between_and_whole_pages_are_undone_as_well() -> None:
    """Structures mark single lines, and pages at once; a sync in between takes marks: a page is then saved twice."""
    arena = Arena(1 << 20)
    state = State(arena, seed=SECRET)
    words = state.array("words", "u8", (20_000,))
    state.seal()
    words[:] = 5
    before = arena.digest()
    arena.begin_undo()
    for value in (6, 7):
        words[3] = value
        words[100:15_000] = value
        words[3] = value + 10
        arena.forget_writes()
    arena.undo()
    assert arena.digest() == before
    arena.end_undo()


@pytest.mark.parametrize("tracker", ["mmu", "compare"])
def test_what_cannot_be_undone_is_not_replayed_with_care(tracker: str) -> None:
    """Both nodes end, as at any exception: the tracker finds a write after it was made."""
    arena = Arena(1 << 20)
    state = State(arena, seed=SECRET)
    state.array("late", "u8", (64,), tracker=tracker)
    with pytest.raises(StateError, match="cannot be undone"):
        arena.begin_undo()
    with pytest.raises(StateError, match="as long as its arena lives"):
        arena.forget_regions()
    with PairRig("host", APP + "PoisonedLate", app_args={"tracker": tracker}) as rig:
        rig.traffic.extra.append((LEFT, poison("raises")))
        until(lambda: len(rig.seen("active", blank=True)) == 2, 20)
        assert not rig.seen("quarantined") and [e["code"] for e in rig.seen("exited")][:2] == [8, 8]
        rig.protected(3, 20)


def test_a_fresh_app_declares_over_what_is_stored() -> None:
    """It has the same layout, and is sealed to everybody else; a declaration that differs is refused."""
    arena, layouts = Arena(1 << 20), set()
    for _ in range(2):
        arena.forget_regions()
        state = State(arena, seed=SECRET)
        counts = state.counters("counts", ["a"])
        state.array("words", "u8", (100,))
        state.seal()
        counts.add("a", 1)
        layouts.add(arena.layout_digest())
        with pytest.raises(StateError, match="declared after start"):
            arena.region("more", 1)
        with pytest.raises(StateError, match="sealed"):
            Arena(fd=os.dup(arena.fd))
    assert counts["a"] == 2 and len(layouts) == 1
    arena.forget_regions()
    with pytest.raises(StateError, match="does not hold"):
        State(arena, seed=SECRET).array("counts", "u8", (100,))


def test_a_gate_forgets_what_was_held_since() -> None:
    from nfckpt.native.agent import Agent
    port = ListPort()
    gate = Gate([port], 256, 1 << 20)
    agent = Agent([port], Arena(1 << 16), gate, SECRET)
    gate.open()
    for n in range(3):
        agent.emit(0, bytes([n]) * 100)
    gate.release()
    gate.keep_back(True)
    agent.emit(0, b"3" * 100)
    at = gate.tail
    for _ in range(500):                        # more than its bytes' ring would hold, were they not given back
        for n in range(20):
            assert agent.emit(0, bytes([n]) * 1500)
        gate.retract(at)
    agent.emit(0, b"4" * 100)
    gate.release()
    assert port.left == [bytes([0]) * 100, bytes([1]) * 100, bytes([2]) * 100, b"3" * 100, b"4" * 100]
    with pytest.raises(Exception, match="not all held"):
        gate.retract(at)


def test_a_quarantined_key_runs_out() -> None:
    from nfckpt.native.agent import Agent
    from nfckpt.native.burst import Burst
    from nfckpt.native.tap import Tap
    port = ListPort()
    agent = Agent([port], Arena(1 << 16), Gate([port]), SECRET)
    tap = Tap([port], SECRET, 1)
    tap.open()
    tap.offer(b"p" * 60, 0, 1)
    _, _, key, frame = tap.oldest_input()       # type: ignore[misc]
    assert frame == b"p" * 60
    burst = Burst()

    def handed() -> list[bytes]:
        burst.reset()
        for f in (b"a" * 60, b"p" * 60, b"b" * 60):
            port.arrive(f, 1)
        agent.rx_burst(burst)
        frames = burst.frames()
        agent.drop(burst)
        return frames

    agent.recording = True
    agent.quarantine(key, time.monotonic_ns() + 10**12)
    assert handed() == [b"a" * 60, b"b" * 60]
    assert agent.names.n == 3 and agent.counters()["quarantined"] == 1 and agent.handed_out == 2    # named: the standby's tap lets go
    agent.quarantine(key + 1, time.monotonic_ns() - 1)
    assert agent.n_poisons == 2
    handed()
    assert agent.n_poisons == 1
    for n in range(63):
        agent.quarantine(n, 2**63)
    with pytest.raises(Exception, match="64 frames"):
        agent.quarantine(64, 2**63)


def test_the_folder_has_a_bound_and_is_nobody_elses(tmp_path: Path) -> None:
    q = Quarantine(str(tmp_path / "q"), 1000)
    assert q.add("one", b"x" * 100, "why") and not q.said
    assert q.add("two", b"x" * 900, "why") == "" and "quarantine_bytes_max is 1000" in q.said
    assert sorted(p.name for p in (tmp_path / "q").iterdir()) == ["one.pcap", "one.txt"]
    (tmp_path / "q").chmod(0o755)
    assert q.add("three", b"x", "") == "" and "no private folder" not in q.said and "not a private folder" in q.said
    file = tmp_path / "file"
    file.write_text("")
    assert Quarantine(str(file), 1000).add("four", b"x", "") == ""
