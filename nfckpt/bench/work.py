"""Work: what the app does while it is measured: lines written anywhere, or a NAT's flows; over memory ports that feed themselves."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nfckpt.native.bench import Fed, Generator, LineWriter
from nfckpt.native.burst import Burst
from nfckpt.native.headers import parse_burst
from nfckpt.native.port import Port
from nfckpt.packet import build
from nfckpt.ports.memory import MemoryHub

__all__ = ["FRAME_BYTES", "NAT", "Segments", "line_writer", "nat_frames", "segments", "teach"]

FRAME_BYTES = 64
SLOTS = 1 << 16
HOST, HOST_IP = "02:00:00:00:00:05", "10.0.0.5"
GATE, GATE_IP = "02:00:00:00:00:fe", "198.51.100.254"
REMOTE_IP = "192.0.2.9"
NAT: dict[str, Any] = {"inside_ip": "10.0.0.1", "outside_ips": ["198.51.100.1"], "gateway": GATE_IP, "flows_max": 4096}
INSIDE_MAC = "02:6e:66:00:00:01"


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return int(~(total + (total >> 16)) & 0xffff)


def udp_frame(src_port: int, nbytes: int = FRAME_BYTES, *, remote: int | str = REMOTE_IP, rng: random.Random | None = None) -> bytes:
    """Ethernet, IPv4, UDP from the host inside to port 53 of the remote, `nbytes` long in all. Without `rng` id, checksum and payload
    are zeros; with it what a real one's are for who cannot know them."""
    ident, check, payload = (rng.randrange(1 << 16), rng.randrange(1, 1 << 16), rng.randbytes(nbytes - 42)) if rng else (0, 0, bytes(nbytes - 42))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, nbytes - 14, ident, 0, 64, 17, 0, build.ip4(HOST_IP), build.ip4(remote))
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    udp = struct.pack("!HHHH", src_port, 53, nbytes - 34, check)
    return build.mac_bytes(INSIDE_MAC) + build.mac_bytes(HOST) + b"\x08\x00" + head + udp + payload


def nat_frames(flows: int) -> list[bytes]:
    """One frame of each of `flows` flows, from inside."""
    return [udp_frame(10_000 + i) for i in range(flows)]


def neighbours() -> list[tuple[int, bytes]]:
    """(port, frame): the host inside and the gateway outside say where they are."""
    return [(0, build.arp_request(HOST, HOST_IP, NAT["inside_ip"])), (1, build.arp_request(GATE, GATE_IP, NAT["outside_ips"][0]))]


def teach(app: Any, now_ns: int) -> None:
    """Let a NAT hear its neighbours, outside of any pair's sight but in its arena. `app`: a NativeFunction after `declare`."""
    burst = Burst()
    for port, frame in neighbours():
        burst.push(frame, port)
    parse_burst(burst)
    app.process(burst, now_ns)


@dataclass(frozen=True)
class Segments:
    """The active's ports, and what the standby needs to tap the same segments (nothing, where they are the active's alone)."""

    ports: list[Port]
    generator: Generator
    tap: list[dict[str, Any]]
    fds: list[int]


@contextlib.contextmanager
def segments(frames: list[bytes], count: int = 1, *, limit: int | None = None, tapped: bool = False) -> Iterator[Segments]:
    """`count` segments in memory. Into the first go `frames`, in turn, as fast as the active reads them. `tapped`: the standby
    sees them too, so they are hubs in shared memory, fed by the active's core; else ports that make their frames."""
    if not tapped:
        alone = Generator(frames, limit)
        yield Segments([alone, *(Generator([frames[0]], 0) for _ in range(count - 1))], alone, [], [])
        return
    slot_bytes = max(map(len, frames))
    with contextlib.ExitStack() as stack:
        hubs = [stack.enter_context(MemoryHub(3, SLOTS, slot_bytes)) for _ in range(count)]
        generator = Generator(frames, limit)
        ports: list[Port] = [stack.enter_context(hub.open(1)) for hub in hubs]
        ports[0] = Fed(generator, stack.enter_context(hubs[0].open(0)), ports[0])     # type: ignore[arg-type]
        yield Segments(ports, generator, [hub.endpoint_spec(2) for hub in hubs], [fd for hub in hubs for fd in hub.fds])


def line_writer(arena_bytes: int) -> LineWriter:
    """An app that dirties one line a frame, uniform over the arena but its first page."""
    app = LineWriter(arena_bytes - (64 << 10))
    app.seed(1)
    return app
