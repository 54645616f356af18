"""One run of an app over steps of traffic, killed where it is told to be: the real kernels, in one process, in simulated time.

Picture     step ──► ports of both nodes ──► Agent ─► app ─► Gate ─► capture ─ record ─► StandbyPath ─ ack ─► release ──► outputs
                                               ▲        killed here, or here, or here …      │
                                               └── the standby's arena and tap, a fresh app ◄┘

Where it dies (STAGES), in the order of an epoch's life. Whatever the standby had whole counts; the rest runs again from its tap.
A takeover runs what was already on the segment alone, then lets in a blank standby, syncs it, and can be killed again.

Given steps, seed and kills a run always does the same: `ctx.now_ns` is the step's time, `ctx.random_u64` hangs on the step and
the draw. So an app whose state is in its arena does the same in a killed run as in an unkilled one, byte for byte.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.errors import StateError
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochRecord, EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.gate import Gate
from nfckpt.native.parking import Parking
from nfckpt.native.port import Port
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.sim.nf_parts import (
    STAGES,
    App,
    CheckContext,
    CheckPort,
    Killed,
    Outcome,
    Witness,
    die,
    queue_of,
)
from nfckpt.sim.nf_traffic import Step
from nfckpt.state.state import State

__all__ = ["BOUNDS", "SECRET", "Run"]

HELD_POLLS = 16                 # "no packets" that an app which keeps frames is told, before input goes on
SECRET = bytes(range(32))
BOUNDS = Bounds()
GATE_BYTES = 8 << 20


class Run:
    """`make`: a fresh app, each time. `kills`: step number → stage. `carry(dead, fresh)`: called at each takeover, after `declare`."""

    def __init__(self, make: Callable[[], App], steps: Sequence[Step], *, seed: int, arena_bytes: int, kills: Mapping[int, str] = {},
                 witness: Witness | None = None, carry: Callable[[App, App], None] | None = None, burst_frames: int = 256) -> None:
        self.make, self.steps, self.seed, self.kills = make, steps, seed, kills
        self.arena_bytes, self.burst_frames = arena_bytes, burst_frames
        self.witness, self.carry = witness or Witness(), carry
        self.out = Outcome()
        self.term, self.done, self.sent = 0, 0, 0       # done: steps committed; sent: steps that are on the segment
        self.now = 1
        self._listeners: list[list[Port]] = []
        self.app: App | None = None

    def go(self) -> Outcome:
        """Run to the end. An exception of the app ends it as well, and is in the outcome."""
        life: _Life | None = None
        while True:
            try:
                life = _Life(self, life)
                life.live()
            except Killed:
                assert life is not None
                self._count(life)
                continue
            except Exception:
                number = self.steps[min(self.done, len(self.steps) - 1)].number if self.steps else 0
                self.out.error = (number, traceback.format_exc())
                return self.out
            self._count(life)
            self.out.regions = life.regions(life.arena)
            return self.out

    def _count(self, life: _Life) -> None:
        for name, n in life.agent.counters().items():
            self.out.said[name] = self.out.said.get(name, 0) + n

    def ports(self, n: int) -> list[Port]:
        """Of one more node on the segment; the two youngest listen."""
        fresh: list[Port] = [CheckPort(i, self.left) for i in range(n)]
        self._listeners = [*self._listeners[-1:], fresh]
        return fresh

    def put(self, step: Step) -> None:
        """The frames of a step reach every node, once in a run."""
        for node in self._listeners:
            queue_of(node[step.port]).extend((frame, step.now_ns) for frame in step.frames)
        self.sent += 1

    def left(self, sender: CheckPort, index: int, frame: bytes) -> None:
        self.out.outputs.append((index, frame, self.steps[min(self.done, len(self.steps) - 1)].number))
        for node in self._listeners:
            if node[index] is not sender:
                queue_of(node[index]).append((frame, self.now))


class _Life:
    """One active, and the standby that follows it. `dead`: the life it takes over from."""

    standby: StandbyPath
    standby_ports: list[Port]
    tap: Tap
    next_done: int

    def __init__(self, run: Run, dead: _Life | None) -> None:
        self.run = run
        run.term += 1
        app = self.app = run.make()
        n_ports = len(app.ports) or 2
        self.ports = run.ports(n_ports) if dead is None else dead.standby_ports
        if dead is not None:
            if dead.channel is not None and dead.standby.commit(dead.channel, run.now):
                run.done = dead.next_done
            dead.tap.poll(run.now)
        self.arena = Arena(run.arena_bytes) if dead is None else Arena(fd=os.dup(dead.standby.arena.fd))
        state = State(self.arena, seed=SECRET)
        app.declare(state)
        parking = Parking(self.arena, BOUNDS.park_frames_max)
        state.seal()
        if dead is not None:
            run.out.redeclared |= self._written()
        if dead is not None and run.carry is not None:
            run.carry(dead.app, app)
        self.gate = Gate(self.ports, 1 << 14, GATE_BYTES)
        self.gate.open()
        self.agent = Agent(self.ports, self.arena, self.gate, SECRET, parking=parking)
        self.engine = Engine(BOUNDS, (dead.standby.epoch if dead is not None else 0) + 1)
        self.agent.epoch = self.engine.epoch
        self.ctx = CheckContext(run.seed, self.agent)
        self.ctx.at(run.steps[min(run.done, len(run.steps) - 1)], -1)
        if dead is not None:
            self.gate.start_at(dead.standby.next_seq)
            for _, port, frame in dead.tap.unseen_outputs():
                self.agent.emit(port, frame)
            self.agent.tap = dead.tap
        self.gate.release()
        self._no_writes(app.announce)
        self.path: ActivePath | None = None
        self.channel: bytearray | None = None
        self.next_done = run.done
        run.witness.begins(app, dead.app if dead is not None else None)

    def _no_writes(self, announce: Callable[[Any], Iterable[tuple[int, bytes]]]) -> None:
        self.arena.forget_writes()
        frames = list(announce(self.ctx))                # not emitted: a run with more lives would have more of them
        if self.arena.dirty_lines():
            raise StateError("announce wrote state", "it runs once more at each takeover")
        if any(not 0 <= port < len(self.ports) for port, _ in frames):
            raise StateError("announce names a port that does not exist")

    def _written(self) -> set[str]:
        at = self.arena.dirty_line_numbers() * 64
        return {name for name, (off, n, _, _) in self.arena.regions.items() if ((at >= off) & (at < off + n)).any()}

    # ── protection ───────────────────────────────────────────────────────────────────────────────

    def protect(self) -> None:
        """A blank standby joins and is synced, as replica/active.py and standby.py do it."""
        run, agent, engine = self.run, self.agent, self.engine
        self.standby_ports = run.ports(len(self.ports))
        self.tap = Tap(self.standby_ports, SECRET, 1, 1 << 14, GATE_BYTES, 1 << 14, GATE_BYTES)
        self.standby = StandbyPath(self.tap, Arena(run.arena_bytes), SECRET, run.now)
        path = self.path = ActivePath(agent, engine, EpochWriter(SECRET), run.arena_bytes // 4096 + 1)
        engine.skip()
        agent.epoch = engine.epoch
        self.gate.shut(engine.committed)
        self.gate.captured_all()
        agent.recording = True
        agent.forget_names()
        self.arena.forget_writes()
        path.sync.begin()
        path.begin(run.term << 32 | 1, run.term, run.now)
        self.standby.begin(path.session, run.term, engine.epoch)
        self.tap.open()
        self.standby.tap_open = path.holding = path.sync_pages = True
        while path.sync_pages:
            self.boundary(None)

    def boundary(self, stage: str | None) -> None:
        """The poll boundary, with no frame in the app; `stage`: where to die in it."""
        run, path, now = self.run, self.path, self.run.now
        while self.ctx.soon:
            self.ctx.soon.popleft()()
        if path is None:
            self.gate.release()
            run.done = self.next_done
            return
        die(stage, "handed_out", "processed")
        path.poll(now)
        staged = path.staged
        if staged is None:                      # nothing was said: nothing to lose
            run.done = self.next_done
            die(stage, *STAGES)
            return
        die(stage, "captured")
        self.channel = record = bytearray(staged)
        path.shipped()
        die(stage, "shipped")
        assert self.standby.commit(record, now), "the standby has room"
        self.channel, run.done = None, self.next_done
        if self.standby.divergent_epoch:
            self._unmarked()
        if stage == "applied":
            undo = EpochRecord(record, self.standby.arena, len(self.ports))
            undo.swap(self.standby.arena)
            undo.unswap(self.standby.arena)
            raise Killed
        die(stage, "acked")
        path.on_ack(self.standby.ack(self.standby.epoch, now), now, True)
        if stage == "half_released":
            held = self.gate.held_frames
            for port in self.ports:
                assert isinstance(port, CheckPort)
                port.room = held // 2
            self.gate.release()
            raise Killed
        self.gate.release()
        self.tap.poll(now)
        die(stage, "released")

    def _unmarked(self) -> None:
        ours, theirs = self.regions(self.arena), self.regions(self.standby.arena)
        self.run.out.unmarked |= {name for name in ours if ours[name] != theirs[name]}

    def regions(self, arena: Arena) -> dict[str, bytes]:
        view = arena.view()
        return {name: view[off:off + n].tobytes() for name, (off, n, _, _) in self.arena.regions.items()}

    # ── the app's loop ───────────────────────────────────────────────────────────────────────────

    def live(self) -> None:
        """From the first step that is not committed to the last."""
        if self.run.done == self.run.sent:
            self.protect()
        if isinstance(self.app, PollingFunction):
            poll = _PolledAgent(self)
            self.run.witness.calling(self.app.run, poll, self.ctx)
            if self.agent.running:
                raise StateError("run returned while agent.running was True")
        else:
            self._bursts(self.app)
        if self.path is not None:
            self._unmarked()

    def _bursts(self, app: NetworkFunction | NativeFunction) -> None:
        run, burst = self.run, Burst()
        for step in run.steps[run.done:]:
            stage = self.begin(step)
            run.witness.before(step, app)
            if step.is_tick:
                self._seed(step, 0)
                run.witness.calling(app.on_tick, self.ctx)
            left = len(step.frames)
            while left:
                self._seed(step, len(step.frames) - left)
                got = self.agent.rx_burst(burst, min(left, self.run.burst_frames))
                assert got, "what is on the segment comes"
                left -= got
                die(stage, "handed_out")
                if isinstance(app, NativeFunction):
                    run.witness.calling(app.process, burst, step.now_ns)
                else:
                    run.witness.calling(app.on_burst, burst, self.ctx)
                self.agent.finish(burst)
            run.witness.after(step, app)
            self.end(stage)

    def _seed(self, step: Step, offset: int) -> None:
        self.ctx.at(step, offset)
        if isinstance(self.app, NativeFunction):
            self.app.seed(self.ctx.random_u64())

    def begin(self, step: Step) -> str | None:
        """The next step: its frames come, unless they are there. Returns where to die in it."""
        run = self.run
        run.now = step.now_ns
        self.next_done += 1
        if run.sent < self.next_done:
            run.put(step)
        return run.kills.get(step.number) if self.path is not None else None

    def end(self, stage: str | None) -> None:
        self.boundary(stage)
        if self.path is None and self.run.done == self.run.sent:        # the replay is over
            self.protect()


class _PolledAgent:
    """The agent as a polling app sees it: each poll is a boundary, and frames come a step at a time."""

    def __init__(self, life: _Life) -> None:
        self._life, self._agent = life, life.agent
        self._steps = list(life.run.steps[life.run.done:])
        self._step: Step | None = None
        self._left, self._held = 0, 0
        self._stage: str | None = None
        self.tx_burst, self.drop, self.park = self._agent.tx_burst, self._agent.drop, self._agent.park

    @property
    def running(self) -> bool:
        return self._agent.running

    def rx_burst(self, burst: Burst, max_frames: int = 32) -> int:
        life, agent = self._life, self._agent
        if not self._left:
            if agent.in_flight and self._held < HELD_POLLS:
                self._held += 1
                return self._nothing(burst)
            if not agent.in_flight and (self._step is not None or agent.pending):
                if self._step is not None:
                    life.run.witness.after(self._step, life.app)
                self._step, stage, self._stage = None, self._stage, None
                life.end(stage)
                return self._nothing(burst)
            self._held = 0
            if not self._steps:
                agent.running = False
                return self._nothing(burst)
            self._step = step = self._steps.pop(0)
            self._stage = life.begin(step) or self._stage
            self._left = len(step.frames)
            life.run.witness.before(step, life.app)
        assert self._step is not None
        life.ctx.at(self._step, len(self._step.frames) - self._left)
        got = agent.rx_burst(burst, min(max_frames, self._left, life.run.burst_frames))
        self._left -= got
        if got:
            die(self._stage, "handed_out")
        return int(got)

    def _nothing(self, burst: Burst) -> int:
        """No packets: into a burst that is empty then, and must own nothing."""
        return int(self._agent.rx_burst(burst, 0))
