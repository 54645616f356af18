"""Rows of `nfckpt bench failover`, tiny: real pairs in a box, ended for real, every frame accounted for. No figure is judged."""

from __future__ import annotations

import math

import pytest

from nfckpt.bench.figure import Scale
from nfckpt.bench.rows import GROUPS, load
from nfckpt.bench.takeovers import Plan, run
from nfckpt.testbed import box

TINY = Scale(0.1, tiny=True)
boxed = pytest.mark.skipif(box.available() is not None, reason="no box here")


@boxed
@pytest.mark.parametrize("name", GROUPS["failover"])
def test_row(name: str) -> None:
    row = load(name)
    figures = row.measure(TINY)
    assert tuple(f.key for f in figures) == row.KEYS
    for f in figures:
        assert f.value is not None and math.isfinite(f.value) and f.settings
        assert f.value > 0 or f.key == "false_takeovers"
        assert f.spread is None or f.spread[0] <= f.value <= f.spread[1]


@boxed
def test_an_outage_is_what_the_receipt_says_and_more() -> None:
    """The largest delay of a frame, seen from outside, holds all steps that the survivor counted.

    (`false_takeovers` is a figure too: a machine that gives a node no core for longer than the hang bound has one.)"""
    found = run(Plan(ways=["kill"], times=2, flows=20, frames_s=2000), TINY)
    assert len(found.each) == 2 and found.false_takeovers >= 0 and found.problems == [] and found.frames > 2000
    for t in found.each:
        steps = t.receipt["steps_us"]
        assert {"detection", "grant", "fence", "settle", "apply", "start", "reemit", "replay", "announce", "total"} <= set(steps)
        assert steps["total"] == pytest.approx(sum(us for name, us in steps.items() if name not in ("total", "replay", "announce")), abs=10)
        assert t.outage_us > steps["total"] - 1000 and t.receipt["exact"]
