"""check_nf: does your network function survive its machine? Run it over traffic, kill it after every burst, at every stage.

    from nfckpt.sim.check_nf import check_nf

    def test_my_app():
        check_nf(MyApp, "traffic.pcap")             # AssertionError with the whole story, or a Report

    $ nfckpt check my_app:MyApp --pcap traffic.pcap

Picture     traffic ──┬── twin: one life ──────────────────────────────────► outputs, state
                      ├── killed after every burst, `acked` each time ─────► the same outputs, the same state?
                      └── … and so for every stage of an epoch's life, and for stages drawn by the seed

Found are: the first difference, shrunk to the fewest frames and the earliest kill, with the attribute that explains it (given by
hand to the fresh app, the difference is gone); attributes that a takeover loses; clocks and chance read around `ctx`; writes
that marked nothing; exceptions. Everything runs in this process, on the real agent, arena, gate, tap and epochs, in simulated
time, and does the same for the same seed. NetworkFunction, NativeFunction and PollingFunction alike.

Not seen: what other threads do (`ctx.call_soon` works, but a thread's timing is not the seed's), and clocks that native code
reads, unless two unkilled runs come out different by it.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Collection, Sequence
from os import PathLike
from typing import Any

from nfckpt.errors import ConfigError, NfckptError
from nfckpt.native.arena import Arena
from nfckpt.native.parking import Parking
from nfckpt.node.app import where
from nfckpt.sim import nf_calls, nf_state
from nfckpt.sim.nf_life import BOUNDS, SECRET, Run
from nfckpt.sim.nf_parts import STAGES, App, Outcome, Witness
from nfckpt.sim.nf_report import Difference, Finding, Report, what_differs
from nfckpt.sim.nf_shrink import Case, differ, shrink
from nfckpt.sim.nf_traffic import Step, Traffic, from_pcaps, made_up, steps_of
from nfckpt.state.state import State

__all__ = ["Difference", "Finding", "Report", "check_nf", "examine"]

Make = Callable[[], App]


def check_nf(app: str | Make, traffic: Traffic | str | PathLike[str] | Sequence[str | PathLike[str]] | None = None, **options: Any) -> Report:
    """`examine`, for tests: raises AssertionError with the report's text unless it is ok."""
    report = examine(app, traffic, **options)
    if not report.ok:
        raise AssertionError(report.text())
    return report


def examine(app: str | Make, traffic: Traffic | str | PathLike[str] | Sequence[str | PathLike[str]] | None = None, *,
            app_args: dict[str, Any] | None = None, seed: int = 0, burst_frames: int = 8, stages: Collection[str] = tuple(STAGES),
            kills_max: int = 200, caches: Collection[str] = (), arena_bytes: int = BOUNDS.arena_bytes) -> Report:
    """`app`: a class, a factory, or "module:Class" with `app_args`. `traffic`: (port, frame) or (port, frame, time in ns) each; a
    pcap for port 0, or one for each port; None: made up. `kills_max`: of each stage, at steps drawn by the seed when there are
    more. `caches`: attributes that a takeover may lose because the app makes them again. Raises ConfigError, PortError."""
    make, name = _maker(app, app_args or {})
    if unknown := set(stages) - set(STAGES):
        raise ConfigError(f"stage {unknown.pop()!r}", f"stages are {', '.join(STAGES)}")
    probe, used = _probe(make, name, arena_bytes)
    n_ports = len(probe.ports) or 2
    steps = steps_of(_traffic(traffic, n_ports, seed), ports=n_ports, tick_ms=getattr(probe, "tick_ms", 0), burst_frames=burst_frames)
    if not any(not step.is_tick for step in steps):
        raise ConfigError("no traffic", "a capture with frames in it")
    report = Report(name, seed, sum(len(s.frames) for s in steps), sum(not s.is_tick for s in steps))
    return _Examination(make, steps, report, used, set(caches)).run(stages, kills_max)


