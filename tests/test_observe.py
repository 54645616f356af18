"""What an operator sees: one ordered stream whose readers hold up nobody, hooks, receipts on disk, trouble, outlook, metrics."""

from __future__ import annotations

import ast
import asyncio
import functools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict

from nfckpt.config import Bounds, Hook
from nfckpt.deploy.foreground import status_body
from nfckpt.errors import MachineError
from nfckpt.failover.witness import Witness
from nfckpt.observe.board import Board, ExporterSpec, read
from nfckpt.observe.events import read_rows, receipt_log, receipts_path
from nfckpt.observe.fifo import Fifo
from nfckpt.observe.hooks import Hooks
from nfckpt.observe.journal import Journal
from nfckpt.observe.metrics import registry, render
from nfckpt.observe.outlook import outlook
from nfckpt.observe.stream import INBOX_EVENTS_MAX, EventStream, Row
from nfckpt.observe.trouble import Trouble
from tests.pair_rig import PairRig, free_ports, stopped
from tests.pair_rig import until as until_within

ROOT = Path(__file__).resolve().parent.parent
until = functools.partial(until_within, timeout_s=60.0)      # a machine that is busy starts a process in seconds
BOTH = pytest.mark.parametrize("profile", ["host", "hosts"])


@pytest.fixture
def stream() -> Iterator[EventStream]:
    s = EventStream()
    yield s
    s.close(0.5)


# ── the stream


def test_every_reader_sees_one_order_and_each_row_once(stream: EventStream) -> None:
    first: list[Row] = []
    second: list[Row] = []
    stream.feed("first", first.append)
    stream.feed("second", second.append)

    def write(who: str) -> None:
        for i in range(500):
            stream.note("tick", i, {"node": who, "i": i})

    async def iterate() -> list[Row]:
        rows = aiter_(stream)
        writers = [threading.Thread(target=write, args=(who,)) for who in "abcd"]
        for thread in writers:
            thread.start()
        out = [await anext_(rows) for _ in range(2000)]
        for thread in writers:
            thread.join()
        stream.close()
        return out + [row async for row in rows]

    third = asyncio.run(iterate())
    assert [row["n"] for row in third] == list(range(1, 2001))
    assert first == second == third
    for who in "abcd":
        assert [row["i"] for row in third if row["node"] == who] == list(range(500))
    assert set(third[0]) == {"n", "time", "at_s", "event", "node", "i"}


def aiter_(stream: EventStream) -> Any:
    return stream.__aiter__()


async def anext_(rows: Any) -> Row:
    row: Row = await asyncio.wait_for(rows.__anext__(), 10)
    return row


def test_a_reader_that_is_stuck_holds_up_nobody_and_is_an_event(stream: EventStream) -> None:
    stuck, shown, seen = threading.Event(), [], []
    slow = stream.feed("terminal", lambda row: (stuck.wait(20), shown.append(row["n"])))
    stream.feed("log", lambda row: seen.append((row["n"], row["event"])), events_max=10 * INBOX_EVENTS_MAX)
    n = INBOX_EVENTS_MAX + 100
    for i in range(n):
        stream.note("tick", i, {})
    until(lambda: len(seen) == n + 1)
    assert [event for _, event in seen].count("reader_behind") == 1, "once, not once a row"
    assert 99 <= slow.left_out <= 101
    stuck.set()
    until(lambda: len(shown) == n + 1 - slow.left_out)
    assert shown == list(range(1, len(shown) + 1)), "what it missed is the gap before the next number"
    stream.note("tick", 0, {})
    until(lambda: shown[-1] == n + 2)


def test_a_reader_whose_pipe_is_closed_is_left_alone(stream: EventStream) -> None:
    def say(row: Row) -> None:
        raise BrokenPipeError(32, "gone")

    feed = stream.feed("terminal", say)
    for _ in range(3):
        stream.say("tick")
    assert isinstance(until(lambda: feed.error), BrokenPipeError)


# ── a named pipe


