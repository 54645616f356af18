"""Counters as Python sees them.

    hits = state.counters("hits", ["in", "out", "dropped"])
    hits.add("dropped")                     # one
    hits.add([0, 1], [32, 30])              # several, by number
    hits["dropped"], hits.as_dict()
"""

from __future__ import annotations

from nfckpt.native import counters as native

__all__ = ["Counters"]


class Counters(native.Counters):
    """Named u64 counters; made by `State.counters`."""

    add = native.Counters.add_many
    put = native.Counters.put_one
