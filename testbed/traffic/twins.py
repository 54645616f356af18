"""Twins: frames that are byte for byte the same, whose number alone says whether one was lost or doubled.

    client ── the same UDP datagram, GROUP at a time ──► server      received == sent
    client ── the same ARP request, GROUP at a time ──► gateway      answers == requests, each to a host that does not exist

A socket that is not connected sends with "don't fragment" and IP identification 0 (Linux, ip_select_ident), so the frames are alike
on both sides of a network function. A frame's key cannot tell them apart: sets of keys must be multisets (rule 1).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Any

from nfckpt.testbed.traffic.control import LIVE_S, Control, config, cpu_s, emit

PORT = 9_002
GROUP = 4
PAYLOAD = b"nfckpt twins".ljust(64, b"=")
ASKER = "10.0.0.200"
SO_RXQ_OVFL, SO_RCVBUFFORCE = 40, 33
QUIET_S, DRAIN_S_MAX = 0.3, 2.0


def _arp(mac: bytes, target: str) -> bytes:
    return b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1) + mac + socket.inet_aton(ASKER) \
        + bytes(6) + socket.inet_aton(target) + bytes(18)


class Client:
    """`want`: address, server, gateway, device, groups_s of each kind."""

    def __init__(self, want: dict[str, Any]) -> None:
        self.want = want
        self.count = {"sent": 0, "asked": 0, "answered": 0}
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((want["address"], 0))
        self.arp = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        self.arp.bind((want["device"], 0x0806))
        self.arp.setblocking(False)
        self.mac = self.arp.getsockname()[4]

    def send(self) -> None:
        for _ in range(GROUP):
            self.count["sent"] += self.udp.sendto(PAYLOAD, (self.want["server"], PORT)) == len(PAYLOAD)
            self.count["asked"] += self.arp.send(_arp(self.mac, self.want["gateway"])) > 0

    def receive(self) -> None:
        while True:
            try:
                frame = self.arp.recv(2048)
            except BlockingIOError:
                return
            self.count["answered"] += frame[20:22] == b"\0\2" and frame[:6] == self.mac and frame[38:42] == socket.inet_aton(ASKER)


class Server:
    """`want`: address."""

    def __init__(self, want: dict[str, Any]) -> None:
        self.count = {"received": 0, "corrupt": 0, "overflow": 0}
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self.udp.setsockopt(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        self.udp.bind((want["address"], PORT))
        self.udp.setblocking(False)

    def send(self) -> None:
        pass

    def receive(self) -> None:
        while True:
            try:
                data, notes, _, _ = self.udp.recvmsg(2048, 64)
            except BlockingIOError:
                return
            self.count["received"] += data == PAYLOAD
            self.count["corrupt"] += data != PAYLOAD
            for _, kind, value in notes:
                if kind == SO_RXQ_OVFL:
                    self.count["overflow"] = struct.unpack("I", value)[0]


def main() -> None:
    os.nice(5)
    want, control = config(), Control()
    end = Client(want) if want["role"] == "client" else Server(want)
    emit("ready")
    sending, due, live_at = False, 0.0, 0.0
    fds = [0, end.arp.fileno() if isinstance(end, Client) else end.udp.fileno()]
    while True:
        now = time.monotonic()
        select.select(fds, [], [], min(0.1, max(0.0, due - now)) if sending else 0.1)
        end.receive()
        now = time.monotonic()
        if sending and now >= due:
            due = max(due + 1 / want["groups_s"], now - 0.1)
            end.send()
        for command in control.read():
            if command == "go":
                sending, due = isinstance(end, Client), now
            elif command == "halt":
                sending = False
                emit("halted", t_ns=time.monotonic_ns())
            elif command == "report":
                deadline = now + DRAIN_S_MAX
                seen: dict[str, int] = {}
                while seen != end.count and time.monotonic() < deadline:
                    seen = dict(end.count)
                    time.sleep(QUIET_S)
                    end.receive()
                emit("result", **end.count, cpu_s=cpu_s())
                return
        if now >= live_at:
            live_at = now + LIVE_S
            emit("live", **end.count)


if __name__ == "__main__":
    main()
