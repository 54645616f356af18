"""Does a large arena make a pause longer? The same lines are written in an arena of 1 GiB and in one of 64 MiB, each followed by
one capture (bench/capture.py).
"""

from __future__ import annotations

import numpy as np

from nfckpt.bench.capture import PAGE_LINES, Capture
from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.slices import pairs

KEYS = ("pause_flat_ratio",)
LINES = 1024


def measure(scale: Scale) -> list[Figure]:
    small, large = scale.small(64 << 20, 1 << 20), scale.large_bytes
    lines = np.random.default_rng(1).permutation(np.arange(PAGE_LINES, small // 64, dtype=np.uint32))[:LINES]
    two = [Capture(n) for n in (large, small)]

    def pause(which: Capture) -> float:
        took = []
        for _ in range(scale.small(20, 3)):
            which.write(lines)
            took.append(which.take())
        return float(np.median(took))

    both = pairs(lambda: pause(two[0]), lambda: pause(two[1]), scale.pairs, seconds=scale.seconds, tick=scale.tick)
    return [Figure.of(KEYS[0], both.spread(lambda a, b: a / b), limit=1.0, limit_what="no difference",
                      digest=two[0].equal()[:32] + two[1].equal()[:32], note=f"pause {both.spread(lambda _, b: b).median / 1000:.2f} µs at the smaller",
                      settings={"arena_bytes": [large, small], "lines": LINES, "tracker": "barrier", "pause": "capture alone"})]
