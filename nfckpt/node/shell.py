"""Shell: the I/O around the cores: keeper, channel, effects, idling. One thread, no locks.

Effects are performed in the order a core gave them; what the channel has no room for waits in the outbox, in order.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from nfckpt.clock import PairClock
from nfckpt.failover.detector import Detector, Verdict
from nfckpt.failover.lease import EgressLease, stamp
from nfckpt.failover.takeover import Step, Takeover
from nfckpt.failover.vigil import Vigil
from nfckpt.native import fault
from nfckpt.native.arena import Arena
from nfckpt.native.channel import Channel
from nfckpt.native.delta_encoder import DeltaEncoder
from nfckpt.native.life import LifeLock, LifeWatch
from nfckpt.native.patience import Patience
from nfckpt.node.app import App
from nfckpt.node.parts import Parts
from nfckpt.node.priority import outrank
from nfckpt.observe.board import Board
from nfckpt.observe.receipt import Draft
from nfckpt.ports.arrivals import Stand
from nfckpt.replica.active import Active
from nfckpt.replica.effects import (
    Ask,
    DropPeer,
    Effect,
    Event,
    KillPeer,
    LeaseArm,
    LeasePermanent,
    LeaseStamp,
    Promote,
    Send,
    Stop,
)
from nfckpt.replica.standby import Standby
from nfckpt.secrets import PairSecrets
from nfckpt.wire import keeper, kinds
from nfckpt.wire.adoption import Orphan
from nfckpt.wire.rendezvous import Listener
from nfckpt.wire.transport import Transport

__all__ = ["EXIT", "MS", "Shell", "Stopped"]

MS = 1_000_000
CARRIER_MS = 2                  # far below the skew: what was sent on a dead port meanwhile is still expected by the standby's tap

EXIT = {
    0: "stopped", 2: "bad configuration", 3: "fenced", 4: "handed over", 5: "refused by the active", 6: "divergent",
    7: "a port is gone", 8: "the app raised an exception", 9: "unprotectable", 10: "keeper gone", 11: "lost the active before it was whole",
    12: "refused by the active for now",
}


# where a fault point is an effect about to be performed
AT_EVENT = {"protecting": "protecting", "protected": "protected", "standby_lost": "standby_lost", "solo": "solo"}
AT_QUESTION = {"protected": "asks_protected", "claim": "asks_claim", "took": "asks_took"}


class Stopped(Exception):
    """This process's life is over."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Shell:
    """What following and leading share. `sock`: to the keeper, already past the spec."""

    app: App
    parts: Parts                        # of the active that this process is, or may become
    arena: Arena
    clock: PairClock
    life: LifeLock

    def __init__(self, spec: keeper.NodeSpec, sock: socket.socket) -> None:
        self.config, self.node, self.spec, self.sock = spec.config, spec.node, spec, sock
        self.bounds = spec.config.bounds
        self.peer = next(n for n in spec.config.nodes if n != spec.node)
        self.me = spec.config.nodes[spec.node]
        self.hosts = spec.config.profile == "hosts"
        self.secrets = PairSecrets(spec.key)
        self.transport: Transport | None = None
        self.listener: Listener | None = None       # an active's, and beforehand a standby's: nobody dials that one
        self.adopted_ns = 0
        self.outbox: deque[Send] = deque()          # effects the channel had no room for, in order
        self.watch: LifeWatch | None = None
        self.pidfd, self.peer_pid = -1, 0
        self.core: Active | Standby | None = None
        self.takeover: Takeover | None = None
        self.orphan: Orphan | None = None           # while there is no keeper
        self.vigil: Vigil | None = None             # from the registration on
        self.detector = Detector(self.bounds, time.monotonic_ns())
        self.uncommitted = 0                        # inputs, when the active was lost
        self.promoted = 0
        self.lease: EgressLease | None = None
        self.permanent_mark = 0
        self.receipt: Draft | None = None
        self.stands: dict[int, Stand] | None = None         # by port
        self.ended_in_order = False
        self.ports_down: list[str] = []             # names of those without carrier
        self.down_ns = 0                            # since when, while there are any
        self._carrier_ns = 0
        self._slow_ns = 0
        self._drops_ns = 0
        self.patience = Patience(self.bounds.idle_spin_us, self.bounds.idle_yield_us)
        self._poll: select.poll | None = None
        self.ports: list[Any] = []
        self.layout, self.used_bytes = b"", 0      # of the app's state
        self.life_fd = -1
        self.board: Board | None = None

    def _parts(self, app: App | None = None) -> Parts:
        return Parts(self.config, self.node, self.peer, self.secrets, self.ports, self.layout, self.arena, self.clock, app)

    # ── keeper ───────────────────────────────────────────────────────────────────────────────────

    def _report(self, name: str, fields: dict[str, Any]) -> None:
        keeper.send(self.sock, keeper.Report(name, time.monotonic_ns(), fields))

    def _heard(self) -> list[keeper.FromKeeper]:
        """Messages of the keeper; commands are answered here."""
        out: list[keeper.FromKeeper] = []
        while self._kept() and (raw := keeper.receive(self.sock)) is not None:
            if not raw:
                self._orphaned()
                continue
            message = keeper.from_keeper.decode(raw)
            if isinstance(message, keeper.WitnessSaid):
                if self.vigil is not None:
                    self._perform(self.vigil.heard(time.monotonic_ns(), message.answer))
                if message.answer.verb != "here":
                    out.append(message)
            elif message.verb == "stop":
                raise Stopped(0, "stopped by its keeper")
            elif message.verb == "failover":
                ok = isinstance(self.core, Active) and self.core.hand_over()
                keeper.send(self.sock, keeper.Reply(message.number, {"ok": ok}))
            else:
                keeper.send(self.sock, keeper.Reply(message.number, self.status()))
        if self.vigil is not None:
            self._perform(self.vigil.tick(time.monotonic_ns(), **self._here()))
        return out

    def _orphaned(self) -> None:
        """The keeper is gone: wait for its next life, or stop."""
        try:
            if not self.spec.orphan_ms:
                raise FileNotFoundError
            self.orphan = Orphan(self.spec, time.monotonic_ns())
        except OSError:
            raise Stopped(10, EXIT[10]) from None
        self.sock.close()
        self.sock, self._poll = self.orphan.sock, None          # whoever knocks there wakes us

    def _kept(self) -> bool:
        """Is there a keeper? One that adopts us is told who we are."""
        if self.orphan is None:
            return True
        if (sock := self.orphan.poll()) is None:
            if self.orphan.late(time.monotonic_ns()):
                raise Stopped(10, EXIT[10])
            return False
        self.orphan, self.sock, self._poll = None, sock, None
        self._report("adopted", {"pid": os.getpid(), **self._here()})
        return True

    def _hangs(self, now: int, heard_ns: int) -> bool:
        """Is the peer's silence to be acted on? Not without a keeper: only the witness lets us act, and until it hears us again the peer may speak."""
        return self.detector.looked(now, heard_ns) is Verdict.DEAD and self.orphan is None

    def _here(self) -> dict[str, Any]:
        """What this node is, for a witness that does not know (W8)."""
        core = self.core
        if isinstance(core, Active):
            recorded = core.state.value in ("active", "handed", "holding")
            return {"term": core.term, "leads": True, "other": self.peer if recorded else ""}
        if self.takeover is not None and self.takeover.step is not Step.CLAIM:
            return {"term": self.takeover.term, "leads": True, "other": ""}
        return {"term": core.term if core is not None else 0, "leads": False, "other": ""}

    def status(self) -> dict[str, Any]:
        raise NotImplementedError

    # ── ports ────────────────────────────────────────────────────────────────────────────────────

    def _ports_down(self, now: int) -> bool:
        """Has a port no carrier? Looked at every CARRIER_MS at most; what changes is reported."""
        if now >= self._carrier_ns:
            self._carrier_ns = now + CARRIER_MS * MS
            down = [port.name for port in self.ports if not port.carrier()]
            for name in sorted({*down} ^ {*self.ports_down}):
                if name in down:
                    self._report("port_down", {"port": name})
                else:
                    self._report("port_up", {"port": name})
            if down and not self.ports_down:
                self.down_ns = now
            self.ports_down = down
        return bool(self.ports_down)

    # ── what is shown ────────────────────────────────────────────────────────────────────────────

    def facts(self) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _show(self, now: int) -> None:
        """Once a ms: a part of our numbers for whoever reads the board."""
        if self.board is not None and (code := self.board.turn(now, self.facts)) is not None:
            self._report("metrics_lost", {"address": self.me.metrics, "code": code})

    # ── channel ──────────────────────────────────────────────────────────────────────────────────

    def _adopt(self, transport: Transport) -> None:
        """A fresh channel is the peer's now."""
        self._drop_channel()
        self.transport = transport
        self.adopted_ns = time.monotonic_ns()
        self._poll = None
        self._attach()
        if not self.hosts:
            self.watch = LifeWatch(os.dup(transport.peer_life_fd))      # type: ignore[attr-defined]
            self.pidfd = os.dup(transport.peer_pidfd)                   # type: ignore[attr-defined]
            self.peer_pid = transport.peer_pid                          # type: ignore[attr-defined]

    def _attach(self) -> None:
        """Over a native channel records and acks go without Python; where bytes cost, records are encoded."""
        if self.core is not None and isinstance(self.transport, Channel):
            self.core.path.attach(self.transport)
            if isinstance(self.core, Active) and self.transport.costly:
                b = self.bounds
                self.core.path.encode_with(DeltaEncoder(self.core.agent.arena, self.secrets.tap, b.names_max, b.gate_frames_max))

    def _drop_channel(self, keep_watch: bool = False) -> None:
        if self.transport is not None:
            self.transport.close()
            self.transport = None
        self._poll = None
        self.outbox.clear()
        if self.core is not None:
            self.core.path.attach(None)
        if not keep_watch:
            if self.watch is not None:
                self.watch.close()
                self.watch = None
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1

    def _peer_dead(self) -> bool:
        """The kernel's word: the emitting thread ended, or the whole process did."""
        if self.watch is not None and self.watch.died:
            return True
        if self.pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _outrank_dead(self) -> None:
        """The peer is dead, and its end takes no core from what follows."""
        if self.peer_pid:
            outrank(self.peer_pid)
            self.peer_pid = 0

    def _send(self, message: Send) -> None:
        if self.transport is None:
            return
        if self.outbox or not self.transport.send(message.kind, message.payload):
            self.outbox.append(message)

    def _push(self, now: int) -> bool:
        """Whatever waits for the channel, in order. True when nothing waits."""
        t = self.transport
        if t is None:
            return True
        while self.outbox and t.send(self.outbox[0].kind, self.outbox[0].payload):
            self.outbox.popleft()
        path = self.core.path if isinstance(self.core, Active) else None
        staged = None
        while path is not None and not self.outbox and (staged := path.staged) is not None and t.send(kinds.EPOCH, staged):
            path.shipped()
        t.flush()
        return staged is None and not self.outbox

    def _perform(self, effects: list[Effect]) -> None:
        for e in effects:
            if isinstance(e, Send):
                self._send(e)
            elif isinstance(e, LeaseArm):
                if self.lease is not None:
                    self.lease.renew(e.mark, e.ms)
                    fault.hit("lease_armed")
            elif isinstance(e, LeaseStamp):
                self._stamp(e.mark)
                if self.lease is not None and self.permanent_mark:
                    self.lease.revoke(self.permanent_mark)
                    fault.hit("lease_stamped")
                self.permanent_mark = 0
            elif isinstance(e, LeasePermanent):
                if self.lease is not None:
                    self.lease.permanent(e.mark)
                self.permanent_mark = e.mark
                self._stamp(e.mark)
            elif isinstance(e, Event):
                if e.name in AT_EVENT:
                    fault.hit(AT_EVENT[e.name])
                self._report(e.name, e.fields)
            elif isinstance(e, Ask):
                if e.question.verb in AT_QUESTION:
                    fault.hit(AT_QUESTION[e.question.verb])
                keeper.send(self.sock, keeper.WitnessAsk(e.question))
            elif isinstance(e, DropPeer):
                if self.transport is not None:
                    self.transport.flush()
                self._drop_channel(keep_watch=True)
            elif isinstance(e, KillPeer):
                if self.pidfd >= 0:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif isinstance(e, Promote):
                self.promoted = e.term
                fault.hit("promoted")
            elif isinstance(e, Stop):
                if self.transport is not None:
                    deadline = time.monotonic() + 0.2
                    while not self._push(time.monotonic_ns()) and time.monotonic() < deadline:
                        time.sleep(0.0005)
                raise Stopped(e.code, e.reason)

    def _stamp(self, mark: int) -> None:
        # not port.set_mark: that discards what waits in the ring, and this is still our term
        if self.lease is not None:
            stamp((port.fileno() for port in self.ports), mark)

    # ── idling ───────────────────────────────────────────────────────────────────────────────────

    def _idle(self, now: int, extra: int = -1) -> None:
        """Nothing to do: once patience is at its end, sleep on everything that can wake us, for at most idle_wait_ms_max."""
        if not self.patience.exhausted(now):
            return
        t = self.transport
        if t is not None and not t.before_sleep():
            return
        if self._poll is None:
            self._poll = select.poll()
            fds = [p.fileno() for p in self.ports] + [self.sock.fileno(), extra]
            fds += [t.fileno()] if t is not None else []
            fds += [self.watch.fileno()] if self.watch is not None and not self.watch.died else []
            for fd in fds:
                if fd >= 0:
                    self._poll.register(fd, select.POLLIN)
        self._poll.poll(self.bounds.idle_wait_ms_max)
        if t is not None:
            t.after_sleep()

    def _warm(self) -> None:
        """No collector pauses on the packet thread: what exists now is kept out of it, and it runs by hand no more."""
        gc.collect()
        gc.freeze()
        gc.disable()
