"""What an epoch costs on a wire: NAT over TCP, encoded and plain, in bytes of the channel and in time.

    client ─► memory ports ─┬─► agent, NAT, gate ─► ActivePath ══ TCP on loopback ══ StandbyPath ─► arena
                            └─► tap ────────────────────────────────────────────────────┘

One process plays all, in lock-step: every burst is an epoch, sent and acknowledged by itself, so no framing is shared. Bytes
are the kernel's own count of what either end of the connection received (TCP_INFO; 44-byte IP and TCP headers are not in it).

    wire_ratio         bytes of the channel, acks and framing included, without those for frames ÷ bytes of state whose value changed
    wire_frame_ratio   bytes for frames (names of inputs, outputs) ÷ bytes of the outputs held
    encode_ns, decode_ns   a frame: difference of the medians of a poll that captures (a commit), encoded less plain, in turn

Traffic: bursts of 32 UDP frames with random payload, at 100,000 frames/s of the app's clock, each of a flow drawn from
`flows`; one in fifty opens a flow. Both arenas must end equal, as a whole.

    python tests/bench/bench_delta.py [--json] [--bursts 2000] [--flows 16384] [--bytes 64]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import struct
import sys
import time
from typing import Any

import numpy as np

from nfckpt.apps.nat_plan import NatConfig
from nfckpt.checkpoint.delta import DeltaEncoder
from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.nat import NativeNat
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.native.tcp_channel import TcpChannel
from nfckpt.packet import build
from nfckpt.ports.memory import MemoryPort
from nfckpt.state.state import State
from nfckpt.wire import kinds
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions

SECRET = bytes(range(7, 39))
HOST, GATEWAY = "02:00:00:00:00:05", "02:00:00:00:00:fe"
NAT = {"inside_ip": "10.0.0.1", "inside_prefix": 16, "outside_ips": ["198.51.100.1"], "gateway": "198.51.100.254"}
BURST, BURST_NS, SKEW_NS = 32, 320_000, 20_000_000
TCP_INFO_RECEIVED = struct.Struct("<128xQ")             # tcpi_bytes_received of struct tcp_info, linux/tcp.h


def udp(flow: int, nbytes: int, rng: random.Random) -> bytes:
    """A frame of flow number `flow` from the inside to the world."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, nbytes - 14, rng.randrange(1 << 16), 0, 64, 17, 0,
                     build.ip4(0x0A000005), build.ip4(0xC0000200 + flow % 250))
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + ip[12:]
    l4 = struct.pack("!HHHH", 1024 + flow // 250, 53, nbytes - 34, rng.randrange(1, 1 << 16))
    return build.mac_bytes("02:6e:66:00:00:01") + build.mac_bytes(HOST) + b"\x08\x00" + ip + l4 + rng.randbytes(nbytes - 42)


def tcp_pair() -> tuple[TcpChannel, TcpChannel]:
    options = TcpOptions(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener, connect = TcpListener(server, options), TcpConnect(server.getsockname(), options)
        a = b = None
        while a is None or b is None:
            a, b = a or listener.poll(), b or connect.poll()
    return a, b


def received(t: TcpChannel) -> int:
    """Bytes that this end's kernel has taken from the wire."""
    with socket.socket(fileno=os.dup(t.fileno())) as s:
        return int(TCP_INFO_RECEIVED.unpack_from(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256))[0])


class Side:
    """A pair over one channel, encoded or plain."""

    def __init__(self, flows: int, encoded: bool) -> None:
        plan = {**NAT, "flows_max": 2 * flows}
        arena_bytes = NatConfig(**plan).arena_bytes         # type: ignore[arg-type]
        self.arena, self.copy = Arena(arena_bytes), Arena(arena_bytes)
        self.app = NativeNat(**plan)
        self.app.seed(1)
        self.app.declare(State(self.arena, seed=SECRET))
        State(self.copy, seed=SECRET)                       # as the active's: what declares itself writes nothing the record lacks
        cables = [MemoryPort.pair() for _ in range(4)]
        self.clients, self.taps = [c[0] for c in cables[:2]], [c[0] for c in cables[2:]]
        ports, tap_ports = [c[1] for c in cables[:2]], [c[1] for c in cables[2:]]
        self.gate = Gate(ports, 4096)
        self.agent = Agent(ports, self.arena, self.gate, SECRET)
        self.engine = Engine(Bounds())
        self.path = ActivePath(self.agent, self.engine, EpochWriter(SECRET), 256)
        self.encoder = DeltaEncoder(self.arena, SECRET, 16384, 4096)
        if encoded:
            self.path.encode_with(self.encoder)
        self.tap = Tap(tap_ports, SECRET, SKEW_NS)
        self.tap.open()
        self.standby = StandbyPath(self.tap, self.copy, SECRET, 0)
        self.standby.tap_open = True
        self.here, self.there = tcp_pair()
        now = time.monotonic_ns()
        self.path.begin(1, 1, now)
        self.standby.begin(1, 1, 1)
        self.path.tap_opened()
        self.agent.recording = self.path.holding = True
        self.path.sync.begin()                              # of what is declared: nothing else is there yet
        self.path.sync_pages = True
        self.burst, self.shadow = Burst(), np.zeros(arena_bytes // 64 * 64, np.uint8).reshape(-1, 64)
        self.app_ns = now
        self.changed = self.output_bytes = 0
        self.poll_ns: list[int] = []
        self.commit_ns: list[int] = []

    def epoch(self, frames: list[tuple[int, bytes]]) -> None:
        """One burst through app, channel and standby, to its release."""
        for port, frame in frames:
            assert self.clients[port].tx_frame(frame) == 1 and self.taps[port].tx_frame(frame) == 1
        for p in (*self.clients, *self.taps):
            p.tx_flush()
        self.app_ns += BURST_NS
        now = time.monotonic_ns()
        self.path.clock_offset_ns = self.app_ns - now
        while self.agent.rx_burst(self.burst, BURST):
            self.app.process(self.burst, self.app_ns)
            self.agent.finish(self.burst)
        self.tap.poll(now)
        lines = self.arena.dirty_line_numbers()
        value = self.arena.view().reshape(-1, 64)[lines]
        self.changed += int(np.count_nonzero(value != self.shadow[lines]))
        self.shadow[lines] = value
        began = time.perf_counter_ns()
        assert self.path.poll(now)
        self.poll_ns.append(time.perf_counter_ns() - began)
        staged = self.path.staged
        assert staged is not None and self.here.send(kinds.EPOCH, staged) and self.here.flush()
        self.path.shipped()
        while (message := self.there.recv()) is None:
            pass
        began = time.perf_counter_ns()
        assert self.standby.commit(message[1], now), self.standby.missing
        self.commit_ns.append(time.perf_counter_ns() - began)
        assert self.there.send(kinds.ACK, self.standby.ack(self.standby.epoch, now)) and self.there.flush()
        while (message := self.here.recv()) is None:
            pass
        self.path.on_ack(message[1], now, True)
        assert self.engine.outstanding == 0
        self.gate.release()
        for client, tap in zip(self.clients, self.taps, strict=True):
            self.burst.reset()
            while client.rx_burst(self.burst, BURST):
                for frame in self.burst.frames():
                    self.output_bytes += len(frame)
                    assert tap.tx_frame(frame) == 1
                self.burst.reset()
            tap.tx_flush()
        self.tap.poll(now)
        self.tap.age(self.standby.released_through)
        assert self.tap.waiting_inputs == self.tap.waiting_outputs == 0, self.tap.counters()

    def channel_bytes(self) -> int:
        return received(self.here) + received(self.there)

    def close(self) -> None:
        self.here.close()
        self.there.close()


def run(bursts: int = 2000, flows: int = 16384, nbytes: int = 64, seed: int = 1) -> dict[str, Any]:
    """One row: dict with the figures above and, for the plain records, the same ratios as plain_*."""
    rng = random.Random(seed)
    sides = {"encoded": Side(flows, True), "plain": Side(flows, False)}
    opened = 0

    def feed(frames: list[tuple[int, bytes]]) -> None:
        for side in rng.sample(list(sides.values()), 2):
            side.epoch(frames)

    feed([(0, build.arp_request(HOST, "10.0.0.5", "10.0.0.1")), (1, build.arp_request(GATEWAY, "198.51.100.254", "198.51.100.1"))])
    while opened < flows:
        n = min(BURST, flows - opened)
        feed([(0, udp(opened + i, nbytes, rng)) for i in range(n)])
        opened += n
    before = {name: (s.channel_bytes(), s.changed, s.output_bytes) for name, s in sides.items()}
    frames_before, skip = sides["encoded"].encoder.frame_bytes, len(sides["plain"].poll_ns)
    for _ in range(bursts):
        frames = []
        for _ in range(BURST):
            fresh = rng.random() < 0.02 and opened < flows * 3 // 2
            frames.append((0, udp(opened if fresh else rng.randrange(opened), nbytes, rng)))
            opened += fresh
        feed(frames)
    out: dict[str, Any] = {"bursts": bursts, "flows": flows, "frame_bytes": nbytes}
    frame_bytes = sides["encoded"].encoder.frame_bytes - frames_before
    for name, s in sides.items():
        channel, changed, outputs = (now - was for now, was in
                                     zip((s.channel_bytes(), s.changed, s.output_bytes), before[name], strict=True))
        names_and_outputs = frame_bytes if name == "encoded" else outputs + 9 * BURST * bursts
        prefix = "" if name == "encoded" else "plain_"
        out[f"{prefix}wire_ratio"] = (channel - names_and_outputs) / changed
        out[f"{prefix}wire_frame_ratio"] = names_and_outputs / outputs
        out["changed_bytes_per_epoch"] = changed / bursts
    for what in ("poll_ns", "commit_ns"):
        of = {name: statistics.median(getattr(s, what)[skip:]) for name, s in sides.items()}
        out["encode_ns" if what == "poll_ns" else "decode_ns"] = (of["encoded"] - of["plain"]) / BURST
    out["equal"] = all(bytes(s.arena.view()) == bytes(s.copy.view()) for s in sides.values())
    for s in sides.values():
        s.close()
    return out


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--json", action="store_true")
    p.add_argument("--bursts", type=int, default=2000)
    p.add_argument("--flows", type=int, default=16384)
    p.add_argument("--bytes", type=int, action="append")
    a = p.parse_args()
    rows = [run(a.bursts, a.flows, n) for n in a.bytes or (64, 1500)]
    if a.json:
        print(json.dumps(rows))
    for row in [] if a.json else rows:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return 0 if all(row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
