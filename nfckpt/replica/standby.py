"""The following side, sans-I/O: receives, registers, acknowledges, applies; knows when it may be promoted.

Rules       JOINING     greeted the active; waits for its welcome.
            SYNCING     outputs of the active are held from here on. After one skew strays of before have passed: what the tap
                        got since then counts, and pages come with the epochs. (It buffers since the hello: a name whose frame
                        it had let pass would wait, and take a byte-identical one that comes within the skew for it.) Not promotable: a
                        peer lost now means starting again blank.
            WHOLE       every page is here, and on every port the tap covers what no epoch names (rule 9); the active was
                        told and asks the witness to record us. If it is lost now, only the witness knows whether it did.
            STANDBY     recorded: protected. Promotable: on proof by the standing grant, on suspicion by the witness.

Picture     JOINING ─welcome─► SYNCING ─last page, tap covers─► WHOLE ─recorded─► STANDBY      promotion: failover/takeover.py

Records, acks and applying, which happen for every epoch, are native: `path` (native/standby_path.pyx).
"""

from __future__ import annotations

import contextlib
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from nfckpt.clock import PairClock
from nfckpt.config import Bounds
from nfckpt.errors import PeerError
from nfckpt.failover.witness import Answer, Question
from nfckpt.native.standby_path import StandbyPath
from nfckpt.replica.effects import Ask, Effect, Event, Send, Stop
from nfckpt.wire import kinds
from nfckpt.wire.messages import (
    PROTOCOL,
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
    decode_outputs,
    encode_control,
)

if TYPE_CHECKING:
    from nfckpt.native.arena import Arena
    from nfckpt.native.tap import Tap

__all__ = ["TRANSITIONS", "Standby", "StandbyState"]


class StandbyState(Enum):
    JOINING = "joining"
    SYNCING = "syncing"
    WHOLE = "whole"
    STANDBY = "standby"


S = StandbyState
TRANSITIONS: dict[tuple[StandbyState, str], StandbyState] = {
    (S.JOINING, "welcome"): S.SYNCING,
    (S.SYNCING, "whole"): S.WHOLE,
    (S.WHOLE, "recorded"): S.STANDBY,
}

MS = 1_000_000


