"""Under Ray: killed packet processes and killed workers cost no frame, and what a pair or a cluster made is gone after it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.deploy import ray_pair
from nfckpt.deploy.ray_actors import _record, end_predecessor
from nfckpt.deploy.ray_env import NAMESPACE, Cluster, end_process, start_local_cluster, start_time
from nfckpt.deploy.ray_pair import RayPair
from nfckpt.errors import ConfigError, MachineError
from nfckpt.native.burst import Burst
from nfckpt.ports import MemoryHub

pytestmark = [pytest.mark.ray, pytest.mark.timeout(90)]
ROOT = Path(__file__).resolve().parent.parent
MACS = bytes.fromhex("020000000001" "020000000002" "0800")
PROFILES = ["host", "hosts"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_local_cluster() as cluster:
        yield cluster


class Segment:
    """Two hubs around a pair: numbered frames go in on the left while `run` lasts, and are counted on the right."""

    def __init__(self) -> None:
        self.hubs = [MemoryHub(3, 1 << 15) for _ in range(2)]
        self.left, self.right = (hub.open(0) for hub in self.hubs)
        self.sent = 0
        self.got: dict[int, int] = {}
        self._pause_s = 0.0005
        self._stop = threading.Event()

    def config(self, name: str, profile: str, port: int = 7870) -> PairConfig:
        nodes = {n: NodeConfig(ports=[hub.endpoint_spec(i + 1, by_path=True) for hub in self.hubs],
                               address=f"127.0.0.1:{port + i}", cpu=i) for i, n in enumerate("ab")}
        return PairConfig(name=name, app="tests.ray_app:Wire", profile=profile, nodes=nodes,
                          bounds=Bounds(arena_bytes=1 << 20, unsafe_no_egress_lease=True, hang_ms=400))

    def __enter__(self) -> Segment:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more, and wait until nothing comes any more. Idempotent."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        quiet = time.monotonic() + 1
        while time.monotonic() < quiet:
            if self._drain():
                quiet = time.monotonic() + 1
            time.sleep(0.001)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.left.tx_burst([MACS + (self.sent + i).to_bytes(8, "big") + bytes(42) for i in range(4)])
            self.sent += 4
            self._drain()
            time.sleep(self._pause_s)

    def _drain(self) -> int:
        burst, n = Burst(), 0
        while self.right.rx_burst(burst, 256):
            for frame in burst.frames():
                number = int.from_bytes(frame[14:22], "big")
                self.got[number] = self.got.get(number, 0) + 1
                n += 1
            burst.reset()
        return n

    def check(self, sent: int | None = None, since: int = 0) -> None:
        """Each of the frames `since` to `sent` came once; all that were sent, unless told otherwise. No other came twice."""
        sent = self.sent if sent is None else sent
        lost = [i for i in range(since, sent) if i not in self.got]
        doubled = [i for i, n in self.got.items() if n > 1]
        assert sent - since > 500
        assert (lost, doubled) == ([], []), f"{len(lost)} lost, {len(doubled)} doubled of {sent - since}"
        assert self.right.counters()["rx_ring_drops"] == 0

    def close(self) -> None:
        for end in (self.left, self.right, *self.hubs):
            end.close()


@pytest.fixture
def segment() -> Iterator[Segment]:
    segment = Segment()
    yield segment
    segment.close()


class Log:
    """What a pair reported."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        self.rows.append((name, fields))

    def all(self, name: str) -> list[dict[str, Any]]:
        return [fields for n, fields in self.rows if n == name]

    def pids(self) -> list[int]:
        return [fields["pid"] for fields in self.all("started")]


