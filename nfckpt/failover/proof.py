"""Fence of profile *host*: kill the old packet process from outside and know that it can emit no more (DESIGN I9).

Picture     suspicion --SIGKILL by pidfd--> wait until  the emitting thread is dead   (LifeWatch, 0.1-0.3 ms)
                                                or      the whole process is dead     (pidfd, after its memory is freed:
                                                                                       tens of ms at 1 GiB)

            A pidfd names one process for ever: a reused pid is never hit. SIGKILL cannot be caught, and a stopped
            process dies of it too. A thread inside a send finishes that send first; so what was on its way is out
            before the answer is True, and the settle time of a takeover starts after it.

Not here    proof without suspicion (native.life), and who may promote (witness).
Source      pidfd_open(2), pidfd_send_signal(2), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Protocol

from nfckpt.errors import MachineError

__all__ = ["die_with_parent", "harden_process", "kill_and_confirm"]

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)


class Watch(Protocol):
    """What kill_and_confirm needs of a native.life.LifeWatch."""

    @property
    def died(self) -> bool: ...
    def fileno(self) -> int: ...


def kill_and_confirm(pidfd: int, deadline_ms: float, watch: Watch | None = None) -> bool:
    """SIGKILL the process behind `pidfd`; True once it can emit no more, False when deadline_ms passed before that.

    With `watch`, held by its emitting thread, the answer comes when that thread is dead; without, when the process is.
    False is not "alive": the signal is delivered and the process will never run its own code again, but a send it is
    inside (a stuck device, a frozen cgroup) may still end. Do not emit on False.
    Raises MachineError when we may not signal it.
    """
    end = time.monotonic() + deadline_ms / 1000
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        raise MachineError("may not kill the peer's packet process", "run both nodes as the same user") from None
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if watch is not None:
        poll.register(watch.fileno(), select.POLLIN)
    while True:
        left = (end - time.monotonic()) * 1000
        ready = [fd for fd, _ in poll.poll(max(0, left))]
        if pidfd in ready or (watch is not None and watch.died):
            return True
        if watch is not None and watch.fileno() in ready:
            poll.unregister(watch.fileno())     # released, not died: no proof, so wait for the process
            watch = None
        if left <= 0:
            return False


def harden_process() -> None:
    """PR_SET_DUMPABLE=0: no core dump (it is written *before* death is announced: 3 s at 1 GiB), no ptrace, and no
    reading of our memory by others of our user. Call it after namespaces and maps are set up: files under /proc/self
    belong to root from then on. exec undoes it.
    """
    _prctl(PR_SET_DUMPABLE, 0)


def die_with_parent(parent_pid: int, leave: Callable[[int], object] = os._exit) -> None:
    """SIGKILL to us when the parent goes; call it first thing in the child, with the pid the parent told us.

    Trap: "parent" is the *thread* that started us. Started from a helper thread (one that entered a namespace, say),
    we die when that thread ends, so start packet processes from a thread that stays. A parent that died before the
    call would never be noticed: hence the comparison after it, which leaves with status 1.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        leave(1)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        code = ctypes.get_errno()
        raise MachineError(f"prctl({option}, {value}): {os.strerror(code)}")
