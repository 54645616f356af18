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
from nfckpt.native.channel_bench import Repeater, pump, sink
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.nat import NativeNat
from nfckpt.native.patience import Patience
from nfckpt.native.shm_ring import ShmRing
from nfckpt.native.shm_segment import Segment
from nfckpt.native.standby_path import WHY_MAIL, StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.state.state import State
from nfckpt.wire.shm import ShmListener, ShmOptions, shm_connect

SECRET = bytes(range(7, 39))
FRAME = bytes.fromhex("020000000001020000000002080045000032000000004011f96a0a000001c6336402") + bytes(30)
SPIN = Patience(10**9, 0)
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


# ── drain ────────────────────────────────────────────────────────────────────────────────────────


def out_frames(flows: int) -> list[bytes]:
    """One UDP frame of 60 bytes for each of `flows` flows, from inside."""
    def checksum(head: bytes) -> int:
        total = sum(int.from_bytes(head[i:i + 2], "big") for i in range(0, len(head), 2))
        total = (total & 0xffff) + (total >> 16)
        return ~(total + (total >> 16)) & 0xffff

    frames = []
    for n in range(flows):
        head = bytes.fromhex("4500002e00004000401100000a000005c0000209")
        head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        udp = (1024 + n % 60000).to_bytes(2, "big") + (53 + n // 60000).to_bytes(2, "big") + bytes.fromhex("001a0000")
        frames.append(bytes.fromhex("026e66000001" "020000000005" "0800") + head + udp + bytes(18))
    return frames


def arp_frame(mac: str, ip: bytes, target: bytes) -> bytes:
    own = bytes.fromhex(mac)
    return b"\xff" * 6 + own + bytes.fromhex("08060001080006040001") + own + ip + bytes(6) + target + bytes(18)


def measure_drain(epochs: int, flows: int = 1024) -> dict[str, Any]:
    """The active's native NAT makes `epochs` epochs of 32 frames, then the standby takes them all, on one core. Rates are per second of CPU time: neither waits."""
    pin(0)
    app = NativeNat(inside_ip="10.0.0.1", outside_ips=["198.51.100.1"], gateway="198.51.100.254", flows_max=4 * flows)
    arena, there = Arena(app.config.arena_bytes), Arena(app.config.arena_bytes)
    app.declare(State(arena, seed=SECRET))
    app.seed(1)
    arena.populate()
    there.populate()
    ports = [Repeater(out_frames(flows)), Repeater([arp_frame("0200000000fe", bytes([198, 51, 100, 254]), bytes([198, 51, 100, 1]))])]
    frames = (epochs + 64) * 32
    agent = Agent(ports, arena, Gate(ports, 2 * frames, (16 << 20) + 256 * frames), SECRET, names_max=1 << 14)
    engine = Engine(Bounds(epochs_outstanding_max=epochs))
    path = ActivePath(agent, engine, EpochWriter(SECRET), 0)
    ring_bytes = 1 << (epochs * 12_000).bit_length()
    one, two = (Segment.create(ring_bytes, bytes(16), role) for role in (1, 2))
    keys = SECRET, SECRET[::-1]
    mine = ShmRing(one, Segment.open(two.fd, bytes(16), 2, ring_bytes), tx_keys=keys[0], rx_keys=keys[1])
    peer = ShmRing(two, Segment.open(one.fd, bytes(16), 1, ring_bytes), tx_keys=keys[1], rx_keys=keys[0])
    tap = Tap([Generator(FRAME, 1), Generator(FRAME, 1)], SECRET, 20_000_000, 3 * frames, 1 << 20, 3 * frames, 512 * frames)
    tap.open()
    core = StandbyPath(tap, there, SECRET, time.monotonic_ns())
    core.begin(1, 1, 1)
    core.attach(peer)
    path.begin(1, 1, time.monotonic_ns())
    path.attach(mine)
    agent.recording = path.holding = True
    burst = Burst()

    def make() -> float:
        first, began = engine.epoch, time.thread_time()
        while engine.outstanding < epochs:
            path.run(app, burst, 32, time.monotonic_ns() + 1_000_000, SPIN)
        return (engine.epoch - first) / (time.thread_time() - began)

    def drain() -> float:
        first, began = core.epochs, time.thread_time()
        while core.epoch < engine.epoch - 1:
            if core.run(time.monotonic_ns() + 1_000_000, SPIN) == WHY_MAIL and (message := peer.recv()) is not None:
                while not core.commit(message[1], time.monotonic_ns()):
                    tap.poll(time.monotonic_ns())           # the tap is full until what it holds is older than the skew
        return (core.epochs - first) / (time.thread_time() - began)

    made = drained = 0.0
    for _ in range(2):                                      # the first time round every page of ring and tables is new
        made, drained = make(), drain()
        agent.paused = True
        while agent.pending or engine.outstanding:
            path.run(app, burst, 32, time.monotonic_ns() + 100_000, SPIN)
            drain()
        agent.paused = False
    return {"drain_ratio": drained / made, "made_per_s": made, "drained_per_s": drained, "epochs": epochs,
            "record_bytes": mine.bytes_sent / engine.committed,
            "equal": bytes(there.view()[:arena.used].tobytes()) == arena.view()[:arena.used].tobytes()}


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--json", action="store_true")
    p.add_argument("--arena-mib", type=int, default=1024)
    p.add_argument("--epochs", type=int, default=10000)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--standby", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.standby:
        standby(a.standby[0], int(a.standby[1]))
        return 0
    rows: dict[str, list[dict[str, Any]]] = {"sync_ratio": [], "drain_ratio": []}
    for _ in range(a.rounds):
        for key, row in (("sync_ratio", measure_sync(a.arena_mib)), ("drain_ratio", measure_drain(a.epochs))):
            rows[key].append(row)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, file=sys.stderr)
            gc.collect()
    equal = all(r["equal"] for group in rows.values() for r in group)
    out: dict[str, Any] = {"cpus": os.cpu_count(), "kernel": os.uname().release, "arena_mib": a.arena_mib, "equal": equal}
    for key, group in rows.items():
        values = sorted(r[key] for r in group)
        out[key] = statistics.median(values)
        out[key + "_spread"] = [values[0], values[-1]]
        out[key + "_rows"] = group
    if a.json:
        print(json.dumps(out))
    else:
        for key, (word, limit) in LIMITS.items():
            low, high = out[key + "_spread"]
            print(f"{key:12} {out[key]:7.2f}   {low:.2f} to {high:.2f}   {word} {limit}")
        print(f"digests {'equal' if equal else 'DIFFER'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