def eventually(what: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not within the bound"
        time.sleep(0.01)


def actor_exists(name: str) -> bool:
    import ray

    try:
        ray.get_actor(name, NAMESPACE)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("profile", PROFILES)
def test_killed_packet_processes_cost_no_frame(cluster: Cluster, segment: Segment, profile: str) -> None:
    log = Log()
    with RayPair(segment.config("kill", profile), on_event=log) as pair:
        term, victims = 1, []
        assert pair.wait_protected() == "a"     # the first of the configuration leads
        with segment:
            for _ in range(2):
                time.sleep(0.2)
                victims.append(pair.kill_active())
                term += 1
                pair.wait_protected(term=term)
            time.sleep(0.2)
        segment.check()
        assert [node for node, _ in victims] == ["a", "b"] and all(pid for _, pid in victims)
        eventually(lambda: len(log.all("receipt")) == 2)
        assert {(r["doubled"], r["exact"]) for r in log.all("receipt")} == {(0, True)}
        status = pair.status()
        assert {s["role"] for s in status.values()} == {"active", "standby"}
        run_dir, workers = pair._run_dir, [s["keeper_pid"] for s in status.values()]
        assert os.path.isdir(run_dir)
    assert not os.path.exists(run_dir)
    assert not [pid for pid in log.pids() if start_time(pid)]
    eventually(lambda: not [pid for pid in workers if start_time(pid)], 3)      # Ray says "dead" a moment before it is so
    assert not any(map(actor_exists, ["nfckpt-node-kill-a", "nfckpt-node-kill-b", "nfckpt-witness-kill"]))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_killed_worker_is_replaced_and_costs_no_frame(cluster: Cluster, segment: Segment, profile: str) -> None:
    """Its packet process forwards on, and the actor's next life adopts it."""
    log, config = Log(), segment.config("worker", profile)
    patient = {"orphan_ms_max": 15_000, "hang_ms": 2000, "hang_ms_max": 4000, "rate_frames_per_s": 20_000}       # Ray's next worker takes its time, and the CPU
    config = msgspec.structs.replace(config, bounds=msgspec.structs.replace(config.bounds, **patient))
    with RayPair(config, on_event=log) as pair:
        active = pair.wait_protected()
        before = pair.status()[active]
        with segment:
            time.sleep(0.2)
            os.kill(before["keeper_pid"], signal.SIGKILL)
            eventually(lambda: log.all("adopted"))
            time.sleep(0.2)
            after = pair.status()[active]
            assert (after["pid"], after["role"], after["protected"]) == (before["pid"], "active", True)
            assert after["keeper_pid"] != before["keeper_pid"] and pair.wait_protected() == active
            assert pair.failover()                      # its commands and its questions arrive again
            assert pair.wait_protected(term=2) != active
        segment.check()
        assert not log.all("standby_lost")[1:] and [r["reason"] for r in log.all("takeover")] == ["handover"]
        eventually(lambda: log.all("keeper_back"))
        assert log.all("keeper_lost")[0]["node"] == log.all("keeper_back")[0]["node"] == active


def test_a_killed_witness_is_made_again_and_believes_both_nodes(cluster: Cluster, segment: Segment) -> None:
    import ray

    log = Log()
    with RayPair(segment.config("witness", "host"), on_event=log) as pair:
        active = pair.wait_protected()
        with segment:
            time.sleep(0.1)
            ray.kill(ray.get_actor(pair.witness_name, NAMESPACE))
            eventually(lambda: log.all("witness_back"))
            eventually(lambda: pair.view().missing == ())
            assert (pair.view().term, pair.view().holder, bool(pair.view().standby)) == (1, active, True)
            pair.kill_active()
            assert pair.wait_protected(term=2) != active
        segment.check()


def test_a_stopped_packet_process_does_not_outlive_its_actor(cluster: Cluster, segment: Segment) -> None:
    """It cannot see that its worker is gone, so the actor's next life ends it (profile hosts: the peer does not kill)."""
    with RayPair(segment.config("stopped", "hosts")) as pair:
        standby = "b" if pair.wait_protected() == "a" else "a"
        before = pair.status()[standby]
        os.kill(before["pid"], signal.SIGSTOP)
        os.kill(before["keeper_pid"], signal.SIGKILL)
        eventually(lambda: not start_time(before["pid"]))
        eventually(lambda: pair.status()[standby]["role"] == "standby")
        assert pair.failover()
        assert pair.wait_protected(term=2) == standby


def test_an_actor_that_ray_gave_up_is_made_again(cluster: Cluster, segment: Segment) -> None:
    import ray

    log = Log()
    config = segment.config("gone", "host")
    config = msgspec.structs.replace(config, bounds=msgspec.structs.replace(config.bounds, orphan_ms_max=0))     # nothing is adopted
    with RayPair(config, on_event=log) as pair:
        pair.wait_protected()
        ray.kill(ray.get_actor("nfckpt-node-gone-a", NAMESPACE))        # no restart
        assert pair.wait_protected(term=2) == "b"
        assert len(log.all("keeper_back")) == 1


def test_a_pair_runs_once(cluster: Cluster, segment: Segment) -> None:
    config = segment.config("once", "host")
    with RayPair(config) as pair:
        pair.wait_protected()
        with pytest.raises(ConfigError, match="runs in this cluster already"):
            RayPair(config).start()
        assert pair.wait_protected() == "a"
        assert actor_exists(pair.witness_name)


DRIVER = """
import sys, os, time, msgspec
from nfckpt.config import PairConfig
from nfckpt.deploy.ray_pair import RayPair
config = msgspec.json.decode(sys.argv[1], type=PairConfig)
with RayPair(config, address=sys.argv[2]) as pair:
    pair.wait_protected()
    nodes = pair.status().values()
    print("cluster", pair._cluster.address, *(s["keeper_pid"] for s in nodes), pair._run_dir, *(f"\\n{s['pid']}" for s in nodes), flush=True)
    print("protected", flush=True)
    time.sleep(60)
"""


def driver(config: PairConfig, address: str) -> tuple[subprocess.Popen[str], list[str]]:
    """Another program with a pair of its own, once it is protected; what it printed."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, msgspec.json.encode(config).decode(), address], cwd=ROOT,
                               text=True, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line == "protected\n":
            return process, lines
    raise AssertionError(f"it ended with {process.wait()}: {lines}")


def test_the_witness_outlives_its_driver(cluster: Cluster, segment: Segment) -> None:
    import ray

    config = segment.config("outlive", "host")
    process, lines = driver(config, cluster.address)
    process.kill()
    process.wait()
    shutil.rmtree(next(line for line in lines if line.startswith("cluster")).split()[4])
    eventually(lambda: not [pid for pid in lines if pid.isdigit() and start_time(int(pid))])
    eventually(lambda: not actor_exists("nfckpt-node-outlive-a") and not actor_exists("nfckpt-node-outlive-b"))
    witness = ray.get_actor("nfckpt-witness-outlive", NAMESPACE)
    assert ray.get(witness.view.remote())["term"] == 1
    with RayPair(config) as pair:               # goes on from there: a term is never given twice
        pair.wait_protected()
        assert ray.get(witness.view.remote())["term"] == 2
    assert not actor_exists("nfckpt-witness-outlive")


def test_an_interrupt_leaves_nothing(segment: Segment) -> None:
    process, lines = driver(segment.config("interrupt", "host"), "")
    try:
        words = next(line for line in lines if line.startswith("cluster")).split()
        pids = [int(p) for p in lines if p.isdigit()] + [int(p) for p in words[2:4]]
        daemons = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        commands = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in daemons)
        temp_dirs = set(re.findall(r"/[^\s=]*?/nfckpt-ray-\w+", commands))
        assert len(pids) == 4 and len(daemons) >= 2 and len(temp_dirs) == 1 and os.path.isdir(words[4])
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        assert not [pid for pid in pids + daemons if start_time(pid)]
        assert not [d for d in (*temp_dirs, words[4]) if os.path.exists(d)]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def test_a_cluster_without_the_resource_is_named(cluster: Cluster, segment: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pair, "PLACE_S_MAX", 1.0)
    config = segment.config("nowhere", "host")
    nodes = {n: msgspec.structs.replace(c, resources={"edge": 1}) for n, c in config.nodes.items()}
    with pytest.raises(MachineError, match="not placed"):
        RayPair(msgspec.structs.replace(config, nodes=nodes)).start()
    assert not actor_exists("nfckpt-node-nowhere-a")


def test_only_the_process_that_was_recorded_is_ended(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        _record(str(tmp_path), "a", child.pid)
        end_process(child.pid, start_time(child.pid) + 1)
        assert child.poll() is None
        end_predecessor(str(tmp_path), "b")
        assert child.poll() is None
        end_predecessor(str(tmp_path), "a")
        assert child.wait(5) == -signal.SIGKILL
        end_predecessor(str(tmp_path), "a")
    finally:
        child.kill()
        child.wait()


QUIET = """
import os, socket
from pathlib import Path
from nfckpt.deploy.ray_env import start_local_cluster

def unrouted():
    names, values = [l.split() for l in Path("/proc/net/snmp").read_text().splitlines() if l.startswith("Ip:")]
    return int(values[names.index("OutNoRoutes")])

before = dict(os.environ)
with start_local_cluster(parent="/run") as cluster:
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    bound = {line.split()[1] for f in ("tcp", "udp") for line in Path("/proc/net", f).read_text().splitlines()[1:]}
    assert {b.split(":")[0] for b in bound} == {"0100007F"}, bound
assert dict(os.environ) == before
assert os.listdir("/run") == ["netns"], os.listdir("/run")
running = [p for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid())]
assert not running, running
assert unrouted() == 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    try:
        s.connect(("192.0.2.1", 9))
    except OSError:
        pass
