"""Parts: all that an active needs beside its state. A blank start makes them at once; a standby makes them while it follows.

    before its hello    arena mapping, gate, agent, engine, staging, a fresh app object          no content is needed
    once promotable     the listener of a later follower (follow.py); `declare`, where the app says that it may run ahead (nf.NetworkFunction.declares_ahead)
    at the takeover     number of the epoch, the pair's clock, `declare` where it did not run ahead

So what a takeover waits for is counted in microseconds, whatever the app's constructor reads, and whatever memory the gate takes.

Promises    N1 the app object is fresh: no frame and no other arena has been in its hands.
            N2 a `declare` that ran ahead wrote nothing; one that does is undone, and ends its node (code 2).
"""

from __future__ import annotations

import os

from nfckpt.checkpoint.engine import Engine
from nfckpt.clock import PairClock
from nfckpt.config import PairConfig
from nfckpt.errors import ConfigError
from nfckpt.failover.lease_clock import LeaseClock
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.life import LifeLock
from nfckpt.node.app import App, AppContext, declare, load_app
from nfckpt.ports.port import Port
from nfckpt.replica.active import Active
from nfckpt.secrets import PairSecrets
from nfckpt.state.state import State

__all__ = ["Parts"]


class Parts:
    """Of node `node`; over the bytes of `arena`, which stays mapped where it is. Raises what load_app does."""

    state: State

    def __init__(self, config: PairConfig, node: str, peer: str, secrets: PairSecrets, ports: list[Port], layout: bytes, arena: Arena,
                 clock: PairClock, app: App | None = None) -> None:
        b = config.bounds
        self.config, self.secrets, self.clock = config, secrets, clock
        self.app = app or load_app(config)
        self.arena = Arena(fd=os.dup(arena.fd))     # a fresh mapping: nothing but the arena's bytes is carried over
        self.gate = Gate(ports, b.gate_frames_max, b.gate_bytes_max)
        self.agent = Agent(ports, self.arena, self.gate, secrets.tap, names_max=b.names_max)
        self.engine = Engine(b)
        self.writer = EpochWriter(secrets.tap)
        hosts = config.profile == "hosts"
        self.core = Active(pair=config.name, node=node, peer=peer, layout=layout, bounds=b, term=0, agent=self.agent, engine=self.engine,
                           writer=self.writer, clock=clock, lease=LeaseClock(b.lease_ms, b.beat_ms) if hosts else None,
                           kills=not hosts, key_check=secrets.check)
        if config.input == "ship":
            self.core.path.ship_inputs()
        self.ctx = AppContext(self.agent, clock)
        self.declared = False

    def declare(self) -> None:
        """The app's state over the arena as it is. Raises as `node.app.declare`."""
        self.state, parking = declare(self.config, self.app, self.arena, self.secrets.table)
        self.agent.start_over(parking)
        self.declared = True

    def declare_ahead(self) -> None:
        """The same, by a standby between two epochs, where the app allows it: nothing of it is left to do at a takeover.
        Raises ConfigError where it wrote."""
        if not self.app.declares_ahead:
            return
        self.arena.begin_undo()
        try:
            self.declare()
            if lines := self.arena.dirty_lines():
                self.arena.undo()
                raise ConfigError(f"{self.config.app}.declares_ahead, and its declare wrote {lines} lines over state that is there",
                                  "write to fresh state only, or leave declares_ahead False")
        finally:
            self.arena.end_undo()

    def lead(self, term: int, epoch: int, life: LifeLock) -> None:
        """The role is ours: `epoch` is the first that we may close."""
        self.engine.start_at(epoch)
        self.agent.epoch = epoch
        self.core.term = term
        self.core.path.clock_offset_ns = self.clock.offset_ns
        life.tell(self.gate)
        if not self.declared:
            self.declare()
