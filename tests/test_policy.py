"""Epoch policy: when an epoch closes and why; the hold that adapts. A simulated clock and planted costs; nothing is timed."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nfckpt.checkpoint.engine import CAUSES, Engine
from nfckpt.config import Bounds, example, loads
from nfckpt.errors import ConfigError
from nfckpt.native.hold import Hold
from nfckpt.observe.board import ExporterSpec
from nfckpt.observe.metrics import render
from nfckpt.observe.views import nodes_table
from tests.native_lab import MS, frame
from tests.test_agent import Rig

US = 1000
POLL_NS = 2 * US


def run(hold: Hold, cost: Callable[[int], float], ms: int, gap_ns: int = 0, seed: int = 1) -> tuple[float, int]:
    """A packet thread under input for `ms`: it polls every 2 µs, an epoch opens at the first poll after `gap_ns` without input, and
    closes when the hold is over. `cost(open for ns)`: what capturing then takes. Returns the share of its last half spent
    on captures, and the longest an epoch was open, ns."""
    rng, now, end, spent, longest = random.Random(seed), 1, ms * MS, 0.0, 0
    while now < end:
        now += gap_ns
        opened = now
        while now - opened < hold.ns:
            now += POLL_NS
        longest = max(longest, now - opened)
        cut, ns = now, int(cost(now - opened + POLL_NS) * rng.uniform(0.8, 1.2))
        now += ns + POLL_NS
        hold.cut(cut, ns)
        assert hold.ns <= hold.target_ns                # H1
        spent += ns if now > end / 2 else 0
    return spent / (end / 2), longest


MODELS: list[tuple[str, Callable[[int], float], int, int, str, float]] = [
    # what an epoch costs, ns            its cost,                        target µs, budget %, binds, hold that meets the budget, µs
    ("half a µs: cheap enough at every poll", lambda ns: 500, 1000, 50, "none", 0),
    ("a µs each", lambda ns: 1000, 1000, 5, "cpu", 20 - 3),
    ("a µs and 2 % of the time it was open", lambda ns: 1000 + 0.02 * ns, 1000, 5, "cpu", 33 - 3),
    ("50 µs each", lambda ns: 50_000, 5000, 10, "cpu", 500 - 52),
    ("50 µs each, little patience", lambda ns: 50_000, 200, 10, "latency", 200),
    ("writing alone takes more than the budget", lambda ns: 0.2 * ns, 1000, 10, "latency", 1000),
]


@pytest.mark.parametrize("name, cost, target, percent, binds, hold_us", MODELS, ids=[m[0] for m in MODELS])
def test_the_hold_converges_and_says_what_binds(name: str, cost: Callable[[int], float], target: int, percent: int, binds: str,
                                                hold_us: float) -> None:
    hold = Hold(target, percent)
    share, longest = run(hold, cost, 200)
    assert hold.binds == binds
    assert hold.ns / US == pytest.approx(hold_us, rel=0.25, abs=2)
    assert longest <= target * US + POLL_NS             # an output waits no longer than the target, and the poll that sees it is over
    if binds == "cpu":
        assert share == pytest.approx(percent / 100, rel=0.2) and hold.cpu_percent == pytest.approx(percent, rel=0.25)
    elif binds == "none":
        assert share < percent / 100


def test_the_hold_follows_the_load() -> None:
    """Dear captures, then cheap ones, then hardly any input: up, down, and at once back to nothing."""
    hold = Hold(2000, 5)
    run(hold, lambda ns: 20_000, 100)
    assert hold.binds == "cpu" and 300 * US < hold.ns < 500 * US
    run(Hold(2000, 5), lambda ns: 20_000, 1)
    dear = hold.ns
    began, now = dear, 10_000 * MS
    for _ in range(2000):
        now += hold.ns + POLL_NS
        hold.cut(now, 1000)
    assert hold.ns < began / 10
    run(hold, lambda ns: 20_000, 5, gap_ns=MS)          # one epoch a millisecond: 20 µs of it are 2 %
    assert (hold.ns, hold.binds) == (0, "none")         # H3


def test_one_interrupted_capture_moves_it_little() -> None:
    hold, now = Hold(10_000, 10), 0
    for n in range(64 * 20 + 1):
        now += hold.ns + POLL_NS
        hold.cut(now, 1000 if n != 64 * 19 + 5 else 8 * MS)      # the scheduler took the thread away for 8 ms
    assert hold.ns < 20 * US


def test_a_fixed_hold_is_fixed() -> None:
    hold = Hold(70)
    for n in range(1000):
        hold.cut(n * MS, MS)
    assert (hold.ns, hold.binds, hold.adaptive) == (70 * US, "none", False)
    with pytest.raises(ConfigError, match="percent"):
        Hold(1, 101)


# ── why an epoch closes ──────────────────────────────────────────────────────────────────────────


def test_an_epoch_closes_for_each_cause_and_says_so() -> None:
    engine = Engine(Bounds(hold_us_max=100, hold_frames_max=10, hold_dirty_bytes_max=8192))
    now = MS

    def closes(expect: str, pending: bool = True, crowded: bool = False, frames: int = 0, dirty: int = 0) -> None:
        assert engine.due(now, pending, crowded, frames, dirty) == expect
        if expect:
            engine.captured()
            engine.ship(now)

    closes("", pending=False)
    closes("")
    closes("", frames=9, dirty=4096)
    closes("frames", frames=10)
    closes("bytes", dirty=8192)
    closes("crowded", crowded=True)
    closes("")
    number = engine.request()
    closes("request", pending=False)
    assert not engine.resume(number)
    closes("")
    now += 100 * US
    closes("time")
    assert engine.closed == dict.fromkeys(CAUSES, 1)


def test_outputs_and_dirty_bytes_close_an_epoch_at_the_poll() -> None:
    rig = Rig(hold_us_max=1_000_000, hold_frames_max=5, hold_dirty_bytes_max=3 * 4096)
    rig.protect()
    for n in range(5):
        assert rig.path.staged is None
        rig.agent.emit(1, frame(n))
        rig.rx()
    assert rig.path.staged is not None
    rig.path.shipped()
    for page in range(3):                   # dirty bytes are lines of 64 bytes
        assert rig.path.staged is None
        rig.arena.write_bytes(page * 4096, bytes(4096))
        rig.rx()
    assert rig.path.staged is not None
    assert rig.engine.engine.closed == {"time": 0, "frames": 1, "bytes": 1, "crowded": 0, "request": 0}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 500), st.integers(1, 64))
def test_i3_no_input_rate_postpones_a_cut(seed: int, hold_us: int, burst: int) -> None:
    """However many frames come between two polls, an epoch that has something to say closes at the first poll after its hold."""
    rng, rig = random.Random(seed), Rig(hold_us_max=hold_us)
    rig.protect()
    opened: int | None = None
    for n in range(100):
        before = rig.engine.engine.epoch
        pending = rig.agent.pending
        if pending and opened is None:
            opened = rig.now                            # this poll is the first to see it
        rig.rx(*(frame(n) for _ in range(rng.randrange(burst))), most=burst)
        rig.agent.drop(rig.burst)
        cut = rig.engine.engine.epoch != before
        assert cut == (opened is not None and rig.now - opened >= hold_us * US) or rig.path.staging_full
        if cut:
            opened = None
            rig.path.shipped()
            rig.ack(before)
        rig.now += rng.randrange(200 * US)


# ── where it is set and seen ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("line, said", [
    ('hold_policy = "auto"', "hold_us_max.*target"),
    ('hold_policy = "sometimes"', "hold_policy"),
    ('hold_policy = "auto"\nhold_us_max = 100\nhold_cpu_percent_max = 0', "between 1 and 100"),
    ("hold_frames_max = 0", "at least 1"),
    ("hold_dirty_bytes_max = 4095", "page"),
    ("sync_pause_us_max = 9", "at least 10"),
])
def test_a_policy_that_cannot_be_is_refused_with_its_key(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loads(example() + line + "\n")


def test_the_policy_in_the_config_and_in_the_metrics() -> None:
    config = loads(example() + 'hold_policy = "auto"\nhold_us_max = 250\n')
    engine = Engine(config.bounds)
    assert engine.hold.adaptive and engine.hold.target_ns == 250 * US and engine.hold.ns == 0
    assert '# hold_policy = "fixed"' in example() and "# hold_cpu_percent_max = 10" in example()
    text = render(ExporterSpec("p", "a", "host", "", config.bounds), {
        "at_ns": 0, "role": "active", "hold_us": 12.5, "hold_binds": "cpu", "hold_policy": "auto", "epochs_closed": {"time": 7}})
    assert 'nfckpt_hold_seconds{node="a",pair="p"} 1.25e-05' in text and 'nfckpt_hold_bound{by="cpu",node="a",pair="p"} 1.0' in text
    assert 'nfckpt_epochs_closed_total{cause="time",node="a",pair="p"} 7.0' in text


def test_the_hold_in_the_status_table() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(nodes_table({"a": {"role": "active", "hold_us": 20.0, "hold_policy": "auto", "hold_binds": "cpu"},
                               "b": {"role": "standby"}, "c": {"role": "active", "hold_us": 0.0, "hold_policy": "fixed", "hold_binds": "none"}}))
    text = console.export_text()
    assert "20 µs (cpu)" in text and "0 µs " in text and "none" not in text
