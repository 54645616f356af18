"""Pair: an active in this process and a standby in a child, one core each, joined by sealed shared memory.

The native paths of the product do all that is timed (ActivePath.run here, StandbyPath.run there); what a node does once a
millisecond, and Ray, are left out. Epochs are cut at every poll that consumed something.

    with Pair(app, ports, arena_bytes=1 << 30) as pair:
        took = pair.run(0.05)               # Slice: seconds, CPU, frames, epochs; all of them committed
        pair.protect(False); pair.run(0.05) # the same app over the same ports, outputs leave at once
        digest = pair.equal()               # or DifferenceError

The child answers pings of native/bench.pyx whenever it meets one, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from nfckpt.bench.figure import DifferenceError, UnavailableError
from nfckpt.bench.machine import room_for_arenas
from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.errors import PeerError
from nfckpt.native.active_path import WHY_MAIL as LEAD_MAIL
from nfckpt.native.active_path import ActivePath
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.bench import echo, ping
from nfckpt.native.burst import Burst
from nfckpt.native.channel import Channel
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.function import NativeFunction
from nfckpt.native.gate import Gate
from nfckpt.native.patience import Patience
from nfckpt.native.port import Port
from nfckpt.native.standby_path import WHY_MAIL, StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.nf import NetworkFunction
from nfckpt.ports import open_port
from nfckpt.state.state import State
from nfckpt.wire.shm import ShmConnect, ShmOptions
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions

__all__ = ["SECRET", "SPIN", "Pair", "Slice", "cpus"]

SECRET = bytes(range(7, 39))
HANDSHAKE_MS = 60_000               # the child faults its arena in first
SPIN = Patience(1 << 40, 0)          # never gives its CPU away
TCP = TcpOptions(SECRET, handshake_ms_max=HANDSHAKE_MS)
MS = 1_000_000
DRAIN_S = 10.0


def cpus() -> tuple[int, int]:
    """The CPUs of active and standby. Raises UnavailableError where there are no two."""
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) < 2:
        raise UnavailableError("needs two CPUs", "run it where there are two")
    return ours[0], ours[1]


@dataclass(frozen=True)
class Slice:
    """One slice: all epochs of it are committed, and the time until they were is in it. `cpu_s`: of the active's thread."""

    seconds: float
    cpu_s: float
    frames: int
    epochs: int

    @property
    def cpu_ns_per_frame(self) -> float:
        return self.cpu_s * 1e9 / max(1, self.frames)

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds


