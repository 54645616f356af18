"""Each row of the benchmark, tiny: it runs, its digests agree, its figures are numbers that can be. Never how fast."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nfckpt.bench import slices
from nfckpt.bench.capture import Capture
from nfckpt.bench.figure import DifferenceError, Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.report import every, listing, measure, select, table
from nfckpt.bench.rows import GROUPS, ROWS, load, wire
from nfckpt.bench.rows.mmu import mapping
from nfckpt.bench.rows.versus import Runner, ours
from nfckpt.bench.slices import Watch, pairs, quartiles
from nfckpt.bench.targets import TARGETS
from nfckpt.bench.work import line_writer, nat_frames, segments, udp_frame
from nfckpt.errors import ConfigError, MachineError, PeerError
from nfckpt.native.bench import ScanAndCopy, write_lines
from nfckpt.native.mmu import probe
from nfckpt.ports.memory import MemoryHub

TINY = Scale(0.3, tiny=True)


def scanning() -> None:
    """Skips where the kernel has no scan for written pages."""
    try:
        probe()
    except MachineError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("name", ROWS)
def test_row(name: str) -> None:
    row = load(name)
    figures = row.measure(TINY)
    assert tuple(f.key for f in figures) == row.KEYS
    for f in figures:
        if f.value is None:
            assert f.note.startswith("unavailable: ") and f.key in ("mmu_pause_ratio", "vs_redis", "protect_ratio")
            continue
        assert math.isfinite(f.value)
        assert f.value > 0 or f.key == "protect_ns"     # a difference of like and like: noise may turn it round
        assert re.fullmatch("[0-9a-f]{64}", f.digest) and f.settings
        assert f.spread is None or f.spread[0] <= f.value <= f.spread[1]
        assert f.limit is not None and f.limit_what
        json.dumps(f.as_dict())


def test_every_key_has_a_target_and_every_target_a_row() -> None:
    assert sorted(key for name in every() for key in load(name).KEYS) == sorted(TARGETS)
    assert TARGETS["protect_ns"].met(40) and not TARGETS["protect_ns"].met(40.1)
    assert TARGETS["vs_redis"].met(20) and not TARGETS["vs_redis"].met(19.9)


def test_rows_are_chosen_by_name_or_key() -> None:
    assert select([]) == list(ROWS)
    assert select(["failover"]) == list(GROUPS["failover"]) and select(["crash_outage_ms_p99", "pause"]) == ["pause", "crash"]
    assert select(["vs_redis", "pause_us_p99"]) == ["checkpoints", "versus"]
    with pytest.raises(ConfigError, match=r"no row 'fast'.*--list"):
        select(["fast"])


def test_what_was_disturbed_is_shown_and_not_judged() -> None:
    spread = quartiles([250_000.0] * 3, rejected=9, quiet=False)
    noise = Figure.of("checkpoints_per_s", spread, digest="", settings={})
    assert noise.met is None and noise.as_dict()["met"] is None and noise.value == 250_000
    fine = Figure.of("checkpoints_per_s", quartiles([250_000.0] * 3), digest="", settings={})
    assert fine.met
    shown = table([noise, fine])
    assert [list(column.cells) for column in shown.columns][1] == ["250,000!", "250,000"]
    assert [list(column.cells) for column in shown.columns][5] == ["", "[green]met[/green]"]


def test_without_a_scan_the_mmu_row_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MachineError("no userfaultfd")

    monkeypatch.setattr(load("mmu"), "probe", refuse)
    errors: dict[str, str] = {}
    [figure] = measure(["mmu"], TINY, errors)
    assert not errors and figure.value is None and figure.note == "unavailable: no userfaultfd"


@pytest.mark.parametrize("tracker", ["barrier", "mmu"])
def test_a_capture_that_misses_a_line_is_an_error(tracker: str) -> None:
    if tracker == "mmu":
        scanning()
    capture = Capture(1 << 20, tracker)
    capture.write(np.array([100, 9000], np.uint32))
    capture.take()
    assert len(capture.equal()) == 64
    capture.write(np.array([101], np.uint32))
    capture.arena.forget_writes()
    capture.take()
    with pytest.raises(DifferenceError, match="differs after epoch 2"):
        capture.equal()


def test_scan_and_copy_copies_the_written_pages() -> None:
    scanning()
    memory, into = mapping(1 << 16), np.zeros(1 << 16, np.uint8)
    plain = ScanAndCopy(memory)
    assert plain.ns(np.array([3 * 64 + 1, 9 * 64], np.uint32), into) > 0
    assert into.nonzero()[0].tolist() == [64, 4096]
    assert into[:8192].tobytes() == memory[3 * 4096:4 * 4096] + memory[9 * 4096:10 * 4096]
    into[:] = 0
    plain.ns(np.array([5 * 64], np.uint32), into)
    assert into.nonzero()[0].tolist() == [0]            # what was written before is no longer written


def test_bytes_on_the_wire_are_those_of_encoded_records(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = [f.value for f in wire.measure(TINY)]
    assert [f.value for f in wire.measure(TINY)] == pytest.approx(encoded, rel=0.02)     # bytes, not times
    assert encoded[1] is not None and 0 < encoded[1] < 1
    blind = [MemoryHub(3, 64, 256) for _ in range(2)]
    opened = MemoryHub.open
    monkeypatch.setattr(MemoryHub, "open", lambda hub, endpoint: opened(hub if endpoint < 2 else blind[0], endpoint))
    try:
        with pytest.raises(DifferenceError, match="names a frame that the tap did not see"):
            wire.measure(TINY)                          # the tap is on other segments
    finally:
        for hub in blind:
            hub.close()


def test_arenas_that_differ_are_an_error_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    with segments([udp_frame(9)]) as s, Pair(line_writer(1 << 20), s.ports, arena_bytes=1 << 20) as pair:
        pair.run(0.01)
        assert len(pair.equal()) == 64
        write_lines(pair.arena, np.array([100], np.uint32))
        pair.arena.forget_writes()                      # a write that no epoch tells of
        with pytest.raises(DifferenceError, match="the standby has"):
            pair.equal()

    def different(scale: Scale) -> list[Figure]:
        raise DifferenceError("they differ")

    monkeypatch.setattr(load("mmu"), "measure", different)
    errors: dict[str, str] = {}
    figures = measure(["mmu"], TINY, errors)
    assert errors == {"mmu": "DIFFERENT: they differ"} and figures[0].value is None
    assert table(figures).row_count == 1


def test_a_rival_with_other_outputs_is_an_error() -> None:
    class Silent:
        about = "says the same"

        def __call__(self, burst: list[bytes]) -> list[bytes]:
            return list(burst)

    frames = nat_frames(4)
    with pytest.raises(DifferenceError, match="says the same: other outputs"):
        Runner(Silent(), frames, ours(frames))          # type: ignore[arg-type]


def test_a_standby_that_dies_is_said_and_nothing_is_left() -> None:
    cpus = os.sched_getaffinity(0)
    with segments([udp_frame(9)]) as s, Pair(line_writer(1 << 20), s.ports, arena_bytes=1 << 20) as pair:
        pair.child.kill()
        with pytest.raises(PeerError):
            for _ in range(1000):
                pair.run(0.01)
    assert pair.child.returncode is not None and os.sched_getaffinity(0) == cpus


def test_only_the_counted_epochs_are_whole() -> None:
    app = line_writer(1 << 20)
    with segments([udp_frame(9)], limit=32) as s, Pair(app, s.ports, arena_bytes=1 << 20) as pair:
        for frames, whole in ((32, 1), (31, 1), (32, 2), (64, 4)):
            app.watch(pair.agent, 32)
            s.generator.limit = s.generator.made + frames
            pair.run(0.02)
            app.watch(None, 0)
            assert app.whole == whole


def test_pairs_measure_disturbed_slices_again(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = iter([True, False, True, False, False, False])
    monkeypatch.setattr(Watch, "__exit__", lambda self, *exc: setattr(self, "disturbed", next(noise)))
    numbers = iter(range(100))
    both = pairs(lambda: next(numbers), lambda: 2.0, 4, seconds=60)
    assert len(both.a) == 4 and both.rejected == 2 and both.quiet
    assert both.a == [3, 5, 6, 7] or len(set(both.a)) == 4      # 0 warmed up, two were thrown away
    monkeypatch.setattr(Watch, "__exit__", lambda self, *exc: setattr(self, "disturbed", True))
    both = pairs(lambda: 1.0, lambda: 2.0, 4, seconds=60)
    assert len(both.a) == 4 * (1 + slices.RETRIES) == both.rejected and not both.quiet


def test_a_watch_sees_a_process_that_was_kept_waiting() -> None:
    """Two processes on one CPU: each waits for the other."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        with Watch() as watch:
            end = time.monotonic() + 0.2
            while time.monotonic() < end:
                pass
        assert watch.disturbed
    finally:
        rival.kill()
        rival.wait()
        os.sched_setaffinity(0, cpus)


