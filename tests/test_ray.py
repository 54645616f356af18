"""Pairs of Ray actors on a cluster of loopback: kills of packet processes and of workers, placement, and nothing left."""

from __future__ import annotations

import glob
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nfckpt import Bounds, NodeConfig, PairConfig
from nfckpt.deploy import ray_env
from nfckpt.deploy.ray_pair import RayPair
from nfckpt.errors import ConfigError
from nfckpt.native.burst import Burst
from nfckpt.ports.memory import MemoryHub, MemoryPort

pytestmark = [pytest.mark.ray, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ray_env.Cluster]:
    with ray_env.start_local_cluster() as cluster:
        yield cluster


class Rig:
    """Two segments in memory with a RayPair between; endpoint 0 of each is ours."""

    def __init__(self, cluster: ray_env.Cluster, profile: str, name: str) -> None:
        self.hubs = [MemoryHub(3, 1 << 13) for _ in range(2)]
        self.ends: list[MemoryPort] = [hub.open(0) for hub in self.hubs]
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.seen: Counter[int] = Counter()
        self._burst = Burst()
        with socket.socket() as s, socket.socket() as t:
            s.bind(("127.0.0.1", 0))
            t.bind(("127.0.0.1", 0))
            free = [s.getsockname()[1], t.getsockname()[1]]
        nodes = {n: NodeConfig(ports=[h.endpoint_spec(i, by_path=True) for h in self.hubs], address=f"127.0.0.1:{free[i - 1]}")
                 for i, n in enumerate("ab", 1)}
        config = PairConfig(name=name, app="nfckpt.apps.counter:Counter", profile=profile, nodes=nodes,
                            bounds=Bounds(unsafe_no_egress_lease=True))
        self.pair = _Joined(config, cluster, lambda n, t, f: self.events.append((n, f)))

    def __enter__(self) -> Rig:
        self.pair.start()
        self.pair.wait_protected(30)
        return self

    def __exit__(self, *exc: object) -> None:
        self.pair.close()
        for port in self.ends:
            port.close()
        for hub in self.hubs:
            hub.close()

    def pump(self, first: int, n: int) -> None:
        for number in range(first, first + n):
            self.ends[0].tx_burst([b"\x02\0\0\0\0\1\x02\0\0\0\0\2\x88\xb5" + number.to_bytes(8, "big") + bytes(38)])
            if number % 8 == 0:
                self.collect()
                time.sleep(0.0005)

    def collect(self) -> int:
        self._burst.reset()
        n = self.ends[1].rx_burst(self._burst, 256)
        self.seen.update(int.from_bytes(f[14:22], "big") for f in self._burst.frames())
        return n

    def drain(self) -> None:
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.5:
            if self.collect():
                quiet = time.monotonic()
            time.sleep(0.001)

    def named(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]


class _Joined(RayPair):
    """A pair on the module's cluster, which stays."""

    def __init__(self, config: PairConfig, cluster: ray_env.Cluster, on_event: Any) -> None:
        super().__init__(config, on_event=on_event)
        self._shared = cluster

    def start(self) -> RayPair:
        class Kept:
            def close(self) -> None:
                pass

        make, ray_env.start_local_cluster = ray_env.start_local_cluster, lambda: Kept()     # type: ignore[assignment, return-value]
        try:
            return super().start()
        finally:
            ray_env.start_local_cluster = make


@pytest.mark.parametrize("profile", ["host", "hosts"])
def test_sigkill_of_the_active_loses_and_doubles_nothing(cluster: ray_env.Cluster, profile: str) -> None:
    with Rig(cluster, profile, f"kill-{profile}") as rig:
        for round_ in range(2):
            killer = threading.Timer(0.1, rig.pair.kill_active)
            killer.start()
            rig.pump(round_ * 3000, 3000)
            killer.join()
            rig.pair.wait_protected(30, term=round_ + 2)
        rig.drain()
        assert rig.seen == Counter(range(6000))
        assert len(rig.named("takeover")) == 2


def test_a_killed_worker_is_replaced_and_the_pair_protects_itself_again(cluster: ray_env.Cluster) -> None:
    with Rig(cluster, "host", "worker") as rig:
        active = rig.pair.active
        worker, process = (rig.pair.status()[active][k] for k in ("worker_pid", "pid"))
        killer = threading.Timer(0.1, os.kill, (worker, signal.SIGKILL))
        killer.start()
        rig.pump(0, 4000)
        killer.join()
        rig.pair.wait_protected(30, term=2)
        rig.drain()
        assert rig.seen == Counter(range(4000))
        assert [f["node"] for f in rig.named("worker_lost")] == [active]
        assert rig.pair.active != active and rig.pair.status()[active]["worker_pid"] != worker
        assert not Path(f"/proc/{process}").exists(), "the packet process of a dead worker must end"