class Pair:
    """`app` over `ports`. `tap`: port forms (as in a config) of the standby, with the fds it inherits; else it taps nothing.
    `share_cpu`: an idle standby yields its CPU to others. `tcp`: the channel is TCP over loopback, sealed, not shared memory.

    Raises UnavailableError where memory or CPUs do not suffice, PeerError when the child ends.
    """

    def __init__(self, app: NativeFunction | NetworkFunction, ports: Sequence[Port], *, arena_bytes: int, burst: int = 32,
                 window: int = 256, ring_bytes: int = 4 << 20, pages_max: int = 0, tap: Sequence[dict[str, Any]] = (),
                 tap_fds: Sequence[int] = (), skew_ms: int = 0, share_cpu: bool = False, tcp: bool = False) -> None:
        room_for_arenas(arena_bytes)
        self._stack = contextlib.ExitStack()
        before = os.sched_getaffinity(0)
        here, there = cpus()
        self._stack.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {here})
        self.app, self.burst_frames, self.burst = app, burst, Burst()
        self.arena = Arena(arena_bytes)
        self.arena.populate()
        self.state = State(self.arena, seed=SECRET)
        app.declare(self.state)
        self.gate = Gate(list(ports), 1 << 15, 32 << 20)
        self.agent = Agent(list(ports), self.arena, self.gate, SECRET, names_max=1 << 14)
        self.engine = Engine(Bounds(epochs_outstanding_max=window, names_max=1 << 14))
        self.path = ActivePath(self.agent, self.engine, EpochWriter(SECRET), pages_max)
        self.settings: dict[str, Any] = {"arena_bytes": self.arena.size, "burst": burst, "channel": "tcp" if tcp else "shared memory", "ring_bytes": ring_bytes,
                                         "epochs_outstanding_max": window, "hold_us_max": 0, "cpu_active": here, "cpu_standby": there}
        try:
            self._start({"cpu": there, "arena_bytes": self.arena.size, "ring_bytes": ring_bytes, "ports": len(ports),
                         "tap": list(tap), "skew_ms": skew_ms, "sync": pages_max > 0, "share_cpu": share_cpu, "port": 0, "tcp": tcp}, tap_fds)
        except BaseException:
            self.close()
            raise

    def _start(self, spec: dict[str, Any], fds: Sequence[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        attempt: ShmConnect | TcpListener = ShmConnect(ours, ShmOptions(ring_bytes=spec["ring_bytes"], handshake_ms_max=HANDSHAKE_MS))
        if spec["tcp"]:
            attempt.close()
            server = socket.create_server(("127.0.0.1", 0))
            spec["port"] = server.getsockname()[1]
            attempt = TcpListener(server, TCP)
        with theirs:
            spec["fd"] = theirs.fileno()
            self.child = subprocess.Popen([sys.executable, "-m", "nfckpt.bench.pair", json.dumps(spec)], stdin=subprocess.PIPE,
                                          stdout=subprocess.PIPE, pass_fds=[theirs.fileno(), *fds])
        self._stack.callback(self._end_child)
        try:
            while (ring := attempt.poll()) is None:
                if self.child.poll() is not None:
                    raise PeerError(f"the standby ended with code {self.child.returncode}")
                time.sleep(0.0005)
        finally:
            attempt.close()
        self.ring: Channel = ring
        self._stack.callback(ring.close)
        self.path.begin(1, 1, time.monotonic_ns())
        self.path.attach(ring)
        self.ask("ready")
        self._on = False
        self.protect(True)

    def _end_child(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.child.wait(2)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child. Idempotent."""
        self._stack.close()

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """One command to the child, and its answer."""
        self.tell(do, **fields)
        return self.answer()

    def tell(self, do: str, **fields: Any) -> None:
        """A command to the child without waiting for the answer."""
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self.child.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The answer to the last command. Raises PeerError when the child ended."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            raise PeerError(f"the standby ended with code {self.child.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    # ── what is timed ────────────────────────────────────────────────────────────────────────────

    def protect(self, on: bool) -> None:
        """Hold outputs for the standby, or let them leave at once. What was written meanwhile goes with the next epoch."""
        if on == self._on:
            return
        self._on = on
        if on:
            self.gate.release()
            self.gate.captured_all()
            self.gate.shut(self.engine.committed)
            self.agent.forget_names()
        else:
            self.gate.open()
        self.agent.recording = self.path.holding = on
        if on:
            self.drain()

    def poll(self, seconds: float) -> None:
        """The app's loop for so long; a Python app's as in a node. The burst rate is what the ports give."""
        until = time.monotonic_ns() + int(seconds * 1e9)
        if isinstance(self.app, NativeFunction):
            if self.path.run(self.app, self.burst, self.burst_frames, until, SPIN) == LEAD_MAIL:
                raise PeerError(f"the standby sent what is no ack, or ended: {self.ring.closed}")
            return
        raise TypeError("a native function")

    def drain(self) -> None:
        """Take no input until everything is committed and has left."""
        self.agent.paused = True
        deadline = time.monotonic() + DRAIN_S
        while self._on and (self.agent.pending or self.engine.outstanding or self.path.staging.count):
            self.poll(0.0002)
            if time.monotonic() > deadline:
                raise PeerError(f"{self.engine.outstanding} epochs were not committed within {DRAIN_S:.0f} s")
        self.gate.release()
        self.agent.paused = False

    def run(self, seconds: float) -> Slice:
        """One slice."""
        frames, epochs = self.agent.handed_out, self.path.commits
        cpu, began = time.thread_time(), time.monotonic()
        self.poll(seconds)
        self.drain()
        return Slice(time.monotonic() - began, time.thread_time() - cpu, self.agent.handed_out - frames, self.path.commits - epochs)

    def record_bytes(self) -> int:
        """Bytes of the record of one whole burst."""
        self.drain()
        sent = self.ring.bytes_sent
        while self.agent.rx_burst(self.burst, self.burst_frames) == 0:
            pass
        self.app.process(self.burst, time.monotonic_ns())       # type: ignore[union-attr]
        self.agent.finish(self.burst)
        self.drain()
        return int(self.ring.bytes_sent - sent)

    def pings(self, nbytes: int, window: int, seconds: float, took: Any = None) -> float:
        """Bare records of `nbytes` bytes that the child copies out and answers: how many a second."""
        began = time.monotonic()
        n = ping(self.ring, nbytes, window, 1 << 60, time.monotonic_ns() + int(seconds * 1e9), took)
        return n / (time.monotonic() - began)

    # ── what it was ──────────────────────────────────────────────────────────────────────────────

    def equal(self) -> str:
        """Digest (SHA-256, hexadecimal) of the whole arena, the same on both sides after all is committed. Raises DifferenceError."""
        self.protect(True)
        self.drain()
        self.tell("state", used=self.arena.used)
        ours = self.arena.digest().hex()
        self.there = self.answer()
        if self.there["digest"] != ours or self.there["epoch"] != self.engine.committed:
            raise DifferenceError(f"the standby has {self.there['digest'][:16]} at epoch {self.there['epoch']}, the active {ours[:16]} at "
                                  f"{self.engine.committed}")
        return ours


# ── the child ────────────────────────────────────────────────────────────────────────────────────

def standby(spec: dict[str, Any]) -> None:
    """Follow until standard input ends or the channel does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # the bench decides
    os.sched_setaffinity(0, {spec["cpu"]})
    arena = Arena(spec["arena_bytes"])
    arena.populate()
    tap = None
    if spec["tap"]:
        tap = Tap([open_port(form) for form in spec["tap"]], SECRET, spec["skew_ms"] * MS, 1 << 17, 64 << 20, 1 << 17, 64 << 20)
        tap.poll(time.monotonic_ns())
        tap.open()
        tap.whole()
    attempt: ShmConnect | TcpConnect
    if spec["tcp"]:
        attempt = TcpConnect(("127.0.0.1", spec["port"]), TCP)
    else:
        attempt = ShmConnect(socket.socket(fileno=spec["fd"]), ShmOptions(ring_bytes=spec["ring_bytes"], handshake_ms_max=HANDSHAKE_MS), role="acceptor")
    ring: Channel | None
    while (ring := attempt.poll()) is None:
        time.sleep(0.0005)
    core = _follow(spec, tap, arena, ring, 1)
    patience = Patience(50, 1 << 40) if spec["share_cpu"] else SPIN
    gc.collect()
    gc.disable()
    while ring.closed is None:
        if core.run(time.monotonic_ns() + 5 * MS, patience) == WHY_MAIL and not echo(ring, time.monotonic_ns() + 5 * MS):
            _stuck(core, ring)
        if select.select([0], [], [], 0)[0]:
            line = sys.stdin.buffer.readline()
            if not line:
                break
            command = json.loads(line)
            if command["do"] == "blank":                    # as a new standby that holds nothing yet
                core = _follow(spec, tap, arena, ring, core.epoch + 1)
            print(json.dumps(_obey(core, command)), flush=True)


def _follow(spec: dict[str, Any], tap: Tap | None, arena: Arena, ring: Channel, epoch: int) -> StandbyPath:
    core = StandbyPath(tap, arena, SECRET, time.monotonic_ns(), spec["ports"])
    core.begin(1, 1, epoch)
    core.attach(ring)
    core.tap_open = spec["sync"] or tap is not None
    return core


def _stuck(core: StandbyPath, ring: Channel) -> None:
    """A record that the loop left to us: refused, or the tap is full for now."""
    if core.divergent_epoch:
        raise PeerError(f"divergent at epoch {core.divergent_epoch}")
    message = ring.recv()
    while message is not None and not core.commit(message[1], time.monotonic_ns()):
        if core.tap is not None:
            core.tap.poll(time.monotonic_ns())
            core.tap.age(core.released_through)


def _obey(core: StandbyPath, command: dict[str, Any]) -> dict[str, Any]:
    """The answer to one command."""
    if command["do"] == "hold":                             # stop reading until the next line, then time the way to its epoch
        print("{}", flush=True)
        epoch = json.loads(sys.stdin.buffer.readline())["epoch"]
        began = time.monotonic_ns()
        while core.epoch < epoch and core.run(time.monotonic_ns() + MS // 5, Patience(20, 0)) != WHY_MAIL:
            pass
        return {"ns": time.monotonic_ns() - began, "epoch": core.epoch}
    if command["do"] != "state":
        return {}
    tap = core.tap
    return {"digest": hashlib.sha256(core.arena.view()[:command["used"]].data).hexdigest(), "epoch": core.epoch,
            "tap": tap.counters() if tap is not None else {},
            "drops": sum(port.counters()["rx_ring_drops"] for port in tap.ports) if tap is not None else 0}


if __name__ == "__main__":
    standby(json.loads(sys.argv[1]))
