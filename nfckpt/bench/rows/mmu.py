"""A pause with the mmu tracker beside what it cannot do without: the scan, and a copy of the same pages."""

from __future__ import annotations

from nfckpt.bench.figure import Figure, Scale

KEYS = ("mmu_pause_ratio",)


def measure(scale: Scale) -> list[Figure]:
    return [Figure.missing(KEYS[0], "no mmu tracker in this version")]
