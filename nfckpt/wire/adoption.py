"""Adoption: a packet process outlives its keeper for a while, and the keeper's next life takes it over, running.

Picture     keeper ✝          process ── listens at RUN_DIR/PAIR.NODE.keeper, forwards on: `orphan_ms_max` at most
            keeper, again ──spec──► it: ours to the last bit? ── Report "adopted" ──► keeper: goes on as if nothing had been

            Nothing of this is on a packet's way. Without a keeper there is no witness: the orphan is `unwitnessed`, stays protected,
            its standby still takes over on proof; what needs a grant waits.

Promises    A1 only a process of the same user that knows the whole spec, the pair's key in it, can adopt.
            A2 a process that does not answer (it is stopped, or dead) is not adopted: `adopt` gives up after ADOPT_S_MAX.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
from pathlib import Path

import msgspec

from nfckpt.wire.keeper import DATAGRAM_BYTES_MAX, NodeSpec, receive, send

__all__ = ["Adopted", "Orphan", "adopt"]

ADOPT_S_MAX = 1.0
MS = 1_000_000


def _path(spec: NodeSpec) -> Path:
    return Path(spec.run_dir) / f"{spec.config.name}.{spec.node}.keeper"


class Orphan:
    """The process's side, from the end of its keeper on. `sock` listens.

    Raises OSError where it cannot listen: its folder is gone with its pair.
    """

    def __init__(self, spec: NodeSpec, now: int) -> None:
        self._spec, self._path, self._until_ns = spec, _path(spec), now + spec.orphan_ms * MS
        self._who: socket.socket | None = None
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._path.unlink(missing_ok=True)
        self.sock.bind(str(self._path))
        self.sock.setblocking(False)
        self.sock.listen(1)

    def late(self, now: int) -> bool:
        """Nobody came in time. Then nobody can come any more."""
        if now <= self._until_ns:
            return False
        self._path.unlink(missing_ok=True)
        return True

    def poll(self) -> socket.socket | None:
        """The keeper's socket, once one has said what only ours can say."""
        if self._who is None:
            with contextlib.suppress(BlockingIOError):
                self._who, _ = self.sock.accept()
                self._who.setblocking(False)
        if self._who is None or (raw := receive(self._who)) is None:
            return None
        who, self._who = self._who, None
        if _peer(who)[1] == os.getuid() and raw == msgspec.json.encode(self._spec):
            self._path.unlink(missing_ok=True)
            self.sock.close()
            return who
        who.close()
        return None


def adopt(spec: NodeSpec) -> tuple[socket.socket, Adopted] | None:
    """The keeper's side: take over the packet process that an earlier life left running, if there is one and it answers."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(ADOPT_S_MAX)
        sock.connect(str(_path(spec)))
        send(sock, spec)
        if not sock.recv(DATAGRAM_BYTES_MAX, socket.MSG_PEEK):
            raise ConnectionResetError
        process = Adopted(_peer(sock)[0])
        sock.settimeout(None)
        return sock, process
    except OSError:                     # nobody there, not ours, or it does not answer
        sock.close()
        return None


def _peer(sock: socket.socket) -> tuple[int, int]:
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


class Adopted:
    """As much of a subprocess.Popen as a keeper needs, of a process that is not its child: so its exit code is what it said
    itself (`said`), or -9."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.said = -int(signal.SIGKILL)
        self._fd = os.pidfd_open(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self) -> int:
        while (code := self._look(None)) is None:
            pass
        return code

    def _look(self, timeout_ms: int | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if poll.poll(timeout_ms):
                self.returncode = self.said
                os.close(self._fd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
