"""How long the news of a death takes, by the size of the dead process: SIGKILL to a child that holds its life over a large arena.

A   2 GiB of memory in use (256 MiB in a short run)     B   64 MiB
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.machine import room_for_arenas
from nfckpt.bench.slices import pairs
from nfckpt.native.life import LifeLock, LifeWatch

KEYS = ("crash_rss_ratio",)
SMALL = 64 << 20
VICTIM = """
import sys, time
from nfckpt.failover.proof import harden_process
from nfckpt.native.arena import Arena
from nfckpt.native.life import LifeLock
arena = Arena(int(sys.argv[2]))
arena.populate()
life = LifeLock(int(sys.argv[1]))
life.hold()
harden_process()
print(flush=True)
while True: pass
"""


def news_s(arena_bytes: int) -> float:
    """From SIGKILL to the watch's report."""
    fd = LifeLock.create()
    try:
        with subprocess.Popen([sys.executable, "-c", VICTIM, str(fd), str(arena_bytes)], pass_fds=(fd,), stdout=subprocess.PIPE) as victim:
            try:
                assert victim.stdout is not None
                victim.stdout.readline()
                watch = LifeWatch(fd)
                began = time.monotonic_ns()
                os.kill(victim.pid, signal.SIGKILL)
                while not watch.died:
                    pass
                took = time.monotonic_ns() - began
                watch.close()
            finally:
                victim.kill()
    finally:
        os.close(fd)
    return took / 1e9


def measure(scale: Scale) -> list[Figure]:
    large = scale.small(1 << 28 if scale.quick else 2 << 30, 1 << 26)
    room_for_arenas(large // 2)
    both = pairs(lambda: news_s(large), lambda: news_s(scale.small(SMALL, 1 << 22)), scale.small(max(10, round(5 * scale.seconds)), 2),
                 seconds=scale.seconds, tick=scale.tick)
    return [Figure.of(KEYS[0], both.spread(lambda a, b: a / b), digest="", limit=1.0, limit_what="the same",
                      note=f"{1e6 * both.spread(lambda a, _: a).median:.0f} µs at {large >> 20} MiB, "
                      f"{1e6 * both.spread(lambda _, b: b).median:.0f} µs at {SMALL >> 20}",
                      settings={"signal": "SIGKILL"})]
