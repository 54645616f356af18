"""The following side, sans-I/O: receives, registers, acknowledges, applies; knows when it may be promoted.

Rules       JOINING     greeted the active; waits for its welcome.
            SYNCING     outputs of the active are held from here on. After one skew the tap opens (strays of before have
                        passed) and pages come with the epochs. Not promotable: a peer lost now means starting again blank.
            WHOLE       every page is here, and on every port the tap covers what no epoch names (rule 9); the active was
                        told and asks the witness to record us. If it is lost now, only the witness knows whether it did.
            STANDBY     recorded: protected. Promotable: on proof by the standing grant, on suspicion by the witness.

Picture     JOINING ─welcome─► SYNCING ─last page, tap covers─► WHOLE ─recorded─► STANDBY      promotion: failover/takeover.py

Order of one epoch (I7): whole in private memory → checked → names and outputs registered → ack → swapped into the arena.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from nfckpt.clock import PairClock
from nfckpt.config import Bounds
from nfckpt.errors import PeerError
from nfckpt.replica.effects import Effect, Event, Send, Stop
from nfckpt.wire import kinds
from nfckpt.wire.messages import (
    PROTOCOL,
    TAP_GAP,
    Ack,
    Handover,
    Hello,
    Protected,
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
    from nfckpt.native.arena import Arena
    from nfckpt.native.epoch import EpochRecord
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
                 clock: PairClock, now: int) -> None:
        self.pair, self.node, self.layout, self.bounds, self.secret = pair, node, layout, bounds, secret
        self.arena, self.tap, self.clock = arena, tap, clock
        self.state = S.JOINING
        self.session = 0
        self.term = 0
        self.epoch = 0                  # registered and acknowledged through
        self.next_seq = 0               # number of the output after the last registered one
        self.released_through = 0
        self.heard_ns = now             # own clock, any message of the active
        self.acked_ns = 0               # own clock, our last answer to a beat: the promise of I9 counts from it
        self.peer_stamp = 0             # the active's clock, in its last beat
        self.welcome_ns = 0
        self.open_ns = 0
        self.last_page = False
        self.waiting: deque[EpochRecord] = deque()      # no room in the tap yet
        self.epochs = 0
        self.divergent = 0
        self.handover = False

    def _move(self, event: str) -> None:
        self.state = TRANSITIONS[self.state, event]

    @property
    def promotable(self) -> bool:
        """Whole, covered, and recorded by the witness: the standing grant is ours."""
        return self.state is S.STANDBY

    @property
    def may_claim(self) -> bool:
        """Whole and covered; whether we are recorded the witness knows, even if the active died before it could say so."""
        return self.state in (S.WHOLE, S.STANDBY)

    def hello(self) -> list[Effect]:
        return [Send(kinds.CONTROL, encode_control(Hello(self.pair, self.node, PROTOCOL, self.layout)))]

    def on_message(self, now: int, kind: int, payload: memoryview) -> list[Effect]:
        """Raises PeerError for anything that does not belong here."""
        self.heard_ns = now
        if kind == kinds.EPOCH:
            self._on_epoch(payload)
            return self.work(now)
        if kind == kinds.BEAT:
            beat = decode_ack(payload)
            if beat.session != self.session:
                raise PeerError("beat of another session")
            self.peer_stamp = beat.stamp_ns
            if beat.amount and self.open_ns:
                self.tap.emptied(beat.amount, beat.echo_ns)
            self.acked_ns = now
            return [self._ack(now, kinds.BEAT_ACK, beat.epoch), *self.work(now)]
        if kind != kinds.CONTROL:
            raise PeerError(f"message of kind {kind} from the active")
        message = decode_control(payload)
        if isinstance(message, Refuse) and self.state is S.JOINING:
            return [Stop(5, f"the active refused us: {message.reason}")]
        if isinstance(message, Welcome) and self.state is S.JOINING:
            self._move("welcome")
            self.session, self.term, self.epoch = message.session, message.term, message.epoch - 1
            self.welcome_ns = now
            return [Event("syncing", {"term": message.term})]
        if getattr(message, "session", None) != self.session:
            raise PeerError(f"{type(message).__name__} of another session")
        if isinstance(message, Protected) and self.state is S.WHOLE:
            self._move("recorded")
            return [Event("standby", {"term": self.term})]
        if isinstance(message, Handover) and self.state is S.STANDBY:
            self.handover = True
            return []
        raise PeerError(f"{type(message).__name__} while {self.state.value}")

    def _on_epoch(self, payload: memoryview) -> None:
        from nfckpt.native.epoch import EpochRecord

        record = EpochRecord(payload, self.arena, len(self.tap.ports))
        expected = self.waiting[-1].epoch + 1 if self.waiting else self.epoch + 1
        if record.session != self.session or record.term != self.term or self.session == 0:
            raise PeerError(f"epoch of session {record.session}, term {record.term}; ours is {self.session}, {self.term}")
        if record.epoch != expected:
            raise PeerError(f"epoch {record.epoch} came where {expected} was due")
        if record.n_pages and not self.open_ns:
            raise PeerError("pages before the tap was opened")
        self.waiting.append(record)

    def _ack(self, now: int, kind: int, number: int) -> Send:
        flags = 0 if self.tap.is_exact(now) else TAP_GAP
        return Send(kind, encode_ack(Ack(self.session, number, now, self.peer_stamp, self.tap.waiting_inputs, flags)))

    def work(self, now: int) -> list[Effect]:
        """Register what waits, acknowledge, apply. Call after each message and when idle."""
        effects: list[Effect] = []
        while self.waiting and self.waiting[0].register(self.tap, now):
            record = self.waiting.popleft()
            self.epoch = record.epoch
            self.next_seq = record.next_seq
            self.released_through = record.released_through
            self.clock.follow(record.now_ns, now)
            effects.append(self._ack(now, kinds.ACK, record.epoch))
            record.swap(self.arena)
            self.epochs += 1
            self.last_page = self.last_page or record.last
            if self.last_page and not record.agrees(self.arena, self.secret):
                self.divergent += 1
                return [*effects, Event("divergent", {"epoch": record.epoch}),
                        Stop(6, f"the arena differs from the active's at epoch {record.epoch}")]
        self.tap.age(self.released_through)
        return effects + self._progress(now)

    def _progress(self, now: int) -> list[Effect]:
        skew = self.bounds.tap_skew_ms_max * MS
        if self.state is not S.SYNCING:
            return []
        if not self.open_ns:
            if now - self.welcome_ns < skew:
                return []
            self.tap.open()
            self.open_ns = now
            return [Send(kinds.CONTROL, encode_control(TapOpen(self.session)))]
        if self.last_page and not self.waiting and self.tap.covers(self.open_ns + skew):
            self._move("whole")
            self.tap.whole()
            return [Send(kinds.CONTROL, encode_control(Whole(self.session)))]
        return []

    def drain(self, now: int) -> None:
        """Promotion: register and apply what was received whole. What still finds no room is dropped by the caller's
        choice of promoting: it was never acknowledged, so nothing of it left."""
        while self.waiting and self.waiting[0].register(self.tap, now):
            record = self.waiting.popleft()
            self.epoch, self.next_seq = record.epoch, record.next_seq
            self.released_through = record.released_through
            self.clock.follow(record.now_ns, now)
            record.swap(self.arena)
        self.waiting.clear()
