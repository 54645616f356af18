"""Settings under which this project starts or joins Ray: nothing listens outside this machine, nothing leaves it.

    with start_local_cluster() as cluster:      # three seconds; ten processes, all on 127.0.0.1
        with RayPair(config) as pair: ...
    with connect("10.0.0.5:6379"): ...          # somebody else's cluster: joined and left, never stopped

Why         By default Ray binds to the outward address, asks cloud providers who we are (HTTP to 169.254.169.254, a DNS
            question), reports usage, and leaves a session directory for ever. Each variable below stops one of these.
            Some are read when `ray` is imported, so nfckpt imports it only inside functions.

Promises    E1 Only loopback is connected to and listened on by a local cluster.
            E2 After `close` the environment is as before; a local cluster's processes and directory are gone.
Ray's own   Drivers of a local cluster know each other by a token that Ray makes on first use, ~/.ray/auth_token: it stays.
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nfckpt.errors import ConfigError, MachineError

__all__ = ["NAMESPACE", "Cluster", "connect", "forget_proxy", "start_local_cluster"]

NAMESPACE = "nfckpt"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}       # its side effect on Linux: 127.0.0.1 is everybody's address
LOCAL = LOOPBACK | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",                 # else packet processes run at nice 15
    "RAY_worker_oom_score_adjustment": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_start_python_gc_manager_thread": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",           # else "(raylet) …" reaches the driver's stdout
}
RAYS = ("RAY_", "PYTHONBREAKPOINT")             # what Ray itself sets in a driver's environment
NOWHERE = "http://127.0.0.1:9"
PROXY = {"http_proxy": NOWHERE, "no_proxy": "127.0.0.1,localhost"}      # stops the cloud look-ups of the daemons
OBJECT_STORE_BYTES = 80 << 20                   # close to Ray's minimum; nothing of ours goes through it
TEMP_PATH_CHARS_MAX = 20                        # Ray's sockets lie deep below it, and a Unix path ends at 107
GONE_S_MAX = 8.0


def forget_proxy() -> None:
    """In a worker: what stopped the daemons' look-ups must not stop the app."""
    if os.environ.get("http_proxy") == NOWHERE:
        for name in PROXY:
            os.environ.pop(name, None)


class Cluster:
    """A joined cluster. `address` is its head; `local` tells whether it is ours to stop. Close it on the thread that made it."""

    def __init__(self, address: str, local: bool, undo: contextlib.ExitStack) -> None:
        self.address, self.local, self._undo = address, local, undo
        atexit.register(self.close)             # before Ray's own, which was registered earlier

    def close(self) -> None:
        """Leave the cluster; stop it when it is local. Idempotent."""
        atexit.unregister(self.close)
        self._undo.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def start_local_cluster(num_cpus: int = 4, *, parent: str = "") -> Cluster:
    """A cluster of one raylet on 127.0.0.1. `parent`: short directory for its session (default: the temporary one).

    Raises ConfigError when this process is in a cluster already, or imported ray with other settings.
    """
    parent = parent or tempfile.gettempdir()
    if len(parent) > TEMP_PATH_CHARS_MAX:
        parent = "/tmp"
    with contextlib.ExitStack() as undo:
        undo.enter_context(_environment(LOCAL, RAYS))
        temp_dir = tempfile.mkdtemp(prefix="nfckpt-ray-", dir=parent)
        undo.callback(_remove, temp_dir)
        processes: set[_Process] = set()
        undo.callback(_await_end, processes)
        ray = _import(loopback=True)
        undo.callback(ray.shutdown)
        undo.callback(lambda: processes.update(_session(temp_dir)))     # while its daemons still hold it together
        with _environment(PROXY):
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
                     object_store_memory=OBJECT_STORE_BYTES, namespace=NAMESPACE, _temp_dir=temp_dir)
        return Cluster(ray.get_runtime_context().gcs_address, True, undo.pop_all())
    raise AssertionError("an ExitStack swallows nothing")


