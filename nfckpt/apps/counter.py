"""Counter: a wire with a meter. The smallest example of a network function whose state survives its machine.

    left | Counter | right          state.totals   frames and bytes per side
                                    state.flows    frames and bytes per IPv4 flow, idle ones forgotten after 5 minutes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nfckpt.nf import Context, NetworkFunction

if TYPE_CHECKING:
    from nfckpt.native.burst import Burst
    from nfckpt.state.state import State

__all__ = ["FLOW", "Counter"]

FLOW = np.dtype([("src_ip", "u4"), ("dst_ip", "u4"), ("src_port", "u2"), ("dst_port", "u2"), ("proto", "u4")])
IDLE_NS = 300 * 10**9


class Counter(NetworkFunction):
    """Forwards every frame to the other side unchanged. Flows beyond `flows_max` are forwarded too, and only in totals."""

    ports = ("left", "right")
    tick_ms = 100
    declares_ahead = True

    def __init__(self, flows_max: int = 65536) -> None:
        self.flows_max = flows_max

    def declare(self, state: State) -> None:
        self.totals = state.counters("totals", ["left_frames", "right_frames", "left_bytes", "right_bytes"])
        self.flows = state.flow_table(
            "flows", capacity=self.flows_max, key_bytes=FLOW.itemsize, value=[("frames", "u8"), ("bytes", "u8")])

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        burst.send(slice(None), 1 - burst.port)
        self.totals.add(burst.port, 1)
        self.totals.add(burst.port + 2, burst.length)
        at = np.flatnonzero(burst.ip_version == 4)
        if not at.size:
            return
        key = np.empty(at.size, FLOW)
        for name in key.dtype.names or ():
            key[name] = getattr(burst, name)[at]
        slots, _ = self.flows.insert(key, ctx.now_ns)
        known, which = np.unique(slots[slots >= 0], return_inverse=True)
        values = self.flows.get(known)
        np.add.at(values["frames"], which, 1)
        np.add.at(values["bytes"], which, burst.length[at][slots >= 0])
        self.flows.put(known, values)

    def on_tick(self, ctx: Context) -> None:
        self.flows.expire(ctx.now_ns, IDLE_NS)
