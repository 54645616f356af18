"""The benchmark of ports runs, and loses nothing it does not count."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "bench"))

from bench_ports import run


def test_tiny() -> None:
    results = run(seconds=0.05, rounds=100)
    assert results["memory pair"]["dropped"] == 0
    assert all(v >= 0 for figures in results.values() for v in figures.values())
