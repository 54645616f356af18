"""What a capturing poll costs beside a plain copy of the same bytes, when much was written.

A   one poll: capture and hand the record to the channel, after so many lines, uniform over 64 MiB, were written.
B   the same lines written again, then gathered in the order of a capture into a buffer that was used before, and nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.slices import pairs, quartiles
from nfckpt.bench.work import line_writer, segments, udp_frame
from nfckpt.native.bench import gather, timed_cut, write_lines

KEYS = ("pause_ratio",)
SHARES = (0.001, 0.01, 0.1)


def in_capture_order(lines: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Pages in the order of their first line in `lines`, ascending within a page."""
    _, first, which = np.unique(lines // 64, return_index=True, return_inverse=True)
    return lines[np.lexsort((lines, first[which]))]


def measure(scale: Scale) -> list[Figure]:
    arena_bytes = scale.small(64 << 20, 1 << 20)
    rng = np.random.default_rng(1)
    found = {}
    with segments([udp_frame(9)]) as s, Pair(line_writer(arena_bytes), s.ports, arena_bytes=arena_bytes, ring_bytes=32 << 20) as pair:
        for share in SHARES:
            lines = rng.permutation(np.arange(64, arena_bytes // 64, dtype=np.uint32))[:int(share * arena_bytes / 64)]
            ordered, into = in_capture_order(lines), np.zeros(len(lines) * 64, np.uint8)
            repeats = max(1, int(1000 / len(lines)))

            def pause(lines: NDArray[np.uint32] = lines, repeats: int = repeats) -> float:
                took = []
                for _ in range(repeats):
                    pair.drain()
                    write_lines(pair.arena, lines)
                    took.append(timed_cut(pair.path))
                pair.drain()
                return float(np.median(took))

            def copy(lines: NDArray[np.uint32] = lines, ordered: NDArray[np.uint32] = ordered, into: NDArray[np.uint8] = into,
                     repeats: int = repeats) -> float:
                took = []
                for _ in range(repeats):
                    pair.drain()
                    write_lines(pair.arena, lines)
                    took.append(gather(pair.arena, ordered, into))
                pair.drain()
                return float(np.median(took))

            found[share] = pairs(pause, copy, scale.small(12, 3), seconds=scale.seconds / len(SHARES), pids=[pair.child.pid], tick=scale.tick)
        digest = pair.equal()
        worst = max(found, key=lambda share: found[share].spread(lambda a, b: a / b).median)
        each = ", ".join(f"{share:.1%} {both.spread(lambda a, b: a / b).median:.2f} ({both.spread(lambda a, _: a).median / 1000:.1f} µs)"
                         for share, both in found.items())
        kept = found[worst]
        return [Figure.of(KEYS[0], quartiles([a / b for a, b in zip(kept.a, kept.b, strict=True)], kept.rejected, kept.quiet), limit=1.0,
                          limit_what="the copy itself", digest=digest, note=f"share of lines: ratio (pause): {each}",
                          settings={**pair.settings, "tracker": "barrier", "shares": list(SHARES), "pause": "capture and push"})]
