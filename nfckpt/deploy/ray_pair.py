"""A pair of Ray actors. Ray places, names and restarts; it is never on a packet's, an epoch's or a takeover's own path.

Picture     driver: RayPair ── one thread a node: waits for its events
               │
               ├─ actor nfckpt-<pair>-a    Keeper ──exec──► packet process a
               ├─ actor nfckpt-<pair>-b    Keeper ──exec──► packet process b
               └─ actor nfckpt-witness-<pair>   Witness; named and detached: it outlives driver and nodes

Placement   apart where the cluster has more than one live host, together where it has one (and always in profile host,
            whose nodes share a kernel): a placement group with a bundle a node. `nodes.X.resources` go into its bundle.

Loss of     a packet process   its keeper tells the witness and starts a blank one: nothing of Ray is involved
            a node's actor     (worker killed) its packet process sees its socket's end and stops, so the peer takes over;
                               Ray makes the actor anew (max_restarts), and the pair protects itself again
            the driver         on its own local cluster everything ends; on somebody else's the node actors end with it (they are not
                               detached) and the witness stays
Key         the pair's key travels to the actors in their constructor arguments, through Ray: on a cluster that is not yours
            alone, turn on Ray's TLS.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from nfckpt.config import PairConfig, check
from nfckpt.deploy import ray_env
from nfckpt.deploy.keeper import Keeper
from nfckpt.deploy.pair import PairBase
from nfckpt.deploy.run_dir import RunDir
from nfckpt.errors import MachineError, ProtectionError
from nfckpt.failover.witness import Answer, Question, Witness, WitnessView
from nfckpt.secrets import new_key
from nfckpt.wire.keeper import NodeSpec

__all__ = ["RayPair"]

CALL_S_MAX = 2.0
EVENTS_WAIT_S = 2.0
REPLACE_S = 0.2
PLACE_S_MAX = 30
SHARE = 0.01                # of a CPU, for Ray's bookkeeping only: packet processes pin themselves
DOWN = {"role": "down", "term": 0, "protected": False, "epoch": 0}

_Row = tuple[str, int, dict[str, Any]]


class _WitnessActor:
    """Carries one pair's Witness. Everything crosses as plain builtins."""

    def __init__(self) -> None:
        self._witness = Witness()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = msgspec.to_builtins(self._witness.ask(msgspec.convert(question, Question)))
        return answer

    def view(self) -> tuple[int, str, str]:
        v = self._witness.view()
        return v.term, v.holder, v.standby


