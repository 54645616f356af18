"""What an epoch costs on a TCP channel: every byte of both directions as the kernel counted it, framing, seals and acks included.

    client ─► memory ports ─┬─► agent, NAT, gate ─► ActivePath, encoder ══ TCP on loopback ══ decoder, StandbyPath ─► arena
                            └─► tap ────────────────────────────────────────────────────────────────┘

One process plays all, in lock-step: every burst is an epoch, sent and acknowledged by itself, so no framing is shared. Bytes are what
either kernel end received (TCP_INFO; IP and TCP headers are not in it). Bytes, so there are no slices: one run.

    wire_ratio         bytes of the channel without those for frames ÷ bytes of state whose value changed
    wire_frame_ratio   bytes for frames (names of inputs, outputs) ÷ bytes of the frames

Traffic: bursts of 32 UDP frames with random payload at 100,000 frames/s of the app's clock, each of a flow drawn from all that are open;
one in fifty opens a flow. That clock begins at CLOCK_NS in every run, for which bytes of a stamp change depends on it. The fewer flows, the fewer of a time stamp's bytes change and the nearer are the lines: less to divide by.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time

import numpy as np

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.loopback import Loopback
from nfckpt.bench.pair import SECRET
from nfckpt.bench.work import FRAME_BYTES, NAT, SLOTS, neighbours, udp_frame
from nfckpt.native.nat import NativeNat
from nfckpt.native.port import Port
from nfckpt.native.tcp_channel import TcpChannel
from nfckpt.ports.memory import MemoryHub
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions

KEYS = ("wire_ratio", "wire_frame_ratio")
BURST, BURST_NS, CLOCK_NS = 32, 320_000, 10**15
FLOWS_MAX, REMOTES, FRESH = 65_536, 250, 0.02
EPOCHS = 1000
TCPI_BYTES_RECEIVED = 128       # offset in struct tcp_info of linux/tcp.h


def tcp_pair() -> tuple[TcpChannel, TcpChannel]:
    """A channel over loopback, both ends."""
    options = TcpOptions(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener, connect = TcpListener(server, options), TcpConnect(server.getsockname(), options)
        here = there = None
        deadline = time.monotonic() + 5
        while here is None or there is None:
            here = here or connect.poll()
            there = there or listener.poll()
            if time.monotonic() > deadline:
                raise TimeoutError("no channel over loopback within 5 s")
        listener.close()
        return here, there


def bytes_received(end: TcpChannel) -> int:
    """Payload bytes that this end's kernel has taken from the wire."""
    with socket.socket(fileno=socket.dup(end.fileno())) as sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("<Q", info, TCPI_BYTES_RECEIVED)[0])


class Wire:
    """The pair over `ends`, and a client on the segments of both ports (`hubs`). Counts `changed` bytes of state."""

    def __init__(self, app: NativeNat, hubs: list[MemoryHub], ends: tuple[TcpChannel, TcpChannel], stack: contextlib.ExitStack) -> None:
        self.ends = ends
        self.clients, ports, tap = ([stack.enter_context(hub.open(i)) for hub in hubs] for i in range(3))
        both: list[list[Port]] = [list(ports), list(tap)]
        self.loop = Loopback(app, both[0], app.config.arena_bytes, ends, both[1])
        self.loop.commit()                                              # what is declared
        self.shadow = self.loop.arena.view().reshape(-1, 64).copy()
        self.changed, self.at_ns = 0, CLOCK_NS

    def epoch(self, frames: list[tuple[int, bytes]]) -> None:
        """(port, frame): one burst, to its commit."""
        for port, frame in frames:
            self.clients[port].tx_frame(frame)
        for client in self.clients:
            client.tx_flush()
        self.at_ns += BURST_NS
        while self.loop.feed(BURST, self.at_ns):
            pass
        lines = self.loop.arena.dirty_line_numbers()
        now = self.loop.arena.view().reshape(-1, 64)[lines]
        self.changed += int(np.count_nonzero(now != self.shadow[lines]))
        self.shadow[lines] = now
        self.loop.commit()

    def counts(self) -> np.ndarray:
        """Bytes: on the channel, of them for frames, changed."""
        return np.array([sum(map(bytes_received, self.ends)), self.loop.encoder.frame_bytes, self.changed])


def measure(scale: Scale) -> list[Figure]:
    flows_max, epochs = scale.small(FLOWS_MAX, 1024), scale.small(EPOCHS, 20)
    app, rng = NativeNat(**{**NAT, "flows_max": flows_max}), random.Random(1)
    opened, first = 0, flows_max - round(1.2 * FRESH * epochs * BURST)

    def fresh() -> tuple[int, bytes]:
        nonlocal opened
        opened += 1
        return of(opened - 1)

    def of(flow: int) -> tuple[int, bytes]:
        return 0, udp_frame(1024 + flow // REMOTES, FRAME_BYTES, remote=0xC0000200 + flow % REMOTES, rng=rng)

    with contextlib.ExitStack() as stack:
        ends = tcp_pair()
        for end in ends:
            stack.callback(end.close)
        wire = Wire(app, [stack.enter_context(MemoryHub(3, SLOTS, 256)) for _ in range(2)], ends, stack)
        wire.epoch(neighbours())
        while opened < first:
            wire.epoch([fresh() for _ in range(min(BURST, first - opened))])
        before = wire.counts()
        for epoch in range(epochs):
            scale.tick(f"epoch {epoch} of {epochs}")
            wire.epoch([fresh() if opened < flows_max and rng.random() < FRESH else of(rng.randrange(opened)) for _ in range(BURST)])
        total, for_frames, changed = (int(n) for n in wire.counts() - before)
        digest = wire.loop.equal()
    settings = {"arena_bytes": wire.loop.arena.size, "burst": BURST, "flows_max": flows_max, "flows": opened, "channel": "tcp",
                "encoding": "deltas, tap opened", "frames_per_s": BURST * 10**9 // BURST_NS, "new_flows": FRESH, "clock_ns": CLOCK_NS, "epochs": epochs,
                "frame_bytes": FRAME_BYTES, "app": "nfckpt.native.nat:NativeNat"}
    note = (f"{total / epochs:.0f} bytes an epoch, {for_frames / epochs:.0f} of them for frames; {changed / epochs:.0f} bytes of state changed; "
            "with fewer flows fewer do, and the ratio grows")
    return [
        Figure("wire_ratio", (total - for_frames) / max(1, changed), limit=1.0, limit_what="the changed bytes alone", settings=settings,
               digest=digest, note=note),
        Figure("wire_frame_ratio", for_frames / (epochs * BURST * FRAME_BYTES), limit=1.0, limit_what="the frames alone", settings=settings,
               digest=digest),
    ]
