"""Two namespaces without names and one veth pair between them, gone with the last fd: what the fence tests send over."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pyroute2 import IPRoute

from nfckpt.netns import CLONE_NEWNET, in_netns, on_thread

ETH_P = 0x88B5                                              # local experimental: nobody else's frames
HEAD = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01" + struct.pack(">H", ETH_P)


def new_netns() -> int:
    """An fd of a fresh network namespace, lo up."""
    def make() -> int:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0, "tests of the fence need root"
        fd = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        return fd
    return on_thread(make)


@dataclass
class Segment:
    node: int           # fd of the namespace with device p0 (and q0, a second port)
    peer: int           # fd of the namespace with p1 and q1

    def sender(self, port: str = "p0", mark: int | None = None) -> socket.socket:
        def make() -> socket.socket:
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            s.bind((port, 0))
            if mark is not None:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            return s
        return in_netns(self.node, make)

    def listener(self, port: str = "p1") -> Listener:
        def make() -> socket.socket:
            s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)   # SO_RCVBUFFORCE
            s.bind((port, ETH_P))
            s.settimeout(0.05)
            return s
        return Listener(in_netns(self.peer, make))


class Listener(threading.Thread):
    """Collects (number, sent at ns) of every test frame that reached the peer."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sock = sock
        self.seen: list[tuple[int, int]] = []
        self.stop = False
        self.start()

    def run(self) -> None:
        while True:
            try:
                self.seen.append(struct.unpack_from("=QQ", self.sock.recv(2048), 14))
            except TimeoutError:
                if self.stop:
                    return

    def close(self) -> list[tuple[int, int]]:
        """Everything seen, after what was under way has arrived. Fails where the listener itself lost frames."""
        self.stop = True
        self.join()
        drops = struct.unpack("=II", self.sock.getsockopt(263, 6, 8))[1]    # PACKET_STATISTICS
        self.sock.close()
        assert drops == 0
        return self.seen


def frame(number: int) -> bytes:
    return HEAD + struct.pack("=QQ", number, time.monotonic_ns()) + bytes(30)


def emit(sock: socket.socket, number: int) -> bool:
    """Send one test frame. The fence's drop comes back to the sender as ENOBUFS: False."""
    try:
        sock.send(frame(number))
    except OSError as e:
        if e.errno != errno.ENOBUFS:
            raise
        return False
    return True


@contextlib.contextmanager
def segment() -> Iterator[Segment]:
    node, peer = new_netns(), new_netns()

    def wire() -> None:
        with IPRoute() as ip:
            for near, far in (("p0", "p1"), ("q0", "q1")):
                ip.link("add", ifname=near, kind="veth", peer={"ifname": far, "net_ns_fd": peer})
                ip.link("set", index=ip.link_lookup(ifname=near)[0], state="up")

    def up() -> None:
        with IPRoute() as ip:
            for far in ("p1", "q1"):
                ip.link("set", index=ip.link_lookup(ifname=far)[0], state="up")

    try:
        in_netns(node, wire)
        in_netns(peer, up)
        yield Segment(node, peer)
    finally:
        os.close(node)
        os.close(peer)
