"""Sync of a blank standby: under writes, in groups, with a peer that may vanish at any of them."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.errors import MachineError
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.wire.messages import Ack, encode_ack
from tests.native_lab import MS, SECRET, ListPort, frame

PAGES = 80
GROUPS_ON_THEIR_WAY = 2


class Follower:
    """A blank standby, let in as `session`; `pages` are the numbers that crossed."""

    def __init__(self, session: int, epoch: int) -> None:
        self.arena = Arena(PAGES * 4096)
        self.tap = Tap([ListPort()], SECRET, 20 * MS)
        self.tap.open()
        self.path = StandbyPath(self.tap, self.arena, SECRET, 1)
        self.path.begin(session, 1, epoch)
        self.path.tap_open = True

    def take(self, record: bytes) -> bytes:
        assert self.path.commit(bytearray(record), 100)
        return encode_ack(Ack(self.path.session, self.path.epoch, 1, 0, 0, 0))


class Lead:
    """An active: it writes, emits and is asked to sync. `crossed`: pages sent to the present follower."""

    def __init__(self, seed: int, group_max: int = 8, **bounds: int) -> None:
        self.rng = random.Random(seed)
        self.arena = Arena(PAGES * 4096)
        self.off = self.arena.region("all", (PAGES - 1) * 4096)
        self.arena.seal()
        self.port = ListPort()
        self.gate = Gate([self.port], 4096, 8 << 20)
        self.agent = Agent([self.port], self.arena, self.gate, SECRET, names_max=4096)
        self.engine = Engine(Bounds(**bounds))
        self.path = ActivePath(self.agent, self.engine, EpochWriter(SECRET), group_max)
        self.burst, self.now, self.session, self.n = Burst(), MS, 0, 0
        self.crossed: list[int] = []
        self.write(40)

    def write(self, times: int) -> None:
        for _ in range(times):
            n = self.rng.choice((1, 8, 64, 200, 5000))
            data = bytes(n) if self.rng.random() < 0.2 else self.rng.randbytes(n)
            self.arena.write_bytes(self.off + self.rng.randrange((PAGES - 1) * 4096 - n), data)

    def emit(self) -> None:
        self.n += 1
        assert self.agent.emit(0, frame(self.n))

    def let_in(self) -> Follower:
        """As Active.on_hello and TapOpen."""
        self.session += 1
        self.engine.skip()
        self.agent.epoch = self.engine.epoch
        self.gate.shut(self.engine.committed)
        self.gate.captured_all()
        self.agent.recording = True
        self.arena.forget_writes()
        self.path.begin(self.session, 1, self.now)
        self.path.sync.begin()
        self.path.holding = self.path.sync_pages = True
        self.crossed = []
        return Follower(self.session, self.engine.epoch)

    def lose(self) -> None:
        """As Active.on_peer_lost while PROTECTING."""
        self.engine.channel_lost()
        self.path.end()
        self.gate.open()
        self.agent.recording = self.path.holding = self.path.sync_pages = False
        self.agent.forget_names()
        self.gate.release()

    def step(self, follower: Follower, acks: bool = True) -> None:
        """Maybe write and emit; one poll; what is staged crosses, maybe."""
        if self.rng.random() < 0.5:
            self.write(self.rng.randrange(3))
        if self.rng.random() < 0.3:
            self.emit()
        self.now += 1000
        self.path.poll(self.now)
        while self.path.staged is not None and self.rng.random() < 0.8:
            record = bytes(self.path.staged)
            self.path.shipped()
            if self.path.pages_ride:
                self.path.spent(self.rng.choice((1000, 100_000, 400_000, 5 * MS)))
            self.crossed += pages_of(record)
            ack = follower.take(record)
            if acks:
                self.path.on_ack(ack, self.now, True)
        self.gate.release()

    def settle(self, follower: Follower) -> None:
        for _ in range(1000):
            self.step(follower)
            if self.path.sync.done and not self.agent.pending and not self.path.staging.count:
                return
        raise AssertionError("no end")


def pages_of(record: bytes) -> list[int]:
    """Numbers of the pages in a record; read from its end, where they lie."""
    n = int.from_bytes(record[80:84], "little")
    at = len(record) - n * 4096 - (n * 4 + 7) // 8 * 8
    return [int.from_bytes(record[at + 4 * i:at + 4 * i + 4], "little") for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40))
def test_a_sync_under_writes_ends_in_equal_digests(seed: int, group_max: int) -> None:
    lead = Lead(seed, group_max)
    follower = lead.let_in()
    lead.settle(follower)
    assert follower.path.last_page and follower.path.divergent_epoch == 0
    assert follower.arena.view().tobytes() == lead.arena.view().tobytes()
    assert len(lead.crossed) == len(set(lead.crossed)) == lead.path.sync.sent       # each page once
    for _ in range(50):
        lead.step(follower)
    lead.settle(follower)
    assert follower.arena.view().tobytes() == lead.arena.view().tobytes() and follower.path.divergent_epoch == 0
    assert lead.port.left == [frame(n + 1) for n in range(lead.n)]


@pytest.mark.parametrize("steps", range(0, 60, 3))
def test_a_follower_lost_at_any_group_leaves_the_active_unharmed(steps: int) -> None:
    """What it wrote stays, what it emitted leaves once and in order, and the next blank standby gets everything."""
    lead = Lead(steps, 3)
    follower = lead.let_in()
    for n in range(steps):
        lead.step(follower, acks=n < steps // 2)        # the last acks are lost with it
    before = lead.arena.view().tobytes()
    lead.lose()
    assert lead.arena.view().tobytes() == before
    assert lead.port.left == [frame(n + 1) for n in range(lead.n)]
    lead.write(5)                                       # nobody tracks for a while
    lead.emit()
    lead.gate.release()
    second = lead.let_in()
    lead.settle(second)
    assert second.arena.view().tobytes() == lead.arena.view().tobytes() and second.path.divergent_epoch == 0
    assert len(lead.crossed) == len(set(lead.crossed))
    assert lead.port.left == [frame(n + 1) for n in range(lead.n)]


def test_between_two_groups_the_app_gets_its_packets() -> None:
    """A sync of a GiB must not be one long pause: pages alone are never cut at two polls in a row."""
    lead = Lead(1, 2)
    follower = lead.let_in()
    lead.agent.hook = lambda: lead.path.poll(lead.now)
    got = polls = 0
    for n in range(100):
        lead.port.arrive(frame(n), 1)
    while not lead.path.sync.done:
        polls += 1
        got += lead.agent.rx_burst(lead.burst, 1)
        lead.agent.drop(lead.burst)
        while lead.path.staged is not None:
            record = bytes(lead.path.staged)
            lead.path.shipped()
            lead.path.on_ack(follower.take(record), lead.now, True)
    assert polls > 20 and got == polls // 2


def test_groups_on_their_way_are_bounded() -> None:
    """A standby that does not answer: pages stop, the traffic's own epochs go on to their bound."""
    lead, groups = Lead(2, 1), 0
    lead.let_in()
    for _ in range(200):
        lead.emit()
        lead.path.poll(lead.now)
        groups += lead.path.captured and lead.path.pages_ride
        while lead.path.staged is not None:
            lead.path.shipped()
    assert groups == GROUPS_ON_THEIR_WAY and lead.engine.outstanding == 64 and not lead.path.sync.done


