"""Referee: sees both nodes, both segments and the witness at once, and says what must never be untrue.

Checks      I1  no frame in the app at a capture          I5  no output leaves before a standby committed its epoch, or by permission
            I7  I8  the standby's arena is, epoch by epoch, what the active captured
            I9  after the first frame of term t + 1 none of an earlier term
            each input answered once; each flow counts 1, 2, 3, … with one nonce, over any number of takeovers
Not counted inputs that the active's own ring dropped (answered at most once), and what a crash took while the pair was not
            protected: a blank node leads then, a new generation of the state begins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nfckpt.replica.active import Active, ActiveState
from nfckpt.replica.standby import Standby
from nfckpt.sim.toy import Frame, decode

if TYPE_CHECKING:
    from nfckpt.sim.node import SimNode
    from nfckpt.sim.world import World

__all__ = ["Asked", "Referee", "SimViolation"]


class SimViolation(AssertionError):
    """A promise was broken. The message ends with the command that replays it."""


@dataclass
class Asked:
    """What became of one input (byte-identical copies together)."""

    sent: int = 0
    missed: int = 0                 # copies that the active's ring dropped
    answers: int = 0
    waived: bool = False


@dataclass
class Referee:
    world: World
    term: int = 0                                   # youngest that emitted
    generation: int = 0                             # of the state: grows when a blank node leads
    promise: bool = False                           # the pair was protected when the last fault struck
    asked: dict[tuple[int, int, int], Asked] = field(default_factory=dict)
    flows: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)    # generation, side, flow -> count, nonce
    digests: dict[tuple[int, int], bytes] = field(default_factory=dict)                 # session, epoch -> arena as captured
    commits: dict[int, int] = field(default_factory=dict)                               # session -> epoch
    emitted: int = 0

    def fail(self, what: str) -> None:
        w = self.world
        raise SimViolation(f"{what}, at {w.now / 1e6:.3f} ms, {w.profile}; replay: nfckpt sim --seed {w.seed} --trace"
                           + (f" --events {w.events}" if w.events != w.EVENTS else ""))

    # ── protection ───────────────────────────────────────────────────────────────────────────────

    def protected(self) -> bool:
        """Somebody leads, is protected, and the one who protects it is alive and recorded."""
        w = self.world
        lead = w.lives.get(w.witness.holder)
        other = w.lives.get(w.witness.standby)
        return (lead is not None and other is not None and lead.alive and other.alive and isinstance(lead.core, Active)
                and lead.core.state is ActiveState.ACTIVE and lead.core.term == w.witness.term
                and isinstance(other.core, Standby) and other.core.may_claim and other.core.term == lead.core.term
                and not lead.core.handing_over)

    def fault(self) -> None:
        """Called before each fault: a second one, before protection is back, promises nothing."""
        self.promise = self.protected()

    def leads(self, node: SimNode, blank: bool) -> None:
        if blank:
            if self.promise:
                self.fail(f"{node!r} leads blank though the pair was protected when it was struck")
            self.generation += 1
            for asked in self.asked.values():
                asked.waived = True
        node.generation = self.generation

    # ── input and output ─────────────────────────────────────────────────────────────────────────

    def question(self, side: int, flow: int, number: int) -> None:
        self.asked.setdefault((side, flow, number), Asked()).sent += 1

    def missed(self, frame: bytes) -> None:
        f = decode(frame)
        if f.kind == b"I":
            self.asked[f.side, f.flow, f.number].missed += 1

    def answer(self, node: SimNode, hub: int, frame: bytes) -> None:
        """`node` put `frame` on `hub`, past its kernel's fence."""
        w, core = self.world, node.core
        self.emitted += 1
        assert isinstance(core, Active)
        if core.term < self.term:
            self.fail(f"I9: {node!r} emitted in term {core.term} after term {self.term} had begun")
        self.term = core.term
        epoch = node.outputs.get(frame)
        if epoch is None:
            self.fail(f"I5: {node!r} emitted what its app never sent")
            return
        if core.agent.gate.is_open:
            if not self._permitted(node, core):
                v = w.witness.view()
                self.fail(f"I5: {node!r} emitted unprotected in term {core.term} without permission ({v})")
        elif epoch > max(node.permitted, self.commits.get(core.session, 0)):
            self.fail(f"I5: {node!r} emitted an output of epoch {epoch} before any standby committed it")
        f = decode(frame)
        asked = self.asked[f.side, f.flow, f.number]
        asked.answers += 1
        if asked.answers > asked.sent and not asked.waived:
            self.fail(f"input {f[1:4]} was answered {asked.answers} times, sent {asked.sent} times")
        flow = (node.generation, f.side, f.flow)
        count, nonce = self.flows.get(flow, (0, f.nonce))
        if (f.counted, f.nonce) != (count + 1, nonce):
            self.fail(f"{node!r}: flow {f[1:3]} counted {f.counted} (nonce {f.nonce:x}) after {count} (nonce {nonce:x})")
        self.flows[flow] = f.counted, f.nonce

    def _permitted(self, node: SimNode, active: Active) -> bool:
        """Nobody else may emit: struck out, proven dead, or this is a takeover by the standing grant that is being reported."""
        w, v = self.world, self.world.witness
        if (v.holder, v.term) == (node.node, active.term):
            other = w.lives.get(v.standby)
            core = None if other is None or not other.alive else other.core
            return v.standby == "" or (not w.hosts and not (isinstance(core, Standby) and core.may_claim))
        # our `took` is on its way (kept in order by the keeper), and the old holder is dead or gave the term away
        return v.term == active.term - 1 and v.standby == node.node

    def unexpected(self, node: SimNode, frame: Frame) -> None:
        fenced = isinstance(node.core, Active) and node.core.term < self.term       # what it reads now, nobody learns
        if node.generation == self.generation and node.promoted and not fenced:
            self.fail(f"rule 4: {node!r} fed the output {frame} to its app")

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    def captured(self, core: Active, digest: bytes) -> None:
        if core.agent.in_flight:
            self.fail(f"I1: epoch {core.engine.epoch - 1} captured with {core.agent.in_flight} frames in the app")
        self.digests[core.session, core.engine.epoch - 1] = digest

    def committed(self, session: int, epoch: int, digest: bytes | None) -> None:
        self.commits[session] = epoch
        if digest is not None and digest != self.digests.get((session, epoch)):
            self.fail(f"I8: the standby's arena differs from what was captured as epoch {epoch}")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def unanswered(self) -> list[tuple[int, int, int]]:
        return [key for key, a in self.asked.items() if not a.waived and a.answers < a.sent - a.missed]
