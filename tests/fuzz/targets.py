"""Targets: each takes any bytes, and raises only when a promise is broken."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from nfckpt.config import PairConfig, example, loads
from nfckpt.errors import ConfigError, PeerError, PortError
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochRecord
from nfckpt.native.headers import parse_burst
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.ports.pcap import PcapReader
from nfckpt.wire.messages import decode_ack, decode_control, encode_ack, encode_control
from nfckpt.wire.tcp import TcpConnect, TcpOptions
from tests import headers_twin
from tests.frames import fix_ip4
from tests.fuzz import NAMES
from tests.native_lab import SECRET, ListPort

__all__ = ["CORPUS", "TARGETS", "kept", "mutate"]

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
ARENA_BYTES = 1 << 16

_arena = Arena(ARENA_BYTES)
_ports = [ListPort(), ListPort()]
_tap = Tap(_ports, SECRET, 1, 256, 1 << 18, 256, 1 << 18)
_burst = Burst()
_fed = Tap(_ports, SECRET, 1, 256, 1 << 18, 256, 1 << 18, fed=True)
_follower = StandbyPath(_fed, _arena, SECRET, 0)
_follower.begin(1, 1, 1)


def _connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of TCP on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = socket.create_connection(listening.getsockname())
        return ours, listening.accept()[0]


def wire(data: bytes) -> None:
    """Control messages and acks: PeerError, or a message that says the same after another round."""
    for decode, encode in ((decode_control, encode_control), (decode_ack, encode_ack)):
        with contextlib.suppress(PeerError):
            message = decode(memoryview(data))                      # type: ignore[operator]
            assert decode(memoryview(encode(message))) == message   # type: ignore[operator]


def handshake(data: bytes) -> None:
    """A stranger's first bytes on a TCP channel: PeerError, or not yet; never a channel."""
    ours, theirs = _connected()
    with ours, theirs:
        theirs.sendall(data[:65536])
        theirs.shutdown(socket.SHUT_WR)
        end = TcpConnect(ours, TcpOptions(bytes(32)))
        with contextlib.suppress(PeerError):
            for _ in range(4):
                assert end.poll() is None
        end.close()


def epoch(data: bytes) -> None:
    """A record: PeerError, or it can be registered, applied and undone, and the arena is what it was. Tried as it is, and with magic,
    version and length put right, or most would stop there."""
    mended = bytearray(data)
    if len(mended) >= 144:
        mended[0:6] = b"NFE1\x02\x00"
        mended[104:112] = len(mended).to_bytes(8, "little")
    for memory in (bytearray(data), mended):
        try:
            record = EpochRecord(memory, _arena, len(_ports))
        except PeerError:
            continue
        _tap.reset()
        before = _arena.digest()
        record.register(_tap, 1)
        record.swap(_arena)
        record.agrees(_arena, SECRET)
        record.unswap(_arena)
        assert _arena.digest() == before


def shipment(data: bytes) -> None:
    """Inputs from the active: PeerError and nothing taken, or as many frames as it says. As it is, and in our session."""
    for one in (data, (1).to_bytes(8, "little") + data[8:]):
        _fed.reset()
        _fed.open()
        before = _fed.counters()["seen"]
        try:
            _follower.inputs(one, 1)
        except PeerError:
            assert _fed.counters()["seen"] == before
        _fed.held_inputs()


def frame(data: bytes) -> None:
    """A frame: every column as the parser's twin in plain Python has it. With its IPv4 checksum as it is, and put right."""
    for one in (data[:9216], fix_ip4(data[:9216])):
        _burst.reset()
        _burst.push(one)
        parse_burst(_burst)
        want = headers_twin.parse(one)
        got = {name: int(getattr(_burst, name)[0]) for name in want if not name.endswith("6")}
        got |= {name: getattr(_burst, name)[0].tobytes() for name in ("src_ip6", "dst_ip6")}
        assert got == want and _burst.frame(0) == one


def config(data: bytes) -> None:
    """A pair's TOML: ConfigError that says where, or a configuration."""
    try:
        assert isinstance(loads(data.decode(errors="replace"), "pair.toml"), PairConfig)
    except ConfigError as e:
        assert e.message.startswith("pair.toml:") and e.message.split(":")[1].isdigit(), e.message