def test_a_full_fifo_is_an_event_and_lines_stay_whole(tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    fifo = Fifo(tmp_path / "events", lambda event, **fields: said.append((event, fields)))
    assert stat.S_IMODE((tmp_path / "events").stat().st_mode) == 0o600
    fifo.write({"n": 0})                                                # nobody reads: for nobody
    reader = os.open(tmp_path / "events", os.O_RDONLY | os.O_NONBLOCK)
    for n in range(1, 401):
        fifo.write({"n": n, "text": "x" * (6000 if n % 7 == 0 else 300)})       # some longer than PIPE_BUF, so cut in the middle
    assert [event for event, _ in said] == ["fifo_full"]
    lines = _drain(reader)
    while not said[1:]:
        fifo.write({"n": 401})
        lines += _drain(reader)
    got = [json.loads(line)["n"] for line in b"".join(lines).splitlines()]
    assert got[:-1] == list(range(1, len(got))) and got[-1] == 401
    assert said[1] == ("fifo_drained", {"path": str(tmp_path / "events"), "left_out": 401 - len(got) + said[1][1]["left_out"] - (401 - len(got))})
    assert said[1][1]["left_out"] >= 400 - len(got)
    os.close(reader)
    fifo.write({"n": 402})                                              # it went away
    reader = os.open(tmp_path / "events", os.O_RDONLY | os.O_NONBLOCK)
    fifo.write({"n": 403})
    assert _drain(reader) == [b'{"n": 403}\n'], "the next reader begins with the next row"
    os.close(reader)
    fifo.close()


def _drain(fd: int) -> list[bytes]:
    out = []
    try:
        while data := os.read(fd, 65536):
            out.append(data)
    except BlockingIOError:
        pass
    return out


def test_a_path_that_is_no_fifo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "no" / "folder"):
        with pytest.raises(MachineError, match="no named pipe"):
            Fifo(path, lambda event, **fields: None)
    assert (tmp_path / "file").read_text() == "precious"


# ── hooks


class _Hooked:
    """A stream with hooks behind it, and what it said."""

    def __init__(self, *hooks: Hook) -> None:
        self.stream, self.rows = EventStream(), list[Row]()
        self.hooks = Hooks("pair", hooks, self.stream.say)
        self.stream.feed("log", self.rows.append)
        self.feed = self.stream.feed("hooks", self.hooks.take, wanted=self.hooks.wanted, events_max=5)

    def __enter__(self) -> _Hooked:
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()
        self.stream.close()

    def seen(self, event: str) -> list[Row]:
        return [row for row in self.rows if row["event"] == event]


def script(tmp_path: Path, name: str, body: str) -> str:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_hooks_run_in_order_awaited_and_never_two_at_once(tmp_path: Path) -> None:
    said = tmp_path / "said"
    one = script(tmp_path, "one", f'echo "begin $1 $NFCKPT_EVENT $NFCKPT_NODE $NFCKPT_TERM $NFCKPT_PAIR" >> {said}; sleep 0.05; echo end >> {said}')
    keep = script(tmp_path, "keep", f"cat >> {tmp_path / 'rows'}")
    with _Hooked(Hook(on=["takeover"], run=[one, "1"]), Hook(on=["takeover", "solo"], run=[one, "2"]), Hook(on=["*"], run=[keep])) as h:
        h.stream.note("takeover", 0, {"node": "b", "term": 2})
        h.stream.note("tick", 0, {})
        h.stream.note("solo", 0, {"node": "b", "term": 2})
        until(lambda: (tmp_path / "rows").exists() and (tmp_path / "rows").read_text().count("\n") == 3)
        assert said.read_text().splitlines() == [
            "begin 1 takeover b 2 pair", "end", "begin 2 takeover b 2 pair", "end", "begin 2 solo b 2 pair", "end"]
        rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
        assert [(row["n"], row["event"]) for row in rows] == [(1, "takeover"), (2, "tick"), (3, "solo")]


def test_a_hook_that_hangs_is_killed_with_its_children_and_the_next_one_runs(tmp_path: Path) -> None:
    hangs = script(tmp_path, "hangs", f"sleep 300 & echo $! > {tmp_path / 'child'}; wait")
    with _Hooked(Hook(on=["solo"], run=[hangs], hook_s_max=0.5), Hook(on=["solo"], run=["touch", str(tmp_path / "next")])) as h:
        h.stream.say("solo")
        (row,) = until(lambda: h.seen("hook_timeout"))
        assert (row["hook"], row["on"], row["of"], row["hook_s_max"]) == (hangs, "solo", 1, 0.5)
        until((tmp_path / "next").exists)
        child = int((tmp_path / "child").read_text())
        until(lambda: not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] == "Z")


