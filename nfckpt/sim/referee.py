"""Referee: sees both nodes, both segments and the witness at once, and says what must never be untrue.

Checks      I1  no frame in the app at a capture          I3  a cut that is due comes at the next poll
            I4  what the app wrote together is there together after a takeover
            I5  no output leaves before a standby committed its epoch, or by permission; byte for byte, in order, once
            I6  the tap owes what no committed epoch names: nothing else is trimmed (the ledger finds what is missing)
            I7  no ack of an epoch that is not held       I8  the standby's arena is, epoch by epoch, what the active
            captured, and a record undone leaves what was before
            I9  after the first frame of term t + 1 none of an earlier term; one process a term
            I10 the pair's time in an epoch is the pair's  I11 a stale request has no effect
            I12 an app's frame is never refused in silence I13 a process ends with a code of the table
            I14 an honest peer is never found wrong, a lie always      I15 no output carries a time after which the clock read less
            rule 4 no output is fed to the app · rule 6, 7 credits and expected outputs are forgotten in time
            each input taken in once, each output left once (nfckpt/sim/ledger.py); what the app itself explains

I2 is how a node is driven (nfckpt/sim/lead.py calls the app at polls only).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NoReturn

from nfckpt.failover.takeover import Step
from nfckpt.replica.active import Active, ActiveState
from nfckpt.replica.standby import Standby
from nfckpt.sim.ledger import Key, Ledger

if TYPE_CHECKING:
    from nfckpt.native.tap import Tap
    from nfckpt.sim.shell import SimShell
    from nfckpt.sim.world import World

__all__ = ["ENDS", "Referee", "SimViolation"]

ENDS = {3: "fenced", 4: "handed over", 6: "divergent", 9: "unprotectable", 11: "lost the active before it was whole",
        12: "refused for now"}


class SimViolation(AssertionError):
    """A promise was broken. The message ends with the command that replays it."""


class Referee:
    """One a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.term = 0                                   # youngest that emitted
        self.emitter: SimShell | None = None             # in that term
        self.generation = 0                             # of the state: grows when a blank node leads
        self.promise = False                            # the pair was protected when the last fault struck
        self.ledger = Ledger(self.fail, world.bounds.tap_skew_ms_max * 1_000_000)
        self.explain = world.app.explain()
        self.clock_ns = 0                               # the youngest pair's time that an output has carried out
        self.contents: dict[tuple[int, int], bytes] = {}        # session, epoch -> arena as captured
        self.commits: dict[int, int] = {}                       # session -> epoch
        self.lost: set[Key] = set()                             # outputs of a state that is gone: nobody expects them any more
        self.emitted: set[Key] = set()                          # of the present one

    def fail(self, what: str) -> NoReturn:
        w = self.world
        raise SimViolation(f"{what}, at {w.at_ms():.3f} ms, {w.profile}; replay: {w.command()}")

    # ── protection ───────────────────────────────────────────────────────────────────────────────

    def protected(self) -> bool:
        """Somebody leads, is protected, and the one who protects it is alive and recorded; or has claimed the term for a switch, and
        did not begin to take it. An active whose app keeps its frames will end of that: it is no half of a pair any more."""
        w, v = self.world, self.world.witness
        names, term = (v.holder, v.standby), v.term
        if v.former:
            names, term = (v.former, v.holder), v.term - 1
        lead, other = w.lives.get(names[0]), w.lives.get(names[1])
        if other is not None and (other.promoted or (other.takeover is not None and other.takeover.step is not Step.CLAIM)):
            return False
        return (lead is not None and other is not None and lead.alive and other.alive and isinstance(lead.core, Active)
                and lead.core.state in (ActiveState.ACTIVE, ActiveState.HANDED) and lead.core.term == term and not lead.core.giving_up and lead.keeps_until <= w.now and not lead.core.engine.aborts_in_row
                and isinstance(other.core, Standby) and other.core.may_claim and other.core.term == lead.core.term)

    def fault(self) -> None:
        """Called before each fault: a second one, before protection is back, promises nothing."""
        self.promise = self.protected()

    def leads(self, node: SimShell, blank: bool) -> None:
        if blank:
            if self.promise:
                self.fail(f"{node!r} leads blank though the pair was protected when it was struck")
            self.generation += 1
            self.lost |= self.emitted
            self.emitted.clear()
            self.clock_ns = 0
            self.explain = self.world.app.explain()
        elif node.app is not None and (check := getattr(node.app, "invariants", None)) is not None:
            try:
                check()
            except AssertionError as e:
                self.fail(f"I4: the state that {node!r} took over is not whole: {e}")
        node.generation = self.generation
        self.ledger.leads(node, blank)

    def stranded(self, tap: Tap) -> None:
        """Inputs were shipped, and this tap has all that is left of them."""
        self.ledger.stranded(Counter((port, frame) for port, frame in tap.held_inputs()))

    def ended(self, node: SimShell, code: int, reason: str) -> None:
        if code not in ENDS or code == 6:
            self.fail(f"{'I8' if code == 6 else 'I13'}: {node!r} ended with code {code}: {reason}")
        self.world.covered.add(f"end {code} {ENDS[code]}")

    # ── input and output ─────────────────────────────────────────────────────────────────────────

    def took(self, node: SimShell, keys: list[Key]) -> None:
        """The app of `node` is handed these frames."""
        core = node.core
        assert isinstance(core, Active)
        for key in keys:
            if key not in self.ledger.inputs:
                fenced = core.term < self.term              # what it reads now, nobody learns
                if node.generation == self.generation and node.promoted and not fenced and key not in self.lost:
                    self.fail(f"rule 4: {node!r} fed {key[1][14:29].hex()}, an output, to its app")
        self.ledger.took(node, core.agent.epoch, keys)
        self._permitted_at_once(node, core)

    def made(self, node: SimShell, port: int, frame: bytes) -> None:
        """The agent of `node` took an output of the app."""
        core = node.core
        assert isinstance(core, Active)
        node.leaving[port].append((core.agent.epoch, frame, node.ctx.now_ns))
        self.ledger.made(node, core.agent.epoch, (port, frame))
        self._permitted_at_once(node, core)

    def _permitted_at_once(self, node: SimShell, core: Active) -> None:
        if core.agent.gate.is_open and node is self.ledger.lead:
            self.ledger.settle()

    def left(self, node: SimShell, port: int, frame: bytes, counts: bool) -> None:
        """`node` sent `frame` by `port`, past its kernel's fence. `counts`: not into a link that is cut before it dies."""
        w, core = self.world, node.core
        assert isinstance(core, Active)
        if core.term < self.term:
            self.fail(f"I9: {node!r} emitted in term {core.term} after term {self.term} had begun")
        if core.term > self.term:
            self.term, self.emitter = core.term, node
        if node is not self.emitter:
            self.fail(f"I9: {node!r} and {self.emitter!r} emitted in term {core.term}")
        leaving = node.leaving[port]
        if not leaving or leaving[0][1] != frame:
            self.fail(f"I5: {node!r} emitted {frame[14:29].hex()} on port {port}, due was "
                      f"{leaving[0][1][14:29].hex() if leaving else 'nothing'}")
        epoch, _, now_ns = leaving.popleft()
        if core.agent.gate.is_open:
            if not self._permitted(node, core):
                self.fail(f"I5: {node!r} emitted unprotected in term {core.term} without permission ({w.witness.view()})")
            self._permitted_at_once(node, core)
        elif epoch > max(node.permitted, self.commits.get(core.session, 0)):
            self.fail(f"I5: {node!r} emitted an output of epoch {epoch} before any standby committed it")
        if not counts:
            return
        self.emitted.add((port, frame))
        self.clock_ns = max(self.clock_ns, now_ns)
        if self.ledger.left((port, frame), w.now) and (wrong := self.explain(port, frame)):
            self.fail(f"{node!r}: {wrong}")

    def _permitted(self, node: SimShell, active: Active) -> bool:
        """Nobody else may emit: struck out, proven dead, or this is a takeover by the standing grant that is being reported."""
        w, v = self.world, self.world.witness
        if w.witness.former == node.node and not w.hosts and not self._claimant_lives():
            return True                                 # it claimed our term and is dead: we have not heard of the claim
        if v.holder == node.node and active.term in (v.term, w.witness.back):
            other = w.lives.get(v.standby)
            core = None if other is None or not other.alive else other.core
            return v.standby == "" or (not w.hosts and not (isinstance(core, Standby) and core.may_claim))
        # our `took` is on its way (kept in order by the keeper), and the old holder is dead or gave the term away
        return v.term == active.term - 1 and v.standby == node.node

    def _claimant_lives(self) -> bool:
        w = self.world
        return any(n.alive and n.takeover is not None for n in w.lives.values())

    def clock(self, node: SimShell, now_ns: int) -> None:
        if node is self.ledger.lead and now_ns < self.clock_ns:
            self.fail(f"I15: {node!r} reads {now_ns / 1e6:.3f} ms after an output said {self.clock_ns / 1e6:.3f}")

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    def captured(self, core: Active, content: bytes) -> None:
        if core.agent.in_flight:
            self.fail(f"I1: epoch {core.engine.epoch - 1} captured with {core.agent.in_flight} frames in the app")
        self.contents[core.session, core.engine.epoch - 1] = content

    def committed(self, session: int, epoch: int, content: bytes | None, now_ns: int) -> None:
        self.commits[session] = epoch
        captured = self.contents.pop((session, epoch), b"")
        if content is not None and content != captured:
            self.fail(f"I8: the standby's arena differs from what was captured as epoch {epoch}")
        lead = self.ledger.lead
        core = getattr(lead, "core", None)
        if isinstance(core, Active) and core.session == session and core.state is not ActiveState.SOLO:
            if now_ns > lead.ctx.now_ns + 1_000_000_000 or now_ns < self.clock_ns:      # type: ignore[attr-defined]
                self.fail(f"I10: epoch {epoch} says {now_ns / 1e6:.3f} ms, which is not the pair's time")
            self.ledger.settle(epoch)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def unsettled(self) -> str:
        """What still waits for its turn, or ""."""
        lead, ledger = self.ledger.lead, self.ledger
        core = getattr(lead, "core", None)
        if isinstance(core, Active) and core.agent.gate.is_open:
            ledger.settle()
        if ledger.due:
            port, frame = min(ledger.due)
            c = ledger.inputs[port, frame]
            return (f"{len(ledger.due)} inputs lost, first {frame[14:21].hex()} of port {port}: sent at "
                    f"{', '.join(f'{self.world.at_ms(t):.3f}' for t in c.times)}, taken in {c.consumed} times")
        if ledger.owed:
            port, frame = min(ledger.owed)
            return f"{len(ledger.owed)} outputs lost, first {frame[14:29].hex()} of port {port}"
        return ""
