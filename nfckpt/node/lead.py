"""Leading: the app over the interface agent; the hook at every poll boundary; what a takeover leaves to finish.

    app loop ─► Agent.rx_burst ─► _hook: messages, releases, _slow (once a ms), cut ─► frames or "no packets"

A native function runs in ActivePath.run, without the GIL, from one look of `_slow` to the next.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable

import msgspec

from nfckpt.clock import PairClock
from nfckpt.errors import NfckptError, PeerError, StateError
from nfckpt.failover.detector import Detector
from nfckpt.failover.takeover import Takeover
from nfckpt.native import fault
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.function import NativeFunction
from nfckpt.native.shm_ring import ShmRing
from nfckpt.native.tap import Tap
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.node.announcer import Announcer
from nfckpt.node.app import App, AppContext, declare, load_app
from nfckpt.node.parts import Parts
from nfckpt.node.shell import MS, Shell, Stopped
from nfckpt.node.suspects import Suspects
from nfckpt.observe.quarantine import Quarantine
from nfckpt.observe.receipt import Digests, Draft
from nfckpt.observe.receipt import blank as blank_receipt
from nfckpt.ports import AfPacketPort, parse_port
from nfckpt.ports.arrivals import Arrivals, Stand
from nfckpt.replica.active import Active
from nfckpt.replica.standby import Standby
from nfckpt.wire import keeper, kinds
from nfckpt.wire.rendezvous import Listener
from nfckpt.wire.transport import Transport

__all__ = ["Leader"]

BURY_MS = 50            # so long after a death: what was waiting is through by then
CRUMB_BYTES = 256 << 10


class Leader(Shell):
    """The loop of an active."""

    announcer: Announcer

    def _lead(self, *, blank: bool, term: int) -> None:
        """Run the app as the active of `term`, until stopped."""
        takeover, standby = self.takeover, self.core
        if takeover is None:
            self.arena = Arena(self.bounds.arena_bytes)
            self.arena.populate(self.used_bytes)
            self.clock = PairClock(0, time.monotonic_ns())
            self.parts = self._parts(self.app)
            self.parts.lead(term, 1, self.life)
            app = self._go(self.parts)
            self._announce(app)
            self.agent.gate.release()
            self.listener = Listener(self.config, self.spec, self.life_fd)
            self._report("active", {"term": term, "blank": blank})
            if blank and term > 1:
                self._report("receipt", msgspec.to_builtins(blank_receipt(term, self.node)))
            fault.hit("leading")
            self._warm()
        else:
            assert isinstance(standby, Standby)
            app = self._take_over(takeover, standby, term)
            if self.listener is None:           # a switch in the standby's first millisecond
                self.listener = Listener(self.config, self.spec, self.life_fd)
        agent = self.agent
        agent.hook = self._hook
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
            if self.listener is not None:
                self.listener.close()

    def _go(self, parts: Parts) -> App:
        """From here on these parts are the node."""
        self.agent, self.core, self.writer, self.ctx, self.state = parts.agent, parts.core, parts.writer, parts.ctx, parts.state
        now = time.monotonic_ns()
        self._perform(parts.core.unlimited(now))
        self.ctx.tick(now)
        return parts.app

    def _announce(self, app: App) -> None:
        self._prepare_announcement(app)
        self.announcer.tick(time.monotonic_ns(), self.agent.emit)

    def _prepare_announcement(self, app: App) -> None:
        self.announcer = Announcer(self.bounds, app.announce(self.ctx))
        self._announces = True

    def _take_over(self, takeover: Takeover, standby: Standby, term: int) -> App:
        """From the last record to the first frame of our term. What can wait until the replay runs waits: `_later`."""
        b, tap, marks = self.bounds, standby.tap, takeover.marks
        self._drain(standby)
        if tap.fed:
            standby.path.settle_fed()
            tap.unfed()
        window = standby.path.window()          # of the applied state: the app has not run yet
        digests = Digests(offset=window[0], active=f"{window[1]:016x}", standby=f"{window[2]:016x}") if window else None
        marks["apply"] = time.monotonic_ns()
        fault.hit("drained")
        retired, self.transport, self._poll = self.transport, None, None
        parts = self.parts
        parts.lead(term, standby.path.epoch + 1, self.life)
        app = self._go(parts)
        core, agent, gate = parts.core, parts.agent, parts.gate
        marks["app"] = time.monotonic_ns()
        if takeover.unheard:
            core.unheard, core.took_ns = True, takeover.started_ns
        gate.start_at(standby.path.next_seq)
        reemitted = [0] * len(self.ports)
        tap.recall()
        for _, port, frame in tap.unseen_outputs():
            if not agent.emit(port, frame):         # more than one gate holds: the rest follows what the ports take
                gate.release()
                agent.emit(port, frame)
            reemitted[port] += 1
        agent.tap = tap
        if self.config.input == "ship":         # what hosts send comes to us only then
            self._announce(app)
        gate.release()
        if any(reemitted):
            fault.hit("reemitted")
        live_ns = marks["reemit"] = time.monotonic_ns()
        fault.hit("leading")
        if not takeover.handover and parts.arena.undoable:
            self.suspects = Suspects(agent, tap, b, takeover.started_ns)       # it was gone then: what came later it never read
            self.suspects.enter()
        self.takeover = None
        draft = Draft(takeover, standby, tap, node=self.node, uncommitted=self.uncommitted, reemitted=reemitted, digests=digests,
                      live_ns=live_ns, due_ns=live_ns + 2 * b.tap_skew_ms_max * MS)

        def later() -> None:
            if not self._announces:             # we see all that hosts send: what waits goes first, and moves our address as well
                self._prepare_announcement(app)
            if self.config.input == "ship":
                draft.strand(self._stranded(tap))
            self.receipt = draft
            self._report("takeover", {"term": term, "reason": takeover.reason, "lost_ns": takeover.lost_ns, "outage_us": draft.outage_us})
            self._report("active", {"term": term, "blank": False})
            standby.path.watch(None)
            standby.path.attach(None)
            self._retired = retired

        self._live_ns, self._later, self._slow_ns = live_ns, later, live_ns + MS
        self._bury_ns = live_ns + BURY_MS * MS
        return app

    def _stranded(self, tap: Tap) -> list[int | None]:
        """By port: frames that came to the dead active's device, and that it never read, but our own announcement. None: it cannot be
        told. From the announcement on a switch sends us what follows; what hosts broadcast goes to both, and counts here until we look."""
        out: list[int | None] = []
        ours = Counter(port for port, _ in self.announcer.frames)
        for p, form in enumerate(self.config.nodes[self.peer].ports):
            arrivals = None if self.hosts else Arrivals.of(parse_port(form))
            came, stood = arrivals.count() if arrivals is not None else None, tap.stood_at(p)
            unread = -1 if came is None or stood is None else ((came - stood + (1 << 31)) & 0xffffffff) - (1 << 31) - ours[p]
            out.append(unread if unread >= 0 else None)         # below 0: our announcement did not come there
            if arrivals is not None:
                arrivals.close()
        return out

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
        if suspects is None or not suspects.in_hand or suspects.quarantined >= self.bounds.quarantine_frames_max:
            raise Stopped(8, f"{type(e).__name__} on the packet thread: {e}") from None
        blamed = suspects.undo(now)
        app = load_app(self.config)
        agent.arena.forget_regions()
        self.state, parking = declare(self.config, app, agent.arena, self.secrets.table)
        agent.start_over(parking)
        self.ctx = AppContext(agent, self.clock)        # what a thread of the old app still hands over is nobody's
        self.ctx.tick(now)
        self._announce(app)
        if blamed is None:              # a burst: which of its frames it was shows when they come one at a time
            suspects.boundary()
            return app
        port, key, frame = blamed
        self.quarantined = suspects.quarantined
        quarantine = Quarantine(self.config.quarantine_dir, self.bounds.quarantine_bytes_max)
        path = quarantine.add(f"{self.config.name}-{self.node}-t{term}-{self.quarantined}", frame,
                              f"port {port}\nkey {key:016x}\nterm {term}\napp {self.config.app}\n\n{text}")
        self._report("quarantined", {"term": term, "port": port, "bytes": len(frame), "key": f"{key:016x}", "pcap": path,
                                     "error": f"{type(e).__name__}: {e}"[:1000], **({"unwritten": quarantine.said} if quarantine.said else {})})
        suspects.boundary()
        return app

    def _drain(self, standby: Standby) -> None:
        """What the channel still holds whole belongs to the state."""
        with contextlib.suppress(PeerError):
            while self.transport is not None and (message := self.transport.recv()) is not None:
                if message[0] in (kinds.EPOCH, kinds.INPUTS):
                    standby.on_message(time.monotonic_ns(), *message)
        standby.drain(time.monotonic_ns())

    def _loop(self, app: NetworkFunction | NativeFunction, agent: Agent, ctx: AppContext) -> None:
        burst = Burst()
        tick_ns = app.tick_ms * MS
        size = self.bounds.burst_frames_max
        next_tick = ctx.now_ns
        assert isinstance(self.core, Active)
        path = self.core.path
        while agent.running:
            if isinstance(app, NativeFunction) and self.suspects is None and not self.outbox and not self.core.handing_over and (path.attached or not path.holding):
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
                if agent.admits(burst, size):
                    next_tick = ctx.now_ns + tick_ns
                    app.on_tick(ctx)
                else:                           # timers wait as input does
                    next_tick = ctx.now_ns + MS

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
                self._peer_lost(core, now, lost, dead)
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
                self._replayed_ns = now
        if core.path.staging.count or self.outbox:
            self._push(now)
        quiet = core.path.poll(now)
        if core.path.captured:
            self._push(now)
            core.path.spent(time.monotonic_ns() - now)
        if core.handing_over:
            agent.paused = True
            if effects := core.handed_over(now):
                self._perform(effects)
                fault.hit("handed_over")
        if quiet and not agent.in_flight:
            self.patience.worked()
            return True
        if t is not None and busy:
            t.flush()
        if busy or agent.handed_out != self._handed:
            self._handed = agent.handed_out
            self.patience.worked()
        elif not quiet and agent.in_flight == 0 and not (agent.tap is not None and agent.tap.waiting_inputs):
            self._idle(now, self.listener.fileno() if self.listener is not None else -1)
        return quiet

    _later: Callable[[], None] | None = None        # what a takeover left to do
    _retired: Transport | None = None               # a dead peer's channel
    _bury_ns = 0                                    # when there is time to free what belonged to a dead peer, a piece a ms
    _announces = False                              # `announcer` is there
    _live_ns = _replayed_ns = 0                     # when our first frame could leave, and when the last of before had run
    suspects: Suspects | None = None        # while the replay runs frames that the old active may have died of
    quarantined = 0
    _alive_ns = 0
    _stood = 0                              # the session whose standby knows
    _handed = 0
    _refused = _refused_ns = 0      # handshakes that failed, as far as reported, and when the next report may be

    def _slow(self, core: Active, now: int) -> None:
        """About once a millisecond: everything that is not a packet's or an epoch's business."""
        self._slow_ns = now + MS
        if self._later is not None:
            later, self._later = self._later, None
            later()
        if now >= self._alive_ns:           # the kernel's default for this timer ends the process, whatever code it is in
            self._alive_ns = now + 500 * MS
            signal.setitimer(signal.ITIMER_VIRTUAL, self.bounds.loop_ms_max / 1000)
        self._show(now)
        for message in self._heard():
            if isinstance(message, keeper.WitnessSaid):
                self._perform(core.on_witness(now, message.answer))
        # how long we were silent counts up to after its death was seen: a process that was stopped in between has an old `now`
        if self.watch is not None and self.watch.died and not core.peer_dead:
            now = time.monotonic_ns()
            self._peer_lost(core, now, "killed: the kernel released its life lock", True)
        elif core.state.value == "holding" and not core.peer_dead and self._peer_dead():
            now = time.monotonic_ns()
            self._peer_lost(core, now, "its process ended", True)
        self._perform(core.on_ports(now, self._ports_down(now)))
        if core.session and core.state.value in ("protecting", "active", "handed"):
            core.peer_hangs = self._hangs(now, core.path.heard_ns)
        self._perform(core.tick(now))
        self._push(now)
        if core.engine.unprotectable and core.state.value in ("protecting", "active"):
            why = f"the app kept its frames through {core.engine.aborts_in_row} quiesce attempts"
            # a node whose follower is not whole holds the only copy of the state: it goes on alone
            if core.protected and not self.bounds.unsafe_release_on_abort:
                raise Stopped(9, why)
            self._perform(core.give_up(now, f"unprotectable: {why}"))
        self.agent.paused = core.handing_over       # input goes on when the standby is lost in the middle of a switch
        if not core.handing_over and self.suspects is None:     # no output of ours among those that a suspect's undoing takes back
            self.announcer.tick(now, self.agent.emit)
        if now >= self._bury_ns:
            if self._retired is not None:
                self._crumble(self._retired)
            elif self.transport is None and self.watch is not None and core.state.value == "solo":
                self._drop_channel()
        if self.transport is not None and core.state.value == "solo" and now - self.adopted_ns > self.bounds.hang_ms_max * MS:
            self._drop_channel()        # it dialled and never said who it is; the next one must find room
        self._listen(core, now)
        if self.config.input == "ship" and self._stood != (core.session or -1) and self.agent.tap is None:
            self._stand(core)
        tap = self.agent.tap
        if tap is not None:
            tap.age(0)
            if self.receipt is not None and tap.read_ns >= self.receipt.due_ns and self.suspects is None:     # a late frame of the old active is in no port's ring
                self._report("receipt", msgspec.to_builtins(self.receipt.finish(tap, self.quarantined, self._replayed_ns, self.announcer.told_ns)))
                self.receipt = None
                fault.hit("receipt")
            if self.receipt is None and not tap.waiting_inputs:
                self.agent.tap = None

    def _crumble(self, retired: Transport) -> None:
        """Free a part of what a dead peer's channel has: all at once it would be a pause."""
        if not isinstance(retired, ShmRing) or retired.crumble(CRUMB_BYTES):
            retired.close()
            self._retired = None

    def _peer_lost(self, core: Active, now: int, reason: str, dead: bool) -> None:
        if dead:
            self._outrank_dead()
            self._bury_ns = now + BURY_MS * MS
        self._perform(core.on_peer_lost(now, reason, dead))

    def _stand(self, core: Active) -> None:
        """Find out, and tell each standby that is fed, where we stand among all frames that ever came to each port."""
        if self.stands is None:
            self.stands = {p: Stand(port, arrivals) for p, (port, form) in enumerate(zip(self.ports, self.me.ports, strict=True))
                           if isinstance(port, AfPacketPort) and (arrivals := Arrivals.of(parse_port(form))) is not None}
        for stand in self.stands.values():
            stand.look()
        if core.path.shipping and all(stand.done for stand in self.stands.values()):
            self._stood = core.session
            for p, stand in self.stands.items():
                if (number := stand.number) is not None:
                    core.path.shipment.stands_at(p, number & 0xffffffff)

    def _listen(self, core: Active, now: int) -> None:
        """Let a follower in."""
        listener = self.listener
        assert listener is not None
        listener.prepare()
        if self.transport is None and self.suspects is None and (fresh := listener.poll()) is not None:
            if core.state.value == "solo":
                self._adopt(fresh)
                self.detector = Detector(self.bounds, now)
            else:
                fresh.close()
        if listener.refused != self._refused and now >= self._refused_ns:
            self._refused, self._refused_ns = listener.refused, now + 1000 * MS
            self._report("follower_refused", {"reason": listener.refusal})
