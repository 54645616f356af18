"""The simulator: many seeds without a breach, the same seed twice, everything reached, planted bugs caught."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from nfckpt.failover.takeover import Step, Takeover
from nfckpt.failover.witness import Question
from nfckpt.replica import active, standby
from nfckpt.replica.active import Active
from nfckpt.replica.effects import Ask, KillPeer, Send
from nfckpt.replica.standby import Standby, StandbyState
from nfckpt.sim.world import SimViolation, World
from nfckpt.wire import kinds
from nfckpt.wire.messages import TapOpen, encode_control

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


def test_a_violation_names_the_line_that_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Standby, "may_claim", property(lambda self: True))
    with pytest.raises(SimViolation, match=r"replay: nfckpt sim --seed \d+ --trace$"):
        for seed in range(200):
            World(seed).run()


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


def takeover_without_fence(m: pytest.MonkeyPatch) -> None:
    """Neither a death awaited nor a lease."""
    real = Takeover.advance

    def advance(self: Takeover, now: int) -> Any:
        if self.step is Step.FENCE:
            self._fenced(now)
        return [e for e in real(self, now) if not isinstance(e, KillPeer)]

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
        covers, self_skew = self.tap.covers, self.open_ns
        if self.state is StandbyState.SYNCING and self.path.last_page and not self.waiting and (covers(0) or self_skew):
            self._move("whole")
            self.tap.whole()
            from nfckpt.wire.messages import Whole
            return [Send(kinds.CONTROL, encode_control(Whole(self.session)))]
        return []

    m.setattr(Standby, "_progress", progress)


def protected_before_it_is_recorded(m: pytest.MonkeyPatch) -> None:
    """The active believes in a standby that the witness does not know."""

    def record(self: Active, now: int) -> Any:
        from nfckpt.failover.witness import Answer
        self.recording = True
        return self.on_witness(now, Answer("protected", "ok", self.term, self.node, self.session))

    m.setattr(Active, "_record", record)


def answers_of_another_session(m: pytest.MonkeyPatch) -> None:
    """Any yes of the witness counts, whichever follower it was about."""
    real = Active.on_witness
    m.setattr(Active, "on_witness", lambda self, now, a: real(self, now, type(a)(a.verb, a.said, a.term, a.holder, self.session)))


def settle_at_once(m: pytest.MonkeyPatch) -> None:
    """Outputs of the dead active that are still on their way are emitted again."""
    real = Takeover.advance

    def advance(self: Takeover, now: int) -> Any:
        self.bounds = type(self.bounds)(tap_skew_ms_max=0, lease_ms=self.bounds.lease_ms, lease_margin_ms=self.bounds.lease_margin_ms,
                                        claim_ms_max=self.bounds.claim_ms_max)
        return real(self, now)

    m.setattr(Takeover, "advance", advance)


MUTANTS: list[Patch] = [takeover_without_claim, takeover_without_fence, claim_while_syncing, solo_before_the_answer, ack_before_commit,
                        tap_opens_at_once, protected_before_it_is_recorded, answers_of_another_session, settle_at_once]


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda f: f.__name__)
def test_planted_bug_is_caught(plant: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    for seed in itertools.islice(itertools.count(), 200):
        try:
            World(seed).run()
        except SimViolation:
            return
    pytest.fail(f"{plant.__name__} lived through 200 seeds")


assert Ask and Question