class _NodeActor:
    """Carries one node's Keeper. Its methods run on several threads at once (max_concurrency)."""

    def __init__(self, spec: bytes, witness: str, path: list[str]) -> None:
        import ray

        ray_env.forget_proxy()
        sys.path[:0] = [p for p in path if p not in sys.path]       # apps are found where the driver finds them
        self._ray = ray
        self._witness_name = witness
        self._witness: Any = None
        self._rows: deque[tuple[int, _Row]] = deque(maxlen=1000)
        self._count = 0
        self._news = threading.Condition()
        self._keeper = Keeper(msgspec.json.decode(spec, type=NodeSpec), self._ask, self._note)
        self._keeper.start()

    def _ask(self, question: Question) -> Answer:
        if self._witness is None:
            self._witness = self._ray.get_actor(self._witness_name, namespace=ray_env.NAMESPACE)
        try:
            said = self._ray.get(self._witness.ask.remote(msgspec.to_builtins(question)), timeout=CALL_S_MAX)
        except Exception:
            self._witness = None            # looked up anew next time
            raise
        return msgspec.convert(said, Answer)

    def _note(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        with self._news:
            self._count += 1
            self._rows.append((self._count, (name, at_ns, fields)))
            self._news.notify_all()

    def events(self, after: int, wait_s: float) -> list[tuple[int, _Row]]:
        """Events numbered above `after`; waits up to `wait_s` for the first."""
        with self._news:
            self._news.wait_for(lambda: self._count > after, wait_s)
            return [row for row in self._rows if row[0] > after]

    def status(self, timeout_s: float) -> dict[str, Any]:
        return {**self._keeper.status(timeout_s), "worker_pid": os.getpid(),
                "ray_node": self._ray.get_runtime_context().get_node_id()}

    def command(self, verb: str, timeout_s: float) -> dict[str, Any]:
        return self._keeper.command(verb, timeout_s)

    def kill(self, signal_number: int) -> int:
        return self._keeper.kill(signal_number)

    def fate(self) -> tuple[bool, tuple[int, str] | None]:
        return self._keeper.gave_up, self._keeper.last_exit

    def stop(self) -> None:
        self._keeper.stop()


class _RemoteKeeper:
    """One node as the driver sees it: a handle on its actor, which Ray restarts when its worker dies."""

    def __init__(self, pair: RayPair, name: str) -> None:
        self._pair, self.name = pair, name
        self.actor: Any = None

    def _call(self, method: str, *args: Any, timeout_s: float = CALL_S_MAX) -> Any:
        import ray

        try:
            return ray.get(getattr(self.actor, method).remote(*args), timeout=timeout_s)
        except ray.exceptions.RayTaskError as e:
            raise e.cause if isinstance(e.cause, ProtectionError) else ProtectionError(f"node {self.name}: {e}") from None
        except (ray.exceptions.RayError, AttributeError) as e:
            raise ProtectionError(f"node {self.name} has no actor now", str(e).splitlines()[0]) from None

    @property
    def gave_up(self) -> bool:
        return self._fate()[0]

    @property
    def last_exit(self) -> tuple[int, str] | None:
        return self._fate()[1]

    def _fate(self) -> tuple[bool, tuple[int, str] | None]:
        try:
            gave_up, last = self._call("fate")
        except ProtectionError:
            return False, None
        return gave_up, tuple(last) if last else None

    def status(self, timeout_s: float = 1.0) -> dict[str, Any]:
        try:
            body: dict[str, Any] = self._call("status", timeout_s, timeout_s=timeout_s + CALL_S_MAX)
        except ProtectionError:
            return {"node": self.name, **DOWN}
        return body

    def command(self, verb: str, timeout_s: float = 1.0) -> dict[str, Any]:
        body: dict[str, Any] = self._call("command", verb, timeout_s, timeout_s=timeout_s + CALL_S_MAX)
        return body

    def kill(self, signal_number: int) -> int:
        return int(self._call("kill", signal_number))


class RayPair(PairBase):
    """Both nodes of `config` as actors of the Ray cluster at `address`, or of a local one on loopback that is started
    (and stopped) here. Same use as LocalPair. Raises ConfigError, MachineError.
    """

    LOOK_S = 0.01

    def __init__(self, config: PairConfig, *, key: bytes | None = None, address: str | None = None,
                 on_event: Callable[[str, int, dict[str, Any]], None] | None = None) -> None:
        check(config)
        self.config = config
        self._address, self._on_event = address, on_event
        self._key = key or new_key()
        self._run_dir: RunDir | None = None
        self._cluster: ray_env.Cluster | None = None
        self._witness: Any = None
        self._group: Any = None
        self._witness_name = f"nfckpt-witness-{config.name}"
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._remotes = {name: _RemoteKeeper(self, name) for name in config.nodes}
        self.keepers = self._remotes

    def start(self) -> RayPair:
        """Start or join the cluster, place the actors, start both nodes; the first of the configuration leads."""
        self._cluster = ray_env.connect(self._address) if self._address else ray_env.start_local_cluster()
        try:
            import ray

            self._ray = ray
            self._run_dir = RunDir()
            self._witness = ray.remote(_WitnessActor).options(
                name=self._witness_name, namespace=ray_env.NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
                max_restarts=0).remote()
            term = ray.get(self._witness.view.remote(), timeout=30)[0]
            self._group = self._place()
            for index, remote in enumerate(self._remotes.values()):
                remote.actor = self._make(remote.name, index)
                thread = threading.Thread(target=self._supervise, args=(remote,), name=f"supervise-{remote.name}", daemon=True)
                thread.start()
                self._threads.append(thread)
                deadline = time.monotonic() + 30
                while index == 0 and self.view().term == term and not remote.gave_up and time.monotonic() < deadline:
                    time.sleep(self.LOOK_S)
        except BaseException:
            self.close()
            raise
        return self

    def _place(self) -> Any:
        """One bundle a node: on two hosts where there are two and the profile allows it, else on one."""
        from ray.util.placement_group import placement_group

        nodes: Callable[[], list[dict[str, Any]]] = self._ray.nodes
        live = sum(1 for host in nodes() if host["Alive"])
        strategy = "STRICT_PACK" if self.config.profile == "host" else "STRICT_SPREAD" if live > 1 else "PACK"
        group = placement_group([{"CPU": SHARE, **node.resources} for node in self.config.nodes.values()], strategy=strategy)
        if not group.wait(PLACE_S_MAX):
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(group)
            raise MachineError(f"the cluster has no room for this pair ({strategy})", "see `ray status`; check nodes.*.resources")
        return group

    def _make(self, name: str, index: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        assert self._run_dir is not None
        spec = msgspec.json.encode(NodeSpec(self.config, name, self._key, self._run_dir.path))
        return self._ray.remote(_NodeActor).options(
            name=f"nfckpt-{self.config.name}-{name}", namespace=ray_env.NAMESPACE, num_cpus=SHARE, max_concurrency=8, max_restarts=-1,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index),
        ).remote(spec, self._witness_name, [p for p in sys.path if p])

    def _supervise(self, remote: _RemoteKeeper) -> None:
        """Carries a node's events to on_event; says when its worker died, and when Ray has made it anew."""
        ray = self._ray
        after, lost = 0, False
        while not self._closing.is_set():
            try:
                rows = ray.get(remote.actor.events.remote(after, EVENTS_WAIT_S), timeout=EVENTS_WAIT_S + 10)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError as e:
                if not lost and not self._closing.is_set():
                    self._emit("worker_lost", {"node": remote.name, "reason": type(e).__name__})
                after, lost = 0, True               # a new worker counts its events from 1
                self._closing.wait(REPLACE_S)
                continue
            if lost:
                lost = False
                self._emit("worker_replaced", {"node": remote.name})
            for number, (name, at_ns, fields) in rows:
                after = number
                self._emit(name, fields, at_ns)

    def _emit(self, name: str, fields: dict[str, Any], at_ns: int = 0) -> None:
        if self._on_event is not None:
            self._on_event(name, at_ns or time.monotonic_ns(), fields)

    def view(self) -> WitnessView:
        try:
            return WitnessView(*self._ray.get(self._witness.view.remote(), timeout=CALL_S_MAX))
        except self._ray.exceptions.RayError as e:
            raise ProtectionError("the witness does not answer", str(e).splitlines()[0]) from None

    def close(self) -> None:
        """Stop both nodes in order, remove the actors, leave the cluster (stop it if it is ours). Idempotent."""
        self._closing.set()
        if self._cluster is None:
            return
        try:
            holder = self.view().holder
        except (ProtectionError, AttributeError):
            holder = ""
        for remote in sorted(self._remotes.values(), key=lambda r: r.name == holder):      # the standby first
            if remote.actor is not None:
                try:
                    remote._call("stop", timeout_s=6)
                except ProtectionError as e:
                    self._emit("not_stopped", {"node": remote.name, "reason": e.message})
                self._ray.kill(remote.actor)
                remote.actor = None
        if self._witness is not None:
            self._ray.kill(self._witness)       # detached: it would outlive us on somebody else's cluster
            self._witness = None
        if self._group is not None:
            from ray.util.placement_group import remove_placement_group

            remove_placement_group(self._group)
            self._group = None
        for thread in self._threads:
            thread.join(EVENTS_WAIT_S + 1)
        self._cluster.close()
        self._cluster = None
        if self._run_dir is not None:
            self._run_dir.close()

    def __enter__(self) -> RayPair:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()
