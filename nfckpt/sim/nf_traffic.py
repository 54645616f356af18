"""Traffic of a check_nf: frames with their ports and times, cut into steps that can be run, killed and run again.

Picture     (port, frame, at_ns) …  ──►  Step 0: 3 frames of port 0 │ Step 1: tick │ Step 2: 8 frames of port 1 │ …

A step is one burst (of one port: in which order two ports are polled is nobody's promise) or one call of `on_tick`. Time stands
still in a step, as `ctx.now_ns` does.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from nfckpt.errors import ConfigError
from nfckpt.native.rewrite import internet_checksum
from nfckpt.ports.pcap import PcapReader

__all__ = ["Step", "Traffic", "from_pcaps", "made_up", "steps_of"]

Traffic = Sequence[tuple[int, bytes] | tuple[int, bytes, int]]
FIRST_NS = 1_000_000_000
GAP_NS = 1_000_000


@dataclass(frozen=True, eq=False)
class Step:
    """One burst, or one tick (`frames` is empty then). `number` stays when others around it are taken away."""

    number: int
    port: int
    frames: tuple[bytes, ...]
    now_ns: int

    @property
    def is_tick(self) -> bool:
        return not self.frames


def from_pcaps(paths: Sequence[str | PathLike[str]]) -> list[tuple[int, bytes, int]]:
    """The frames of one capture for each port, merged by time, which begins at FIRST_NS. Raises PortError."""
    rows: list[tuple[int, bytes, int]] = []
    for port, path in enumerate(paths):
        reader = PcapReader(path)
        try:
            while (one := reader.read()) is not None:
                if one[0]:
                    rows.append((port, *one))
        finally:
            reader.close()
    rows.sort(key=lambda row: row[2])
    began = rows[0][2] if rows else 0
    return [(port, frame, at - began + FIRST_NS) for port, frame, at in rows]


def steps_of(traffic: Traffic, *, ports: int, tick_ms: int, burst_frames: int) -> list[Step]:
    """Consecutive frames of one port become bursts of up to `burst_frames`; ticks fall due between them. A frame without a
    time comes GAP_NS after the one before. Raises ConfigError for a port or a frame that the app cannot have."""
    groups: list[tuple[int, list[bytes], int]] = []
    now = FIRST_NS
    for n, row in enumerate(traffic):
        port, frame = row[0], bytes(row[1])
        if not 0 <= port < ports or not 0 < len(frame) <= 9216:
            raise ConfigError(f"frame {n}: {len(frame)} bytes on port {port} of {ports}", "ports count from 0; 1 to 9216 bytes")
        if groups and groups[-1][0] == port and len(groups[-1][1]) < burst_frames:
            groups[-1][1].append(frame)
            now = max(now, row[2]) if len(row) == 3 else now
            continue
        now = max(now, row[2]) if len(row) == 3 else now + GAP_NS
        groups.append((port, [frame], now))
    steps: list[Step] = []
    next_tick = FIRST_NS
    for port, frames, at in groups:
        while tick_ms and at >= next_tick:
            steps.append(Step(len(steps), 0, (), next_tick))
            next_tick = max(next_tick + tick_ms * 1_000_000, at - 50 * tick_ms * 1_000_000)     # a pause has 50 ticks at most
        steps.append(Step(len(steps), port, tuple(frames), at))
    return steps


def made_up(ports: int, seed: int, n: int = 200) -> list[tuple[int, bytes]]:
    """Frames for an app about which nothing is known: flows of UDP and TCP that go both ways, some of them identical; ARP, ICMP,
    fragments, frames that are no IP, cut short or no frame at all."""
    rng = random.Random(seed)
    flows = [(rng.randrange(1, 6), rng.randrange(1, 4), rng.choice((6, 17)), rng.randrange(1024, 65536)) for _ in range(6)]
    out: list[tuple[int, bytes]] = []
    while len(out) < n:
        port = rng.randrange(ports)
        for _ in range(rng.randrange(1, 9)):
            host, server, proto, sport = rng.choice(flows)
            pair = (bytes((10, 0, 0, host)), bytes((192, 0, 2, server)))
            source, target = pair if port == 0 else pair[::-1]
            numbers = (sport, 53) if port == 0 else (53, sport)
            what = rng.random()
            if what < 0.75:
                body = rng.choice((b"", b"again", rng.randbytes(rng.randrange(64))))
                l4 = (struct.pack("!HHHH", *numbers, 8 + len(body), 0) if proto == 17
                      else struct.pack("!HHIIBBHHH", *numbers, rng.randrange(9), 0, 80, rng.choice((2, 16, 17, 4)), 1024, 0, 0)) + body
                frame = _ether(0x0800) + _ip(source, target, proto, l4, 0x2000 if what < 0.03 else 0)
            elif what < 0.85:
                frame = _ether(0x0806) + bytes.fromhex("0001080006040001020000000001") + source + bytes(6) + target
            elif what < 0.92:
                frame = _ether(0x0800) + _ip(source, target, 1, bytes.fromhex("0800f7ff00000000"), 0)
            else:
                frame = (_ether(rng.choice((0x86DD, 0x88B5, 0x8100, 0x0800))) + rng.randbytes(rng.randrange(60)))[:rng.choice((14, 20, 34, 60))]
            out.append((port, frame.ljust(60, b"\0") if rng.random() < 0.9 else frame))
    return out[:n]


def _ether(kind: int) -> bytes:
    return bytes.fromhex("02000000000102000000000a") + kind.to_bytes(2, "big")


def _ip(source: bytes, target: bytes, proto: int, l4: bytes, fragment: int) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(l4), 1, fragment, 64, proto, 0) + source + target
    return head[:10] + internet_checksum(head).to_bytes(2, "big") + head[12:] + l4

