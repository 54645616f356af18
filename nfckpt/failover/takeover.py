"""Takeover, sans-I/O: from the loss of the active to the first frame of the next term, one step after the other.

Picture     CLAIM ──► FENCE ──► SETTLE ──► LIVE            each step's µs go into the receipt

            CLAIM    on suspicion the witness is asked for the next term; on proof (profile host) the standing grant serves,
                     once the active told us that it is recorded, and unless it parted from us first. For a planned
                     switch it was asked before (replica/standby.py): the active lives, and takes the term back if we die before we
                     took it. Where the replication link can be cut, the
                     claim waits for claim_ms: the witness tells the active of our suspicion, and one that lives is preferred (W7).
                     No witness for claim_ms_max: asked again and again, or (when_alone = unsafe_continue) gone without.
            FENCE    host: the old packet process is killed by pidfd and its death awaited.
                     hosts: our last ack + lease + margin must have passed: the old kernel has closed by then.
                     Then the witness is told that we took the term. Hosts: only its yes makes it final, we wait for it.
            SETTLE   keep reading the segment and the channel until every committed output that can have left was seen, or the skew
                     is over. (On one kernel the dead active left behind which outputs it had begun to send.)
            LIVE     apply what is registered, re-emit, restart the app, replay (the shell does it, on Promote).

A denied claim ends the process: somebody else has the term.
"""

from __future__ import annotations

from enum import Enum

from nfckpt.config import Bounds
from nfckpt.failover.witness import Answer, Question
from nfckpt.replica.effects import Ask, Effect, Event, KillPeer, Promote, Stop
from nfckpt.replica.standby import Standby

__all__ = ["Step", "Takeover"]

MS = 1_000_000


class Step(Enum):
    CLAIM = "claim"
    FENCE = "fence"
    SETTLE = "settle"
    LIVE = "live"


class Takeover:
    """`proof`: the kernel says that the active is dead. `kills`: profile host. `leases`: profile hosts.
    `handover`: the active handed its role over, and emits no more. `parted`: it said so, or closed the channel, before it died, so it
    may have had our grant struck out: the witness is asked, proof or not."""

    def __init__(self, standby: Standby, bounds: Bounds, *, node: str, now: int, lost_ns: int, reason: str, proof: bool,
                 kills: bool, leases: bool, handover: bool = False, parted: bool = False) -> None:
        self.standby, self.bounds, self.node = standby, bounds, node
        self.term = standby.term + 1
        self.reason, self.proof, self.kills, self.leases, self.handover = reason, proof, kills, leases, handover
        self.parted = parted
        self.peer_dead = proof
        self.started_ns, self.lost_ns = now, lost_ns
        self.step = Step.CLAIM
        self.marks: dict[str, int] = {}
        self.unheard = False            # the witness was told, not asked, and has not said that it knows
        self._asked_ns = 0
        self.alone = False              # no witness answered (when_alone = unsafe_continue)
        self._free_ns = 0               # when the claim may be put
        self._waits = leases and not proof and not standby.preparing        # for a switch we have asked already
        self._killed = False
        self._fenced_ns = 0

    def _next(self, now: int, step: Step) -> None:
        self.marks[self.step.value] = now
        self.step = step
        self.standby.claimed = True     # an active that goes on would renew its lease with our answers for ever

    def on_witness(self, now: int, answer: Answer) -> list[Effect]:
        """The witness answered our claim (or our report of a takeover on proof)."""
        if answer.said == "wait":
            return []                       # asked again
        if answer.verb == "took":
            self.unheard = False
        if answer.verb == "suspect" and not answer.holder:
            self._free_ns = now             # its keeper says that it is gone
        if answer.verb in ("claim", "took") and answer.said != "ok":        # of a suspicion it changes nothing: the claim decides
            return [Stop(3, f"the claim of term {self.term} was denied: {answer.holder or 'nobody'} holds term {answer.term}")]
        if answer.verb == "claim" and self.step is Step.CLAIM:
            self._next(now, Step.FENCE)
        return []

    def on_peer_dead(self) -> None:
        self.peer_dead = True

    def advance(self, now: int) -> list[Effect]:
        """Call often. Returns what to do; ends with Promote."""
        effects: list[Effect] = []
        if self.step is Step.CLAIM:
            if self.standby.granted or (self.standby.promotable and self.proof and self.kills and not self.parted):
                self._next(now, Step.FENCE)
            elif self.bounds.when_alone == "unsafe_continue" and now - self.started_ns > self.bounds.claim_ms_max * MS:
                self.alone = True
                effects.append(Event("alone", {"term": self.term}))
                self._next(now, Step.FENCE)
            elif self._waits:
                self._waits, self._free_ns = False, now + self.bounds.claim_ms * MS
                effects.append(Ask(Question("suspect", self.node, self.term)))
            elif now >= self._free_ns:
                effects += self._ask(now, "claim")
        if self.step is Step.FENCE:
            if self.handover:
                self._fenced(now)
            elif self.kills:
                if not self._killed:
                    self._killed = True
                    effects.append(KillPeer())
                if self.peer_dead:
                    self._fenced(now)
            elif not self.leases or now >= self.standby.acked_ns + (self.bounds.lease_ms + self.bounds.lease_margin_ms) * MS:
                self._fenced(now)
        if self.step is Step.SETTLE:
            effects += self._ask(now, "took")       # host: once, and the active goes on telling it
            settled = self.standby.tap.read_ns >= self._fenced_ns + self.bounds.tap_skew_ms_max * MS
            if (settled or not self.standby.path.may_still_come()) and (self.kills or self.alone or not self.unheard):
                self._next(now, Step.LIVE)
                effects.append(Promote(self.term))
        return effects

    def _ask(self, now: int, verb: str) -> list[Effect]:
        """Again every `claim_ms_max`, until it is answered."""
        if (verb == "took" and not self.unheard) or (self._asked_ns and now - self._asked_ns <= self.bounds.claim_ms_max * MS):
            return []
        self._asked_ns = now
        return [Ask(Question(verb, self.node, self.term))]

    def _fenced(self, now: int) -> None:
        self._fenced_ns, self._asked_ns, self.unheard = now, 0, True
        self.standby.tap.discarding = False     # where inputs are shipped: what is flooded from now on, only we have
        self._next(now, Step.SETTLE)
