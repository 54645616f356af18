"""What an epoch costs on a TCP channel: every byte of both directions as the kernel counted it, framing, seals and acks included.

Of a record, names and outputs (the frames' part) are counted apart from the rest. `wire_ratio`: the rest ÷ bytes of state whose value
changed; `wire_frame_ratio`: the frames' part ÷ bytes of the frames themselves. Bytes, so there are no slices: one run.
"""

from __future__ import annotations

import socket
import struct
import time

import numpy as np

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.loopback import Loopback
from nfckpt.bench.pair import SECRET
from nfckpt.bench.work import FRAME_BYTES, NAT, nat_frames, segments, teach
from nfckpt.native.nat import NativeNat
from nfckpt.native.tcp_channel import TcpChannel
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions

KEYS = ("wire_ratio", "wire_frame_ratio")
BURST, FLOWS = 32, 1024
TCPI_BYTES_ACKED = 120          # offset in struct tcp_info of linux/tcp.h


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


def bytes_acked(end: TcpChannel) -> int:
    """Payload bytes of this end that the kernel delivered."""
    with socket.socket(fileno=socket.dup(end.fileno())) as sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("<Q", info, TCPI_BYTES_ACKED)[0])


def frame_bytes(record: bytes) -> int:
    """Bytes of names and outputs in an epoch record (drawn in native/epoch.pyx)."""
    names, _, outputs = struct.unpack_from("<III", record, 64)
    return int(names * 8 + (names + 7) // 8 * 8 + outputs)


def measure(scale: Scale) -> list[Figure]:
    app = NativeNat(**NAT)
    ends = tcp_pair()
    try:
        with segments(nat_frames(scale.small(FLOWS, 64)), 2) as s:
            both = Loopback(app, s.ports, app.config.arena_bytes, ends)
            teach(app, time.monotonic_ns())
            for _ in range(scale.small(FLOWS, 64) // BURST + 1):         # every flow is open before the count
                both.feed(BURST)
                both.commit()
            changed = in_frames = frames = epochs = 0
            before = both.arena.view().copy()
            sent = sum(map(bytes_acked, ends))
            until = time.monotonic() + (0.02 if scale.tiny else scale.seconds / 2)
            while time.monotonic() < until:
                scale.tick(f"epoch {epochs}")
                both.feed(BURST)
                both.commit()
                now = both.arena.view()
                changed += int(np.count_nonzero(before != now))
                before[:] = now
                in_frames += frame_bytes(both.last)
                frames += BURST
                epochs += 1
            for _ in range(100):                                        # the last ack of the kernel's
                total = sum(map(bytes_acked, ends)) - sent
                time.sleep(0.001)
            digest = both.equal()
    finally:
        for end in ends:
            end.close()
    settings = {"arena_bytes": both.arena.size, "burst": BURST, "flows": FLOWS, "channel": "tcp", "encoding": "raw lines", "epochs": epochs,
                "app": "nfckpt.native.nat:NativeNat"}
    state, of_frames = (total - in_frames) / max(1, changed), in_frames / (frames * FRAME_BYTES)
    return [
        Figure("wire_ratio", state, limit=1.0, limit_what="the changed bytes alone", settings=settings, digest=digest,
               note=f"{total / epochs:.0f} bytes an epoch, {in_frames / epochs:.0f} of them for frames; {changed / epochs:.0f} bytes changed"),
        Figure("wire_frame_ratio", of_frames, limit=1.0, limit_what="the frames alone", settings=settings, digest=digest),
    ]
