"""The benchmark runs, and what it timed was right."""
import runpy
from pathlib import Path


def test_benchmark_runs_tiny():
    run = runpy.run_path(str(Path(__file__).parent / "bench" / "bench_state.py"))["run"]
    figures, checked = run(500, seconds=0.002)
    assert checked == "500 flows found" and all(ns > 0 for ns in figures.values()) and len(figures) == 12
