"""What a capture costs beside a plain copy of the same bytes, when much was written.

A   so many lines, uniform over 64 MiB, are written; then one capture (bench/capture.py). That is the pause: what the poll adds
B   the same lines written again, then gathered in that order into a buffer that was used before, and nothing else

The whole poll that captures, over shared memory (hash and publish in the ring are in it), is timed apart and stands in the note.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nfckpt.bench.capture import Capture
from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.slices import Pairs, pairs
from nfckpt.bench.work import line_writer, segments, udp_frame
from nfckpt.native.bench import gather, timed_cut, write_lines

KEYS = ("pause_ratio",)
SHARES = (0.001, 0.01, 0.1)


def beside_a_copy(scale: Scale, capture: Capture, lines: NDArray[np.uint32]) -> Pairs[float, float]:
    """ns of capturing `lines` and of copying them."""
    into, repeats = np.zeros(len(lines) * 64, np.uint8), max(1, 1000 // len(lines))

    def pause() -> float:
        took = []
        for _ in range(repeats):
            capture.write(lines)
            took.append(capture.take())
        return float(np.median(took))

    def copy() -> float:
        took = []
        for _ in range(repeats):
            capture.write(lines)
            took.append(gather(capture.arena, lines, into))
            capture.take()
        return float(np.median(took))

    return pairs(pause, copy, scale.small(12, 3), seconds=scale.seconds / len(SHARES), tick=scale.tick)


def whole_polls_us(arena_bytes: int, shares: list[NDArray[np.uint32]], polls: int) -> list[float]:
    """Median µs of a capturing poll that also hands its record to a ring."""
    with segments([udp_frame(9)]) as s, Pair(line_writer(arena_bytes), s.ports, arena_bytes=arena_bytes, ring_bytes=32 << 20) as pair:
        def poll(lines: NDArray[np.uint32]) -> int:
            pair.drain()
            write_lines(pair.arena, lines)
            return timed_cut(pair.path)

        medians = [float(np.median([poll(lines) for _ in range(polls)])) / 1000 for lines in shares]
        pair.equal()
        return medians


def measure(scale: Scale) -> list[Figure]:
    arena_bytes = scale.small(64 << 20, 1 << 20)
    rng = np.random.default_rng(1)
    shares = [rng.permutation(np.arange(64, arena_bytes // 64 - 1024, dtype=np.uint32))[:int(share * arena_bytes / 64)] for share in SHARES]
    capture = Capture(arena_bytes)
    found = [beside_a_copy(scale, capture, lines) for lines in shares]
    digest = capture.equal()
    polls = whole_polls_us(arena_bytes, shares, scale.small(12, 2))
    spreads = [both.spread(lambda a, b: a / b) for both in found]
    each = ", ".join(f"{share:.1%} {spread.median:.2f} ({both.spread(lambda a, _: a).median / 1000:.1f} µs, {poll:.1f} µs)"
                     for share, spread, both, poll in zip(SHARES, spreads, found, polls, strict=True))
    return [Figure.of(KEYS[0], max(spreads, key=lambda spread: spread.median), limit=1.0, limit_what="the copy itself", digest=digest,
                      note=f"share of lines: ratio (capture, whole poll with hash and push into the ring): {each}",
                      settings={"arena_bytes": arena_bytes, "tracker": "barrier", "shares": list(SHARES), "pause": "capture alone"})]
