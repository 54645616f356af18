"""Shared memory: a channel between two packet processes of one kernel (the *host* profile).

Two sealed segments (one a side, native/shm_segment.pyx), records in rings (native/shm_ring.pyx), an eventfd each way as
doorbell. This file is the rendezvous: who are you, and here is my memory. It runs over a Unix socket that
keeps message bounds (SOCK_SEQPACKET): a path, or one end of a socketpair inherited by the process.

    connector                                     acceptor
        | HELLO    version, bound, nonce   ------------>|      either may be first
        |<------------   HELLO    version, bound, nonce |      session, keys = SHA-256 over both hellos
        | SEGMENT  session + memfd, eventfd[, life] --->|      pidfd opened before SEGMENT is sent
        |<---- SEGMENT  session + memfd, eventfd[, life]|      seals, size, header judged before use
        | READY    session                 ------------>|      carries the kernel's word for the sender's pid,
        |<------------                 READY    session |      given after our pidfd was opened: it is the same process
        |                (REFUSED reason, instead of any)

Every datagram, little endian:

      0         8         12     13     14     16
     +---------+---------+------+------+------+---------------------------------------------------+
     | magic   | version | type | role | zero | 1 HELLO    message_bytes_max u64, nonce 16 bytes  |
     | NFCKRDV1| u32 = 1 | u8   | u8   | u16  | 2 SEGMENT  session 16 bytes, ring_bytes u64, + fds|
     +---------+---------+------+------+------+ 3 READY    session 16 bytes                       |
        role: 1 connector, 2 acceptor         | 4 REFUSED  UTF-8 reason, at most 200 bytes        |
                                              +---------------------------------------------------+

fds of SEGMENT: the memfd, the eventfd that wakes the sender, and, if it has one, a memfd that is opaque here (the
page with its life mutex). The socket stays open: its end is one more sign of death.

Promises    H1 a peer of another user (but root) is refused.  H2 `peer_pidfd` is the process that answered the handshake, not a
            later one with its number.  H3 a refusal leaves no descriptor behind.  H4 nothing here waits.
Source      unix(7) SO_PEERCRED, SCM_RIGHTS, SCM_CREDENTIALS; pidfd_open(2); SO_PEERPIDFD (Linux 6.5) where there is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nfckpt.errors import ConfigError, MachineError, PeerError
from nfckpt.native.shm_ring import ShmRing
from nfckpt.native.shm_segment import Segment
from nfckpt.wire.transport import HANDSHAKE_MS_MAX, MESSAGE_BYTES_MAX, SEND_BACKLOG_BYTES_MAX

__all__ = ["ShmConnect", "ShmListener", "ShmOptions", "ShmTransport", "shm_connect"]

MAGIC, VERSION = b"NFCKRDV1", 1
HELLO, SEGMENT, READY, REFUSED = 1, 2, 3, 4
CONNECTOR, ACCEPTOR = 1, 2
_HEAD = struct.Struct("<8sIBBH")
_HELLO = struct.Struct("<Q16s")
_SEGMENT = struct.Struct("<16sQ")
_CRED = struct.Struct("iII")
SO_PEERPIDFD = 77
HANDSHAKES_MAX = 8          # at once, a listener; more wait in the kernel's queue
REASON_BYTES_MAX = 200
STEP_BYTES = 64 << 10


@dataclass(frozen=True)
class ShmOptions:
    """Bounds of one end. `ring_bytes`: a power of two, 4096 to 2**30. `life_fd`: sent along, stays the caller's (-1: none)."""

    ring_bytes: int = 1 << 20
    message_bytes_max: int = MESSAGE_BYTES_MAX
    send_backlog_bytes_max: int = SEND_BACKLOG_BYTES_MAX
    handshake_ms_max: int = HANDSHAKE_MS_MAX
    life_fd: int = -1