assert unrouted() == 1      # so this counter would have seen it
"""


TWO_RAYLETS = """
import os, time
from nfckpt.deploy import ray_env
os.environ.update(ray_env.LOCAL | ray_env.PROXY)
os.environ["RAY_TMPDIR"] = "/run"             # Ray notes its address there, and makes no folder for it
from ray.cluster_utils import Cluster
from nfckpt.deploy.ray_pair import RayPair
from tests.test_ray import Log, Segment, eventually

small = {"num_cpus": 1, "object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False, "temp_dir": "/run/ray"})
other = cluster.add_node(**small)
segment, log = Segment(), Log()
from ray.util.placement_group import placement_group_table
for profile, hosts in ("host", 1), ("hosts", 2):
    with RayPair(segment.config("apart", profile), address=cluster.address, on_event=log) as pair:
        pair.wait_protected()
        where = placement_group_table(pair._group)["bundles_to_node_id"]
        assert len(set(where.values())) == hosts, where
        if profile == "host":
            continue
        lost = next("ab"[i] for i, node in where.items() if node == other.node_id)
        with segment:
            time.sleep(0.2)
            cluster.remove_node(other, allow_graceful=False)
            eventually(lambda: [f["node"] for f in log.all("keeper_lost")] == [lost], 30)
            eventually(lambda: pair.status()["ab".replace(lost, "")]["role"] == "solo")
            cluster.add_node(**small)
            pair.wait_protected(40)
            time.sleep(0.2)
        segment.check()
"""


def in_box(code: str) -> None:
    box = "from nfckpt.testbed import box; import sys; sys.exit(box.run_in_box(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", box, "-c", code], cwd=ROOT, check=True, timeout=85)


@pytest.mark.box
def test_two_hosts_hold_a_node_each_and_one_may_go() -> None:
    in_box(TWO_RAYLETS)


@pytest.mark.box
def test_nothing_leaves_the_machine_at_start() -> None:
    in_box(QUIET)
