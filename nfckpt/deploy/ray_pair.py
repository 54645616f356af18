"""Ray runner: a pair whose nodes are placed, started and restarted by a Ray cluster.

    with RayPair(config) as pair:                       # a local cluster on loopback, gone afterwards
        pair.wait_protected()
        pair.kill_active()
    with RayPair(config, address="10.0.0.5:6379"):      # somebody's cluster; only the pair goes afterwards

Picture     driver: RayPair ──long poll──► NodeActor a ──socket──► packet process ─┐
               │      └────────long poll─► NodeActor b ──socket──► packet process ─┤ shared memory or TCP
               └── wait_protected ──► WitnessActor ◄──ask── keepers of a and b     ┘

Ray is never on a packet's or an epoch's way, and on a takeover's only where the witness is asked.

What dies (I13)     What follows
packet process      its keeper starts a blank one, the peer takes over meanwhile
node actor          its packet process forwards on for orphan_ms_max; Ray restarts the actor, which adopts it as it is. Else it
                    ends, and the peer takes over
actor for good      `RayPair` makes a new one (its placement group moves to another host where there is one)
witness             `witness_lost`; the pair goes on as it is: in profile host still a takeover on proof. `RayPair` makes a new,
                    blank one, which grants nothing until it has heard both nodes (W8), or an operator forces it
driver              Ray ends the node actors, so the pair stops, orphan_ms_max later at the latest; the witness stays in a cluster that stays, and goes on
                    counting when the pair is started again (a killed driver also leaves /tmp/nfckpt-*, a directory
                    of socket names)
a host              like the node actor on it. The witness lives on Ray's head: best a third host, for without witness
                    profile hosts can neither take over nor go on alone
GCS                 all goes on but placing and restarting actors; a minute later raylets end
raylet              its workers end by themselves, which kills their packet processes; a peer on another raylet takes over
Ray as a whole      killed at once: like the node actor, but nobody adopts: the pair stops orphan_ms_max later
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec

from nfckpt.config import PairConfig, check
from nfckpt.deploy.pair import PairBase
from nfckpt.deploy.preempt import Preempt
from nfckpt.deploy.ray_actors import NodeActor, WitnessActor, end_predecessor
from nfckpt.deploy.ray_env import NAMESPACE, Cluster, connect, start_local_cluster
from nfckpt.errors import ConfigError, MachineError, ProtectionError
from nfckpt.failover.witness import WitnessView
from nfckpt.secrets import new_key
from nfckpt.wire.keeper import NodeSpec

__all__ = ["RayPair"]

OnEvent = Callable[[str, int, dict[str, Any]], None]
LONG_POLL_S = 0.5
CALL_S_MAX = 5.0
PLACE_S_MAX = 30.0
WITNESS_LOOK_S = 1.0
HEAD = "node:__internal_head__"
CPU_OF_A_BUNDLE = 0.001         # a bundle may not be empty


class _Handle:
    """A Keeper somewhere in the cluster, as PairBase wants it."""

    def __init__(self, pair: RayPair, name: str) -> None:
        self._pair, self._name = pair, name

    @property
    def gave_up(self) -> bool:
        return self._fate()[0]

    @property
    def last_exit(self) -> tuple[int, str] | None:
        return self._fate()[1]

    def _fate(self) -> tuple[bool, tuple[int, str] | None]:
        try:
            gave_up, last = self._pair.call(self._name, "fate")
        except ProtectionError:         # its actor is being made anew
            return False, None
        return gave_up, tuple(last) if last else None

    def status(self, timeout_s: float = 1.0) -> dict[str, Any]:
        return self._pair.status()[self._name]

    def command(self, verb: str, timeout_s: float = 1.0) -> dict[str, Any]:
        body: dict[str, Any] = self._pair.call(self._name, "command", verb)
        return body

    def kill(self, signal_number: int) -> int:
        return int(self._pair.call(self._name, "kill", int(signal_number)))

    def maintain(self, on: bool) -> None:
        self._pair.call(self._name, "maintain", on)


class RayPair(PairBase):
    """Both nodes of `config`, kept running until `close`. Same calls as LocalPair.

    Without `address` it uses the cluster this process is in, else starts a local one. `on_event(name, at_ns, fields)` is
    called on threads of this object: what the keepers report, plus keeper_lost, keeper_back and witness_lost.
    Raises ConfigError, and MachineError when the cluster has no room.
    """

    def __init__(self, config: PairConfig, *, address: str | None = None, key: bytes | None = None,
                 on_event: OnEvent | None = None) -> None:
        check(config)
        self.config = config
        self.witness_name = f"nfckpt-witness-{config.name}"
        self._address, self._key, self._on_event = address, key or new_key(), on_event
        self._run_dir = os.path.join(tempfile.gettempdir(), f"nfckpt-{os.urandom(6).hex()}")
        self._cluster: Cluster | None = None
        self._witness: Any = None
        self._group: Any = None
        self._nodes: dict[str, Any] = {}
        self.keepers = {name: _Handle(self, name) for name in config.nodes}
        self._stopping = threading.Event()
        self._preempt = Preempt(config.preempt, config.preempt_delay_s, self.switch, self._tell)
        self._watchers: list[threading.Thread] = []

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> RayPair:
        """Place and start both nodes; the first of the configuration leads. Three to five seconds with a new cluster."""
        try:
            self._join()
            import ray

            try:
                self._place()
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as e:
                raise MachineError(f"pair {self.config.name!r} was not placed within {PLACE_S_MAX} s: {str(e).splitlines()[-1]}",
                                   "does `ray status` show the nodes' resources?") from None
        except BaseException:
            self.close()
            raise
        return self

    def _join(self) -> None:
        if self._address:
            self._cluster = connect(self._address)
            return
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            self._cluster = start_local_cluster()

    def _place(self) -> None:
        import ray

        self._group = self._reserve()
        for name in self.config.nodes:          # first, because their names say whether this pair runs already
            self._nodes[name] = self._node_actor(name)
        self._witness = self._witness_actor()
        before = ray.get(self._witness.view.remote(), timeout=PLACE_S_MAX)["term"]
        # an actor answers once it is placed and built, both at the same time
        ray.get([actor.status.remote() for actor in self._nodes.values()], timeout=PLACE_S_MAX)
        first, second = self._nodes
        ray.get(self._nodes[first].start.remote(), timeout=CALL_S_MAX)
        deadline = time.monotonic() + CALL_S_MAX
        while self.view().term == before and time.monotonic() < deadline:
            time.sleep(0.01)
        ray.get(self._nodes[second].start.remote(), timeout=CALL_S_MAX)
        self._watchers = [threading.Thread(target=self._watch, args=(name,), daemon=True) for name in self.config.nodes]
        self._watchers.append(threading.Thread(target=self._watch_witness, daemon=True))
        for thread in self._watchers:
            thread.start()

    def _alive(self) -> list[dict[str, Any]]:
        """The cluster's raylets."""
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return [n for n in nodes if n["Alive"]]

    def _witness_actor(self, restarted: bool = False) -> Any:
        """On the head, beside Ray's own memory: a host more to depend on would make nothing safer."""
        import ray

        # by the head's own resource: a soft node affinity is a wish, and was seen ignored
        place = {"resources": {HEAD: CPU_OF_A_BUNDLE}} if any(HEAD in n["Resources"] for n in self._alive()) else {}
        return ray.remote(WitnessActor).options(
            name=self.witness_name, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0,
            max_restarts=0, **place).remote({name: self._actor_name(name) for name in self.config.nodes}, NAMESPACE, restarted)

    def _reserve(self) -> Any:
        """A placement group where the cluster has a choice: nodes of profile hosts apart, of profile host together."""
        import ray
        from ray.util.placement_group import placement_group

        if len(self._alive()) < 2:
            return None
        bundles = [{"CPU": CPU_OF_A_BUNDLE, **node.resources} for node in self.config.nodes.values()]
        strategy = "STRICT_SPREAD" if self.config.profile == "hosts" else "STRICT_PACK"
        group = placement_group(bundles, strategy=strategy)
        if not group.wait(PLACE_S_MAX):
            ray.util.remove_placement_group(group)
            raise MachineError(f"the cluster has no room for {bundles} ({strategy})", "see `ray status`")
        return group

    def _node_actor(self, name: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {"num_cpus": 0, "resources": self.config.nodes[name].resources or None}
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group, list(self.config.nodes).index(name))
        spec = NodeSpec(self.config, name, self._key, self._run_dir, self.config.bounds.orphan_ms_max)
        try:
            return ray.remote(NodeActor).options(
                name=self._actor_name(name), namespace=NAMESPACE, max_restarts=-1, max_concurrency=8, **options,
            ).remote(msgspec.to_builtins(spec, builtin_types=(bytes,)), self.witness_name, NAMESPACE)
        except ValueError as e:
            raise ConfigError(f"pair {self.config.name!r} runs in this cluster already: {e}", "give this one another name") from None

    def _actor_name(self, node: str) -> str:
        return f"nfckpt-node-{self.config.name}-{node}"

    def close(self) -> None:
        """Stop both nodes in order, the witness too, and remove every trace. Idempotent."""
        self._stopping.set()
        self._preempt.close()
        try:
            self._release()
        finally:
            for thread in self._watchers:
                thread.join(CALL_S_MAX)
            for name in self._nodes:            # this machine's; elsewhere the actors did it
                end_predecessor(self._run_dir, name)
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._nodes, self._witness, self._group = {}, None, None
            if self._cluster is not None:
                self._cluster.close()
                self._cluster = None

    def _release(self) -> None:
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        actors = list(self._nodes.values())
        try:
            holder = self.active
        except (ProtectionError, AttributeError):
            holder = ""
        for name in sorted(self._nodes, key=lambda n: n == holder):     # the standby first: nobody takes over
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(self._nodes[name].stop.remote(), timeout=CALL_S_MAX)
        names = [self._actor_name(name) for name in self._nodes]
        if self._witness is not None:
            actors.append(self._witness)
            names.append(self.witness_name)
        for actor in actors:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(actor)
        deadline = time.monotonic() + CALL_S_MAX
        while any(_exists(name) for name in names) and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)

    def __enter__(self) -> RayPair:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ── questions and commands ───────────────────────────────────────────────────────────────────

    def status(self) -> dict[str, dict[str, Any]]:
        """node → its status; role "down" for a node without packet process or without actor."""
        import ray

        calls = {name: actor.status.remote() for name, actor in self._nodes.items()}
        out: dict[str, dict[str, Any]] = {}
        for name, call in calls.items():
            try:
                out[name] = ray.get(call, timeout=CALL_S_MAX)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as e:
                out[name] = {"node": name, "role": "down", "term": 0, "protected": False, "epoch": 0, "pid": 0,
                             "error": str(e).splitlines()[0]}
        return out

    def view(self) -> WitnessView:
        """Term, holder and recorded standby. Raises ProtectionError without witness."""
        import ray

        try:
            return msgspec.convert(ray.get(self._witness.view.remote(), timeout=CALL_S_MAX), WitnessView)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as e:
            raise ProtectionError(f"the witness does not answer: {str(e).splitlines()[0]}",
                                  "close the pair and start it again") from None

    def force_witness(self) -> None:
        """See PairBase. Raises ProtectionError without witness."""
        import ray

        try:
            ray.get(self._witness.force.remote(), timeout=CALL_S_MAX)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as e:
            raise ProtectionError(f"the witness does not answer: {str(e).splitlines()[0]}") from None

    def call(self, node: str, method: str, *args: Any) -> Any:
        import ray

        if node not in self._nodes:
            raise ProtectionError("nobody leads this pair now")
        try:
            return ray.get(getattr(self._nodes[node], method).remote(*args), timeout=CALL_S_MAX)
        except ray.exceptions.RayTaskError as e:
            raise ProtectionError(str(e.cause)) from None
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as e:
            raise ProtectionError(f"node {node} has no keeper now: {str(e).splitlines()[0]}") from None

    # ── supervision, one thread a node ───────────────────────────────────────────────────────────

    def _watch(self, node: str) -> None:
        import ray

        life, after, lost = "", 0, False
        while not self._stopping.is_set():
            try:
                life, after, rows = ray.get(self._nodes[node].events.remote(life, after, LONG_POLL_S),
                                            timeout=LONG_POLL_S + CALL_S_MAX)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayError as e:
                if self._stopping.is_set():
                    return
                if not lost:
                    lost = True
                    self._event("keeper_lost", {"node": node, "error": type(e).__name__})
                if not _exists(self._actor_name(node)):     # Ray gave it up
                    self._nodes[node] = self._node_actor(node)
                    self._nodes[node].start.remote()
                self._stopping.wait(0.05)
                continue
            if lost:
                lost = False
                self._event("keeper_back", {"node": node})
            for name, at_ns, fields in rows:
                self._event(name, fields, at_ns)

    def _watch_witness(self) -> None:
        while not self._stopping.wait(WITNESS_LOOK_S):
            if not _exists(self.witness_name):
                self._event("witness_lost", {"witness": self.witness_name})
                self._witness = self._witness_actor(restarted=True)
                self._event("witness_back", {"witness": self.witness_name})

    def _event(self, name: str, fields: dict[str, Any], at_ns: int = 0) -> None:
        self._preempt.note(name, at_ns, fields)
        self._tell(name, at_ns or time.monotonic_ns(), fields)

    def _tell(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        if self._on_event is not None:
            with contextlib.suppress(Exception):
                self._on_event(name, at_ns, fields)


def _exists(actor_name: str) -> bool:
    import ray

    try:
        ray.get_actor(actor_name, NAMESPACE)
    except ValueError:
        return False
    return True
