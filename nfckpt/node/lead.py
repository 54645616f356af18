"""Leading: the app over the interface agent; the hook at every poll boundary; what a takeover leaves to finish.

    app loop ─► Agent.rx_burst ─► _hook: messages, releases, _slow (once a ms), cut ─► frames or "no packets"

A native function runs in ActivePath.run, without the GIL, from one look of `_slow` to the next.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback

import msgspec

from nfckpt.checkpoint.engine import Engine
from nfckpt.clock import PairClock
from nfckpt.errors import NfckptError, PeerError, StateError
from nfckpt.failover.lease_clock import LeaseClock
from nfckpt.failover.takeover import Takeover
from nfckpt.native import fault
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.gate import Gate
from nfckpt.native.tap import Tap
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.node.announcer import Announcer
from nfckpt.node.app import App, AppContext, declare, load_app
from nfckpt.node.shell import MS, Shell, Stopped
from nfckpt.node.suspects import Suspects
from nfckpt.observe.quarantine import Quarantine
from nfckpt.observe.receipt import Receipt
from nfckpt.replica.active import Active
from nfckpt.replica.standby import Standby
from nfckpt.wire import keeper, kinds
from nfckpt.wire.rendezvous import Listener

__all__ = ["Leader"]


class Leader(Shell):
    """The loop of an active."""

    def _lead(self, *, blank: bool, term: int) -> None:
        """Run the app as the active of `term`, until stopped."""
        b = self.bounds
        tap: Tap | None = None
        takeover, standby = self.takeover, self.core
        if takeover is not None:
            assert isinstance(standby, Standby)
            tap = standby.tap
            self._drain(standby)
            applied_ns = time.monotonic_ns()
            fault.hit("drained")
            self._drop_channel()
        else:
            self.arena = Arena(b.arena_bytes)
            self.clock = PairClock(0, time.monotonic_ns())
        # a fresh mapping and a fresh app: nothing but the arena's bytes is carried over
        arena = Arena(fd=os.dup(self.arena.fd))
        app = load_app(self.config) if takeover is not None else self.app
        self.state, parking = declare(self.config, app, arena, self.secrets.table)
        gate = Gate(self.ports, b.gate_frames_max, b.gate_bytes_max)
        agent = self.agent = Agent(self.ports, arena, gate, self.secrets.tap, names_max=b.names_max, parking=parking)
        engine = Engine(b, (standby.path.epoch if isinstance(standby, Standby) else 0) + 1)
        agent.epoch = engine.epoch
        self.writer = EpochWriter(self.secrets.tap)
        lease = LeaseClock(b.lease_ms, b.beat_ms) if self.hosts else None
        core = self.core = Active(pair=self.config.name, node=self.node, peer=self.peer, layout=self.layout, bounds=b, term=term,
                                  agent=agent, engine=engine, writer=self.writer, clock=self.clock, lease=lease,
                                  kills=not self.hosts, key_check=self.secrets.check)
        self._perform(core.unlimited(time.monotonic_ns()))
        if takeover is not None and takeover.unheard:
            core.unheard, core.took_ns = True, takeover.started_ns
        ctx = self.ctx = AppContext(agent, self.clock)
        ctx.tick(time.monotonic_ns())
        reemitted = 0
        if takeover is not None and tap is not None and isinstance(standby, Standby):
            gate.start_at(standby.path.next_seq)
            for _, port, frame in tap.unseen_outputs():
                if not agent.emit(port, frame):         # more than one gate holds: the rest follows what the ports take
                    gate.release()
                    agent.emit(port, frame)
                reemitted += 1
            agent.tap = tap
        self.announcer = Announcer(b, app.announce(ctx))
        self.announcer.tick(time.monotonic_ns(), agent.emit)
        gate.release()
        if reemitted:
            fault.hit("reemitted")
        live_ns = time.monotonic_ns()
        if takeover is not None and tap is not None and isinstance(standby, Standby):
            self._receipt(takeover, standby, tap, applied_ns, live_ns, reemitted)
        self.listener = Listener(self.config, self.spec, self.life_fd)
        self._report("active", {"term": term, "blank": blank})
        fault.hit("leading")
        if takeover is None:
            self._warm()
        else:
            gc.disable()
        agent.hook = self._hook
        self.takeover = None
        if takeover is not None and tap is not None and not takeover.handover and arena.undoable:
            self.suspects = Suspects(agent, tap, b, takeover.started_ns)       # it was gone then: what came later it never read
            self.suspects.enter()
        try:
            while agent.running:
                try:
                    self._run_app(app, agent)
                except Exception as e:
                    if isinstance(e, Stopped) or (isinstance(e, NfckptError) and not isinstance(e, StateError)):
                        raise
                    app = self._survive(e, agent, term)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            self.listener.close()

    def _run_app(self, app: App, agent: Agent) -> None:
        if isinstance(app, PollingFunction):
            app.run(agent, self.ctx)
            if agent.running:
                raise Stopped(8, f"{self.config.app}.run returned while agent.running was True")
        else:
            self._loop(app, agent, self.ctx)

    def _survive(self, e: Exception, agent: Agent, term: int) -> App:
        """The app raised. Over a suspect of the replay: undo, quarantine it, go on with a fresh app. Else fail-stop."""
        text = traceback.format_exc()
        print(text, file=sys.stderr, end="")
        suspects, now = self.suspects, time.monotonic_ns()
        if suspects is None or suspects.in_hand is None or suspects.quarantined >= self.bounds.quarantine_frames_max:
            raise Stopped(8, f"{type(e).__name__} on the packet thread: {e}") from None
        port, key, frame = suspects.undo(now)
        self.quarantined = suspects.quarantined
        app = load_app(self.config)
        agent.arena.forget_regions()
        self.state, parking = declare(self.config, app, agent.arena, self.secrets.table)
        agent.start_over(parking)
        self.ctx = AppContext(agent, self.clock)        # what a thread of the old app still hands over is nobody's
        self.ctx.tick(now)
        self.announcer = Announcer(self.bounds, app.announce(self.ctx))
        self.announcer.tick(now, agent.emit)
        quarantine = Quarantine(self.config.quarantine_dir, self.bounds.quarantine_bytes_max)
        path = quarantine.add(f"{self.config.name}-{self.node}-t{term}-{self.quarantined}", frame,
                              f"port {port}\nkey {key:016x}\nterm {term}\napp {self.config.app}\n\n{text}")
        self._report("quarantined", {"term": term, "port": port, "bytes": len(frame), "key": f"{key:016x}", "pcap": path,
                                     "error": f"{type(e).__name__}: {e}"[:1000], **({"unwritten": quarantine.said} if quarantine.said else {})})
        suspects.boundary()
        return app

    def _drain(self, standby: Standby) -> None:
        """What the channel still holds whole belongs to the state."""
        now = time.monotonic_ns()
        with contextlib.suppress(PeerError):
            while self.transport is not None and (message := self.transport.recv()) is not None:
                if message[0] == kinds.EPOCH:
                    standby.on_message(now, *message)
        standby.drain(now)

    def _loop(self, app: NetworkFunction | NativeFunction, agent: Agent, ctx: AppContext) -> None:
        burst = Burst()
        tick_ns = app.tick_ms * MS
        size = self.bounds.burst_frames_max
        next_tick = ctx.now_ns
        assert isinstance(self.core, Active)
        path = self.core.path
        while agent.running:
            if isinstance(app, NativeFunction) and self.suspects is None and not self.outbox and (path.attached or not path.holding):
                until = min(self._slow_ns, time.monotonic_ns() + next_tick - ctx.now_ns) if tick_ns else self._slow_ns
                path.leave_until_ns = self.core.leave_until_ns
                path.run(app, burst, size, until, self.patience)
                self._handed = agent.handed_out
            if agent.rx_burst(burst, size):
                if isinstance(app, NativeFunction):
                    app.process(burst, ctx.now_ns)
                else:
                    app.on_burst(burst, ctx)
                agent.finish(burst)
            if tick_ns and ctx.now_ns >= next_tick and self.suspects is None:
                next_tick = ctx.now_ns + tick_ns
                app.on_tick(ctx)

    def _hook(self) -> bool:
        """The poll boundary. True: answer "no packets"."""
        now = time.monotonic_ns()
        core, agent = self.core, self.agent
        assert isinstance(core, Active)
        if self.suspects is not None:
            self.suspects.accept()
        t = self.transport
        acks = core.path.take_acks(now) if core.path.attached else -1
        busy = acks > 0
        if t is not None and acks < 0:
            lost = ""
            try:
                while (message := t.recv()) is not None:
                    busy = True
                    if core.session == 0 or core.state.value == "solo":
                        self._perform(core.on_hello(now, message[1]))
                    else:
                        self._perform(core.on_message(now, *message))
                    if self.transport is not t:
                        break
                lost = t.closed or ""
            except PeerError as e:
                lost = e.message
            if lost and self.transport is t:
                dead, now = self._peer_dead(), time.monotonic_ns()      # in this order: see _slow
                self._perform(core.on_peer_lost(now, lost, dead))
                self._drop_channel(keep_watch=core.state.value == "holding")
        if core.may_release(now):
            agent.gate.release()
        if now >= self._slow_ns:
            self._slow(core, now)
        while self.ctx.soon:
            self.ctx.soon.popleft()()
        self.ctx.tick(now)
        if self.suspects is not None:
            self.suspects.boundary()
            if self.suspects.over:
                self.suspects = None
        if core.path.staging.count or self.outbox:
            self._push(now)
        quiet = core.path.poll(now)
        if core.path.captured:
            self._push(now)
            core.path.spent(time.monotonic_ns() - now)
        if quiet and not agent.in_flight:
            self.patience.worked()
            return True
        if t is not None and busy:
            t.flush()
        if busy or agent.handed_out != self._handed:
            self._handed = agent.handed_out
            self.patience.worked()
        elif not quiet and agent.in_flight == 0 and not (agent.tap is not None and agent.tap.waiting_inputs):
            self._idle(now, self.listener.fileno())
        return quiet

    suspects: Suspects | None = None        # while the replay runs frames that the old active may have died of
    quarantined = 0
    _alive_ns = 0
    _handed = 0
    _refused = _refused_ns = 0      # handshakes that failed, as far as reported, and when the next report may be

    def _slow(self, core: Active, now: int) -> None:
        """About once a millisecond: everything that is not a packet's or an epoch's business."""
        self._slow_ns = now + MS
        if now >= self._alive_ns:           # the kernel's default for this timer ends the process, whatever code it is in
            self._alive_ns = now + 500 * MS
            signal.setitimer(signal.ITIMER_VIRTUAL, self.bounds.loop_ms_max / 1000)
        for message in self._heard():
            if isinstance(message, keeper.WitnessSaid):
                self._perform(core.on_witness(now, message.answer))
        # how long we were silent counts up to after its death was seen: a process that was stopped in between has an old `now`
        if self.watch is not None and self.watch.died and not core.peer_dead:
            now = time.monotonic_ns()
            self._perform(core.on_peer_lost(now, "killed: the kernel released its life lock", True))
        elif core.state.value == "holding" and not core.peer_dead and self._peer_dead():
            now = time.monotonic_ns()
            self._perform(core.on_peer_lost(now, "its process ended", True))
        self._perform(core.tick(now))
        self._push(now)
        if core.engine.unprotectable and core.state.value in ("protecting", "active"):
            why = f"the app kept its frames through {core.engine.aborts_in_row} quiesce attempts"
            # a node whose follower is not whole holds the only copy of the state: it goes on alone
            if core.protected and not self.bounds.unsafe_release_on_abort:
                raise Stopped(9, why)
            self._perform(core.give_up(now, f"unprotectable: {why}"))
        self.agent.paused = core.handing_over       # input goes on when the standby is lost in the middle of a switch
        if core.handing_over:
            if effects := core.handed_over(now):
                self._perform(effects)
                fault.hit("handed_over")
        elif self.suspects is None:         # no output of ours among those that a suspect's undoing takes back
            self.announcer.tick(now, self.agent.emit)
        if self.transport is None and self.watch is not None and core.state.value == "solo":
            self._drop_channel()        # a dead peer's watch is always ready: the idle loop would never sleep
        if self.transport is not None and core.state.value == "solo" and now - self.adopted_ns > self.bounds.hang_ms_max * MS:
            self._drop_channel()        # it dialled and never said who it is; the next one must find room
        if self.transport is None and self.suspects is None and (fresh := self.listener.poll()) is not None:
            if core.state.value == "solo":
                self._adopt(fresh)
            else:
                fresh.close()
        if self.listener.refused != self._refused and now >= self._refused_ns:
            self._refused, self._refused_ns = self.listener.refused, now + 1000 * MS
            self._report("follower_refused", {"reason": self.listener.refusal})
        tap = self.agent.tap
        if tap is not None:
            tap.age(0)
            if tap.read_ns >= self.receipt_due_ns and not tap.waiting_inputs:     # a late frame of the old active is in no port's ring
                self._finish_receipt(tap)
                self.agent.tap = None

    # ── receipt ──────────────────────────────────────────────────────────────────────────────────

    def _receipt(self, takeover: Takeover, standby: Standby, tap: Tap, applied_ns: int, live_ns: int,
                 reemitted: int) -> None:
        marks = takeover.marks
        steps, before = {"notice": (takeover.started_ns - takeover.lost_ns) // 1000}, takeover.started_ns
        for name, at in [*marks.items(), ("apply", applied_ns), ("live", live_ns)]:
            steps[name] = (at - before) // 1000
            before = at
        steps["total"] = (live_ns - takeover.lost_ns) // 1000
        self.receipt = {"term": takeover.term, "node": self.node, "reason": takeover.reason, "proof": takeover.proof,
                        "exact": bool(tap.is_exact(live_ns)), "committed_epoch": standby.path.epoch,
                        "uncommitted": self.uncommitted, "replayed": tap.waiting_inputs,
                        "reemitted": reemitted, "steps_us": steps, "before": tap.counters()}
        self.receipt_due_ns = live_ns + 2 * self.bounds.tap_skew_ms_max * MS
        self._report("takeover", {"term": takeover.term, "reason": takeover.reason, "outage_us": steps["total"]})

    def _finish_receipt(self, tap: Tap) -> None:
        assert self.receipt is not None
        now, before = tap.counters(), self.receipt.pop("before")
        receipt = Receipt(**self.receipt, quarantined=self.quarantined, suppressed=now["credited"] - before["credited"],
                          doubled=now["doubled"], active_missed=now["active_missed"], tap_missed=now["tap_missed"])
        self.receipt = None
        self._report("receipt", msgspec.to_builtins(receipt))
        fault.hit("receipt")
