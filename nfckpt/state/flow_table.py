"""FlowTable as Python sees it: batches of keys in, batches of slots out.

    flows = state.flow_table("flows", capacity=100_000, key_bytes=16, value=[("port", "u2"), ("bytes", "u8")])
    slots = flows.find(keys)                    # int64 (n,), -1 where unknown
    slots, fresh = flows.insert(keys, ctx.now)
    flows.put(slots, records); flows.get(slots)["port"]
    slots, keys, values = flows.expire(ctx.now, timeout_ns=120 * 10**9)

The native half (`cimport FlowTable from nfckpt.native.flow_table`) has `find`, `insert`, `erase`, `touch` and
`set_timeout` for one key; Python's methods of these names take columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfckpt.native import flow_table as native

__all__ = ["FlowTable"]


class FlowTable(native.FlowTable):
    """Records found by key; made by `State.flow_table`."""

    find = native.FlowTable.find_many
    insert = native.FlowTable.insert_many
    erase = native.FlowTable.erase_many
    touch = native.FlowTable.touch_many
    set_timeout = native.FlowTable.set_timeout_many
    sweep = native.FlowTable.sweep_many

    def expire(
        self, now: int, timeout_ns: int, budget: int = 256
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[Any]]:
        """Erase flows idle longer than `timeout_ns` (or their own timeout) among the next `budget` slots.

        Returns (slots, keys, values) of the erased, so that what they held (a port, say) can be given back.
        Call it on each poll with a small budget: the clock hand goes on where it stopped, after a takeover too.
        """
        slots = self.sweep(now, timeout_ns, budget)
        if not len(slots):
            return slots, np.empty((0, self.key_bytes), np.uint8), np.empty(0, self.value_dtype)
        keys, values = self.keys[slots], self.values[slots]
        self.erase(slots)
        return slots, keys, values
