"""The public surface: every name is there, and none is loaded before it is used."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nfckpt

HEAVY = ["numpy", "ray", "msgspec", "pyroute2", "scapy", "typer", "nfckpt.native.arena"]


def test_every_name() -> None:
    for name in {*nfckpt.__all__, "RayPair"}:
        if name == "RayPair" and importlib.util.find_spec("nfckpt.deploy.ray_pair") is None:
            continue            # a tree without the Ray room
        assert getattr(nfckpt, name) is not None
        assert name in dir(nfckpt)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = nfckpt.nothing_like_it


def test_importing_it_costs_next_to_nothing() -> None:
    code = ("import sys, time; t = time.perf_counter(); import nfckpt; s = time.perf_counter() - t;"
            f"print(s, [m for m in {HEAVY} if m in sys.modules]); from nfckpt import *; print('ray' in sys.modules)")
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n") for _ in range(3)]
    for first, second, *_ in runs:
        assert first.endswith(" []") and second == "False", (first, second)
    assert min(float(first.split()[0]) for first, *_ in runs) < 0.05


def test_a_missing_build_says_what_to_type(tmp_path: Path) -> None:
    native = Path(nfckpt.__file__).parent / "native"
    (tmp_path / "native").mkdir()
    shutil.copy(native / "__init__.py", tmp_path / "native")
    (tmp_path / "native" / "arena.pyx").touch()
    done = subprocess.run([sys.executable, "-c", "import native"], cwd=tmp_path, capture_output=True, text=True)
    assert "not built: arena (in the checkout, type `make ext`" in done.stderr
