"""Injector: does to a testbed and its pair what a strike says, and undoes what passes.

Victims     are looked up from outside: the process that holds the node's port (testbed/procs.py), not the one that says it is the active.
            Signals go through a pidfd: a number that has passed to somebody else is never hit.
Points      are armed on the node's fault board, one file a node that outlives its processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nfckpt.deploy.foreground import Pair
from nfckpt.errors import MachineError, ProtectionError
from nfckpt.native.fault import FaultBoard
from nfckpt.testbed import netns, procs
from nfckpt.testbed.chaos.schedule import Strike
from nfckpt.testbed.filters import lose
from nfckpt.testbed.topology import NODES, Testbed

__all__ = ["Blow", "Injector"]

REACHED_S_MAX = 4.0             # for a point to come
LED_S_MAX = 30.0                # after what brings it about: a node may have to start
SWITCHED_S_MAX = 5.0
BACK_S_MAX = 30.0               # for Ray to start an actor, on a busy machine


class _Nobody(Exception):
    """The victim has died by itself since the pair was last looked at."""


@dataclass(frozen=True)
class Blow:
    """What was done. `t_ns`: the instant of death, CLOCK_MONOTONIC. `node`: whose; "" where nobody died."""

    t_ns: int
    node: str = ""
    reached: bool = True


class Injector:
    """`boards`: folder of the fault boards. `hush(node, on)`: from now on the witness does not answer this node."""

    def __init__(self, bed: Testbed, pair: Pair, boards: Path, hush: Callable[[str, bool], None] | None) -> None:
        self.bed, self.pair, self.hush = bed, pair, hush
        self.boards = {node: FaultBoard(str(boards / node)) for node in NODES}
        self.cut_ns: list[tuple[int, int]] = []         # spells in which a data port of the active was cut

    def strike(self, s: Strike, active: str, struck: Callable[[int], None]) -> Blow:
        """Do it, to the end. `struck(t_ns)` is called at the instant. Raises MachineError where the machine cannot."""
        node = active if s.who == "active" else _other(active)
        do: Callable[[Strike, str, str, Callable[[int], None]], Blow] = getattr(self, "_" + s.fault.name.split("-")[0])
        try:
            return do(s, node, active, struck)
        except _Nobody:
            return Blow(time.monotonic_ns(), reached=False)
        finally:
            for board in self.boards.values():
                board.disarm()

    def disarm(self) -> None:
        """Nothing strikes any more."""
        for board in self.boards.values():
            board.disarm()

    def hits(self) -> dict[str, int]:
        """Times each point was reached, both nodes together."""
        return {name: sum(board.hits()[name] for board in self.boards.values()) for name in next(iter(self.boards.values())).hits()}

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def _kill(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        return self._end(node, signal.SIGKILL, struck)

    def _segv(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        return self._end(node, signal.SIGSEGV, struck)

    def _end(self, node: str, number: signal.Signals, struck: Callable[[int], None]) -> Blow:
        with self._pidfd(node) as fd:
            t = time.monotonic_ns()
            signal.pidfd_send_signal(fd, number)
        struck(t)
        return Blow(t, node)

    def _stop(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        with self._pidfd(node) as fd:
            t = time.monotonic_ns()
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
            struck(t)
            self._continue_later(fd, s.last_s)
        return Blow(t, node if s.fault.kills else "")

    _pause = _stop

    def _slow(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        with self._pidfd(node) as fd:
            t = time.monotonic_ns()
            struck(t)
            while time.monotonic_ns() < t + s.last_s * 1e9:
                signal.pidfd_send_signal(fd, signal.SIGSTOP)
                self._continue_later(fd, 0.008)
                time.sleep(0.002)
        return Blow(t)

    def _ray(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        """The keeper is whom the pair names: an adopted packet process is not its child. The witness is another child of its raylet."""
        is_witness = s.fault.name == "ray-witness"
        pid = int(self.pair.status()[node].get("keeper_pid", 0))
        if pid and is_witness:
            pid = _child(_parent(pid), "ray::WitnessActor")
        if not pid:
            raise _Nobody
        t = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        struck(t)
        deadline = time.monotonic() + BACK_S_MAX
        while not (self._has_witness() if is_witness else self.pair.status()[node].get("keeper_pid", pid) != pid):
            if time.monotonic() > deadline:
                raise ProtectionError(f"{s.fault.name}: no next life within {BACK_S_MAX:.0f} s")
            time.sleep(0.02)
        return Blow(t)

    def _has_witness(self) -> bool:
        """One that grants: it was never lost, or has heard both nodes (W8)."""
        try:
            return not self.pair.view().missing
        except ProtectionError:
            return False

    def _switch(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        t = time.monotonic_ns()
        struck(t)
        if not self.pair.failover():
            return Blow(t, reached=False)
        deadline = time.monotonic() + SWITCHED_S_MAX
        while self.pair.active == active and time.monotonic() < deadline:       # until then both still call themselves protected
            time.sleep(0.005)
        return Blow(t)

    def _witness(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        assert self.hush is not None
        t = time.monotonic_ns()
        struck(t)
        for each in NODES:
            self.hush(each, True)
        try:
            time.sleep(s.last_s)
        finally:
            for each in NODES:
                self.hush(each, False)
        return Blow(t)

    @contextlib.contextmanager
    def _pidfd(self, node: str) -> Iterator[int]:
        try:
            fd = os.pidfd_open(procs.owner(self.bed.ns(node), "lan"))
        except (MachineError, ProcessLookupError):
            raise _Nobody from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _continue_later(self, fd: int, seconds: float) -> None:
        try:
            time.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):       # fenced meanwhile
                signal.pidfd_send_signal(fd, signal.SIGCONT)

    # ── fault points ─────────────────────────────────────────────────────────────────────────────

    def _point(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        assert s.point is not None
        if s.point.lead == "takeover":
            node = _other(active)
        board = self.boards[node]
        before = board.struck(s.point.name)[0]
        with contextlib.ExitStack() as undo:        # a point that stops its process: whom to continue
            fd = undo.enter_context(self._pidfd(node)) if not s.point.lead else -1
            board.arm(s.point.name, s.action, s.after, s.amount or 1)
            blow = self._lead(s, active, struck)
            deadline = time.monotonic() + (LED_S_MAX if s.point.lead else REACHED_S_MAX)
            while board.struck(s.point.name)[0] == before:
                if time.monotonic() > deadline:
                    return blow or Blow(time.monotonic_ns(), reached=False)
                time.sleep(0.001)
            t = board.struck(s.point.name)[1]
            if s.action == "delay":
                return blow or Blow(t)
            struck(t)
            if s.action == "stop":
                if fd < 0:
                    fd = undo.enter_context(self._pidfd(node))
                self._continue_later(fd, s.last_s)
        return Blow(t, node)

    _delay = _point

    def _lead(self, s: Strike, active: str, struck: Callable[[int], None]) -> Blow | None:
        """Bring the point about."""
        assert s.point is not None
        if s.point.lead == "takeover":
            return self._end(active, signal.SIGKILL, struck)
        if s.point.lead == "resync":
            return self._end(_other(active), signal.SIGKILL, struck)
        if s.point.lead == "switch" and not self.pair.failover():
            raise ProtectionError("the planned switch was refused")
        return None

    # ── machines and links ───────────────────────────────────────────────────────────────────────

    def _machine(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        with self._pidfd(node) as fd:
            if self.hush is not None:
                self.hush(node, True)
            t = time.monotonic_ns()
            for device in (s.device, "rep", "wan" if s.device == "lan" else "lan"):     # one after the other, and it goes on meanwhile
                self.bed.cut(f"{node}.{device}")
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        struck(t)
        try:
            time.sleep(s.last_s)
        finally:
            self.bed.links_up(node)
            if self.hush is not None:
                self.hush(node, False)
        return Blow(t, node)

    def _cut(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        what = s.fault.name.removeprefix("cut-")
        links = {"rep": ["a.rep"], "data": [f"{active}.{s.device}"], "off": [f"{active}.{s.device}"], "standby-data": [f"{_other(active)}.{s.device}"],
                 "both": [f"{active}.{s.device}", "a.rep"]}[what]
        t = time.monotonic_ns()
        struck(t)
        try:
            for link in links:
                self.bed.cut(link)
            time.sleep(s.last_s)
        finally:
            for link in links:
                self.bed.mend(link)
        if what in ("data", "both"):
            self.cut_ns.append((t, time.monotonic_ns()))
        return Blow(t)

    def _flap(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        t = time.monotonic_ns()
        struck(t)
        for cut_s, whole_s in s.cuts:
            self.bed.cut("a.rep")
            try:
                time.sleep(cut_s)
            finally:
                self.bed.mend("a.rep")
            time.sleep(whole_s)
        return Blow(t)

    def _drop(self, s: Strike, node: str, active: str, struck: Callable[[int], None]) -> Blow:
        t = time.monotonic_ns()
        struck(t)
        try:
            for each in NODES:
                netns.run_in(self.bed.ns(each), lose, "rep", s.amount)
            time.sleep(s.last_s)
        finally:
            for each in NODES:
                netns.run_in(self.bed.ns(each), lose, "rep", 0)
        return Blow(t)


def _other(node: str) -> str:
    return "b" if node == "a" else "a"


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _child(parent: int, title: str) -> int:
    """Pid of the child whose command line begins so; 0: there is none."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if _parent(int(name)) == parent and Path(f"/proc/{name}/cmdline").read_text().startswith(title):
                return int(name)
    return 0