def test_a_hook_that_fails_says_so_and_starts_none(tmp_path: Path) -> None:
    fails = script(tmp_path, "fails", "echo out of paper >&2; exit 3")
    with _Hooked(Hook(on=["*"], run=[fails]), Hook(on=["*"], run=["/no/such/program"])) as h:
        h.stream.say("solo")
        failed = until(lambda: len(rows := h.seen("hook_failed")) == 2 and rows)
        assert failed[0]["code"] == 3 and failed[0]["said"] == "out of paper"
        assert failed[1]["said"] == "cannot start it: No such file or directory"
        h.stream.say("takeover")
        until(lambda: len(h.seen("hook_failed")) == 4)
        assert {row["on"] for row in h.seen("hook_failed")} == {"solo", "takeover"}, "a failed hook starts no hook"


def test_more_events_than_hooks_can_follow(tmp_path: Path) -> None:
    with _Hooked(Hook(on=["solo"], run=["sleep", "300"])) as h:
        for _ in range(20):
            h.stream.say("solo")
        assert until(lambda: h.seen("reader_behind"))[0]["reader"] == "hooks" and h.feed.left_out >= 14


# ── a real pair, whose hook hangs and whose pipe is full


@BOTH
def test_neither_a_hanging_hook_nor_a_full_fifo_delays_a_takeover(profile: str, tmp_path: Path) -> None:
    with PairRig(profile) as rig:
        config = msgspec.structs.replace(rig.config, receipts_dir=str(tmp_path), hooks=[Hook(on=["noise", "takeover"], run=["sleep", "300"], hook_s_max=60)])
        journal = Journal(config, fifo=tmp_path / "fifo")
        try:
            reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
            for _ in range(1200):
                journal.stream.say("noise", text="x" * 200)
            until(lambda: [row for row in journal.events.rows if row["event"] == "fifo_full"])
            for keeper in rig.pair.keepers.values():
                keeper._on_event = lambda *event: (rig.events.append((event[0], event[2])), journal.stream.note(*event))
            rig.kill_active()
            rig.protected(timeout_s=60)
            until(lambda: rig.seen("receipt"))
            rig.check()
            (receipt,) = until(lambda: journal.receipts.rows)
            assert receipt["event"] == "receipt" and receipt["term"] == 2
            body = status_body(rig.pair, journal)
            assert body["trouble"] is None and body["if_it_died_now"]["start_from"] == "measured in term 2"
            os.close(reader)
        finally:
            began = time.monotonic()
            journal.close()
            assert time.monotonic() - began < 30, "the hook is killed"
        assert [row["term"] for row in read_rows(receipts_path("rig", str(tmp_path)))] == [2]


# ── receipts on disk


def test_receipts_are_bounded_and_outlive_the_run(tmp_path: Path) -> None:
    path = receipts_path("p", str(tmp_path / "made" / "for it"))
    log = receipt_log(path, 1000)
    for term in range(2, 102):
        log.add({"event": "receipt", "term": term})
    log.close()
    with path.open("ab") as f:
        f.write(b'{"event": "rec\n\xff\xfe\n[]\n')                        # a disk that was full, a hand that slipped
    again = receipt_log(path, 1000)
    terms = [row["term"] for row in again.rows]
    assert terms == list(range(terms[0], 102)) and 2 < terms[0] < 90
    assert path.stat().st_size + path.with_name(path.name + ".1").stat().st_size <= 2000 + 30
    again.close()
    with pytest.raises(MachineError, match="no folder for receipts"):
        receipt_log(Path("/proc/none/p.jsonl"), 1000)


# ── trouble


def told(*rows: tuple[str, dict[str, Any]]) -> Trouble:
    clock = [100.0]
    trouble = Trouble(lambda: clock[0])
    for event, fields in rows:
        clock[0] += 1
        trouble.take({"event": event, **fields})
    clock[0] += 10
    return trouble


GOOD = ("protected", {"node": "a", "peer": "b", "term": 1})
DOWN = {"role": "down", "pid": 0}


