"""Following: tap, channel and standby core, until this node is promoted or its life is over.
"""

from __future__ import annotations

import contextlib
import time

from nfckpt.clock import PairClock
from nfckpt.errors import PeerError
from nfckpt.failover.detector import Detector
from nfckpt.failover.takeover import Takeover
from nfckpt.native import fault
from nfckpt.native.arena import Arena
from nfckpt.native.tap import Tap
from nfckpt.node.shell import EXIT, MS, Shell, Stopped
from nfckpt.replica.standby import Standby
from nfckpt.wire import keeper
from nfckpt.wire.rendezvous import Connector, Listener
from nfckpt.wire.transport import CLOSED

__all__ = ["Follower"]


class Follower(Shell):
    """The loop of a standby."""

    def _follow(self) -> None:
        """Dial the active, follow it, until promoted (returns) or stopped (raises)."""
        b = self.bounds
        self.arena = Arena(b.arena_bytes)
        self.arena.populate(self.used_bytes)        # a sync would wait for each page: the kernel takes longer to make one than the channel to fill it
        self.clock = PairClock()
        self.parts = self._parts()                  # of the active that we may become
        self.parts.arena.touch()
        tap = Tap(self.ports, self.secrets.tap, b.tap_skew_ms_max * MS, b.tap_frames_max, b.tap_bytes_max,
                  b.gate_frames_max * 2, b.gate_bytes_max * 2, cut_off_ns=b.cut_off_ms * MS, fed=self.config.input == "ship")
        self._warm()                # before the hello: from then on the active holds its output for our acks
        deadline = time.monotonic_ns() + b.join_ms_max * MS
        connector = Connector(self.config, self.spec, self.peer, self.life_fd)
        try:
            while True:
                tap.poll(time.monotonic_ns())
                self._heard()
                if self._ports_down(time.monotonic_ns()):       # a tap that sees nothing protects nothing
                    deadline = time.monotonic_ns() + b.join_ms_max * MS
                    time.sleep(0.01)
                    continue
                transport = connector.poll()
                if transport is not None:
                    break
                if time.monotonic_ns() > deadline:
                    raise Stopped(11, f"no active answered within {b.join_ms_max} ms {connector.refusal}".strip())
                time.sleep(0.001)
        finally:
            connector.close()
        self._adopt(transport)
        core = self.core = Standby(pair=self.config.name, node=self.node, layout=self.layout, bounds=b,
                                   secret=self.secrets.tap, arena=self.arena, tap=tap, clock=self.clock,
                                   now=time.monotonic_ns(), key_check=self.secrets.check)
        self._attach()
        self.detector = Detector(b, time.monotonic_ns())
        core.path.watch(self.watch)
        self._perform(core.hello())
        while not self.promoted:
            self._follow_once(core, time.monotonic_ns())

    def _follow_once(self, core: Standby, now: int) -> None:
        if core.path.attached and not core.waiting and not self.outbox and self.takeover is None:
            core.path.run(self._slow_ns, self.patience)
            now = time.monotonic_ns()
        busy = core.tap.poll(now)
        t = self.transport
        lost, silent = "", False
        if t is not None:
            try:
                for _ in range(64):
                    message = t.recv()
                    if message is None:
                        break
                    busy += 1
                    now = time.monotonic_ns()
                    self._perform(core.on_message(now, *message))
                    self._push(now)
                lost = t.closed or ""
            except PeerError as e:
                lost = e.message
        slow = now >= self._slow_ns
        if core.waiting or slow or self.takeover is not None:
            try:
                self._perform(core.work(now))
            except PeerError as e:
                lost = e.message
        self._push(now)
        if slow:
            self._slow_ns = now + MS
            self._show(now)
            if core.promotable and self.listener is None:       # what a takeover would wait for
                self.listener = Listener(self.config, self.spec, self.life_fd)
                self.parts.declare_ahead()
            if self.listener is not None:
                self.listener.prepare()
            if now >= self._drops_ns:
                self._drops_ns = now + 50 * MS
                core.tap.note_drops(now)
            if self._hangs(now, core.path.heard_ns) and not lost:
                lost = f"active silent for {(now - core.path.heard_ns) // MS} ms"
                silent = True
        if slow or self.takeover is not None:           # the witness's answer is waited for
            for heard in self._heard():
                if isinstance(heard, keeper.WitnessSaid):
                    self._perform((self.takeover or core).on_witness(time.monotonic_ns(), heard.answer))
        if slow and self.takeover is None:
            self._perform(core.on_ports(now, self.down_ns if self._ports_down(now) else 0))
        if self.takeover is None:
            proof = self.watch is not None and self.watch.died
            if proof or lost or core.handover:
                self._lost(core, now, lost or ("handover" if core.handover else "killed: the kernel released its life lock"), proof, silent)
        if self.takeover is not None:
            if not self.takeover.peer_dead and self._peer_dead():
                self._outrank_dead()
                self.takeover.on_peer_dead()
            self._perform(self.takeover.advance(time.monotonic_ns()))
            return
        if busy:
            self.patience.worked()
        else:
            self._idle(now)

    def _lost(self, core: Standby, now: int, reason: str, proof: bool, silent: bool) -> None:
        if not proof and not silent and not self.hosts and not core.handover:
            # the channel ended: give the kernel a moment to say that the process did as well
            end = time.monotonic() + 0.05
            while not (proof := self._peer_dead()) and time.monotonic() < end:
                core.tap.poll(time.monotonic_ns())
        parted = False
        if proof:
            self._outrank_dead()
        if proof and self.transport is not None:
            with contextlib.suppress(PeerError):
                while (message := self.transport.recv()) is not None:
                    self._perform(core.on_message(time.monotonic_ns(), *message))
            parted = core.parting or (self.transport.closed or "").startswith(CLOSED)
        if not core.may_claim:
            raise Stopped(11, f"{EXIT[11]} ({core.state.value}): {reason}")
        fault.hit("loss_noticed")
        self.uncommitted = core.tap.waiting_inputs
        now = time.monotonic_ns()
        lost_ns = core.path.heard_ns if silent else (self.watch.died_ns if proof and self.watch is not None else 0) or now
        self.takeover = Takeover(core, self.bounds, node=self.node, now=now, lost_ns=min(now, lost_ns), reason=reason,
                                 proof=proof, kills=not self.hosts, leases=self.hosts, handover=core.handover, parted=parted)
