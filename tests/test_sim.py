"""The simulator: many seeds without a breach, the same seed twice, everything reached, planted bugs caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nfckpt.failover.takeover import Step, Takeover
from nfckpt.failover.witness import Answer
from nfckpt.replica import active, standby
from nfckpt.replica.active import Active
from nfckpt.replica.effects import Send
from nfckpt.replica.standby import Standby, StandbyState
from nfckpt.sim.world import SimViolation, World
from nfckpt.wire import kinds
from nfckpt.wire.messages import TapOpen, Whole, encode_control

SEEDS = range(200)


def test_no_promise_is_broken_and_everything_is_reached() -> None:
    covered: set[str] = set()
    takeovers = waived = missed = inputs = 0
    for seed in SEEDS:
        outcome = World(seed).run()
        covered |= outcome.covered
        takeovers += outcome.takeovers
        inputs, waived, missed = inputs + outcome.inputs, waived + outcome.waived, missed + outcome.missed
    table = {f"active {state.value} {event}" for state, event in active.TRANSITIONS}
    table |= {f"standby {state.value} {event}" for state, event in standby.TRANSITIONS}
    table |= {f"takeover {step.value}" for step in Step}
    assert covered == table
    assert takeovers > len(SEEDS) // 3          # and they were exact: what is waived are other crashes
    assert waived < inputs // 2 and missed > 50


@pytest.mark.parametrize("seed", [3, 17, 42])
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    first, again = World(seed).run(800), World(seed).run(800)
    assert first == again
    assert first.digest != World(seed + 1).run(800).digest


# ── planted bugs ─────────────────────────────────────────────────────────────────────────────────

Patch = Callable[[pytest.MonkeyPatch], None]


def takeover_without_claim(m: pytest.MonkeyPatch) -> None:
    """On suspicion the standing grant is used as if it were proof."""
    real = Takeover.advance

    def advance(self: Takeover, now: int) -> Any:
        if self.step is Step.CLAIM:
            self._next(now, Step.FENCE)
        return real(self, now)

    m.setattr(Takeover, "advance", advance)


def claim_while_syncing(m: pytest.MonkeyPatch) -> None:
    """Half an arena is promoted."""
    m.setattr(Standby, "may_claim", property(lambda self: True))
    m.setattr(Standby, "promotable", property(lambda self: True))


def solo_before_the_answer(m: pytest.MonkeyPatch) -> None:
    """The active asks, and emits at once."""
    real = Active.on_peer_lost

    def on_peer_lost(self: Active, now: int, reason: str, proof: bool) -> Any:
        effects = real(self, now, reason, proof)
        if self.state.value == "holding":
            self._move("void")
            effects += self._solo(now, reason)
        return effects

    m.setattr(Active, "on_peer_lost", on_peer_lost)


def ack_before_commit(m: pytest.MonkeyPatch) -> None:
    """The standby acks what it received and has not taken yet."""
    real = Standby.on_message

    def on_message(self: Standby, now: int, kind: int, payload: memoryview) -> Any:
        if kind != kinds.EPOCH:
            return real(self, now, kind, payload)
        self.path.heard(now)
        self.waiting.append(payload)
        return [Send(kinds.ACK, self.path.ack(self.path.epoch + len(self.waiting), now))]

    m.setattr(Standby, "on_message", on_message)


def tap_opens_at_once(m: pytest.MonkeyPatch) -> None:
    """No skew between welcome and tap, none before the standby calls itself whole."""

    def progress(self: Standby, now: int) -> Any:
        if self.state is StandbyState.SYNCING and not self.open_ns:
            self.tap.open()
            self.open_ns = now
            self.path.tap_open = True
            return [Send(kinds.CONTROL, encode_control(TapOpen(self.session)))]
        if self.state is StandbyState.SYNCING and self.path.last_page and not self.waiting:
            self._move("whole")
            self.tap.whole()
            return [Send(kinds.CONTROL, encode_control(Whole(self.session)))]
        return []

    m.setattr(Standby, "_progress", progress)


def protected_before_it_is_recorded(m: pytest.MonkeyPatch) -> None:
    """The active believes in a standby that the witness does not know."""

    def record(self: Active, now: int) -> Any:
        self.recording = True
        return self.on_witness(now, Answer("protected", "ok", self.term, self.node, self.session))

    m.setattr(Active, "_record", record)


def settle_at_once(m: pytest.MonkeyPatch) -> None:
    """Outputs of the dead active that are still on their way are emitted again."""
    real = Takeover.advance

    def advance(self: Takeover, now: int) -> Any:
        self.bounds = type(self.bounds)(tap_skew_ms_max=0, lease_ms=self.bounds.lease_ms, lease_margin_ms=self.bounds.lease_margin_ms,
                                        claim_ms_max=self.bounds.claim_ms_max)
        return real(self, now)

    m.setattr(Takeover, "advance", advance)


MUTANTS: list[tuple[Patch, int]] = [        # and the seed to begin with
    (takeover_without_claim, 0), (claim_while_syncing, 0), (solo_before_the_answer, 0), (protected_before_it_is_recorded, 0),
    (settle_at_once, 0), (tap_opens_at_once, 90), (ack_before_commit, 260),
]


@pytest.mark.parametrize(("plant", "first"), MUTANTS, ids=[plant.__name__ for plant, _ in MUTANTS])
def test_planted_bug_is_caught(plant: Patch, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in range(first, first + 200):
        try:
            World(seed).run()
        except SimViolation as e:
            assert f"replay: nfckpt sim --seed {seed} --trace" in str(e)
            return
    pytest.fail(f"{plant.__name__} lived through 200 seeds")
