"""The emitting side, sans-I/O: holds, ships, releases; gains and loses its standby.

Rules       SOLO        emits at once, by permission of the witness (or as the first node of a pair).
            PROTECTING  a follower was let in: outputs are held and committed like later, pages ride on epochs.
                        If the follower is lost now nothing was promised: back to SOLO.
            ACTIVE      the witness recorded the follower's standing grant: protected.
            HANDED      a planned switch: the standby has claimed the next term, all is committed and out, and it was told to lead.
                        Nothing leaves any more; but until it has taken the term, ours may be the only copy of the state that lives.
            HOLDING     the standby is suspected or dead; outputs stay held until the grant is void.
            FENCED      the witness gave the next term to the other node: this process never emits again.

Picture     SOLO ─hello─► PROTECTING ─whole, recorded─► ACTIVE ─lost─► HOLDING ─void─► SOLO
                              └────────lost───────────► SOLO            └─denied─► FENCED
                                                 ACTIVE ─handed_over─► HANDED ─lost─► HOLDING

Who calls   node/lead.py: `on_*` for what arrived, `tick` once a millisecond; both return effects, in order. Acks, releases and
            captures, which happen at every poll, are native: `path` (native/active_path.pyx), which this file steers.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from nfckpt.checkpoint.engine import Engine
from nfckpt.clock import PairClock
from nfckpt.config import Bounds
from nfckpt.errors import PeerError
from nfckpt.failover.lease_clock import LeaseClock
from nfckpt.failover.witness import Answer, Question
from nfckpt.native.active_path import ActivePath
from nfckpt.replica.effects import (
    Ask,
    DropPeer,
    Effect,
    Event,
    KillPeer,
    LeaseArm,
    LeasePermanent,
    LeaseStamp,
    Send,
    Stop,
)
from nfckpt.wire import kinds
from nfckpt.wire.messages import (
    CUT_OFF,
    PORT_DOWN,
    PROTOCOL,
    TAP_GAP,
    Ack,
    Handover,
    Hello,
    Leave,
    Need,
    Parting,
    Prepare,
    Protected,
    Ready,
    Refuse,
    TapOpen,
    Welcome,
    Whole,
    decode_ack,
    decode_control,
    encode_ack,
    encode_control,
)

if TYPE_CHECKING:
    from nfckpt.native.agent import Agent
    from nfckpt.native.epoch import EpochWriter

__all__ = ["TRANSITIONS", "Active", "ActiveState"]

LEAVING_TRIES = 256     # a transmit ring in which nothing new is put empties within a millisecond, unless its port is stuck


class ActiveState(Enum):
    SOLO = "solo"
    PROTECTING = "protecting"
    ACTIVE = "active"
    HANDED = "handed"
    HOLDING = "holding"
    FENCED = "fenced"


S = ActiveState
TRANSITIONS: dict[tuple[ActiveState, str], ActiveState] = {
    (S.SOLO, "hello"): S.PROTECTING,
    (S.PROTECTING, "recorded"): S.ACTIVE,
    (S.PROTECTING, "lost"): S.SOLO,
    (S.PROTECTING, "lost_while_recording"): S.HOLDING,
    (S.ACTIVE, "lost"): S.HOLDING,
    (S.ACTIVE, "handed_over"): S.HANDED,
    (S.HANDED, "lost"): S.HOLDING,
    (S.HOLDING, "void"): S.SOLO,
    (S.HOLDING, "denied"): S.FENCED,
}

MS = 1_000_000
LEASE_GUARD_NS = 10 * MS
NEVER = (1 << 64) - 1


class Active:
    """`node`, `peer`: ids; `lease`: emission is bounded by the kernel (profile hosts); `kills`: by the peer (profile host)."""

    def __init__(self, *, pair: str, node: str, peer: str, layout: bytes, bounds: Bounds, term: int, agent: Agent,
                 engine: Engine, writer: EpochWriter, clock: PairClock, lease: LeaseClock | None, kills: bool,
                 key_check: bytes = b"") -> None:
        self.pair, self.node, self.peer, self.layout, self.key_check = pair, node, peer, layout, key_check
        self.bounds, self.term, self.lease, self.kills = bounds, term, lease, kills
        self.agent, self.engine, self.writer, self.clock = agent, engine, writer, clock
        self.path = ActivePath(agent, engine, writer, bounds.sync_group_pages_max, bounds.sync_pause_us_max)
        self.path.clock_offset_ns = clock.offset_ns
        self.state = S.SOLO
        self.session = 0
        self.tap_open = False
        self.whole = False              # the follower says so
        self.recording = False          # the witness was asked to record the standby
        self.peer_dead = False          # proven by the kernel
        self.beat_ns = 0
        self.spoke_ns = 0               # the last beat or welcome
        self.silent = False             # for so long that the follower may have claimed our term's successor
        self.asked_ns = 0
        self.asking = False             # whether we may go on alone, and there is no answer
        self.preparing = False          # a planned switch is wanted: the standby claims the next term, service goes on
        self.prepare_ns = 0             # when we asked it to; 0: we did not yet
        self.handing_over = False       # it has it: input stops
        self.cut = False                # …because a port of ours is dead: what is committed leaves on the standby's
        self.handed = False             # the standby was told to lead
        self.giving_up = ""             # why protection is to end while the standby is alive and well
        self.peer_hangs = False         # says the failure detector
        self.lost_ns = 0
        self.took_ns = 0
        self.unheard = False            # taken over by the standing grant, and the witness has not said that it knows
        agent.gate.open()

    def _move(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]

    @property
    def syncing(self) -> bool:
        """The follower has not been sent every page yet."""
        return self.state is S.PROTECTING and not self.path.sync.done

    @property
    def peer_gap(self) -> bool:
        """The standby's tap is inexact for now."""
        return bool(self.path.peer_flags & TAP_GAP)

    @property
    def protected(self) -> bool:
        return self.state is S.ACTIVE

    # ── the follower ─────────────────────────────────────────────────────────────────────────────

    def on_hello(self, now: int, payload: memoryview) -> list[Effect]:
        """First message on a fresh channel. Called at a poll boundary with no frame in the app."""
        hello = decode_control(payload)
        if not isinstance(hello, Hello):
            raise PeerError(f"a follower began with {type(hello).__name__}")
        why, again = "", False
        if hello.pair != self.pair:
            why = f"this is pair {self.pair!r}, not {hello.pair!r}"
        elif hello.protocol != PROTOCOL:
            why = f"protocol {hello.protocol}, ours is {PROTOCOL}: run the same nfckpt on both nodes"
        elif hello.key != self.key_check:
            why = "another key: give both nodes the same"
        elif hello.layout != self.layout:
            why = "the state's layout differs: run the same app with the same parameters on both nodes"
        elif hello.node != self.peer:
            why = f"node {hello.node!r} is not the peer of {self.node!r}"
        elif again := self.engine.unprotectable and self.agent.in_flight > 0:
            why = "the active is unprotectable: its app keeps frames across polls"
        elif again := self.state is not S.SOLO:
            why = f"the active is {self.state.value} and follows up its present standby first"
        elif again := self.asking:
            why = "the witness has not said yet in which term the active goes on alone"
        elif again := self._still_leaving():
            why = "the active's ports are full: what waits would leave under the standby's eyes, and be taken for input"
        if why:
            return [Send(kinds.CONTROL, encode_control(Refuse(why, again))), DropPeer(f"refused: {why}"),
                    Event("follower_refused", {"reason": why})]
        self._move("hello")
        gate = self.agent.gate
        # what was let go by permission belongs to an epoch that counts as committed; the next one is held
        self.engine.skip()
        self.agent.epoch = self.engine.epoch
        gate.shut(self.engine.committed)
        gate.captured_all()
        self.agent.recording = True
        self.agent.forget_names()
        self.agent.arena.forget_writes()
        self.path.sync.begin()
        self.session = max(self.session, self.term << 32) + 1
        self.tap_open = self.whole = self.recording = self.peer_dead = self.silent = False
        self.spoke_ns = now
        self.path.begin(self.session, self.term, now)
        self.path.holding = True
        welcome = Welcome(self.session, self.term, self.engine.epoch, self.bounds.lease_ms if self.lease else 0)
        return [Send(kinds.CONTROL, encode_control(welcome)), Event("protecting", {"peer": hello.node})]

    def _still_leaving(self) -> bool:
        """Output emitted by permission waits for room in a port, or in its ring: it would die with us, and the state says that it left."""
        gate = self.agent.gate
        for _ in range(LEAVING_TRIES):
            gate.release()
            if gate.released_through == gate.tail:
                return False
        return True

    def on_message(self, now: int, kind: int, payload: memoryview) -> list[Effect]:
        """Raises PeerError for anything that does not belong here."""
        if kind == kinds.ACK:
            self.path.on_ack(payload, now, True)
            return []
        if kind == kinds.BEAT_ACK:
            return self._on_beat_ack(now, payload)
        self.path.heard(now)
        if kind != kinds.CONTROL:
            raise PeerError(f"message of kind {kind} from a follower")
        message = decode_control(payload)
        if getattr(message, "session", None) != self.session:
            raise PeerError(f"{type(message).__name__} of another session")
        if isinstance(message, TapOpen):
            self.tap_open = True
            self.path.sync_pages = True
            self.path.tap_opened()
            return []
        if isinstance(message, Need):
            return [Send(kinds.OUTPUTS, self.path.outputs_of(message.epoch))]
        if isinstance(message, Whole) and self.state is S.PROTECTING and self.path.sync.done:
            self.whole = True
            return [] if self.lease else self._record(now)
        if isinstance(message, Ready) and self.preparing:
            self.preparing, self.handing_over = False, True
            return []
        if isinstance(message, Leave):
            return self.on_peer_lost(now, "it left in order", True)     # as good as dead: it will not use its grant
        raise PeerError(f"{type(message).__name__} while {self.state.value}")

    def _on_beat_ack(self, now: int, payload: memoryview) -> list[Effect]:
        self.path.on_ack(payload, now, False)
        if self.lease is not None and self.whole:
            mark = self.lease.acked(decode_ack(payload).epoch, now)
            if mark is not None:
                # only now does emission depend on the standby's answers, so only now may it be recorded
                return [LeaseStamp(mark), *([] if self.recording else self._record(now))]
        return []

    def _record(self, now: int) -> list[Effect]:
        """Not before the witness knows in which term we lead: it would deny it, and deny a whole standby's claim too."""
        if self.unheard:
            return []
        self.recording = True
        self.asked_ns = now
        return [Ask(self._question("protected"))]

    def may_release(self, now: int) -> bool:
        """False while the kernel's lease may run out before a frame handed over now has passed: it waits in the gate.

        Only to keep things smooth: a frame that meets the closed fence stays in the port's ring, in order, and is not released
        (`gate.released_through`); it leaves when the lease is renewed, or the standby emits it.
        """
        return now < self.leave_until_ns

    @property
    def leave_until_ns(self) -> int:
        """The end of what `may_release` allows, as far as is known now."""
        if self.cut:
            return 0
        return NEVER if self.lease is None or not self.recording else max(0, self.lease.until_ns - LEASE_GUARD_NS)

    def on_peer_lost(self, now: int, reason: str, proof: bool) -> list[Effect]:
        """The channel ended or broke the protocol, the kernel says that the process is dead (`proof`), or silence."""
        if proof:
            self.peer_dead = True
        if self.state in (S.SOLO, S.FENCED):
            return []
        effects: list[Effect] = [DropPeer(reason)]
        if self.state is S.PROTECTING and not self.recording:
            self._end_session()
            self._move("lost")
            return [*effects, *self._solo(now, f"follower lost while syncing: {reason}")]
        if self.state is not S.HOLDING:
            self._end_session()
            self._move("lost_while_recording" if self.state is S.PROTECTING else "lost")
            self.lost_ns = now
            effects.append(Event("standby_lost", {"reason": reason, "proof": proof}))
        self.asked_ns, self.asking = now, True
        effects.append(Ask(self._question(self._alone)))
        self._note_silence(now)
        if self.peer_dead and not self.silent and not self.handed:
            # the only one who could use the standing grant is dead, and it had no reason to use it before: nothing to wait for
            self._move("void")
            effects += self._solo(now, reason)
        return effects

    def give_up(self, now: int, reason: str) -> list[Effect]:
        """Go on without protection. A recorded standby keeps its channel until the witness struck it: seeing that end, it claims."""
        if self.state is S.PROTECTING and not self.recording:
            return self.on_peer_lost(now, reason, False)
        if self.state is not S.ACTIVE or self.giving_up:
            return []
        self.giving_up, self.asked_ns = reason, now
        return [Send(kinds.CONTROL, encode_control(Parting(self.session))), Ask(self._question(self._alone))]

    def _question(self, verb: str) -> Question:
        return Question(verb, self.node, self.term, self.peer if verb == "protected" else "", number=self.session)

    def _note_silence(self, now: int) -> None:
        self.silent = self.silent or now - self.spoke_ns > self.bounds.hang_ms * MS // 2

    def _end_session(self) -> None:
        self.engine.channel_lost()
        self.path.end()

    @property
    def _alone(self) -> str:
        """How to ask for permission to go on alone: on hosts a claimant asks again before it emits, so its claim may be undone."""
        return "reclaim" if self.lease is not None else "solo"

    def on_witness(self, now: int, answer: Answer) -> list[Effect]:
        """The witness answered one of our questions. No is final: terms only grow. Yes counts for the follower it was asked about."""
        if answer.said == "wait":
            self.asked_ns = now - (self.bounds.claim_ms_max - self.bounds.beat_ms) * MS     # again after a beat
            return []
        if answer.said != "ok" and answer.verb == "protected":
            # the standby has claimed, which may be undone: whether we go on is another question. An old one, answered late, says nothing
            return self.on_peer_lost(now, "the standby claimed the term", False) if self.state is S.PROTECTING else []
        if answer.said != "ok" and answer.verb in ("took", self._alone):
            if self.state is S.HOLDING:
                self._move("denied")
            if self.handed:
                return [Stop(4, "handed over to the standby")]
            return [Stop(3, f"fenced: {answer.holder or 'nobody'} holds term {answer.term}, ours is {self.term}")]
        if answer.verb == "took":
            self.unheard = False
            return self._record(now) if self.whole and self.lease is None and self.state is S.PROTECTING else []
        if answer.verb == "suspect" and answer.term == self.term and self.recording and self.state in (S.PROTECTING, S.ACTIVE):
            return self.on_peer_lost(now, "the standby lost us, and we live", False)
        if answer.number != self.session:
            return []
        if answer.verb == "protected" and self.state is S.PROTECTING:
            self._move("recorded")
            return [Send(kinds.CONTROL, encode_control(Protected(self.session, self.term))),
                    Event("protected", {"peer": self.peer, "term": self.term})]
        if answer.verb == self._alone and self.asking:
            self.asking, self.term = False, answer.term
        if answer.verb == self._alone and self.state is S.HOLDING:
            if self.kills and not self.peer_dead:
                return [KillPeer()]             # on_peer_lost(proof) follows
            self._move("void")
            return self._solo(now, "grant void")
        if answer.verb == self._alone and self.giving_up and self.state is S.ACTIVE:
            return self.on_peer_lost(now, self.giving_up, False)
        return []

    def _solo(self, now: int, reason: str) -> list[Effect]:
        gate = self.agent.gate
        held = gate.held_frames
        gate.open()
        self.agent.recording = False
        self.agent.forget_names()
        self.tap_open = self.whole = self.recording = self.preparing = self.handing_over = self.cut = self.handed = False
        self.giving_up = ""
        self.path.holding = self.path.sync_pages = False
        effects: list[Effect] = self.unlimited(now)
        return [*effects, Event("solo", {"reason": reason, "released": held, "term": self.term})]

    def unlimited(self, now: int) -> list[Effect]:
        """By permission of the witness nobody else may emit."""
        return [LeasePermanent(self.lease.beat(now).mark)] if self.lease else []

    # ── every poll ───────────────────────────────────────────────────────────────────────────────

    def tick(self, now: int) -> list[Effect]:
        """About once a millisecond: beats, silence, unanswered questions."""
        b = self.bounds
        effects: list[Effect] = []
        if self.state in (S.PROTECTING, S.ACTIVE, S.HANDED):
            if now - self.beat_ns >= b.beat_ms * MS:
                self._note_silence(now)
                self.beat_ns = self.spoke_ns = now
                number = 0
                if self.lease is not None:
                    arm = self.lease.beat(now)
                    number = arm.seq
                    effects.append(LeaseArm(arm.mark, arm.ms))
                echo_ns, empty = self.path.beat()
                effects.append(Send(kinds.BEAT, encode_ack(Ack(self.session, number, now, echo_ns, empty, 0))))
            if self.peer_hangs:
                return effects + self.on_peer_lost(now, f"standby silent for {(now - self.path.heard_ns) // MS} ms", False)
        if self.preparing and not self.prepare_ns and self.state is S.ACTIVE:
            self.prepare_ns = now
            effects.append(Send(kinds.CONTROL, encode_control(Prepare(self.session, self.term))))
        self.path.tell_released()
        if self.unheard and now - self.took_ns > b.claim_ms_max * MS:
            self.took_ns = now
            effects.append(Ask(Question("took", self.node, self.term)))
        if self.state is S.HOLDING and b.when_alone == "unsafe_continue" and now - self.lost_ns > b.claim_ms_max * MS:
            if self.kills and not self.peer_dead:
                return [*effects, KillPeer()]
            self._move("void")
            effects += [*self._solo(now, "alone: no witness answers"), Event("alone", {"term": self.term})]
        if (self.asking or self.giving_up or self.state is S.HOLDING or (self.recording and self.state is S.PROTECTING)) \
                and now - self.asked_ns > b.claim_ms_max * MS:
            self.asked_ns = now
            effects.append(Ask(self._question("protected" if self.state is S.PROTECTING else self._alone)))
        return effects

    # ── planned switch ───────────────────────────────────────────────────────────────────────────

    def hand_over(self) -> bool:
        """Begin a planned switch: the standby claims the next term; then input and timers stop, the rest commits, and it leads.
        False: not protected."""
        if self.state is S.ACTIVE and not self.peer_gap and not self.handing_over and not self.preparing:
            self._prepare()
        return self.preparing or self.handing_over

    def _prepare(self) -> None:
        self.preparing, self.prepare_ns = True, 0

    def on_ports(self, now: int, down: bool) -> list[Effect]:
        """About once a millisecond: a port of ours has no carrier, or the standby says that one is cut off. A standby that has carrier everywhere
        is handed the term: it has seen on its tap what we did not, and emits again what we let go into the dead port."""
        cut_off = bool(self.path.peer_flags & CUT_OFF)
        if not (down or cut_off) or self.state is not S.ACTIVE or self.cut or self.handing_over or self.path.peer_flags & PORT_DOWN:
            return []
        if not self.preparing:              # whatever its tap lacks: here nothing leaves any more
            self._prepare()
        self.cut = True
        return [Event("switching", {"reason": "a port has no carrier" if down else "a port is cut off: the standby sees there what we do not"})]

    def handed_over(self, now: int) -> list[Effect]:
        """Call while `handing_over` after each poll: hands over once nothing is open, held or on its way.

        This process ends when the witness says that the term is taken; should the standby be dead by then, it goes on alone.
        """
        agent = self.agent
        if (not self.handing_over or self.state is not S.ACTIVE or agent.pending or agent.in_flight or self.path.staging.count
                or self.engine.outstanding
                or (not self.cut and (agent.gate.held_frames or agent.gate.released_through != agent.gate.tail))):
            return []
        self._move("handed_over")
        self.handed = True
        self.path.end()                 # what a timer makes from here on is nobody's epoch
        self.giving_up = ""
        return [Send(kinds.CONTROL, encode_control(Handover(self.session, self.term, agent.gate.released_through)))]
