"""Takeovers that nobody asked for, while both cores are wanted by other work all the time: ten minutes, profile host."""

from __future__ import annotations

import os

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.takeovers import Plan, describe, flows, run

KEYS = ("false_takeovers",)


def measure(scale: Scale) -> list[Figure]:
    rest_s = scale.small(round(100 * scale.seconds), 1)
    found = run(Plan(ways=["none"], times=0, flows=flows(scale), frames_s=scale.small(5_000, 1_000), rest_s=float(rest_s),
                     burn=len(os.sched_getaffinity(0))), scale)
    return [Figure(KEYS[0], float(found.false_takeovers), **describe(
        found, f"in {found.seconds:.0f} s; longest hole seen {found.hole_ms:.0f} ms, bound {found.hang_bound_ms:.0f} ms, "
        f"{found.lates} times LATE, standby lost {found.standbys_lost} times"))]
