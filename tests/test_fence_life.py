"""Proof of death with real processes: SIGKILL, SIGSEGV, thread end, exec, stop, lies (I9, profile host)."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfckpt.errors import MachineError, PeerError, StateError
from nfckpt.failover.proof import kill_and_confirm
from nfckpt.native.gate import Gate
from nfckpt.native.life import LifeLock, LifeWatch
from nfckpt.node.priority import outrank
from tests.native_lab import ListPort

ROOT = str(Path(__file__).resolve().parent.parent)
HOLDER = """
import sys, threading, time, os, mmap, resource, signal, subprocess
sys.path.insert(0, sys.argv[1])
from nfckpt.native.life import LifeLock
from nfckpt.failover.proof import die_with_parent, harden_process
fd, megabytes, how = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ram = mmap.mmap(-1, max(megabytes, 1) << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(ram), 4096):
    ram[at] = 1
life = LifeLock(fd)
if how == "hardened":
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    harden_process()
if how == "thread":
    go = threading.Event()
    t = threading.Thread(target=lambda: (life.hold(), go.wait()))
    t.start(); time.sleep(0.05)
else:
    life.hold()
print("held", flush=True)
word = sys.stdin.readline().strip()
if how == "thread": go.set()
if how == "exec": os.execv("/bin/sleep", ["sleep", "30"])
if how == "release": life.release(); print("released", flush=True)
time.sleep(30)
"""


@contextlib.contextmanager
def holder(fd: int, how: str = "plain", megabytes: int = 1, cwd: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", HOLDER, ROOT, str(fd), str(megabytes), how],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[fd], cwd=cwd) as p:
        try:
            assert p.stdout is not None and p.stdout.readline() == b"held\n"
            yield p
        finally:
            p.kill()


@pytest.fixture
def fd() -> Iterator[int]:
    fd = LifeLock.create()
    yield fd
    os.close(fd)


def tell(p: subprocess.Popen[bytes]) -> None:
    assert p.stdin is not None
    p.stdin.write(b"go\n")
    p.stdin.flush()


def news(w: LifeWatch, seconds: float = 3) -> bool:
    return bool(select.select([w], [], [], seconds)[0])


@pytest.mark.parametrize("megabytes", [1, 512])
def test_the_news_of_a_sigkill_comes_at_once_whatever_the_size(megabytes: int) -> None:
    late = []
    for _ in range(4):
        fd = LifeLock.create()
        with holder(fd, megabytes=megabytes) as p:
            w = LifeWatch(fd)
            assert not w.died and not news(w, 0.02)
            t = time.monotonic_ns()
            p.kill()
            assert news(w) and w.died and not w.released
            late.append((w.died_ns - t) / 1e6)
            w.close()
            assert w.died
        os.close(fd)
    print(f"{megabytes} MB: {', '.join(f'{x:.2f}' for x in late)} ms")
    assert statistics.median(late) < 10


def test_hardened_a_segfault_is_news_at_once_and_leaves_no_core(fd: int, tmp_path: Path) -> None:
    with holder(fd, "hardened", 256, cwd=str(tmp_path)) as p:
        w = LifeWatch(fd)
        t = time.monotonic_ns()
        p.send_signal(signal.SIGSEGV)
        assert news(w) and w.died
        print(f"SIGSEGV, 256 MB, not dumpable: {(w.died_ns - t) / 1e6:.2f} ms")
        assert w.died_ns - t < 50_000_000
        assert p.wait(5) == -signal.SIGSEGV and list(tmp_path.iterdir()) == []
        w.close()


@pytest.mark.parametrize("how", ["thread", "exec"])
def test_the_end_of_the_holding_thread_and_exec_are_deaths(fd: int, how: str) -> None:
    with holder(fd, how) as p:
        w = LifeWatch(fd)
        assert not news(w, 0.05)
        tell(p)
        assert news(w) and w.died and p.poll() is None
        w.close()


def test_a_stopped_owner_lives_and_letting_go_is_no_death(fd: int) -> None:
    with holder(fd, "release") as p:
        w = LifeWatch(fd)
        p.send_signal(signal.SIGSTOP)
        assert not news(w, 0.3) and not w.died
        p.send_signal(signal.SIGCONT)
        tell(p)
        assert news(w) and w.released and not w.died and w.died_ns == 0
        w.close()


def test_a_watch_that_begins_after_death_knows(fd: int) -> None:
    with holder(fd) as p:
        p.kill()
        p.wait()
        w = LifeWatch(fd)
        assert news(w) and w.died
        w.close()


def test_closing_a_watch_does_not_wait_for_its_slice(fd: int) -> None:
    with holder(fd):
        took = []
        for _ in range(10):
            w = LifeWatch(fd)
            time.sleep(0.005)
            t = time.monotonic()
            w.close()
            w.close()
            took.append(time.monotonic() - t)
        assert statistics.median(took) < 0.02 and max(took) < 0.5
        with pytest.raises(StateError):
            w.fileno()
        del w


def test_pages_that_cannot_prove_anything_are_refused(fd: int) -> None:
    with pytest.raises(StateError, match="nobody"):
        LifeWatch(fd)
    naked = os.memfd_create("naked")
    os.ftruncate(naked, 4096)
    with pytest.raises(PeerError):
        LifeWatch(naked)
    os.close(naked)
    lock = LifeLock(fd)
    lock.hold()
    with pytest.raises(StateError):
        lock.hold()
    with pytest.raises(StateError):                     # one life, one page
        LifeLock(fd).hold()
    with pytest.raises(PermissionError):                # L3: nobody else can write there
        mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    bad: list[BaseException] = []

    def elsewhere() -> None:
        try:
            lock.release()
        except StateError as e:
            bad.append(e)

    t = threading.Thread(target=elsewhere)
    t.start()
    t.join()
    assert len(bad) == 1
    lock.release()


def test_an_owner_that_scribbles_harms_nobody_else() -> None:
    """Every byte of the page overwritten while it is watched: the watcher only ever says released or died."""
    for pattern in (b"\0", b"\xff", b"\xaa", os.urandom(4096)):
        fd = os.memfd_create("liar", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 4096)
        import fcntl
        fcntl.fcntl(fd, 1033, 0x2 | 0x4)                # F_ADD_SEALS: shrink, grow
        page = mmap.mmap(fd, 4096)
        page[:4] = (12345).to_bytes(4, sys.byteorder)
        w = LifeWatch(fd)
        page[:] = (pattern * 4096)[:4096]
        assert news(w) and (w.died or w.released)
        w.close()
        page.close()
        os.close(fd)


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("watched", [False, True])
def test_kill_and_confirm(fd: int, stopped: bool, watched: bool) -> None:
    with holder(fd, megabytes=256) as p:
        w = LifeWatch(fd)
        pidfd = os.pidfd_open(p.pid)
        if stopped:
            p.send_signal(signal.SIGSTOP)
        t = time.monotonic()
        assert kill_and_confirm(pidfd, 2000, w if watched else None)
        print(f"stopped={stopped} watched={watched}: confirmed in {(time.monotonic() - t) * 1000:.2f} ms")
        if not watched:
            assert select.select([pidfd], [], [], 0)[0]
        assert p.wait(5) == -signal.SIGKILL
        assert kill_and_confirm(pidfd, 0)               # long gone: True at once
        os.close(pidfd)
        w.close()


def test_a_dead_process_has_the_lowest_priority_with_all_its_threads(fd: int) -> None:
    with holder(fd) as p:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        outrank(p.pid)
        threads = [int(t) for t in os.listdir(f"/proc/{p.pid}/task")]
        assert {os.getpriority(os.PRIO_PROCESS, t) for t in threads} == {19} and os.getpriority(os.PRIO_PROCESS, 0) == before
        p.kill()
        p.wait()
        outrank(p.pid)                                  # gone: nothing to do


def test_kill_and_confirm_needs_more_than_a_release(fd: int) -> None:
    with holder(fd, "release") as p:
        w = LifeWatch(fd)
        tell(p)
        assert p.stdout is not None and p.stdout.readline() == b"released\n" and news(w)
        pidfd = os.pidfd_open(p.pid)
        assert kill_and_confirm(pidfd, 2000, w) and select.select([pidfd], [], [], 0)[0]
        os.close(pidfd)
        w.close()


def test_what_we_may_not_kill_is_an_error() -> None:
    """As an ordinary user, against pid 1."""
    code = ("import os, sys; sys.path.insert(0, sys.argv[1])\n"
            "from nfckpt.failover.proof import kill_and_confirm\n"
            "from nfckpt.errors import MachineError\n"
            "fd = os.pidfd_open(1); os.setuid(65534)\n"
            "try: kill_and_confirm(fd, 10)\n"
            "except MachineError: print('refused')")
    out = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, timeout=20)
    assert out.stdout == b"refused\n", out.stderr
    assert issubclass(MachineError, Exception)


CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from nfckpt.failover.proof import die_with_parent
die_with_parent(int(sys.argv[2]))
print(os.getpid(), flush=True)
time.sleep(30)
"""
PARENT = """
import os, subprocess, sys, threading, time
def start():
    subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1], str(os.getpid())])
    time.sleep(0.7)
if sys.argv[3] == "thread":
    t = threading.Thread(target=start); t.start(); t.join()
else:
    start()
time.sleep(30)
"""


