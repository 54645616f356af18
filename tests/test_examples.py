"""Each example runs as its reader would run it: a process of its own, from the folder it lies in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


def run(script: Path, *path: Path) -> str:
    """Its output, once it has ended well. `path`: what it can import besides the tree."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}
    done = subprocess.run([sys.executable, script.name], cwd=script.parent, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_native(into: Path, work: Path, python: str = sys.executable, **env: str) -> None:
    """Install examples/native_counter into the folder `into`, built from a copy in `work`, against the nfckpt that `python` imports."""
    source = shutil.copytree(EXAMPLES / "native_counter", work / "native_counter", ignore=shutil.ignore_patterns("build", "*.c", "*-info"))
    command = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(into), str(source)]
    done = subprocess.run(command, cwd=work, env={**os.environ, **env}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_it_ends_well_and_is_short(script: Path) -> None:
    assert "kill -9 of node" in run(script)
    assert len(script.read_text().splitlines()) <= 60


def test_a_package_of_its_own_in_cython(tmp_path: Path) -> None:
    build_native(tmp_path / "site", tmp_path, PYTHONPATH=str(ROOT))
    assert "kill -9 of node" in run(EXAMPLES / "native_counter" / "run.py", tmp_path / "site")
