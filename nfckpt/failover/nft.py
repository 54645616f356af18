"""nf_tables without the `nft` program: a netlink socket in a chosen network namespace, and the few messages a lease needs.

Picture     send( BEGIN | NEWTABLE | NEWSET | NEWCHAIN | NEWRULE | END )  ->  all of it, or nothing
            every message is  nlmsghdr(16) nfgenmsg(4) attributes(type, length, value, padded to 4)

Promises    N1 a batch is atomic: the kernel puts it in force as one generation or refuses it whole.
            N2 nothing is waited for: the kernel works the batch off inside `send`, so when that returns the
               answers already lie in the socket, and each is read there and then (no error is left for later).
            N3 the socket belongs to its namespace for ever and may be used from any thread, one at a time.

Source: Linux include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h; the attribute numbers below are theirs.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import TypeVar

from nfckpt.errors import MachineError
from nfckpt.netns import in_netns

__all__ = ["Nft", "attr", "message", "nest", "parse", "text", "u32", "u64"]

T = TypeVar("T")

NETLINK_NETFILTER = 12
SUBSYS = 10                     # NFNL_SUBSYS_NFTABLES
NFPROTO_NETDEV = 5
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP, CREATE, APPEND = 0x1, 0x4, 0x300, 0x400, 0x800
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, GETRULE = 0, 2, 3, 6, 7
NEWSET, NEWSETELEM, GETSETELEM, DELSETELEM = 9, 12, 13, 14
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def attr(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded to 4 bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nest(kind: int, *inner: bytes) -> bytes:
    return attr(kind | 0x8000, b"".join(inner))


def text(kind: int, s: str) -> bytes:
    return attr(kind, s.encode() + b"\0")


def u32(kind: int, v: int) -> bytes:
    """nf_tables numbers travel in network byte order (set keys do not: those are `attr`)."""
    return attr(kind, struct.pack(">I", v))


def u64(kind: int, v: int) -> bytes:
    return attr(kind, struct.pack(">Q", v))


def message(kind: int, *attrs: bytes, flags: int = 0) -> bytes:
    """One nf_tables message for family netdev; the sequence number stays 0."""
    body = struct.pack("=BBH", NFPROTO_NETDEV, 0, 0) + b"".join(attrs)
    return struct.pack("=IHHII", 16 + len(body), SUBSYS << 8 | kind, REQUEST | flags, 0, 0) + body


def batch(*messages: bytes) -> bytearray:
    """BEGIN, the messages, END: in force together or not at all (N1)."""
    edge = struct.pack(">BBH", 0, 0, SUBSYS)
    begin = struct.pack("=IHHII", 20, BATCH_BEGIN, REQUEST, 0, 0) + edge
    end = struct.pack("=IHHII", 20, BATCH_END, REQUEST, 0, 0) + edge
    return bytearray(begin + b"".join(messages) + end)


def parse(data: bytes) -> dict[int, bytes]:
    """Attributes of one level, type -> value (the last of a type wins)."""
    return dict(attrs(data))


def attrs(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        n, kind = struct.unpack_from("=HH", data, at)
        if n < 4 or at + n > len(data):
            return
        yield kind & 0x3FFF, data[at + 4:at + n]
        at += (n + 3) & ~3


class Nft:
    """A NETLINK_NETFILTER socket living in `netns`. Raises MachineError where the kernel or a permission refuses."""

    def __init__(self, netns: str | int | None = None) -> None:
        try:
            self._sock = in_netns(netns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER))
        except OSError as e:
            raise MachineError(f"no netfilter netlink socket: {e.strerror}", "needs CONFIG_NF_TABLES") from None
        self._in = bytearray(65536)

    def commit(self, data: bytes | bytearray) -> int:
        """Send one `batch` and read its answers. Returns 0, or the errno of the first message that was refused.

        Messages that carry ACK answer even when all is well: a batch with such a message and no answer is EIO.
        """
        self._sock.send(data)
        verdict = errno.EIO
        while True:
            try:
                n = self._sock.recv_into(self._in, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return verdict
            except OSError as e:        # ENOBUFS: an answer was lost, so nothing is known
                return e.errno or errno.EIO
            at = 0
            while at + 20 <= n:
                size, kind = struct.unpack_from("=IH", self._in, at)
                if kind == NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", self._in, at + 16)[0])
                    if code and verdict in (0, errno.EIO):
                        verdict = code
                    elif not code and verdict == errno.EIO:
                        verdict = 0
                at += max((size + 3) & ~3, 16)

    def dump(self, kind: int, *attributes: bytes) -> list[bytes]:
        """Ask for a list; returns the attribute bytes of each entry, [] where the object does not exist."""
        self._sock.send(message(kind, *attributes, flags=DUMP))
        out: list[bytes] = []
        while True:
            n = self._sock.recv_into(self._in)
            at = 0
            while at + 16 <= n:
                size, what = struct.unpack_from("=IH", self._in, at)
                if what == NLMSG_DONE:
                    return out
                if what == NLMSG_ERROR:
                    code = -int(struct.unpack_from("=i", self._in, at + 16)[0])
                    if code == errno.ENOENT:
                        return out
                    raise MachineError(f"nf_tables refused a query: {os.strerror(code)}", "are you root in this namespace?")
                out.append(bytes(self._in[at + 20:at + size]))
                at += max((size + 3) & ~3, 16)

    def close(self) -> None:
        self._sock.close()
