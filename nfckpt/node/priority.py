"""Priority: a packet process that only waits for its turn takes no time from those that work, until it is needed.

    keeper ──exec──► python -m nfckpt.node FD ── imports at the lowest priority ── waits ──► its life, at the keeper's priority
       └── lower(pid)                                                   restore(pid), spec ──┘

Why     The import of interpreter and libraries takes half a second of a core. In the second after a takeover, which is when a new standby
        is wanted, that core is the new active's: its frames waited 10 to 38 ms for it (2 cores). So the process of a node's next life
        is started while the present one protects or is protected. Costs 50 MB a node.
Who     The keeper does both: a process that is needed in the middle of its imports is raised there and then. `outrank` is the peer's.
Source  sched(7): where sessions are scheduled as groups, nice counts inside one only, and the group has a value of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

__all__ = ["lower", "outrank", "restore"]

LOWEST = 19
GROUP_TRIES, GROUP_PAUSE_S = 5, 0.05


def lower(pid: int) -> None:
    """The lowest priority for a child of ours, where we may give it back later: else it keeps ours."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    may: list[bool] = []

    def try_it() -> None:               # a thread has a priority of its own, so the caller's is not at stake
        os.setpriority(os.PRIO_PROCESS, 0, min(LOWEST, own + 1))
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, own)
            may.append(True)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    if may:
        _set(pid, LOWEST, LOWEST)


def restore(pid: int) -> None:
    """The caller's own priority for that child."""
    _set(pid, os.getpriority(os.PRIO_PROCESS, 0), _group_of("self"))


def outrank(pid: int) -> None:
    """The lowest priority for a dead peer on this kernel, which takes its memory apart at its own: some 10 ms of a core for 200 MB, for
    which a takeover would wait where cores are few. One that is gone already is let rest.
    """
    _set(pid, LOWEST, None)


def _set(pid: int, nice: int, group: int | None) -> None:
    with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):          # a library may have started some: each has its own
            with contextlib.suppress(ProcessLookupError):           # one of them ended meanwhile
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)
        if group is not None and os.getsid(pid) == pid:         # its session is its own
            _set_group(pid, group)


def _set_group(pid: int, nice: int) -> None:
    """The kernel lets who has no CAP_SYS_ADMIN do so ten times a second, all of them together: then we wait."""
    for _ in range(GROUP_TRIES):
        try:
            with open(_path(pid), "w") as f:
                f.write(str(nice))
            return
        except BlockingIOError:
            time.sleep(GROUP_PAUSE_S)
        except OSError:
            return


def _path(pid: int | str) -> str:
    return f"/proc/{pid}/autogroup"


def _group_of(pid: int | str) -> int | None:
    """None where there are no groups."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(_path(pid)) as f:
        return int(f.read().split()[-1])
    return None