class _Twin(Witness):
    """Watches the unkilled run: what the app keeps after each step, and what it calls."""

    def __init__(self) -> None:
        self.first: dict[str, nf_state.Kept] = {}
        self.before_step: dict[int, dict[str, nf_state.Kept]] = {}
        self.after_step: dict[int, dict[str, nf_state.Kept]] = {}
        self.changed: dict[str, str] = {}               # attribute → how it changed
        self.shared: dict[str, str] = {}
        self.calling = self.watched = nf_calls.Watched()        # type: ignore[method-assign]

    def begins(self, app: App, dead: App | None) -> None:
        self.first, self._shared = nf_state.kept_by(app), nf_state.shared_by(app)

    def before(self, step: Step, app: App) -> None:
        self.before_step[step.number] = nf_state.kept_by(app)

    def after(self, step: Step, app: App) -> None:
        now = self.after_step[step.number] = nf_state.kept_by(app)
        _changes(self.first, now, self.changed)
        _changes(self._shared, nf_state.shared_by(app), self.shared)


class _Killed(Witness):
    """Watches a killed run: attributes that a fresh life has otherwise than the twin has them, `fresh`, and still at the end, `lost`."""

    def __init__(self, twin: _Twin) -> None:
        self.twin = twin
        self.fresh: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self._new = False

    def begins(self, app: App, dead: App | None) -> None:
        self._new = dead is not None

    def before(self, step: Step, app: App) -> None:
        if self._new and (known := self.twin.before_step.get(step.number)):
            self.fresh = {**self._compare(known, app), **self.fresh}
        self._new = False

    def after(self, step: Step, app: App) -> None:
        self.lost = self._compare(self.twin.after_step.get(step.number, {}), app)

    def _compare(self, twin: dict[str, nf_state.Kept], app: App) -> dict[str, str]:
        now = nf_state.kept_by(app)
        return {name: f"{twin[name].text} in the twin, {now[name].text if name in now else 'not set'} after a takeover"
                for name in self.twin.changed if name in twin and (name not in now or now[name].print != twin[name].print)}


def _changes(before: dict[str, nf_state.Kept], now: dict[str, nf_state.Kept], into: dict[str, str]) -> None:
    for name, kept in now.items():
        if name not in into and (name not in before or before[name].print != kept.print):
            into[name] = f"{before[name].text if name in before else 'nothing'} → {kept.text}"


