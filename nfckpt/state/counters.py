"""Counters as Python sees them.

    hits = state.counters("hits", ["in", "out", "dropped"])
    hits.add("dropped")                     # one
    hits.add([0, 1], [32, 30])              # several, by number
    hits["dropped"], hits.as_dict()

`nfckpt status --json` and `LocalPair.status()` show the first 64 counters of each group, as "counts" in the row of "state".
"""

from __future__ import annotations

from nfckpt.native import counters as native

__all__ = ["Counters"]

COUNTS_SHOWN_MAX = 64


class Counters(native.Counters):
    """Named u64 counters; made by `State.counters`."""

    add = native.Counters.add_many
    put = native.Counters.put_one

    def describe(self) -> dict[str, object]:
        """One row for the status, with the counts themselves: it travels as one datagram, so not without bound."""
        shown = dict(zip(self.names[:COUNTS_SHOWN_MAX], self.values[:COUNTS_SHOWN_MAX].tolist(), strict=True))
        return {**super().describe(), "counts": shown}
