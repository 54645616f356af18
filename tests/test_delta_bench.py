"""The benchmark of encoded epochs runs, and ends with equal arenas."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_tiny() -> None:
    run = runpy.run_path(str(Path(__file__).parent / "bench" / "bench_delta.py"))["run"]
    row = run(bursts=30, flows=300, nbytes=64)
    assert row["equal"]
    assert 0 < row["wire_ratio"] < row["plain_wire_ratio"]
    assert 0 < row["wire_frame_ratio"] < 1 < row["plain_wire_frame_ratio"]
