"""The packet process from start to end.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from nfckpt.errors import ConfigError, MachineError, PortError
from nfckpt.failover.lease import EgressLease
from nfckpt.failover.proof import harden_process
from nfckpt.failover.vigil import Vigil
from nfckpt.failover.witness import Question
from nfckpt.native.arena import Arena
from nfckpt.native.life import LifeLock
from nfckpt.native.tap import Tap
from nfckpt.node.app import declare, load_app
from nfckpt.node.follow import Follower
from nfckpt.node.lead import Leader
from nfckpt.node.plan import join
from nfckpt.node.shell import Stopped
from nfckpt.observe.board import Board, ExporterSpec
from nfckpt.ports import open_port, parse_port
from nfckpt.replica.active import Active
from nfckpt.replica.standby import Standby
from nfckpt.wire import keeper

__all__ = ["Node", "main"]


class Node(Follower, Leader):
    """One packet process, one life."""

    start_us = 0            # load the app, declare its state: what a takeover has to do again

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
        except Stopped as e:
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
        if self.me.metrics:         # before the CPU is taken: it inherits all of them
            self.board = Board(ExporterSpec(self.config.name, self.node, self.config.profile, self.me.metrics, self.bounds))
        if self.me.cpu >= 0:        # first of all: the kernel makes the rings without pause, and not on the active's CPU
            os.sched_setaffinity(0, {self.me.cpu % (os.cpu_count() or 1)})
        join(self.node, os.environ)
        began_ns = time.monotonic_ns()
        self.app = load_app(self.config)
        scratch = Arena(self.bounds.arena_bytes)
        declare(self.config, self.app, scratch, self.secrets.table)
        self.start_us = (time.monotonic_ns() - began_ns) // 1000
        self.layout, self.used_bytes = scratch.layout_digest(), scratch.used
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
        self.life = LifeLock(self.life_fd)
        self.life.hold()
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
                if isinstance(message, keeper.WitnessSaid) and message.answer.verb == "register" and message.answer.said != "wait":
                    self.vigil = Vigil(self.node, self.bounds.claim_ms_max, time.monotonic_ns())
                    return message.answer.term if message.answer.said == "lead" else None

    def status(self) -> dict[str, Any]:
        """One flat dict of JSON values; times in ms, sizes in frames or bytes as named."""
        out: dict[str, Any] = {}
        for part in self.facts():
            out |= part
        return out | ({"state": self.state.describe()} if isinstance(self.core, Active) else {})

    def facts(self) -> Iterator[dict[str, Any]]:
        """`status` without a look at the app's structures, in pieces of some 20 µs: one a turn for the board."""
        yield {"node": self.node, "pid": os.getpid(), "profile": self.config.profile, "app": self.config.app, "start_us": self.start_us}
        core, tap = self.core, self._tap()
        if isinstance(core, Active):
            gate, path, engine = core.agent.gate, core.path, core.engine
            yield {"role": core.state.value, "term": core.term, "protected": core.protected, "epoch": engine.committed,
                   "commits": path.commits, "commit_us_mean": round(path.hold_ns_sum / path.commits / 1000, 1) if path.commits else 0,
                   "commit_wait_ns": path.hold_ns_sum, "aborts": engine.aborts, "outputs_held": gate.held_frames,
                   "gate_refused": gate.refused_full, "inputs_uncommitted": path.peer_inputs, "tap_gap": core.peer_gap}
            yield {"quarantined": self.quarantined, "syncing": core.syncing, "sync_page": path.sync.next, "sync_pages_sent": path.sync.sent,
                   "staging_full": path.staging_full, "hold_us": round(engine.hold.ns / 1000, 1), "hold_policy": self.bounds.hold_policy,
                   "hold_binds": engine.hold.binds, "hold_cpu_percent": engine.hold.cpu_percent, "epochs_closed": engine.closed,
                   "arena_used_bytes": core.agent.arena.used}
            yield {"agent": core.agent.counters()}
        elif isinstance(core, Standby):
            now = time.monotonic_ns()
            yield {"role": core.state.value, "term": core.term, "protected": core.promotable, "epoch": core.path.epoch,
                   "inputs_waiting": core.tap.waiting_inputs, "outputs_unseen": core.tap.waiting_outputs,
                   "tap_gap": not core.tap.is_exact(now), "divergent": core.path.divergent_epoch}
        else:
            yield {"role": "starting", "term": 0, "protected": False, "epoch": 0}
        yield {"ports_down": self.ports_down, "unwitnessed": self.vigil is not None and self.vigil.unwitnessed}
        if core is not None and self.transport is not None:
            yield self.detector.describe()
        if tap is not None:
            yield {"tap": tap.counters()}
        ports: dict[str, Any] = {}
        for i, port in enumerate(self.ports):
            ports[f"{i}:{port.name}"] = port.counters()
            yield {"ports": ports}
        if (t := self.transport) is not None:
            yield {"channel": {"bytes_sent": t.bytes_sent, "bytes_received": t.bytes_received, "backlog": t.backlog}}

    def _tap(self) -> Tap | None:
        return self.core.tap if isinstance(self.core, Standby) else self.core.agent.tap if self.core else None


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
