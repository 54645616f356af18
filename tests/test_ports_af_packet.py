"""AF_PACKET on a veth pair: overflow, length, garbage, link down, device removed, checksums, marks. Needs root."""

from __future__ import annotations

import mmap
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator

import pyroute2
import pytest

from nfckpt.errors import ConfigError, MachineError, PortError
from nfckpt.native.burst import Burst
from nfckpt.native.tap import Tap
from nfckpt.netns import in_netns
from nfckpt.ports import AfPacketPort
from nfckpt.ports.af_packet import SO_MARK
from nfckpt.ports.port import Port
from nfckpt.sim.conformance_port import numbered_frame
from tests.ports_lab import Veth, offload, veth


@pytest.fixture
def lab() -> Iterator[Veth]:
    with veth() as made:
        yield made


def drain(port: Port, quiet_s: float = 0.05) -> list[bytes]:
    """All there is, and what comes within quiet_s of the last."""
    out: list[bytes] = []
    burst = Burst()
    deadline = time.monotonic() + quiet_s
    while time.monotonic() < deadline:
        burst.reset()
        if port.rx_burst(burst, 256):
            out += burst.frames()
            deadline = time.monotonic() + quiet_s
    return out


def until(what, port: Port, seconds: float = 5.0) -> None:
    burst = Burst()
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        burst.reset()
        port.rx_burst(burst)


def test_overflow_is_counted_exactly(lab: Veth) -> None:
    """Sent = received + dropped, and the ring is exactly as long as asked for."""
    with AfPacketPort(lab.dev, lab.a, rx_ring_frames=64) as slow, AfPacketPort(lab.dev, lab.b) as fast:
        frames = [numbered_frame(n, 60) for n in range(1000)]
        assert fast.tx_burst(frames) == 1000
        assert drain(slow) == frames[:64]
        assert slow.counters()["rx_ring_drops"] == 936
        assert fast.tx_burst(frames[:10]) == 10
        assert drain(slow) == frames[:10], "it goes on afterwards"
        c = slow.counters()
        assert (c["rx_frames"], c["rx_ring_drops"]) == (74, 936), "reading the kernel's counter twice adds nothing"


def test_rings_wrap_many_times(lab: Veth) -> None:
    with AfPacketPort(lab.dev, lab.a, rx_ring_frames=96) as a, \
            AfPacketPort(lab.dev, lab.b, tx_ring_frames=32) as b:
        sent: list[bytes] = []
        got: list[bytes] = []
        rng = random.Random(1)
        while len(sent) < 5000:
            frames = [numbered_frame(len(sent) + k, rng.randint(14, 1514)) for k in range(rng.randint(1, 32))]
            assert b.tx_burst(frames) == len(frames)
            sent += frames
            burst = Burst()
            while a.rx_burst(burst, rng.randint(1, 40)):
                got += burst.frames()
                burst.reset()
        got += drain(a)
        assert got == sent
        assert a.counters()["rx_ring_drops"] == 0


def test_garbage_comes_through_unchanged(lab: Veth) -> None:
    """The port reads nothing but lengths: malformed is for the app to see. (Linux drops broken VLAN tags itself.)"""
    rng = random.Random(2)
    frames = [rng.randbytes(rng.randint(20, 1514)) for _ in range(2000)]
    frames = [f for f in frames if f[12:14] not in (b"\x81\x00", b"\x88\xa8")]
    with AfPacketPort(lab.dev, lab.a) as a, AfPacketPort(lab.dev, lab.b) as b:
        assert b.tx_burst(frames) == len(frames)
        assert drain(a) == frames


def test_frames_longer_than_a_slot(lab: Veth) -> None:
    for ns in (lab.a, lab.b):
        lab.set(ns, mtu=9000)
    big = [numbered_frame(1, 9014), numbered_frame(2, 4000), numbered_frame(3, 60), numbered_frame(4, 9018, vlan=5)]
    with AfPacketPort(lab.dev, lab.b, slot_bytes=16384) as sender:
        with AfPacketPort(lab.dev, lab.a, slot_bytes=16384, rx_ring_frames=512) as roomy:
            assert sender.mtu == 9000
            assert sender.tx_burst(big) == 4
            assert drain(roomy) == big
        with AfPacketPort(lab.dev, lab.a) as tight:
            assert sender.tx_burst(big) == 4
            assert drain(tight) == [big[2]]
            assert tight.counters()["rx_oversize"] == 3
            assert tight.tx_frame(big[1]) == -1 and tight.counters()["tx_errors"] == 1


