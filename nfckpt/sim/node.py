"""SimNode: one life of a packet process around the real cores, as nfckpt/node/ performs it, on simulated things.

Picture     register ─► lead ─────────────────────────► hook · rx_burst · app · finish · hook · …      nfckpt/sim/lead.py
                    └─► follow ─► takeover ─► promoted ┘                                             nfckpt/sim/follow.py

A crash drops the generator; nothing of it runs any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfckpt.failover.witness import Question
from nfckpt.sim.lead import SimLeader
from nfckpt.sim.shell import MS, US, Steps, Stopped

if TYPE_CHECKING:
    from nfckpt.sim.world import World

__all__ = ["SimNode", "Stopped"]


class SimNode(SimLeader):
    """One process of node `node`, started now, blank."""

    def __init__(self, world: World, node: str, number: int) -> None:
        super().__init__(world, node, number)
        self.steps = self._life()

    def _life(self) -> Steps:
        """Everything this process does."""
        w = self.world
        if w.hosts:
            w.fence_install(self)
        asked = -w.far
        term: int | None = None
        registered = False
        while not registered:
            if w.now - asked > self.bounds.claim_ms_max * MS:
                asked = w.now
                w.ask(self, Question("register", self.node, life=str(self.number)))
            yield self._idle(200 * US)
            for answer in self._heard():
                if answer.verb == "register":
                    registered, term = True, answer.term if answer.said == "lead" else None
        if term is None:
            yield from self._follow()
            yield from self._lead(term=self.promoted)
        else:
            yield from self._lead(term=term)
