"""Campaign: many seeds, what they reached, and the smallest schedule that still breaks a promise.

        Campaign(range(1000)).run()         # a Report; its `text()` is what `nfckpt sim` prints

Every transition of the tables of engine, active, standby, takeover and witness, every end of a process, a lie to either side, every
fault, and a crash at every point of nfckpt.sim.faults.POINTS must have been reached: a campaign that did not prove them says so, and
fails. (One of less than `FULL` seeds is only told.) Every `TWICE`th seed runs twice and must give the same digest.

A schedule is shrunk by delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002) over the
numbers of its faults; the same promise must break, wherever.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice

from nfckpt.checkpoint.engine import TRANSITIONS as ENGINE
from nfckpt.failover.takeover import Step
from nfckpt.replica.active import TRANSITIONS as ACTIVE
from nfckpt.replica.standby import TRANSITIONS as STANDBY
from nfckpt.sim.faults import FAULTS, POINTS
from nfckpt.sim.world import TOY, Outcome, SimViolation, World

__all__ = ["FULL", "Campaign", "Report", "everything", "first_violation", "shrink"]

FULL = 500                      # seeds that reach everything
TWICE = 50
CHUNK = 8                       # seeds that a worker is given at a time
WITNESS = {"register": ("lead", "follow"), "protected": ("ok",), "solo": ("ok", "wait", "denied"), "reclaim": ("ok", "denied"), "claim": ("ok", "denied"),
           "took": ("ok",), "gone": ("ok",)}
ENDS = ("3 fenced", "4 handed over", "9 unprotectable", "11 lost the active before it was whole", "12 refused for now")


def everything() -> frozenset[str]:
    """What a campaign must reach."""
    out = {f"engine {s.value} {e}" for s, e in ENGINE} | {f"active {s.value} {e}" for s, e in ACTIVE}
    out |= {f"standby {s.value} {e}" for s, e in STANDBY} | {f"takeover {s.value}" for s in Step}
    out |= {f"witness {verb} {said}" for verb, answers in WITNESS.items() for said in answers}
    out |= {f"crash {role} at {point}" for role, points in POINTS.items() for point in points}
    out |= {f"fault {what}" for what in FAULTS} | {f"end {e}" for e in ENDS} | {"lie to active", "lie to standby"}
    return frozenset(out)


def promise_of(violation: str) -> str:
    """Which promise it was: the message without names and numbers."""
    return re.sub(r"[0-9a-f]{6,}|\b[ab]?\d[\d.]*", "#", violation.split("; replay")[0])


def first_violation(seeds: Iterable[int], app: str = TOY, about_to: Callable[[int], None] = lambda seed: None) -> tuple[int, str] | None:
    """The first seed that breaks a promise, and which."""
    for seed in seeds:
        about_to(seed)
        try:
            World(seed, app=app).run()
        except SimViolation as e:
            return seed, str(e)
    return None


def shrink(seed: int, events: int = World.EVENTS, app: str = TOY) -> SimViolation | None:
    """The violation of the fewest faults of this seed that still break the same promise. None when it holds."""
    def run(faults: frozenset[int] | None) -> tuple[SimViolation | None, World]:
        world = World(seed, faults=faults, app=app)
        try:
            world.run(events)
        except SimViolation as e:
            return e, world
        return None, world

    found, world = run(None)
    if found is None:
        return None
    promise, faults, n = promise_of(str(found)), [f.number for f in world.faults.struck], 1
    smallest = found
    while faults:
        size = max(1, len(faults) // n)
        for at in range(0, len(faults), size):
            rest = faults[:at] + faults[at + size:]
            again, _ = run(frozenset(rest))
            if again is not None and promise_of(str(again)) == promise:
                faults, smallest, n = rest, again, max(1, n - 1)
                break
        else:
            if size == 1:
                break
            n = min(len(faults), 2 * n)
    return smallest


@dataclass
class Report:
    seeds: int = 0
    violations: list[str] = field(default_factory=list)
    shrunk: list[str] = field(default_factory=list)         # the replay of each, with the fewest faults
    total: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)        # never reached
    reached: int = 0

    @property
    def ok(self) -> bool:
        return not self.violations and not (self.missing and self.seeds >= FULL)

    def as_json(self) -> dict[str, object]:
        return {"ok": self.ok, "seeds": self.seeds, "violations": self.violations, "shrunk": self.shrunk, **self.total,
                "by_fault": dict(self.faults), "reached": self.reached, "missing": self.missing}

    def text(self) -> str:
        lines = [f"{self.seeds:,} seeds, " + ", ".join(f"{n:,} {name}" for name, n in self.total.items()),
                 "faults: " + ", ".join(f"{n:,} {name}" for name, n in self.faults.most_common())]
        lines.append(f"reached {self.reached} of {self.reached + len(self.missing)} transitions and fault points"
                     + (f"; never {', '.join(self.missing)}" if self.missing else ""))
        lines.append(f"{len(self.violations)} violations")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Job:
    """What a worker needs to run any seed of a campaign."""

    events: int
    app: str
    only: frozenset[int] | None

    def run(self, seed: int, echo: Callable[[str], None] | None = None) -> tuple[Outcome | None, str, str]:
        """What one seed did, what it broke, and the replay with the fewest faults."""
        def once() -> Outcome:
            return World(seed, faults=self.only, app=self.app, echo=echo).run(self.events)

        try:
            outcome = once()
            twice = seed % TWICE or once().digest == outcome.digest
            return outcome, "" if twice else f"seed {seed} gave two different traces; replay: nfckpt sim --seed {seed} --trace", ""
        except SimViolation as e:
            smallest = shrink(seed, self.events, self.app) if self.only is None else None
            return None, str(e), str(smallest).split("replay: ")[-1] if smallest is not None else ""

    def chunk(self, seeds: list[int]) -> list[tuple[Outcome | None, str, str]]:
        return [self.run(seed) for seed in seeds]


class Campaign:
    """`told`: called with each violation (and its shrunk replay) as it is found; `done`: with the number of seeds that are;
    `echo`: with every line of every trace. `jobs`: processes; one runs in this one."""

    def __init__(self, seeds: Iterable[int], *, events: int = World.EVENTS, app: str = TOY, faults: frozenset[int] | None = None,
                 jobs: int = 1, told: Callable[[str], None] | None = None, done: Callable[[int], None] | None = None,
                 echo: Callable[[str], None] | None = None) -> None:
        self.seeds, self.jobs, self.echo = seeds, 1 if echo is not None else jobs, echo
        self._job = _Job(events, app, faults)
        self._told, self._done = told or (lambda text: None), done or (lambda n: None)

    def run(self) -> Report:
        report, covered = Report(), set[str]()
        for outcome, broken, shrunk in self._results():
            report.seeds += 1
            if outcome is not None:
                covered |= outcome.covered | {f"fault {what}" for what in outcome.faults}
                self._add(report, outcome)
            if broken:
                report.violations.append(broken)
                self._told(broken)
            if shrunk:
                report.shrunk.append(shrunk)
                self._told(f"  with the fewest faults: {shrunk}")
            self._done(report.seeds)
        wanted = everything()
        report.missing = sorted(wanted - covered)
        report.reached = len(wanted & covered)
        return report

    def _results(self) -> Iterator[tuple[Outcome | None, str, str]]:
        """Of each seed, in order."""
        if self.jobs == 1:
            for seed in self.seeds:
                yield self._job.run(seed, self.echo)
            return
        seeds, running = iter(self.seeds), deque[tuple[list[int], Future[list[tuple[Outcome | None, str, str]]]]]()
        with ProcessPoolExecutor(self.jobs) as pool:
            while True:
                while len(running) < 4 * self.jobs and (some := list(islice(seeds, CHUNK))):
                    running.append((some, pool.submit(self._job.chunk, some)))
                if not running:
                    return
                some, future = running.popleft()
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    yield None, (f"a worker died, by a CHECK of the kernels (it printed a line) or from outside; "
                                 f"replay: nfckpt sim --seed {some[0]} --seeds {4 * self.jobs * CHUNK} --jobs 1"), ""
                    return

    def _add(self, report: Report, o: Outcome) -> None:
        report.faults.update(o.faults)
        report.total.update({"faults": sum(o.faults.values()), "takeovers": o.takeovers, "kills of a protected active at work": o.kills,
                             "inputs": o.inputs, "outputs": o.outputs, "inputs waived": o.waived, "missed by the active's ring": o.missed,
                             "unseen by the tap": o.unseen})
