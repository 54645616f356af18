"""A scapy socket over any port: scapy's sr, sniff, send and answering machines work on it.

        from scapy.all import ARP, Ether
        with PortSocket(open_port("afpacket:veth-c@client")) as s:
            reply = s.sr1(Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.0.0.1"), timeout=1)

Importing this module imports scapy (0.7 s): import it where it is needed.
"""

from __future__ import annotations

import select
import time
from collections import deque
from typing import Any

from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.supersocket import SuperSocket

from nfckpt.native.burst import Burst
from nfckpt.ports.port import Port

__all__ = ["PortSocket"]

IDLE_MS = 1                     # between two looks at a port that cannot be polled


class PortSocket(SuperSocket):
    """Sends and receives Ethernet frames; owns `port` and closes it. Not for more than one thread at a time, except that
    scapy's sr may send from one thread while it receives in another."""

    desc = "a port of nfckpt"
    nonblocking_socket = True

    def __init__(self, port: Port, *, send_timeout_ms: int = 1000) -> None:
        self.port = port
        self.send_timeout_ms = send_timeout_ms
        self.ins = self.outs = None  # type: ignore[assignment]  # there is no socket below
        self._burst = Burst()
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._to_wall_ns = time.time_ns() - time.monotonic_ns()

    def fileno(self) -> int:
        return self.port.fileno()

    def send(self, x: Packet | bytes) -> int:
        """Bytes sent: all, or 0 when the port refused the frame or stayed full for send_timeout_ms."""
        frame = bytes(x)
        if isinstance(x, Packet):
            x.sent_time = time.time()
        deadline = time.monotonic_ns() + self.send_timeout_ms * 1_000_000
        while (taken := self.port.tx_frame(frame)) == 0 and time.monotonic_ns() < deadline:
            self.port.tx_flush()
            time.sleep(IDLE_MS / 1e3)
        while self.port.tx_flush() and time.monotonic_ns() < deadline:
            time.sleep(IDLE_MS / 1e3)
        return len(frame) if taken > 0 else 0

    def recv_raw(self, x: int = 0) -> tuple[Any, bytes | None, float | None]:
        if not self._ready():
            return None, None, None
        frame, ts = self._waiting.popleft()
        return Ether, frame, (ts + self._to_wall_ns) / 1e9

    def _ready(self) -> bool:
        if not self._waiting:
            self._burst.reset()
            self.port.rx_burst(self._burst, 32)
            self._waiting.extend(zip(self._burst.frames(), self._burst.ts.tolist(), strict=True))
        return bool(self._waiting)

    @staticmethod
    def select(sockets: list[Any], remain: float | None = None) -> list[Any]:
        """Those of `sockets` that have something, after at most `remain` seconds (None: as long as it takes)."""
        deadline = None if remain is None else time.monotonic() + remain
        while True:
            ready = [s for s in sockets if isinstance(s, PortSocket) and s._ready()]
            others = [s for s in sockets if not isinstance(s, PortSocket)]
            if others:
                ready += select.select(others, [], [], 0)[0]
            if ready or (deadline is not None and time.monotonic() >= deadline):
                return ready
            time.sleep(IDLE_MS / 1e3)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.port.close()