def test_link_down_keeps_frames_link_up_sends_them(lab: Veth) -> None:
    with AfPacketPort(lab.dev, lab.a) as a, AfPacketPort(lab.dev, lab.b) as b:
        frames = [numbered_frame(n, 60) for n in range(4)]
        lab.set(lab.a, state="down")
        until(lambda: a.link_down, a)
        assert a.tx_burst(frames) == 4 and a.tx_flush() == 4
        assert not a.gone and a.counters()["tx_errors"] == 0
        lab.set(lab.a, state="up")
        until(lambda: not a.link_down, a)
        assert a.tx_flush() == 0
        assert drain(b) == frames
        lab.set(lab.a, state="down")
        assert a.tx_burst(frames) == 4
        assert a.discard() == 4 and a.counters()["tx_errors"] == 4
        lab.set(lab.a, state="up")
        until(lambda: not a.link_down, a)
        assert a.tx_burst([frames[3]]) == 1
        assert drain(b) == [frames[3]], "what was discarded never leaves"


def test_no_carrier_is_not_the_end(lab: Veth) -> None:
    with AfPacketPort(lab.dev, lab.a) as a, AfPacketPort(lab.dev, lab.b) as b:
        lab.set(lab.b, state="down")
        a.tx_burst([numbered_frame(1, 60)])
        lab.set(lab.b, state="up")
        a.discard()
        got: list[bytes] = []
        deadline = time.monotonic() + 5
        while not got and time.monotonic() < deadline:
            a.tx_burst([numbered_frame(2, 60)])
            got = drain(b)
        assert numbered_frame(2, 60) in got and not a.gone and not b.gone


def test_opened_while_down(lab: Veth) -> None:
    lab.set(lab.a, state="down")
    with AfPacketPort(lab.dev, lab.a) as a, AfPacketPort(lab.dev, lab.b) as b:
        assert a.link_down
        lab.set(lab.a, state="up")
        until(lambda: not a.link_down, a)
        b.tx_burst([numbered_frame(0, 60)])
        assert drain(a) == [numbered_frame(0, 60)]


def test_device_removed_under_the_port(lab: Veth) -> None:
    """What is in the ring is read first; then the port is gone, on both ends, and says why."""
    with AfPacketPort(lab.dev, lab.a) as a, AfPacketPort(lab.dev, lab.b) as b:
        frames = [numbered_frame(n, 60) for n in range(3)]
        b.tx_burst(frames)
        time.sleep(0.02)
        a.tx_frame(frames[0])
        lab.delete()
        poller = select.poll()
        poller.register(a.fileno(), select.POLLIN)
        assert poller.poll(1000), "who sleeps on the port wakes up"
        burst = Burst()
        assert a.rx_burst(burst) == 3 and burst.frames() == frames
        with pytest.raises(PortError, match="removed"):
            for _ in range(300):
                a.rx_burst(burst)
        assert a.gone and a.tx_frame(frames[0]) == -1
        with pytest.raises(PortError, match="removed"):
            a.tx_flush()
        assert a.counters()["tx_errors"] == 2, "the one that waited, the one that was refused"
        b.tx_frame(frames[0])
        with pytest.raises(PortError, match="removed"):
            b.tx_flush()


def test_partial_checksums_are_seen(lab: Veth) -> None:
    """A kernel socket over a veth that still offloads sends half a checksum: handed out, and counted."""

    def send() -> None:
        with pyroute2.IPRoute() as ip:
            ip.addr("add", index=ip.link_lookup(ifname=lab.dev)[0], address="192.0.2.1", prefixlen=24)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"x" * 100, ("192.0.2.2", 9))

    with AfPacketPort(lab.dev, lab.a) as a:
        in_netns(lab.b, lambda: offload(lab.dev, 1))
        in_netns(lab.b, send)
        udp = [f for f in drain(a) if len(f) == 142]
        assert len(udp) == 1 and a.counters()["rx_bad_checksum"] == 1
        in_netns(lab.b, lambda: offload(lab.dev, 0))


