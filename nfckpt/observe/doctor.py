"""Doctor: what this machine can do for nfckpt, each thing tried for real, nothing of the host changed.

Picture     checks() --exec--> child in namespaces of its own: ring, fence, hub   -> one JSON line a check
                     --exec--> child that is killed on purpose: proof of death
                     --------> here: seals, settings, compiler, clock

            Kernels, containers and distributions forbid things in ways that no version number tells (seccomp,
            AppArmor, max_user_namespaces=0), so every probe does the thing, in a child whose end undoes it.

Promises    H1 works as root and as an ordinary user; a probe that crashes or hangs is a failed check, not a failed doctor.
            H2 opens no port to the outside, sends no frame outside its own namespaces, starts no Ray.
            H3 takes under 5 s on a quiet machine; each child has PROBE_S_MAX.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import importlib.util
import json
import mmap
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from nfckpt.errors import MachineError

__all__ = ["Check", "checks", "run"]

PROBE_S_MAX = 10.0
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SOL_PACKET, PACKET_RX_RING, PACKET_VERSION, TPACKET_V2 = 263, 5, 10, 1
ETHTOOL_GET = {"rx": 0x14, "tx": 0x16, "sg": 0x18, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}
RAY_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",   # a local cluster listens on loopback only
    "RAY_USAGE_STATS_ENABLED": "0",             # no reports, no look-up of our outward address
}


@dataclass(frozen=True)
class Check:
    """`seen` is what was observed, `remedy` what to do where ok is False. `required`: nfckpt cannot work without."""

    name: str
    ok: bool
    seen: str
    remedy: str = ""
    required: bool = False


# ---- probes in namespaces of their own (they run in a child: see _box) ----


def _userns(uid: int, gid: int) -> None:
    """Enter a user and a network namespace as their root. Raises OSError where that is forbidden."""
    _unshare(CLONE_NEWUSER | CLONE_NEWNET)
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _private_netns() -> str:
    try:
        _unshare(CLONE_NEWNET)
        return "as root"
    except PermissionError:
        _userns(os.geteuid(), os.getegid())
        return "in a user namespace"


def _veth_pair() -> str:
    from pyroute2 import IPRoute
    with IPRoute() as ip:
        ip.link("add", ifname="d0", kind="veth", peer={"ifname": "d1"})
        ip.link("add", ifname="dbr", kind="bridge", br_stp_state=0, br_ageing_time=0, br_mcast_snooping=0)
        for name in ("d0", "d1", "dbr"):
            ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")
        ip.link("add", ifname="d2", kind="veth", peer={"ifname": "d3"})
        ip.link("set", index=ip.link_lookup(ifname="d2")[0], master=ip.link_lookup(ifname="dbr")[0], state="up")
        ip.brport("set", index=ip.link_lookup(ifname="d2")[0], learning=0, unicast_flood=1)
    return "a pair and a hub made"


FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(46)


def _packet_ring() -> str:
    """A TPACKET_V2 ring on d1 shows a frame that was sent on d0."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as rx, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tx:
        rx.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        rx.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("=IIII", 65536, 1, 2048, 32))
        with mmap.mmap(rx.fileno(), 65536) as ring:
            rx.bind(("d1", 0x88B5))
            tx.bind(("d0", 0))
            start = time.perf_counter_ns()
            tx.send(FRAME)
            while not struct.unpack_from("=I", ring, 0)[0] & 1:
                if time.perf_counter_ns() - start > 200_000_000:
                    raise MachineError("a frame that was sent did not appear in the ring within 200 ms")
            return f"frame in the ring {(time.perf_counter_ns() - start) / 1000:.0f} us after send began"


def _egress_lease() -> str:
    """The fence on d0: shut, open for a mark, shut again by itself."""
    from nfckpt.failover.lease import EgressLease
    lease = EgressLease(None, ["d0"], "nfckpt_doctor")
    lease.install()

    def passes() -> bool:
        try:
            tx.send(FRAME)
        except OSError:
            return False
        return True

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tx:
        tx.bind(("d0", 0))
        tx.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 7)
        shut = not passes()
        lease.renew(7, 50)
        start = time.perf_counter()
        opened = passes()
        while passes() and time.perf_counter() - start < 1:
            pass
        ms = (time.perf_counter() - start) * 1000
    lease.remove()
    if not shut or not opened or ms > 60:
        raise MachineError(f"shut {shut}, opened {opened}, a lease of 50 ms ended after {ms:.0f} ms")
    return f"a lease of 50 ms ended after {ms:.1f} ms"


