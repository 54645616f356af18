"""The rows: one module, one mechanism, `KEYS` and `measure(scale)`. Imported when they are run."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from nfckpt.bench.figure import Figure, Scale

__all__ = ["GROUPS", "ROWS", "Row", "load"]

ROWS = ("checkpoints", "checkpoints_tap", "pause", "pause_flat", "protect", "protect_veth", "python_nf", "latency", "wire", "drain", "mmu",
        "sync", "versus")
GROUPS = {"failover": ("crash", "crash_rss", "hang", "hosts_outage", "graceful", "false_takeovers")}
"""Rows that are run when asked for, by the group's name or their own: they take minutes."""


class Row(Protocol):
    """What a module in this folder has."""

    KEYS: tuple[str, ...]

    def measure(self, scale: Scale) -> list[Figure]: ...


def load(name: str) -> Row:
    """The row `name`, one of ROWS or of a group."""
    return cast(Row, importlib.import_module(f"nfckpt.bench.rows.{name}"))