def test_a_group_follows_the_measured_pause() -> None:
    lead = Lead(3, 256)
    sync = lead.path.sync
    lead.let_in()
    assert sync.group == 16

    def after(ns: int, times: int) -> int:
        for _ in range(times):
            sync.begin()
            while not (lead.path.captured and lead.path.pages_ride):
                lead.path.poll(lead.now)
            lead.path.spent(ns)
            while lead.path.staged is not None:
                lead.path.shipped()
            lead.engine.acked(lead.engine.epoch - 1)
            lead.path.sync_pages = True
            lead.path.poll(lead.now)
        return sync.group

    assert after(250_000, 1) == 16 + 16 // 8 + 1
    assert after(250_000, 60) == 256                    # within the bound it grows, up to group_max
    assert after(300_000, 1) == 256 * 250 // 300        # beyond it shrinks in proportion,
    assert after(50 * MS, 1) == 213 // 2                # but an interrupted poll counts for one half only
    assert after(50 * MS, 60) == 1


def test_an_arena_larger_than_memory_is_refused_before_anybody_follows() -> None:
    arena = Arena(1 << 38)
    with pytest.raises(MachineError, match="arena_bytes"):
        arena.populate()
    assert os.fstat(arena.fd).st_blocks == 0
    small = Arena(1 << 20)
    small.populate()
    assert os.fstat(small.fd).st_blocks * 512 == 1 << 20