def pcap(data: bytes) -> None:
    """A capture: PortError, or frames of at most 9216 bytes, and an end."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        try:
            reader = PcapReader(f"/proc/self/fd/{fd}")
        except PortError:
            return
        try:
            while (one := reader.read()) is not None:
                assert len(one[0]) <= 9216
        finally:
            reader.close()
    finally:
        os.close(fd)


TARGETS: dict[str, Callable[[bytes], None]] = {name: globals()[name] for name in NAMES}


def kept(target: str) -> list[bytes]:
    """The corpus of a target, by name."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, changed in a few places the way parsers dislike."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(6)
        if how == 0:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 1:
            del data[at:at + rng.randrange(1, 17)]
        elif how == 2 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif how == 3:
            size = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data), len(data) + 1, rng.getrandbits(64)))
            data[at:at + size] = value.to_bytes(8, "little")[:size]
        elif how == 4:
            del data[at:]
        else:
            other = rng.choice(seeds)
            cut = rng.randrange(len(other) + 1)
            data[at:] = other[cut:]
    return bytes(data)


def seeds() -> dict[str, dict[str, bytes]]:
    """target → name → what the corpus begins with: one whole input of every kind."""
    from nfckpt.native.agent import Agent
    from nfckpt.native.epoch import EpochWriter
    from nfckpt.native.gate import Gate
    from nfckpt.native.sync import PageSync
    from nfckpt.wire import messages as m
    from tests.frames import well_formed
    out: dict[str, dict[str, bytes]] = {name: {} for name in TARGETS}
    for message in (m.Hello("p", "a", m.PROTOCOL, bytes(32), b"k"), m.Refuse("why", True), m.Welcome(1, 2, 3, 4), m.TapOpen(1), m.Whole(1),
                    m.Protected(1, 2), m.Parting(1), m.Prepare(1, 2), m.Ready(1, 2), m.Handover(1, 2), m.Leave(1)):
        out["wire"][type(message).__name__.lower()] = encode_control(message)
    out["wire"]["ack"] = encode_ack(m.Ack(1, 2, 3, 4, 5, 6))
    ours, theirs = _connected()
    with ours, theirs:
        end = TcpConnect(ours, TcpOptions(bytes(32)))
        for _ in range(3):
            end.poll()
        out["handshake"]["reflected"] = theirs.recv(65536)
    port = [ListPort(), ListPort()]
    arena = Arena(ARENA_BYTES)
    arena.region("r", 8192)
    gate = Gate(port)
    agent = Agent(port, arena, gate, SECRET)
    writer, sync = EpochWriter(SECRET), PageSync(arena, 4)
    sync.begin()
    for name in ("empty", "full", "pages"):
        if name != "empty":
            agent.recording = True
            for n in range(3):
                port[n % 2].arrive(bytes([n]) * 60, 1)
            burst = Burst()
            while agent.rx_burst(burst):
                agent.drop(burst)
            agent.emit(1, b"o" * 61)
            arena.write_bytes(4096 + 64, b"line" * 40)
        out["epoch"][name] = bytes(writer.build(arena, gate, agent.names, 1, 2, 3, 4, 5, 3, sync, name == "pages"))
    for n, packet in enumerate(well_formed()):
        out["frame"][f"{n:02}"] = bytes(packet)
    out["config"] = {"example": example().encode(), "least": b'[pair]\nname="p"\napp="m:C"\n[nodes.a]\nports=["mem:1"]\n[nodes.b]\nports=["mem:2"]\n',
                     "inline": b'pair = {name = "p", app = "m:C", profile = "hosts"}\n[nodes]\na = {ports = ["x"], address = "h:1"}\nb.ports = []\n'}
    head = struct.pack("<2Q", 1, 0)
    out["shipment"] = {"told": head, "stands": head + struct.pack("<2HI", 1, 0, 7),
                       "frames": head + struct.pack("<2HI", 0, 60, 8) + bytes(64) + struct.pack("<2HI", 1, 61, 9) + bytes(64)}
    record = struct.pack("<4I", 1, 2, 60, 60) + bytes(60)
    out["pcap"] = {"ns": struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1) + 2 * record,
                   "us_big_endian": struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack(">4I", 1, 2, 60, 60) + bytes(60)}
    return out
