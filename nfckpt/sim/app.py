"""The app in the simulator: any NetworkFunction or NativeFunction, and what it may add so that more can be checked.

    class MyNat(nfckpt.NetworkFunction): …              nfckpt sim --app my_nat:MyNat --seeds 1000

Of every app the referee checks I1 to I15 and that each input is taken in once, each output leaves once, byte for byte, over any
number of takeovers. It runs over two ports. An app may add any of these (nfckpt/sim/toy.py has all three):

    traffic(rng)        static: (port, frame) without end, what hosts send. Without it: UDP between a few addresses.
    explain()           static: a callable (port, frame) -> "" or what is wrong, given every output in the order in which it left,
                        a new one for each blank start: "a NAT mapping never changes under a live flow".
    invariants()        asserts that the state is whole (I4); called after each takeover on the new active's app.

Time and chance must come from `ctx`, or the seed does not replay. A PollingFunction owns its loop: it cannot be simulated.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from nfckpt.clock import PairClock
from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.errors import ConfigError
from nfckpt.native.agent import Agent
from nfckpt.native.function import NativeFunction
from nfckpt.nf import NetworkFunction
from nfckpt.node.app import AppContext, declare, load_app

if TYPE_CHECKING:
    from nfckpt.native.arena import Arena
    from nfckpt.native.parking import Parking

__all__ = ["AppUnderTest", "Runnable", "SimApp", "SimContext"]

Runnable = NetworkFunction | NativeFunction
Traffic = Iterator[tuple[int, bytes]]
Explain = Callable[[int, bytes], str]


class SimApp(Protocol):
    """What an app may have besides the contract of nfckpt.nf."""

    @staticmethod
    def traffic(rng: random.Random) -> Traffic: ...
    @staticmethod
    def explain() -> Explain: ...
    def invariants(self) -> None: ...


class AppUnderTest:
    """`spec`: "module:Class". Raises ConfigError when it cannot be loaded, or not be simulated."""

    def __init__(self, spec: str, bounds: Bounds, secret: bytes) -> None:
        self.config = PairConfig(name="sim", app=spec, bounds=bounds,
                                 nodes={n: NodeConfig(ports=["left", "right"]) for n in ("a", "b")})
        self.secret = secret
        self.cls = type(self.load())

    def load(self) -> Runnable:
        app = load_app(self.config)
        if not isinstance(app, Runnable):
            raise ConfigError(f"{self.config.app} owns its loop", "the simulator runs NetworkFunction and NativeFunction")
        return app

    def declare(self, app: Runnable, arena: Arena) -> Parking:
        return declare(self.config, app, arena, self.secret)[1]

    def traffic(self, rng: random.Random) -> Traffic:
        return (getattr(self.cls, "traffic", None) or _udp)(rng)

    def explain(self) -> Explain:
        make = getattr(self.cls, "explain", None)
        return make() if make is not None else lambda port, frame: ""


class SimContext(AppContext):
    """Chance from the seed; notes what the app makes itself."""

    def __init__(self, agent: Agent, clock: PairClock, rng: random.Random, made: Callable[[int, bytes], None]) -> None:
        super().__init__(agent, clock)
        self._random = rng
        self._made = made

    def send(self, port: int, frame: bytes) -> bool:
        if not super().send(port, frame):
            return False
        self._made(port, frame)
        return True


def _udp(rng: random.Random) -> Traffic:
    """Numbered datagrams from 10.0.p.h to 10.0.1-p.1, no checksum (RFC 768 allows it)."""
    number = 0
    while True:
        number += 1
        side, host = rng.randrange(2), rng.randrange(2, 8)
        ip = struct.pack("!BBHHHBBH4B4B", 0x45, 0, 46, number & 0xFFFF, 0, 64, 17, 0, 10, 0, side, host, 10, 0, 1 - side, 1)
        total = sum(struct.unpack("!10H", ip))
        total = (total & 0xFFFF) + (total >> 16)
        ip = ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]
        yield side, (bytes.fromhex("02000000000a02000000000b0800") + ip + struct.pack("!HHHH", 1024 + host, 53, 26, 0)
                     + struct.pack("!Q", number) + bytes(10))
