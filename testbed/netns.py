"""Network namespaces without fork: enter one on a helper thread, do the work there, let the thread end.

A thread may change its network namespace alone; sockets, rings and processes made meanwhile stay in it. The main
thread never moves, so Ray's own sockets are not touched, and nothing forks (Ray does not survive that).

    netns.create("t-client")
    netns.run_in("t-client", netns.set_flags, "lo", netns.UP)
    child = netns.popen_in("t-client", ["sleep", "1"])
    netns.remove("t-client")

Names live in /run/netns as those of `ip netns` do. ioctls: netdevice(7), linux/ethtool.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from nfckpt.errors import MachineError
from nfckpt.netns import CLONE_NEWNET, NETNS_DIR, enter, in_netns, on_thread

__all__ = [
    "NETNS_DIR", "NOARP", "PROMISC", "UP", "create", "flags", "listing", "offloads", "offloads_off", "popen_in",
    "remove", "run_in", "set_bridge_port", "set_flags", "sysctl",
]

UP, NOARP, PROMISC = 0x1, 0x80, 0x100
MS_BIND, MNT_DETACH = 4096, 2
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCETHTOOL = 0x8913, 0x8914, 0x8946
# feature -> (ETHTOOL_G*, ETHTOOL_S*)
OFFLOADS = {"rx": (0x14, 0x15), "tx": (0x16, 0x17), "sg": (0x18, 0x19), "tso": (0x1E, 0x1F), "gso": (0x23, 0x24), "gro": (0x2B, 0x2C)}

P = ParamSpec("P")
R = TypeVar("R")

_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> None:
    """Make a namespace, `lo` down and IPv6 off. Raises MachineError when the name is taken or the right is missing."""
    path = NETNS_DIR / name
    try:
        NETNS_DIR.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o444, exist_ok=False)
    except PermissionError:
        raise MachineError(f"cannot write {path}", "needs root or a box: see `nfckpt doctor`") from None
    except FileExistsError:
        raise MachineError(f"network namespace {name} exists", "another testbed runs, or `nfckpt testbed clean`") from None

    def make() -> None:
        _check("unshare a network namespace", _libc.unshare(CLONE_NEWNET))
        for scope in "all", "default":      # before any device exists: no stray router solicitations
            sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 1)
        # the thread's own entry: /proc/self would be the main thread's namespace
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _check(f"bind {path}", _libc.mount(source.encode(), os.fsencode(path), None, MS_BIND, None))

    try:
        on_thread(make)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def remove(name: str) -> None:
    """Take the name away; the namespace goes when its last process, socket and thread goes. Idempotent."""
    path = NETNS_DIR / name
    if path.exists():
        _libc.umount2(os.fsencode(path), MNT_DETACH)    # EINVAL: a name that was never bound
        path.unlink(missing_ok=True)


def listing() -> list[str]:
    """All names, sorted."""
    return sorted(entry.name for entry in NETNS_DIR.iterdir()) if NETNS_DIR.is_dir() else []


def run_in(name: str, fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `fn` on a helper thread inside the namespace; its result or exception is ours. 0.1 ms."""
    return in_netns(name, lambda: fn(*args, **kwargs))


def popen_in(name: str, argv: Sequence[str], **kwargs: Any) -> subprocess.Popen[Any]:
    """Start a program inside the namespace (arguments as subprocess.Popen).

    The helper thread stays until the program ends: PR_SET_PDEATHSIG means the parent *thread*, so a program that
    asks for it would be killed at once by a thread that did its work and left.
    """
    started: list[subprocess.Popen[Any] | BaseException] = []
    ready = threading.Event()

    def work() -> None:
        try:
            enter(name)
            child = subprocess.Popen(argv, **kwargs)
            started.append(child)
        except BaseException as error:
            started.append(error)
            return
        finally:
            ready.set()
        try:
            fd = os.pidfd_open(child.pid)
        except ProcessLookupError:
            return
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll()
        finally:
            os.close(fd)

    threading.Thread(target=work, name=f"parent in {name}", daemon=True).start()
    ready.wait()
    if isinstance(started[0], BaseException):
        raise started[0]
    return started[0]


def sysctl(path: str, value: int) -> bool:
    """Write /proc/sys/<path> of the calling thread's namespace. False where this kernel has no such file."""
    try:
        Path("/proc/sys", path).write_text(f"{value}\n")
    except FileNotFoundError:
        return False
    return True


def flags(device: str) -> int:
    """Interface flags of a device in the calling thread's namespace. Raises OSError ENODEV."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        answer = fcntl.ioctl(s, SIOCGIFFLAGS, struct.pack("16s16x", device.encode()))
    return int(struct.unpack_from("H", answer, 16)[0])


def set_flags(device: str, on: int = 0, off: int = 0) -> None:
    """Set and clear interface flags (UP, NOARP, PROMISC) of a device in the calling thread's namespace. 0.1 ms."""
    value = flags(device) & ~off | on
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", device.encode(), value))


def set_bridge_port(device: str, forwarding: bool) -> None:
    """Let a bridge port of the calling thread's namespace forward, or drop everything both ways and forget what was learned
    there. At once; 0.1 ms.

    One RTM_SETLINK of family AF_BRIDGE with IFLA_PROTINFO{IFLA_BRPORT_STATE, IFLA_BRPORT_FLUSH}, see rtnetlink(7) and linux/if_link.h.
    """
    state = struct.pack("HHB3x", 5, 1, 3) if forwarding else struct.pack("HHB3x", 5, 1, 0) + struct.pack("HH", 4, 24)
    body = struct.pack("BxHiII", 7, 0, socket.if_nametoindex(device), 0, 0) + struct.pack("HH", 4 + len(state), 12 | 0x8000) + state
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.bind((0, 0))
        s.send(struct.pack("IHHII", 16 + len(body), 19, 0x1 | 0x4, 1, 0) + body)
        code = -struct.unpack_from("i", s.recv(4096), 16)[0]
    if code:
        raise MachineError(f"bridge port {device}: {os.strerror(code)}", "is it up, and on a bridge?")


def offloads(device: str) -> dict[str, bool]:
    """Which of rx, tx, sg, tso, gso, gro are on, for a device in the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return {feature: bool(_ethtool(s, device, get, 0)) for feature, (get, _) in OFFLOADS.items()}


def offloads_off(device: str) -> None:
    """Turn all of them off and read back: a partial checksum or a 64 KB super-frame is not what a wire carries."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, put in OFFLOADS.values():
            _ethtool(s, device, put, 0)
    left = [feature for feature, on in offloads(device).items() if on]
    if left:
        raise MachineError(f"{device}: offloads {', '.join(left)} stay on", "use another device: frames must be whole")


def _ethtool(s: socket.socket, device: str, command: int, value: int) -> int:
    request = ctypes.create_string_buffer(struct.pack("II", command, value))
    try:
        fcntl.ioctl(s, SIOCETHTOOL, struct.pack("16sP8x", device.encode(), ctypes.addressof(request)))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:     # fixed by the driver: the read-back judges
            raise
    return int(struct.unpack_from("I", request, 4)[0])


def _check(step: str, result: int) -> None:
    if result != 0:
        reason = os.strerror(ctypes.get_errno())
        raise MachineError(f"cannot {step}: {reason}", "needs root or a box: see `nfckpt doctor`")
