"""SimLeader: leading, as nfckpt/node/lead.py does it; what is seen of the engine between its steps."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

from nfckpt.checkpoint.engine import Engine
from nfckpt.clock import PairClock
from nfckpt.errors import PeerError
from nfckpt.failover.detector import Verdict
from nfckpt.failover.lease_clock import LeaseClock
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import SEND_, Burst
from nfckpt.native.delta_encoder import DeltaEncoder
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.gate import Gate
from nfckpt.replica.active import Active
from nfckpt.replica.effects import Send
from nfckpt.replica.standby import Standby
from nfckpt.sim.app import SimContext
from nfckpt.sim.follow import SimFollower
from nfckpt.sim.shell import MS, Steps, Stopped
from nfckpt.wire import kinds

if TYPE_CHECKING:
    from nfckpt.sim.world import World

__all__ = ["SimLeader"]

BURST_BYTES = 64 << 10
T = TypeVar("T")


class _TracedActive(Active):
    world: World

    def _move(self, event: str) -> None:
        self.world.covered.add(f"active {self.state.value} {event}")
        super()._move(event)


class SimLeader(SimFollower):
    """The loop of an active, which was a standby before, or not."""

    def _lead(self, *, term: int) -> Steps:
        w, b = self.world, self.bounds
        standby = self.core if isinstance(self.core, Standby) else None
        takeover, self.takeover = self.takeover, None
        if standby is not None:
            try:
                while self.transport is not None and (message := self.transport.recv()) is not None:
                    if message[0] in (kinds.EPOCH, kinds.INPUTS):
                        yield from self._take(standby, self.now, *message)
            except PeerError as e:
                w.peer_error(self, e, self.transport is not None and self.transport.lying)
            standby.drain(self.now)
            if standby.tap.fed:
                standby.tap.unfed()
            self._applied(standby)
            self._drop_channel()
            yield self._at("applied")
        else:
            self.arena = Arena(b.arena_bytes)
            self.clock = PairClock(0, self.now)
        arena = Arena(fd=os.dup(self.arena.fd))
        app = self.app = w.app.load()
        parking = w.app.declare(app, arena)
        gate = Gate(self.ports, b.gate_frames_max, b.gate_bytes_max)
        agent = self.agent = Agent(self.ports, arena, gate, w.secret, names_max=b.names_max, parking=parking)
        engine = Engine(b, (standby.path.epoch if standby is not None else 0) + 1)
        agent.epoch = engine.epoch
        writer = EpochWriter(w.secret)
        lease = LeaseClock(b.lease_ms, b.beat_ms) if w.hosts else None
        core = _TracedActive(pair="sim", node=self.node, peer=self.peer, layout=w.layout, bounds=b, term=term, agent=agent,
                             engine=engine, writer=writer, clock=self.clock, lease=lease, kills=not w.hosts)
        core.world = w
        if w.hosts:
            core.path.encode_with(DeltaEncoder(arena, w.secret, b.names_max, b.gate_frames_max))
        if w.ship:
            core.path.ship_inputs()
        self.core = core
        w.leads(self, standby)
        if w.ship and standby is not None:
            w.referee.stranded(standby.tap)
        yield from self._perform(core.unlimited(self.now))
        if takeover is not None and takeover.unheard:
            core.unheard, core.took_ns = True, takeover.started_ns
        ctx = self.ctx = SimContext(agent, self.clock, self.rng, lambda port, frame: w.referee.made(self, port, frame))
        self._tick()
        if standby is not None:
            gate.start_at(standby.path.next_seq)
            standby.tap.recall()
            for _, port, frame in standby.tap.unseen_outputs():
                if w.ship:
                    w.referee.ledger.unknown((port, frame))
                if not agent.emit(port, frame):
                    gate.release()
                    agent.emit(port, frame)
                self.leaving[port].append((agent.epoch, frame, 0))
            agent.tap = standby.tap
        for port, frame in app.announce(ctx):
            ctx.send(port, frame)
        yield self._at("re-emitted")
        gate.release()
        yield self._at("released")
        self.listening = True
        filter_due = self.now + 2 * b.tap_skew_ms_max * MS
        burst = Burst(BURST_BYTES)
        self._slow_ns = next_tick = 0
        while True:
            heard, taken = core.path.heard_ns, agent.handed_out
            if not (yield from self._hook(core, filter_due)):
                yield self._at("may receive")
                if agent.rx_burst(burst, b.burst_frames_max, now=self.now):
                    yield self._at("may ship")
                    self._ship_inputs(core)
                    w.referee.took(self, [(int(port), burst.frame(i)) for i, port in enumerate(burst.port)])
                    yield self._at("received")
                    # an app that polls before it lets go
                    while not w.healed and (self.rng.random() < w.keep_frames or w.now < self.keeps_until):
                        yield from self._hook(core, filter_due)
                        yield self._idle(w.poll_ns(self, True))
                        yield self._at("kept")
                    if isinstance(app, NativeFunction):
                        app.process(burst, ctx.now_ns)
                    else:
                        app.on_burst(burst, ctx)
                    yield self._at("in app")
                    self._finish(burst)
                    yield self._at("done")
            if app.tick_ms and ctx.now_ns >= next_tick:
                if agent.admits(burst, b.burst_frames_max):
                    next_tick = ctx.now_ns + app.tick_ms * MS
                    app.on_tick(ctx)
                else:
                    next_tick = ctx.now_ns + MS
            busy = (core.path.sync_pages or core.path.staging.count or self.outbox or heard != core.path.heard_ns
                    or taken != agent.handed_out)
            opened = core.engine.opened_ns
            yield self._idle(w.poll_ns(self, bool(busy), opened + b.hold_us_max * 1000 - self.now if opened else MS))

    def _finish(self, burst: Burst) -> None:
        outputs = [(int(burst.out_port[i]), burst.frame(i)) for i, verdict in enumerate(burst.verdict) if verdict == SEND_]
        for port, frame in outputs:
            self.world.referee.made(self, port, frame)
        if (sent := self.agent.finish(burst)) != len(outputs):
            self.world.referee.fail(f"I12: the gate refused {len(outputs) - sent} frames of a burst it had kept room for")

    def _tick(self) -> None:
        self.ctx.tick(self.now)
        self.world.referee.clock(self, self.ctx.now_ns)

    def _hook(self, core: Active, filter_due: int) -> Generator[int, None, bool]:
        """The poll boundary. Returns True for "no packets"."""
        w, agent = self.world, self.agent
        now = self.now
        t = self.transport
        if t is not None:
            lost = ""
            try:
                while (message := t.recv()) is not None:
                    yield from self._answer(core, now, *message)
                    if self.transport is not t:
                        break
                lost = t.closed or ""
            except PeerError as e:
                w.peer_error(self, e, t.lying)
                lost = e.message
            if lost and self.transport is t:
                dead, now = self._peer_dead(), self.now
                yield from self._perform(self._seen(core, "lost", core.on_peer_lost(now, lost, dead)))
                self._drop_channel(keep_watch=core.state.value == "holding")
        if core.may_release(now):
            yield self._at("may release")
            agent.gate.release()
        yield self._at("released")
        if now >= self._slow_ns:
            yield from self._slow(core, now, filter_due)
        while self.ctx.soon:
            self.ctx.soon.popleft()()
        self._tick()
        if core.path.staging.count or self.outbox:
            self._ship(core)
            yield self._at("pushed")
        before, aborts = core.engine.epoch, core.engine.aborts
        could = (core.state.value in ("protecting", "active") and not core.path.staging.count and not agent.in_flight
                 and core.engine.outstanding == 0)
        quiet: bool = self._seen(core, "poll", core.path.poll(now))
        if core.engine.epoch != before:
            w.captured(self, core)
            self._waits_ns = 0
        elif could and agent.pending and core.engine.aborts == aborts:
            self._waits_ns = self._waits_ns or now
            if now - self._waits_ns > self.bounds.hold_us_max * 1000:
                w.referee.fail(f"I3: epoch {before} is not cut {(now - self._waits_ns) / 1e6:.3f} ms after it had something to say")
        else:
            self._waits_ns = 0
        yield self._at("cut")
        if core.path.staging.count:
            self._ship(core)
            yield self._at("pushed")
        return quiet

    _waits_ns = 0

    def _answer(self, core: Active, now: int, kind: int, payload: memoryview) -> Steps:
        """One message of the follower."""
        lie = self.transport is not None and self.transport.lying
        if core.session == 0 or core.state.value == "solo":
            effects = core.on_hello(now, payload)
            self.permitted = core.engine.committed
            self._engine = self._look(core)
        else:
            effects = self._seen(core, "message", core.on_message(now, kind, payload))
        if lie:
            self.world.referee.fail(f"I14: {self!r} believed a message of kind {kind} that its peer never sent")
        yield self._at("heard")
        yield from self._perform(effects)

    def _ship_inputs(self, core: Active) -> None:
        if (shipment := core.path.shipment_out()) is not None and self.transport is not None:
            self.outbox.append(Send(kinds.INPUTS, shipment))
            self._push()

    def _ship(self, core: Active) -> None:
        self._push()
        self._seen(core, "push", None)

    def _slow(self, core: Active, now: int, filter_due: int) -> Steps:
        w, agent = self.world, self.agent
        self._slow_ns = now + MS
        for answer in self._heard():
            yield from self._perform(self._seen(core, "lost", core.on_witness(now, answer)))
        if not core.peer_dead and self._peer_dead():
            now = self.now
            yield from self._perform(self._seen(core, "lost", core.on_peer_lost(now, "its process ended", True)))
        yield from self._perform(core.on_ports(now, False))
        if core.session and core.state.value in ("protecting", "active", "handed"):
            core.peer_hangs = self.detector.looked(now, core.path.heard_ns) is Verdict.DEAD
        yield from self._perform(self._seen(core, "lost", core.tick(now)))
        self._ship_inputs(core)
        self._ship(core)
        if core.engine.unprotectable and core.state.value in ("protecting", "active"):
            if core.protected and not self.bounds.unsafe_release_on_abort:
                raise Stopped(9, "the app kept its frames")
            yield from self._perform(self._seen(core, "lost", core.give_up(now, "unprotectable")))
        if self.takes_back and core.engine.state.value == "quiescing":
            core.engine.resume(self.takes_back)
            self.takes_back = 0
            self._seen(core, "resume", None)
        agent.paused = core.handing_over
        if core.handing_over:
            yield from self._perform(core.handed_over(now))
        if self.transport is not None and core.state.value == "solo" and now - self.adopted_ns > self.bounds.hang_ms_max * MS:
            self._drop_channel()
        follower, self.accept = self.accept, None
        if follower is not None and follower.alive and self.transport is None and core.state.value == "solo":
            w.connect(self, follower)
        if agent.tap is not None:
            agent.tap.poll(now)             # the agent may not
            agent.tap.age(0)
            if agent.tap.read_ns >= filter_due and not agent.tap.waiting_inputs:
                agent.tap = None

    # ── the engine's transitions, seen from outside ──────────────────────────────────────────────

    _engine = ("open", 1, 0, 0, 0)

    def _look(self, core: Active) -> tuple[str, int, int, int, int]:
        e = core.engine
        return e.state.value, e.epoch, e.aborts, e.committed, e.outstanding

    def _seen(self, core: Active, why: str, passed_on: T) -> T:
        """The native engine moves by its own table; what it was before and after tells by which row. Passes `passed_on` on."""
        old, new = self._engine, self._look(core)
        if old != new:
            covered, (state, epoch, aborts, committed, outstanding) = self.world.covered, old
            self._engine = new
            if new[2] > aborts:
                covered.update(("engine quiescing deadline", "engine aborted again"))
            if why == "poll" and new[1] > epoch:
                covered.add(f"engine {state} cut")
            if why == "poll" and (state, new[0]) == ("open", "quiescing"):
                covered.add("engine open frames_out")
            if why == "resume":
                covered.add(f"engine {state} resume")
            if why == "push" and state == "captured" and new[0] == "open":
                covered.add("engine captured ship")
            if why == "message" and new[3] > committed:
                covered.add("engine shipped ack")
            if why == "lost" and new[4] < outstanding:
                covered.add("engine shipped channel_lost")
            if why == "lost" and state in ("captured", "quiescing") and new[0] == "open":
                covered.update((f"engine {state} channel_lost", "engine aborted again"))
        return passed_on
