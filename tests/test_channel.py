"""The native channel under both paths: records and acks of real epochs, over shared memory and over TCP, without Python per message."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable

import pytest

from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.native import aead
from nfckpt.native.active_path import WHY_IDLE, WHY_MAIL, WHY_TIME, ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.bench import Generator, LineWriter
from nfckpt.native.burst import Burst
from nfckpt.native.channel import Channel
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.patience import Patience
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.state.state import State
from tests.test_wire_conformance import shm_pair, tcp_pair

SECRET = bytes(range(7, 39))
FRAME = bytes.fromhex("020000000001020000000002080045000032000000004011f96a0a000001c6336402") + bytes(30)
ARENA = 2 << 20

Pair = Callable[..., tuple[Channel, Channel]]


def package_pair(**bounds: int) -> tuple[Channel, Channel]:
    best, aead.make = aead.make, aead.PackageAead
    try:
        return tcp_pair(**bounds)
    finally:
        aead.make = best


CHANNELS = pytest.mark.parametrize("pair", [shm_pair, tcp_pair, package_pair], ids=["shm", "tcp", "package"])


def soon(ms: float) -> int:
    return time.monotonic_ns() + int(ms * 1e6)


class Lab:
    """An active and a standby of one process, joined by a channel; the active's port makes `limit` frames, or frames for ever."""

    def __init__(self, pair: Pair, *, limit: int | None = None, outstanding: int = 64, **bounds: int) -> None:
        self.here, self.there = pair(message_bytes_max=4 << 20, send_backlog_bytes_max=1 << 18, **bounds)
        self.arena = Arena(ARENA)
        app = LineWriter(1 << 20)
        app.seed(1)
        app.declare(State(self.arena, seed=SECRET))
        self.port, self.app, self.burst = Generator([FRAME], limit), app, Burst()
        self.gate = Gate([self.port], 1 << 17, 128 << 20)
        self.agent = Agent([self.port], self.arena, self.gate, SECRET, names_max=1 << 14)
        self.engine = Engine(Bounds(epochs_outstanding_max=outstanding, names_max=1 << 14))
        self.path = ActivePath(self.agent, self.engine, EpochWriter(SECRET), 0)
        self.copy = Arena(ARENA)
        tap = Tap([Generator([FRAME], 0)], SECRET, 0, 1 << 17, 1 << 20, 1 << 18, 256 << 20)
        tap.poll(time.monotonic_ns())
        self.standby = StandbyPath(tap, self.copy, SECRET, time.monotonic_ns())
        self.standby.begin(7, 1, 1)
        self.standby.attach(self.there)
        self.path.begin(7, 1, time.monotonic_ns())
        self.agent.recording = True
        self.arena.forget_writes()
        self.path.attach(self.here)
        self.path.holding = True

    def lead(self, ms: float, patience: Patience | None = None) -> int:
        return self.path.run(self.app, self.burst, 32, soon(ms), patience or Patience(20, 10**9))

    def follow(self, ms: float) -> int:
        return self.standby.run(soon(ms), Patience(20, 10**9))

    def settle(self) -> None:
        """Both take turns until nothing is under way."""
        self.agent.paused = True
        late = time.monotonic() + 20
        while self.agent.pending or self.engine.outstanding or self.path.staging.count or self.gate.held_frames:
            assert time.monotonic() < late
            self.lead(1)
            self.follow(1)

    def check(self) -> None:
        """Everything committed, everything left, both arenas the same."""
        self.settle()
        assert self.standby.epoch == self.engine.committed == self.path.commits > 0
        assert self.port.counters()["tx_frames"] == self.port.made
        twin = Arena(fd=os.dup(self.copy.fd))
        LineWriter(1 << 20).declare(State(twin, seed=SECRET))
        assert twin.digest() == self.arena.digest()
        self.here.close()
        self.there.close()


@CHANNELS
def test_epochs_commit_without_the_gil(pair: Pair) -> None:
    """Both loops stay in native code. Had one of them held the GIL, the other could not have moved during a call: no more than
    `outstanding` epochs could have been committed in it."""
    lab = Lab(pair, outstanding=2)
    late = time.monotonic() + 20
    stop = False

    def follow() -> None:
        while not stop:
            assert lab.follow(50) == WHY_TIME

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        most = 0
        while most <= 10:
            assert time.monotonic() < late
            before = lab.path.commits
            assert lab.lead(300) == WHY_TIME
            most = max(most, lab.path.commits - before)
    finally:
        stop = True
        thread.join()
    assert lab.here.bytes_received == 40 * lab.path.commits         # acks and nothing else
    lab.check()


