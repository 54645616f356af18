"""The kernel lease on real devices: what passes, what does not, and when it stops (I9)."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest

from nfckpt.errors import ConfigError, MachineError
from nfckpt.failover import nft
from nfckpt.failover.lease import LEASE_MS_MAX, LEASE_MS_MIN, EgressLease, stamp
from nfckpt.failover.lease_clock import LeaseClock
from tests.fence_segment import Segment, emit, frame, segment

T = TypeVar("T")
MARK, LEASE_MS, TICK_MS = 0x4E000001, 100, 4
ROOT = str(Path(__file__).resolve().parent.parent)
SENDER = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import socket
from tests.fence_segment import emit
s = socket.socket(fileno=int(sys.argv[2]))
n = 0
print("ready", flush=True)
while True:
    emit(s, n); n += 1
    time.sleep(50e-6)
"""


@pytest.fixture
def seg() -> Iterator[Segment]:
    with segment() as s:
        yield s


@pytest.fixture
def lease(seg: Segment) -> Iterator[EgressLease]:
    e = EgressLease(seg.node, ["p0", "q0"], "nfckpt_test")
    e.install()
    yield e
    e.close()


@contextlib.contextmanager
def sending(sock: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that sends on `sock` about 8,000 times a second until it is killed."""
    with subprocess.Popen([sys.executable, "-c", SENDER, ROOT, str(sock.fileno())],
                          stdout=subprocess.PIPE, pass_fds=[sock.fileno()]) as p:
        try:
            assert p.stdout is not None and p.stdout.readline() == b"ready\n"
            yield p
        finally:
            p.kill()


def burst(sock: socket.socket, first: int = 0, n: int = 5) -> None:
    for i in range(n):
        emit(sock, first + i)


def quietly(trial: Callable[[], tuple[float, T]]) -> tuple[float, T]:
    """A trial whose beats all came in time: on a machine that held us off for most of a lease, losing frames is right."""
    for _ in range(4):
        widest, result = trial()
        if widest < (LEASE_MS - 3 * TICK_MS) / 1000:
            return widest, result
    raise AssertionError("this machine never gave us 4 beats in a row in time")


def test_only_a_live_mark_leaves(seg: Segment, lease: EgressLease) -> None:
    ear, other = seg.listener(), seg.listener("q1")
    marked, bare, second = seg.sender(mark=MARK), seg.sender(), seg.sender("q0", MARK)
    burst(marked, 100)                      # closed after install
    lease.renew(MARK, 5000)
    burst(marked, 200)
    burst(bare, 300)                        # unmarked: nothing else may send on a data port
    burst(second, 400)                      # every port, one lease
    lease.revoke(MARK)
    lease.revoke(MARK)                      # again: no error
    burst(marked, 500)
    lease.permanent(MARK)
    burst(marked, 600)
    assert [n for n, _ in ear.close()] == [*range(200, 205), *range(600, 605)]
    assert [n for n, _ in other.close()] == [*range(400, 405)]
    frames, size = lease.dropped()
    assert frames >= 15 and size >= 15 * 60


def test_remaining_tells_the_truth(lease: EgressLease) -> None:
    assert lease.remaining() == {}
    lease.renew(MARK, 1000)
    lease.renew(MARK + 1, LEASE_MS_MAX)
    lease.permanent(MARK + 2)
    left = lease.remaining()
    assert set(left) == {MARK, MARK + 1, MARK + 2} and left[MARK + 2] is None
    assert 900 < (left[MARK] or 0) <= 1000 and 59_900 < (left[MARK + 1] or 0) <= 60_000
    lease.renew(MARK + 2, 500)              # permanent -> limited
    assert 400 < (lease.remaining()[MARK + 2] or 0) <= 500
    lease.renew(MARK + 1, 20)               # shortened in place
    time.sleep(0.03)
    assert MARK + 1 not in lease.remaining()


def test_a_dead_predecessors_table_is_replaced_in_one_step(seg: Segment, lease: EgressLease) -> None:
    lease.permanent(MARK)
    heir = EgressLease(seg.node, ["p0"], "nfckpt_test")
    heir.install()
    assert heir.remaining() == {}
    ear = seg.listener()
    burst(seg.sender(mark=MARK))
    assert ear.close() == []
    heir.remove()
    heir.remove()
    tables = nft.Nft(seg.node)
    assert tables.dump(1) == []             # nothing of it stays
    tables.close()
    heir.close()
    ear = seg.listener()
    burst(seg.sender())
    assert len(ear.close()) == 5


def test_what_the_kernel_refuses_is_an_error_with_a_hint(seg: Segment, lease: EgressLease) -> None:
    for ms in (0, LEASE_MS_MIN - 1, LEASE_MS_MAX + 1):
        with pytest.raises(ConfigError):
            lease.renew(MARK, ms)
    ghost = EgressLease(seg.node, ["nope0"], "nfckpt_ghost")
    with pytest.raises(MachineError, match="every port"):
        ghost.install()
    with pytest.raises(MachineError, match="install"):
        ghost.renew(MARK, 100)
    ghost.close()
    with pytest.raises(ConfigError):
        EgressLease(seg.node, [])
    with pytest.raises(MachineError, match="namespace"):
        EgressLease("/nowhere", ["p0"])


def test_emission_ends_with_the_lease_while_the_sender_goes_on(seg: Segment, lease: EgressLease) -> None:
    ends = []
    with sending(seg.sender(mark=MARK)):
        for _ in range(8):
            ear = seg.listener()
            before = time.monotonic_ns()
            lease.renew(MARK, LEASE_MS)
            after = time.monotonic_ns()
            time.sleep(0.16)
            seen = ear.close()
            gap = max((b - a for (_, a), (_, b) in pairwise(seen)), default=0) / 1e6
            ends.append((seen[-1][1] - after) / 1e6)
            print(f"lease {LEASE_MS} ms: last frame {ends[-1]:.2f} ms after renew ({len(seen)} frames, widest gap {gap:.1f} ms)")
            assert seen[0][1] >= before - 1_000_000
            assert ends[-1] <= LEASE_MS + 5
    assert statistics.median(ends) >= LEASE_MS - 3 * TICK_MS
    assert lease.dropped()[0] > 100         # it did go on sending


def test_a_stopped_sender_that_continues_emits_nothing(seg: Segment, lease: EgressLease) -> None:
    with sending(seg.sender(mark=MARK)) as p:
        for _ in range(5):
            ear = seg.listener()
            lease.renew(MARK, LEASE_MS)
            time.sleep(0.03)
            os.kill(p.pid, signal.SIGSTOP)
            time.sleep(0.13)
            dropped, resumed = lease.dropped()[0], time.monotonic_ns()
            os.kill(p.pid, signal.SIGCONT)
            time.sleep(0.05)
            seen = ear.close()
            assert seen and seen[-1][1] < resumed
            assert lease.dropped()[0] > dropped + 50


def test_renewed_in_place_nothing_is_lost(seg: Segment, lease: EgressLease) -> None:
    """25 ms beats, 100 ms lease, 5 s; and what renew costs."""
    cost: list[float] = []

    def five_seconds() -> tuple[float, list[int]]:
        ear, sock, widest = seg.listener(), seg.sender(mark=MARK), 0.0
        lease.renew(MARK, 1000)
        with sending(sock):
            last = time.monotonic()
            end = last + 5
            while last < end:
                t = time.perf_counter_ns()
                lease.renew(MARK, LEASE_MS)
                cost.append((time.perf_counter_ns() - t) / 1000)
                time.sleep(0.025)
                widest = max(widest, time.monotonic() - last)
                last = time.monotonic()
        return widest, [n for n, _ in ear.close()]

    widest, numbers = quietly(five_seconds)
    cost.sort()
    print(f"{len(numbers)} frames; widest beat {widest * 1000:.0f} ms; renew p50 {statistics.median(cost):.1f} us, "
          f"max {cost[-1]:.1f} us of {len(cost)}")
    assert numbers == list(range(len(numbers))) and len(numbers) > 2000
    assert statistics.median(cost) < 200


def test_a_mark_for_each_beat_nothing_is_lost(seg: Segment, lease: EgressLease) -> None:
    """The way it is meant: arm, beat, ack, stamp; the sockets change their mark under traffic."""

    def two_seconds() -> tuple[float, tuple[int, list[int]]]:
        sock, ear, clock = seg.sender(), seg.listener(), LeaseClock(LEASE_MS, 25)
        sent, stop, widest, last = [0], threading.Event(), 0.0, time.monotonic()

        def send() -> None:
            while not stop.is_set():
                emit(sock, sent[0])
                sent[0] += 1
                time.sleep(100e-6)

        sender = threading.Thread(target=send)
        for i in range(80):
            a = clock.beat(time.monotonic_ns())
            lease.renew(a.mark, a.ms)
            time.sleep(0.002)               # the beat's round trip
            mark = clock.acked(a.seq, time.monotonic_ns())
            if mark is not None:
                stamp([sock.fileno()], mark)
            if i == 0:
                sender.start()
            time.sleep(0.023)
            widest = max(widest, time.monotonic() - last)
            last = time.monotonic()
        stop.set()
        sender.join()
        return widest, (sent[0], [n for n, _ in ear.close()])

    _, (sent, numbers) = quietly(two_seconds)
    assert numbers == list(range(sent)) and sent > 500
    assert len(lease.remaining()) <= 5


STOPPED = """
import os, signal, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
import socket
from tests.fence_segment import emit
from nfckpt.failover.lease import EgressLease, stamp
from nfckpt.failover.lease_clock import LeaseClock
where, sock, netns = sys.argv[2], socket.socket(fileno=int(sys.argv[3])), int(sys.argv[4])
lease = EgressLease(netns, ["p0", "q0"], "nfckpt_test")
clock = LeaseClock(100, 25)
def step(name):
    if name == where and n == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
for n in range(4):
    t = time.monotonic_ns()
    a = clock.beat(t)
    if where == "planted bug":              # one mark, renewed when the ack has come
        mark = 7
        stamp([sock.fileno()], mark)
        left = 100 - (time.monotonic_ns() - t) // 1_000_000
        step(where)
        lease.renew(mark, left)
    else:
        lease.renew(a.mark, a.ms); step("armed")
        mark = clock.acked(a.seq, time.monotonic_ns()); step("acked")
        if mark is not None: stamp([sock.fileno()], mark)
        step("stamped")
    emit(sock, n)
"""


@pytest.mark.parametrize("where", ["armed", "acked", "stamped", "planted bug"])
def test_wherever_the_active_is_stopped_it_emits_nothing_afterwards(seg: Segment, lease: EgressLease, where: str) -> None:
    """The planted bug, one mark renewed after the ack, does leak: so this test sees what it is meant to see."""
    ear, sock = seg.listener(), seg.sender()
    with subprocess.Popen([sys.executable, "-c", STOPPED, ROOT, where, str(sock.fileno()), str(seg.node)],
                          pass_fds=[sock.fileno(), seg.node]) as p:
        try:
            assert os.WIFSTOPPED(os.waitpid(p.pid, os.WUNTRACED)[1])
            time.sleep(0.15)
            p.send_signal(signal.SIGCONT)
            assert p.wait(10) == 0
        finally:
            p.kill()
    assert [n for n, _ in ear.close()] == ([0, 1, 2, 3] if where == "planted bug" else [0, 1, 2])


def test_a_frame_in_a_tx_ring_waits_for_the_fence(seg: Segment, lease: EgressLease) -> None:
    """What ports rest on: a shut fence fails the kick, keeps slots and order, and loses nothing (TPACKET_V2)."""
    sock, ear = seg.sender(mark=MARK), seg.listener()
    sock.setsockopt(263, 10, 1)                             # PACKET_VERSION: V2
    sock.setsockopt(263, 13, struct.pack("=IIII", 4096, 2, 2048, 4))
    with mmap.mmap(sock.fileno(), 8192) as ring:
        for slot in range(3):
            data = frame(slot)
            ring[slot * 2048 + 32:slot * 2048 + 32 + len(data)] = data
            struct.pack_into("=II", ring, slot * 2048, 1, len(data))      # SEND_REQUEST
        for _ in range(2):
            with pytest.raises(OSError, match="No buffer space"):
                sock.send(b"", socket.MSG_DONTWAIT)
            assert struct.unpack_from("=I", ring, 0)[0] == 1
        lease.renew(MARK, 1000)
        sock.send(b"", socket.MSG_DONTWAIT)
        assert [n for n, _ in ear.close()] == [0, 1, 2]


def test_qdisc_bypass_does_not_go_round_the_fence(seg: Segment, lease: EgressLease) -> None:
    sock, ear = seg.sender(mark=MARK), seg.listener()
    sock.setsockopt(263, 20, 1)                             # PACKET_QDISC_BYPASS
    assert sock.getsockopt(263, 20) == 1
    burst(sock, 0)
    lease.renew(MARK, 1000)
    burst(sock, 10)
    assert [n for n, _ in ear.close()] == [10, 11, 12, 13, 14]
