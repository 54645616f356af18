"""Races between the cores: each test is one instruction-exact interleaving that once lost, doubled or stalled something."""

from __future__ import annotations

import struct

import pytest

from nfckpt.clock import PairClock
from nfckpt.config import Bounds, NodeConfig, PairConfig, check
from nfckpt.errors import ConfigError, PeerError, StateError
from nfckpt.failover.lease_clock import LeaseClock
from nfckpt.failover.takeover import Step, Takeover
from nfckpt.failover.witness import Answer, Question
from nfckpt.native.active_path import ActivePath
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.tap import Tap
from nfckpt.replica.active import Active, ActiveState
from nfckpt.replica.effects import Ask, Event, KillPeer, LeaseArm, LeaseStamp, Promote, Send, Stop
from nfckpt.replica.standby import Standby
from nfckpt.wire import kinds
from nfckpt.wire.messages import (
    PORT_DOWN,
    PROTOCOL,
    TAP_GAP,
    Ack,
    Handover,
    Hello,
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
from tests.native_lab import MS, SECRET, ListPort, frame
from tests.test_agent import Rig


def stage(rig: Rig, n: int) -> ActivePath:
    """Consume and drop one frame; its epoch is captured and waits for the channel."""
    rig.rx(frame(n))
    rig.agent.drop(rig.burst)
    rig.rx()
    assert rig.path.staged is not None and rig.agent.names.n == 0
    return rig.path


def test_a_beat_that_overtakes_a_staged_record_disowns_nothing() -> None:
    """The names of a staged record are not on the wire yet: "empty" before them lets the standby drop their frames (rule 5)."""
    rig = Rig()
    rig.protect()
    rig.ack(0, commits=False, stamp=100 * MS)
    path = stage(rig, 1)
    rig.rx()                                            # both ports found empty, with the record still staged
    assert rig.agent.ports_empty == 3
    assert path.beat()[1] == 0 and rig.agent.ports_empty == 3
    path.shipped()
    assert path.beat() == (100 * MS, 3)                 # behind the record it is true


def test_a_gate_half_full_is_cut_though_the_hold_is_long() -> None:
    """Input would stop at the full gate until the hold is over."""
    rig = Rig(gate_frames=256, hold_us_max=1_000_000)
    rig.protect()
    for n in range(129):
        assert rig.path.staged is None
        rig.agent.emit(1, frame(n))
        rig.rx()
    assert rig.path.staged is not None
    rig.path.shipped()
    rig.rx()
    assert rig.path.staged is None                      # still half full, but all of it is captured


@pytest.mark.parametrize("length", [0, 9217, 70000])
def test_a_length_that_no_frame_has_is_the_apps_fault(length: int) -> None:
    """The standby refused the record and took over, and its own app did the same."""
    rig = Rig()
    rig.rx(frame(1), frame(2))
    rig.burst.length[1] = length
    with pytest.raises(StateError, match=f"{length} bytes"):
        rig.send_all()
    assert rig.gate.held_frames == 1


# ── standby and takeover ─────────────────────────────────────────────────────────────────────────

SESSION, TERM = 77, 3


class Follower:
    """A standby without a node, over two ports; `records` come from an active without one."""

    def __init__(self, **limits: int) -> None:
        self.active = Rig()
        self.active.protect()
        self.active.path.sync.begin()
        self.active.path.sync_pages = True
        self.bounds = Bounds(tap_skew_ms_max=20)
        self.ports = [ListPort(), ListPort()]
        self.tap = Tap(list(self.ports), SECRET, 20 * MS, **limits)
        self.core = Standby(pair="p", node="b", layout=b"", bounds=self.bounds, secret=SECRET, arena=Arena(1 << 16), tap=self.tap,
                            clock=PairClock(), now=1)
        self.now = 1000 * MS

    def hear(self, kind: int, payload: bytes) -> list[object]:
        return list(self.core.on_message(self.now, kind, memoryview(bytearray(payload))))

    def wait(self, ms: int) -> list[object]:
        self.active.now = self.now + ms * MS
        return self.wait_here(ms)

    def wait_here(self, ms: int) -> list[object]:
        self.now += ms * MS
        self.tap.poll(self.now)
        return list(self.core.work(self.now))

    def beat(self, empty: int = 0, echo_ns: int = 0) -> list[object]:
        return self.hear(kinds.BEAT, encode_ack(Ack(SESSION, 9, 5, echo_ns, empty, 0)))

    def record(self) -> bytes:
        """What the active's open epoch says."""
        self.active.path.poll(self.active.now)
        staged = bytes(self.active.path.staged or b"")
        if staged:
            self.active.path.shipped()
            self.active.ack(self.active.engine.engine.epoch - 1)
        return staged

    def whole(self) -> None:
        self.core.hello()
        self.hear(kinds.CONTROL, encode_control(Welcome(SESSION, TERM, 1, 100)))
        self.wait(25)
        self.hear(kinds.EPOCH, self.record())
        for _ in range(3):
            self.wait(25)
            self.beat(0b11, self.now)
        assert self.core.state.value == "whole"

    def standby(self) -> None:
        self.whole()
        self.hear(kinds.CONTROL, encode_control(Protected(SESSION, TERM)))
        assert self.core.promotable


def test_an_active_that_wakes_up_after_the_claim_gets_no_more_answers() -> None:
    """Each answer prolongs its lease: the standby, granted the next term, would have waited for the end of it for ever."""
    rig = Follower()
    rig.standby()
    takeover = Takeover(rig.core, rig.bounds, node="b", now=rig.now, lost_ns=rig.now, reason="silent", proof=False, kills=False,
                        leases=True)
    takeover.advance(rig.now)
    assert rig.beat(), "until the witness granted it the term is the active's"
    takeover.on_witness(rig.now, Answer("claim", "ok", TERM + 1, "b"))
    effects: list[object] = []
    for _ in range(40):
        rig.wait(10)
        effects += [e for e in rig.beat() if isinstance(e, Send)] + takeover.advance(rig.now)
        if Ask(Question("took", "b", TERM + 1)) in effects and takeover.step is Step.SETTLE:
            takeover.on_witness(rig.now, Answer("took", "ok", TERM + 1, "b"))
    assert takeover.step is Step.LIVE and effects == [Ask(Question("took", "b", TERM + 1)), Promote(TERM + 1)]


def test_a_beat_in_front_of_which_a_record_waits_disowns_nothing() -> None:
    """The tap had no room for the record: the frames it names were taken for dropped by the active's ring (rule 5)."""
    rig = Follower(frames_max=64)
    rig.standby()
    rig.ports[0].arrive(frame(1), rig.now)
    rig.active.rx(frame(1))
    rig.active.agent.drop(rig.active.burst)
    rig.wait(18)
    for n in range(64):
        rig.tap.name_frame(frame(900 + n), 0, rig.now)      # credits: no room for another epoch
    rig.hear(kinds.EPOCH, rig.record())
    rig.wait(4)
    rig.beat(0b11, rig.now)                                 # both ports were empty by then: true, behind the record
    assert rig.core.waiting and rig.tap.waiting_inputs == 1
    rig.wait(20)                                            # the credits have aged
    rig.wait(0)
    assert not rig.core.waiting and rig.tap.counters()["matched"] == 1


def test_a_time_stamp_that_was_never_sent_is_refused() -> None:
    """One word from the far future would have every buffered frame taken for answered."""
    rig = Follower()
    rig.standby()
    with pytest.raises(PeerError, match="never sent"):
        rig.beat(0b11, rig.now + 1)
    rig.active.agent.emit(0, frame(1))
    record = bytearray(rig.record())
    struct.pack_into("<Q", record, 56, rig.now + 1)
    with pytest.raises(PeerError, match="never sent"):
        rig.hear(kinds.EPOCH, bytes(record))


@pytest.mark.parametrize("session", [-1, 1 << 63])
def test_numbers_that_native_code_cannot_hold_are_the_peers_fault(session: int) -> None:
    rig = Follower()
    with pytest.raises(PeerError):
        rig.hear(kinds.CONTROL, encode_control(Welcome(session, TERM, 1, 100)))


def takeover(rig: Follower, **how: bool) -> Takeover:
    return Takeover(rig.core, rig.bounds, node="b", now=rig.now, lost_ns=rig.now, reason="test", **{"proof": False, **how})


def test_i9_host_the_old_process_must_be_dead_not_only_killed() -> None:
    rig = Follower()
    rig.standby()
    over = takeover(rig, kills=True, leases=False)
    assert over.advance(rig.now) == [Ask(Question("claim", "b", TERM + 1))]
    assert over.on_witness(rig.now, Answer("claim", "ok", TERM + 1, "b")) == [] and over.step is Step.FENCE
    assert over.advance(rig.now) == [KillPeer()]
    for _ in range(100):
        rig.wait(10)
        assert over.advance(rig.now) == [] and over.step is Step.FENCE
    over.on_peer_dead()
    assert over.advance(rig.now) == [Ask(Question("took", "b", TERM + 1)), Promote(TERM + 1)] and over.unheard


def test_i9_hosts_the_lease_of_the_last_answer_must_have_run_out() -> None:
    rig = Follower()
    rig.standby()
    rig.wait(1)
    rig.beat()
    answered = rig.now
    over = takeover(rig, kills=False, leases=True)
    over.advance(rig.now)
    over.on_witness(rig.now, Answer("claim", "ok", TERM + 1, "b"))
    free = answered + (rig.bounds.lease_ms + rig.bounds.lease_margin_ms) * MS
    while rig.now < free:
        assert over.advance(rig.now) == [] and over.step is Step.FENCE
        rig.wait(1)
    assert over.advance(rig.now) == [Ask(Question("took", "b", TERM + 1))]
    for _ in range(3):                                      # until then the old active may have the term back
        rig.wait(rig.bounds.claim_ms_max // 2)
        assert Promote(TERM + 1) not in over.advance(rig.now)
    over.on_witness(rig.now, Answer("took", "ok", TERM + 1, "b"))
    assert over.advance(rig.now) == [Promote(TERM + 1)]


def test_a_term_that_was_taken_back_before_we_took_it_is_not_ours() -> None:
    rig = Follower()
    rig.standby()
    over = takeover(rig, kills=False, leases=True, handover=True)
    over.advance(rig.now)
    over.on_witness(rig.now, Answer("claim", "ok", TERM + 1, "b"))
    assert over.advance(rig.now) == [Ask(Question("took", "b", TERM + 1))]
    (end,) = over.on_witness(rig.now, Answer("took", "denied", TERM + 2, "a"))
    assert isinstance(end, Stop) and end.code == 3


def test_proof_serves_only_a_recorded_standby() -> None:
    """Whole and not told whether it is recorded: the witness knows."""
    rig = Follower()
    rig.whole()
    over = takeover(rig, kills=True, leases=False, proof=True)
    assert over.advance(rig.now) == [Ask(Question("claim", "b", TERM + 1))] and over.advance(rig.now) == []
    assert isinstance(over.on_witness(rig.now, Answer("claim", "denied", TERM, "a"))[0], Stop)


def test_i13_only_a_whole_standby_may_claim() -> None:
    """Half a state is none: lost while syncing means starting again blank."""
    rig = Follower()
    assert not rig.core.may_claim
    rig.core.hello()
    rig.hear(kinds.CONTROL, encode_control(Welcome(SESSION, TERM, 1, 100)))
    assert rig.core.state.value == "syncing" and not rig.core.may_claim
    rig = Follower()
    rig.whole()
    assert rig.core.may_claim and not rig.core.promotable       # it may have been recorded: only the witness knows
    rig.hear(kinds.CONTROL, encode_control(Protected(SESSION, TERM)))
    assert rig.core.may_claim and rig.core.promotable


def test_an_active_that_parted_may_have_struck_us_out_before_it_died() -> None:
    """It asked the witness for that, and died before the answer: on its death alone the standing grant was used that was void by then."""
    rig = Follower()
    rig.standby()
    rig.hear(kinds.CONTROL, encode_control(Parting(SESSION)))
    over = takeover(rig, kills=True, leases=False, proof=True, parted=rig.core.parting)
    assert over.advance(rig.now) == [Ask(Question("claim", "b", TERM + 1))] and over.step is Step.CLAIM
    assert isinstance(over.on_witness(rig.now, Answer("claim", "denied", TERM, "a"))[0], Stop)


def test_settle_waits_a_skew_for_an_output_that_may_be_on_its_way() -> None:
    rig = Follower()
    rig.standby()
    rig.active.agent.emit(1, frame(1))
    rig.hear(kinds.EPOCH, rig.record())
    over = takeover(rig, kills=True, leases=False, proof=True)
    over.advance(rig.now)
    rig.wait(20 - 1)
    assert over.advance(rig.now) == [] and over.step is Step.SETTLE
    rig.wait(1)
    assert over.advance(rig.now) == [Promote(TERM + 1)]
    assert rig.tap.unseen_outputs() == [(0, 1, frame(1))]


@pytest.mark.parametrize("seen", [True, False])
def test_i15_the_clock_goes_on(seen: bool) -> None:
    """From the last committed time plus this node's own time since; and never backwards, whatever a record says."""
    clock = PairClock()
    clock.follow(5_000, 100)
    if seen:
        clock.follow(4_000, 200)
        assert clock.now(200) == 5_000
    assert clock.now(1_100) == (5_900 if seen else 6_000)
    assert clock.now(600) == clock.now(1_100)


def test_rule_9_a_name_that_may_be_of_before_the_tap_is_waited_for() -> None:
    """Its frame passed before the tap opened: a standby that was whole with it waiting took the next identical frame for it."""
    rig = Follower()
    rig.core.hello()
    rig.hear(kinds.CONTROL, encode_control(Welcome(SESSION, TERM, 1, 100)))
    rig.wait(25)                                            # the tap counts from here on
    rig.hear(kinds.EPOCH, rig.record())
    assert rig.core.path.last_page
    rig.wait(15)
    rig.active.rx(frame(1))                                 # out of the active's ring, where it lay since before
    rig.active.agent.drop(rig.active.burst)
    rig.hear(kinds.EPOCH, rig.record())
    rig.wait(6)
    rig.beat(0b11, rig.now)                                 # one skew after the opening both ports were empty
    assert rig.tap.covers(rig.core.open_ns + 20 * MS)
    assert rig.tap.waiting_credits == 1 and rig.core.state.value == "syncing"
    rig.wait(20)                                            # the name is older than the skew
    assert rig.tap.waiting_credits == 0 and rig.core.state.value == "whole"
    assert rig.tap.offer(frame(1), 0, rig.now)              # the same bytes once more: nobody answered for these


def test_rule_1_what_the_tap_missed_puts_no_later_frame_in_its_place() -> None:
    """Long after it came, the active reads a frame that the tap missed; the next one like it is here by then, and its record was slow. Each
    name of such a frame took the next one, and what came between was dropped as never read."""
    rig = Follower()
    rig.standby()
    rig.active.ports[0].arrive(frame(1), rig.now)
    rig.wait(30)
    for ports in (rig.ports, rig.active.ports):
        ports[0].arrive(frame(2), rig.now)
    rig.wait(10)
    for ports in (rig.ports, rig.active.ports):
        ports[0].arrive(frame(1), rig.now)
    for transit_ms, held in (30, 2), (0, 0):                # the second record names the two that are here
        rig.active.rx(most=1 if transit_ms else 8)
        rig.active.agent.drop(rig.active.burst)
        record = rig.record()
        rig.wait(transit_ms)
        rig.hear(kinds.EPOCH, record)
        assert rig.tap.waiting_inputs == held
    rig.wait(25)
    assert rig.tap.counters()["tap_missed"] == 1 and rig.tap.counters()["active_missed"] == 0


def test_rule_1_stamps_of_a_ring_may_go_back() -> None:
    """A CPU of the kernel sat on the second one: the first is the youngest that the record names."""
    rig = Follower()
    rig.standby()
    for ports in (rig.ports, rig.active.ports):
        ports[0].arrive(frame(1), rig.now - 30 * MS)
        ports[0].arrive(frame(2), rig.now - 60 * MS)
    rig.active.rx()
    rig.active.agent.drop(rig.active.burst)
    rig.wait(0)
    rig.hear(kinds.EPOCH, rig.record())
    assert rig.tap.counters()["matched"] == 2 and rig.tap.waiting_inputs == 0


def test_rule_1_clocks_drift_apart_while_nothing_happens() -> None:
    """By the fastest record of long ago each name would be of an earlier frame than it is."""
    rig = Follower()
    rig.standby()
    rig.wait(600_000)
    rig.active.now -= 25 * MS
    rig.ports[0].arrive(frame(1), rig.now)
    rig.active.rx(frame(1))
    rig.active.agent.drop(rig.active.burst)
    rig.wait_here(0)
    rig.hear(kinds.EPOCH, rig.record())
    assert rig.tap.counters()["matched"] == 1 and rig.tap.waiting_credits == 0


# ── the active's states ──────────────────────────────────────────────────────────────────────────


class Leader:
    """An active without a node."""

    def __init__(self, *, leases: bool = False, **bounds: int) -> None:
        self.rig = rig = Rig(**bounds)
        b = Bounds(**bounds)
        self.core = Active(pair="p", node="a", peer="b", layout=b"L", bounds=b, term=TERM, agent=rig.agent,
                           engine=rig.engine.engine, writer=EpochWriter(SECRET), clock=PairClock(),
                           lease=LeaseClock(b.lease_ms, b.beat_ms) if leases else None, kills=not leases)
        rig.path = self.core.path
        rig.agent.hook = lambda: rig.path.poll(rig.now)

    def say(self, message: object) -> list[object]:
        return list(self.core.on_message(self.rig.now, kinds.CONTROL, memoryview(encode_control(message))))

    def hello(self) -> list[object]:
        return list(self.core.on_hello(self.rig.now, memoryview(encode_control(Hello("p", "b", PROTOCOL, b"L")))))

    def ship(self) -> int:
        """What is staged is on its way. Returns its number."""
        number = self.core.engine.epoch - 1
        self.core.path.shipped()
        return number

    def ack(self, epoch: int) -> None:
        self.core.path.on_ack(encode_ack(Ack(self.core.session, epoch, 500, 0, 0, 0)), self.rig.now, True)
        self.rig.gate.release()

    def witness(self, verb: str, said: str = "ok") -> list[object]:
        return list(self.core.on_witness(self.rig.now, Answer(verb, said, TERM, "a", self.core.session)))

    def sync(self) -> None:
        """The follower has every page."""
        self.hello()
        self.say(TapOpen(self.core.session))
        while self.core.path.sync_pages:
            self.rig.rx()
            self.ack(self.ship())

    def protect(self) -> None:
        self.sync()
        self.say(Whole(self.core.session))
        self.witness("protected")
        assert self.core.protected

    def switch(self) -> None:
        """A planned switch is wanted, and the standby has the next term."""
        assert self.core.hand_over()
        assert self.sent(self.core.tick(self.rig.now)) == [Prepare(self.core.session, TERM)]
        assert self.say(Ready(self.core.session, TERM)) == []

    @staticmethod
    def sent(effects: list[object]) -> list[object]:
        return [decode_control(memoryview(e.payload)) for e in effects if isinstance(e, Send) and e.kind == kinds.CONTROL]


def test_protection_begins_when_the_witness_has_recorded_the_standby() -> None:
    """A standby that was told before would promote on proof, and the witness would deny it the term it already leads."""
    lead = Leader()
    lead.sync()
    assert lead.say(Whole(lead.core.session)) == [Ask(Question("protected", "a", TERM, "b", number=lead.core.session))]
    assert not lead.core.protected
    assert lead.sent(lead.witness("protected", "wait")) == [] and not lead.core.protected
    assert lead.sent(lead.witness("protected")) == [Protected(lead.core.session, TERM)] and lead.core.protected


def test_no_standby_is_recorded_in_a_term_that_the_witness_does_not_know() -> None:
    """Taken over on proof, unheard: it would deny the recording, and later a whole standby's claim."""
    lead = Leader()
    lead.core.unheard = True
    lead.sync()
    assert lead.say(Whole(lead.core.session)) == []
    assert lead.witness("took") == [Ask(Question("protected", "a", TERM, "b", number=lead.core.session))]
    assert lead.sent(lead.witness("protected")) == [Protected(lead.core.session, TERM)]


def test_i9_hosts_a_mark_is_used_once_its_beat_is_answered() -> None:
    """Stopped before that, the active would hold a lease for which the standby, which promised nothing, does not wait."""
    lead = Leader(leases=True)
    lead.sync()
    assert lead.say(Whole(lead.core.session)) == []         # nothing bounds our output yet: no standby is recorded
    rig = lead.rig
    rig.now += 10 * MS
    effects = lead.core.tick(rig.now)
    assert [type(e) for e in effects] == [LeaseArm, Send]
    arm, beat = effects
    assert isinstance(arm, LeaseArm) and isinstance(beat, Send) and beat.kind == kinds.BEAT
    answer = encode_ack(Ack(lead.core.session, decode_ack(memoryview(beat.payload)).epoch, 500, 0, 0, 0))
    stamp, ask = lead.core.on_message(rig.now, kinds.BEAT_ACK, memoryview(answer))
    assert stamp == LeaseStamp(arm.mark)
    assert ask == Ask(Question("protected", "a", TERM, "b", number=lead.core.session))


def test_protection_is_given_up_with_a_word_before_the_witness_is_asked() -> None:
    """The standby must not use its grant any more, should we die before the answer: the witness may have struck it out."""
    lead = Leader()
    lead.protect()
    effects = lead.core.give_up(lead.rig.now, "unprotectable")
    assert lead.sent(effects[:1]) == [Parting(lead.core.session)]
    assert effects[1:] == [Ask(Question("solo", "a", TERM, number=lead.core.session))]


def test_a_switch_waits_for_a_record_that_the_channel_has_not_taken() -> None:
    """It named frames and wrote state, but held no output: the term was handed over in front of it."""
    lead = Leader()
    lead.protect()
    rig = lead.rig
    rig.rx(frame(1))
    rig.agent.drop(rig.burst)
    rig.rx()
    lead.switch()
    assert rig.path.staged is not None
    assert lead.core.handed_over(rig.now) == []
    number = lead.ship()
    assert lead.core.handed_over(rig.now) == []
    lead.ack(number)
    (told,) = lead.core.handed_over(rig.now)
    assert isinstance(told, Send) and isinstance(decode_control(memoryview(told.payload)), Handover)
    assert lead.core.state is ActiveState.HANDED


@pytest.mark.parametrize(("flags", "switches"), [(0, True), (TAP_GAP, True), (PORT_DOWN, False), (TAP_GAP | PORT_DOWN, False)])
def test_a_dead_port_hands_the_term_over_whatever_the_standby_s_tap_lacks(flags: int, switches: bool) -> None:
    """Here nothing leaves any more. To a standby whose port is dead too there is nothing to hand over."""
    lead = Leader()
    lead.protect()
    lead.core.path.on_ack(encode_ack(Ack(lead.core.session, 1, 500, 0, 0, flags)), lead.rig.now, False)
    assert lead.core.hand_over() is (flags & TAP_GAP == 0)          # as an operator's wish a gap makes it wait
    lead.core.preparing = False
    told = lead.core.on_ports(lead.rig.now, True)
    assert [e.name for e in told if isinstance(e, Event)] == ["switching"] * switches
    assert lead.sent(lead.core.tick(lead.rig.now)) == [Prepare(lead.core.session, TERM)] * switches
    assert lead.core.on_ports(lead.rig.now, True) == []             # it is said once


def test_service_goes_on_until_the_standby_has_the_next_term() -> None:
    lead = Leader()
    lead.protect()
    with pytest.raises(PeerError, match="Ready"):
        lead.say(Ready(lead.core.session, TERM))            # nobody asked
    assert lead.core.hand_over() and lead.core.hand_over() and not lead.core.handing_over
    ticks = [lead.core.tick(lead.rig.now + n * MS) for n in range(300)]
    assert [m for effects in ticks for m in lead.sent(effects)] == [Prepare(lead.core.session, TERM)]
    assert lead.core.state is ActiveState.ACTIVE and not lead.core.handing_over and lead.core.handed_over(lead.rig.now) == []
    lead.say(Ready(lead.core.session, TERM))
    assert lead.core.handing_over


def test_a_standby_that_is_lost_while_it_claims_is_lost_as_any() -> None:
    """It may have the next term, and was not told to lead: dead, nothing has to be waited for; silent, the witness decides."""
    lead = Leader()
    lead.protect()
    lead.core.hand_over()
    lead.core.tick(lead.rig.now)
    effects = lead.core.on_peer_lost(lead.rig.now, "its process ended", True)
    assert any(isinstance(e, Ask) and e.question.verb == "solo" for e in effects)
    assert lead.core.state is ActiveState.SOLO and not lead.core.preparing
    lead.core.on_witness(lead.rig.now, Answer("solo", "ok", TERM + 2, "a", lead.core.session))
    assert lead.core.term == TERM + 2


def test_a_standby_claims_for_a_switch_and_goes_on_following() -> None:
    rig = Follower()
    rig.standby()
    claim = Ask(Question("claim", "b", TERM + 1))
    with pytest.raises(PeerError, match="Handover"):
        rig.hear(kinds.CONTROL, encode_control(Handover(SESSION, TERM)))           # before it has the term
    assert rig.hear(kinds.CONTROL, encode_control(Prepare(SESSION, TERM))) == [claim]
    assert [e for _ in range(2 * rig.bounds.claim_ms_max // 10 + 1) for e in rig.wait(10)] == [claim]      # no answer came
    assert rig.core.on_witness(rig.now, Answer("protected", "ok", TERM + 1, "b")) == []
    ready = rig.core.on_witness(rig.now, Answer("claim", "ok", TERM + 1, "b"))
    assert Leader.sent(list(ready)) == [Ready(SESSION, TERM)] and rig.core.granted
    assert rig.core.on_witness(rig.now, Answer("claim", "ok", TERM + 1, "b")) == []       # the answer to the first of two
    assert rig.beat() and not rig.core.claimed                      # its lease goes on
    assert rig.hear(kinds.CONTROL, encode_control(Handover(SESSION, TERM))) == [] and rig.core.handover
    over = takeover(rig, kills=True, leases=False, handover=True)
    assert over.advance(rig.now)[0] == Ask(Question("took", "b", TERM + 1)) and over.step is not Step.CLAIM


def test_a_standby_that_is_refused_the_term_says_nothing() -> None:
    rig = Follower()
    rig.standby()
    rig.hear(kinds.CONTROL, encode_control(Prepare(SESSION, TERM)))
    assert rig.core.on_witness(rig.now, Answer("claim", "wait", TERM)) == [] and rig.core.preparing
    assert rig.core.on_witness(rig.now, Answer("claim", "denied", TERM, "a")) == [] and not rig.core.granted


def test_with_the_term_granted_for_a_switch_the_active_is_fenced_as_ever() -> None:
    """It was lost before it handed over."""
    rig = Follower()
    rig.standby()
    rig.beat()
    rig.hear(kinds.CONTROL, encode_control(Prepare(SESSION, TERM)))
    rig.core.on_witness(rig.now, Answer("claim", "ok", TERM + 1, "b"))
    over = takeover(rig, kills=True, leases=False)
    assert over.advance(rig.now) == [KillPeer()] and over.step is Step.FENCE
    over = takeover(rig, kills=False, leases=True)
    assert over.advance(rig.now) == [] and over.step is Step.FENCE


def test_a_name_of_before_the_opening_takes_no_later_frame() -> None:
    """The tap threw away what came before it opened; the name of such a frame waited, and took the next identical one."""
    rig = Follower()
    rig.core.hello()
    assert rig.tap.buffering
    rig.tap.offer(frame(1), 0, rig.now)             # long before TapOpen
    rig.tap.name_frame(frame(1), 0, rig.now)
    assert rig.tap.waiting_credits == 0
    assert rig.tap.offer(frame(1), 0, rig.now + 1)  # the same bytes once more: nobody answered for these


def handed_over() -> Leader:
    lead = Leader()
    lead.protect()
    lead.switch()
    effects = lead.core.handed_over(lead.rig.now)
    assert lead.sent(effects) == [Handover(lead.core.session, TERM)]
    assert not any(isinstance(e, Stop) for e in effects), "until the standby took the term, ours may be the only state that lives"
    assert lead.core.state is ActiveState.HANDED
    return lead


def test_after_a_switch_the_old_active_ends_when_the_witness_says_so() -> None:
    lead = handed_over()
    lead.core.on_peer_lost(lead.rig.now, "closed", False)
    assert lead.core.state is ActiveState.HOLDING
    (end,) = lead.core.on_witness(lead.rig.now, Answer("solo", "denied", 2, "b", lead.core.session))
    assert isinstance(end, Stop) and end.code == 4


def test_a_switch_to_a_standby_that_died_is_taken_back() -> None:
    """It died silently in the same instant: the only copy of the state stopped, and both nodes began blank."""
    lead = handed_over()
    rig = lead.rig
    rig.agent.emit(1, frame(1))             # a timer of the app, while we wait
    assert not rig.path.poll(rig.now) and rig.ports[1].left == []
    effects = lead.core.on_peer_lost(rig.now, "its process ended", True)
    assert any(isinstance(e, Ask) and e.question.verb == "solo" for e in effects)
    assert lead.core.state is ActiveState.HOLDING       # dead or not: it had the right to claim, only the witness knows
    lead.witness("solo")
    assert lead.core.state is ActiveState.SOLO and not lead.core.handing_over
    rig.agent.gate.release()
    assert rig.ports[1].left == [frame(1)]


def test_a_claimed_term_comes_back_as_the_one_after() -> None:
    """The standby claimed and died before it took the term. Its successor must learn the new one, so it is not let in before we do."""
    lead = Leader()
    lead.protect()
    rig, core = lead.rig, lead.core
    core.on_peer_lost(rig.now, "its process ended", True)
    assert core.state is ActiveState.SOLO and core.term == TERM
    refusal = lead.hello()[0]
    assert isinstance(refusal, Send) and core.state is ActiveState.SOLO
    message = decode_control(memoryview(refusal.payload))
    assert isinstance(message, Refuse) and message.again and "term" in message.reason
    assert core.on_witness(rig.now, Answer("solo", "wait", TERM + 1, "b", core.session)) == []
    rig.now += (core.bounds.beat_ms + 1) * MS
    assert [e.question.verb for e in core.tick(rig.now) if isinstance(e, Ask)] == ["solo"], "asked again after a beat"
    core.on_witness(rig.now, Answer("solo", "ok", TERM + 2, "a", core.session))
    assert core.term == TERM + 2
    welcome = next(e for e in lead.hello() if isinstance(e, Send))
    greeting = decode_control(memoryview(welcome.payload))
    assert isinstance(greeting, Welcome) and greeting.term == TERM + 2


def test_a_follower_waits_until_the_output_of_before_has_left() -> None:
    """No epoch names it: a standby that sees it leave takes it for input, and feeds it to its app after a takeover."""
    lead = Leader()
    rig = lead.rig
    rig.ports[1].room, rig.ports[1].stuck = 1, 1
    for n in range(3):
        rig.agent.emit(1, frame(n))
    refusal = lead.hello()[0]
    assert isinstance(refusal, Send) and lead.core.state is ActiveState.SOLO
    message = decode_control(memoryview(refusal.payload))
    assert isinstance(message, Refuse) and message.again and "full" in message.reason
    rig.ports[1].room, rig.ports[1].stuck = None, 0
    lead.hello()
    assert lead.core.state is ActiveState.PROTECTING and rig.ports[1].left == [frame(n) for n in range(3)]


def test_an_app_that_let_go_is_protected_again() -> None:
    lead = Leader(quiesce_ms_max=1, abort_max=2)
    lead.protect()
    rig = lead.rig
    rig.rx(frame(1))
    kept, rig.burst = rig.burst, Burst()
    while not lead.core.engine.unprotectable:
        rig.rx()
        rig.now += 1 * MS
    lead.core.give_up(rig.now, "unprotectable")
    lead.witness("solo")
    lead.core.on_peer_lost(rig.now, "dead", True)
    assert lead.core.state is ActiveState.SOLO
    lead.witness("solo")
    lead.hello()
    assert lead.core.state is ActiveState.SOLO
    rig.agent.drop(kept)
    lead.protect()


def test_the_pair_s_bounds_fit_one_another() -> None:
    """An epoch larger than a message could never be sent; a line whose number has 33 bits could not be named."""
    nodes = {n: NodeConfig(ports=[{"scheme": "mem"}]) for n in "ab"}

    def refused(**bounds: int) -> str:
        with pytest.raises(ConfigError) as e:
            check(PairConfig(name="p", app="m:C", nodes=nodes, bounds=Bounds(**bounds)))
        return e.value.message

    check(PairConfig(name="p", app="m:C", nodes=nodes))
    assert "message_bytes_max" in refused(arena_bytes=8 << 20, message_bytes_max=64 << 20)
    assert "tap_frames_max" in refused(names_max=1 << 18)
    assert "arena_bytes" in refused(arena_bytes=(1 << 38) + 4096, message_bytes_max=1 << 40)
