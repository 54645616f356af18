"""docs/write-your-own-nf.md, tried literally: its blocks in order, in an empty folder; what it says is printed is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_examples import ROOT

GUIDE = (ROOT / "docs" / "write-your-own-nf.md").read_text()


class Block(NamedTuple):
    section: str
    kind: str
    text: str


def blocks(text: str = GUIDE) -> list[Block]:
    out, section = [], ""
    for m in re.finditer(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        if m[1]:
            section = m[1]
        else:
            out.append(Block(section, m[2], m[3]))
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("guide") / "empty"


def environment(folder: Path) -> dict[str, str]:
    """`nfckpt` and `python` are this tree's and this interpreter's, whether it is installed or not."""
    tools = folder.parent / "bin"
    tools.mkdir(exist_ok=True)
    for name, words in (("nfckpt", "-m nfckpt"), ("python", "")):
        if not (tools / name).exists():         # once: a shell in the background may be about to read it
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "XDG_RUNTIME_DIR": str(folder.parent)}


def follow(block: Block, folder: Path) -> None:
    if block.kind != "console":
        name = re.match(r"# (\S+\.\w+)\n", block.text)
        assert name, f"a block of {block.section!r} that names no file:\n{block.text}"
        (folder / name[1]).write_text(block.text)
        return
    for part in block.text.split("$ ")[1:]:
        command, _, said = part.partition("\n")
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        wanted, printed = ([re.sub(" +", " ", line).strip() for line in text.rstrip("\n").split("\n")] for text in (said, done.stdout))
        assert len(wanted) == len(printed) and all(
            fnmatchcase(p, re.sub(r"([\[*?])", r"[\1]", w).replace("…", "*")) for w, p in zip(wanted, printed, strict=True)), \
            f"$ {command}\nthe guide: {said}\nit printed: {done.stdout}"


def test_every_block_is_one_we_can_follow() -> None:
    assert {b.kind for b in blocks()} == {"console", "python", "cython", "toml"}
    assert GUIDE.count("```") == 2 * len(blocks())


@pytest.mark.timeout(300)
def test_from_an_empty_folder(folder: Path) -> None:
    folder.mkdir()
    for block in blocks():
        if not block.section.startswith("Configuration"):
            follow(block, folder)


@pytest.mark.box
@pytest.mark.timeout(200)
def test_on_linux_devices(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    mine = [b for b in blocks() if b.section.startswith("Configuration")]
    for block in [b for b in blocks() if b.text.startswith("# wire.py")] + mine:
        follow(block, folder)
