"""The bench beside keepalived and conntrackd: its configurations, its arithmetic, and one death of each kind where the daemons are."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench import keepalived as bench
from tests.bench.keepalived_pair import (
    conntrackd_conf,
    keepalived_conf,
    missing,
    notify_script,
    ruleset,
)

ROOT = Path(__file__).resolve().parent.parent
needs_daemons = pytest.mark.skipif(bool(missing()), reason=f"not installed here: {', '.join(missing())}")


def row(outages: list[float], **more: int) -> dict[str, Any]:
    return {"valid": True, "kills": len(outages), "outage_ms": outages, "udp_sent": 36_000, "udp_lost": 0, "udp_doubled": 0, "tcp_long": 200,
            "tcp_broken": 0, "new_opened": 100, "new_failed": 0, "false_takeovers": 0, "inexact": 0, **more}


def test_both_nodes_are_one_router_and_differ_where_they_must() -> None:
    a, b = (keepalived_conf(node, 0.01, Path("/x/notify.sh")) for node in "ab")
    for conf in a, b:
        assert re.findall(r"advert_int (\S+)", conf) == ["0.01", "0.01"]
        assert re.findall(r"virtual_router_id (\d+)", conf) == ["51", "52"]
        assert re.findall(r"(\S+)/24 dev (\w+)", conf) == [("10.0.0.1", "lan"), ("198.51.100.1", "wan")]
        assert conf.count("{") == conf.count("}") and conf.count("nopreempt") == 2
    strip = re.compile(r"priority \d+|router_id [ab]\n")
    assert strip.sub("", a) == strip.sub("", b) and a != b


def test_each_conntrackd_speaks_to_the_other_one() -> None:
    a, b = (conntrackd_conf(node, Path("/x")) for node in "ab")
    ends = re.compile(r"IPv4_address (10\.99\S+)\n\s+IPv4_Destination_Address (\S+)")
    (here,), (there,) = ends.findall(a), ends.findall(b)
    assert here == tuple(reversed(there)) and here[0] != here[1]
    assert a.count("{") == a.count("}")


def test_the_new_master_commits_before_it_flushes() -> None:
    script = notify_script("a", Path("/x"), Path("/x/log"))
    primary = script[script.index("primary)"):script.index(";;")]
    assert re.findall(r"conntrackd\.conf (-\w)", primary) == ["-c", "-f", "-R", "-B"]
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


@needs_daemons
def test_the_daemons_accept_their_configurations(tmp_path: Path) -> None:
    script = tmp_path / "notify.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    conf = tmp_path / "keepalived.conf"
    conf.write_text(keepalived_conf("a", 0.1, script))
    log = tmp_path / "said"
    done = subprocess.run(["keepalived", f"--config-test={log}", "--use-file", str(conf)], capture_output=True, text=True, check=False)
    said = log.read_text() if log.exists() else ""
    # this machine has no device lan or wan: the one thing to object to
    wrong = [line for line in said.splitlines() if not re.search(r"interface|\b(lan|wan)\b", line)]
    assert not wrong and "Unknown keyword" not in said, (done.stderr, said)
    rules = tmp_path / "nat.nft"
    rules.write_text(ruleset())
    assert subprocess.run(["nft", "--check", "--file", str(rules)], capture_output=True, text=True, check=False).stderr == ""


def test_ratios_are_of_medians_and_of_what_was_measured() -> None:
    rows = {"host": row([3.0, 2.0, 40.0]), "1 s": row([2830.0, 2700.0, 3000.0], udp_lost=5652, false_takeovers=1)}
    bench.compare(rows)
    assert rows["1 s"]["ratio"] == {"host": round(2830 / 3, 1)}
    line = bench.table(rows).splitlines()[2]
    assert "5,652 of 36,000" in line and line.split()[-3:] == ["1", "943.3", "-"]


def test_an_interval_that_vrrp_cannot_say_is_refused() -> None:
    for text in "0.001", "41", "fast", "":
        with pytest.raises(argparse.ArgumentTypeError):
            bench.advert_list(text)
    assert bench.advert_list("1,0.01") == [1.0, 0.01]


def test_what_is_missing_is_said_and_nothing_is_started(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "from tests.bench import keepalived as k, keepalived_pair as p\nimport sys\n"
                           "p.PACKAGES['no-such-daemon'] = 'nosuchpackage'; sys.argv[1:] = []; sys.exit(k.main())"],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "apt-get install" in done.stderr and "nosuchpackage" in done.stderr and done.stdout == ""


@pytest.mark.box
@needs_daemons
def test_one_death_of_each(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.bench.keepalived", "--json", "--kills", "1", "--advert", "0.1"],
                          cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["errors"] == {} and body["leftovers"] == [] and list(body["rows"]) == ["host", "hosts", "0.1 s"]
    for name, row in body["rows"].items():
        assert row["udp_sent"] > 0 and row["new_opened"] > 0, (name, row)
        assert row["outage_ms"][0] > 0 or name == "host", (name, row)
    assert body["rows"]["0.1 s"]["udp_lost"] > 0            # it died, and its successor had to be elected
    for name in bench.OURS:
        row = body["rows"][name]
        whole = [row[key] for key in ("udp_lost", "udp_doubled", "tcp_broken", "new_failed")] == [0, 0, 0, 0]
        assert row["inexact"] or row["false_takeovers"] or whole, (name, row)      # on a machine that stalls, said so by its receipt
