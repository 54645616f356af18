"""Network namespaces: do a piece of work inside one, without fork.

A helper thread enters the namespace, works, and ends. What it makes (sockets, rings, child processes) stays there and
works from any thread; the caller's own namespace never changes. Ray and threads allow no fork.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from nfckpt.errors import MachineError

__all__ = ["CLONE_NEWNET", "NETNS_DIR", "enter", "in_netns", "netns_path", "on_thread"]

NETNS_DIR = Path("/run/netns")
CLONE_NEWNET = 0x4000_0000

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


def netns_path(netns: str | os.PathLike[str]) -> Path:
    """A name stands for /run/netns/NAME, as with `ip netns`; anything with a slash is a path."""
    return Path(netns) if "/" in os.fspath(netns) else NETNS_DIR / netns


def in_netns(netns: str | os.PathLike[str] | int | None, call: Callable[[], _T]) -> _T:
    """call() inside the network namespace (a name, a path, an open fd, None: the caller's own), on a thread of its own.

    What it raises is raised here. A child process started there stays there.
    Raises MachineError when there is no such namespace or it may not be entered.
    """
    if netns is None:
        return call()

    def run() -> _T:
        enter(netns)
        return call()

    return on_thread(run)


def enter(netns: str | os.PathLike[str] | int) -> None:
    """Move the calling thread into the namespace for good. Only for threads that end there; raises as `in_netns`."""
    try:
        fd = os.dup(netns) if isinstance(netns, int) else os.open(netns_path(netns), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise MachineError(f"no network namespace {netns}: {e.strerror}", "is the testbed up?") from None
    try:
        if _libc.setns(fd, CLONE_NEWNET) < 0:
            raise MachineError(f"namespace {netns} cannot be entered: {os.strerror(ctypes.get_errno())}",
                               "run as root, with CAP_SYS_ADMIN, or in a box")
    finally:
        os.close(fd)


def on_thread(call: Callable[[], _T]) -> _T:
    """call() on a thread that ends with it; what it raises is raised here."""
    result: list[_T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=run, name="in-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
