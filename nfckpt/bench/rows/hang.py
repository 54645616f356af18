"""The active's process is stopped (SIGSTOP) in profile host: outage ÷ the hang bound that `status` showed just before."""

from __future__ import annotations

import statistics

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.takeovers import Plan, describe, flows, run, times

KEYS = ("hang_ratio",)


def measure(scale: Scale) -> list[Figure]:
    found = run(Plan(ways=["stop"], times=times(scale), flows=flows(scale), frames_s=scale.small(10_000, 2_000), window_ms=600), scale)
    ratios = sorted(t.outage_us / t.hang_bound_us for t in found.each)
    bounds = sorted(t.hang_bound_us / 1e3 for t in found.each)
    note = (f"outage {statistics.median(found.outages_us()) / 1e3:.1f} ms, bound {bounds[len(bounds) // 2]:.0f} ms "
            f"({bounds[0]:.0f} to {bounds[-1]:.0f})")
    return [Figure(KEYS[0], statistics.median(ratios), (ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]), **describe(found, note))]
