"""The detector's promises, over silences and holes written out in ms."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nfckpt.config import Bounds
from nfckpt.failover.detector import Detector, Verdict

MS = 1_000_000


def run(detector: Detector, looks: Iterable[tuple[int, int]]) -> list[tuple[int, Verdict]]:
    """(look, heard) in ms → the verdict at each look."""
    return [(at, detector.looked(at * MS, heard * MS)) for at, heard in looks]


def steady(since: int, until: int) -> list[tuple[int, int]]:
    """A peer that beats every 10 ms, looked at every millisecond."""
    return [(t, t // 10 * 10) for t in range(since, until)]


def test_silence_is_late_and_then_death() -> None:
    d = Detector(Bounds(), 0)
    run(d, steady(0, 1000))
    seen = run(d, ((t, 990) for t in range(1000, 1200)))
    assert seen[0][1] is Verdict.ALIVE
    assert next(t for t, v in seen if v is Verdict.LATE) == 990 + 21
    assert next(t for t, v in seen if v is Verdict.DEAD) == 990 + 101 and d.bound_ns == 100 * MS
    assert (d.lates, d.alarms) == (1, 0)


def test_a_loop_that_was_away_accuses_nobody() -> None:
    """Both nodes stood still, as when a hypervisor stops the machine, and this one goes on first."""
    d = Detector(Bounds(), 0)
    run(d, steady(0, 1000))
    assert d.looked(1900 * MS, 990 * MS) is not Verdict.DEAD
    assert run(d, ((t, 990) for t in range(1901, 1950)))[-1][1] is not Verdict.DEAD
    assert d.looked(1951 * MS, 1950 * MS) is Verdict.ALIVE and d.alarms == 0


def test_holes_lengthen_the_bound_for_a_minute_and_not_beyond_its_limit() -> None:
    d = Detector(Bounds(hang_ms_max=400), 0)
    run(d, steady(0, 1000))
    d.looked(1080 * MS, 1080 * MS)                  # 81 ms after the last look, of which 3 are a look
    assert d.hole_ns == 78 * MS and d.bound_ns == 4 * 78 * MS
    run(d, steady(1081, 40_000))
    assert d.bound_ns == 4 * 78 * MS
    run(d, steady(40_000, 65_000))
    assert d.bound_ns == 100 * MS
    d.looked(65_900 * MS, 65_900 * MS)
    assert d.bound_ns == 400 * MS


def test_an_alarm_that_was_none_is_counted() -> None:
    d = Detector(Bounds(), 0)
    run(d, steady(0, 100))
    run(d, ((t, 90) for t in range(100, 300)))
    assert d.verdict is Verdict.DEAD
    assert d.looked(300 * MS, 299 * MS) is Verdict.ALIVE and d.alarms == 1
    assert d.describe()["peer_alarms"] == 1 and d.bound_ns == 400 * MS


@settings(max_examples=200, deadline=None)
@example([(1, False), (1, False), (5, False)], 1, 5)
@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=60), st.integers(1, 300), st.integers(1, 800))
def test_dead_means_looked_for_so_long(steps: list[tuple[int, bool]], least: int, most: int) -> None:
    """D1, D2 against a plain count of the milliseconds in which we looked and heard nothing."""
    least = min(least, most)
    d = Detector(Bounds(hang_ms=least, hang_ms_max=most), 0)
    now = heard = looked = 0
    for pause, hears in steps:
        now += pause
        looked += min(pause, 3)
        if hears:
            heard, looked = now, min(pause, 3)
        before, verdict = d.verdict, d.looked(now * MS, heard * MS)
        assert least * MS <= d.bound_ns <= most * MS
        if verdict is Verdict.DEAD and before is not Verdict.DEAD:      # a hole seen later lengthens the bound, and takes nothing back
            assert looked * MS > d.bound_ns
    assert d.looked(now * MS, heard * MS) is d.verdict


@pytest.mark.parametrize("beat", [1, 10, 50])
def test_a_peer_that_beats_is_alive(beat: int) -> None:
    d = Detector(Bounds(beat_ms=beat, hang_ms=4 * beat), 0)
    assert {v for _, v in run(d, ((t, t // beat * beat) for t in range(5000)))} == {Verdict.ALIVE}
    assert d.bound_ns == 4 * beat * MS
