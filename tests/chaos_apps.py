"""A network function that breaks the promise, for the checkers of a chaos run."""

from __future__ import annotations

import numpy as np

from nfckpt.apps.nat import Nat
from nfckpt.native.burst import Burst
from nfckpt.nf import Context
from nfckpt.state.state import State

UDP = 17


class LeakyNat(Nat):
    """Drops one UDP frame in a thousand."""

    def declare(self, state: State) -> None:
        super().declare(state)
        self.n = state.array("leak", "u8", 1)

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        super().on_burst(burst, ctx)
        udp = np.flatnonzero(burst.proto == UDP)
        n = int(self.n.view[0])
        self.n.set(0, n + len(udp))
        if n // 1000 != (n + len(udp)) // 1000:
            burst.drop(int(udp[0]))
