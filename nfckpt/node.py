"""The packet process: one loop on one thread, the shell around the sans-I/O cores. It performs their effects.

Picture     keeper ──spec──► Node.run()
                               register with the witness (through the keeper)
                               ├─ lead    ► _lead(): agent + app loop, `_hook` at every poll
                               └─ follow  ► _follow(): tap, channel, standby core ──promoted──► _lead()

A process lives one life: when it is fenced, refused or broken it ends, and its keeper starts a fresh, blank one.
Exit codes tell the keeper why (EXIT).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from nfckpt.checkpoint.engine import Engine
from nfckpt.clock import PairClock
from nfckpt.config import PairConfig
from nfckpt.errors import ConfigError, MachineError, NfckptError, PeerError, PortError, StateError
from nfckpt.failover.lease import EgressLease, stamp
from nfckpt.failover.lease_clock import LeaseClock
from nfckpt.failover.proof import harden_process
from nfckpt.failover.takeover import Takeover
from nfckpt.failover.witness import Question
from nfckpt.native.active_path import WHY_IDLE as LEAD_IDLE
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.gate import Gate
from nfckpt.native.life import LifeLock, LifeWatch
from nfckpt.native.parking import Parking
from nfckpt.native.shm_ring import ShmRing
from nfckpt.native.standby_path import WHY_IDLE as FOLLOW_IDLE
from nfckpt.native.tap import Tap
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.observe.receipt import Receipt
from nfckpt.ports import open_port, parse_port
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
from nfckpt.state.state import State
from nfckpt.wire import keeper, kinds
from nfckpt.wire.rendezvous import Connector, Listener
from nfckpt.wire.transport import CLOSED, Transport

__all__ = ["EXIT", "Node", "declare", "load_app", "main"]

MS = 1_000_000

EXIT = {
    0: "stopped", 2: "bad configuration", 3: "fenced", 4: "handed over", 5: "refused by the active", 6: "divergent",
    7: "a port is gone", 8: "the app raised an exception", 9: "unprotectable", 10: "keeper gone", 11: "lost the active before it was whole",
    12: "refused by the active for now",
}


class _Stopped(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


App = NetworkFunction | PollingFunction | NativeFunction


def load_app(config: PairConfig) -> App:
    """The app's object. Raises ConfigError when "module:Class" or its arguments do not fit."""
    module, _, name = config.app.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        hint = "start where it lies, or put its folder on PYTHONPATH" if module.split(".")[0] == e.name else where(e)
        raise ConfigError(f"app = {config.app!r}: {e}", hint) from None
    except Exception as e:
        raise ConfigError(f"app = {config.app!r}: {type(e).__name__}: {e}", where(e)) from None
    try:
        app = cls(**config.app_args)
    except NfckptError as e:
        raise ConfigError(f"[app] of {config.app}: {e.message}", e.hint) from None
    except Exception as e:
        raise ConfigError(f"[app] of {config.app}: {type(e).__name__}: {e}", where(e)) from None
    if not isinstance(app, (NetworkFunction, PollingFunction, NativeFunction)):
        raise ConfigError(f"{config.app} is no network function", "derive it from nfckpt.NetworkFunction, PollingFunction or NativeFunction")
    widths = {len(n.ports) for n in config.nodes.values()}
    if app.ports and widths != {len(app.ports)}:
        raise ConfigError(f"{config.app} has ports {list(app.ports)}, the nodes give {widths.pop()}")
    return app


def declare(config: PairConfig, app: App, arena: Arena, seed: bytes) -> tuple[State, Parking]:
    """All regions of the pair in `arena`, sealed. Raises ConfigError when the app's `declare` fails."""
    state = State(arena, seed=seed)
    try:
        app.declare(state)
        parking = Parking(arena, max(1, config.bounds.park_frames_max))
    except StateError as e:
        raise ConfigError(f"state of {config.app}: {e.message}", e.hint) from None
    except Exception as e:
        raise ConfigError(f"{config.app}.declare raised {type(e).__name__}: {e}", where(e)) from None
    state.seal()
    return state, parking