BOX: list[tuple[str, bool, str, Callable[[], str]]] = [
    ("private network namespace", True, "run as root, or allow user namespaces (see below)", _private_netns),
    ("veth and bridge", False, "modprobe veth bridge: the testbed needs them", _veth_pair),
    ("AF_PACKET V2 ring", True, "needs CONFIG_PACKET and CAP_NET_RAW in the namespace", _packet_ring),
    ("nftables egress fence", False, "Linux >= 5.16 with CONFIG_NETFILTER_EGRESS and NF_TABLES_NETDEV; without it only "
                                     "the profile `host` is safe", _egress_lease),
]


def _box() -> None:
    """Body of the child: the probes of BOX in order, one JSON line each; a failure does not stop the rest."""
    for name, required, remedy, probe in BOX:
        print(json.dumps(asdict(_try(name, probe, remedy, required))), flush=True)


def _try_userns() -> None:
    """Body of the child: user namespaces as an ordinary user, though the doctor be root."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)      # dumpable again, or /proc/self/uid_map belongs to root
        uid = gid = 65534
    _userns(uid, gid)
    print(f"uid {uid} is root of its own namespaces", flush=True)


def _hold_life() -> None:
    """Body of the child: hold the life whose fd is the first argument, then wait to be killed."""
    from nfckpt.native.life import LifeLock
    lock = LifeLock(int(sys.argv[1]))
    lock.hold()
    print("held", flush=True)
    time.sleep(PROBE_S_MAX)


@contextlib.contextmanager
def _child(body: str, *args: str, fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    with subprocess.Popen([sys.executable, "-c", f"from nfckpt.observe import doctor; doctor.{body}()", *args], env=env,
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds) as p:
        try:
            yield p
        finally:
            p.kill()


# ---- probes that run here ----


def _try(name: str, probe: Callable[[], str], remedy: str, required: bool = False) -> Check:
    try:
        return Check(name, True, probe(), required=required)
    except Exception as e:      # H1: whatever a probe meets is a finding
        seen = str(e) if isinstance(e, (OSError, MachineError)) and str(e) else f"{type(e).__name__}: {e}"
        return Check(name, False, seen, remedy, required)


def _linux() -> str:
    release = platform.release()
    major, minor = (int("".join(c for c in part if c.isdigit()) or 0) for part in [*release.split("."), "0"][:2])
    if sys.platform != "linux" or (major, minor) < (5, 4):
        raise MachineError(f"{platform.system()} {release}")
    return f"{release}, {platform.machine()}"


def _boxed() -> list[Check]:
    out: list[Check] = []
    try:
        with _child("_box") as p:
            try:
                text, err = p.communicate(timeout=PROBE_S_MAX)
            except subprocess.TimeoutExpired:
                p.kill()
                text, err = p.communicate()
    except OSError as e:
        text, err = "", str(e)
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            out.append(Check(**json.loads(line)))
    last = (err.strip().splitlines() or ["no answer"])[-1]
    out += [Check(name, False, f"the probe died or hung: {last}", remedy, required)
            for name, required, remedy, _ in BOX[len(out):]]
    return out


def _user_namespaces() -> str:
    with _child("_try_userns") as p:
        text, err = p.communicate(timeout=PROBE_S_MAX)
    if p.returncode:
        raise MachineError((err.strip().splitlines() or ["no answer"])[-1])
    return text.strip()


def _raw_here() -> str:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0):
        return "this user may open packet sockets on the machine's own devices"


def _seals() -> str:
    fd = os.memfd_create("nfckpt-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4096)
        with mmap.mmap(fd, 4096) as page:
            fcntl.fcntl(fd, 1033, 0x02 | 0x04 | 0x10)       # shrink, grow, future write
            page[0] = 1
            try:
                mmap.mmap(fd, 4096).close()
            except PermissionError:
                return "a sealed page is writable by its writer only"
        raise MachineError("the seal against future writes has no effect")
    finally:
        os.close(fd)


def _robust_mutex() -> str:
    import select

    from nfckpt.native.life import LifeLock, LifeWatch
    fd = LifeLock.create()
    try:
        with _child("_hold_life", str(fd), fds=(fd,)) as p:
            assert p.stdout is not None and p.stderr is not None
            if not select.select([p.stdout], [], [], PROBE_S_MAX)[0] or p.stdout.readline() != "held\n":
                raise MachineError("the child could not hold the mutex")
            watch = LifeWatch(fd)
            t = time.monotonic_ns()
            p.kill()
            if not select.select([watch], [], [], 2)[0] or not watch.died:
                raise MachineError("no news of a death within 2 s")
            watch.close()
            return f"news of a death after {(watch.died_ns - t) / 1e6:.2f} ms"
    finally:
        os.close(fd)


def _pidfd() -> str:
    from nfckpt.failover.proof import kill_and_confirm
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10)"]) as p:
        fd = os.pidfd_open(p.pid)
        try:
            t = time.monotonic()
            if not kill_and_confirm(fd, 2000) or p.wait(2) != -signal.SIGKILL:
                raise MachineError("a killed child was not seen dead within 2 s")
            return f"killed and confirmed in {(time.monotonic() - t) * 1000:.1f} ms"
        finally:
            os.close(fd)
            p.kill()


def _mmu_tracker() -> str:
    from nfckpt.native.mmu import probe
    probe()
    return "three pages written, these three reported"


def _huge_pages() -> str:
    from nfckpt.native.arena import Arena
    if Arena(2 << 20).populate() == 0:
        raise MachineError("an arena's memory comes in pages of 4 KiB")
    return "an arena's memory comes in pages of 2 MiB"


def _offloads(device: str) -> str:
    on = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for name, command in ETHTOOL_GET.items():
            value = (ctypes.c_uint32 * 2)(command, 0)
            request = struct.pack("=16sQ16x", device.encode()[:15], ctypes.addressof(value))
            fcntl.ioctl(s, 0x8946, request)                 # SIOCETHTOOL
            if value[1]:
                on.append(name)
    if on:
        raise MachineError(f"on: {', '.join(on)}")
    return "all off"


def _receive_buffer() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)   # SO_RCVBUFFORCE
            return f"{s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >> 20} MiB by force"
        except PermissionError:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 30)
            got = s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            if got < 4 << 20:
                raise MachineError(f"{got >> 10} KiB at most (net.core.rmem_max), force is forbidden") from None
            return f"{got >> 20} MiB (net.core.rmem_max)"


def _compiler() -> str:
    cc = (sysconfig.get_config_var("CC") or "cc").split()[0]
    path = shutil.which(cc) or shutil.which("cc") or shutil.which("gcc")
    if path is None:
        raise MachineError(f"no C compiler ({cc})")
    with tempfile.TemporaryDirectory() as d:
        source = Path(d, "probe.c")
        source.write_text("#include <Python.h>\n#include <pthread.h>\n")
        done = subprocess.run([path, "-fsyntax-only", "-I", sysconfig.get_path("include"), str(source)],
                              capture_output=True, text=True, timeout=PROBE_S_MAX)
    if done.returncode:
        raise MachineError((done.stderr.strip().splitlines() or ["the compiler failed"])[0])
    return f"{path}, Python.h found"


def _native() -> str:
    for name in ("arena", "burst", "port", "life"):
        importlib.import_module(f"nfckpt.native.{name}")
    return "loads"


def _cipher() -> str:
    from nfckpt.native import aead
    if aead.make is not aead.LibcryptoAead:
        raise MachineError(aead.IN_USE)
    return aead.IN_USE


def _ray() -> str:
    """Would a plain ray.init() in this environment stay on the machine? Ray itself is not imported."""
    if importlib.util.find_spec("ray") is None:
        return "not installed: the local runner works without"
    open_ = [f"{k} is not {v}" for k, v in RAY_SETTINGS.items() if os.environ.get(k) != v]
    proxy = os.environ.get("http_proxy", "").startswith("http://127.0.0.1:")
    home = Path(os.environ.get("HOME", "/"), "ray_bootstrap_config.yaml").exists()
    outward = [name for _, name in socket.if_nameindex() if name != "lo"]
    if not (proxy or home) and outward:
        open_.append("cloud-metadata look-ups are not stopped")
    if open_ and outward:
        raise MachineError("; ".join(open_))
    return "stays on this machine" if outward else "stays on this machine (loopback only here)"


def _cores() -> str:
    n = len(os.sched_getaffinity(0))
    if n < 2:
        raise MachineError(f"{n} for this process")
    return f"{n} for this process"


def _holes() -> str:
    """The longest time that this spinning thread was not running, over 0.5 s."""
    worst, over, end = 0, 0, time.perf_counter_ns() + 500_000_000
    last = time.perf_counter_ns()
    while last < end:
        now = time.perf_counter_ns()
        gap = now - last
        if gap > worst:
            worst = gap
        if gap > 1_000_000:
            over += 1
        last = now
    text = f"longest {worst / 1e6:.2f} ms, {over} above 1 ms in 0.5 s"
    if worst > 8_000_000:
        raise MachineError(text)
    return text


def checks(device: str | None = None) -> list[Check]:
    """Try everything, in the order a reader would mend it. With `device`, its offloads too. Never raises."""
    root = os.geteuid() == 0
    out = [
        _try("Linux", _linux, "Linux >= 5.4; >= 5.16 for the profile `hosts`", True),
        _try("native code", _native, "pip install . again, or in a checkout: "
             "python -c 'from setuptools import setup; setup()' build_ext --inplace", True),
        _try("compiler and Python headers", _compiler, "install gcc and python3-dev; needed to build only"),
        *_boxed(),
        _try("unprivileged user namespaces", _user_namespaces,
             "sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, "
             "kernel.apparmor_restrict_unprivileged_userns=0, or a container's seccomp profile", not root),
        _try("raw sockets here", _raw_here, "real ports need CAP_NET_RAW; private namespaces do not"),
        _try("memfd seals", _seals, "Linux >= 5.1", True),
        _try("robust mutex", _robust_mutex, "glibc, and native code built", True),
        _try("pidfd", _pidfd, "Linux >= 5.3, and a seccomp profile that lets it through", True),
        _try("mmu tracker", _mmu_tracker, "Linux >= 6.7, and a seccomp profile that lets userfaultfd through; without it `mmu` regions fall back to `compare`"),
        _try("huge pages", _huge_pages, "Linux >= 6.1 with transparent huge pages; without them an app that writes anywhere in a large state is about "
             "half as fast"),
        _try("receive buffer", _receive_buffer, "sysctl net.core.rmem_max=16777216: measuring sinks need it"),
        _try("channel cipher", _cipher, "OpenSSL's libcrypto.so.3 (Debian: apt-get install libssl3); until then every TCP record takes the GIL"),
        _try("Ray stays inside", _ray, "nfckpt sets this for the clusters it starts; if you start Ray yourself: export "
             + " ".join(f"{k}={v}" for k, v in RAY_SETTINGS.items()) + " http_proxy=http://127.0.0.1:9 no_proxy=127.0.0.1,localhost"),
        _try("cores", _cores, "two nodes on one core take turns: everything works, no timing means anything"),
        _try("scheduler holes", _holes, "a busy machine: keep hang_ms well above this, or lower the others' priority"),
    ]
    if device is not None:
        out.append(_try(f"offloads of {device}", lambda: _offloads(device),
                        f"ethtool -K {device} rx off tx off sg off tso off gso off gro off"))
    return out


def run(as_json: bool = False, device: str | None = None) -> int:
    """Print the checks as a table, or as JSON {"ok": ..., "checks": [...]}. 1 when a required one fails, else 0."""
    done = checks(device)
    ok = all(c.ok for c in done if c.required)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(c) for c in done]}, indent=2))
        return 0 if ok else 1
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    table = Table(box=None, pad_edge=False)
    for heading in ("", "check", "seen"):
        table.add_column(heading, overflow="fold")
    for c in done:
        sign = ("ok", "green") if c.ok else ("FAILS", "bold red") if c.required else ("note", "yellow")
        table.add_row(Text(*sign), Text(c.name), Text(c.seen if c.ok else f"{c.seen}\n-> {c.remedy}"))
    console = Console()
    console.print(table)
    console.print("This machine can run nfckpt." if ok else "Something that nfckpt cannot do without is missing.")
    return 0 if ok else 1
