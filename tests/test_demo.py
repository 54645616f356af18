"""The demo for real, short: a NAT in the box, its active killed under TCP and UDP; and the referee that can say no."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest

from nfckpt.testbed.demo import Demo, verdict
from nfckpt.testbed.memory_demo import MemoryStage

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
GOOD: dict[str, Any] = {
    "profile": "hosts", "kills": 1,
    "tcp": {"connections": 20, "opened_during_outage": 1, "failed": 0, "reset": 0, "corrupt": 0, "source_changed": 0},
    "udp": {"sent": 1000, "received": 1000, "lost": 0, "duplicated": 0, "sink_overflow": 0},
    "outage_ms": [120.0], "reprotect_ms": [400.0], "epochs_committed": 100, "epochs_per_s": 50.0, "uncommitted_at_kill": [3], "receipts": [],
}


def demo(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "nfckpt", "demo", *args], cwd=ROOT, env=ENVIRONMENT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def shape(value: Any) -> Any:
    return {key: shape(part) for key, part in value.items()} if isinstance(value, dict) else type(value)


@pytest.mark.box
@pytest.mark.parametrize("profile", ["hosts", "host"])
def test_nothing_breaks(profile: str) -> None:
    with demo("--json", "--no-ray", "--profile", profile, "--kills", "1", "--connections", "20", "--udp-rate", "5000") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err and out.count("\n") == 1
    body = json.loads(out)
    assert shape(body) == shape(GOOD) and list(body) == list(GOOD)
    assert verdict(body) == [] and body["profile"] == profile and body["kills"] == 1
    assert body["tcp"]["connections"] > 20 and body["udp"]["sent"] > 5000 and body["udp"]["received"] == body["udp"]["sent"]
    assert 0 < body["outage_ms"][0] < 1000 and 0 < body["reprotect_ms"][0] < 10_000
    (receipt,) = body["receipts"]
    assert receipt["exact"] and (profile == "host" or receipt["replayed"] > 0) and receipt["proof"] is (profile == "host")
    assert receipt["uncommitted"] == body["uncommitted_at_kill"][0] and body["epochs_committed"] > 100


@pytest.mark.box
def test_an_interrupt_ends_it_and_leaves_nothing() -> None:
    with demo("--no-ray", "--kills", "100", "--connections", "20", "--udp-rate", "2000") as process:
        interrupt(process, process.stdout, "killed", 10)


def interrupt(process: subprocess.Popen[str], said: IO[str] | None, word: str, timeout_s: float) -> None:
    """Ctrl-C once a line with `word` was said: `process` ends as an interrupted one does, and with it all it had started."""
    assert said
    while word not in said.readline():
        assert process.poll() is None
    inside = children(process.pid)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=timeout_s)
    assert process.returncode == 130
    assert len(inside) > 4
    deadline = time.monotonic() + 2
    while any(Path(f"/proc/{pid}").exists() for pid in inside):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """All descendants."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children(child)]
    return found


@pytest.mark.parametrize(("part", "key"), [
    ("tcp", "failed"), ("tcp", "reset"), ("tcp", "corrupt"), ("tcp", "source_changed"),
    ("udp", "lost"), ("udp", "duplicated"), ("udp", "sink_overflow")])
def test_the_verdict_says_no(part: str, key: str) -> None:
    assert verdict(GOOD) == []
    bad = copy.deepcopy(GOOD)
    bad[part][key] = 3
    assert verdict(bad) == [f"{part}: 3 {key}"]
    assert verdict({**GOOD, "kills": 0}) == ["no kill happened"]


def test_over_memory_ports() -> None:
    report = Demo(MemoryStage("host", 2000), kills=2, run_s=0.3, ray=False).run()
    assert report.problems == [] and shape(report.body) == shape(GOOD)
    assert report.body["kills"] == 2 and [r["term"] for r in report.body["receipts"]] == [2, 3]
    assert report.body["udp"]["sent"] == report.body["udp"]["received"] > 1000


def test_a_loss_on_the_way_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaky.py").write_text(
        "from nfckpt.nf import NetworkFunction\n"
        "class Leaky(NetworkFunction):\n"
        "    ports = ('left', 'right')\n"
        "    def declare(self, state):\n"
        "        self.n = state.array('n', 'u8', 1)\n"
        "    def on_burst(self, burst, ctx):\n"
        "        n = int(self.n.view[0])\n"
        "        self.n.set(0, n + len(burst))\n"
        "        burst.send(slice(None), 1 - burst.port)\n"
        "        if n < 500 <= n + len(burst):\n"
        "            burst.drop(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = Demo(MemoryStage("host", 2000, app="leaky:Leaky"), kills=1, run_s=0.3, ray=False).run()
    assert report.body["udp"]["lost"] == 1 and report.problems == ["udp: 1 lost"]
