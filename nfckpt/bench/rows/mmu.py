"""A capture with the mmu tracker beside what it cannot do without: the kernel's scan, and a copy of the same pages.

A   pages, uniform over 64 MiB, are written by plain stores; then one capture (bench/capture.py)
B   the same pages of a mapping like it, written, scanned and copied, and nothing else
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from nfckpt.bench.capture import PAGE_LINES, Capture
from nfckpt.bench.figure import Figure, Scale, UnavailableError
from nfckpt.bench.slices import Pairs, pairs
from nfckpt.errors import MachineError
from nfckpt.native.bench import ScanAndCopy
from nfckpt.native.mmu import probe

KEYS = ("mmu_pause_ratio",)
SHARES = (0.001, 0.01, 0.1)


def mapping(nbytes: int) -> mmap.mmap:
    """Shared memory as an arena's."""
    fd = os.memfd_create("bench")
    try:
        os.ftruncate(fd, nbytes)
        return mmap.mmap(fd, nbytes)
    finally:
        os.close(fd)


def beside_a_scan(scale: Scale, capture: Capture, plain: ScanAndCopy, into: NDArray[np.uint8], lines: NDArray[np.uint32]) -> Pairs[float, float]:
    """ns of capturing the pages of `lines`, one line each, and of scanning and copying them; least of three each."""
    def pause() -> float:
        took = []
        for _ in range(3):
            capture.write(lines)
            took.append(capture.take())
        return min(took)

    return pairs(pause, lambda: float(min(plain.ns(lines, into) for _ in range(3))), scale.small(12, 3), seconds=scale.seconds / len(SHARES),
                 tick=scale.tick)


def measure(scale: Scale) -> list[Figure]:
    try:
        probe()
    except MachineError as e:
        raise UnavailableError(e.message, e.hint) from None
    arena_bytes = scale.small(64 << 20, 4 << 20)
    pages = arena_bytes // 4096
    capture, every = Capture(arena_bytes, "mmu"), np.arange(1, pages, dtype=np.uint32) * PAGE_LINES
    capture.write(every)
    capture.take()                                              # memory that exists, here and there
    plain, into = ScanAndCopy(mapping(arena_bytes)), np.zeros(arena_bytes, np.uint8)
    plain.ns(every, into)
    rng = np.random.default_rng(1)
    found = []
    for share in SHARES:
        lines = rng.permutation(np.arange(1, pages, dtype=np.uint32))[:max(1, round(share * pages))] * PAGE_LINES
        found.append(beside_a_scan(scale, capture, plain, into, lines))
    spreads = [both.spread(lambda a, b: a / b) for both in found]
    each = ", ".join(f"{share:.1%} {spread.median:.2f} ({both.spread(lambda a, _: a).median / 1000:.1f} µs)"
                     for share, spread, both in zip(SHARES, spreads, found, strict=True))
    return [Figure.of(KEYS[0], max(spreads, key=lambda spread: spread.median), limit=1.0, limit_what="scan and copy alone", digest=capture.equal(),
                      note=f"share of pages: ratio (capture): {each}",
                      settings={"arena_bytes": arena_bytes, "tracker": "mmu", "shares": list(SHARES), "pause": "capture alone"})]