def test_time_is_the_kernels(lab: Veth) -> None:
    """A frame that waited 20 ms in the ring is 20 ms old."""
    with AfPacketPort(lab.dev, lab.a) as a, AfPacketPort(lab.dev, lab.b) as b:
        before = time.monotonic_ns()
        b.tx_burst([numbered_frame(n, 60) for n in range(3)])
        after = time.monotonic_ns()
        time.sleep(0.02)
        burst = Burst()
        assert a.rx_burst(burst) == 3
        assert all(before - 50_000 <= t <= after + 5_000_000 for t in burst.ts.tolist())
        assert burst.ts.tolist() == sorted(burst.ts.tolist())


def test_mark_reaches_the_socket_and_a_new_mark_discards(lab: Veth) -> None:
    def mark(port: AfPacketPort) -> int:
        with socket.socket(fileno=os.dup(port.fd)) as s:
            return struct.unpack("I", s.getsockopt(socket.SOL_SOCKET, SO_MARK, 4))[0]

    with AfPacketPort(lab.dev, lab.a, mark=7) as a, AfPacketPort(lab.dev, lab.b) as b:
        assert mark(a) == 7
        a.tx_frame(numbered_frame(1, 60))
        a.set_mark(8)
        assert mark(a) == 8
        a.tx_burst([numbered_frame(2, 60)])
        assert drain(b) == [numbered_frame(2, 60)], "a frame of the old term left in the new one"


def test_errors_say_what_to_do_and_leave_nothing_open(lab: Veth) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    home = os.readlink("/proc/thread-self/ns/net")
    before = count()
    with pytest.raises(PortError, match=r"no such device.*devices there: lo, v0"):
        AfPacketPort("nope0", lab.a)
    with pytest.raises(MachineError, match="no network namespace nowhere"):
        AfPacketPort("lo", "nowhere")
    with pytest.raises(MachineError, match="cannot be entered"):
        AfPacketPort("lo", "/proc/self/ns/mnt")
    with pytest.raises(ConfigError, match="multiple of 32"):
        AfPacketPort(lab.dev, lab.a, rx_ring_frames=100)
    with pytest.raises(ConfigError, match="power of two"):
        AfPacketPort(lab.dev, lab.a, slot_bytes=1500)
    port = AfPacketPort(lab.dev, f"/run/netns/{lab.a}")
    port.close()
    assert count() == before
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_without_the_permission() -> None:
    """An ordinary user gets one clear error."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            try:
                AfPacketPort("lo")
            except MachineError as e:
                code = 0 if "permission" in str(e) and "CAP_NET_RAW" in str(e) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_ring_whose_next_place_is_not_finished_is_not_empty(lab: Veth) -> None:
    """A CPU of the kernel took a place, and its host took the CPU away before it was filled; other CPUs filled those behind it.
    Taken for empty, what lay there was "missed by the active" for the standby, or "missed by the tap": lost, or taken in twice."""
    frames = [numbered_frame(n, 60) for n in range(5)]
    with AfPacketPort(lab.dev, lab.a, rx_ring_frames=64, tx_ring_frames=64) as port, AfPacketPort(lab.dev, lab.b) as sender:
        ring = mmap.mmap(port.fileno(), 128 * 2048)     # the same memory: its first word is the status of the first place
        tap = Tap([port], bytes(32), 20_000_000)
        tap.open()
        tap.poll(t0 := time.monotonic_ns())
        sender.tx_burst(frames)
        time.sleep(0.02)
        status = ring[:4]
        assert int.from_bytes(status, "little") & 1, "the user's"
        ring[:4] = bytes(4)
        assert tap.poll(time.monotonic_ns()) == 0 and tap.read_ns == t0, "nothing was read since"
        ring[:4] = status
        assert tap.poll(now := time.monotonic_ns()) == 5 and tap.read_ns == now
        ring.close()
    burst = Burst()
    assert tap.replay(burst, 32) == 5 and burst.frames() == frames
