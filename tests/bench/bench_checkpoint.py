"""How many checkpoints a second, at what pause, and what protection costs.

Two processes, one core each, joined by sealed shared memory: the active runs a native function over a port that makes
frames, every poll that consumed something is an epoch of its own; the standby copies each record out, checks it, registers
names and outputs, acknowledges, applies. At the end both arenas must have the same SHA-256.

    python tests/bench/bench_checkpoint.py [--json] [--seconds 2] [--arena-mib 1024] [--burst 32]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.bench import Generator, LineWriter
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.patience import Patience
from nfckpt.native.standby_path import WHY_MAIL, StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.state.state import State
from nfckpt.wire.shm import ShmListener, ShmOptions, shm_connect

SECRET = bytes(range(7, 39))
FRAME = bytes.fromhex("020000000001020000000002080045000032000000004011f96a0a000001c6336402") + bytes(30)
SPIN = Patience(10**9, 0)


def pin(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu % (os.cpu_count() or 1)})


def standby(path: str, arena_bytes: int) -> None:
    pin(1)
    arena = Arena(arena_bytes)
    arena.view()[::4096].sum()                              # fault it in
    tap = Tap([Generator(FRAME, 1)], SECRET, 0, 1 << 17, 1 << 20, 1 << 17, 64 << 20)
    tap.poll(time.monotonic_ns())
    ring = shm_connect(path, time.monotonic() + 5, ShmOptions(ring_bytes=4 << 20))
    core = StandbyPath(tap, arena, SECRET, time.monotonic_ns())
    core.begin(1, 1, 1)
    core.attach(ring)
    while ring.closed is None:
        if core.run(time.monotonic_ns() + 50_000_000, SPIN) == WHY_MAIL and ring.recv() is not None:
            core.raise_fault()
    state = State(Arena(fd=os.dup(arena.fd)), seed=SECRET)
    LineWriter(arena_bytes - (1 << 20)).declare(state)
    print(json.dumps({"epochs": core.epochs, "digest": state.arena.digest().hex(), "tap": tap.counters()}))


def active(seconds: float, arena_mib: int, burst_frames: int, protected: bool, written: bool) -> dict[str, Any]:
    pin(0)
    arena_bytes = arena_mib << 20
    arena = Arena(arena_bytes)
    state = State(arena, seed=SECRET)
    app = LineWriter(arena_bytes - (1 << 20) if written else 0)
    app.seed(1)
    app.declare(state)
    arena.view()[::4096].sum()
    port = Generator(FRAME)
    gate = Gate([port], 1 << 15, 32 << 20)
    agent = Agent([port], arena, gate, SECRET, names_max=1 << 14)
    bounds = Bounds(epochs_outstanding_max=256, names_max=1 << 14)
    engine = Engine(bounds)
    path = ActivePath(agent, engine, EpochWriter(SECRET), 0)
    child = None
    burst = Burst()
    if protected:
        where = str(Path(tempfile.mkdtemp()) / "s")
        listener = ShmListener(where, ShmOptions(ring_bytes=4 << 20))
        child = subprocess.Popen([sys.executable, __file__, "--standby", where, str(arena_bytes)], stdout=subprocess.PIPE)
        while (ring := listener.accept()) is None:
            time.sleep(0.001)
        path.begin(1, 1, time.monotonic_ns())
        agent.recording = True
        agent.arena.forget_writes()
        path.attach(ring)
        path.holding = True
    else:
        gate.open()
    path.run(app, burst, burst_frames, time.monotonic_ns() + 200_000_000, SPIN)     # warm up
    commits, made, cpu, began = path.commits, port.made, time.process_time(), time.monotonic()
    path.measure(True)
    path.run(app, burst, burst_frames, time.monotonic_ns() + int(seconds * 1e9), SPIN)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    path.measure(False)
    frames = port.made - made
    out = {"seconds": took, "frames": frames, "frames_per_s": frames / took, "ns_per_frame": cpu * 1e9 / frames}
    if child is not None:
        out |= {"checkpoints_per_s": (path.commits - commits) / took, "epochs": path.commits - commits,
                "frames_per_epoch": frames / max(1, path.commits - commits), **path.pauses()}
        agent.paused = True
        deadline = time.monotonic() + 5
        while (agent.pending or engine.outstanding) and time.monotonic() < deadline:
            path.run(app, burst, burst_frames, time.monotonic_ns() + 1_000_000, SPIN)
        ring.close()
        there = json.loads(child.communicate(timeout=60)[0])
        out |= {"equal": there["digest"] == arena.digest().hex() and there["epochs"] == engine.committed}
        listener.close()
    return out


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--json", action="store_true")
    p.add_argument("--seconds", type=float, default=2.0)
    p.add_argument("--arena-mib", type=int, default=256)
    p.add_argument("--burst", type=int, default=32)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--standby", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.standby:
        standby(a.standby[0], int(a.standby[1]))
        return 0
    rows = []
    for _ in range(a.rounds):
        on = active(a.seconds, a.arena_mib, a.burst, True, True)
        off = active(a.seconds, a.arena_mib, a.burst, False, True)
        on["protect_ns"] = on["ns_per_frame"] - off["ns_per_frame"]
        on["unprotected_ns_per_frame"] = off["ns_per_frame"]
        rows.append(on)
        print({k: round(v, 1) if isinstance(v, float) else v for k, v in on.items()}, file=sys.stderr)
    rows.sort(key=lambda r: r["checkpoints_per_s"])
    result = {**rows[len(rows) // 2], "rounds": len(rows), "cpus": os.cpu_count(), "kernel": os.uname().release,
              "arena_mib": a.arena_mib, "burst": a.burst}
    if a.json:
        print(json.dumps(result))
    else:
        for key in ("checkpoints_per_s", "pause_us_p50", "pause_us_p99", "frames_per_s", "protect_ns", "equal"):
            print(f"{key:20} {result[key]:>14,.1f}" if key != "equal" else f"{key:20} {result[key]!s:>14}")
    return 0 if all(r["equal"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
