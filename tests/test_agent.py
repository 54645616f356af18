"""Agent, parking, engine and the active's poll boundary: who owns a frame, when an epoch closes, what an ack may do."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfckpt.checkpoint.engine import TRANSITIONS, Engine, EpochState
from nfckpt.config import Bounds
from nfckpt.errors import PeerError, PortError, StateError
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import DONE_, OWNED_, Burst
from nfckpt.native.epoch import EpochRecord, EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.parking import Parking
from nfckpt.native.tap import Tap
from tests.native_lab import MS, SECRET, ListPort, frame

SESSION, TERM = 77, 3
ACK = struct.Struct("<4Q2I")


class Rig:
    """An active without a node. `path` is its poll boundary; `now` its clock."""

    def __init__(self, n_ports: int = 2, *, gate_frames: int = 1024, gate_bytes: int = 4 << 20, names: int = 1024, park: int = 4,
                 **bounds: int) -> None:
        self.arena = Arena(1 << 16)
        self.parking = Parking(self.arena, park)
        self.off = self.arena.region("state", 4096)
        self.arena.seal()
        self.arena.forget_writes()
        self.ports = [ListPort() for _ in range(n_ports)]
        self.gate = Gate(list(self.ports), gate_frames, gate_bytes)
        self.agent = Agent(list(self.ports), self.arena, self.gate, SECRET, names_max=names, parking=self.parking)
        self.agent.recording = True
        self.engine = Watched(Bounds(**bounds))
        self.path = ActivePath(self.agent, self.engine.engine, EpochWriter(SECRET), 4)
        self.path.begin(SESSION, TERM, 1)
        self.burst = Burst()
        self.now = 1 * MS

    def protect(self) -> None:
        """From now on every poll is a boundary, in test time."""
        self.path.holding = True
        self.agent.hook = lambda: self.path.poll(self.now)

    def rx(self, *frames: bytes, port: int = 0, most: int = 32) -> int:
        for one in frames:
            self.ports[port].arrive(one, self.now)
        return self.agent.rx_burst(self.burst, most)

    def send_all(self, port: int = 1) -> int:
        self.burst.send(range(len(self.burst)), port)
        return self.agent.tx_burst(self.burst)

    def ack(self, epoch: int, session: int = SESSION, commits: bool = True, stamp: int = 500) -> None:
        self.path.on_ack(ACK.pack(session, epoch, stamp, 0, 9, 1), self.now, commits)


class Watched:
    """The engine, with every transition that its answers prove noted in `seen`."""

    seen: set[tuple[EpochState, str]] = set()

    def __init__(self, bounds: Bounds) -> None:
        self.engine = Engine(bounds)

    def _note(self, state: EpochState, event: str) -> None:
        assert (state, event) in TRANSITIONS
        self.seen.add((state, event))

    def cut(self) -> int:
        before, number = self.engine.state, self.engine.captured()
        assert self.engine.state is EpochState.CAPTURED and self.engine.epoch == number + 1
        self._note(EpochState.OPEN if before is EpochState.CAPTURED else before, "cut")     # the one before waits in staging
        return number

    def frames_out(self, now: int) -> bool:
        before, aborts, quiet = self.engine.state, self.engine.aborts, self.engine.frames_out(now)
        if not quiet:
            assert before is EpochState.QUIESCING and self.engine.state is EpochState.OPEN and self.engine.aborts == aborts + 1
            self._note(before, "deadline")
            self._note(EpochState.ABORTED, "again")
        elif before is EpochState.OPEN:
            assert self.engine.state is EpochState.QUIESCING
            self._note(before, "frames_out")
        return quiet

    def resume(self, number: int) -> bool:
        before, done = self.engine.state, self.engine.resume(number)
        if done and before is EpochState.QUIESCING:
            assert self.engine.state is EpochState.OPEN
            self._note(before, "resume")
        return done

    def ship(self, ns: int) -> None:
        staged, out = self.engine.staged, self.engine.outstanding
        self.engine.ship(ns)
        assert (self.engine.staged, self.engine.outstanding) == (staged - 1, out + 1)
        self._note(EpochState.CAPTURED, "ship")

    def acked(self, epoch: int) -> int | None:
        out, ns = self.engine.outstanding, self.engine.acked(epoch)
        if ns is not None:
            assert self.engine.outstanding < out and self.engine.committed == epoch
            self._note(EpochState.SHIPPED, "ack")
        return ns

    def lose(self) -> None:
        before, out = self.engine.state, self.engine.outstanding
        self.engine.channel_lost()
        assert self.engine.state is EpochState.OPEN and self.engine.outstanding == 0
        if out:
            self._note(EpochState.SHIPPED, "channel_lost")
        if before in (EpochState.CAPTURED, EpochState.QUIESCING):
            self._note(before, "channel_lost")
            self._note(EpochState.ABORTED, "again")


# ── who owns a frame ─────────────────────────────────────────────────────────────────────────────


def test_in_flight_counts_what_the_app_owns() -> None:
    rig = Rig()
    agent, burst = rig.agent, rig.burst
    assert rig.rx(*(frame(n) for n in range(10))) == 10 and agent.in_flight == 10
    burst.send([0, 1, 2], 1)
    burst.drop([3])
    assert agent.tx_burst(burst) == 3 and agent.in_flight == 6
    assert agent.tx_burst(burst) == 0 and agent.in_flight == 6          # DONE stays done
    assert agent.park(burst, 4) >= 0 and agent.in_flight == 5
    burst.send([5, 6], 0)
    assert agent.finish(burst) == 2 and agent.in_flight == 0
    assert (burst.verdict == DONE_).all()
    assert agent.drop(burst) == 0
    c = agent.counters()
    assert (c["handed_out"], c["sent"], c["dropped"], c["parked"], c["undecided"]) == (10, 5, 4, 1, 3)
    assert agent.handed_out == 10 and rig.gate.held_frames == 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.sampled_from("osdp"), st.integers(0, 1)), max_size=40), max_size=6))
def test_every_frame_is_sent_dropped_or_parked_once(bursts: list[list[tuple[str, int]]]) -> None:
    rig, total = Rig(), 0
    for verdicts in bursts:
        n = rig.rx(*(frame(k) for k in range(len(verdicts))), most=64)
        assert n == len(verdicts) == rig.agent.in_flight
        total += n
        for i, (what, port) in enumerate(verdicts):
            if what == "s":
                rig.burst.send([i], port)
            elif what == "d":
                rig.burst.drop([i])
            elif what == "p":
                rig.agent.park(rig.burst, i)
        if verdicts and verdicts[0][0] == "o":
            rig.agent.tx_burst(rig.burst)
        c = rig.agent.counters()
        assert rig.agent.in_flight == c["handed_out"] - c["sent"] - c["dropped"] - c["parked"]
        rig.agent.finish(rig.burst)
        assert rig.agent.in_flight == 0
    c = rig.agent.counters()
    assert c["sent"] + c["dropped"] + c["parked"] == c["handed_out"] == rig.agent.names.n == total
    assert c["sent"] == rig.gate.held_frames and c["parked"] == len(rig.parking)


def test_a_burst_that_owns_frames_is_not_filled_again() -> None:
    rig = Rig()
    rig.rx(frame(1), frame(2))
    rig.burst.drop([0])
    rig.agent.tx_burst(rig.burst)
    with pytest.raises(StateError, match="owns frames"):
        rig.rx()
    assert rig.burst.frames() == [frame(1), frame(2)] and rig.agent.in_flight == 1
    rig.agent.drop(rig.burst)
    assert rig.rx(frame(3)) == 1


def test_frames_that_were_not_handed_out_cannot_be_given_back() -> None:
    """in_flight would wrap and no cut come again."""
    rig = Rig()
    own = Burst()
    own.push(frame(1))
    own.send([0], 1)
    for give_back in (rig.agent.tx_burst, rig.agent.finish, rig.agent.drop, lambda b: rig.agent.park(b, 0)):
        with pytest.raises(StateError, match="handed out"):
            give_back(own)
    assert rig.agent.in_flight == rig.gate.held_frames == 0


def test_a_port_that_does_not_exist() -> None:
    rig = Rig()
    rig.rx(frame(1), frame(2), frame(3))
    rig.burst.send([0, 2], 1)
    rig.burst.send([1], 2)
    for send in (rig.agent.tx_burst, rig.agent.finish):
        with pytest.raises(StateError, match="port 2 of 2"):
            send(rig.burst)
    assert rig.agent.in_flight == 2 and rig.gate.held_frames == 1
    for port, out in ((2, frame(1)), (-1, frame(1)), (0, b""), (0, bytes(9217))):
        with pytest.raises(StateError, match="emit"):
            rig.agent.emit(port, out)
    assert rig.gate.held_frames == 1 and rig.agent.drop(rig.burst) == 2


def test_ports_take_turns_and_empty_ones_are_noted() -> None:
    rig = Rig(3)
    for port in range(3):
        for n in range(40):
            rig.ports[port].arrive(frame(n), 1)
    first: set[int] = set()
    for _ in range(3):
        assert rig.agent.rx_burst(rig.burst, 8) == 8
        first |= set(rig.burst.port.tolist())
        rig.agent.drop(rig.burst)
    assert first == {0, 1, 2} and rig.agent.ports_empty == 0
    while rig.agent.rx_burst(rig.burst, 64):
        rig.agent.drop(rig.burst)
    assert rig.agent.ports_empty == 0b111 and rig.agent.handed_out == 120


def test_a_port_with_hidden_frames_was_not_found_empty() -> None:
    rig = Rig()
    rig.ports[0].py_hidden = True
    assert rig.rx() == 0 and rig.agent.ports_empty == 0b10
    rig.ports[0].py_hidden = False
    assert rig.rx() == 0 and rig.agent.ports_empty == 0b11


def test_a_port_that_is_gone() -> None:
    rig = Rig()
    rig.ports[1].close()
    with pytest.raises(PortError):
        rig.rx()


def test_a_secret_has_32_bytes() -> None:
    rig = Rig()
    with pytest.raises(StateError):
        Agent(list(rig.ports), rig.arena, rig.gate, b"short")


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────


def test_names_full_is_backpressure() -> None:
    rig = Rig(names=64)
    for n in range(100):
        rig.ports[0].arrive(frame(n), 1)
    for _ in range(2):
        assert rig.rx(most=32) == 32
        rig.agent.drop(rig.burst)
    assert rig.rx(most=32) == 0 and rig.rx(most=32) == 0
    assert rig.agent.counters()["backpressure"] == 2 and len(rig.ports[0].waiting) == 36
    rig.agent.forget_names()
    assert rig.rx(most=32) == 32


def test_a_full_gate_is_backpressure_and_refuses_the_apps_own_frames() -> None:
    rig = Rig(gate_frames=256)
    assert [rig.agent.emit(0, frame(1)) for _ in range(257)] == [True] * 256 + [False]
    assert rig.rx(frame(2)) == 0
    c = rig.agent.counters()
    assert (c["made"], c["refused_full"], c["backpressure"], c["handed_out"]) == (256, 1, 1, 0)
    rig.gate.open()
    rig.gate.release()
    assert rig.rx() == 1                    # it waited in the port


def test_a_frame_that_finds_the_gate_full_stays_with_the_app() -> None:
    rig = Rig(gate_frames=256)
    assert rig.rx(*(frame(n) for n in range(8)), most=8) == 8
    for n in range(253):
        assert rig.agent.emit(0, frame(n))
    assert rig.send_all() == 3
    assert rig.agent.in_flight == 5 and (rig.burst.verdict[3:] != DONE_).all()
    assert rig.agent.counters()["refused_full"] == 5 and rig.agent.counters()["dropped"] == 0
    rig.gate.open()
    rig.gate.release()
    assert rig.agent.tx_burst(rig.burst) == 5 and rig.agent.in_flight == 0
    rig.gate.release()
    assert rig.ports[1].left == [frame(n) for n in range(8)]


def test_timers_wait_for_what_input_waits_for() -> None:
    rig = Rig(gate_frames=256)
    burst = Burst()
    for n in range(248):
        assert rig.agent.emit(1, frame(n))
    assert rig.agent.admits(burst, 2)                                              # room for 4 * 2
    assert rig.agent.emit(1, frame(248))
    assert not rig.agent.admits(burst, 2) and rig.rx(frame(1), most=2) == 0
    rig.gate.open()
    rig.gate.release()
    assert rig.agent.admits(burst, 2)
    rig.agent.paused = True
    assert not rig.agent.admits(burst, 2)
    rig.agent.paused, rig.agent.running = False, False
    assert not rig.agent.admits(burst, 2)


def test_a_hook_may_answer_no_packets() -> None:
    rig, answers = Rig(), [True, False]
    rig.agent.hook = lambda: answers.pop(0)
    assert rig.rx(frame(1)) == 0 and len(rig.ports[0].waiting) == 1 and rig.agent.in_flight == 0
    assert rig.rx() == 1 and answers == []
    assert rig.agent.counters()["polls"] == 2


def test_paused_and_stopped_read_nothing() -> None:
    rig = Rig()
    rig.agent.paused = True
    assert rig.rx(frame(1)) == 0
    rig.agent.paused, rig.agent.running = False, False
    assert rig.rx() == 0 and len(rig.ports[0].waiting) == 1
    rig.agent.running = True
    assert rig.rx() == 1


def test_replay_comes_through_the_agent_named_and_in_order() -> None:
    rig = Rig()
    tap = Tap(list(rig.ports), SECRET, 20 * MS)
    tap.open()
    for n in range(5):
        tap.offer(frame(n), n % 2, n)
    rig.ports[0].arrive(frame(9), 9)
    rig.agent.tap = tap
    assert rig.rx(most=4) == 4 and rig.burst.frames() == [frame(n) for n in range(4)] and rig.burst.port.tolist() == [0, 1, 0, 1]
    rig.agent.drop(rig.burst)
    assert rig.rx(most=4) == 2 and rig.burst.frames() == [frame(4), frame(9)]
    rig.agent.drop(rig.burst)
    assert rig.agent.names.n == 6 and tap.counters()["replayed"] == 6
    rig.agent.tap = None
    assert rig.agent.tap is None and rig.rx(frame(3)) == 1


# ── parking ──────────────────────────────────────────────────────────────────────────────────────


def test_park_and_take_after_a_takeover_too() -> None:
    rig = Rig(park=3)
    rig.rx(frame(0, 60), frame(1, 2048), frame(2, 2049), frame(3), frame(4), port=1)
    agent, burst = rig.agent, rig.burst
    handles = [agent.park(burst, i) for i in (0, 1)]
    assert agent.park(burst, 2) == -1 and burst.verdict[2] == OWNED_        # too long: stays with the app
    handles.append(agent.park(burst, 3))
    assert agent.park(burst, 4) == -1 and agent.in_flight == 2              # full
    assert agent.counters()["refused_parking"] == 2 and len(rig.parking) == 3
    for i in (0, -1, 5):
        with pytest.raises(IndexError):
            agent.park(burst, i)
    other = Arena(1 << 16)
    there = Parking(other, 3)
    other.write_bytes(0, rig.arena.view().tobytes())
    assert len(there) == 3
    assert [there.take(h) for h in handles] == [(1, frame(0, 60)), (1, frame(1, 2048)), (1, frame(3))]
    assert rig.parking.take(handles[1]) == (1, frame(1, 2048))
    for h in (handles[1], -1, 3):
        with pytest.raises(KeyError):
            rig.parking.take(h)
    assert agent.park(burst, 4) == handles[1] and len(rig.parking) == 3
    agent.drop(burst)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60))
def test_parking_is_a_dict(steps: list[int]) -> None:
    rig = Rig(park=6)
    twin: dict[int, bytes] = {}
    for n, step in enumerate(steps):
        if step < 6:
            rig.rx(frame(n, 60 + n))
            handle = rig.agent.park(rig.burst, 0)
            assert (handle >= 0) == (len(twin) < 6) and handle not in twin
            if handle >= 0:
                twin[handle] = frame(n, 60 + n)
            rig.agent.drop(rig.burst)
        elif twin:
            handle = sorted(twin)[step % len(twin)]
            assert rig.parking.take(handle) == (0, twin.pop(handle))
        assert len(rig.parking) == len(twin)


# ── the poll boundary ────────────────────────────────────────────────────────────────────────────


def test_i1_no_capture_while_the_app_owns_a_frame() -> None:
    rig = Rig()
    rig.protect()
    assert rig.rx(frame(1), frame(2)) == 2
    other = Burst()
    rig.ports[0].arrive(frame(3), 1)
    assert rig.agent.rx_burst(other) == 0               # frames are out: "no packets"
    assert rig.engine.engine.state is EpochState.QUIESCING and rig.path.staged is None
    assert rig.send_all() == 2
    assert rig.agent.rx_burst(other) == 0               # the app let go: this poll is the cut
    record = EpochRecord(bytearray(rig.path.staged or b""), rig.arena, 2)
    assert (record.epoch, record.n_names, record.n_outputs, record.session, record.term) == (1, 2, 2, SESSION, TERM)
    assert rig.agent.epoch == 2 and rig.agent.names.n == 0
    assert rig.agent.rx_burst(other) == 1               # a staged record does not stop input
    rig.agent.drop(other)


def test_quiesce_ends_at_its_deadline_and_in_the_end_is_unprotectable() -> None:
    rig = Rig(quiesce_ms_max=50, abort_max=3)
    rig.protect()
    rig.rx(frame(1))
    other, engine = Burst(), rig.engine.engine
    for attempt in range(1, 4):
        assert not engine.unprotectable
        rig.ports[0].arrive(frame(2), 1)
        for _ in range(3):
            assert rig.agent.rx_burst(other) == 0 and engine.state is EpochState.QUIESCING
            rig.now += 50 * MS // 3
        rig.now += 2
        assert rig.agent.rx_burst(other) == 1           # aborted: the app gets packets again
        assert (engine.aborts, engine.aborts_in_row, engine.epoch) == (attempt, attempt, 1)
        rig.agent.drop(other)
    assert engine.unprotectable and rig.path.staged is None
    rig.agent.drop(rig.burst)
    assert rig.agent.rx_burst(other) == 0 and rig.path.staged is not None
    assert engine.aborts_in_row == 0 and engine.aborts == 3 and not engine.unprotectable


def test_i5_only_an_ack_of_this_session_commits() -> None:
    rig = Rig()
    rig.protect()
    rig.rx(frame(1))
    rig.send_all()
    rig.rx()
    with pytest.raises(PeerError, match="not shipped"):
        rig.ack(1)                                      # captured, not yet on its way
    rig.path.shipped()
    rig.gate.release()
    assert rig.ports[1].left == []
    with pytest.raises(PeerError, match="another session"):
        rig.ack(1, session=SESSION + 1)
    for size in (0, 39, 41):
        with pytest.raises(PeerError, match="bytes"):
            rig.path.on_ack(bytes(size), rig.now, True)
    assert rig.path.heard_ns == rig.now and rig.path.peer_stamp == 500       # of the first ack: its session was right
    rig.ack(1, commits=False)                           # a beat's number is no epoch
    rig.gate.release()
    assert rig.ports[1].left == [] and rig.path.commits == 0 and rig.gate.committed == 0
    rig.now += 7
    rig.ack(1)
    rig.gate.release()
    assert rig.ports[1].left == [frame(1)] and (rig.path.commits, rig.path.hold_ns_sum) == (1, 7)
    assert (rig.path.peer_inputs, rig.path.peer_flags) == (9, 1)
    rig.ack(1)                                          # a repeated ack is none
    assert rig.path.commits == 1
    with pytest.raises(PeerError):
        rig.ack(2)


def test_staging_full_the_open_epoch_grows_and_input_goes_on() -> None:
    """Two records wait for the channel; a third capture would have to stall the app or overwrite one: it does neither."""
    rig = Rig()
    rig.protect()
    for n in range(2):
        rig.agent.emit(0, frame(n))
        rig.rx()
    first = bytes(rig.path.staged or b"")
    for n in range(2, 5):
        rig.agent.emit(0, frame(n))
        assert rig.rx(frame(n)) == 1                    # the app gets its packets
        rig.agent.drop(rig.burst)
    assert (rig.path.staging.count, rig.path.staging_full) == (2, 3)
    assert (rig.agent.epoch, rig.gate.uncaptured, rig.engine.engine.outstanding) == (3, 3, 0)
    assert bytes(rig.path.staged or b"") == first                     # not torn by what came later
    seen = []
    for _ in range(3):
        record = EpochRecord(bytearray(rig.path.staged or b""), rig.arena, 2)
        seen.append((record.epoch, record.n_outputs, record.n_names))
        rig.path.shipped()
        rig.rx()
    assert seen == [(1, 1, 0), (2, 1, 0), (3, 3, 3)] and rig.path.staged is None
    rig.ack(3)
    assert rig.gate.release() == 5


def test_staging_full_for_long_stops_input_and_loses_nothing() -> None:
    """Backpressure: the names of the open epoch run full, and frames wait in the port."""
    rig = Rig(names=64)
    rig.protect()
    for n in range(200):
        rig.ports[0].arrive(frame(n), 1)
    got = 0
    for _ in range(20):
        got += rig.agent.rx_burst(rig.burst, 16)
        rig.agent.drop(rig.burst)
    assert rig.path.staging.count == 2 and got == 32 + 64       # two epochs of a burst each, and one full of names
    assert rig.agent.counters()["backpressure"] > 0 and len(rig.ports[0].waiting) == 200 - got
    for _ in range(40):
        while rig.path.staged is not None:
            rig.path.shipped()
        rig.ack(rig.engine.engine.epoch - 1)
        got += rig.agent.rx_burst(rig.burst, 16)
        rig.agent.drop(rig.burst)
    assert got == 200


def test_no_more_epochs_than_may_be_outstanding() -> None:
    rig = Rig(epochs_outstanding_max=2)
    rig.protect()
    for n in range(4):
        rig.agent.emit(0, frame(n))
        rig.rx()
        if rig.path.staged:
            rig.path.shipped()
    assert rig.engine.engine.outstanding == 2 and rig.gate.uncaptured == 2
    rig.ack(2)                                          # an ack speaks for all before it
    rig.rx()
    assert rig.path.staged is not None and rig.gate.uncaptured == 0
    assert rig.gate.release() == 2


def test_hold_us_max_and_crowded_names() -> None:
    rig = Rig(hold_us_max=100, names=64)
    rig.protect()
    rig.rx(frame(1))
    rig.agent.drop(rig.burst)
    rig.rx()
    assert rig.path.staged is None                      # due 100 µs after it was first seen
    rig.now += 99_999
    rig.rx()
    assert rig.path.staged is None
    rig.now += 1
    rig.rx()
    assert rig.path.staged is not None
    rig.path.shipped()
    rig.rx(*(frame(n) for n in range(33)), most=33)
    rig.agent.drop(rig.burst)
    assert rig.rx() == 0 and rig.path.staged is not None    # more than half full: at once (I3)


def test_beats_and_records_carry_what_was_heard_before() -> None:
    """"Port found empty" is stamped with the clock heard before the emptiness was seen, and disowns nothing unnamed."""
    rig = Rig(hold_us_max=1000)
    rig.protect()
    rig.ack(0, commits=False, stamp=111)
    rig.rx()
    assert rig.path.beat() == (0, 3)                    # empty since the start: nothing heard before that
    rig.ack(0, commits=False, stamp=222)
    assert rig.path.beat() == (111, 0)
    rig.rx(frame(1))
    assert rig.agent.names.n == 1 and rig.agent.ports_empty != 0
    assert rig.path.beat() == (222, 0)                  # a frame is consumed that nobody named yet
    assert rig.agent.ports_empty != 0
    rig.agent.drop(rig.burst)
    rig.rx()
    rig.now += 1 * MS
    rig.ack(0, commits=False, stamp=333)                # the ports were found empty before this was heard
    rig.rx()
    record = EpochRecord(bytearray(rig.path.staged or b""), rig.arena, 2)
    assert (record.echo_ns, record.ports_empty, record.n_names, record.now_ns) == (222, 3, 1, rig.now)


def test_nothing_to_say_is_no_epoch() -> None:
    rig = Rig()
    rig.protect()
    assert rig.rx() == 0 and rig.path.staged is None and not rig.agent.pending
    rig.arena.write_bytes(rig.off, b"x")
    assert rig.agent.pending
    rig.rx()
    assert rig.path.staged is not None and not rig.agent.pending


def test_pages_ride_along_until_the_last() -> None:
    rig = Rig()
    rig.protect()
    rig.path.sync_pages = True
    looked_at = 0
    rig.path.sync.begin()
    while rig.path.sync_pages:
        rig.rx()
        record = EpochRecord(bytearray(rig.path.staged or b""), rig.arena, 2)
        assert record.n_pages <= 4 and record.last == (not rig.path.sync_pages)
        rig.path.shipped()
        looked_at += 1
    assert looked_at == 1                               # all of the arena is zero


# ── the engine ───────────────────────────────────────────────────────────────────────────────────


def test_i11_only_the_youngest_request_can_be_taken_back() -> None:
    engine = Watched(Bounds(hold_us_max=1000))
    one, two = engine.engine.request(), engine.engine.request()
    assert two == one + 1 and engine.engine.due(0, False, False)
    assert engine.frames_out(0)
    assert not engine.resume(one) and engine.engine.state is EpochState.QUIESCING and engine.engine.due(0, False, False)
    assert not engine.resume(two + 1)
    assert engine.resume(two) and not engine.engine.due(0, False, False)
    assert not engine.resume(two)                       # once
    three = engine.engine.request()
    engine.cut()                                        # served
    engine.ship(5)
    assert not engine.resume(three) and not engine.engine.due(0, False, False)


def every_way() -> Iterator[Watched]:
    """Each transition of the table, in a few short lives."""
    ms = MS
    a = Watched(Bounds(quiesce_ms_max=50, abort_max=2))
    a.cut()
    a.ship(10)
    a.cut()
    a.ship(20)
    assert a.acked(2) == 20 and a.acked(1) is None and a.acked(2) is None
    assert a.frames_out(0) and a.frames_out(50 * ms - 1) and not a.frames_out(50 * ms)
    assert a.frames_out(60 * ms)
    a.cut()                                             # the app let go in time
    a.lose()
    yield a
    b = Watched(Bounds())
    b.frames_out(0)
    b.lose()
    b.cut()
    b.ship(1)
    b.lose()
    with pytest.raises(PeerError):
        b.acked(1)                                      # its channel is gone
    b.frames_out(0)
    assert b.resume(b.engine.request())
    yield b


def test_every_transition_of_the_table_is_reached() -> None:
    Watched.seen.clear()
    for watched in every_way():
        assert watched.engine.state is EpochState.OPEN
    assert Watched.seen == set(TRANSITIONS)


def test_an_ack_of_what_was_never_shipped_is_the_peers_fault() -> None:
    engine = Watched(Bounds())
    for _ in range(3):
        engine.cut()
        engine.ship(1)
    with pytest.raises(PeerError):
        engine.acked(4)
    assert engine.engine.committed == 0


def test_skip_begins_protection_behind_what_was_emitted() -> None:
    engine = Engine(Bounds(), 10)
    assert (engine.epoch, engine.committed) == (10, 9)
    engine.skip()
    assert (engine.epoch, engine.committed) == (11, 10) and engine.acked(10) is None


STEPS = ("cut", "ship", "ack", "out", "lose", "request", "resume")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=60))
def test_commits_grow_and_follow_shipping(steps: list[str]) -> None:
    """Against a list of what is on its way; every answer is checked by Watched."""
    engine, out, number, now = Watched(Bounds(epochs_outstanding_max=4)), list[int](), 0, 0
    for step in steps:
        e, state, now = engine.engine, engine.engine.state, now + 30 * MS
        if step == "cut":
            engine.cut()
        elif step == "ship" and e.staged:
            out.append(e.epoch - e.staged)
            engine.ship(out[-1] + 1)
        elif step == "ack" and out:
            epoch = out[len(out) // 2]
            assert engine.acked(epoch) == epoch + 1 and e.committed == epoch
            out = [n for n in out if n > epoch]
        elif step == "out" and state is not EpochState.CAPTURED:
            engine.frames_out(now)
        elif step == "lose":
            engine.lose()
            out = []
        elif step == "request":
            number = e.request()
        elif step == "resume":
            engine.resume(number)
        assert e.outstanding == len(out)
        assert bool(e.due(now, True, True)) == (len(out) + e.staged < 4)
