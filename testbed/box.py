"""Box: a private pid, network and mount namespace (and user namespace without root) around one command.

Picture     you ── outer ── keeper ─┬─ the box ───────────────────────────────────────┐
                  (yours)  (unshare)│ pid 1 (reaps) ── driver ── Ray, nodes, traffic …│
                                    └─────────────────────────────────────────────────┘

Why         A testbed makes namespaces, cables and processes that outlive a killed parent: packet loops go on
            emitting for seconds, namespaces stay for ever. The death of a pid namespace's first process is the
            kernel's own promise that nothing of it is left, and it needs no clean-up code to run.

Promises    B1 outer dies of any signal: every process and namespace made inside is gone within 0.1 s.
            B2 the driver ends: so does the box, and its exit status is returned (128+n for a signal n).
            B3 an interrupt reaches the driver once, whether typed at the terminal or sent to outer alone.
            B4 inside, /run is an empty 256 MB tmpfs with /run/netns in it, `lo` is up and is the only device.

Start it before threads and heavy imports: a user namespace can only be entered by a process with one thread.
Order of the calls: namespaces(7), user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from nfckpt.errors import MachineError

__all__ = ["available", "enter_box", "inside", "run_in_box"]

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x0002_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
MARK = "NFCKPT_BOX"     # holds the inode of the box's pid namespace: an inherited or stale value does not match
HINT = "needs root or unprivileged user namespaces: see `nfckpt doctor`"
POLL_S = 0.1            # a threaded caller may lose a SIGCHLD to another thread

Mask = set[int] | set[signal.Signals]

_libc = ctypes.CDLL(None, use_errno=True)


def inside() -> bool:
    """Whether this process runs in a box that `run_in_box` made."""
    return os.environ.get(MARK, "") == _pid_namespace()


def enter_box() -> None:
    """Make sure this command runs in a box: returns inside one, otherwise runs the same command in one and exits."""
    if not inside():
        raise SystemExit(run_in_box(sys.orig_argv[1:]))


def run_in_box(argv: Sequence[str]) -> int:
    """Run `python *argv` (e.g. ["-m", "nfckpt", "demo"]) in a new box. Returns its exit status.

    Call it on the main thread: the box dies with the thread that made it. Raises MachineError where the machine
    does not allow a box.
    """
    command = [sys.executable, *argv]

    def exec_driver() -> NoReturn:
        os.environ[MARK] = _pid_namespace()
        try:
            os.execv(command[0], command)
        except OSError as error:
            raise OSError(f"cannot start {command[0]}: {error.strerror}") from error

    return _run(exec_driver)


def available() -> str | None:
    """None where a box works, else one line that says which step failed. Tries it for real, in a child (about 20 ms)."""
    try:
        _run(lambda: os._exit(0))
    except MachineError as error:
        return str(error)
    return None


def _pid_namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)


def _run(driver: Callable[[], NoReturn]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    report, failed = os.pipe()      # closed unread by a driver that starts; else carries the reason
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGCHLD})
    try:
        keeper = _fork(lambda: _keeper(driver, before, failed), failed)
        os.close(failed)
        status = _wait(keeper)
        with os.fdopen(report, "rb") as pipe:
            reason = pipe.read().decode()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if reason:
        raise MachineError(f"no box: {reason.splitlines()[0]}", HINT)
    return status


def _fork(body: Callable[[], int], failed: int) -> int:
    """Fork a child that dies with this thread and exits with what `body` returns, or writes its error to `failed`."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _check("prctl", _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
        if os.getppid() not in (parent, 0):     # it died first; 0: it lies outside our pid namespace
            os._exit(1)
        os._exit(body())
    except BaseException as error:
        os.write(failed, f"{error}\n".encode())
        os._exit(1)


def _keeper(driver: Callable[[], NoReturn], mask: Mask, failed: int) -> int:
    uid, gid = os.geteuid(), os.getegid()
    spaces = CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID
    _check("unshare", _libc.unshare(spaces if uid == 0 else spaces | CLONE_NEWUSER))
    if uid != 0:
        for file, text in ("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1"):
            with open(f"/proc/self/{file}", "w") as f:
                f.write(text)
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "size=256m,mode=755")
    os.mkdir("/run/netns")
    return _wait(_fork(lambda: _pid_one(driver, mask, failed), failed))


def _pid_one(driver: Callable[[], NoReturn], mask: Mask, failed: int) -> int:
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))

    def start() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)    # exec keeps an ignored signal ignored
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        driver()

    return _wait(_fork(start, failed))


def _wait(child: int) -> int:
    """Reap everything until `child` ends; pass on interrupts meanwhile. Returns its exit status as a shell would.

    The terminal sends an interrupt to its whole foreground group, so to the driver too: only those that a process
    sent to us alone (si_code <= 0) are passed on.
    """
    while True:
        info = signal.sigtimedwait({signal.SIGINT, signal.SIGCHLD}, POLL_S)
        if info is not None and info.si_signo == signal.SIGINT and info.si_code <= 0:
            os.kill(child, signal.SIGINT)
        while True:
            try:
                pid, status = os.waitpid(child if os.getpid() != 1 else -1, os.WNOHANG)
            except ChildProcessError:
                raise MachineError("the box lost its child", "somebody else waits for our processes") from None
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            if pid == 0:
                break


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _check(f"mount {kind or 'private'} on {target}",
           _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()))


def _check(step: str, result: int) -> None:
    if result != 0:
        raise OSError(f"{step}: {os.strerror(ctypes.get_errno())}")
