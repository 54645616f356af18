"""FlowTable as Python sees it: batches of keys in, batches of slots out.

    flows = state.flow_table("flows", capacity=100_000, key_bytes=16, value=[("port", "u2"), ("bytes", "u8")])
    slots = flows.find(keys)                    # int64 (n,), -1 where unknown
    slots, fresh = flows.insert(keys, ctx.now_ns)
    flows.put(slots, records); flows.get(slots)["port"]
    slots, keys, values = flows.expire(ctx.now_ns, timeout_ns=120 * 10**9)

The native half (`cimport FlowTable from nfckpt.native.flow_table`) has `find`, `insert`, `erase`, `touch` and
`set_timeout` for one key; Python's methods of these names take columns.
"""

from __future__ import annotations

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
