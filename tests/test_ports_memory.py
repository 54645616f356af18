"""Memory rings between processes: what survives a SIGKILL, what a slow or dead reader costs, what garbage does."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from nfckpt.errors import ConfigError, PortError
from nfckpt.native.burst import Burst
from nfckpt.ports import MemoryHub, MemoryPort, open_endpoint
from nfckpt.ports.port import Port


def frame(n: int, size: int = 64) -> bytes:
    """All of it says n, so a torn frame shows."""
    return struct.pack("<Q", n) * (size // 8)


def number(got: bytes) -> int:
    n = struct.unpack_from("<Q", got)[0]
    assert got == frame(n, len(got)), "a torn frame"
    return n


def drain(port: Port, burst: Burst | None = None) -> list[int]:
    burst = burst or Burst()
    out: list[int] = []
    while True:
        burst.reset()
        if not port.rx_burst(burst, 256):
            return out
        out += [number(f) for f in burst.frames()]


@contextlib.contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """A child process that runs `work` and is killed when the block ends."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_what_one_sends_all_others_receive() -> None:
    with MemoryHub(3) as hub:
        ports = [hub.open(i) for i in range(3)]
    for i, port in enumerate(ports):
        port.tx_burst([frame(10 * i + k) for k in range(3)])
    assert drain(ports[0]) == [10, 11, 12, 20, 21, 22]
    assert drain(ports[1]) == [0, 1, 2, 20, 21, 22]
    assert drain(ports[2]) == [0, 1, 2, 10, 11, 12]


def test_nothing_leaves_before_the_flush_and_its_time_is_the_flush() -> None:
    a, b = MemoryPort.pair()
    assert a.tx_frame(frame(1)) == 1
    assert drain(b) == []
    before = time.monotonic_ns()
    a.tx_flush()
    burst = Burst()
    assert b.rx_burst(burst) == 1 and before <= int(burst.ts[0]) <= time.monotonic_ns()


def test_overflow_is_counted_exactly_and_only_where_it_happens() -> None:
    with MemoryHub(3, frames=64) as hub:
        sender, quick, slow = (hub.open(i) for i in range(3))
        quick_got: list[int] = []
        for n in range(1000):
            sender.tx_burst([frame(n)])
            quick_got += drain(quick)
        assert quick_got == list(range(1000)) and quick.counters()["rx_ring_drops"] == 0
        assert drain(slow) == list(range(1000 - 64, 1000))
        assert slow.counters()["rx_ring_drops"] == 1000 - 64
        assert sender.counters()["tx_full"] == 0, "a hub does not wait"


def test_lapped_in_the_middle_of_reading() -> None:
    """The reader knows of eight frames and has read one when the sender comes round."""
    with MemoryHub(2, frames=8) as hub:
        sender, reader = hub.open(0), hub.open(1)
        sender.tx_burst([frame(n) for n in range(8)])
        burst = Burst()
        assert reader.rx_burst(burst, 1) == 1
        sender.tx_burst([frame(n) for n in range(8, 13)])
        assert drain(reader) == list(range(5, 13))
        assert reader.counters()["rx_ring_drops"] == 4


def test_lapped_in_the_middle_of_a_copy() -> None:
    """A sender 4 slots ahead of everything, on another CPU: no frame is handed out torn, none goes back in time."""
    with MemoryHub(2, frames=4) as hub:
        reader = hub.open(1)

        def send_for_ever() -> None:
            port = hub.open(0)
            bursts = []
            for n in range(250):
                bursts.append(Burst())
                bursts[-1].push(frame(n, 1504))
            while True:
                for b in bursts:
                    port.tx_from(b)

        with forked(send_for_ever):
            deadline = time.monotonic() + 5
            while reader.counters()["rx_ring_drops"] < 100_000 and time.monotonic() < deadline:
                burst = Burst()
                reader.rx_burst(burst, 64)
                for f in burst.frames():
                    number(f)
                assert burst.ts.tolist() == sorted(burst.ts.tolist())
        assert reader.counters()["rx_ring_drops"] > 0 and reader.counters()["rx_oversize"] == 0


def test_a_pair_waits_for_the_reader() -> None:
    a, b = MemoryPort.pair(frames=8)
    assert a.tx_burst([frame(n) for n in range(20)]) == 8
    assert a.tx_frame(frame(8)) == 0
    assert drain(b) == list(range(8))
    assert a.tx_burst([frame(n) for n in range(8, 20)]) == 8
    assert b.counters()["rx_ring_drops"] == 0 and a.counters()["tx_full"] == 3


@pytest.mark.parametrize("seed", range(3))
def test_sender_killed_at_any_instruction(seed: int) -> None:
    """Whatever the instruction: both receivers have the same frames, whole, with no hole but what they counted; a
    successor goes on behind them."""
    rng = random.Random(seed)
    with MemoryHub(3, frames=64) as hub:
        left, right = hub.open(1), hub.open(2)

        def send_for_ever() -> None:
            port = hub.open(0)
            bursts = []
            for k in range(1, 8):
                b = Burst()
                for _ in range(k):
                    b.push(frame(7, 512))
                bursts.append(b)
            while True:
                for b in bursts:
                    port.tx_from(b)

        total = 0
        for life in range(20):
            with forked(send_for_ever) as pid:
                deadline = time.monotonic() + 5
                before = left.counters()["rx_frames"]
                while left.counters()["rx_frames"] == before:
                    drain(left) if life % 2 else left.rx_burst(Burst(), 1)
                    assert time.monotonic() < deadline
                time.sleep(rng.random() * 0.003)
                os.kill(pid, signal.SIGKILL)
            drain(left)
            drain(right)
            seen = [c["rx_frames"] + c["rx_ring_drops"] for c in (left.counters(), right.counters())]
            assert seen[0] == seen[1] > total, "a frame reached one and not the other"
            total = seen[0]
            assert left.counters()["rx_oversize"] == right.counters()["rx_oversize"] == 0
            heir = hub.open(0)
            heir.tx_burst([frame(n) for n in range(10)])
            heir.close()
            total += 10
            assert drain(left) == drain(right) == list(range(10))


