"""The native loops of both sides, alone: nothing waits for Python to come by."""

from __future__ import annotations

import time

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
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.state.state import State
from tests.native_lab import MS, SECRET
from tests.test_wire_shm import ring_pair

ARENA = 1 << 20
SPIN = Patience(1 << 40, 0)


def test_records_and_acks_that_found_the_ring_full_are_sent_by_the_loops_themselves() -> None:
    """With the window full there is no next push to carry them along, and what waits may be what the other side waits for."""
    ours, theirs = ring_pair(4096, send_backlog_bytes_max=1 << 20)
    port = Generator([bytes(64)])
    app = LineWriter(ARENA // 2)
    arena = Arena(ARENA)
    app.declare(State(arena, seed=SECRET))
    gate = Gate([port], 1 << 12, 8 << 20)
    agent = Agent([port], arena, gate, SECRET, names_max=1 << 10)
    engine = Engine(Bounds(epochs_outstanding_max=200))
    active = ActivePath(agent, engine, EpochWriter(SECRET), 0)
    active.begin(1, 1, time.monotonic_ns())
    active.attach(ours)
    active.holding = agent.recording = True
    tap = Tap([Generator([bytes(64)], 1)], SECRET, 0, 1 << 12, 8 << 20, 1 << 12, 8 << 20)
    standby = StandbyPath(tap, Arena(ARENA), SECRET, time.monotonic_ns())
    standby.begin(1, 1, 1)
    standby.attach(theirs)

    burst = Burst()
    active.run(app, burst, 1, time.monotonic_ns() + 50 * MS, SPIN)
    assert ours.backlog or active.staging.count
    agent.paused = True
    deadline = time.monotonic() + 5
    while (agent.pending or engine.outstanding) and time.monotonic() < deadline:
        active.run(app, burst, 1, time.monotonic_ns() + MS // 4, SPIN)
        standby.run(time.monotonic_ns() + MS // 4, SPIN)
    assert engine.outstanding == 0 and standby.epoch == engine.committed
    assert standby.arena.view().tobytes() == arena.view().tobytes()
