"""Figure: what one row found. Scale: how much work it may do for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nfckpt.bench.slices import Spread
from nfckpt.bench.targets import TARGETS
from nfckpt.errors import NfckptError

__all__ = ["DifferenceError", "Figure", "Scale", "UnavailableError"]


class DifferenceError(NfckptError):
    """The two arenas, or the outputs of two that should do the same, differ: what was timed was wrong."""


class UnavailableError(NfckptError):
    """This row cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Scale:
    """`seconds`: measured time a row. `tiny`: everything small, for tests. `tick(text)`: called between slices."""

    seconds: float = 6.0
    tiny: bool = False
    tick: Callable[[str], None] = lambda _: None

    @property
    def slice_s(self) -> float:
        return 0.002 if self.tiny else min(0.05, self.seconds / 20)

    @property
    def pairs(self) -> int:
        """Of slices."""
        return max(3, round(self.seconds / 2 / self.slice_s)) if not self.tiny else 3

    @property
    def quick(self) -> bool:
        """Little time: what need not be large is not."""
        return self.seconds <= 3

    @property
    def large_bytes(self) -> int:
        """Of an arena that stands for a large one: 1 GiB; a quarter of it when quick, next to nothing when tiny."""
        return 4 << 20 if self.tiny else 1 << 28 if self.quick else 1 << 30

    def small(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full


@dataclass
class Figure:
    """One key's outcome. `value` None: not measured, `note` says why. `limit`: what bounds it, measured beside it."""

    key: str
    value: float | None
    spread: tuple[float, float] | None = None           # quartiles
    limit: float | None = None
    limit_what: str = ""
    slices: int = 0
    rejected: int = 0                                   # slices in which our CPUs were somebody else's
    quiet: bool = True                                  # False: too many were; the figure holds disturbed ones
    settings: dict[str, Any] = field(default_factory=dict)
    digest: str = ""                                    # equal on both sides
    note: str = ""

    @classmethod
    def of(cls, key: str, spread: Spread, *, digest: str, settings: dict[str, Any], limit: float | None = None,
           limit_what: str = "", note: str = "") -> Figure:
        return cls(key, spread.median, (spread.low, spread.high), limit, limit_what, spread.kept, spread.rejected, spread.quiet,
                   settings, digest, note)

    @classmethod
    def missing(cls, key: str, why: str) -> Figure:
        return cls(key, None, note=f"unavailable: {why}")

    @property
    def met(self) -> bool | None:
        """None: not judged, for it was not measured, or only in slices that were somebody else's too."""
        return None if self.value is None or not self.quiet else TARGETS[self.key].met(self.value)

    def as_dict(self) -> dict[str, Any]:
        target = TARGETS[self.key]
        return {**dataclasses.asdict(self), "unit": target.unit, "target": target.value, "at_least": target.at_least, "met": self.met}
