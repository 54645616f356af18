"""Foreground: one pair kept until it is told to stop: what `nfckpt run` does, and what a service unit starts.

Picture     claim the name (control socket) ──► start the pair ──► wait ──► stop it, remove the socket
                 │ taken: ConfigError, nothing was started
                 └ answers status, failover, receipts meanwhile

Promises    G1 whatever ends it, `close` of the pair has run and nothing of it is left.
            G2 a node that cannot start at all before the pair was ever protected ends the run with its reason.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from nfckpt.config import PairConfig
from nfckpt.deploy.control import ControlServer
from nfckpt.errors import ConfigError, MachineError, ProtectionError
from nfckpt.failover.witness import WitnessView
from nfckpt.observe.journal import Journal, bare
from nfckpt.observe.outlook import outlook

__all__ = ["Pair", "answer", "has_ray", "make_pair", "run_foreground", "status_body"]

CANNOT_START = (1, 2, 5, 7, 8)      # crashed, bad configuration, refused, no port, the app raised: see node.EXIT

OnEvent = Callable[[str, int, dict[str, Any]], None]


class Pair(Protocol):
    """What LocalPair and RayPair have in common."""

    config: PairConfig

    @property
    def active(self) -> str: ...
    def start(self) -> Any: ...
    def close(self) -> None: ...
    def status(self) -> dict[str, dict[str, Any]]: ...
    def failover(self) -> bool: ...
    def switch(self) -> tuple[str, str]: ...
    def maintenance(self, node: str, on: bool = True) -> str: ...
    def view(self) -> WitnessView: ...
    def force_witness(self) -> None: ...


def has_ray() -> bool:
    """Whether pairs of Ray actors can be made here: the default of every command."""
    return all(importlib.util.find_spec(name) is not None for name in ("ray", "nfckpt.deploy.ray_pair"))


def make_pair(config: PairConfig, on_event: OnEvent, *, ray: bool | None = None, address: str | None = None,
              key: bytes | None = None, pass_fds: tuple[int, ...] = ()) -> Pair:
    """A pair of Ray actors, or with `ray=False` of this process's children; None: Ray where it is.

    `address`: of a Ray cluster that runs already. `pass_fds` are for children only. Raises ConfigError, MachineError.
    """
    if ray is None:
        ray = has_ray()
    if not ray:
        if address:
            raise ConfigError("an address without Ray", "leave out --address or --local")
        from nfckpt.deploy.local import LocalPair
        return LocalPair(config, key=key, on_event=on_event, pass_fds=pass_fds)
    if not has_ray():
        raise MachineError("Ray is not installed here", "pip install ray, or use --local (demo: --no-ray)")
    from nfckpt.deploy.ray_pair import RayPair
    pair: Pair = RayPair(config, key=key, on_event=on_event, address=address)
    return pair


def status_body(pair: Pair, journal: Journal) -> dict[str, Any]:
    """{"pair", "profile", "app", "active", "protected", "trouble": null or {"why", "since_s", "to_do"}, "if_it_died_now": null or what
    `outlook` says, "keeper_pid", "nodes": {node: its status}}"""
    nodes = pair.status()
    active, c = pair.active, pair.config
    body = {"pair": c.name, "profile": c.profile, "app": c.app, "active": active,
            "protected": bool(nodes.get(active, {}).get("protected")), "keeper_pid": os.getpid(), "nodes": nodes}
    return {**body, "trouble": journal.trouble.diagnose(body),
            "if_it_died_now": outlook(c.profile, c.bounds, nodes, list(journal.receipts.rows))}


def answer(pair: Pair, journal: Journal, verb: str, node: str = "") -> dict[str, Any]:
    """Answer a question of the control socket: status, receipts, events, witness, force, failover, maintenance, maintained."""
    if verb == "status":
        return status_body(pair, journal)
    if verb == "receipts":
        return {"pair": pair.config.name, "receipts": [bare(row) for row in journal.receipts.rows]}
    if verb == "events":
        return {"pair": pair.config.name, "events": list(journal.events.rows), "unwritten": journal.events.unwritten}
    if verb in ("witness", "force"):
        if verb == "force":
            pair.force_witness()
        return {"pair": pair.config.name, **msgspec.to_builtins(pair.view())}
    if verb in ("maintenance", "maintained"):
        return {"pair": pair.config.name, "node": node, "maintenance": verb == "maintenance",
                "active": pair.maintenance(node, verb == "maintenance")}
    if verb != "failover":
        raise ProtectionError(f"unknown question {verb!r}", "status, receipts, events, witness, force, failover, maintenance or maintained")
    before, after = pair.switch()
    return {"pair": pair.config.name, "from": before, "to": after}


def run_foreground(config: PairConfig, make: Callable[[PairConfig, OnEvent], Pair], journal: Callable[[], Journal],
                   say: Callable[[dict[str, Any]], None], *, stop: threading.Event | None = None) -> None:
    """Keep a pair made by `make(config, on_event)` until `stop` is set or KeyboardInterrupt or SystemExit is raised here.

    `journal()` is asked for once the name is ours; `say(row)` shows an event. Raises ConfigError, MachineError, and the OSError of a `say` whose reader went away.
    """
    stop = stop or threading.Event()
    refused: list[str] = []
    reasons: dict[str, str] = {}
    was_protected = threading.Event()
    pair: Pair | None = None

    def note(name: str, at_ns: int, fields: dict[str, Any]) -> None:
        if name == "protected":
            was_protected.set()
        elif name == "stopped":
            reasons[fields["node"]] = str(fields["reason"])
        elif name == "exited" and fields["code"] in CANNOT_START and not was_protected.is_set():
            refused.append(f"node {fields['node']}: {reasons.get(fields['node'], fields['why'])}")
        book.stream.note(name, at_ns, fields)

    def reply(verb: str, node: str) -> dict[str, Any]:
        if pair is None:
            raise ProtectionError("the pair is just starting", "ask again")
        return answer(pair, book, verb, node)

    with ControlServer(config.name, reply), contextlib.ExitStack() as undo:
        book = journal()
        undo.callback(book.close)
        shown = book.stream.feed("terminal", say)
        made = make(config, note)
        undo.callback(made.close)
        undo.enter_context(_undisturbed())
        made.start()
        pair = made
        while not stop.wait(0.2):
            if refused:
                raise ConfigError(refused[0])
            if shown.error is not None:
                raise shown.error


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """From its end on, to the end of the command, a further Ctrl-C does not interrupt what is being undone."""
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
