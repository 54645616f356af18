"""Spare: the packet process of a node's next life, started while the present one protects or is protected, and idle until it is needed.

    keeper ──exec──► python -m nfckpt.deploy.spare FD ── imports at the lowest priority ── waits ── spec ──► nfckpt.node, at its own again

Why     The import of interpreter and libraries takes half a second of a core. In the second after a takeover, which is when a new standby
        is wanted, that core is the new active's: its frames waited 10 to 38 ms for it (2 cores). Costs 50 MB a node.
Ends    with its keeper: the socket's end is all that it waits for besides its spec.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

__all__ = ["main", "step_back"]

LOWEST = 19
AUTOGROUP = "/proc/self/autogroup"      # where sessions are scheduled as groups, nice counts inside one only: sched(7)


def step_back() -> Callable[[], None]:
    """Take the lowest priority, as far as there is a way back from it. Returns the way back."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    may: list[bool] = []

    def try_it() -> None:               # a thread has a priority of its own, so this one's is not at stake
        os.setpriority(os.PRIO_PROCESS, 0, min(LOWEST, own + 1))
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, own)
            may.append(True)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    if not may:
        return lambda: None
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    group = _group(LOWEST) if os.getsid(0) == os.getpid() else None

    def back() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, own)
        if group is not None:
            _group(group)

    return back


def _group(nice: int) -> int | None:
    """Set the nice value of this session's group. Returns what it was; None where there are no groups."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(AUTOGROUP) as f:
            before = int(f.read().split()[-1])
        with open(AUTOGROUP, "w") as f:
            f.write(str(nice))
        return before
    return None


def main() -> int:
    """Not for people: a keeper starts it."""
    back = step_back()
    from nfckpt.node.process import main as live
    return live(back)


if __name__ == "__main__":
    ended = main()
    sys.stderr.flush()
    os._exit(ended)         # as nfckpt.node does
