"""Chaos for real, short, in both profiles; and every part of its checker with a planted fault."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nfckpt.errors import ConfigError, MachineError
from nfckpt.testbed.chaos import view
from nfckpt.testbed.chaos.campaign import Outcome
from nfckpt.testbed.chaos.emissions import Promotion, Run, stale_frames
from nfckpt.testbed.chaos.faults import FAULTS, chosen, points
from nfckpt.testbed.chaos.ledger import Hit, Ledger, histogram, quantile
from nfckpt.testbed.chaos.schedule import schedule
from tests.test_demo import interrupt

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
KEYS = ["seed", "profile", "kills", "kills_counted", "faults", "sent", "received", "lost", "duplicated", "reordered", "corrupt", "divergent",
        "stale_emissions", "sink_overflow", "tcp_connections", "tcp_failed", "tcp_reset", "outage_ms", "reprotect_ms", "receipts"]


def chaos(*args: str, ray: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "nfckpt", "chaos", "--ray" if ray else "--no-ray", *args], cwd=ROOT, env=ENVIRONMENT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.box
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("profile", "faults"), [
    ("host", "kill,segv-active,stop-active,point,delay,pause,slow-standby,switch,cut-off"),
    ("hosts", "kill,machine,point,delay,cut-rep,flap-rep,drop-rep,witness,cut-off")])
def test_nothing_breaks(profile: str, faults: str) -> None:
    with chaos("--json", "--profile", profile, "--faults", faults, "--kills", "6", "--seed", "5", "--rate", "2000") as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    body = json.loads(out)
    assert list(body) == KEYS and body["profile"] == profile and body["seed"] == 5
    assert [body[key] for key in view.MUST_BE_ZERO] == [0] * 7 and body["sink_overflow"] == 0
    assert body["kills"] == 6 and body["kills_counted"] >= 4 and sum(body["faults"].values()) >= 6
    assert body["sent"] == body["received"] > 3000 and body["tcp_connections"] > 100
    assert body["reprotect_ms"]["max"] >= body["reprotect_ms"]["p50"] > 0 and body["receipts"]
    assert int(re.search(r"states\s+(\d+) epochs", err)[1]) > 0                     # type: ignore[index]
    missed = re.search(r"points\s+\d+ of \d+ reached(?:; not (.*?))? *\nleaks", re.sub(r" *\n {8,}", " ", err))
    service = {p.name for p in points(profile) if not p.lead and not p.name.startswith("asks_")}
    assert missed and not service & set((missed[1] or "").strip().split(", "))          # what normal service passes was passed


@pytest.mark.box
@pytest.mark.timeout(300)
def test_on_a_switch_no_more_is_lost_than_the_receipts_say() -> None:
    with chaos("--json", "--profile", "host", "--input", "ship", "--faults", "kill,segv-active,point", "--kills", "4", "--seed", "5", "--rate", "2000") as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    body = json.loads(out)
    assert list(body) == [*KEYS, "stranded"] and all(r["exact"] for r in body["receipts"])
    assert body["lost"] <= body["stranded"] == sum(r["stranded"] for r in body["receipts"])
    assert body["duplicated"] <= sum(r["reemitted"] for r in body["receipts"])
    assert [body[key] for key in view.MUST_BE_ZERO if key not in ("lost", "duplicated")] == [0] * 5 and body["tcp_connections"] > 50


@pytest.mark.box
@pytest.mark.ray
@pytest.mark.timeout(150)
def test_ray_workers_die_and_nothing_breaks() -> None:
    """Seed 1047: the active's keeper, the witness, the active itself, the standby's keeper, the active again."""
    with chaos("--json", "--profile", "hosts", "--faults", "kill-active,ray", "--kills", "2", "--seed", "1047", "--rate", "2000", ray=True) as process:
        out, err = process.communicate(timeout=140)
    assert process.returncode == 0, err
    body = json.loads(out)
    assert body["faults"] == {"kill-active": 2, "ray-witness": 1, "ray-worker-active": 1, "ray-worker-standby": 1}
    assert [body[key] for key in view.MUST_BE_ZERO] == [0] * 7 and body["sent"] == body["received"] > 3000


@pytest.mark.box
def test_a_network_function_that_loses_frames_is_caught() -> None:
    with chaos("--json", "--profile", "host", "--faults", "kill-active", "--kills", "1", "--seed", "4", "--rate", "4000",
               "--app", "tests.chaos_apps:LeakyNat") as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 1 and json.loads(out)["lost"] > 0
    assert re.search(r"^FAILED: \d+ lost", err, re.M) and "replay: nfckpt chaos --seed 4 --kills 1 --faults kill-active" in err


@pytest.mark.box
def test_an_interrupt_ends_it_and_leaves_nothing() -> None:
    with chaos("--kills", "100", "--rate", "1000", "--faults", "kill") as process:
        interrupt(process, process.stderr, "kill-", 20)


@pytest.mark.parametrize(("args", "said"), [
    (("--faults", "earthquake"), "no fault 'earthquake'"), (("--faults", "machine", "--profile", "host"), "not for profile host"),
    (("--faults", "switch,pause"), "none of them kills"), (("--faults", "kill,ray-witness"), "without Ray"), (("--profile", "cloud"), "host or hosts"),
    (("--faults", ""), "none of them kills"), (("--kills", "0"), "--kills"), (("--rate", "1"), "--rate"),
    (("--report", "/nowhere/at/all.html"), "no folder"), (("--input", "osmosis"), "tap or ship")])
def test_bad_arguments(args: tuple[str, ...], said: str) -> None:
    with chaos(*args) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 2 and not out and said in re.sub(r"\s+", " ", err.replace("│", " "))


def test_the_list_of_faults() -> None:
    with chaos("--list-faults", "--json") as process:
        body = json.loads(process.communicate(timeout=30)[0])
    assert {f["name"] for f in body["faults"]} == set(FAULTS) and len(body["points"]) == 35
    assert {p["who"] for p in body["points"]} == {"active", "standby"}


# ── what strikes ─────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("profile", ["host", "hosts"])
def test_a_schedule_is_its_seed(profile: str) -> None:
    faults = chosen("all", profile, False)
    first, again, other = (list(itertools.islice(schedule(seed, faults, profile), 400)) for seed in (7, 7, 8))
    assert first == again != other
    assert {s.fault.name for s in first} == {f.name for f in faults}
    struck = [s.point.name for s in first if s.point and s.fault.name == "point-active"]
    every = {p.name for p in points(profile) if p.survivable and p.who == "active"}
    assert set(struck[:len(every)]) == every            # each in turn before one comes again
    assert all(s.action == "delay" or s.point.survivable for s in first if s.point)
    assert all(s.fault.profile in ("", profile) for s in first)


def test_names_and_beginnings_of_names() -> None:
    assert [f.name for f in chosen("kill,stop-active", "host", False)] == ["kill-active", "kill-standby", "stop-active"]
    assert {f.name for f in chosen("all", "host", False)} < {f.name for f in chosen("all", "hosts", False)}
    assert "cut-data" not in {f.name for f in chosen("all", "hosts", True)}
    assert "cut-off" in {f.name for f in chosen("all", "host", False)}
    assert "cut-off" not in {f.name for f in chosen("all", "host", False, "ship")}      # without sight of the segment nobody can tell
    with pytest.raises(ConfigError, match="input ship"):
        chosen("kill,cut-off", "host", False, "ship")
    with pytest.raises(ConfigError, match="none of them kills"):
        chosen("cut", "hosts", False)


# ── the checker ──────────────────────────────────────────────────────────────────────────────────

def way(**other: int) -> dict[str, Any]:
    return {"sent": 1000, "received": 1000, "lost": 0, "duplicated": 0, "reordered": 0, "corrupt": 0, "source_changed": 0, "sink_overflow": 0, **other}


def result(**other: Any) -> dict[str, Any]:
    none: dict[str, list[Any]] = {"udp": [], "udp_reverse": []}
    tcp = {"connections": 9, "failed": 0, "reset": 0, "corrupt": 0, "source_changed": 0}
    return {"valid": True, "udp": way(), "udp_reverse": way(), "tcp": tcp, "twins": None, "marks": none, "absent": none, **other}


MS = 10**6
HITS = [(100 * MS, "kill-active"), (900 * MS, "machine-active")]
MARKS = [{"t_ns": t * MS, "sent": [n, n]} for t, n in ((99, 100), (101, 102), (899, 500), (901, 502))]


def hits() -> list[Hit]:
    return [Hit(n, label, t, "a", True) for n, (t, label) in enumerate(HITS, 1)]


def test_a_loss_is_told_by_the_strike_it_follows() -> None:
    struck = hits()
    ledger = Ledger(result(udp=way(received=997, lost=3), marks={"udp": MARKS, "udp_reverse": []},
                           absent={"udp": [(0, 101), (1, 700), (1, 701)], "udp_reverse": []}), struck, [])
    assert (ledger.lost, ledger.apart, [hit.lost for hit in struck]) == (3, 0, [1, 2])


def test_what_a_cut_took_is_set_apart() -> None:
    ledger = Ledger(result(udp=way(received=997, lost=3), marks={"udp": MARKS, "udp_reverse": []},
                           absent={"udp": [(0, 101), (1, 300), (1, 700)], "udp_reverse": []}), hits(), [(100 * MS, 101 * MS)])
    assert (ledger.lost, ledger.apart) == (2, 1)


def test_identical_frames_are_counted() -> None:
    twins = {"sent": 40, "received": 39, "asked": 40, "answered": 42, "corrupt": 1, "overflow": 0}
    ledger = Ledger(result(twins=twins), [], [])
    assert (ledger.sent, ledger.received, ledger.lost, ledger.duplicated, ledger.corrupt) == (2080, 2081, 1, 2, 1)


def test_a_mapping_that_changed() -> None:
    assert Ledger(result(udp=way(source_changed=2)), [], []).remapped == 2


@pytest.mark.parametrize(("runs", "stale"), [
    ([("a", 0, 90, 50), ("b", 110, 200, 9)], 0), ([("a", 0, 120, 50), ("b", 121, 200, 9)], 0),
    ([("a", 0, 90, 50), ("b", 110, 130, 9), ("a", 131, 132, 3), ("b", 133, 200, 9)], 3),       # a was stopped and goes on
    ([("a", 0, 90, 50), ("b", 110, 130, 9), ("a", 310, 400, 30)], 0), ([("a", 0, 90, 50), ("b", 50, 60, 4), ("a", 61, 95, 2)], 4)])
def test_stale_emissions(runs: list[tuple[str, int, int, int]], stale: int) -> None:
    promotions = [Promotion("a", 0), Promotion("b", 100), Promotion("a", 300)]
    assert stale_frames([Run(*run) for run in runs], promotions) == stale


def test_which_kills_count() -> None:
    rows = [Hit(1, "kill-active", 0, "a", True, protected=True, uncommitted=5), Hit(2, "kill-active", 0, "a", True, protected=True, uncommitted=0),
            Hit(3, "switch", 0), Hit(4, "kill-active", 0, "a", True, protected=True, uncommitted=300)]
    assert [hit.counts for hit in rows] == [True, False, False, True]
    assert histogram(rows) == [("0", 1), ("1–3", 0), ("4–15", 1), ("16–63", 0), ("64–255", 0), ("256+", 1)]
    assert quantile([], 0.5) == 0.0 and quantile([3.0, 1.0, 2.0], 0.5) == 2.0 and quantile([1.0], 0.99) == 1.0


# ── what is made of it ───────────────────────────────────────────────────────────────────────────

def outcome(**other: Any) -> Outcome:
    receipt = {"term": 2, "node": "b", "reason": "killed <by hand>", "exact": True, "uncommitted": 5, "replayed": 5, "reemitted": 1, "suppressed": 0,
               "doubled": 0, "active_missed": 0, "tap_missed": 0, "steps_us": {"notice": 1, "total": 9000}}
    body = dict.fromkeys(KEYS, 0) | {"seed": 7, "profile": "hosts", "faults": {}, "outage_ms": {"p50": 1.0, "p99": 1.0, "max": 1.0},
                                     "reprotect_ms": {"p50": 1.0, "max": 1.0}, "receipts": [receipt]}
    events = [("active", 0, {"node": "a", "term": 1}), ("protected", 10 * MS, {"node": "a"}), ("takeover", 120 * MS, {"node": "b", "term": 2}),
              ("active", 121 * MS, {"node": "b", "term": 2}), ("receipt", 150 * MS, receipt), ("protected", 600 * MS, {"node": "b"})]
    hit = Hit(1, "kill-active", 100 * MS, "a", True, protected=True, uncommitted=5, outage_ms=20.0, reprotect_ms=500.0)
    runs = [Run("a", 0, 99 * MS, 10), Run("b", 121 * MS, 900 * MS, 50)]
    return Outcome(**{"body": body, "problems": [], "invalid": "", "hits": [hit], "events": events, "runs": runs, "reached": {"captured": 9},
                      "digests": 3, "apart": 0, "began_ns": 0, "ended_ns": 1000 * MS,
                      "samples": [{"t_s": 0.0, "rss_mb": 100.0, "fds": 20, "threads": 5, "processes": 9}], **other})


def test_the_report_refers_to_nothing_outside() -> None:
    pytest.importorskip("matplotlib")
    from nfckpt.testbed.chaos.report import page
    text = page(outcome(problems=["3 lost"]), "nfckpt chaos --seed 7")
    assert text.count("<svg") == 3 and "a leads" in text and "3 lost" in text and "killed &lt;by hand&gt;" in text
    outside = [url for url in re.findall(r"[\w.+-]+://[^\s\"'<>]+", text) if url != "http://www.w3.org/2000/svg"]
    assert not outside and not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)|(?:src|href)=\"(?!#)", text)


def test_the_report_without_its_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nfckpt.testbed.chaos.report import need_plots
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MachineError, match="matplotlib"):
        need_plots(tmp_path / "x.html")


@pytest.mark.parametrize(("other", "code", "said"), [
    ({}, 0, ""), ({"problems": ["1 lost"]}, 1, "replay: nfckpt chaos --seed 7"), ({"invalid": "5 frames dropped by a sink"}, 3, "INVALID: 5 frames"),
    ({"invalid": "5 frames dropped by a sink", "problems": ["5 lost"]}, 3, "INVALID")])
def test_the_exit_code(other: dict[str, Any], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Done:
        killed = 0

        def __init__(self, **_: Any) -> None: ...
        def run(self) -> Outcome:
            return outcome(**other)

    monkeypatch.setattr(view, "Campaign", Done)
    assert view.run(seed=7, kills=1, faults="all", app="x:Y", profile="hosts", rate=2000, seconds=0.0, ray=False, as_json=True, report=None,
                    log=None) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["seed"] == 7 and said in err
