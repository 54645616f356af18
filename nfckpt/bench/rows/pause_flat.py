"""Does a large arena make a pause longer? The same lines are written in an arena of 1 GiB and in one of 64 MiB; each pause is one
capture. Both follow with a standby in the same process, without a channel.
"""

from __future__ import annotations

import numpy as np

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.loopback import Loopback
from nfckpt.bench.slices import pairs
from nfckpt.bench.work import line_writer
from nfckpt.native.bench import Generator, timed_cut, write_lines

KEYS = ("pause_flat_ratio",)
LINES = 1024


def measure(scale: Scale) -> list[Figure]:
    small, large = scale.small(64 << 20, 1 << 20), scale.small(1 << 30, 4 << 20)
    lines = np.random.default_rng(1).permutation(np.arange(64, small // 64, dtype=np.uint32))[:LINES]
    two = [Loopback(line_writer(n), [Generator([bytes(64)], 1)], n) for n in (large, small)]

    def pause(which: Loopback) -> float:
        took = []
        for _ in range(scale.small(20, 3)):
            write_lines(which.arena, lines)
            took.append(timed_cut(which.path))
            which.commit()
        return float(np.median(took))

    both = pairs(lambda: pause(two[0]), lambda: pause(two[1]), scale.pairs, seconds=scale.seconds, tick=scale.tick)
    return [Figure.of(KEYS[0], both.spread(lambda a, b: a / b), limit=1.0, limit_what="no difference",
                      digest=two[0].equal()[:32] + two[1].equal()[:32], note=f"pause {both.spread(lambda _, b: b).median / 1000:.2f} µs at the smaller",
                      settings={"arena_bytes": [large, small], "lines": LINES, "tracker": "barrier"})]
