"""A wire with a counter: what comes in on one port goes out on the other."""

from __future__ import annotations

from typing import Any

from nfckpt.nf import NetworkFunction


class Wire(NetworkFunction):
    ports = ("left", "right")

    def declare(self, state: Any) -> None:
        self.seen = state.counters("seen", ["left", "right"])

    def on_burst(self, burst: Any, ctx: Any) -> None:
        self.seen.add(burst.port, 1)
        burst.send(slice(None), 1 - burst.port)