@pytest.mark.parametrize(("rows", "nodes", "why", "to_do", "since"), [
    ([], {}, "just starting", "a standby is being started", 10),
    ([GOOD, ("standby_lost", {"node": "a", "reason": "killed"}), ("solo", {"node": "a", "reason": "killed"}), ("exited", {"node": "b", "code": -9, "why": "signal 9"})],
     {"b": DOWN}, "node b ended: signal 9", "being started", 12),
    ([GOOD, ("takeover", {"node": "b", "term": 2, "reason": "killed"})], {"b": {"role": "protecting"}}, "b took over in term 2: killed", "nothing: the standby is being synced", 10),
    ([GOOD, ("exited", {"node": "b", "code": 5, "why": "refused: another key"})], {"b": DOWN}, "node b cannot run: refused: another key", "start the pair anew", 10),
    ([GOOD, *[("exited", {"node": "b", "code": 8, "why": "app raised"})] * 4], {}, "node b ended 4 times since the pair was protected, last: app raised", "standard error", 13),
    ([GOOD, ("solo", {"node": "a", "reason": "x"}), ("witness_silent", {"node": "a"})], {}, "witness does not answer", "Ray's head", 11),
    ([GOOD, ("solo", {"node": "a", "reason": "x"}), ("follower_refused", {"node": "a", "reason": "another key"})], {}, "refuses its follower: another key", "the same", 11),
    ([GOOD, ("receipt", {"node": "b", "blank": True, "reason": "no node held the state"})], {}, "no node held the state", "being started", 10),
    ([GOOD, ("standby_lost", {"node": "a", "reason": "silent"})], {"b": {"role": "silent", "pid": 7}}, "a lost its standby: silent", "Look at pid 7", 10),
])
def test_what_is_wrong_since_when_and_what_to_do(rows: list[Any], nodes: dict[str, Any], why: str, to_do: str, since: float) -> None:
    trouble = told(*rows)
    said = trouble.diagnose({"protected": False, "nodes": {"a": {"role": "solo"}, "b": {"role": "starting"}, **nodes}})
    assert said is not None and why in said["why"] and to_do in said["to_do"] and said["since_s"] == since, said


def test_trouble_is_over_when_protection_is_back() -> None:
    trouble = told(GOOD, ("solo", {"node": "a", "reason": "x"}), ("witness_silent", {}), *[("exited", {"node": "b", "code": 5, "why": "y"})] * 5,
                   ("started", {"node": "b"}), GOOD, ("standby_lost", {"node": "a", "reason": "z"}))
    assert trouble.diagnose({"protected": True, "nodes": {}}) is None
    said = trouble.diagnose({"protected": False, "nodes": {"a": {"role": "holding"}}})
    assert said == {"why": "a lost its standby: z", "since_s": 10, "to_do": "nothing: the standby's grant is being taken back, output waits for that"}


# ── outlook


def test_what_a_death_would_cost() -> None:
    bounds = Bounds()
    nodes = {"a": {"role": "active", "protected": True, "outputs_held": 3, "tap_gap": False},
             "b": {"role": "standby", "protected": True, "inputs_waiting": 200, "outputs_unseen": 0, "tap_gap": False, "start_us": 7000, "witness_us": 500}}
    look = outlook("host", bounds, nodes, [])
    assert look is not None and look["outputs_held"] == 3 and look["replay_frames"] == 200 and look["exact"]
    assert look["outage_ms"]["crash"] == {"detection": 0, "grant": 0, "fence": 0, "settle": 0, "start": 7, "replay": 2, "total": 9}
    assert look["outage_ms"]["hang"]["total"] == bounds.hang_ms + 0.5 + 7 + 2
    nodes["b"]["outputs_unseen"] = 1
    receipt = {"term": 4, "replayed": 1000, "steps_us": {"apply": 100, "start": 2000, "reemit": 900, "replay": 100_000}}
    look = outlook("hosts", bounds, nodes, [receipt])
    assert look is not None and look["replay_frames_per_s"] == 10_000 and look["replay_rate_from"] == "measured in term 4"
    assert look["outage_ms"]["crash"] == {"detection": 0, "grant": 0.5, "fence": bounds.lease_ms + bounds.lease_margin_ms,
                                          "settle": bounds.tap_skew_ms_max, "start": 3, "replay": 20, "total": 0.5 + 120 + 20 + 3 + 20}
    assert look["outage_ms"]["hang"]["fence"] == 20, "what is left of the lease when the silence is noticed"
    before = {"term": 3, "replayed": 0, "steps_us": {"apply": 100, "start": 2000, "announce": 900}}     # as a log of an earlier nfckpt has them
    look = outlook("host", bounds, nodes, [before])
    assert look is not None and look["start_from"] == "the standby's own start"
    assert outlook("host", bounds, {"a": {**nodes["a"], "protected": False}, "b": nodes["b"]}, []) is None