@pytest.mark.parametrize("started_by", ["main", "thread"])
def test_a_child_dies_with_its_parent_and_with_the_thread_that_started_it(started_by: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, ROOT, CHILD, started_by], stdout=subprocess.PIPE) as p:
        try:
            assert p.stdout is not None
            pidfd = os.pidfd_open(int(p.stdout.readline()))
            if started_by == "main":
                assert not select.select([pidfd], [], [], 0.9)[0]
                p.kill()
            assert select.select([pidfd], [], [], 3)[0]
            os.close(pidfd)
        finally:
            p.kill()


def test_a_child_whose_parent_is_gone_already_leaves() -> None:
    out = subprocess.run([sys.executable, "-c", CHILD, ROOT, "1"], capture_output=True, timeout=20)
    assert out.returncode == 1 and out.stdout == b""


def test_what_began_to_leave_outlives_the_one_who_sent_it() -> None:
    """L4: the gate of a process that is killed says, in the page of its life, how far it came."""
    fd = LifeLock.create()
    code = ("import sys, time; sys.path[:0] = sys.argv[1:2]\n"
            "from nfckpt.native.arena import Arena; from nfckpt.native.agent import Agent; from nfckpt.native.gate import Gate\n"
            "from nfckpt.native.life import LifeLock; from tests.native_lab import SECRET, ListPort, frame\n"
            "ports = [ListPort(), ListPort()]; gate = Gate(ports); agent = Agent(ports, Arena(4096), gate, SECRET)\n"
            "life = LifeLock(int(sys.argv[2])); life.hold(); life.tell(gate)\n"
            "gate.start_at(7); [agent.emit(p, frame(p)) for p in (0, 1, 1)]; gate.commit(1); gate.release(); agent.epoch = 2\n"
            "agent.emit(0, frame(9)); gate.release(); print('left', flush=True); time.sleep(30)")
    with subprocess.Popen([sys.executable, "-c", code, ROOT, str(fd)], stdout=subprocess.PIPE, pass_fds=[fd]) as p:
        assert p.stdout is not None and p.stdout.readline() == b"left\n"
        watch = LifeWatch(fd)
        p.kill()
        end = time.monotonic() + 5
        while not watch.died and time.monotonic() < end:
            pass
    assert watch.died and [watch.leaving(port) for port in range(3)] == [10, 10, 0]
    with pytest.raises(IndexError):
        watch.leaving(16)
    watch.close()
    with pytest.raises(StateError, match="closed"):
        watch.leaving(0)
    with pytest.raises(StateError, match="not held"):
        LifeLock(fd).tell(Gate([ListPort()]))
    os.close(fd)
