"""Slices: two arms in turn, the medians of what they gave, and which slices do not count.

Disturbed   A slice does not count in which a thread of ours was ready and not running for more than 1 % of it (the second
            figure of /proc/PID/schedstat), or in which /proc/stat shows
            steal: the hypervisor ran somebody else. Such a pair is measured again, at most RETRIES times as often as asked for; when
            too few are left the disturbed ones are used and the figure says so.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["Pairs", "Spread", "Watch", "pairs", "quartiles"]

RETRIES = 2
HOLE_SHARE = 0.01

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of what the kept slices gave."""

    median: float
    low: float
    high: float
    kept: int
    rejected: int
    quiet: bool


def quartiles(values: Sequence[float], rejected: int = 0, quiet: bool = True) -> Spread:
    """Spread of at least one value."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(middle, low, high, len(values), rejected, quiet)


class Watch:
    """Was one of these processes kept from running? `pids`: ours is always among them."""

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._files = [f"/proc/{pid}/schedstat" for pid in (os.getpid(), *pids)]

    def _waited(self) -> tuple[int, int]:
        """(ns ready and not running, ticks stolen from the machine) so far."""
        ns = 0
        for file in self._files:
            with contextlib.suppress(OSError, IndexError, ValueError):
                ns += int(Path(file).read_text().split()[1])
        steal = 0
        with contextlib.suppress(OSError, IndexError, ValueError):
            steal = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
        return ns, steal

    def __enter__(self) -> Watch:
        self._before = self._waited()
        self._began = time.monotonic_ns()
        return self

    def __exit__(self, *exc: object) -> None:
        took = time.monotonic_ns() - self._began
        ns, steal = (now - before for now, before in zip(self._waited(), self._before, strict=True))
        self.disturbed = steal > 0 or ns > HOLE_SHARE * took


@dataclass
class Pairs(Generic[A, B]):
    """What two arms gave, slice by slice: `a[i]` and `b[i]` belong together."""

    a: list[A] = field(default_factory=list)
    b: list[B] = field(default_factory=list)
    rejected: int = 0
    quiet: bool = True

    def spread(self, value: Callable[[A, B], float]) -> Spread:
        """Of `value(a[i], b[i])`."""
        return quartiles([value(x, y) for x, y in zip(self.a, self.b, strict=True)], self.rejected, self.quiet)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pairs(a: Callable[[], A], b: Callable[[], B], n: int, *, seconds: float, pids: Sequence[int] = (),
          tick: Callable[[str], None] = lambda _: None) -> Pairs[A, B]:
    """`n` undisturbed pairs of slices, the arms in turn and each first every other time; for at most 1 + RETRIES times `seconds`."""
    good: Pairs[A, B] = Pairs()
    bad: Pairs[A, B] = Pairs()
    with _no_collector():
        a()
        b()
        deadline = time.monotonic() + seconds * (1 + RETRIES)
        for turn in range(n * (1 + RETRIES)):
            tick(f"slice {len(good.a) + 1} of {n}" + (f", {len(bad.a)} disturbed" if bad.a else ""))
            with Watch(pids) as watch:
                if turn % 2:
                    second = b()
                    first = a()
                else:
                    first = a()
                    second = b()
            kind = bad if watch.disturbed else good
            kind.a.append(first)
            kind.b.append(second)
            if len(good.a) == n or (time.monotonic() > deadline and turn >= 2):
                break
    if len(good.a) < max(3, n // 4) and bad.a:
        return Pairs(good.a + bad.a, good.b + bad.b, len(bad.a), False)
    good.rejected = len(bad.a)
    return good
