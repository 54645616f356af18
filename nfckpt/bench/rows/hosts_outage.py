"""The active's machine dies in profile hosts (all links down, then its process, no FIN): outage ÷ (hang bound + lease)."""

from __future__ import annotations

import statistics

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.takeovers import Plan, describe, flows, run, times
from nfckpt.config import Bounds

KEYS = ("hosts_outage_ratio",)


def measure(scale: Scale) -> list[Figure]:
    found = run(Plan(ways=["machine"], times=times(scale), flows=flows(scale), frames_s=scale.small(10_000, 2_000), profile="hosts",
                     window_ms=900), scale)
    lease_us = 1000 * Bounds().lease_ms
    ratios = sorted(t.outage_us / (t.hang_bound_us + lease_us) for t in found.each)
    note = (f"outage {statistics.median(found.outages_us()) / 1e3:.1f} ms; bound "
            f"{statistics.median(t.hang_bound_us for t in found.each) / 1e3:.0f} ms + lease {lease_us // 1000} ms, which run at the same time")
    return [Figure(KEYS[0], statistics.median(ratios), (ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]), **describe(found, note))]
