"""Packaging: a clean copy of the tree → sdist → wheel → a fresh virtual environment, used from outside the tree.

One build, without optimisation (what is tried here is what is in the box), one environment. Nothing is downloaded: the new
environment sees the dependencies of this one through a .pth, which does not bring an editable nfckpt along.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_examples import EXAMPLES, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.timeout(400)
NOT_THE_TREE = ("*.so", "*.c", "*.egg-info", "__pycache__", "build", "dist", ".git", ".venv", ".*_cache", ".hypothesis", "node_modules")


class Box(NamedTuple):
    python: Path                # of the new environment
    site: Path                  # where nfckpt lies in it
    here: Path                  # an empty folder to work in
    wheel: list[str]            # names in it
    sdist: list[str]            # names in it, without the leading folder


def sh(*command: object, cwd: Path, timeout_s: float = 60, codes: tuple[int, ...] = (0,)) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | {"CFLAGS": "-O0 -g0"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode in codes, f"{command}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    room = tmp_path_factory.mktemp("wheel")
    tree = Path(shutil.copytree(ROOT, room / "tree", symlinks=True, ignore=shutil.ignore_patterns(*NOT_THE_TREE)))
    sh(sys.executable, "-m", "build", "--no-isolation", "--outdir", room / "dist", tree, cwd=room, timeout_s=300)
    (sdist,), (wheel,) = (room / "dist").glob("*.tar.gz"), (room / "dist").glob("*.whl")
    sh(sys.executable, "-m", "venv", "--without-pip", room / "venv", cwd=room)
    python = room / "venv" / "bin" / "python"
    site = Path(sh(python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))", cwd=room).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("platlib") + "\n")
    sh(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel, cwd=room)
    here = room / "elsewhere"
    here.mkdir()
    with zipfile.ZipFile(wheel) as w, tarfile.open(sdist) as s:
        names = [m.name.partition("/")[2] for m in s.getmembers() if m.isfile()]
        yield Box(python, site / "nfckpt", here, w.namelist(), names)
    shutil.rmtree(room, ignore_errors=True)


def test_what_is_in_the_wheel(box: Box) -> None:
    native = [n for n in box.wheel if n.startswith("nfckpt/native/")]
    modules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    assert len([n for n in native if n.endswith(".so")]) == len(modules)
    sources = ROOT / "cython" / "nfckpt" / "native"
    assert {Path(n).name for n in native if n.endswith((".pxd", ".pyi"))} == {p.name for p in sources.iterdir() if p.suffix in (".pxd", ".pyi")}
    assert "nfckpt/py.typed" in box.wheel and any(n.endswith("licenses/LICENSE") for n in box.wheel)
    assert not [n for n in box.wheel if n.endswith((".c", ".pyx", ".o"))]
    assert {n.split("/")[0].split("-")[0] for n in box.wheel} == {"nfckpt"}     # no tests, no examples at the top


def test_what_is_in_the_sdist(box: Box) -> None:
    native = ROOT / "cython" / "nfckpt" / "native"
    wanted = [f"nfckpt/native/{p.name}" for p in native.iterdir() if p.suffix in (".pyx", ".pxd", ".pyi", ".py")]
    wanted += [str(p.relative_to(ROOT)) for top in ("nfckpt", "docs", "examples", "tests") for p in (ROOT / top).rglob("*")
               if p.suffix in (".py", ".pyx", ".md", ".toml", ".typed") and p.is_file() and not {"build", ".hypothesis"} & set(p.parts)]
    wanted += ["LICENSE", "Makefile", "pyproject.toml"]
    assert sorted(set(wanted) - set(box.sdist)) == []
    assert not [n for n in box.sdist if n.endswith((".c", ".so", ".pyc"))]


def test_every_module_can_be_imported_from_it(box: Box) -> None:
    code = """
import importlib, pkgutil, nfckpt
names = [m.name for m in pkgutil.walk_packages(nfckpt.__path__, "nfckpt.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(nfckpt.__file__, nfckpt.__version__, len(names))
"""
    file, version, count = sh(box.python, "-c", code, cwd=box.here).split()
    assert Path(file).parent == box.site
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert int(count) > 80


def test_the_command(box: Box) -> None:
    nfckpt = box.python.with_name("nfckpt")
    assert "doctor" in sh(nfckpt, "--help", cwd=box.here)
    assert sh(nfckpt, "version", cwd=box.here).startswith("nfckpt ")
    assert "native code " in sh(nfckpt, "doctor", cwd=box.here, codes=(0, 1))      # 1: it ran, and this machine lacks something
    (box.here / "pair.toml").write_text(sh(nfckpt, "config", "example", cwd=box.here))
    assert "good" in sh(nfckpt, "config", "check", "pair.toml", cwd=box.here)


def test_an_example(box: Box) -> None:
    script = shutil.copy(EXAMPLES / "rate_limiter.py", box.here)
    assert "each once" in sh(box.python, script, cwd=box.here)


def test_a_package_that_cimports_it(box: Box) -> None:
    package = shutil.copytree(EXAMPLES / "native_counter", box.here / "native_counter", ignore=shutil.ignore_patterns(*NOT_THE_TREE))
    sh(sys.executable, "-m", "pip", "--python", box.python, "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", package,
       cwd=box.here, timeout_s=120)
    shutil.copy(EXAMPLES / "native_counter" / "run.py", box.here)
    assert "each counted once" in sh(box.python, "run.py", cwd=box.here)
