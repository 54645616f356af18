"""The smallest traffic and the earliest kill that still make a difference: what an author wants to read.

Picture     200 steps, killed after each  ──►  one kill  ──►  no step behind the difference  ──►  fewer steps  ──►  fewer frames
                                                                                                └── an even earlier kill
Greedy, in halves, then quarters, then one by one (Zeller's ddmin), within RUNS_MAX tries; each try is a pair of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from nfckpt.sim.nf_parts import Outcome
from nfckpt.sim.nf_traffic import Step

__all__ = ["Case", "differ", "shrink"]

RUNS_MAX = 400
T = TypeVar("T")


class Case(NamedTuple):
    """Steps, kills (step number → stage), and what the unkilled twin and the killed run made of them."""

    steps: list[Step]
    kills: dict[int, str]
    twin: Outcome
    killed: Outcome


Try = Callable[[Sequence[Step], dict[int, str]], "Case | None"]


def differ(a: Outcome, b: Outcome) -> bool:
    """Order is compared within each port: across ports nobody promises one."""
    if (a.error is None) != (b.error is None):
        return True
    ports = {port for port, _, _ in a.outputs} | {port for port, _, _ in b.outputs}
    return a.regions != b.regions or any(a.of_port(p) != b.of_port(p) for p in ports)


def shrink(case: Case, attempt: Try) -> Case:
    """`attempt(steps, kills)`: a Case when they differ, else None."""
    left = RUNS_MAX

    def better(steps: Sequence[Step], kills: dict[int, str]) -> bool:
        nonlocal case, left
        left -= 1
        found = attempt(steps, kills) if left > 0 and steps else None
        if found is not None:
            case = found
        return found is not None

    for number, stage in sorted(case.kills.items()):
        if better(case.steps, {number: stage}):
            break
    last = max(len(case.steps) - 1, 0)
    while last > 0 and better(case.steps[:(last + 1) // 2], _within(case.kills, case.steps[:(last + 1) // 2])):
        last = len(case.steps) - 1
    _ddmin(lambda: case.steps, lambda steps: better(steps, _within(case.kills, steps)), lambda: left > 0)
    for step in list(case.steps):
        at = case.steps.index(step)

        def with_frames(frames: list[bytes], at: int = at) -> bool:
            steps = list(case.steps)
            steps[at] = replace(steps[at], frames=tuple(frames))
            return bool(frames) and better(steps, case.kills)

        if len(step.frames) > 1:
            _ddmin(lambda at=at: list(case.steps[at].frames), with_frames, lambda: left > 0)     # type: ignore[misc]
    if len(case.kills) == 1:
        (killed, stage), = case.kills.items()
        for step in case.steps:
            if step.number >= killed or better(case.steps, {step.number: stage}):
                break
    return case


def _within(kills: dict[int, str], steps: Sequence[Step]) -> dict[int, str]:
    numbers = {s.number for s in steps}
    return {n: stage for n, stage in kills.items() if n in numbers}


def _ddmin(now: Callable[[], list[T]], without: Callable[[list[T]], bool], going: Callable[[], bool]) -> None:
    """Take away ever smaller pieces of `now()` as long as `without(rest)` says that the rest will do."""
    size = max(len(now()) // 2, 1)
    while going():
        at, shrunk = 0, False
        while at < len(now()) and going():
            rest = now()[:at] + now()[at + size:]
            if rest and without(rest):
                shrunk = True
            else:
                at += size
        if size == 1 and not shrunk:
            return
        size = max(size // 2, 1)