def connect(address: str, *, loopback: bool | None = None) -> Cluster:
    """Join the cluster at `address` ("host:port" or "auto"), which stays when we leave.

    `loopback`: it was started bound to 127.0.0.1 (by `start_local_cluster`, or by `ray start` with
    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0); a driver without that setting would hang. Default: judged by the address.
    Raises ConfigError, and MachineError when nobody answers there.
    """
    if loopback is None:
        loopback = _is_loopback(address)
    with contextlib.ExitStack() as undo:
        undo.enter_context(_environment({"RAY_USAGE_STATS_ENABLED": "0", **(LOOPBACK if loopback else {})}, RAYS))
        ray = _import(loopback)
        undo.callback(ray.shutdown)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace=NAMESPACE)
        except (ConnectionError, ValueError, RuntimeError) as e:
            raise MachineError(f"no Ray cluster at {address}: {str(e).splitlines()[0]}", "is `ray start` running there?") from None
        return Cluster(ray.get_runtime_context().gcs_address, False, undo.pop_all())
    raise AssertionError("an ExitStack swallows nothing")


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _import(loopback: bool) -> Any:
    """`ray`, imported with the setting that it reads only at import. One process cannot have it both ways."""
    import ray
    from ray._private import ray_constants

    if ray.is_initialized():
        raise ConfigError("this process is in a Ray cluster already", "leave it first, or give RayPair no address")
    if getattr(ray_constants, "ENABLE_RAY_CLUSTER", not loopback) == loopback:
        raise ConfigError(f"ray was imported {'without' if loopback else 'with'} {next(iter(LOOPBACK))}=0",
                          "start or join the cluster before `import ray`, or set that variable yourself")
    return ray


@contextlib.contextmanager
def _environment(values: Mapping[str, str], more: tuple[str, ...] = ()) -> Iterator[None]:
    """Set `values`; at the end they, and whatever changed in names that begin with one of `more`, are as before."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in {n for n in {*os.environ, *before} if n in values or n.startswith(more)}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


# ── what a local cluster leaves behind ───────────────────────────────────────────────────────────

_Process = tuple[int, int]      # pid, start time in clock ticks: a pid that is used again does not match


def _session(temp_dir: str) -> set[_Process]:
    """Our daemons that have `temp_dir` on their command line, and everything below them: one reading of /proc, some ms."""
    children: dict[int, list[_Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := _stat(int(name))) is not None:
            children.setdefault(found[0], []).append((int(name), found[1]))
    daemons = [p for p in children.get(os.getpid(), ()) if temp_dir in _command_line(p[0])]
    below, queue = set(daemons), daemons
    while queue:
        found_below = children.get(queue.pop()[0], [])
        below.update(found_below)
        queue.extend(found_below)
    return below


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _stat(pid: int) -> tuple[int, int] | None:
    """(parent, start time), None for a process that is gone or only waits to be reaped. proc_pid_stat(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else (int(fields[1]), int(fields[19]))


def end_process(pid: int, start_time: int, grace_s: float = 0.0) -> None:
    """Return once the process is gone; it is killed when it does not go within `grace_s`. A reused pid is never hit."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        found = _stat(pid)                      # looked at after the pidfd holds it
        if found is None or found[1] != start_time:
            return
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(grace_s * 1000):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            poll.poll(GONE_S_MAX * 1000)
    finally:
        os.close(fd)


def start_time(pid: int) -> int:
    """Names the process together with its pid; 0 when there is none."""
    found = _stat(pid)
    return found[1] if found else 0


def _await_end(processes: set[_Process]) -> None:
    """Workers outlive their raylet by about a second; whatever of the session is left after GONE_S_MAX is killed."""
    deadline = time.monotonic() + GONE_S_MAX
    for process in processes:
        end_process(*process, grace_s=max(0.0, deadline - time.monotonic()))


def _remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if os.path.exists(directory):               # a last log line came between listing and removing
        time.sleep(0.1)
        shutil.rmtree(directory, ignore_errors=True)