class ShmTransport(ShmRing):
    """A Transport over shared memory; cimport ShmRing to push and pop without the GIL.

    peer_pid, peer_pidfd    the other packet process; the pidfd is closed with the channel
    peer_life_fd            the memfd the peer sent along, or -1; closed with the channel
    """

    def __init__(
        self, tx: Segment, rx: Segment, keys: tuple[bytes, bytes], options: ShmOptions, *, sock: socket.socket,
        bell_in: int, bell_out: int, peer_pid: int, peer_pidfd: int, peer_life_fd: int,
    ) -> None:
        super().__init__(
            tx, rx, tx_keys=keys[0], rx_keys=keys[1], bell_out=bell_out, pidfd=peer_pidfd, sock=sock.fileno(),
            message_bytes_max=options.message_bytes_max, send_backlog_bytes_max=options.send_backlog_bytes_max)
        self.peer_pid, self.peer_pidfd, self.peer_life_fd = peer_pid, peer_pidfd, peer_life_fd
        self._sock, self._bell_in, self._bell_out = sock, bell_in, bell_out
        self._epoll = select.epoll()
        # Edge-triggered: collecting the event silences the bell, so nobody ever read()s an eventfd whose
        # O_NONBLOCK flag is shared with the peer.
        self._epoll.register(bell_in, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(peer_pidfd, select.EPOLLIN)
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def fileno(self) -> int:
        """An epoll over the doorbell, the peer's pidfd and the rendezvous socket."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def after_sleep(self) -> None:
        super().after_sleep()
        if not self._epoll.closed and any(fd != self._bell_in for fd, _ in self._epoll.poll(0, 4)):
            self.peer_is_gone()

    def close(self) -> None:
        super().close()
        if not self._epoll.closed:
            self._epoll.close()
            self._sock.close()
            _close_all([self._bell_in, self._bell_out, self.peer_pidfd, self.peer_life_fd])
            self.peer_pidfd = self.peer_life_fd = -1


class ShmListener:
    """Waits at a Unix path (mode 0600). Poll `fileno()`, or just call `accept()` now and then.

    A peer that is refused costs the listener nothing: `refused` counts, `last_refusal` says why.
    """

    def __init__(self, path: str | os.PathLike[str], options: ShmOptions = ShmOptions()) -> None:
        self.path = Path(path)
        self.refused = 0
        self.last_refusal: str | None = None
        self._options = options
        self._open: list[_Handshake] = []
        self._spare: Segment | None = None      # of the next handshake, and whether it has all its memory
        self._prepared = False
        self._sock = _socket()
        try:
            _unlink_stale(self.path)
            os.fchmod(self._sock.fileno(), 0o600)       # before bind: the path is born with it
            self._sock.bind(os.fspath(self.path))
            self._sock.listen(HANDSHAKES_MAX)
        except OSError as e:
            self._sock.close()
            raise MachineError(f"cannot listen at {self.path}: {e.strerror or e}",
                               "a Unix path has at most 107 bytes, in a directory that exists") from None

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> ShmTransport | None:
        """One more turn of all handshakes. The first that is complete, or None. Never waits, never raises for a peer."""
        while len(self._open) < HANDSHAKES_MAX:
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionError):
                break
            self._open.append(_Handshake(sock, ACCEPTOR, self._options, self._take_spare))
        for handshake in list(self._open):
            try:
                transport = handshake.step()
            except (PeerError, MachineError) as e:
                self._open.remove(handshake)
                self.refused += 1
                self.last_refusal = str(e)
                continue
            if transport is not None:
                self._open.remove(handshake)
                return transport
        return None

    def prepare(self) -> None:
        """Take some of the memory of the next channel, STEP_BYTES at most: all of it takes 5 to 10 ms, for which nobody would forward packets.
        Call it about once a millisecond; a handshake that comes too early takes what is missing."""
        if not self._prepared:
            try:
                self._spare = self._spare or Segment.blank(self._options.ring_bytes)
                self._prepared = self._spare.prepare(STEP_BYTES)
            except MachineError:
                self._prepared = True           # the handshake says so, to whom it concerns

    def _take_spare(self) -> Segment:
        spare, self._spare, self._prepared = self._spare, None, False
        return spare or Segment.blank(self._options.ring_bytes)

    def close(self) -> None:
        """Stop listening and remove the path. Channels already handed out live on. Idempotent."""
        if self._sock.fileno() >= 0:
            for handshake in self._open:
                handshake.abandon()
            self._open.clear()
            if self._spare is not None:
                self._spare.close()
            self._sock.close()
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()


class ShmConnect:
    """The connecting side: a path, or a connected SOCK_SEQPACKET socket (then owned by this object).

    `role` is "connector"; of a socketpair the other end says `role="acceptor"`.
    """

    def __init__(
        self, where: str | os.PathLike[str] | socket.socket, options: ShmOptions = ShmOptions(), *,
        role: str = "connector",
    ) -> None:
        if role not in ("connector", "acceptor"):
            raise ConfigError(f"role {role!r}", "connector or acceptor")
        self._options = options
        self._role = CONNECTOR if role == "connector" else ACCEPTOR
        self._deadline = time.monotonic() + options.handshake_ms_max / 1000
        self._path = None if isinstance(where, socket.socket) else os.fspath(where)
        self._handshake: _Handshake | None = None
        if isinstance(where, socket.socket):
            self._handshake = _Handshake(where, self._role, options)

    def poll(self) -> ShmTransport | None:
        """One step. The channel, or None: not yet. Raises PeerError: refused, gone, or handshake_ms_max is over."""
        if self._handshake is None:
            assert self._path is not None
            sock = _socket()
            try:
                sock.connect(self._path)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as e:
                sock.close()
                if time.monotonic() > self._deadline:
                    raise PeerError(f"nobody accepts at {self._path}: {e.strerror}", "is the peer started?") from None
                return None
            except OSError as e:
                sock.close()
                raise PeerError(f"cannot connect to {self._path}: {e.strerror or e}") from None
            self._handshake = _Handshake(sock, self._role, self._options)
        return self._handshake.step()

    def fileno(self) -> int:
        """The socket to poll, or -1 while there is nothing to connect to."""
        return self._handshake.fileno() if self._handshake else -1

    def close(self) -> None:
        """Give up an unfinished handshake. Idempotent; a channel handed out lives on."""
        if self._handshake:
            self._handshake.abandon()


def shm_connect(
    path: str | os.PathLike[str], deadline_s: float, options: ShmOptions = ShmOptions(),
) -> ShmTransport:
    """Wait for a channel until `deadline_s` (of time.monotonic()). For tools and start-up; a loop uses ShmConnect.

    Raises PeerError when refused or too late.
    """
    while True:
        attempt = ShmConnect(path, options)
        try:
            while True:
                transport = attempt.poll()
                if transport is not None:
                    return transport
                if time.monotonic() > deadline_s:
                    raise PeerError(f"no channel at {path} in time", "is the peer started?")
                time.sleep(0.0005)
        except PeerError as e:
            if "nobody accepts" not in e.message or time.monotonic() > deadline_s:
                raise
        finally:
            attempt.close()


class _Handshake:
    """One rendezvous, from a connected socket to a ShmTransport. `step()` until it returns one or raises."""

    def __init__(self, sock: socket.socket, role: int, options: ShmOptions, blank: Callable[[], Segment] | None = None) -> None:
        sock.setblocking(False)
        self._blank = blank or (lambda: Segment.blank(options.ring_bytes))
        self._sock = sock
        self._role = role
        self._options = options
        self._deadline = time.monotonic() + options.handshake_ms_max / 1000
        self._fds: list[int] = []           # ours to close unless a transport takes them
        self._tx: Segment | None = None
        self._rx: Segment | None = None
        self._session = b""
        self._keys = (b"", b"")
        self._bell_in = self._bell_out = self._pidfd = self._life = -1
        self._pid = 0
        self._done = False
        self._failed: str | None = None
        try:
            # Set before our first datagram: the kernel then attaches the sender's pid to those of both sides.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._hello = self._head(HELLO) + _HELLO.pack(options.message_bytes_max, os.urandom(16))
            self._send(self._hello)
        except PeerError as e:
            self._failed = e.message

    def fileno(self) -> int:
        return self._sock.fileno()

    def step(self) -> ShmTransport | None:
        try:
            if self._failed:
                raise PeerError(self._failed)
            while not self._done:
                try:
                    data, fds, cred = self._receive()
                except BlockingIOError:
                    if time.monotonic() > self._deadline:
                        raise PeerError("the peer did not finish the handshake in time",
                                        f"handshake_ms_max is {self._options.handshake_ms_max}") from None
                    return None
                self._take(data, fds, cred)
        except (PeerError, MachineError) as e:
            if self._sock.fileno() >= 0:
                with contextlib.suppress(OSError):
                    self._sock.send(self._head(REFUSED) + e.message.encode()[:REASON_BYTES_MAX])
            self.abandon()
            raise
        assert self._tx and self._rx
        self._fds.clear()                   # the transport's now
        return ShmTransport(
            self._tx, self._rx, self._keys, self._options, sock=self._sock, bell_in=self._bell_in,
            bell_out=self._bell_out, peer_pid=self._pid, peer_pidfd=self._pidfd, peer_life_fd=self._life)

    def abandon(self) -> None:
        if self._done:
            return
        _close_all(self._fds)
        self._fds.clear()
        for segment in (self._tx, self._rx):
            if segment:
                segment.close()
        self._sock.close()

    def _head(self, kind: int) -> bytes:
        return _HEAD.pack(MAGIC, VERSION, kind, self._role, 0)

    def _send(self, data: bytes, fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self._sock, [data], fds or [])
        except OSError as e:
            raise PeerError(f"the peer hung up during the handshake: {e.strerror}") from None

    def _receive(self) -> tuple[bytes, list[int], tuple[int, int]]:
        """One datagram, its descriptors (registered for closing), and the kernel's word for (pid, uid) of its sender."""
        room = socket.CMSG_SPACE(3 * 4) + socket.CMSG_SPACE(_CRED.size)
        try:
            data, extra, flags, _ = self._sock.recvmsg(512, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            data, extra, flags = b"", [], 0
        fds: list[int] = []
        cred = (0, 0)
        for level, what, body in extra:
            if level == socket.SOL_SOCKET and what == socket.SCM_RIGHTS:
                fds += [f for (f,) in struct.iter_unpack("i", body[: len(body) // 4 * 4])]
            elif level == socket.SOL_SOCKET and what == socket.SCM_CREDENTIALS and len(body) == _CRED.size:
                cred = _CRED.unpack(body)[:2]
        self._fds += fds
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerError("the peer sent more than the handshake holds")
        if not data:
            raise PeerError("the peer hung up during the handshake")
        return data, fds, cred

    def _take(self, data: bytes, fds: list[int], cred: tuple[int, int]) -> None:
        if len(data) < _HEAD.size:
            raise PeerError(f"a handshake message of {len(data)} bytes")
        magic, version, kind, role, zero = _HEAD.unpack_from(data)
        body = data[_HEAD.size:]
        if magic != MAGIC or zero:
            raise PeerError("the peer is not nfckpt: another magic")
        if version != VERSION:
            raise PeerError(f"the peer speaks version {version}, we speak {VERSION}", "run the same nfckpt on both")
        if kind == REFUSED:
            reason = body[:REASON_BYTES_MAX].decode(errors="replace")
            raise PeerError(f"the peer refused: {reason if reason.isprintable() else '(unprintable)'}")
        if role != (CONNECTOR + ACCEPTOR) - self._role:
            raise PeerError(f"the peer plays role {role}, like us or nobody", "one side connects, the other accepts")
        if (kind != SEGMENT) and fds:
            raise PeerError("descriptors where none belong")
        if kind == HELLO and not self._pid:
            self._take_hello(data, body, cred)
        elif kind == SEGMENT and self._pid and self._rx is None:
            self._take_segment(body, fds)
        elif kind == READY and self._rx is not None:
            if body != self._session:
                raise PeerError("the peer is ready for another session")
            if cred[0] != self._pid or select.select([self._pidfd], [], [], 0)[0]:
                raise PeerError("the process that answers is not the one that began the handshake")
            self._done = True
        else:
            raise PeerError(f"handshake message {kind} out of order")

    def _take_hello(self, data: bytes, body: bytes, cred: tuple[int, int]) -> None:
        if len(body) != _HELLO.size:
            raise PeerError(f"a hello of {len(data)} bytes")
        (bound, _nonce), mine = _HELLO.unpack(body), self._options.message_bytes_max
        if bound != mine:
            raise PeerError(f"the peer's message_bytes_max is {bound}, ours {mine}", "configure both alike")
        pid, uid = cred
        if pid <= 0:
            raise PeerError("the peer's process cannot be seen from here", "both must share a pid namespace")
        if uid not in (0, os.geteuid()):
            raise PeerError(f"the peer belongs to user {uid}, we to {os.geteuid()}")
        self._pidfd = _pidfd(self._sock, pid)
        self._fds.append(self._pidfd)
        self._pid = pid
        both = self._hello + data if self._role == CONNECTOR else data + self._hello
        self._session = hashlib.sha256(b"nfckpt shm session" + both).digest()[:16]
        keys = [hashlib.sha256(b"nfckpt shm check" + bytes([r]) + both).digest() for r in (CONNECTOR, ACCEPTOR)]
        self._keys = (keys[0], keys[1]) if self._role == CONNECTOR else (keys[1], keys[0])
        self._tx = self._blank()
        self._tx.seal(self._session, self._role)
        self._bell_in = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fds.append(self._bell_in)
        fds = [self._tx.fd, self._bell_in]
        if self._options.life_fd >= 0:
            fds.append(self._options.life_fd)
        self._send(self._head(SEGMENT) + _SEGMENT.pack(self._session, self._tx.ring_bytes), fds)

    def _take_segment(self, body: bytes, fds: list[int]) -> None:
        if len(body) != _SEGMENT.size or len(fds) not in (2, 3):
            raise PeerError(f"a segment message of {len(body)} bytes and {len(fds)} descriptors")
        session, ring_bytes = _SEGMENT.unpack(body)
        if session != self._session:
            raise PeerError("the peer's segment message belongs to another session")
        self._rx = Segment.open(fds[0], self._session, (CONNECTOR + ACCEPTOR) - self._role, ring_bytes)
        os.close(fds[0])
        self._fds.remove(fds[0])
        self._bell_out = fds[1]
        if not _is_eventfd(self._bell_out):
            raise PeerError("the peer's doorbell is not an eventfd")
        self._life = fds[2] if len(fds) == 3 else -1
        self._send(self._head(READY) + self._session)


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    return sock


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


def _unlink_stale(path: Path) -> None:
    """Remove a socket that a dead listener left; leave a living one, and anything that is no socket, to fail in bind."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with _socket() as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError:
            return


def _is_eventfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"
    except OSError:
        return False


def _pidfd(sock: socket.socket, pid: int) -> int:
    """A pidfd for `pid`: the socket's own where the kernel has it and it names that process, else by number."""
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        fd = -1
    if fd >= 0:
        os.set_inheritable(fd, False)
        with contextlib.suppress(OSError):
            if f"\nPid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{fd}").read_text():
                return fd
        os.close(fd)
    try:
        return os.pidfd_open(pid)
    except OSError as e:
        raise PeerError(f"the peer's process {pid} is gone: {e.strerror}") from None
