"""Who holds a port: from a device in a namespace to the process that has a packet socket on it, through /proc.

    /proc/net/packet (of the namespace)  Iface 7 … Inode 4711   →   /proc/<pid>/fd/<n> -> socket:[4711]

The victim of a kill is found this way, from outside: the process that really emits, not the one that says it does.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from nfckpt.errors import MachineError
from nfckpt.testbed import netns

__all__ = ["members", "owner", "owners"]


def owners(namespace: str, device: str | None = None) -> list[int]:
    """Pids with a packet socket bound to `device` (or to any device) in the namespace, sorted. About 5 ms."""
    inodes = netns.run_in(namespace, _packet_sockets, device)
    return sorted(pid for pid in _pids() if inodes & _sockets(pid)) if inodes else []


def owner(namespace: str, device: str) -> int:
    """The one process that has a packet socket on the device. Raises MachineError where there is none, or two."""
    found = owners(namespace, device)
    if len(found) != 1:
        raise MachineError(f"{len(found)} processes hold {device} in {namespace}: {found}", "does the node run there, alone?")
    return found[0]


def members(namespace: str) -> list[int]:
    """Pids with a thread in the namespace or a packet socket in it, sorted."""
    inode = (netns.NETNS_DIR / namespace).stat().st_ino
    inside = {pid for pid in _pids() if inode in _namespaces(pid)}
    try:
        return sorted(inside | set(owners(namespace)))
    except MachineError:    # the name was never bound: nobody can be in it
        return sorted(inside)


def _packet_sockets(device: str | None) -> set[int]:
    index = socket.if_nametoindex(device) if device else None
    found = set()
    for line in Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]:
        column = line.split()       # sk RefCnt Type Proto Iface R Rmem User Inode
        if index is None or int(column[4]) == index:
            found.add(int(column[8]))
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _sockets(pid: int) -> set[int]:
    found = set()
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        pass
    return found


def _namespaces(pid: int) -> set[int]:
    found = set()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found.add(os.stat(f"/proc/{pid}/task/{task}/ns/net").st_ino)
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        pass
    return found
