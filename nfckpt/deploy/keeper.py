"""Keeper: starts one packet process after another, watches it, carries its questions to the witness.

Who uses it     the Ray actor (ray_actors.py), the local runner (local.py), or a program that embeds a pair. One thread of
                its own reads the process's socket, another carries questions to the witness, one after the other, so that
                one that does not answer holds up nothing else; calls from other threads are safe.

Picture         keeper ──exec──► python -m nfckpt.node FD        one process, one life; the next one's waits already (node/priority.py)
                   │ ◄── WitnessAsk, Report, Reply ──┘
                   └── it ended ──► witness.gone(node) ──► start again, blank, unless it ended in order or is in maintenance

A process is started with exec, never fork. When its keeper ends it sees the socket's end within a millisecond: it ends too, or,
with `spec.orphan_ms`, forwards on for so long, and a keeper of the same spec takes it over as it is (wire/adoption.py).
(PR_SET_PDEATHSIG would be no better: it means the parent's thread, and a stopped process has a fence either way.)
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from nfckpt.errors import ProtectionError
from nfckpt.failover.witness import Answer, Question
from nfckpt.node import EXIT
from nfckpt.node.priority import lower, restore
from nfckpt.wire import keeper as wire
from nfckpt.wire.adoption import Adopted, adopt

__all__ = ["Keeper"]

AskWitness = Callable[[Question], Answer]
RESTART_S_MIN, RESTART_S_MAX = 0.02, 2.0
NO_RESTART = {0, 2, 5}          # stopped in order, bad configuration, refused: starting again would end the same way


class Keeper:
    """Keeps node `spec.node` running. `ask`: carries one question to the witness (may raise; asked again later). `before`: called before
    a process is started, where none was adopted: whatever an earlier life left must be dead by its return (I9).
    `on_event(name, at_ns, fields)`: called on the keeper's thread for every report, plus started and exited."""

    def __init__(self, spec: wire.NodeSpec, ask: AskWitness, on_event: Callable[[str, int, dict[str, Any]], None] | None = None,
                 *, pass_fds: tuple[int, ...] = (), stderr: int | None = None, before: Callable[[], None] = lambda: None) -> None:
        self.spec, self._ask, self._on_event = spec, ask, on_event
        self._pass_fds, self._stderr, self._before = pass_fds, stderr, before
        self.process: subprocess.Popen[bytes] | Adopted | None = None
        self.starts = 0
        self.witness_us = 0             # how long the witness took to answer, last
        self.last_exit: tuple[int, str] | None = None
        self.events: deque[tuple[str, int, dict[str, Any]]] = deque(maxlen=1000)
        self._reason = ""               # why this life ended, where it could say so itself
        self._led = 0                   # the last term that a life of this node took
        self._was_whole = False         # this life was half of a protected pair: what ended it was not its start
        self._sock: socket.socket | None = None
        self._spare: tuple[socket.socket, subprocess.Popen[bytes]] | None = None
        self._lock = threading.Lock()
        self._replies: dict[int, dict[str, Any] | None] = {}     # None: awaited
        self._replied = threading.Condition(self._lock)
        self._number = 0
        self._stopping = threading.Event()
        self._rest = Path(spec.run_dir, f"{spec.node}.maintenance")     # a file: the next keeper of this node knows it too
        self._wanted = threading.Event()                # a process is to run
        self._rested = False                            # the present life was asked to end for maintenance
        if not self._rest.exists():
            self._wanted.set()
        self._questions: queue.SimpleQueue[tuple[Question, socket.socket | None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"keeper-{spec.node}", daemon=True)
        self._asker = threading.Thread(target=self._carry, name=f"questions-{spec.node}", daemon=True)

    def start(self) -> None:
        """Start the first process. Returns at once."""
        self._thread.start()
        self._asker.start()

    @property
    def gave_up(self) -> bool:
        """The process ended for a reason that would end the next one too: bad configuration, refused by its peer."""
        return self.last_exit is not None and self.last_exit[0] in NO_RESTART - {0}

    @property
    def pid(self) -> int:
        """Of the packet process, 0 while there is none."""
        p = self.process
        return p.pid if p is not None and p.poll() is None else 0

    def status(self, timeout_s: float = 1.0) -> dict[str, Any]:
        """The process's own status, with what only its keeper knows; {"node", "role": "down"} while there is none,
        "maintenance" where that is wanted, "silent" while it does not answer."""
        own = {"starts": self.starts, "witness_us": self.witness_us}
        try:
            return {**self.command("status", timeout_s), **own}
        except ProtectionError:
            role = "silent" if self.pid else "down" if self._wanted.is_set() else "maintenance"
            return {"node": self.spec.node, "role": role, "term": 0, "protected": False, "epoch": 0, "pid": self.pid,
                    "last_exit": list(self.last_exit or ()), **own}

    def command(self, verb: str, timeout_s: float = 1.0) -> dict[str, Any]:
        """Send a command and wait for its reply. Raises ProtectionError when no process answers in time."""
        with self._lock:
            self._number += 1
            number = self._number
            sock = self._sock
            self._replies[number] = None
        try:
            if sock is None or not wire.send(sock, wire.Command(verb, number)):
                raise ProtectionError(f"node {self.spec.node} has no packet process now")
            with self._replied:
                self._replied.wait_for(lambda: self._replies[number] is not None, timeout_s)
        finally:
            with self._lock:
                reply = self._replies.pop(number)
        if reply is None:
            raise ProtectionError(f"node {self.spec.node} did not answer {verb} in {timeout_s} s")
        return reply

    def hear(self, answer: Answer) -> None:
        """The witness tells this node what another's question means for it (W7)."""
        with self._lock:
            sock = self._sock
        if sock is not None:
            wire.send(sock, wire.WitnessSaid(answer))

    def kill(self, signal_number: int) -> int:
        """Send a signal to the packet process. Returns its pid, 0 when there is none."""
        p = self.process
        if p is None or p.poll() is not None:
            return 0
        p.send_signal(signal_number)
        return p.pid

    def maintain(self, on: bool) -> None:
        """On: end the process in order and start no other, until off. Idempotent. Whose role it has is the caller's business."""
        with self._lock:
            if on == (not self._wanted.is_set()):
                return
            if on:
                self._rest.touch()
                self._wanted.clear()
                self._end_for_maintenance()
            else:
                self._rest.unlink(missing_ok=True)
                self._wanted.set()
        if on:
            self._event("maintenance", {})
        else:
            self._event("maintained", {})

    def _end_for_maintenance(self) -> None:
        if self._sock is not None and not self._wanted.is_set():
            self._rested = True
            wire.send(self._sock, wire.Command("stop"))

    def stop(self, timeout_s: float = 3.0) -> None:
        """Stop the process in order, by force after `timeout_s`. Idempotent."""
        self._stopping.set()
        self._wanted.set()
        if (sock := self._sock) is not None:
            wire.send(sock, wire.Command("stop"))
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        p = self.process
        if p is not None and p.poll() is None:
            p.kill()
            p.wait()
        if self._thread.is_alive():
            self._thread.join(1)
        self._drop_spare()

    # ── the keeper's thread ──────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        pause = RESTART_S_MIN
        while self._wanted.wait() and not self._stopping.is_set():
            began = time.monotonic()
            code = self._one_life()
            self.last_exit = (code, self._reason or EXIT.get(code, f"signal {-code}" if code < 0 else "crashed"))
            self._event("exited", {"code": code, "why": self.last_exit[1]})
            self._questions.put((Question("gone", self.spec.node, self._led), None))
            if not self._wanted.is_set():       # what it imported may be another version's by then
                self._drop_spare()
            if self._stopping.is_set() or (code in NO_RESTART and not self._rested):
                break
            good = self._was_whole or time.monotonic() - began > RESTART_S_MAX
            pause = RESTART_S_MIN if good else min(pause * 2, RESTART_S_MAX)
            self._stopping.wait(pause)
        self._drop_spare()
        self._questions.put(None)

    def _carry(self) -> None:
        """On a thread of its own: one question after the other, each answer to the life that asked."""
        while (row := self._questions.get()) is not None:
            question, sock = row
            asked_ns = time.monotonic_ns()
            try:
                answer = self._ask(question)
            except Exception as e:          # whatever carries the question: the node asks again, the loss is reported
                self._event("witness_silent", {"error": f"{type(e).__name__}: {e}", "verb": question.verb})
                continue
            self.witness_us = (time.monotonic_ns() - asked_ns) // 1000
            if answer.holder and answer.holder not in self.spec.config.nodes:       # nothing it grants is ours
                self._event("witness_foreign", {"error": f"its term {answer.term} is held by {answer.holder!r}, which is no node of this "
                                                         "pair", "verb": question.verb})
                continue
            if sock is not None:
                with contextlib.suppress(OSError):              # that life is over
                    wire.send(sock, wire.WitnessSaid(answer))

    def _one_life(self) -> int:
        self._reason, self._was_whole, self._rested = "", False, False
        sock, process = adopt(self.spec) or self._start()
        self.process = process
        with self._lock:
            self._sock = sock
            self._end_for_maintenance()         # wanted since this life began
        if isinstance(process, subprocess.Popen):
            self._event("started", {"pid": process.pid})
        try:
            while raw := _receive(sock):
                self._take(sock, wire.from_process.decode(raw))
        finally:
            with self._lock:
                self._sock = None
            sock.close()
        return process.wait()

    def _start(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        self._before()
        spare, self._spare = self._spare, None
        ours, process = spare or self._exec()
        restore(process.pid)
        if not wire.send(ours, self.spec):          # a spare that somebody ended
            ours.close()
            process.wait()
            ours, process = self._exec()
            wire.send(ours, self.spec)
        self.starts += 1
        return ours, process

    def _make_spare(self) -> None:
        """A machine without room for it does without: the next life then begins with its imports."""
        try:
            self._spare = self._exec()
            lower(self._spare[1].pid)
        except (OSError, RuntimeError) as e:
            self._event("no_spare", {"error": f"{type(e).__name__}: {e}"})

    def _drop_spare(self) -> None:
        if self._spare is not None:
            ours, spare = self._spare
            self._spare = None
            ours.close()
            spare.kill()
            spare.wait()

    def _exec(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for s in (ours, theirs):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "nfckpt.node", str(theirs.fileno())], stdin=subprocess.DEVNULL, stderr=self._stderr,
                    pass_fds=(theirs.fileno(), *self._pass_fds),
                    start_new_session=self.spec.orphan_ms > 0,      # Ray ends the process group of a worker that died
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _path()})
            except BaseException:
                ours.close()
                raise
        return ours, process

    def _take(self, sock: socket.socket, message: wire.FromProcess) -> None:
        if isinstance(message, wire.WitnessAsk):
            question = message.question
            if question.verb == "took":
                self._led = question.term
            elif question.verb == "register":           # it is blank: we remember for it
                question = msgspec.structs.replace(question, term=self._led)
            self._questions.put((question, sock))
        elif isinstance(message, wire.Reply):
            with self._replied:
                if message.number in self._replies:     # else nobody waits any more
                    self._replies[message.number] = message.body
                    self._replied.notify_all()
        else:
            if message.name == "stopped":
                self._reason = str(message.fields["reason"])
                if isinstance(self.process, Adopted):
                    self.process.said = int(message.fields["code"])
            if message.name == "active" or (message.name == "adopted" and message.fields.get("leads")):
                self._led = int(message.fields["term"])
            if message.name in ("standby", "protected"):
                self._was_whole = True
                if self._spare is None and self._wanted.is_set() and not self._stopping.is_set():
                    self._make_spare()
            self._event(message.name, message.fields, message.at_ns)

    def _event(self, name: str, fields: dict[str, Any], at_ns: int = 0) -> None:
        row = (name, at_ns or time.monotonic_ns(), {"node": self.spec.node, **fields})
        self.events.append(row)
        if self._on_event is not None:
            with contextlib.suppress(Exception):
                self._on_event(*row)


def _receive(sock: socket.socket) -> bytes:
    """The next datagram, b"" after the last. A process killed with unread commands in its socket has this told first, once."""
    try:
        return sock.recv(wire.DATAGRAM_BYTES_MAX)
    except ConnectionResetError:
        return sock.recv(wire.DATAGRAM_BYTES_MAX)


def _path() -> str:
    """The node finds the app where this process finds modules: in its script's folder too, and in a PYTHONPATH set since."""
    return os.pathsep.join(filter(None, [*sys.path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