class _Examination:
    def __init__(self, make: Make, steps: list[Step], report: Report, arena_bytes: int, caches: set[str]) -> None:
        self.make, self.steps, self.report, self.arena_bytes, self.caches = make, steps, report, arena_bytes, caches
        self.cls = type(make())
        self.writes = nf_calls.writes_in(self.cls)

    def _go(self, steps: Sequence[Step], kills: dict[int, str], **how: Any) -> Outcome:
        return Run(self.make, steps, seed=self.report.seed, arena_bytes=self.arena_bytes, kills=kills, **how).go()

    def _attempt(self, steps: Sequence[Step], kills: dict[int, str]) -> Case | None:
        twin, killed = self._go(steps, {}), self._go(steps, kills)
        return Case(list(steps), kills, twin, killed) if differ(twin, killed) else None

    def _add(self, kind: str, name: str, where: Sequence[str] = (), detail: str = "") -> None:
        self.report.findings.append(Finding(kind, name, tuple(where), detail))

    def _kept(self, name: str, detail: str) -> None:
        self._add("kept", name, self.writes.get(name.partition(".")[2].split(" ")[0], ()), detail)

    def run(self, stages: Collection[str], kills_max: int) -> Report:
        twin = _Twin()
        plain = self._go(self.steps, {}, witness=twin)
        for call in sorted(twin.watched.calls):
            self._add(call.kind, call.what, [call.where])
        self._hints(twin)
        for name, how in twin.shared.items():
            if not self._is_cache(name):
                self._kept(name, f"{how}; a class or a module is not replicated")
        for name in sorted(plain.unmarked):
            self._add("unmarked", f"region {name}", (), "what the app wrote there never reached the standby")
        if plain.error is not None:
            self._add("raises", plain.error[1].strip().splitlines()[-1], _raised_at(plain.error[1]), f"at step {plain.error[0]}, without any kill")
            return self.report
        if differ(plain, self._go(self.steps, {})):
            self._add("unsteady", self.report.app, (), "two unkilled runs differ: it reads time or chance around ctx")
            return self.report
        self._kill(twin, plain, stages, kills_max)
        return self.report

    def _kill(self, twin: _Twin, plain: Outcome, stages: Collection[str], kills_max: int) -> None:
        rng = random.Random(self.report.seed)
        numbers = [s.number for s in self.steps]
        for stage in [*stages, "any of them"]:
            at = numbers if len(numbers) <= kills_max else sorted(rng.sample(numbers, kills_max))
            kills = {n: stage if stage in stages else rng.choice(sorted(stages)) for n in at}
            killed = self._go(self.steps, kills)
            self.report.kills += len(kills)
            if differ(plain, killed):
                self._explain(shrink(Case(self.steps, kills, plain, killed), self._attempt))
                return
        self._lost(twin, numbers)

    def _lost(self, twin: _Twin, numbers: list[int]) -> None:
        """Nothing came out different, so what a takeover loses is a cache, unless it is never made again."""
        runs = []
        for number in (numbers[0], numbers[len(numbers) // 2]):
            runs.append(_Killed(twin))
            self._go(self.steps, {number: "released"}, witness=runs[-1])
        for name, how in runs[0].lost.items():
            # a C field is a scratch pad as often as not: without a difference in what came out, nobody was hurt
            if name not in runs[1].lost:
                continue
            if not self._is_cache(name) and name.partition(".")[2] not in nf_state.fields_of(self.cls):
                self._kept(name, how)

    def _is_cache(self, name: str) -> bool:
        return name in self.caches or name.rpartition(".")[2] in self.caches

    def _explain(self, case: Case) -> None:
        """Name what the takeover lost: the attribute that, carried over by hand, makes the difference go away."""
        twin = _Twin()
        self._go(case.steps, {}, witness=twin)
        eyes = _Killed(twin)
        self._go(case.steps, case.kills, witness=eyes)
        suspects = list(eyes.fresh)

        def cured(names: list[str]) -> bool:
            def carry(dead: App, fresh: App) -> None:
                for name in names:
                    nf_state.carry(name, dead, fresh)
            return not differ(case.twin, self._go(case.steps, case.kills, carry=carry))

        culprits = [name for name in suspects if cured([name])] or (suspects if len(suspects) > 1 and cured(suspects) else [])
        self.report.difference = Difference(
            tuple((s.port, f) for s in case.steps for f in s.frames),
            tuple((sum(len(s.frames) for s in case.steps if s.number <= n), stage) for n, stage in case.kills.items()),
            tuple(what_differs(case)))
        for name in sorted(case.killed.redeclared):
            self._add("declared", f"region {name}", (), "write first content to fresh state only")
        for name in culprits:
            self._kept(name, f"{eyes.fresh[name]}; given to the fresh app by hand, the difference is gone")
        if not culprits and suspects:
            self.report.hints.append(f"changed between bursts, and otherwise after the takeover: {', '.join(suspects)}")

    def _hints(self, twin: _Twin) -> None:
        seen = {(c.kind, c.where) for c in twin.watched.calls}
        self.report.hints += [f"{c.where} calls {c.what}, around ctx" for c in nf_calls.calls_in(self.cls) if (c.kind, c.where) not in seen]


def _raised_at(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    if not lines:
        return []
    file, line = lines[-1].split('"')[1], lines[-1].split("line ")[1].split(",")[0]
    return [f"{file.rsplit('/', 1)[-1]}:{line}"]


def _maker(app: str | Make, args: dict[str, Any]) -> tuple[Make, str]:
    if not isinstance(app, str):
        return (lambda: app(**args)), getattr(app, "__qualname__", repr(app))
    module, _, name = app.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"app = {app!r}: {e}", 'write it as "module:Class", start where it lies') from None
    return (lambda: cls(**args)), app


def _probe(make: Make, name: str, arena_bytes: int) -> tuple[App, int]:
    """An app, and the bytes that its state takes."""
    arena = Arena(arena_bytes)
    try:
        app = make()
        if not isinstance(app, App):
            raise ConfigError(f"{name} is no network function", "derive it from NetworkFunction, PollingFunction or NativeFunction")
        app.declare(State(arena, seed=SECRET))
        Parking(arena, BOUNDS.park_frames_max)
    except NfckptError:
        raise
    except Exception as e:
        raise ConfigError(f"{name} cannot be made: {type(e).__name__}: {e}", where(e)) from None
    return app, int(arena.used)


def _traffic(traffic: Any, ports: int, seed: int) -> Traffic:
    if traffic is None:
        return made_up(ports, seed)
    if isinstance(traffic, (str, PathLike)):
        return from_pcaps([traffic])
    rows = list(traffic)
    if rows and all(isinstance(row, (str, PathLike)) for row in rows):
        return from_pcaps(rows)
    return rows