def test_the_witness_is_detached_and_nothing_is_left_of_a_pair(cluster: ray_env.Cluster) -> None:
    import ray
    from ray.util import list_named_actors

    with Rig(cluster, "host", "left") as rig:
        names = {a["name"] for a in list_named_actors(all_namespaces=True)}
        assert {"nfckpt-witness-left", "nfckpt-left-a", "nfckpt-left-b"} <= names
        pids = [s["pid"] for s in rig.pair.status().values()]
        run_dir = rig.pair._run_dir.path
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any("left" in (a["name"] or "") for a in list_named_actors(all_namespaces=True)):
        time.sleep(0.1)
    assert not [a for a in list_named_actors(all_namespaces=True) if "left" in (a["name"] or "")]
    assert not any(Path(f"/proc/{p}").exists() for p in pids) and not os.path.exists(run_dir)
    assert ray.is_initialized()


def test_the_cluster_listens_and_connects_on_loopback_only(cluster: ray_env.Cluster) -> None:
    """Sockets of every process of the cluster, by /proc: no listener and no connection beyond 127.0.0.0/8."""
    inodes = set()
    for pid, _ in ray_env._descendants():
        for fd in glob.glob(f"/proc/{pid}/fd/*"):
            try:
                target = os.readlink(fd)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = beyond = 0
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] not in inodes:
                continue
            found += 1
            local, remote = fields[1].split(":")[0], fields[2].split(":")[0]
            loop = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
            if not local.endswith(loop) or not (remote.endswith(loop) or set(remote) == {"0"}):
                beyond += 1
    assert found > 5 and beyond == 0


def test_a_second_cluster_in_one_process_is_refused(cluster: ray_env.Cluster) -> None:
    with pytest.raises(ConfigError, match="in a Ray cluster already"):
        ray_env.start_local_cluster()


def test_a_pair_of_its_own_starts_and_stops_its_cluster(tmp_path: Path) -> None:
    """In a process of its own: RayPair without address brings a cluster, and takes it away."""
    script = tmp_path / "own.py"
    script.write_text(
        "import os, sys\n"
        "from nfckpt import Bounds, MemoryHub, NodeConfig, PairConfig\n"
        "from nfckpt.deploy.ray_pair import RayPair\n"
        "from nfckpt.deploy import ray_env\n"
        "before = dict(os.environ)\n"
        "hubs = [MemoryHub(3, 1024) for _ in range(2)]\n"
        "nodes = {n: NodeConfig(ports=[h.endpoint_spec(i, by_path=True) for h in hubs]) for i, n in enumerate('ab', 1)}\n"
        "pair = RayPair(PairConfig(name='own', app='nfckpt.apps.counter:Counter', nodes=nodes))\n"
        "with pair:\n"
        "    pair.wait_protected(30)\n"
        "    assert len(ray_env._descendants()) > 5\n"
        "print(len(ray_env._descendants()), dict(os.environ) == before)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=80,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TMPDIR": "/tmp"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "True"]


def test_nodes_are_placed_apart_where_the_cluster_has_two_hosts(tmp_path: Path) -> None:
    """Two raylets on loopback, joined by address: the nodes of profile hosts are apart, those of profile host together."""
    script = tmp_path / "apart.py"
    script.write_text(
        "import os, socket, tempfile\n"
        "from nfckpt.deploy import ray_env\n"
        "os.environ.update(ray_env.LOCAL | ray_env.PROXY)\n"
        "from ray.cluster_utils import Cluster\n"
        "os.makedirs('/tmp/ray', exist_ok=True)      # cluster_utils writes an address file there\n"
        "args = dict(num_cpus=1, include_dashboard=False, object_store_memory=ray_env.OBJECT_STORE_BYTES)\n"
        "cluster = Cluster(initialize_head=True, connect=False, head_node_args=dict(args, temp_dir=tempfile.mkdtemp(prefix='r', dir='/tmp')))\n"
        "cluster.add_node(num_cpus=1, object_store_memory=ray_env.OBJECT_STORE_BYTES)\n"
        "cluster.wait_for_nodes()\n"
        "from nfckpt import Bounds, MemoryHub, NodeConfig, PairConfig\n"
        "from nfckpt.deploy.ray_pair import RayPair\n"
        "def port():\n"
        "    with socket.socket() as s:\n"
        "        s.bind(('127.0.0.1', 0))\n"
        "        return s.getsockname()[1]\n"
        "try:\n"
        "    for profile in ('hosts', 'host'):\n"
        "        hubs = [MemoryHub(3, 1024) for _ in range(2)]\n"
        "        nodes = {n: NodeConfig(ports=[h.endpoint_spec(i, by_path=True) for h in hubs], address=f'127.0.0.1:{port()}') for i, n in enumerate('ab', 1)}\n"
        "        config = PairConfig(name=profile, app='nfckpt.apps.counter:Counter', profile=profile, nodes=nodes, bounds=Bounds(unsafe_no_egress_lease=True))\n"
        "        with RayPair(config, address=cluster.address) as pair:\n"
        "            pair.wait_protected(30)\n"
        "            print(profile, len({s['ray_node'] for s in pair.status().values()}))\n"
        "finally:\n"
        "    cluster.shutdown()\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=85,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["hosts", "2", "host", "1"]
