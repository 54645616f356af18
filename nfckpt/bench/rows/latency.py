"""What protection adds to the way of a burst, beside the shortest way a record of that size can go: there, copied out, answered.

A   median time from the end of the app's call until its 32 outputs have left, protected minus unprotected
B   median round trip of a bare record of the same bytes, as many of them, both ends spinning as in A

A slice is a number of bursts and trips, not a time: one that lost its CPU for a while has as many in its median as any other.
"""

from __future__ import annotations

import time

import numpy as np

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.slices import pairs
from nfckpt.bench.work import line_writer, segments, udp_frame
from nfckpt.errors import PeerError
from nfckpt.native.bench import delays, ping

KEYS = ("latency_rtt_ratio",)
BURST = 32
TRIPS_NS_MAX = 10 * 10**9


def over(scale: Scale, tcp: bool) -> Figure:
    """The figure of one channel."""
    arena_bytes = scale.small(64 << 20, 1 << 20)
    app = line_writer(arena_bytes)
    took = np.zeros(scale.small(500, 20), np.uint32)
    with segments([udp_frame(9)]) as s, Pair(app, s.ports, arena_bytes=arena_bytes, burst=BURST, tcp=tcp) as pair:
        delays(pair.path, app, pair.burst, BURST, took)
        pair.drain()
        nbytes = pair.record_bytes()

        def median(protected: bool) -> float:
            pair.protect(protected)
            delays(pair.path, app, pair.burst, BURST, took)
            pair.drain()
            return float(np.median(took))

        def round_trip() -> float:
            pair.protect(True)
            trips = np.zeros(len(took), np.uint32)
            ping(pair.ring, nbytes, 1, len(trips), time.monotonic_ns() + TRIPS_NS_MAX, trips)
            if not trips.all():
                raise PeerError(f"{len(trips)} round trips took more than {TRIPS_NS_MAX / 1e9:.0f} s")
            return float(np.median(trips))

        both = pairs(lambda: median(True) - median(False), round_trip, scale.small(scale.pairs // 2, 3), seconds=scale.seconds / 2,
                     pids=[pair.child.pid], tick=scale.tick)
        return Figure.of(KEYS[0], both.spread(lambda a, b: a / b), limit=both.spread(lambda _, b: b / 1000).median,
                         limit_what=f"µs round trip of {nbytes} bytes", digest=pair.equal(),
                         note=f"{pair.settings['channel']}: {both.spread(lambda a, _: a / 1000).median:.2f} µs added",
                         settings={**pair.settings, "tracker": "barrier", "record_bytes": nbytes})


def measure(scale: Scale) -> list[Figure]:
    two = [over(scale, tcp) for tcp in (False, True)]
    worst = max(two, key=lambda f: f.value or 0.0)
    worst.note = "; ".join(f"{f.note}, {f.value:.2f} of {f.limit:.2f} µs" for f in two)
    return [worst]