def test_killed_between_filling_and_publishing() -> None:
    """What the dead one had filled but not published is nobody's, and its successor writes over it."""
    with MemoryHub(3, frames=8) as hub:
        old, left, right = (hub.open(i) for i in range(3))
        old.tx_burst([frame(n) for n in range(6)])
        assert drain(left) == [0, 1, 2, 3, 4, 5]
        for n in range(100, 105):
            old.tx_frame(frame(n))              # never flushed: as good as killed here
        heir = hub.open(0)
        heir.tx_burst([frame(n) for n in range(6, 8)])
        assert drain(left) == [6, 7]
        late = drain(right)                     # three slots were being written over when the old one died
        assert late == [3, 4, 5, 6, 7] and right.counters()["rx_ring_drops"] == 3


def test_a_dead_reader_stops_nobody_and_its_heir_goes_on() -> None:
    with MemoryHub(3, frames=64) as hub:
        sender, other = hub.open(0), hub.open(1)

        def read_for_ever() -> None:
            port = hub.open(2)
            burst = Burst()
            while True:
                burst.reset()
                port.rx_burst(burst, 8)

        with forked(read_for_ever) as pid:
            for n in range(200):
                sender.tx_burst([frame(n)])
                drain(other)
            time.sleep(0.05)                    # it has read all there was
            os.kill(pid, signal.SIGKILL)
        for n in range(200, 500):
            assert sender.tx_burst([frame(n)]) == 1
            assert drain(other) == [n]
        heir = hub.open(2)
        got = drain(heir)
        drops = heir.counters()["rx_ring_drops"]
        assert got == list(range(436, 500)), "the newest 64"
        assert 500 - len(got) - drops + 8 >= 200 and drops <= 436 - 200 + 8, "at most a burst comes again"
        heir.close()
        sender.tx_burst([frame(500)])
        skipped = hub.open(2, reset=True)
        assert drain(skipped) == [] and skipped.counters()["rx_ring_drops"] == 0
        sender.tx_burst([frame(501)])
        assert drain(skipped) == [501]


@pytest.mark.parametrize("by_path", [False, True])
def test_endpoint_in_another_program(by_path: bool) -> None:
    child = (
        "import json,sys\n"
        "from nfckpt.ports import open_port\n"
        "from nfckpt.native.burst import Burst\n"
        "port, burst = open_port(json.loads(sys.argv[1])), Burst()\n"
        "while not port.rx_burst(burst): pass\n"
        "port.tx_burst(burst.frames())\n"
    )
    with MemoryHub(2) as hub:
        here = hub.open(0)
        spec = json.dumps(hub.endpoint_spec(1, by_path=by_path))
        here.tx_burst([frame(3), frame(4)])
        subprocess.run([sys.executable, "-c", child, spec], pass_fds=() if by_path else hub.fds, check=True, timeout=20)
        assert drain(here) == [3, 4]


def test_garbage_in_a_ring_is_survived() -> None:
    """A process that scribbles over its own ring harms nobody's memory, and is seen."""
    rng = random.Random(5)
    for _ in range(200):
        with MemoryHub(2, frames=16) as hub:
            sender, reader = hub.open(0), hub.open(1)
            sender.tx_burst([frame(n) for n in range(10)])
            with mmap.mmap(hub.fds[0], 0) as ring:
                for _ in range(rng.randint(1, 30)):
                    at = rng.choice([64, 128, 4096, 4096 + 8]) + rng.choice([0, 0, 1600 * rng.randint(0, 15)])
                    ring[at:at + 8] = rng.choice([rng.randbytes(8), b"\xff" * 8, bytes(8)])
            burst = Burst()
            try:
                for _ in range(50):
                    burst.reset()
                    reader.rx_burst(burst, 32)
                    assert all(14 <= len(f) <= 1522 for f in burst.frames())
            except PortError as e:
                assert "make no sense" in str(e) and reader.gone


def test_impossible_length_is_counted() -> None:
    with MemoryHub(2, frames=16) as hub:
        sender, reader = hub.open(0), hub.open(1)
        sender.tx_burst([frame(0), frame(1), frame(2)])
        with mmap.mmap(hub.fds[0], 0) as ring:
            ring[4096 + 1600 + 8:4096 + 1600 + 12] = struct.pack("<I", 60_000)
        assert drain(reader) == [0, 2] and reader.counters()["rx_oversize"] == 1


def test_what_is_not_a_hub_is_refused() -> None:
    with pytest.raises(ConfigError, match="power of two"):
        MemoryHub(2, frames=100)
    with pytest.raises(ConfigError):
        MemoryHub(1)
    junk = os.memfd_create("junk")
    try:
        os.ftruncate(junk, 1 << 20)
        with MemoryHub(2) as hub:
            for fds in ([junk, hub.fds[1]], [hub.fds[1], hub.fds[0]], hub.fds[:1], []):
                with pytest.raises(PortError):
                    open_endpoint({"endpoint": 0, "fds": fds})
            with pytest.raises(OSError):
                os.ftruncate(hub.fds[0], 4096)
    finally:
        os.close(junk)


def test_nothing_left_open() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with MemoryHub(3) as hub:
        ports = [open_endpoint(hub.endpoint_spec(i, by_path=True)) for i in range(3)]
    for p in ports:
        p.close()
    assert count() == before
