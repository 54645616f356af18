"""check_nf: what is shipped survives; every planted flaw is named, and nothing else is."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import TCP, UDP

from nfckpt.errors import ConfigError
from nfckpt.ports.pcap import PcapWriter
from nfckpt.sim.check_nf import Report, check_nf, examine
from nfckpt.sim.nf_life import Run
from nfckpt.sim.nf_parts import STAGES
from nfckpt.sim.nf_traffic import made_up, steps_of
from tests import check_apps, nat_rig
from tests.test_examples import EXAMPLES, ROOT

ACKED = ["acked"]


def nat_traffic() -> list[tuple[int, bytes]]:
    frames = [(port, bytes(nat_rig.arp(mac, ip, ours))) for port, mac, ip, ours in (
        (0, nat_rig.HOST, "10.0.0.5", "10.0.0.1"), (0, nat_rig.HOST2, "10.0.0.6", "10.0.0.1"), (1, nat_rig.GW, nat_rig.GATEWAY, nat_rig.EXT))]
    for i in range(20):
        for port, packet in (nat_rig.out(UDP(sport=4000 + i % 7, dport=53) / bytes([i])),
                             nat_rig.out(TCP(sport=5000 + i % 5, dport=80, flags="SA"[i % 2])),
                             nat_rig.back(UDP(sport=53, dport=1024 + i) / b"x")):
            frames.append((port, bytes(packet)))
    return frames


NAT = dict(inside_ip="10.0.0.1", outside_ips=[nat_rig.EXT], gateway=nat_rig.GATEWAY, flows_max=1024)


@pytest.mark.parametrize("app, args, traffic", [
    ("nfckpt.apps.counter:Counter", {"flows_max": 1024}, None),
    ("nfckpt.apps.firewall:Firewall", {"flows_max": 1024}, None),
    ("nfckpt.apps.nat:Nat", NAT, nat_traffic()),
    ("nfckpt.native.nat:NativeNat", NAT, nat_traffic()),
    ("rate_limiter:RateLimiter", {"tokens_max": 5, "tokens_per_s": 0.1}, None),
    ("polling_forwarder:Forwarder", {}, None),
], ids=lambda a: a.split(":")[1] if isinstance(a, str) else "")
def test_what_is_shipped_survives(app: str, args: dict[str, Any], traffic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    report = check_nf(app, traffic if traffic is not None else made_up(2, 3, 80), app_args=args)
    assert report.ok and not report.hints and report.kills >= len(STAGES) * report.bursts


def named(report: Report) -> list[tuple[str, str]]:
    return [(f.kind, f.name) for f in report.findings]


@pytest.mark.parametrize("app, args, found, differs", [
    ("Stamps", {}, [], False),
    ("Cached", {}, [], False),
    ("Polls", {}, [], False),
    ("Polls", {"keeps": True}, [], False),
    ("Watched", {"tracker": "mmu"}, [], False),
    ("Watched", {"tracker": "compare"}, [], False),
    ("Forgets", {}, [("kept", "Forgets.frames")], True),
    ("ForgetsSilently", {}, [("kept", "ForgetsSilently.histogram")], False),
    ("FirstOnly", {}, [("kept", "FirstOnly.greeted")], True),
    ("InModule", {}, [("kept", "tests.check_apps.SEEN")], False),
    ("InClass", {}, [("kept", "InClass.flows")], False),
    ("DeclaresAnew", {}, [("declared", "region totals")], True),
    ("Raises", {}, [("raises", "ValueError: more than 20")], False),
    ("Polls", {"forgets": True}, [("kept", "Polls.number")], True),
    ("Polls", {"forgets": True, "keeps": True}, [("kept", "Polls.number")], True),
])
def test_each_flaw_is_named_and_nothing_else(app: str, args: dict[str, Any], found: list[tuple[str, str]], differs: bool) -> None:
    report = examine(f"tests.check_apps:{app}", made_up(2, 1, 80), app_args=args)
    assert named(report) == found, report.text()
    assert (report.difference is not None) == differs and report.ok == (not found)
    for finding in report.findings:
        if finding.kind == "kept" and "SEEN" not in finding.name:
            file, line = finding.where[0].split(":")
            text = (ROOT / "tests" / file).read_text().splitlines()[int(line) - 1]
            assert finding.name.split(".")[1] in text


@pytest.mark.parametrize("what", check_apps.READS)
def test_a_clock_or_chance_around_ctx_is_named_with_its_line(what: str) -> None:
    report = examine(check_apps.Reads, made_up(2, 1, 30), app_args={"what": what}, stages=ACKED)
    kind = "clock" if what.startswith(("time.", "datetime")) else "chance"
    assert named(report) == [(kind, what)]
    if what != "numpy.random":              # no C call that Python sees: found by the generator's state
        file, line = report.findings[0].where[0].split(":")
        assert what.split(".")[-1] in (ROOT / "tests" / file).read_text().splitlines()[int(line) - 1]


def test_a_generator_of_its_own_is_state_outside_the_arena() -> None:
    class Draws(check_apps.Stamps):
        def __init__(self) -> None:
            self.rng = check_apps.np.random.default_rng(1)

        def on_burst(self, burst: Any, ctx: Any) -> None:
            self.rng.random()
            super().on_burst(burst, ctx)

    assert named(examine(Draws, made_up(2, 1, 30), stages=ACKED)) == [("kept", "Draws.rng")]


def test_announce_must_not_write() -> None:
    report = examine(check_apps.AnnounceWrites, made_up(2, 1, 30))
    assert [f.kind for f in report.findings] == ["raises"] and "announce wrote state" in report.findings[0].name


def test_an_attribute_that_the_app_makes_again_may_be_excused() -> None:
    traffic = made_up(2, 1, 30)
    assert not examine(check_apps.ForgetsSilently, traffic, stages=ACKED).ok
    check_nf(check_apps.ForgetsSilently, traffic, stages=ACKED, caches=["histogram"])


def test_the_smallest_case_of_a_forgotten_count() -> None:
    """One kill, one frame before it, one after it; and the same words each time."""
    reports = [examine(check_apps.Forgets, made_up(2, 5), stages=["released"]) for _ in range(2)]
    d = reports[0].difference
    assert d is not None and len(d.frames) == 2 and d.kills == ((1, "released"),)
    assert reports[0].text() == reports[1].text() and reports[0].as_json() == reports[1].as_json()
    assert "Forgets.frames" in reports[0].text() and "killed           after frame 0, after the last output left" in reports[0].text()
    with pytest.raises(AssertionError, match="fewest frames    2"):
        check_nf(check_apps.Forgets, made_up(2, 5), stages=["released"])


def test_a_hint_for_what_no_traffic_reached() -> None:
    class Rare(check_apps.Stamps):
        def on_tick(self, ctx: Any) -> None:
            import time
            time.time()

    report = check_nf(Rare, made_up(2, 1, 20), stages=ACKED)
    assert len(report.hints) == 1 and "time.time" in report.hints[0] and "test_check_nf.py:" in report.hints[0]


def test_every_stage_of_a_killed_run_is_what_it_says() -> None:
    """How much had left when it died, and whether its burst ran again."""
    ran: list[int] = []
    left: list[int] = []

    class Counted(check_apps.Stamps):
        def declare(self, state: Any) -> None:
            super().declare(state)
            left.append(len(run.out.outputs))

        def on_burst(self, burst: Any, ctx: Any) -> None:
            ran.append(len(burst))
            super().on_burst(burst, ctx)

    steps = steps_of([(0, bytes([n]) * 60) for n in range(8)], ports=2, tick_ms=0, burst_frames=4)
    for stage in STAGES:
        ran.clear()
        left.clear()
        run = Run(Counted, steps, seed=0, arena_bytes=1 << 20, kills={0: stage})
        out = run.go()
        assert out.error is None and len(out.of_port(1)) == 8
        assert len(ran) == {"processed": 3, "captured": 3}.get(stage, 2), stage
        assert left == [0, {"half_released": 2, "released": 4}.get(stage, 0)], stage


@pytest.mark.parametrize("bad, said", [
    (dict(app="nowhere:App"), "No module named 'nowhere'"), (dict(app="tests.check_apps:Nothing"), "has no attribute 'Nothing'"),
    (dict(app="tests.check_apps:Stamps", app_args={"x": 1}), "takes no arguments"),
    (dict(app="tests.check_apps:READS"), "cannot be made"), (dict(app=lambda: 7), "is no network function"),
    (dict(app=check_apps.Stamps, traffic=[]), "no traffic"), (dict(app=check_apps.Stamps, traffic=[(2, b"x")]), "port 2 of 2"),
    (dict(app=check_apps.Stamps, traffic=[(0, b"")]), "0 bytes"), (dict(app=check_apps.Stamps, stages=["later"]), "stages are"),
])
def test_what_cannot_be_checked_is_an_error_that_says_why(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as e:
        examine(**bad)
    assert said in str(e.value)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("native")
    shutil.copy(ROOT / "tests" / "check_native_apps.pyx", folder)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    env["CFLAGS"] = "-O0 -g0"           # what is measured here is no speed, and most of a build is optimisation
    done = subprocess.run(["cythonize", "-i", "-q", "check_native_apps.pyx"], cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield importlib.import_module("check_native_apps")
    sys.path.remove(str(folder))


@pytest.mark.parametrize("app, found", [
    ("Good", []), ("Forgets", [("kept", "Forgets.mine")]), ("InArray", [("kept", "InArray.total")]),
    ("Unmarked", [("unmarked", "region spare")]), ("Clock", [("unsteady", "Clock")]),
])
def test_native_apps(native: Any, app: str, found: list[tuple[str, str]]) -> None:
    report = examine(getattr(native, app), made_up(2, 1, 40))
    assert named(report) == found, report.text()
    if app == "Forgets":
        assert report.findings[0].where[0].startswith("check_native_apps.pyx:")
    if app == "Clock":
        assert "check_native_apps.pyx:" in report.hints[0] and "clock_gettime" in report.hints[0]


def test_by_the_command(tmp_path: Path) -> None:
    for port in (0, 1):
        with_frames = PcapWriter(tmp_path / f"{port}.pcap")
        for p, frame in made_up(2, 9, 40):
            if p == port:
                with_frames.write(frame, 10**9)
        with_frames.close()

    def nfckpt(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "nfckpt", "check", *words], capture_output=True, text=True, timeout=60,
                              cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})

    captures = ["--pcap", str(tmp_path / "0.pcap"), "--pcap", str(tmp_path / "1.pcap")]
    good = nfckpt("tests.check_apps:Stamps", *captures)
    assert good.returncode == 0 and "40 frames" in good.stdout and "no difference" in good.stdout
    bad = nfckpt("tests.check_apps:Forgets", *captures, "--json")
    body = json.loads(bad.stdout)
    assert bad.returncode == 1 and not body["ok"] and body["findings"][0]["name"] == "Forgets.frames"
    assert nfckpt("tests.check_apps:ForgetsSilently", *captures, "--cache", "histogram").returncode == 0
    wrong = nfckpt("tests.check_apps:Stamps", "--args", "[1]")
    assert wrong.returncode == 2 and "--args" in wrong.stderr and "\n" not in wrong.stderr.strip()


def test_as_a_pytest_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from tests.check_apps import Forgets, Stamps\n"
        "def test_good(check_nf):\n    assert check_nf(Stamps, kills_max=10).seed == 7\n"
        "def test_bad(check_nf):\n    check_nf(Forgets, kills_max=10)\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:nfckpt", "-p", "nfckpt.sim.pytest_plugin", "--nf-seed", "7", "test_mine.py"],
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "kept outside the arena: Forgets.frames" in done.stdout and "Traceback" not in done.stdout
