"""UDP endpoint: a paced sender and a sink that counts every number, on the client's side or the server's.

Picture     client 10.0.0.2:40000 stream 0 ─┐                        ┌─ server 198.51.100.2:9000
                   10.0.0.3:40001 stream 1 ─┼─ network function ─────┤  answers to the address it sees,
                   …                       ─┘                        └─ through the mapping the client opened

Before `ready` both sides exchange PROBEs until each stream's way there and back is known, so that address
resolution and the first mapping are not counted as loss. Formats and promises: nfckpt.native.traffic.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np

from nfckpt.native.traffic import Sender, Sink, datagram, deaf
from nfckpt.testbed.traffic.control import LIVE_S, Control, config, cpu_s, emit

FIRST_PORT, SERVER_PORT = 40_000, 9_000
PROBE = 1
PROBE_S = 0.05
QUIET_S, DRAIN_S_MAX = 0.3, 2.0     # report once nothing came for QUIET_S, or after DRAIN_S_MAX
ABSENT_MAX = 1000


class Endpoint:
    """One side. `want`: role, addresses, server, streams, frames_s (0: never send), payload_bytes, device, late_ms, and for a
    finer pace tick_us: the sender then comes before everybody else whenever a frame is due, as if it had a machine of its own
    (native.traffic: `first`). `nice`: added to the process's."""

    def __init__(self, want: dict[str, Any]) -> None:
        self.streams: int = want["streams"]
        self.frames_s: int = want["frames_s"]
        self.payload: int = want["payload_bytes"]
        self.tick_us: int = want.get("tick_us", 1000)
        self.first = self.tick_us < 1000
        os.nice(want.get("nice", 0))            # of the sink, and what is left of the sender without a real-time priority
        self.is_client = want["role"] == "client"
        addresses: list[str] = want["addresses"]
        self.socks: list[socket.socket] = []
        for stream in range(self.streams if self.is_client else 1):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            deaf(sock)
            sock.bind((addresses[stream % len(addresses)], FIRST_PORT + stream if self.is_client else SERVER_PORT))
            if self.is_client:
                sock.connect((want["server"], SERVER_PORT))
            self.socks.append(sock)
        first, ports = (FIRST_PORT, self.streams) if self.is_client else (SERVER_PORT, 1)
        self.sink = Sink(want["device"], first, ports, self.streams, self.payload, late_ns=int(want["late_ms"] * 1e6))
        self.sender: Sender | None = None
        self.marks: list[dict[str, Any]] = []
        self.threads = [threading.Thread(target=self.sink.run, daemon=True)]
        self.threads[0].start()

    def ready(self) -> bool:
        return all(self.sink.source(stream) for stream in range(self.streams))

    def probe(self) -> None:
        for stream in range(self.streams):
            frame = datagram(stream, PROBE, 0, 0, time.monotonic_ns(), self.payload)
            source = self.sink.source(stream)
            with suppress(OSError):     # no neighbour yet: the next one
                if self.is_client:
                    self.socks[stream].send(frame)
                elif source:
                    self.socks[0].sendto(frame, source)

    def go(self) -> None:
        if self.frames_s == 0:
            return
        if self.is_client:
            targets: list[tuple[int, str | None, int]] = [(sock.fileno(), None, 0) for sock in self.socks]
        else:
            sources = [self.sink.source(stream) for stream in range(self.streams)]
            targets = [(self.socks[0].fileno(), *source) for source in sources if source]
        self.sender = Sender(targets, self.frames_s, self.payload, self.tick_us, self.first)
        thread = threading.Thread(target=self._send, args=(self.sender,), daemon=True)
        thread.start()
        self.threads.append(thread)

    def _send(self, sender: Sender) -> None:
        if self.first:
            with suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        sender.run()

    def halt(self) -> None:
        if self.sender:
            self.sender.halt()
            self.threads[1].join()

    def mark(self) -> None:
        self.marks.append({"t_ns": time.monotonic_ns(), "sent": self.sender.sent() if self.sender else []})

    def absent(self, sent: list[int]) -> list[tuple[int, int]]:
        """(stream, number) of what the other side sent and this one did not get, at most ABSENT_MAX of each stream."""
        return [(stream, n) for stream, count in enumerate(sent) for n in self.sink.absent(stream, count, ABSENT_MAX)]

    def settle(self) -> None:
        deadline = time.monotonic() + DRAIN_S_MAX
        seen = -1
        while seen != self.sink.received + self.sink.duplicated and time.monotonic() < deadline:
            seen = self.sink.received + self.sink.duplicated
            time.sleep(QUIET_S)
        self.sink.halt()
        self.threads[0].join()

    def around(self, t_ns: int, since_ns: int, until_ns: int) -> dict[str, Any]:
        """One-way delays, ns, of what came here: the median of frames sent before `t_ns`, and the largest of those sent from `since_ns`
        to `until_ns`, and when it was sent; how many these were, and the longest time in which the sender sent none."""
        sent, came = np.frombuffer(self.sink.times(), np.uint64).reshape(-1, 2).astype(np.int64).T
        before, near = sent < since_ns, (sent >= since_ns) & (sent <= until_ns)
        gaps = np.diff(np.unique(sent[near]))
        delays = np.where(near, came - sent, 0)
        return {"t_ns": t_ns, "frames": int(near.sum()), "median_ns": int(np.median((came - sent)[before])) if before.any() else 0,
                "worst_ns": int(delays.max(initial=0)), "worst_sent_ns": int(sent[delays.argmax()]) if near.any() else t_ns, "gap_ns": int(gaps.max(initial=0))}

    def counters(self) -> dict[str, Any]:
        sink = self.sink
        return {
            "sent": sum(self.sender.sent()) if self.sender else 0, "received": sink.received,
            "duplicated": sink.duplicated, "reordered": sink.reordered, "corrupt": sink.corrupt,
            "source_changed": sink.source_changed, "sink_overflow": sink.drops(), "missing": sink.missing, "last_ns": sink.last_ns,
            "send_errors": self.sender.errors if self.sender else 0, "skipped": self.sender.skipped if self.sender else 0,
        }


def main() -> None:
    control = Control()
    end = Endpoint(config())
    sending = False
    said_ready = False
    live_at = time.monotonic()
    while True:
        if not sending:
            end.probe()
        if not said_ready and end.ready():
            said_ready = True
            emit("ready")
        for command in control.wait(LIVE_S if sending else PROBE_S):
            if command == "go":
                sending = True
                end.go()
            elif command == "mark":
                end.mark()
            elif command == "halt":
                end.halt()
                emit("halted", t_ns=time.monotonic_ns(), sent_by_stream=end.sender.sent() if end.sender else [])
            elif command.startswith("around "):
                emit("around", **end.around(*map(int, command.split()[1:])))
            elif command.startswith("report"):
                end.settle()
                emit("result", **end.counters(), sent_by_stream=end.sender.sent() if end.sender else [],
                     received_by_stream=end.sink.received_by_stream(), marks=end.marks,
                     absent=end.absent(json.loads(command[6:] or "[]")), episodes=end.sink.episodes(),
                     sources=[end.sink.source(stream) for stream in range(end.streams)],
                     log_full=end.sink.log_full, delay_ms_max=end.sink.delay_ns_max / 1e6, cpu_s=cpu_s())
                return
        if time.monotonic() >= live_at:
            live_at = time.monotonic() + LIVE_S
            emit("live", **end.counters())


if __name__ == "__main__":
    main()
