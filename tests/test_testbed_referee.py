"""The referee of the traffic: a planted fault of each kind is counted as what it is."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from nfckpt.errors import StateError
from nfckpt.native.traffic import Sender, Sink, datagram, deaf
from nfckpt.testbed import netns
from nfckpt.testbed.traffic import tcp
from tests.digest_twin import nf_hash

pytestmark = pytest.mark.box
KEYS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)


def decode(payload: bytes) -> tuple[int, int, int, int, int]:
    magic, stream, kind, seq, total, t_send, check = struct.unpack_from("<IHHQQQQ", payload)
    assert magic == 0x3155464E and payload[40:] == bytes([seq & 255]) * (len(payload) - 40)
    assert check == nf_hash(KEYS, nf_hash(KEYS, 0, payload[:32]), payload[40:])
    return stream, kind, seq, total, t_send


def test_datagram_format() -> None:
    assert decode(datagram(3, 1, 258, 999, 123456789, 64)) == (3, 1, 258, 999, 123456789)
    assert datagram(1, 0, 2, 3, 4, 44).hex() == (
        "4e465531" "0100" "0000" "0200000000000000" "0300000000000000" "0400000000000000" "66f9481ce93b36cc" "02020202")
    with pytest.raises(StateError, match="40"):
        datagram(0, 0, 0, 0, 0, 39)


def test_sender_numbers_and_pace() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as by:
        to.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        to.bind(("127.0.0.1", 0))
        to.settimeout(0)
        sender = Sender([(by.fileno(), *to.getsockname())] * 3, 5_000, 64)
        thread = threading.Thread(target=sender.run)
        started = time.monotonic()
        thread.start()
        got = []
        while time.monotonic() - started < 0.5:
            try:
                got.append(decode(to.recv(2048)))
            except BlockingIOError:
                time.sleep(0.001)
        sender.halt()
        thread.join()
        elapsed = time.monotonic() - started
        while True:
            try:
                got.append(decode(to.recv(2048)))
            except BlockingIOError:
                break
    assert sender.errors == 0
    assert [total for *_, total, _ in got] == list(range(len(got))) and len(got) == sum(sender.sent())
    for stream in range(3):
        assert [seq for s, _, seq, _, _ in got if s == stream] == list(range(sender.sent()[stream]))
    assert 0.5 * 5_000 * elapsed < len(got) + sender.skipped <= 5_000 * elapsed + 10


@pytest.fixture
def wire() -> Iterator[tuple[Sink, socket.socket]]:
    """A sink for two streams on ports 9000 and 9001 at one end of a cable, and a raw socket at the other."""
    name = f"t{os.getpid()}-wire"
    netns.remove(name)
    netns.create(name)

    def build() -> tuple[Sink, socket.socket]:
        from pyroute2 import IPRoute
        with IPRoute() as ip:
            ip.link("add", ifname="x0", kind="veth", peer={"ifname": "x1", "address": "02:00:00:00:00:01"})
        for device in "x0", "x1":
            netns.offloads_off(device)
            netns.set_flags(device, netns.UP | netns.NOARP)
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind(("x0", 0))
        return Sink("x1", 9000, 2, 2, 64), sock

    sink, sock = netns.run_in(name, build)
    thread = threading.Thread(target=sink.run)
    thread.start()
    yield sink, sock
    sink.halt()
    thread.join()
    sock.close()
    netns.remove(name)


def frame(payload: bytes, port: int = 9000, source: tuple[str, int] = ("10.0.0.2", 40000), **ip: int) -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether
    return bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02")
                 / IP(src=source[0], dst="198.51.100.2", **ip) / UDP(sport=source[1], dport=port) / payload)


def data(stream: int, seq: int, total: int = 0, kind: int = 0, ago_ms: float = 0.0) -> bytes:
    return datagram(stream, kind, seq, total, time.monotonic_ns() - int(ago_ms * 1e6), 64)


def settled(sink: Sink) -> tuple[int, int, int, int, int, int]:
    time.sleep(0.05)
    return sink.received, sink.duplicated, sink.reordered, sink.corrupt, sink.source_changed, sink.probes


def test_sink_counts_each_fault_as_what_it_is(wire: tuple[Sink, socket.socket]) -> None:
    sink, sock = wire
    assert sink.source(0) is None
    sock.send(frame(data(0, 0, kind=1)))
    assert settled(sink) == (0, 0, 0, 0, 0, 1)
    assert sink.source(0) == ("10.0.0.2", 40000) and sink.source(1) is None
    for seq in 0, 1, 3, 2, 3:       # one late, one twice
        sock.send(frame(data(0, seq)))
    assert settled(sink) == (4, 1, 1, 0, 0, 1)
    sock.send(frame(data(0, 4), source=("10.0.0.2", 40001)))
    sock.send(frame(data(1, 0), source=("10.0.0.3", 40001), port=9001))
    assert settled(sink) == (6, 1, 1, 0, 1, 1)
    assert sink.received_by_stream() == [5, 1]
    good = frame(data(0, 5))
    for i in (24, 25, 34, 40, 42, 46, 50, 58, 66, 74, 90, len(good) - 1):      # IP and UDP checksum, each field, filler
        sock.send(good[:i] + bytes([good[i] ^ 1]) + good[i + 1:])
    right_checksums = bytearray(data(0, 5))
    right_checksums[60] ^= 1
    sock.send(frame(bytes(right_checksums)))        # only our own check can tell
    sock.send(good[:40] + b"\0\0" + good[42:])      # UDP checksum taken out
    sock.send(frame(data(0, 5)[:60]))
    sock.send(frame(data(2, 0)))                    # no such stream
    sock.send(b"\x06" + good[1:])                   # somebody else's MAC
    assert settled(sink) == (6, 1, 1, 17, 1, 1)
    sock.send(frame(data(0, 5), port=9002))         # not ours: other port, fragment, protocol
    sock.send(frame(data(0, 5), frag=10))
    sock.send(frame(data(0, 5), port=8999))
    sock.send(good)
    assert settled(sink) == (7, 1, 1, 17, 1, 1)
    assert sink.drops() == 0


def test_sink_logs_delay_and_lossy_silence_but_not_a_held_up_sender(wire: tuple[Sink, socket.socket]) -> None:
    sink, sock = wire
    sock.send(frame(data(0, 0, total=0)))
    time.sleep(0.05)
    sock.send(frame(data(0, 1, total=1)))       # 50 ms of silence, nothing missing
    time.sleep(0.05)
    sock.send(frame(data(0, 3, total=5)))       # 50 ms of silence, 2..4 missing
    time.sleep(0.05)
    sock.send(frame(data(0, 4, total=6, ago_ms=400)))
    time.sleep(0.05)
    spells = sink.episodes()                    # a busy machine adds short delays of its own
    assert [(e["seq"], e["gap_ns"] >= 50e6) for e in spells if e["gap_ns"]] == [(3, True)]
    assert [(e["seq"], e["frames"]) for e in spells if e["delay_ns"] >= 400e6] == [(4, 1)]
    assert sink.delay_ns_max == spells[-1]["delay_ns"]


def test_sink_says_when_it_was_too_slow() -> None:
    name = f"t{os.getpid()}-slow"
    netns.remove(name)
    netns.create(name)
    try:
        def build() -> tuple[Sink, socket.socket, socket.socket]:
            netns.set_flags("lo", netns.UP)
            to = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            deaf(to)
            to.bind(("127.0.0.1", 9000))
            return Sink("lo", 9000, 1, 1, 64), to, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        sink, to, by = netns.run_in(name, build)
        by.connect(("127.0.0.1", 9000))
        for _ in range(17_000):     # nobody reads the ring of 16,384; a refused port would raise here
            by.send(b"x")
        assert sink.drops() == 17_000 - 16_384
        assert sink.drops() == 17_000 - 16_384
        to.close()
        by.close()
    finally:
        netns.remove(name)


def test_deaf_socket_and_endpoints_of_tcp() -> None:
    wrong = tcp.block(7, 1, 300)
    for i in (0, 5, 9, 13, 17, 21, 25, 28, 299):
        bent = bytearray(wrong)
        bent[i] ^= 1
        seen: list[str] = []

        class Probe(tcp.Blocks):
            def on_block(self, conn: int, seq: int, length: int, ip: int, port: int) -> bool:
                seen.append("block")  # noqa: B023
                return True

            def on_corrupt(self) -> None:
                seen.append("corrupt")  # noqa: B023

        probe = Probe()
        probe.data_received(wrong[:100])
        probe.data_received(wrong[100:] + bytes(bent) + b"\0" * 300)
        assert seen[0] == "block" and set(seen[1:]) == {"corrupt"}, i
