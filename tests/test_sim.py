"""The simulator: many seeds without a breach, everything reached, the same seed twice, a user's app, a violation that shrinks.

That it proves the protocol wrong when it is wrong is tests/test_mutants.py.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest

from nfckpt.errors import ConfigError
from nfckpt.native.burst import Burst
from nfckpt.nf import Context, NetworkFunction, PollingFunction
from nfckpt.sim.campaign import FULL, Campaign, everything, first_violation, promise_of, shrink
from nfckpt.sim.faults import Faults, schedule
from nfckpt.sim.ledger import Ledger
from nfckpt.sim.toy import Explain, Toy
from nfckpt.sim.world import SimViolation, World


@pytest.mark.timeout(600)
def test_no_promise_is_broken_and_everything_is_reached() -> None:
    report = Campaign(range(FULL), jobs=len(os.sched_getaffinity(0))).run()
    assert report.violations == [] and report.missing == []
    assert report.total["kills of a protected active at work"] > FULL // 3
    assert report.total["inputs waived"] < report.total["inputs"] // 4 and report.total["missed by the active's ring"] > 50


def test_what_was_not_reached_fails_a_campaign() -> None:
    report = Campaign(range(2)).run()
    assert report.missing and report.ok                 # two seeds cannot: they only say so
    report.seeds = FULL
    assert not report.ok
    assert {"engine quiescing resume", "active handed lost", "crash standby at settle", "fault stall out"} <= everything()


@pytest.mark.parametrize("seed", [3, 17, 42])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    first, again = World(seed).run(800), World(seed).run(800)
    assert first == again
    assert first.digest != World(seed + 1).run(800).digest


def test_leaving_a_fault_out_changes_nothing_in_the_others() -> None:
    faults = schedule(5, True, 4.0)
    assert faults == schedule(5, True, 4.0) and len({f.what for f in faults}) > 10
    assert World(5, faults=frozenset()).run(800).faults == {}
    assert set(World(5, faults=frozenset({1})).run(800).faults) <= {World(5).faults._coming[0].what, faults[1].what}


def test_a_violation_is_replayed_by_its_line_and_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a promise that any death of a standby breaks. Of the whole schedule only those faults are left that it takes."""
    real = Faults._crash_standby

    def crash(self: Faults, node: Any) -> None:
        real(self, node)
        self.world.referee.fail("I4: planted")

    monkeypatch.setattr(Faults, "_crash_standby", crash)
    found = first_violation(range(60))
    assert found is not None
    seed, text = found
    assert f"replay: nfckpt sim --seed {seed} --trace" in text
    smallest = str(shrink(seed))
    assert promise_of(smallest) == promise_of(text)
    numbers = frozenset(map(int, smallest.split("--faults ")[1].split(",")))
    with pytest.raises(SimViolation, match="planted"):
        World(seed, faults=numbers).run()
    for one in numbers:
        World(seed, faults=numbers - {one}).run()


# ── somebody's own app ───────────────────────────────────────────────────────────────────────────


class Wire(NetworkFunction):
    """Says nothing of itself: inputs and outputs are counted all the same."""

    ports = ("left", "right")

    def declare(self, state: Any) -> None:
        self.seen = state.counters("seen", ["left", "right"])

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        self.seen.add(burst.port, 1)
        burst.send(slice(None), 1 - burst.port)


class Forgetful(Toy):
    """Its count lives outside the arena: a takeover forgets it."""

    def __init__(self) -> None:
        self.told: Counter[int] = Counter()

    def _answer(self, asked: bytes, ctx: Context) -> bytes:
        self.told[asked[15]] += 1
        self.flows[asked[15] * 3 + asked[16]] = (self.told[asked[15]], 7)
        return super()._answer(asked, ctx)


class Loop(PollingFunction):
    ports = ("left", "right")


def test_an_app_of_one_s_own() -> None:
    report = Campaign(range(25), app="tests.test_sim:Wire").run()
    assert report.violations == [] and report.total["takeovers"] > 5 and report.total["outputs"] > 1000


def test_an_app_whose_state_does_not_explain_its_outputs_is_found() -> None:
    found = first_violation(range(40), app="tests.test_sim:Forgetful")
    assert found is not None and "counted" in found[1] and "--app tests.test_sim:Forgetful" in found[1]


def test_an_app_that_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ConfigError, match="owns its loop"):
        World(0, app="tests.test_sim:Loop")
    with pytest.raises(ConfigError, match="no_such"):
        World(0, app="no_such_module:App")


# ── the ledger and the explanation, by hand ──────────────────────────────────────────────────────


class Broken(Exception):
    pass


def ledger() -> Ledger:
    def fail(text: str) -> Any:
        raise Broken(text)

    book = Ledger(fail, skew_ns=10)
    book.leads("a", True)
    return book


X = (0, b"x" * 60)


def test_a_takeover_drops_what_is_open() -> None:
    book = ledger()
    book.sent(X, 0)
    book.took("a", 1, [X])
    book.made("a", 1, (1, b"y"))
    book.leads("b", False)
    assert book.due == {X} and not book.owed
    book.took("a", 2, [X])                  # what the fenced one goes on with, nobody learns
    book.settle()
    assert book.due == {X}
    book.took("b", 2, [X])
    book.settle(2)
    assert not book.due
    book.took("b", 3, [X])
    with pytest.raises(Broken, match="taken in 2 times, sent 1"):
        book.settle()


def test_an_output_leaves_once() -> None:
    book = ledger()
    book.made("a", 1, (1, b"y" * 60))
    with pytest.raises(Broken, match="without a state"):
        book.left((1, b"y" * 60), 5)
    book.settle(1)
    assert book.left((1, b"y" * 60), 5)
    with pytest.raises(Broken, match="twice"):
        book.left((1, b"y" * 60), 5)
    book.unseen((1, b"y" * 60), until=9)
    assert not book.left((1, b"y" * 60), 8)


def test_a_gap_of_the_tap_excuses_one_copy_and_not_the_next() -> None:
    book = ledger()
    book.sent(X, 0)
    book.unseen(X, 0)
    assert not book.due
    book.took("a", 1, [X])
    book.settle(1)
    book.sent(X, 100)
    assert book.due == {X}                  # the first was taken in: a tap that still remembers it loses the second


def test_explain_counts() -> None:
    rng = random.Random(1)
    port, frame = next(Toy.traffic(rng))
    assert len(frame) == 60 and port in (0, 1)
    explain = Explain()
    one = bytes(14) + b"O\0\0" + bytes(4) + (1).to_bytes(8, "big") + bytes(8) + (1).to_bytes(8, "big") + bytes(8)
    assert explain(1, one) == "" and "counted 1" in explain(1, one)