# ── metrics


def spec(address: str = "") -> ExporterSpec:
    return ExporterSpec("p", "a", "host", address, Bounds())


def with_metrics(rig: PairRig) -> dict[str, int]:
    ports = dict(zip("ab", free_ports(2), strict=True))
    for name, keeper in rig.pair.keepers.items():
        c = keeper.spec.config
        nodes = {n: msgspec.structs.replace(node, metrics=f"127.0.0.1:{ports[n]}") for n, node in c.nodes.items()}
        keeper.spec = msgspec.structs.replace(keeper.spec, config=msgspec.structs.replace(c, nodes=nodes))
        assert keeper.spec.node == name
    return ports


def scrape(port: int) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}


def scraped(port: int, start: str) -> list[float]:
    try:
        return [value for name, value in scrape(port).items() if name.startswith(start)]
    except OSError:
        return []


@BOTH
def test_each_node_answers_for_itself_by_the_conventions(profile: str) -> None:
    rig = PairRig(profile)
    ports = with_metrics(rig)
    with rig:
        until(lambda: all(scraped(p, "nfckpt_protected") == [1.0] for p in ports.values()))
        seen = scrape(ports["a"])
        assert seen['nfckpt_role{node="a",pair="rig",role="active"}'] == 1.0
        assert set(scraped(ports["b"], "nfckpt_expected_outage_seconds")) and scraped(ports["b"], "nfckpt_replay_frames")
        until(lambda: scrape(ports["a"])['nfckpt_commits_total{node="a",pair="rig"}'] > seen['nfckpt_commits_total{node="a",pair="rig"}'])
        for keeper in rig.pair.keepers.values():
            numbers = {**keeper.status(), "at_ns": 0}
            families = list(strict(openmetrics(registry(spec(), lambda numbers=numbers: numbers)).decode()))     # OpenMetrics' parser is strict
            assert len(families) > 30
            for f in families:
                assert f.name.startswith("nfckpt_") and f.documentation and f.type in ("gauge", "counter")
                assert not any(f.name.endswith(unit) for unit in ("_us", "_ms", "_ns", "_percent", "_total")), f.name
                assert all(s.name.endswith("_total") for s in f.samples) == (f.type == "counter")
                assert all({"pair", "node"} <= set(s.labels) for s in f.samples)
        with stopped(rig.pair.keepers["a"].pid):                        # it shows nothing new, and its age says so
            old = rig.pair.keepers["a"].pid
            until(lambda: scraped(ports["a"], "nfckpt_status_age_seconds") > [1.5] or rig.pair.keepers["a"].pid != old)
        rig.protected(2, timeout_s=60)
        until(lambda: scraped(ports["b"], "nfckpt_term") == [2.0] and scraped(ports["a"], "nfckpt_term") == [2.0])
        assert not rig.seen("metrics_lost")
    for port in ports.values():                                         # they end with their nodes
        until(lambda port=port: not scraped(port, "nfckpt_up"))


def test_an_address_that_is_taken_is_said_and_the_pair_goes_on() -> None:
    rig = PairRig("host")
    ports = with_metrics(rig)
    with socket.create_server(("127.0.0.1", ports["b"])), rig:
        (lost,) = until(lambda: rig.seen("metrics_lost"))
        assert (lost["node"], lost["address"], lost["code"]) == ("b", f"127.0.0.1:{ports['b']}", 2)
        rig.check()


def test_a_client_that_is_slow_holds_up_only_scrapes() -> None:
    port = free_ports(1)[0]
    board = Board(spec(f"127.0.0.1:{port}"))
    board.show({"role": "active", "term": 3})
    until(lambda: scraped(port, "nfckpt_term") == [3.0])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"GET /metr")
        assert scraped(port, "nfckpt_term") == [3.0]                    # after at most CLIENT_S_MAX
    board._exporter.stdin.close()                                       # type: ignore[union-attr]
    assert board._exporter.wait(10) == 0                                # type: ignore[union-attr]


def test_a_board_is_read_whole_or_not_at_all() -> None:
    board = Board()
    assert read(board.fd) is None and render(spec(), None).splitlines()[-1] == 'nfckpt_up{node="a",pair="p"} 0.0'
    board.show({"term": 1})
    whole = os.pread(board.fd, 4096, 0)
    os.pwrite(board.fd, b"9", len(whole) - 1)
    assert read(board.fd) is None, "torn"
    board.show({"text": "x" * (1 << 18)})
    board.show({"term": 2})
    assert read(board.fd)["term"] == 2                                  # type: ignore[index]


