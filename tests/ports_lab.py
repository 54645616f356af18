"""Two network namespaces joined by a veth pair, offloads off, silent, gone when the block ends. Needs root."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyroute2

from nfckpt.netns import in_netns

CLONE_NEWNET = 0x40000000
SIOCETHTOOL = 0x8946
ETHTOOL_SET = (0x15, 0x17, 0x19, 0x1F, 0x24, 0x2C)      # rx, tx, sg, tso, gso, gro
_serial = itertools.count()


@dataclass(frozen=True)
class Veth:
    """Device `dev` in namespace `a` is one end, `dev` in namespace `b` the other."""

    a: str
    b: str
    dev: str = "v0"

    def set(self, netns: str, **change: object) -> None:
        """`ip link set` in one namespace: state="down", mtu=9000."""

        def run() -> None:
            with pyroute2.IPRoute() as ip:
                ip.link("set", index=ip.link_lookup(ifname=self.dev)[0], **change)

        in_netns(netns, run)

    def delete(self) -> None:
        def run() -> None:
            with pyroute2.IPRoute() as ip:
                ip.link("del", index=ip.link_lookup(ifname=self.dev)[0])

        in_netns(self.a, run)


def _new_netns(name: str) -> None:
    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        pyroute2.netns.attach(name, threading.get_native_id())

    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            run()
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def offload(dev: str, on: int) -> None:
    """All offloads of `dev` on or off. Off: whole checksums, no super-frames."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for command in ETHTOOL_SET:
            value = (ctypes.c_uint32 * 2)(command, on)
            with contextlib.suppress(OSError):
                fcntl.ioctl(s, SIOCETHTOOL, struct.pack("16sQ16x", dev.encode(), ctypes.addressof(value)))


@contextlib.contextmanager
def veth(mtu: int = 1500) -> Iterator[Veth]:
    tag = f"nfp{os.getpid()}-{next(_serial)}"
    lab = Veth(f"{tag}a", f"{tag}b")
    made: list[str] = []
    try:
        for ns in (lab.a, lab.b):
            _new_netns(ns)
            made.append(ns)
            # before any device exists: the kernel says nothing of its own accord
            in_netns(ns, lambda: [
                Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1") for which in ("all", "default")
            ])
        peer = os.open(f"/run/netns/{lab.b}", os.O_RDONLY)

        def build() -> None:
            with pyroute2.IPRoute() as ip:
                ip.link("add", ifname=lab.dev, kind="veth", peer={"ifname": lab.dev, "net_ns_fd": peer})

        try:
            in_netns(lab.a, build)
        finally:
            os.close(peer)
        for ns in (lab.a, lab.b):
            in_netns(ns, lambda: offload(lab.dev, 0))
            lab.set(ns, state="up", mtu=mtu, arp=False)
        yield lab
    finally:
        for ns in made:
            pyroute2.netns.remove(ns)
