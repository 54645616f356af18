"""A planned switch in profile host, there and back: the largest delay of any frame."""

from __future__ import annotations

import statistics

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.takeovers import NEAR_MS, Plan, describe, flows, run, times

KEYS = ("graceful_outage_us_p50",)


def measure(scale: Scale) -> list[Figure]:
    found = run(Plan(ways=["graceful"], times=times(scale), flows=flows(scale), frames_s=scale.small(10_000, 2_000)), scale)
    outages = found.outages_us()
    steps = ", ".join(f"{name} {found.step_us(name):,.0f}" for name in found.each[-1].receipt["steps_us"])
    near = statistics.median(t.near_us for t in found.each)
    note = f"{near:,.0f} of frames sent within {NEAR_MS} ms, before the next standby comes; steps of the receipt, median µs: {steps}"
    return [Figure(KEYS[0], statistics.median(outages), (outages[len(outages) // 4], outages[3 * len(outages) // 4]),
                   statistics.median(t.idle_us for t in found.each), "µs: the largest delay of such a window without a switch", **describe(found, note))]
