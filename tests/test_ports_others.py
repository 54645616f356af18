"""Python ports, pcap files, wrappers, the scapy socket, open_port."""

from __future__ import annotations

import resource
import struct
import sys
import threading
import time
from pathlib import Path

import pytest

from nfckpt.errors import ConfigError, PortError
from nfckpt.native.burst import Burst
from nfckpt.ports import AfPacketPort, MemoryHub, MemoryPort, PcapPort, PythonPort, open_port
from nfckpt.ports.pcap import PcapReader, PcapWriter
from nfckpt.ports.port import Port
from nfckpt.ports.wrappers import Faults, FaultyPort, RecorderPort
from nfckpt.sim.conformance_port import numbered_frame
from tests.ports_lab import veth


def drain(port: Port, polls: int = 50) -> list[bytes]:
    burst, out = Burst(), []
    for _ in range(polls):
        burst.reset()
        if port.rx_burst(burst, 256):
            out += burst.frames()
    return out


# Python ports


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What ports tell sys.unraisablehook."""
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: seen.append(u.exc_value))
    return seen


class Broken(PythonPort):
    def __init__(self, where: str) -> None:
        self.name, self.where = "broken", where

    def fail(self, where: str) -> None:
        if where == self.where:
            raise ValueError(f"bug in {where}")

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        self.fail("rx")
        return [] if self.where != "junk" else [("not bytes", 0)]  # type: ignore[list-item]

    def py_tx(self, frame: bytes) -> bool:
        self.fail("tx")
        return True

    def py_flush(self) -> int:
        self.fail("flush")
        return 0


@pytest.mark.parametrize("where", ["rx", "tx", "flush", "junk"])
def test_an_exception_makes_the_port_gone_and_is_reported(where: str, reports: list[BaseException]) -> None:
    port = Broken(where)
    with pytest.raises(PortError, match="broken is gone") as e:
        port.rx_burst(Burst())
        port.tx_burst([bytes(60)])
    assert port.gone and reports == [port.error] and e.value.__cause__ is port.error
    with pytest.raises(PortError):
        port.rx_burst(Burst())
    assert port.tx_frame(bytes(60)) == -1 and len(reports) == 1


def test_more_than_was_asked_for_waits() -> None:
    class Generous(PythonPort):
        given = False

        def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
            if self.given:
                return []
            self.given = True
            return [(numbered_frame(n, 1000), n) for n in range(100)] + [(bytes(10_000), 0)]

    port, small, got = Generous(), Burst(32 * 1024), []
    while port.rx_burst(small, 64):
        got += small.frames()
        small.reset()
    assert got == [numbered_frame(n, 1000) for n in range(100)]
    assert port.counters()["rx_oversize"] == 1


# pcap


def pcap(order: str, magic: int, records: list[tuple[int, int, bytes, int]], link: int = 1) -> bytes:
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for seconds, fraction, data, length in records:
        out += struct.pack(order + "4I", seconds, fraction, len(data), length) + data
    return out


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_reads_both_precisions_and_byte_orders(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    frames = [numbered_frame(n, 60 + n) for n in range(5)]
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(order, magic, [(7, n, f, len(f)) for n, f in enumerate(frames)]))
    reader = PcapReader(path)
    assert [reader.read() for _ in range(6)] == [(f, 7 * 10**9 + n * unit) for n, f in enumerate(frames)] + [None]
    port = open_port(f"pcap:{path}")
    assert drain(port) == frames and port.exhausted  # type: ignore[attr-defined]
    assert port.tx_frame(frames[0]) == -1


def test_bad_records_are_counted_and_bad_files_refused(tmp_path: Path) -> None:
    good = numbered_frame(0, 60)
    path = tmp_path / "in.pcap"
    whole = pcap("<", 0xA1B2C3D4, [(0, 0, good, 60), (0, 0, good, 61), (0, 0, bytes(9217), 9217), (0, 0, good, 60)])
    for tail in (b"", whole[24:30], struct.pack("<4I", 0, 0, 60, 60) + b"x", struct.pack("<4I", 0, 0, 1 << 31, 1 << 31)):
        path.write_bytes(whole + tail)
        with PcapPort(path) as port:
            assert drain(port) == [good, good]
            assert port.counters()["rx_oversize"] == 2 + bool(tail)
    for content, why in ((b"", "not a pcap"), (b"\x0a\x0d\x0d\x0a" + bytes(40), "editcap"), (whole[:23], "not a pcap"),
                         (pcap("<", 0xA1B2C3D4, [], link=101), "link type 101")):
        path.write_bytes(content)
        with pytest.raises(PortError, match=why):
            PcapPort(path)
    with pytest.raises(PortError, match="No such file"):
        PcapPort(tmp_path / "none")
    with pytest.raises(PortError, match="cannot be written"):
        PcapPort(None, tmp_path / "no-dir" / "out.pcap")


def test_scapy_reads_what_we_write(tmp_path: Path) -> None:
    from scapy.utils import RawPcapReader

    path = tmp_path / "out.pcap"
    frames = [numbered_frame(n, size) for n, size in enumerate((14, 60, 61, 1514, 9216))]
    start = time.time_ns()
    with open_port({"scheme": "pcap", "write": path}) as port:
        assert port.tx_burst(frames) == 5
        assert not path.exists(), "it gets its name when it is whole"
    reader = RawPcapReader(str(path))
    assert reader.nano
    records = list(reader)
    assert [data for data, _ in records] == frames
    assert all(0 <= m.sec * 10**9 + m.usec - start < 5 * 10**9 for _, m in records)
    assert [p.name for p in tmp_path.iterdir()] == ["out.pcap"]


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, reports: list[BaseException]) -> None:
    """RLIMIT_FSIZE stands in for the disk."""
    left, right = MemoryPort.pair()             # before: the limit holds for memfds too
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        writer = PcapWriter(tmp_path / "out.pcap")
        with pytest.raises(PortError, match="cannot be written"):
            for n in range(100):
                writer.write(numbered_frame(n, 1514), 0)
        writer.close()
        assert list(tmp_path.iterdir()) == []

        port = RecorderPort(left, tmp_path / "rec.pcap")
        with pytest.raises(PortError, match="cannot be written"):
            for n in range(100):
                port.tx_burst([numbered_frame(n, 1514)])
                drain(right, 1)
        assert len(reports) == 1
        assert port.gone
        port.close()
        assert list(tmp_path.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# wrappers


def spoil(seed: int, frames: list[bytes], rx: Faults, tx: Faults) -> tuple[list[bytes], dict[str, int], dict[str, int]]:
    a, b = MemoryPort.pair(frames=4096)
    now = iter(range(0, 10**12, 1000))
    sender = FaultyPort(a, seed, tx=tx, clock=lambda: next(now))
    receiver = FaultyPort(b, seed, rx=rx, clock=lambda: next(now))
    got: list[bytes] = []
    left = frames
    while left:
        left = left[sender.tx_burst(left[:32]):]
        got += drain(receiver, 1)
    for _ in range(10_000):
        if not sender.tx_flush():
            break
    got += drain(receiver, 3000)
    return got, dict(sender.faults), dict(receiver.faults)


def test_faults_are_seeded_and_accounted_for() -> None:
    frames = [numbered_frame(n, 60 + n % 100) for n in range(3000)]
    rx = Faults(drop=0.05, duplicate=0.03, reorder=0.1, delay=0.05)
    tx = Faults(refuse=0.2, drop=0.02, duplicate=0.05, reorder=0.05, delay=0.05)
    got, sent_faults, got_faults = spoil(3, frames, rx, tx)
    assert (got, sent_faults, got_faults) == spoil(3, frames, rx, tx)
    assert got != spoil(4, frames, rx, tx)[0]
    expected = (len(frames) - sent_faults["tx_drop"] + sent_faults["tx_duplicate"]
                - got_faults["rx_drop"] + got_faults["rx_duplicate"])
    assert len(got) == expected
    assert set(got) <= set(frames) and got != sorted(got, key=frames.index)
    for fault in ("tx_refuse", "tx_reorder", "tx_delay"):
        assert sent_faults[fault] > 50
    with pytest.raises(ConfigError):
        Faults(drop=1.5)


def test_reorder_alone_only_reorders_and_not_far() -> None:
    frames = [numbered_frame(n, 60) for n in range(500)]
    got, _, faults = spoil(1, frames, Faults(reorder=0.2, reorder_frames_max=3), Faults())
    assert sorted(got) == sorted(frames) and got != frames and faults["rx_reorder"] > 50
    assert max(abs(got.index(f) - i) for i, f in enumerate(frames)) < 32


def test_a_recorder_writes_both_directions(tmp_path: Path) -> None:
    a, b = MemoryPort.pair()
    with RecorderPort(FaultyPort(a, 1), tmp_path / "all.pcap") as port:
        port.tx_burst([numbered_frame(1, 60)])
        b.tx_burst([numbered_frame(2, 70)])
        drain(port)
        assert port.capabilities()["kind"] == "recorder(faulty(memory))"
    assert drain(open_port(f"pcap:{tmp_path / 'all.pcap'}")) == [numbered_frame(1, 60), numbered_frame(2, 70)]


def test_a_wrapper_dies_with_its_port(reports: list[BaseException]) -> None:
    with veth() as lab:
        port = FaultyPort(AfPacketPort(lab.dev, lab.a), 1)
        lab.delete()
        with pytest.raises(PortError, match="removed"):
            for _ in range(300):
                port.rx_burst(Burst())
        assert port.gone and len(reports) == 1
        port.close()


# scapy


def test_scapy_asks_and_is_answered() -> None:
    from scapy.layers.l2 import ARP, Ether

    from nfckpt.ports.scapy_socket import PortSocket

    a, b = MemoryPort.pair()

    def answer() -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for frame in drain(b, 1):
                asked = Ether(frame)
                reply = Ether(dst=asked.src) / ARP(
                    op=2, psrc=asked[ARP].pdst, pdst=asked[ARP].psrc, hwsrc="02:00:00:00:00:07"
                )
                b.tx_burst([bytes(reply)])
                return
            time.sleep(0.001)

    thread = threading.Thread(target=answer)
    thread.start()
    with PortSocket(a) as s:
        reply = s.sr1(Ether(src="02:00:00:00:00:01", dst="ff:ff:ff:ff:ff:ff")
                      / ARP(psrc="10.0.0.1", pdst="10.0.0.2"), timeout=3, verbose=0)
        thread.join()
        assert reply is not None and reply[ARP].hwsrc == "02:00:00:00:00:07"
        b.tx_burst([numbered_frame(n, 60) for n in range(5)])
        caught = s.sniff(count=5, timeout=2)
        assert [bytes(p) for p in caught] == [numbered_frame(n, 60) for n in range(5)]
        assert all(abs(p.time - time.time()) < 5 for p in caught)
        start = time.monotonic()
        assert len(s.sniff(timeout=0.2)) == 0 and time.monotonic() - start < 2
    assert a.gone


# open_port


def test_open_port_forms() -> None:
    with MemoryHub(2) as hub:
        left = open_port(f"mem:0@{','.join(map(str, hub.fds))}")
        right = open_port(hub.endpoint_spec(1))
        left.tx_burst([numbered_frame(0, 60)])
        assert drain(right) == [numbered_frame(0, 60)]
    with veth() as lab, open_port(f"afpacket:{lab.dev}@{lab.a}") as port:
        assert port.name == f"{lab.dev}@{lab.a}" and port.capabilities()["kind"] == "af_packet"


@pytest.mark.parametrize("spec", [
    "", "dpdk:0", "eth0", "afpacket:", "afpacket:@x", "pcap:", "pcap:,", "mem:", "mem:x@1", "mem:1", {}, {"scheme": 3},
])
def test_open_port_says_the_forms(spec) -> None:
    with pytest.raises(ConfigError, match=r"afpacket:IFNAME\[@NETNS\]"):
        open_port(spec)


def test_open_port_knows_its_keys() -> None:
    with pytest.raises(ConfigError, match="unknown ifnam"):
        open_port({"scheme": "afpacket", "ifnam": "x"})
    with pytest.raises(ConfigError, match="missing ifname"):
        open_port({"scheme": "afpacket", "netns": "x"})