def test_quartiles() -> None:
    spread = quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (spread.low, spread.median, spread.high, spread.kept) == (2, 3, 4, 5)
    assert quartiles([7.0]).low == 7


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    listing(True)
    assert {row["key"] for row in json.loads(capsys.readouterr().out)} == set(TARGETS)
    done = subprocess.run([sys.executable, "-m", "nfckpt", "bench", "wire", "mmu", "--seconds", "0.1", "--json"], capture_output=True, text=True,
                          timeout=60)
    body = json.loads(done.stdout)
    assert done.returncode == 0 and body["ok"] and body["wire_ratio"] > 0 and "mmu_pause_ratio" in body
    assert body["machine"]["cpus"] >= 1 and body["rows"]["wire_ratio"]["target"] == 3.0
    bad = subprocess.run([sys.executable, "-m", "nfckpt", "bench", "nonsense"], capture_output=True, text=True, timeout=60)
    assert bad.returncode == 2 and "no row 'nonsense'" in bad.stderr


def test_ctrl_c_leaves_no_process() -> None:
    run = subprocess.Popen([sys.executable, "-m", "nfckpt", "bench", "protect", "--seconds", "60"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 30
    children: list[int] = []
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        with open(f"/proc/{run.pid}/task/{run.pid}/children") as f:
            children = [int(pid) for pid in f.read().split()]
    assert children
    time.sleep(0.5)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=20)
    assert run.returncode == 130 and not any(os.path.exists(f"/proc/{pid}") for pid in children)
