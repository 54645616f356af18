"""How fast a blank standby is made whole under traffic, and how fast a backlog of epochs drains.

    sync_ratio   time to sync an arena of incompressible bytes under traffic ÷ (bytes ÷ what the channel carries), ≤ 1.5
                 Two processes, one core each, joined by sealed shared memory; the channel is measured with messages of a group's
                 length before and after each sync, by the same two processes.
    drain_ratio  rate at which a standby drains its backlog of epochs ÷ rate at which the active's native NAT made them, ≥ 1.5
                 One process, one core: the active runs until the backlog is there, then the standby runs until it is gone.

    python tests/bench/bench_sync.py [--json] [--arena-mib 1024] [--epochs 10000] [--rounds 5]

Each round ends in equal digests of both arenas.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.bench import Generator, LineWriter
from nfckpt.native.burst import Burst
from nfckpt.native.channel_bench import pump, sink
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.nat import NativeNat
from nfckpt.native.shm_ring import ShmRing
from nfckpt.native.shm_segment import Segment
from nfckpt.native.standby_path import WHY_MAIL, StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.state.state import State
from nfckpt.wire.shm import ShmListener, ShmOptions, shm_connect

SECRET = bytes(range(7, 39))
FRAME = bytes.fromhex("020000000001020000000002080045000032000000004011f96a0a000001c6336402") + bytes(30)
SPIN = 10**12
RING = 4 << 20
PROBE_PAGES = 128               # of a message that measures the channel: about what a group is
LIMITS = {"sync_ratio": ("at most", 1.5), "drain_ratio": ("at least", 1.5)}


def pin(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})


# ── sync ─────────────────────────────────────────────────────────────────────────────────────────


def probe_messages(arena_bytes: int) -> int:
    return max(4, min(arena_bytes, 256 << 20) // (PROBE_PAGES * 4096))


def standby(path: str, arena_bytes: int) -> None:
    pin(1)
    arena = Arena(arena_bytes)
    began = time.monotonic()
    arena.populate()                                        # as Follower does before it says hello
    populate_s = time.monotonic() - began
    tap = Tap([Generator(FRAME, 1)], SECRET, 0, 1 << 20, 1 << 20, 1 << 20, 256 << 20)
    tap.open()
    tap.poll(time.monotonic_ns())
    ring = shm_connect(path, time.monotonic() + 5, ShmOptions(ring_bytes=RING))
    sink(ring, probe_messages(arena_bytes))
    core = StandbyPath(tap, arena, SECRET, time.monotonic_ns())
    core.begin(1, 1, 1)
    core.tap_open = True
    core.attach(ring)
    while ring.closed is None:
        if core.run(time.monotonic_ns() + 50_000_000, SPIN) == WHY_MAIL and (message := ring.recv()) is not None:
            if message[0] == 9:                             # the probe after the sync
                sink(ring, probe_messages(arena_bytes) - 1)
            else:
                core.raise_fault()
    state = State(Arena(fd=os.dup(arena.fd)), seed=SECRET)
    LineWriter(arena_bytes - (1 << 20)).declare(state)
    print(json.dumps({"epochs": core.epochs, "digest": state.arena.digest().hex(), "divergent": core.divergent_epoch,
                      "populate_s": populate_s}))


def measure_sync(arena_mib: int, traffic: bool = True) -> dict[str, Any]:
    """One blank standby, from nothing to whole."""
    pin(0)
    arena_bytes = arena_mib << 20
    arena = Arena(arena_bytes)
    app = LineWriter(arena_bytes - (1 << 20))
    app.seed(1)
    app.declare(State(arena, seed=SECRET))
    with mmap.mmap(arena.fd, arena.size) as raw:            # before protection: nobody tracks it
        words = np.frombuffer(raw, np.uint64)
        words[:] = np.random.default_rng(1).integers(0, 1 << 64, len(words), np.uint64)
        del words
    arena.populate()                                        # the app wrote it through this mapping
    port = Generator(FRAME)
    agent = Agent([port], arena, Gate([port], 1 << 15, 32 << 20), SECRET, names_max=1 << 14)
    engine = Engine(Bounds())
    path = ActivePath(agent, engine, EpochWriter(SECRET), Bounds().sync_group_pages_max, Bounds().sync_pause_us_max)
    burst = Burst()
    where = str(Path(tempfile.mkdtemp()) / "s")
    listener = ShmListener(where, ShmOptions(ring_bytes=RING))
    child = subprocess.Popen([sys.executable, __file__, "--standby", where, str(arena_bytes)], stdout=subprocess.PIPE)
    while (ring := listener.accept()) is None:
        time.sleep(0.001)
    messages, nbytes = probe_messages(arena_bytes), PROBE_PAGES * 4096
    memory = np.random.default_rng(2).bytes(min(arena_bytes, 128 << 20))    # more than the caches hold, as the arena is

    def bandwidth() -> float:
        began = time.monotonic()
        pump(ring, memory, nbytes, messages)
        return messages * nbytes / (time.monotonic() - began)

    before = bandwidth()
    path.begin(1, 1, time.monotonic_ns())
    agent.recording = True
    agent.arena.forget_writes()
    path.attach(ring)
    path.sync.begin()
    path.holding = True
    agent.paused = not traffic
    path.run(app, burst, 32, time.monotonic_ns() + 5_000_000, SPIN)
    made = port.made
    path.measure(True)
    began, last = time.monotonic(), 0
    path.sync_pages = True
    while (not path.sync.done or engine.committed < last) and ring.closed is None:
        last = last if path.sync.done else engine.epoch
        path.run(app, burst, 32, time.monotonic_ns() + 200_000, SPIN)
    took = time.monotonic() - began
    frames, pauses = port.made - made, path.pauses()
    path.measure(False)
    path.run(app, burst, 32, time.monotonic_ns() + 5_000_000, SPIN)
    agent.paused = True
    deadline = time.monotonic() + 5
    while (agent.pending or engine.outstanding) and time.monotonic() < deadline:
        path.run(app, burst, 32, time.monotonic_ns() + 1_000_000, SPIN)
    after = bandwidth()
    ring.close()
    there = json.loads(child.communicate(timeout=120)[0])
    listener.close()
    least = arena.used / statistics.mean((before, after))
    return {"sync_ratio": took / least, "sync_s": took, "channel_gb_per_s": statistics.mean((before, after)) / 1e9,
            "populate_s": there["populate_s"], "pages": path.sync.sent, "group_pages": path.sync.group,
            "frames_per_s_meanwhile": frames / took, **pauses,
            "equal": there["digest"] == arena.digest().hex() and there["epochs"] == engine.committed and not there["divergent"]}


if __name__ == "__main__":
    if "--standby" in sys.argv:
        i = sys.argv.index("--standby")
        standby(sys.argv[i + 1], int(sys.argv[i + 2]))
    else:
        print(measure_sync(int(sys.argv[1])))
