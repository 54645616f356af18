"""docs/operate.md, tried literally, from an empty folder to the end of its pair; and what it names exists."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_examples import ROOT
from tests.test_guide import blocks, follow

PAGE = (ROOT / "docs" / "operate.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "empty"
    folder.mkdir()
    yield folder
    for name in ("standby.pid", "run.pid", "segment.pid"):              # after a failure something may run on
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((folder / name).read_text()), signal.SIGKILL)


@pytest.mark.timeout(600)
def test_the_page(folder: Path) -> None:
    assert PAGE.count("```") == 2 * len(blocks(PAGE))
    for block in blocks(PAGE):
        follow(block, folder)


def test_every_event_of_the_code_is_on_the_page() -> None:
    table = PAGE[PAGE.index("| event | says |"):PAGE.index("## Hooks")]
    listed = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if "|" in row else "")}
    said = set()
    for path in (ROOT / "nfckpt").rglob("*.py"):
        if path.parts[-2] in ("node", "replica", "deploy", "observe", "failover"):
            said |= set(re.findall(r'(?:_report|_event|Event|\.say|self\._say|_say)\(\s*"(\w+)"', path.read_text()))
    assert said and said - {"hello"} == listed, said ^ listed


def test_every_metric_of_the_page_exists() -> None:
    source = (ROOT / "nfckpt" / "observe" / "metrics.py").read_text()
    for name in re.findall(r"`nfckpt_(\w+?)(?:_total)?(?:\{[^`]*\})?`", PAGE):
        assert re.search(rf'"{name}"', source) or name.startswith("port_"), name
