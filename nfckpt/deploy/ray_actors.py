"""The two Ray actors of a pair, as plain classes: `ray_pair` turns them into actors. Builtins in, builtins out.

    NodeActor       one per node, restarted by Ray: holds the Keeper of its packet process
    WitnessActor    one per pair, detached, never restarted: a blank witness would grant terms a second time

Death of a node actor's worker (I13): the packet process reads the end of its socket within a millisecond and forwards on, for
orphan_ms_max; the actor's next life, which Ray starts by itself, adopts it (wire/adoption.py). One that does not answer (stopped,
stuck) is killed by the next life before that starts a process: what it recorded in the run directory outlives it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from nfckpt.deploy.keeper import Keeper
from nfckpt.deploy.ray_env import end_process, forget_proxy, start_time
from nfckpt.errors import MachineError
from nfckpt.failover.witness import Answer, Question, Witness
from nfckpt.wire.keeper import NodeSpec

__all__ = ["NodeActor", "WitnessActor", "end_predecessor"]

Row = tuple[str, int, dict[str, Any]]
EVENTS_MAX = 1000


class WitnessActor:
    """The pair's witness. Calls come one at a time: Ray's own order is the order of the terms."""

    def __init__(self, actors: dict[str, str], namespace: str, restarted: bool) -> None:
        """`actors`: node → name of its actor."""
        forget_proxy()
        self._actors, self._namespace = actors, namespace
        self._witness = Witness(actors, 1 + secrets.randbits(62)) if restarted else Witness()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        said = self._witness.ask(msgspec.convert(question, Question))
        answer: dict[str, Any] = msgspec.to_builtins(said)
        if said.verb == "suspect" and said.said == "ok" and said.holder:
            self._tell(said.holder, answer)                     # W7
        return answer

    def _tell(self, node: str, answer: dict[str, Any]) -> None:
        """Waits for nothing: an actor that is gone hears nothing."""
        import ray

        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            ray.get_actor(self._actors[node], self._namespace).hear.remote(answer)

    def force(self) -> None:
        self._witness.force()

    def view(self) -> dict[str, Any]:
        """term, holder, standby."""
        view: dict[str, Any] = msgspec.to_builtins(self._witness.view())
        return view


class NodeActor:
    """Keeps node `spec["node"]` running. `start` begins; a restarted actor begins by itself."""

    def __init__(self, spec: dict[str, Any], witness: str, namespace: str) -> None:
        import ray

        forget_proxy()
        # the packet process imports what this worker can, the app above all
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in sys.path if p and not p.endswith(".zip")))
        self._spec = msgspec.convert(spec, NodeSpec)
        self._witness_name, self._namespace = witness, namespace
        self._witness: Any = None
        self._ask_s = self._spec.config.bounds.claim_ms_max / 1000
        self._life = f"{os.getpid()}-{time.monotonic_ns()}"
        self._rows: list[Row] = []
        self._first = 0                         # number of _rows[0]
        self._changed = threading.Condition()
        own_directory(self._spec.run_dir)
        self._keeper = Keeper(self._spec, self._ask, self._on_event, before=lambda: end_predecessor(self._spec.run_dir, self._spec.node))
        self._started = False
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self.start()

    def start(self) -> None:
        """Idempotent."""
        if not self._started:
            self._started = True
            self._keeper.start()

    def status(self) -> dict[str, Any]:
        return {**self._keeper.status(), "keeper_pid": os.getpid()}

    def command(self, verb: str) -> dict[str, Any]:
        return self._keeper.command(verb)

    def hear(self, answer: dict[str, Any]) -> None:
        self._keeper.hear(msgspec.convert(answer, Answer))

    def kill(self, signal_number: int) -> int:
        return self._keeper.kill(signal_number)

    def maintain(self, on: bool) -> None:
        self._keeper.maintain(on)

    def fate(self) -> tuple[bool, tuple[int, str] | None]:
        """Keeper.gave_up and Keeper.last_exit."""
        return self._keeper.gave_up, self._keeper.last_exit

    def stop(self) -> None:
        """End the packet process in order, and leave nothing on this machine."""
        self._keeper.stop()
        shutil.rmtree(self._spec.run_dir, ignore_errors=True)

    def events(self, life: str, after: int, wait_s: float) -> tuple[str, int, list[Row]]:
        """(life, number of the next event, events) since number `after` of `life`; waits up to `wait_s` for the first."""
        with self._changed:
            at = max(after, self._first) if life == self._life else 0
            self._changed.wait_for(lambda: self._first + len(self._rows) > at, wait_s)
            return self._life, self._first + len(self._rows), self._rows[max(0, at - self._first):]

    # ── on the keeper's thread ───────────────────────────────────────────────────────────────────

    def _ask(self, question: Question) -> Answer:
        """Raises what Ray raises; the keeper reports it and the node asks again."""
        import ray

        try:
            if self._witness is None:
                self._witness = ray.get_actor(self._witness_name, self._namespace)
            return msgspec.convert(ray.get(self._witness.ask.remote(msgspec.to_builtins(question)), timeout=self._ask_s), Answer)
        except ray.exceptions.RayActorError:
            self._witness = None                # looked up again: an operator may have made a new one
            raise

    def _on_event(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        if name == "started":
            _record(self._spec.run_dir, self._spec.node, fields["pid"])
        with self._changed:
            self._rows.append((name, at_ns, fields))
            if len(self._rows) > EVENTS_MAX:
                self._first += 1
                del self._rows[0]
            self._changed.notify_all()


# ── the packet process of an actor's earlier life ────────────────────────────────────────────────


def own_directory(path: str) -> None:
    """Make `path`, for this user alone. Raises MachineError when somebody else has it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if found.st_uid != os.geteuid() or found.st_mode & 0o170777 != 0o040700:
        raise MachineError(f"{path} is not a directory of ours alone", "remove it, or set TMPDIR")


def _record(run_dir: str, node: str, pid: int) -> None:
    Path(run_dir, f"{node}.process").write_text(f"{pid} {start_time(pid)}")


def end_predecessor(run_dir: str, node: str) -> None:
    """Kill the packet process that an earlier life started here, if it still runs, and wait for its death (I9).

    One that was started but not recorded yet has no keeper to ask the witness for it: it never emits.
    """
    try:
        pid, started = Path(run_dir, f"{node}.process").read_text().split()
    except (FileNotFoundError, ValueError):
        return
    if int(started):
        end_process(int(pid), int(started))
