"""Ledger: what a run has to answer for, from the sinks' counts, the nodes' receipts and digests, and what the hubs saw.

Words       lost, duplicated, reordered, corrupt mean what they mean in the simulator's ledger (nfckpt/sim/ledger.py) and in native/traffic:
            a numbered frame that never came; that came again; that came after a later one of its flow; that is not what was sent.
            Frames that are byte for byte the same are counted: fewer than sent are lost, more are duplicated.
divergent   a node found its arena to differ; two nodes' digests of the whole arena at one epoch differ; or a flow's mapping changed.
stale_emissions     emissions.py: frames of a term after the first frame of a later one.
Set apart   what was sent while the active's data port was cut did not reach it: counted, but not lost by the pair.

`per_blow` says of every lost number between which two strikes it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MUST_BE_ZERO", "UNCOMMITTED", "Hit", "Ledger", "histogram", "quantile"]

MUST_BE_ZERO = ("lost", "duplicated", "corrupt", "divergent", "stale_emissions", "tcp_failed", "tcp_reset")
UNCOMMITTED = ((0, 0), (1, 3), (4, 15), (16, 63), (64, 255), (256, 1 << 30))
AROUND_CUT_NS = 60_000_000      # three times the time in which two taps may differ


@dataclass
class Hit:
    """One strike, as it went. `uncommitted`: inputs (a dead active's) or outputs (held for a dead standby) that nobody had answered
    for when the loss was noticed; None where nobody died."""

    number: int
    label: str
    t_ns: int
    node: str = ""
    was_active: bool = False
    reached: bool = True
    protected: bool = False
    uncommitted: int | None = None
    outage_ms: float | None = None
    reprotect_ms: float | None = None
    lost: int = 0

    @property
    def counts(self) -> bool:
        """A kill that had something to lose."""
        return bool(self.node and self.protected and self.uncommitted)


class Ledger:
    """Adds up `result` (traffic/workload.py) for `hits`."""

    def __init__(self, result: Mapping[str, Any], hits: Sequence[Hit], cut_ns: Sequence[tuple[int, int]]) -> None:
        ways = result["udp"], result["udp_reverse"]
        twins = result["twins"] or dict.fromkeys(("sent", "received", "asked", "answered", "corrupt", "overflow"), 0)
        pairs = (twins["sent"], twins["received"]), (twins["asked"], twins["answered"])
        lost = {name: self._by_blow(result["marks"][name], result["absent"][name], hits, cut_ns) for name in ("udp", "udp_reverse")}
        self.apart = sum(apart for apart, _ in lost.values())
        for _, counts in lost.values():
            for hit, n in zip(hits, counts, strict=True):
                hit.lost += n
        self.sent = sum(way["sent"] for way in ways) + sum(sent for sent, _ in pairs)
        self.received = sum(way["received"] for way in ways) + sum(came for _, came in pairs)
        self.lost = sum(way["lost"] for way in ways) - self.apart
        # identical frames cannot be told apart: what a cut took is not told from what the pair lost
        self.lost += 0 if cut_ns else sum(max(0, sent - came) for sent, came in pairs)
        self.duplicated = sum(way["duplicated"] for way in ways) + sum(max(0, came - sent) for sent, came in pairs)
        self.reordered = sum(way["reordered"] for way in ways)
        self.corrupt = sum(way["corrupt"] for way in ways) + twins["corrupt"] + result["tcp"]["corrupt"]
        self.remapped = sum(way["source_changed"] for way in ways) + result["tcp"]["source_changed"]
        self.sink_overflow = sum(way["sink_overflow"] for way in ways) + twins["overflow"]
        self.valid = bool(result["valid"])
        self.tcp = result["tcp"]

    def _by_blow(self, marks: Sequence[Mapping[str, Any]], absent: Sequence[tuple[int, int]], hits: Sequence[Hit],
                 cut_ns: Sequence[tuple[int, int]]) -> tuple[int, list[int]]:
        """(frames set apart, frames lost after each hit). A mark is made at each strike, and at both ends of a cut."""
        apart, counts = 0, [0] * len(hits)
        for stream, number in absent:
            after = [m["t_ns"] for m in marks if m["sent"] and m["sent"][stream] > number]
            before = [m["t_ns"] for m in marks if not m["sent"] or m["sent"][stream] <= number]
            low, high = max(before, default=0), min(after, default=1 << 62)
            if any(low >= start - AROUND_CUT_NS and high <= end + AROUND_CUT_NS for start, end in cut_ns):
                apart += 1
                continue
            # sent before this instant: whoever was struck next, or last before it
            struck = [i for i, hit in enumerate(hits) if hit.t_ns <= high + AROUND_CUT_NS]
            if struck:
                counts[struck[-1]] += 1
        return apart, counts


def histogram(hits: Sequence[Hit]) -> list[tuple[str, int]]:
    """Kills by what was uncommitted."""
    seen = [hit.uncommitted for hit in hits if hit.uncommitted is not None]
    return [(str(low) if low == high else f"{low}–{high}" if high < 1 << 30 else f"{low}+", sum(low <= n <= high for n in seen))
            for low, high in UNCOMMITTED]


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank; 0.0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0
