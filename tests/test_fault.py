"""Fault points: armed, reached, struck once; every one of them reached by real processes, and survived where it says so."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfckpt.errors import ConfigError, MachineError
from nfckpt.native import fault
from nfckpt.native.fault import ACTIONS, POINTS, FaultBoard
from nfckpt.node.plan import BOARD, PLAN, join
from nfckpt.testbed.chaos.faults import points
from tests.pair_rig import NAT, PairRig, until
from tests.test_poison import APP, poison

ROOT = Path(__file__).resolve().parent.parent


def test_a_board_counts_and_strikes_once(tmp_path: Path) -> None:
    path = str(tmp_path / "board")
    board, outside = FaultBoard(path), FaultBoard(path)
    board.join()
    try:
        fault.hit("protected")
        outside.arm("protected", "delay", after=2, ms=30)
        slow = []
        for _ in range(4):
            began = time.monotonic()
            fault.hit("protected")
            slow.append(time.monotonic() - began > 0.025)
        assert slow == [False, True, False, False]
        assert outside.hits()["protected"] == 5 and outside.struck("protected")[0] == 1
        assert abs(outside.struck("protected")[1] - time.monotonic_ns()) < 10**10
        outside.arm("protected", "kill")
        outside.disarm()
        fault.hit("protected")
    finally:
        board.leave()
    fault.hit("protected")                  # nobody's board
    assert outside.hits()["protected"] == 6


@pytest.mark.parametrize(("action", "code"), [("kill", -signal.SIGKILL), ("segv", -signal.SIGSEGV), ("error", 1)])
def test_each_death(action: str, code: int) -> None:
    script = f"from nfckpt.native import fault\nb = fault.FaultBoard()\nb.arm('solo', '{action}', 2)\nb.join()\n" \
             "fault.hit('solo')\nprint('lives', flush=True)\nfault.hit('solo')\nfor _ in range(1000): pass\nprint('too long')"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (code, "lives\n")
    assert action != "error" or "RuntimeError: fault point solo" in done.stderr


def test_stop_and_continue() -> None:
    script = "from nfckpt.native import fault\nb = fault.FaultBoard()\nb.arm('solo', 'stop')\nb.join()\nfault.hit('solo')\nprint('went on')"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        until(lambda: "State:\tT" in Path(f"/proc/{child.pid}/status").read_text(), 20)
        child.send_signal(signal.SIGCONT)
        assert child.communicate(timeout=20)[0] == "went on\n"


def test_what_cannot_be_armed(tmp_path: Path) -> None:
    board = FaultBoard()
    for name, action, after, ms, said in (("nowhere", "kill", 1, 1, "nowhere"), ("solo", "explode", 1, 1, "explode"), ("solo", "", 1, 1, "action"),
                                          ("solo", "kill", 0, 1, "hit 0"), ("solo", "delay", 1, 0, "0 ms"), ("solo", "delay", 1, 60001, "60001")):
        with pytest.raises(ConfigError, match=said):
            board.arm(name, action, after, ms)
    (tmp_path / "other").write_bytes(b"something else entirely" * 2000)
    with pytest.raises(ConfigError, match="no fault board"):
        FaultBoard(str(tmp_path / "other"))
    with pytest.raises(MachineError, match="no fault board"):
        FaultBoard(str(tmp_path / "no" / "folder"))


def test_a_plan_in_the_environment(tmp_path: Path) -> None:
    assert join("a", {}) is None
    for plan in ("captured", "captured=kill@", "=kill", "captured=kill;solo=kill", "nowhere=kill", "captured=bang"):
        with pytest.raises(ConfigError, match=r"nowhere|bang|write node/point|action"):
            join("a", {PLAN: plan})
    script = "import os\nfrom nfckpt.node.plan import join\nfrom nfckpt.native import fault\njoin('a', os.environ)\n" \
             "for name in ('solo', 'protected', 'protected', 'protected'): fault.hit(name); print(name, flush=True)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30,
                          env={"PATH": "", "PYTHONPATH": ":".join(sys.path), PLAN: "b/solo=kill,a/protected=kill@3"})
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "solo\nprotected\nprotected\n")


def test_a_bad_plan_is_a_bad_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAN, "nowhere=kill")
    with pytest.raises(ConfigError, match="nowhere"), PairRig("host"):
        pass


def test_every_point_stands_in_the_code_once_named() -> None:
    code = "".join(p.read_text() for p in [*(ROOT / "cython/nfckpt/native").glob("*.pyx"), *(ROOT / "nfckpt/node").glob("*.py")]
                   if p.name != "fault.pyx")
    for name, who, _, what in POINTS:
        assert re.search(rf'fault\({name.upper()}\)|fault\.hit\("{name}"\)|: "{name}"', code), name
        assert who in ("active", "standby") and what
    assert ACTIONS[1:] == ("kill", "segv", "stop", "delay", "error")


@pytest.mark.parametrize("profile", ["host", "hosts"])
def test_a_death_at_every_point(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the promise holds for a death the node dies; nothing is lost, and the app counted each frame once. All others are passed."""
    monkeypatch.setenv(BOARD, str(tmp_path))
    boards = {node: FaultBoard(str(tmp_path / node)) for node in "ab"}
    with PairRig(profile, NAT, frames_s=1000, hang_ms_max=2000, rate_frames_per_s=20_000) as rig:
        for number, p in enumerate(p for p in points(profile) if p.survivable and not p.name.startswith("lease_")):
            until(lambda: all(s.get("protected") for s in rig.pair.status().values()), 30)
            active, protections = rig.active, len(rig.seen("protected"))
            board = boards[active if p.who == "active" else rig.standby]
            board.arm(p.name, ("kill", "segv")[number % 2])
            if p.lead == "resync":
                rig.pair.keepers[rig.standby].kill(signal.SIGKILL)
            elif p.lead == "switch":
                assert rig.pair.failover()
            until(lambda p=p, board=board: board.struck(p.name)[0], 20)
            until(lambda n=protections: len(rig.seen("protected")) > n, 30)
        until(lambda: all(s.get("protected") for s in rig.pair.status().values()), 30)
        rig.check()
    reached = {name for board in boards.values() for name, n in board.hits().items() if n}
    assert {p.name for p in points(profile)} - reached <= {"lease_armed", "lease_stamped", "asks_claim", "reemitted"}


def test_digests_tell_two_arenas_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one epoch both nodes leave the same digest; after a write past the calls that mark they do not."""
    monkeypatch.setenv(BOARD, str(tmp_path))
    boards = [FaultBoard(str(tmp_path / node)) for node in "ab"]

    def both() -> list[bool]:
        a, b = (board.digests() for board in boards)
        return [a[at] == b[at] for at in set(a) & set(b)]

    with PairRig("host", APP + "Poisoned") as rig:
        for board in boards:
            board.digest_every(8)
        until(lambda: len(both()) > 5, 20)
        assert all(both())
        rig.traffic.extra.append((0, poison("outside")))
        until(lambda: not all(both()), 20)
