"""How long a capture takes, beside the plain copy that no capture can do without.

    python tests/bench/bench_trackers.py [slices]

    pause_ratio        capture ÷ gather copy of the same dirty lines, 0.1, 1 and 10 % of 64 MiB, uniform; the worst
    pause_flat_ratio   capture at 1 GiB ÷ at 64 MiB, the same dirty lines: 1,024 in the first 64 MiB of both
    mmu_pause_ratio    capture of pages an mmu region's writer dirtied ÷ (scan + copy of as many pages in a mapping like it); worst
                       of 0.1, 1 and 10 % of the pages of 64 MiB

Paired: in each slice both sides run in turn, best of three each; the figure is the median of the slices' ratios. `us` rows
are minima over all slices.
"""

from __future__ import annotations

import mmap
import os
import platform
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nfckpt.native.arena import Arena
from nfckpt.native.bench_pause import ScanAndCopy, capture_ns, gather_ns
from nfckpt.native.epoch import EpochRecord, EpochWriter, Names
from nfckpt.native.gate import Gate
from nfckpt.ports.memory import MemoryHub

SECRET = bytes(range(1, 33))
SHARES = (0.001, 0.01, 0.1)
Lines = NDArray[np.uint32]


class Side:
    """An arena with one region over all of it but the first page, and what a capture needs."""

    def __init__(self, mib: int, tracker: str, gate: Gate) -> None:
        self.arena = Arena(mib << 20)
        self.first = self.arena.region("all", (mib << 20) - 4096, tracker=tracker, fallback=None) // 64
        self.arena.seal()
        self.arena.forget_writes()
        self.writer, self.names, self.gate = EpochWriter(SECRET), Names(1), gate
        self.record = np.zeros((mib << 20) * 68 // 64 + (1 << 20), np.uint8)
        self.marked = tracker == "barrier"

    def capture(self, lines: Lines) -> int:
        return capture_ns(self.writer, self.arena, self.gate, self.names, lines, self.record, self.marked)

    def check(self, standby: Arena) -> bool:
        """Does one more epoch of every byte written bring a copy level?"""
        memory = bytearray(self.writer.build(self.arena, self.gate, self.names, 1, 1, 1, 0, 0, 0))
        EpochRecord(memory, standby, 1).swap(standby)
        return np.array_equal(self.arena.view(), standby.view())


def paired(a: Callable[[], int], b: Callable[[], int], slices: int) -> tuple[float, float, float]:
    """(median of a/b, least a, least b)"""
    got = np.array([[min(a() for _ in range(3)), min(b() for _ in range(3))] for _ in range(slices)], float)
    return float(np.median(got[:, 0] / got[:, 1])), *map(float, got.min(0))


def run(slices: int = 40, mib: int = 64, big_mib: int = 1024) -> tuple[dict[str, float], str]:
    """Figures by name, and what was checked."""
    rng = np.random.default_rng(1)
    figures: dict[str, float] = {"pause_ratio": 0, "pause_flat_ratio": 0, "mmu_pause_ratio": 0}
    with MemoryHub(2, 64) as hub, hub.open(0) as port:
        gate = Gate([port], 8, 1 << 16)
        small, big, mmu = Side(mib, "barrier", gate), Side(big_mib, "barrier", gate), Side(mib, "mmu", gate)
        out = np.zeros(mib << 20, np.uint8)
        for side in (small, mmu):                               # memory that exists, as in a running app
            side.capture(np.arange(side.first, side.arena.size // 64, dtype=np.uint32))
        total = (mib << 20) // 64
        for share in SHARES:
            lines = rng.permutation(np.arange(64, total, dtype=np.uint32))[:max(1, round(total * share))]
            ratio, a, b = paired(lambda x=lines: small.capture(x), lambda x=lines: gather_ns(small.arena, x, out), slices)
            figures["pause_ratio"] = max(figures["pause_ratio"], ratio)
            figures |= {f"pause_ratio {share:.1%}": ratio, f"us capture {share:.1%}": a / 1000, f"us gather {share:.1%}": b / 1000}
        lines = rng.permutation(np.arange(64, total, dtype=np.uint32))[:1024]
        figures["pause_flat_ratio"], a, b = paired(lambda: big.capture(lines), lambda: small.capture(lines), slices)
        figures |= {"us 1,024 lines, big arena": a / 1000, "us 1,024 lines, small arena": b / 1000}
        fd = os.memfd_create("bench")
        os.ftruncate(fd, mib << 20)
        plain = ScanAndCopy(mmap.mmap(fd, mib << 20))
        os.close(fd)
        plain.ns(np.arange(total, dtype=np.uint32)[::64].copy(), out)
        for share in SHARES:
            lines = rng.permutation(np.arange(1, total // 64, dtype=np.uint32))[:max(1, round(total / 64 * share))] * 64
            ratio, a, b = paired(lambda x=lines: mmu.capture(x), lambda x=lines: plain.ns(x, out), slices)
            figures["mmu_pause_ratio"] = max(figures["mmu_pause_ratio"], ratio)
            figures |= {f"mmu_pause_ratio {share:.1%}": ratio, f"us mmu capture {share:.1%}": a / 1000,
                        f"us scan and copy {share:.1%}": b / 1000}
        equal = True
        for side in (small, mmu):
            standby = Arena(side.arena.size)
            standby.write_bytes(0, side.arena.view().tobytes())
            for n in lines.tolist():
                (side.arena.write_bytes(64 * n, b"changed"))
            equal &= side.check(standby)
    return figures, "arenas equal" if equal else "ARENAS DIFFER"


if __name__ == "__main__":
    got, checked = run(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
    print(f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}; {checked}")
    for name, value in got.items():
        print(f"{name:32s} {value:10.2f}")
