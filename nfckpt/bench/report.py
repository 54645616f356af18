"""Report: run rows one after the other, and say what they found: a table, or one JSON object.

JSON    {key: number or null for every key asked for, "ok": bool, "machine": {…}, "rows": {key: Figure with unit, target, met}, "errors": {row: text}}
Exit    0 every row ran and its digests agree   1 a row failed: unequal digests, or an error of its own
        Missing a target, or a row that cannot be measured here, is no failure.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nfckpt.bench.figure import DifferenceError, Figure, Scale, UnavailableError
from nfckpt.bench.machine import machine, machine_line
from nfckpt.bench.rows import GROUPS, ROWS, load
from nfckpt.bench.targets import TARGETS
from nfckpt.errors import ConfigError, NfckptError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["QUICK_S", "SECONDS", "every", "listing", "measure", "run", "select"]

SECONDS, QUICK_S = 6.0, 1.2         # measured time a row
SHOW_S = 0.2


def select(names: Sequence[str]) -> list[str]:
    """Rows by their own names, their group's or keys they give, in order; for none all that are in no group. Raises ConfigError."""
    if not names:
        return list(ROWS)
    known = every()
    by_key = {key: row for row in known for key in load(row).KEYS}
    names = [row for name in names for row in GROUPS.get(name, (name,))]
    unknown = [name for name in names if name not in known and name not in by_key]
    if unknown:
        raise ConfigError(f"no row {unknown[0]!r}", "see `nfckpt bench --list`")
    wanted = {by_key.get(name, name) for name in names}
    return [row for row in known if row in wanted]


def every() -> list[str]:
    """All rows, those of groups last."""
    return [*ROWS, *(row for rows in GROUPS.values() for row in rows)]


class Progress:
    """One line on a terminal's standard error, rewritten; elsewhere a line when a row begins."""

    def __init__(self, rows: int) -> None:
        self._rows, self._row, self._name, self._shown = rows, 0, "", 0.0
        self._live = sys.stderr.isatty()

    def begin(self, name: str) -> None:
        self._row, self._name = self._row + 1, name
        self.tick("starting" if self._live else "", now=True)

    def tick(self, text: str, now: bool = False) -> None:
        if (self._live and time.monotonic() > self._shown + SHOW_S) or now:
            self._shown = time.monotonic()
            line = f"[{self._row}/{self._rows}] {self._name} {text}".rstrip()
            print(f"\r\x1b[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def measure(rows: Sequence[str], scale: Scale, errors: dict[str, str], begin: Any = lambda _: None) -> list[Figure]:
    """The figures of these rows. What failed is in `errors`, by row; its figures are missing."""
    figures: list[Figure] = []
    for name in rows:
        begin(name)
        row = load(name)
        try:
            figures += row.measure(scale)
        except UnavailableError as e:
            figures += [Figure.missing(key, e.message) for key in row.KEYS]
        except (NfckptError, OSError, RuntimeError) as e:
            errors[name] = f"{'DIFFERENT' if isinstance(e, DifferenceError) else type(e).__name__}: {e}"
            figures += [Figure.missing(key, errors[name]) for key in row.KEYS]
    return figures


def run(names: Sequence[str], seconds: float, as_json: bool) -> int:
    """Measure and print. Returns the exit code."""
    rows = select(names)
    about = machine()
    errors: dict[str, str] = {}
    progress = Progress(len(rows))
    began = time.monotonic()
    try:
        figures = measure(rows, Scale(seconds, tick=progress.tick), errors, progress.begin)
    finally:
        progress.end()
    about["load_after"] = machine()["load"]
    took = time.monotonic() - began
    if as_json:
        print(json.dumps({**{f.key: f.value for f in figures}, "ok": not errors, "seconds": round(took, 1), "machine": about,
                          "rows": {f.key: f.as_dict() for f in figures}, "errors": errors}))
        return 1 if errors else 0
    from rich.console import Console
    console = Console(highlight=False)
    console.print(machine_line(about))
    console.print(table(figures))
    console.print(f"{took:.0f} s. Medians of pairs of slices, in brackets their quartiles; held: slices measured again because the CPUs were "
                  "somebody else's, ! where too few others were left: not judged.")
    for f in figures:
        limit = [] if f.limit is None else [f"limit {f.limit:,.{2 if f.limit < 100 else 0}f} {f.limit_what}"]
        console.print(f"{f.key}: " + "; ".join(limit + ([f.note] if f.note else [])), markup=False)
        if f.settings:
            console.print("    " + ", ".join(f"{name} {value}" for name, value in f.settings.items()) + f", digest {f.digest[:16]}", style="dim",
                          markup=False)
    for row, text in errors.items():
        console.print(f"error: {row}: {text}", style="red", markup=False)
    return 1 if errors else 0


def table(figures: Sequence[Figure]) -> Table:
    """One line a figure."""
    from rich.table import Table
    out = Table(box=None, pad_edge=False)
    for column, right in (("key", False), ("value", True), ("quartiles", True), ("", False), ("target", True), ("", False), ("held", True)):
        out.add_column(column, justify="right" if right else "left", no_wrap=column in ("key", "value", "quartiles", "target"))
    for f in figures:
        target = TARGETS[f.key]
        d = target.digits
        value = "–" if f.value is None else f"{f.value:,.{d}f}{'' if f.quiet else '!'}"
        spread = f"[{f.spread[0]:,.{d}f} … {f.spread[1]:,.{d}f}]".replace("[", r"\[") if f.spread else ""
        met = {True: "[green]met[/green]", False: "[yellow]missed[/yellow]", None: ""}[f.met]
        out.add_row(f.key, value, spread, target.unit, str(target), met, f"{f.rejected or ''}")
    return out


def listing(as_json: bool) -> None:
    """What can be measured: row, keys, what each says, target."""
    rows = [(row, TARGETS[key]) for row in every() for key in load(row).KEYS]
    if as_json:
        print(json.dumps([{"row": row, "key": t.key, "what": t.what, "unit": t.unit, "target": t.value, "at_least": t.at_least} for row, t in rows]))
        return
    from rich.console import Console
    from rich.table import Table
    out = Table(box=None, pad_edge=False)
    for column in ("row", "key", "what", "target"):
        out.add_column(column, no_wrap=column != "what")
    last = ""
    for row, t in rows:
        out.add_row("" if row == last else row, t.key, t.what, f"{t} {t.unit}")
        last = row
    Console(highlight=False).print(out)