def where(e: Exception) -> str:
    """"file.py:12", the innermost line of Python that raised `e`."""
    lines = traceback.extract_tb(e.__traceback__)
    return f"{os.path.basename(lines[-1].filename)}:{lines[-1].lineno}" if len(lines) > 1 else ""


class _Context:
    """nfckpt.nf.Context for one active life."""

    def __init__(self, agent: Agent, clock: PairClock) -> None:
        self._agent, self._clock = agent, clock
        self.soon: deque[Callable[[], None]] = deque()
        self._random = random.Random(os.urandom(16))
        self.now_ns = 0

    def tick(self, mono_ns: int) -> None:
        self.now_ns = self._clock.now(mono_ns)

    def random_u64(self) -> int:
        return self._random.getrandbits(64)

    def send(self, port: int, frame: bytes) -> bool:
        return bool(self._agent.emit(port, frame))

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)

    def park(self, burst: Burst, index: int) -> int:
        return int(self._agent.park(burst, index))

    def unpark(self, handle: int) -> tuple[int, bytes]:
        port, frame = self._agent.parking.take(handle)
        return port, frame


class Node:
    """One packet process. `sock`: to the keeper, already past the spec."""

    def __init__(self, spec: keeper.NodeSpec, sock: socket.socket) -> None:
        self.config, self.node, self.spec, self.sock = spec.config, spec.node, spec, sock
        self.bounds = spec.config.bounds
        self.peer = next(n for n in spec.config.nodes if n != spec.node)
        self.me = spec.config.nodes[spec.node]
        self.hosts = spec.config.profile == "hosts"
        self.secrets = PairSecrets(spec.key)
        self.transport: Transport | None = None
        self.adopted_ns = 0
        self.outbox: deque[Send] = deque()          # effects the channel had no room for, in order
        self.watch: LifeWatch | None = None
        self.pidfd = -1
        self.core: Active | Standby | None = None
        self.takeover: Takeover | None = None
        self.uncommitted = 0                        # inputs, when the active was lost
        self.promoted = 0
        self.lease: EgressLease | None = None
        self.permanent_mark = 0
        self.receipt: dict[str, Any] | None = None
        self.receipt_due_ns = 0
        self.ended_in_order = False
        self._slow_ns = 0
        self._drops_ns = 0
        self._idle_since = 0
        self._stop_request = False
        self._poll: select.poll | None = None
        self.ports: list[Any] = []

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> int:
        """Until something ends this process. Returns the exit code."""
        try:
            self._open()
            term = self._register()
            if term is None:
                self._follow()
                self._lead(blank=False, term=self.promoted)
            else:
                self._lead(blank=True, term=term)
            return 0
        except _Stopped as e:
            self.ended_in_order = e.code == 0
            if isinstance(self.core, Standby) and self.takeover is None:
                self._perform(self.core.leave())
                self._push(time.monotonic_ns())
            self._report("stopped", {"code": e.code, "reason": e.reason})
            return e.code
        except PortError as e:
            self._report("stopped", {"code": 7, "reason": str(e)})
            return 7
        except (ConfigError, MachineError) as e:
            self._report("stopped", {"code": 2, "reason": str(e)})
            return 2
        finally:
            self._close()

    def _open(self) -> None:
        if self.me.cpu >= 0:        # first of all: the kernel makes the rings without pause, and not on the active's CPU
            os.sched_setaffinity(0, {self.me.cpu % (os.cpu_count() or 1)})
        self.app = load_app(self.config)
        scratch = Arena(self.bounds.arena_bytes)
        declare(self.config, self.app, scratch, self.secrets.table)
        self.layout = scratch.layout_digest()
        forms = [parse_port(form) for form in self.me.ports]
        for form in forms:
            if form.get("scheme") == "afpacket":
                form |= {"rx_ring_frames": self.bounds.rx_ring_frames, "tx_ring_frames": self.bounds.tx_ring_frames}
            elif form.get("scheme") == "mem":
                form["reset"] = True        # as a socket: what passed before this life is not its input (the peer's outputs are there)
            self.ports.append(open_port(form))
        if self.hosts and not self.bounds.unsafe_no_egress_lease:
            if {f.get("scheme") for f in forms} != {"afpacket"} or len({f.get("netns") for f in forms}) != 1:
                raise ConfigError("profile hosts fences the ports' devices, and these ports are none",
                                  "use afpacket: ports in one namespace, or bounds.unsafe_no_egress_lease = true")
            self.lease = EgressLease(forms[0].get("netns"), [f["ifname"] for f in forms],
                                     f"nfckpt_{self.config.name}_{self.node}")
            self.lease.install()
        self.life_fd = LifeLock.create()
        self._life = LifeLock(self.life_fd)
        self._life.hold()
        harden_process()
        sys.setswitchinterval(0.0005)

    def _close(self) -> None:
        """Only what the process's end does not do by itself. Closing a packet socket takes the kernel tens of ms, in which the
        peer, told by the end of the channel but not by that of the process, would have to kill us."""
        if self.hosts:
            self._drop_channel()        # says goodbye
        if self.lease is not None:
            # a node that ends otherwise stays fenced: the table outlives it
            if self.ended_in_order:
                self.lease.remove()
            self.lease.close()

    def _report(self, name: str, fields: dict[str, Any]) -> None:
        keeper.send(self.sock, keeper.Report(name, time.monotonic_ns(), fields))

    # ── keeper ───────────────────────────────────────────────────────────────────────────────────

    def _register(self) -> int | None:
        """The term to lead in, or None to follow. Waits for the witness as long as it takes."""
        asked = 0.0
        life = os.urandom(8).hex()
        while True:
            if time.monotonic() - asked > self.bounds.claim_ms_max / 1000:
                asked = time.monotonic()
                keeper.send(self.sock, keeper.WitnessAsk(Question("register", self.node, life=life)))
            select.select([self.sock], [], [], 0.2)
            for message in self._heard():
                if isinstance(message, keeper.WitnessSaid) and message.answer.verb == "register":
                    return message.answer.term if message.answer.said == "lead" else None

    def _heard(self) -> list[keeper.FromKeeper]:
        """Messages of the keeper; commands are answered here."""
        out: list[keeper.FromKeeper] = []
        while (raw := keeper.receive(self.sock)) is not None:
            if not raw:
                raise _Stopped(10, EXIT[10])
            message = keeper.from_keeper.decode(raw)
            if isinstance(message, keeper.WitnessSaid):
                out.append(message)
            elif message.verb == "stop":
                raise _Stopped(0, "stopped by its keeper")
            elif message.verb == "failover":
                ok = isinstance(self.core, Active) and self.core.hand_over()
                keeper.send(self.sock, keeper.Reply(message.number, {"ok": ok}))
            else:
                keeper.send(self.sock, keeper.Reply(message.number, self.status()))
        return out

    def status(self) -> dict[str, Any]:
        """One flat dict of JSON values; times in ms, sizes in frames or bytes as named."""
        out: dict[str, Any] = {"node": self.node, "pid": os.getpid(), "profile": self.config.profile,
                               "app": self.config.app}
        core = self.core
        if isinstance(core, Active):
            gate, path = core.agent.gate, core.path
            out |= {"role": core.state.value, "term": core.term, "protected": core.protected, "epoch": core.engine.committed,
                    "commits": path.commits, "commit_us_mean": round(path.hold_ns_sum / path.commits / 1000, 1) if path.commits else 0,
                    "aborts": core.engine.aborts, "outputs_held": gate.held_frames, "gate_refused": gate.refused_full,
                    "inputs_uncommitted": path.peer_inputs, "tap_gap": core.peer_gap, "agent": core.agent.counters(),
                    "syncing": core.syncing, "sync_page": self.writer.next_page,
                    "arena_used_bytes": core.agent.arena.used, "state": self.state.describe()}
        elif isinstance(core, Standby):
            now = time.monotonic_ns()
            out |= {"role": core.state.value, "term": core.term, "protected": core.promotable, "epoch": core.path.epoch,
                    "inputs_waiting": core.tap.waiting_inputs, "outputs_unseen": core.tap.waiting_outputs,
                    "tap_gap": not core.tap.is_exact(now), "divergent": core.path.divergent_epoch}
        else:
            out |= {"role": "starting", "term": 0, "protected": False, "epoch": 0}
        if (tap := self._tap()) is not None:
            out["tap"] = tap.counters()
        out["ports"] = {f"{i}:{p.name}": p.counters() for i, p in enumerate(self.ports)}
        if self.transport is not None:
            out["channel"] = {"bytes_sent": self.transport.bytes_sent, "bytes_received": self.transport.bytes_received,
                              "backlog": self.transport.backlog}
        return out

    def _tap(self) -> Tap | None:
        return self.core.tap if isinstance(self.core, Standby) else self.core.agent.tap if self.core else None

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

    def _attach(self) -> None:
        """Over shared memory records and acks go without Python."""
        if self.core is not None and isinstance(self.transport, ShmRing):
            self.core.path.attach(self.transport)

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
        staged = path.staged if path is not None else None
        if path is not None and staged is not None and not self.outbox and t.send(kinds.EPOCH, staged):
            path.shipped()
            staged = None
        t.flush()
        return staged is None and not self.outbox

    def _perform(self, effects: list[Effect]) -> None:
        for e in effects:
            if isinstance(e, Send):
                self._send(e)
            elif isinstance(e, LeaseArm):
                if self.lease is not None:
                    self.lease.renew(e.mark, e.ms)
            elif isinstance(e, LeaseStamp):
                self._stamp(e.mark)
                if self.lease is not None and self.permanent_mark:
                    self.lease.revoke(self.permanent_mark)
                self.permanent_mark = 0
            elif isinstance(e, LeasePermanent):
                if self.lease is not None:
                    self.lease.permanent(e.mark)
                self.permanent_mark = e.mark
                self._stamp(e.mark)
            elif isinstance(e, Event):
                self._report(e.name, e.fields)
            elif isinstance(e, Ask):
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
            elif isinstance(e, Stop):
                if self.transport is not None:
                    deadline = time.monotonic() + 0.2
                    while not self._push(time.monotonic_ns()) and time.monotonic() < deadline:
                        time.sleep(0.0005)
                raise _Stopped(e.code, e.reason)

    def _stamp(self, mark: int) -> None:
        # not port.set_mark: that discards what waits in the ring, and this is still our term
        if self.lease is not None:
            stamp((port.fileno() for port in self.ports), mark)

    # ── idling ───────────────────────────────────────────────────────────────────────────────────

    def _idle(self, now: int, extra: int = -1) -> None:
        """Spin for idle_spin_us, then sleep on everything that can wake us, for at most idle_wait_ms_max."""
        if self._idle_since == 0:
            self._idle_since = now
        if now - self._idle_since < self.bounds.idle_spin_us * 1000:
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

    # ── following ────────────────────────────────────────────────────────────────────────────────

    def _follow(self) -> None:
        """Dial the active, follow it, until promoted (returns) or stopped (raises)."""
        b = self.bounds
        self._warm()                # before the hello: from then on the active holds its output for our acks
        self.arena = Arena(b.arena_bytes)
        self.clock = PairClock()
        tap = Tap(self.ports, self.secrets.tap, b.tap_skew_ms_max * MS, b.tap_frames_max, b.tap_bytes_max,
                  b.gate_frames_max * 2, b.gate_bytes_max * 2)
        deadline = time.monotonic_ns() + b.join_ms_max * MS
        connector = Connector(self.config, self.spec, self.peer, self.life_fd)
        try:
            while True:
                tap.poll(time.monotonic_ns())
                self._heard()
                transport = connector.poll()
                if transport is not None:
                    break
                if time.monotonic_ns() > deadline:
                    raise _Stopped(11, f"no active answered within {b.join_ms_max} ms {connector.refusal}".strip())
                time.sleep(0.001)
        finally:
            connector.close()
        self._adopt(transport)
        core = self.core = Standby(pair=self.config.name, node=self.node, layout=self.layout, bounds=b,
                                   secret=self.secrets.tap, arena=self.arena, tap=tap, clock=self.clock,
                                   now=time.monotonic_ns(), key_check=self.secrets.check)
        self._attach()
        self._perform(core.hello())
        while not self.promoted:
            self._follow_once(core, time.monotonic_ns())

    def _follow_once(self, core: Standby, now: int) -> None:
        if core.path.attached and not core.waiting and not self.outbox and self.takeover is None:
            if core.path.run(self._slow_ns, self.bounds.idle_spin_us * 1000) == FOLLOW_IDLE:
                self._idle_since = 1            # it has spun
            else:
                self._idle_since = 0
            now = time.monotonic_ns()
        busy = core.tap.poll(now)
        t = self.transport
        lost = ""
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
        if core.waiting:
            self._perform(core.work(now))
        self._push(now)
        if now >= self._slow_ns:
            self._slow_ns = now + MS
            self._perform(core.work(now))
            for heard in self._heard():
                if self.takeover is not None and isinstance(heard, keeper.WitnessSaid):
                    self._perform(self.takeover.on_witness(now, heard.answer))
            if now >= self._drops_ns:
                self._drops_ns = now + 50 * MS
                core.tap.note_drops(now)
            if not lost and now - core.path.heard_ns > self.bounds.hang_ms_max * MS:
                lost = f"active silent for {(now - core.path.heard_ns) // MS} ms"
        if self.takeover is None:
            proof = self.watch is not None and self.watch.died
            if proof or lost or core.handover:
                self._lost(core, now, lost or ("handover" if core.handover else "killed: the kernel released its life lock"), proof)
        if self.takeover is not None:
            if not self.takeover.peer_dead and self._peer_dead():
                self.takeover.on_peer_dead()
            self._perform(self.takeover.advance(time.monotonic_ns()))
            return
        if busy:
            self._idle_since = 0
        else:
            self._idle(now)

    def _lost(self, core: Standby, now: int, reason: str, proof: bool) -> None:
        if not proof and not self.hosts and not core.handover:
            # the channel ended: give the kernel a moment to say that the process did as well
            end = time.monotonic() + 0.05
            while not (proof := self._peer_dead()) and time.monotonic() < end:
                core.tap.poll(time.monotonic_ns())
        parted = False
        if proof and self.transport is not None:
            with contextlib.suppress(PeerError):
                while (message := self.transport.recv()) is not None:
                    self._perform(core.on_message(time.monotonic_ns(), *message))
            parted = (self.transport.closed or "").startswith(CLOSED)
        if not core.may_claim:
            raise _Stopped(11, f"{EXIT[11]} ({core.state.value}): {reason}")
        self.uncommitted = core.tap.waiting_inputs
        self.takeover = Takeover(core, self.bounds, node=self.node, now=time.monotonic_ns(), lost_ns=now, reason=reason,
                                 proof=proof, kills=not self.hosts, leases=self.hosts, handover=core.handover, parted=parted)

    # ── leading ──────────────────────────────────────────────────────────────────────────────────

    def _lead(self, *, blank: bool, term: int) -> None:
        """Run the app as the active of `term`, until stopped."""
        b = self.bounds
        tap: Tap | None = None
        takeover, standby = self.takeover, self.core
        settled_ns = time.monotonic_ns()
        if takeover is not None:
            assert isinstance(standby, Standby)
            tap = standby.tap
            self._drain(standby)
            applied_ns = time.monotonic_ns()
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
        ctx = self.ctx = _Context(agent, self.clock)
        ctx.tick(time.monotonic_ns())
        reemitted = 0
        if takeover is not None and tap is not None and isinstance(standby, Standby):
            gate.start_at(standby.path.next_seq)
            for _, port, frame in tap.unseen_outputs():
                agent.emit(port, frame)
                reemitted += 1
            agent.tap = tap
        for port, frame in app.announce(ctx):
            agent.emit(port, frame)
        gate.release()
        live_ns = time.monotonic_ns()
        if takeover is not None and tap is not None and isinstance(standby, Standby):
            self._receipt(takeover, standby, tap, settled_ns, applied_ns, live_ns, reemitted)
        self.listener = Listener(self.config, self.spec, self.life_fd)
        self._report("active", {"term": term, "blank": blank})
        if takeover is None:
            self._warm()
        else:
            gc.disable()
        agent.hook = self._hook
        self.takeover = None
        self._tick_ns = 0
        try:
            if isinstance(app, PollingFunction):
                app.run(agent, ctx)
                if agent.running:
                    raise _Stopped(8, f"{self.config.app}.run returned while agent.running was True")
            else:
                self._loop(app, agent, ctx)
        except _Stopped:
            raise
        except Exception as e:
            if isinstance(e, NfckptError) and not isinstance(e, StateError):
                raise
            traceback.print_exc()
            raise _Stopped(8, f"{type(e).__name__} on the packet thread: {e}") from None
        finally:
            self.listener.close()

    def _drain(self, standby: Standby) -> None:
        """What the channel still holds whole belongs to the state."""
        now = time.monotonic_ns()
        with contextlib.suppress(PeerError):
            while self.transport is not None and (message := self.transport.recv()) is not None:
                if message[0] == kinds.EPOCH:
                    standby.on_message(now, *message)
        standby.drain(now)

    def _loop(self, app: NetworkFunction | NativeFunction, agent: Agent, ctx: _Context) -> None:
        burst = Burst()
        tick_ns = app.tick_ms * MS
        size = self.bounds.burst_frames_max
        next_tick = ctx.now_ns
        assert isinstance(self.core, Active)
        path = self.core.path
        spin_ns = self.bounds.idle_spin_us * 1000
        while agent.running:
            if isinstance(app, NativeFunction) and not self.outbox and (path.attached or not path.holding):
                until = min(self._slow_ns, time.monotonic_ns() + next_tick - ctx.now_ns) if tick_ns else self._slow_ns
                if path.run(app, burst, size, until, spin_ns) == LEAD_IDLE:
                    self._handed, self._idle_since = agent.handed_out, 1        # it has spun
            if agent.rx_burst(burst, size):
                if isinstance(app, NativeFunction):
                    app.process(burst, ctx.now_ns)
                else:
                    app.on_burst(burst, ctx)
                agent.finish(burst)
            if tick_ns and ctx.now_ns >= next_tick:
                next_tick = ctx.now_ns + tick_ns
                app.on_tick(ctx)

    def _hook(self) -> bool:
        """The poll boundary. True: answer "no packets"."""
        now = time.monotonic_ns()
        core, agent = self.core, self.agent
        assert isinstance(core, Active)
        busy = False
        t = self.transport
        if t is not None:
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
                self._perform(core.on_peer_lost(now, lost, self._peer_dead()))
                self._drop_channel(keep_watch=core.state.value == "holding")
        if core.may_release(now) and agent.gate.release():
            self._perform(core.released(time.monotonic_ns()))
        if now >= self._slow_ns:
            self._slow(core, now)
        while self.ctx.soon:
            self.ctx.soon.popleft()()
        self.ctx.tick(now)
        if core.path.staged_bytes or self.outbox:
            self._push(now)
        quiet = core.path.poll(now)
        if core.path.staged_bytes:
            self._push(now)
        if quiet and not agent.in_flight:
            self._idle_since = 0
            return True
        if t is not None and busy:
            t.flush()
        if busy or agent.handed_out != self._handed:
            self._handed = agent.handed_out
            self._idle_since = 0
        elif not quiet and agent.in_flight == 0 and not (agent.tap is not None and agent.tap.waiting_inputs):
            self._idle(now, self.listener.fileno())
        return quiet

    _handed = 0
    _refused = _refused_ns = 0      # handshakes that failed, as far as reported, and when the next report may be

    def _slow(self, core: Active, now: int) -> None:
        """About once a millisecond: everything that is not a packet's or an epoch's business."""
        self._slow_ns = now + MS
        for message in self._heard():
            if isinstance(message, keeper.WitnessSaid):
                self._perform(core.on_witness(now, message.answer))
        if self.watch is not None and self.watch.died and not core.peer_dead:
            self._perform(core.on_peer_lost(now, "killed: the kernel released its life lock", True))
        elif core.state.value == "holding" and not core.peer_dead and self._peer_dead():
            self._perform(core.on_peer_lost(now, "its process ended", True))
        self._perform(core.tick(now))
        self._push(now)
        if core.engine.unprotectable and core.state.value in ("protecting", "active"):
            why = f"the app kept its frames through {core.engine.aborts_in_row} quiesce attempts"
            # a node whose follower is not whole holds the only copy of the state: it goes on alone
            if core.protected and not self.bounds.unsafe_release_on_abort:
                raise _Stopped(9, why)
            self._perform(core.give_up(now, f"unprotectable: {why}"))
        self.agent.paused = core.handing_over       # input goes on when the standby is lost in the middle of a switch
        if core.handing_over:
            self._perform(core.handed_over(now))
        if self.transport is None and self.watch is not None and core.state.value == "solo":
            self._drop_channel()        # a dead peer's watch is always ready: the idle loop would never sleep
        if self.transport is not None and core.state.value == "solo" and now - self.adopted_ns > self.bounds.hang_ms_max * MS:
            self._drop_channel()        # it dialled and never said who it is; the next one must find room
        if self.transport is None and (fresh := self.listener.poll()) is not None:
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
            if now >= self.receipt_due_ns and not tap.waiting_inputs:
                self._finish_receipt(tap)
                self.agent.tap = None

    # ── receipt ──────────────────────────────────────────────────────────────────────────────────

    def _receipt(self, takeover: Takeover, standby: Standby, tap: Tap, settled_ns: int, applied_ns: int, live_ns: int,
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
        receipt = Receipt(**self.receipt, suppressed=now["credited"] - before["credited"],
                          doubled=now["doubled"], active_missed=now["active_missed"], tap_missed=now["tap_missed"])
        self.receipt = None
        self._report("receipt", msgspec.to_builtins(receipt))

    def _warm(self) -> None:
        """No collector pauses on the packet thread: what exists now is kept out of it, and it runs by hand no more."""
        gc.collect()
        gc.freeze()
        gc.disable()


def main() -> int:
    """`python -m nfckpt.node FD`: FD is the inherited keeper socket. Not for people: a keeper starts it."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        print("nfckpt.node is started by a keeper; to run a pair use `nfckpt run`", file=sys.stderr)
        return 2
    sock = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C reaches the whole group: the keeper decides
    raw = sock.recv(keeper.DATAGRAM_BYTES_MAX)
    if not raw:
        return 10
    spec = msgspec.json.decode(raw, type=keeper.NodeSpec)
    sock.setblocking(False)
    return Node(spec, sock).run()


if __name__ == "__main__":
    ended = main()
    sys.stderr.flush()
    os._exit(ended)         # the peer waits for our death, and not for the interpreter's tidying up