def test_the_board_takes_one_part_a_turn() -> None:
    board, asked = Board(), []

    def parts() -> Iterator[dict[str, Any]]:
        for i in range(3):
            asked.append(i)
            yield {str(i): i}

    for turn in range(1, 4):
        board.turn(turn * 1_000_000, parts)
        assert asked == list(range(turn)) and read(board.fd) is None
    board.turn(4_000_000, parts)
    assert set(read(board.fd) or {}) == {"0", "1", "2", "at_ns"}
    board.turn(5_000_000, parts)
    assert asked == [0, 1, 2], "nothing before it is due"


# ── bad input


def test_a_witness_of_another_pair_gives_no_terms() -> None:
    """Node b's questions go to a witness that somebody else's pair has."""
    foreign = Witness()
    foreign.term, foreign.holder = 41, "x9"
    rig = PairRig("host", traffic=False, b_differs={})
    rig.pair.keepers["b"]._ask = foreign.ask
    with rig.pair:
        (said,) = until(lambda: rig.seen("witness_foreign", "b")[:1])
        assert "x9" in said["error"]
        assert rig.pair.view().standby == "" and not rig.seen("standby") and not rig.seen("active", "b")
        until(lambda: rig.seen("active", "a"))
        trouble = Trouble()
        for name, fields in rig.events:
            trouble.take({"event": name, **fields})
        said = trouble.diagnose({"protected": False, "nodes": {n: k.status() for n, k in rig.pair.keepers.items()}})
        assert said is not None and "another pair" in said["why"]
    rig._stack.close()


def test_a_node_with_an_old_term_gets_nothing() -> None:
    """A node that slept through a takeover asks with the term it had."""
    with PairRig("host", traffic=False) as rig:
        old = rig.active
        rig.kill_active()
        rig.protected(2, timeout_s=60)
        view = rig.pair.view()
        from nfckpt.failover.witness import Question
        for question in (Question("protected", old, 1, rig.active), Question("solo", old, 1), Question("claim", old, 1), Question("claim", old, 2)):
            assert rig.pair._ask(question).said == "denied"
        assert rig.pair.view() == view


def test_no_wall_clock_decides_anything() -> None:
    """Clocks that jump: what runs a pair reads CLOCK_MONOTONIC. (Receive stamps of the kernel are CLOCK_REALTIME: ports/af_packet turns them
    into monotonic ones by the offset of the same instant. The event stream's `time` is for people.)"""
    wall = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "time.ctime", "datetime.now", "datetime.utcnow", "date.today"}
    for room in ("node", "replica", "failover", "wire", "deploy", "checkpoint", "observe", "clock.py"):
        for path in (ROOT / "nfckpt" / room).rglob("*.py") if (ROOT / "nfckpt" / room).is_dir() else [ROOT / "nfckpt" / room]:
            for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)):
                assert ast.unparse(call.func) not in wall or path.name == "stream.py", f"{path}:{call.lineno}"


def test_watch_ends_cleanly_with_ctrl_c(tmp_path: Path) -> None:
    from nfckpt.deploy.control import ControlServer
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "100"}
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path)
    asked = threading.Event()
    body = {"pair": "w", "profile": "host", "app": "m:C", "active": "", "protected": False, "keeper_pid": 1, "nodes": {}, "if_it_died_now": None,
            "trouble": {"why": "the pair is just starting", "since_s": 3.0, "to_do": "nothing yet"}}

    def answer(verb: str, node: str) -> dict[str, Any]:
        asked.set()
        return body

    try:
        with ControlServer("w", answer):
            for words in ([], ["--json"]):
                asked.clear()
                watching = subprocess.Popen([sys.executable, "-m", "nfckpt", "status", "--watch", *words], env=env, text=True,
                                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                assert asked.wait(20)
                time.sleep(0.3)
                watching.send_signal(signal.SIGINT)
                out, err = watching.communicate(timeout=20)
                assert watching.returncode == 130 and err == "" and "just starting" in out, (watching.returncode, err)
    finally:
        os.environ.pop("XDG_RUNTIME_DIR")
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before