class Standby:
    """`arena` is blank and no app has touched it; `tap` reads the same segment as the active's ports."""

    def __init__(self, *, pair: str, node: str, layout: bytes, bounds: Bounds, secret: bytes, arena: Arena, tap: Tap,
                 clock: PairClock, now: int, key_check: bytes = b"") -> None:
        self.key_check = key_check
        self.pair, self.node, self.layout, self.bounds, self.secret = pair, node, layout, bounds, secret
        self.arena, self.tap, self.clock = arena, tap, clock
        self.state = S.JOINING
        self.path = StandbyPath(tap, arena, secret, now, record_bytes_max=bounds.message_bytes_max)
        self.acked_ns = 0               # own clock, our last answer to a beat: the promise of I9 counts from it
        self.welcome_ns = 0
        self.open_ns = 0
        self.covered_ns = 0
        self.waiting: deque[tuple[int, memoryview]] = deque()       # when it came, a record the tap has no room, or not every input, for yet
        self.asked = 0                  # the epoch whose outputs we asked for
        self.parting = False            # the active asks for our grant to be struck out
        self.preparing = False          # a planned switch: we claim the next term while the active goes on
        self.granted = False            # and have it
        self.claim_ns = 0               # when we asked last
        self.handover = False           # it stopped: we lead
        self.cut_off = (0, 0)           # bit masks of the active's ports and of ours that are

    def _move(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]

    @property
    def session(self) -> int:
        return self.path.session

    @property
    def term(self) -> int:
        return self.path.term

    @property
    def claimed(self) -> bool:
        """The next term is ours: the active gets no answer any more, so its lease runs out."""
        return self.path.silent

    @claimed.setter
    def claimed(self, now: bool) -> None:
        self.path.silent = now

    @property
    def promotable(self) -> bool:
        """Whole, covered, and recorded by the witness: the standing grant is ours."""
        return self.state is S.STANDBY

    @property
    def may_claim(self) -> bool:
        """Whole and covered; whether we are recorded the witness knows, even if the active died before it could say so."""
        return self.state in (S.WHOLE, S.STANDBY)

    def hello(self) -> list[Effect]:
        self.tap.open()
        return [Send(kinds.CONTROL, encode_control(Hello(self.pair, self.node, PROTOCOL, self.layout, self.key_check)))]

    def leave(self) -> list[Effect]:
        """This process ends in order, and has claimed nothing."""
        return [Send(kinds.CONTROL, encode_control(Leave(self.session)))] if self.session else []

    def on_message(self, now: int, kind: int, payload: memoryview) -> list[Effect]:
        """Raises PeerError for anything that does not belong here."""
        self.path.heard(now)
        if kind == kinds.EPOCH:
            self.waiting.append((now, payload))
            return self.work(now)
        if kind == kinds.INPUTS:
            self.path.inputs(payload, now)
            return self.work(now)
        if kind == kinds.BEAT:
            beat = decode_ack(payload)
            if beat.session != self.session:
                raise PeerError("beat of another session")
            if beat.echo_ns > now:
                raise PeerError("a beat answers a time stamp that was never sent")
            self.path.peer_stamp = beat.stamp_ns
            self.path.echoed(beat.echo_ns)
            if beat.amount and self.open_ns and not self.waiting:       # what waits may name frames of before
                self.tap.emptied(beat.amount, beat.echo_ns)
            if self.claimed:
                return self.work(now)
            self.acked_ns = now
            return [Send(kinds.BEAT_ACK, self.path.ack(beat.epoch, now)), *self.work(now)]
        if kind == kinds.OUTPUTS:
            session, epoch, outputs = decode_outputs(payload)
            if session != self.session or epoch > self.asked:        # for one of before the answer comes too late: its inputs came
                raise PeerError(f"outputs of epoch {epoch}, which were not asked for")
            if epoch == self.path.epoch + 1:        # else its inputs came meanwhile
                self.path.supply(outputs)
            return self.work(now)
        if kind != kinds.CONTROL:
            raise PeerError(f"message of kind {kind} from the active")
        message = decode_control(payload)
        if isinstance(message, Refuse) and self.state is S.JOINING:
            return [Stop(12 if message.again else 5, f"the active refused us: {message.reason}")]
        if isinstance(message, Welcome) and self.state is S.JOINING:
            self._move("welcome")
            self.path.begin(message.session, message.term, message.epoch)
            self.welcome_ns = now
            return [Event("syncing", {"term": message.term})]
        if getattr(message, "session", None) != self.session:
            raise PeerError(f"{type(message).__name__} of another session")
        if isinstance(message, Protected) and self.state is S.WHOLE:
            self._move("recorded")
            return [Event("standby", {"term": self.term})]
        if isinstance(message, Parting):
            self.parting = True
            return []
        if isinstance(message, Prepare) and self.state is S.STANDBY:
            self.preparing, self.claim_ns = True, 0
            return self._claim(now)
        if isinstance(message, Handover) and self.granted:
            self.handover = True
            self.path.left(message.released)
            return []
        raise PeerError(f"{type(message).__name__} while {self.state.value}")

    def _commit(self, now: int) -> bool:
        """The first that waits. Raises PeerError once: nothing after a record that does not add up is believed."""
        try:
            return bool(self.path.commit(self.waiting[0][1], now))
        except PeerError:
            self.waiting.clear()
            raise

    def work(self, now: int) -> list[Effect]:
        """Commit what waits. Call after each message and when idle."""
        effects: list[Effect] = []
        path = self.path
        while self.waiting and self._commit(now):
            self.waiting.popleft()
            if not path.attached and not self.claimed:
                effects.append(Send(kinds.ACK, path.ack(path.epoch, now)))
        if path.commit_ns:
            self.clock.follow(path.now_ns, path.commit_ns)
        if path.divergent_epoch:
            return [*effects, Event("divergent", {"epoch": path.divergent_epoch}),
                    Stop(6, f"the arena differs from the active's at epoch {path.divergent_epoch}")]
        if not self.handover:           # what was let go last may have met a dead port: it is not forgotten any more
            self.tap.age(path.released_through, path.alive_ns)
        return [*effects, *self._need(now), *self._progress(now), *self._claim(now)]

    def _claim(self, now: int) -> list[Effect]:
        """Again every `claim_ms_max`, until it is answered."""
        if not self.preparing or (self.claim_ns and now - self.claim_ns <= self.bounds.claim_ms_max * MS):
            return []
        self.claim_ns = now
        return [Ask(Question("claim", self.node, self.term + 1))]

    def on_witness(self, now: int, answer: Answer) -> list[Effect]:
        """The witness answered a claim that we put while the active lives. Denied: we are not its standby any more; it knows, or will."""
        if answer.verb != "claim" or not self.preparing or answer.said == "wait":
            return []
        self.preparing = False
        if answer.said != "ok" or answer.term != self.term + 1:
            return []
        self.granted = True
        return [Send(kinds.CONTROL, encode_control(Ready(self.session, self.term)))]

    def on_ports(self, now: int, down_ns: int) -> list[Effect]:
        """About once a millisecond: since when a port has no carrier, 0 while all have. What passes there we do not see; nor where a port of
        ours is cut off in spite of it. Where one of the active's is, it hands the term over to us."""
        self.path.port_down = down_ns > 0
        if not down_ns:
            return self._cut_off(now) if self.state is S.STANDBY else []
        self.tap.note_gap(now)
        if now - down_ns <= self.bounds.port_down_ms_max * MS:
            return []
        return [Stop(7, f"a port has had no carrier for {(now - down_ns) // MS} ms")]

    def _cut_off(self, now: int) -> list[Effect]:
        theirs, ours = now_off = self.tap.cut_off(), self.tap.deaf()
        was, self.cut_off = self.cut_off, now_off
        self.path.cut_off = theirs != 0
        if ours:
            self.tap.note_gap(now)
        return [Event("cut_off", {"role": whose, "ports": [p for p in range(len(self.tap.ports)) if mask >> p & 1]})
                for whose, mask, before in zip(("active", "standby"), now_off, was, strict=True) if mask & ~before]

    def _need(self, now: int) -> list[Effect]:
        """The first record that waits is told by an input which the tap does not hold: one skew after the record came it will not come any more."""
        if not self.waiting or not self.path.missing or self.claimed:
            return []
        due = self.path.epoch + 1
        if self.asked == due or now - self.waiting[0][0] <= self.bounds.tap_skew_ms_max * MS:
            return []
        self.asked = due
        return [Send(kinds.CONTROL, encode_control(Need(self.session, due)))]

    def _progress(self, now: int) -> list[Effect]:
        skew = 0 if self.tap.fed else self.bounds.tap_skew_ms_max * MS      # one channel: nothing is seen apart
        if self.state is not S.SYNCING:
            return []
        if not self.open_ns:
            if now - self.welcome_ns < skew:
                return []
            self.open_ns = now
            self.path.tap_open = True
            return [Send(kinds.CONTROL, encode_control(TapOpen(self.session)))]
        if self.path.last_page and not self.waiting and self.tap.covers(self.open_ns + skew):
            # every frame of before the tap is named by now; a name that still waits for one of those would take a
            # byte-identical frame that comes within the skew for it, so it must have been found, or be too old
            self.covered_ns = self.covered_ns or now
            if self.tap.waiting_credits and now - self.covered_ns <= skew:
                return []
            self._move("whole")
            self.tap.whole(self.open_ns)
            return [Send(kinds.CONTROL, encode_control(Whole(self.session)))]
        return []

    def drain(self, now: int) -> None:
        """Promotion: commit what was received whole. A record that still finds no room was never acknowledged, so nothing of
        it left: it is dropped, and its inputs are replayed."""
        with contextlib.suppress(PeerError):
            while self.waiting and self._commit(now):
                self.waiting.popleft()
        self.waiting.clear()
        if self.path.commit_ns:
            self.clock.follow(self.path.now_ns, self.path.commit_ns)
