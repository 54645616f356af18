"""The active's process is killed, by SIGKILL and by SIGSEGV in turn, in profile host: the outage, and how soon protection is back.

Limit of the outage: the kernel's word, which the detection of a receipt does not hold: death itself, counted from the signal.
Limit of protection: the state over the bare channel. The start of the new standby's process is reported apart.
"""

from __future__ import annotations

import statistics

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.takeovers import NEAR_MS, Plan, describe, flows, run, times
from nfckpt.bench.work import line_writer, segments, udp_frame

KEYS = ("crash_outage_ms_p50", "crash_outage_ms_p99", "reprotect_ratio")
RECORD_BYTES = 256 * 4100 - 4096        # of a group of pages
ARENA_BYTES = 1 << 24


def measure(scale: Scale) -> list[Figure]:
    found = run(Plan(ways=["kill", "segv"], times=times(scale), flows=flows(scale), frames_s=scale.small(25_000, 2_000)), scale)
    outages = [us / 1e3 for us in found.outages_us()]
    p50, p99 = statistics.median(outages), outages[min(len(outages) - 1, len(outages) * 99 // 100)]
    steps = ", ".join(f"{name} {found.step_us(name):,.0f}" for name in found.each[-1].receipt["steps_us"])
    by_way = ", ".join(f"{way} {statistics.median(found.outages_us(way)) / 1e3:.2f}" for way in found.plan.ways if found.outages_us(way))
    told = statistics.median(t.told_us for t in found.each)
    near = statistics.median(t.near_us for t in found.each) / 1e3
    note = f"median ms {by_way}; {near:.2f} of frames sent within {NEAR_MS} ms, before the next standby comes; median µs from the signal to the kernel's word {told:,.0f}, then the receipt's steps: {steps}"
    idle = sorted(t.idle_us / 1e3 for t in found.each)
    what = "ms: the largest delay of such a window in which nothing ended"
    figures = [Figure(KEYS[0], p50, (outages[len(outages) // 4], outages[3 * len(outages) // 4]), limit=statistics.median(idle), limit_what=what,
                      **describe(found, note)),
               Figure(KEYS[1], p99, limit=idle[len(idle) * 99 // 100], limit_what=what, **describe(found, f"of {len(outages)} takeovers"))]
    bytes_s = _channel_bytes_s(scale)
    ratios = sorted(t.sync_us / 1e6 / (found.state_bytes / bytes_s) for t in found.each)
    skew = found.plan_skew_us
    note = (f"{found.state_bytes >> 20} MiB of state, {statistics.median(t.sync_us for t in found.each) / 1e3:.1f} ms from hello to protected, of which "
            f"{skew / 1e3:.0f} ms or twice as long the tap waits for its skew; {statistics.median(t.start_us for t in found.each) / 1e3:.0f} ms before that "
            "for the process to start")
    return [*figures, Figure(KEYS[2], statistics.median(ratios), (ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]),
                             **describe(found, note) | {"limit": bytes_s / 2**30, "limit_what": "GiB/s of the bare channel"})]


def _channel_bytes_s(scale: Scale) -> float:
    with segments([udp_frame(9)]) as s, Pair(line_writer(ARENA_BYTES), s.ports, arena_bytes=ARENA_BYTES, burst=32, window=16,
                                             ring_bytes=16 << 20) as pair:
        return RECORD_BYTES * pair.pings(RECORD_BYTES, 8, scale.small(500, 50) / 1000)