@CHANNELS
def test_a_peer_that_stops_reading_stops_the_input_and_loses_nothing(pair: Pair) -> None:
    lab = Lab(pair, outstanding=1 << 14)
    made, late = -1, time.monotonic() + 20
    while made != lab.port.made:                            # the channel is full, then names or the gate
        made = lab.port.made
        assert lab.lead(20) == WHY_TIME and time.monotonic() < late
    assert lab.path.staging.count > 0, "the record that found no room"
    assert lab.path.commits == 0 and lab.port.counters()["tx_frames"] == 0
    assert lab.here.closed is None, "a slow peer is no dead peer"
    lab.check()


@CHANNELS
def test_the_peers_end_is_seen_by_the_loop(pair: Pair) -> None:
    lab = Lab(pair, limit=64)
    lab.lead(5)
    lab.follow(5)
    lab.there.close()
    late = time.monotonic() + 5
    while lab.lead(20) != WHY_MAIL:
        assert time.monotonic() < late
    assert lab.here.recv() is None and (lab.here.closed or "").startswith("the peer closed")
    assert lab.path.commits == lab.standby.epoch, "acks sent before the goodbye count"
    lab.here.close()


@CHANNELS
def test_what_is_not_for_native_code_waits_for_python_in_order(pair: Pair) -> None:
    lab = Lab(pair, limit=320)
    for step in range(10):
        assert lab.here.send(16, b"control %d" % step) and lab.here.flush()
        lab.lead(2)
    heard = []
    late = time.monotonic() + 5
    while len(heard) < 10:
        assert time.monotonic() < late
        if lab.follow(20) == WHY_MAIL:
            message = lab.there.recv()
            assert message is not None
            heard.append((message[0], bytes(message[1])))
    assert heard == [(16, b"control %d" % i) for i in range(10)]
    lab.check()


@CHANNELS
def test_an_ack_after_the_session_is_pythons_to_refuse(pair: Pair) -> None:
    lab = Lab(pair, limit=32)
    lab.lead(5)
    assert lab.engine.outstanding == 1
    lab.path.end()
    ack = struct.pack("<QQQQII", 7, 1, 0, 0, 0, 0)         # right in every field
    assert lab.there.send(2, ack) and lab.there.flush()
    late = time.monotonic() + 5
    while lab.path.take_acks(time.monotonic_ns()) == 0:
        assert time.monotonic() < late
    assert lab.here.recv() == (2, ack) and lab.path.commits == 0


@CHANNELS
def test_a_standby_that_has_claimed_is_silent(pair: Pair) -> None:
    lab = Lab(pair, limit=64)
    lab.lead(5)
    lab.standby.silent = True
    late = time.monotonic() + 5
    while lab.standby.epoch < 1:
        assert time.monotonic() < late
        lab.lead(2)                         # on a crowded machine a few ms may go by without a poll
        lab.follow(2)
    lab.lead(5)
    assert lab.path.commits == 0 and lab.there.bytes_sent == 0
    assert lab.standby.released_at_most() == 0, "no ack was given: nothing can have left"


@CHANNELS
def test_committed_output_waits_while_the_lease_may_run_out(pair: Pair) -> None:
    lab = Lab(pair, limit=64)
    lab.path.leave_until_ns = 0
    late = time.monotonic() + 5
    while lab.path.commits < 1 or lab.engine.outstanding:
        assert time.monotonic() < late
        lab.lead(2)
        lab.follow(2)
    assert lab.port.counters()["tx_frames"] == 0 and lab.gate.held_frames == lab.port.made
    lab.path.leave_until_ns = (1 << 64) - 1
    lab.check()


def test_patience_spins_then_yields_then_is_at_its_end() -> None:
    p = Patience(50, 100)
    assert not p.exhausted(1_000) and not p.exhausted(50_999) and p.yields == 0
    assert not p.exhausted(51_000) and not p.exhausted(150_999) and p.yields == 2
    assert p.exhausted(151_000) and p.exhausted(10**9) and p.yields == 2
    p.worked()
    assert not p.exhausted(10**9) and p.yields == 2 and p.exhausted(10**9 + 150_000)
    at_once = Patience(0, 0)
    assert not at_once.exhausted(1) and at_once.exhausted(1)


def test_an_idle_loop_says_so_and_stays_impatient_until_there_is_work() -> None:
    lab = Lab(shm_pair, limit=32)
    lab.path.attach(None)
    lab.path.holding = False
    lab.gate.open()
    patience = Patience(200, 200)
    assert lab.lead(5000, patience) == WHY_IDLE and lab.port.made == 32 and patience.yields > 0
    seen = patience.yields
    assert lab.lead(5000, patience) == WHY_IDLE and patience.yields == seen, "it has waited already"
