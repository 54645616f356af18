"""TCP: a channel between two machines (the *hosts* profile), authenticated by the pair's key and encrypted.

This file connects, listens and agrees on keys; the records and all that follows are native/tcp_channel.pyx.

Handshake   Both ends send their hello at once; then each proves that it has the key before anything else is heard.

      0          8         12     13     16                  24         56            88
     +----------+---------+------+------+-------------------+----------+-------------+
     | magic    | version | role | zero | message_bytes_max | nonce    | X25519      |   little endian
     | NFCKTCP1 | u32 = 2 | u8   | 3    | u64               | 32 bytes | public key  |   role: 1 connector, 2 listener
     +----------+---------+------+------+-------------------+----------+-------------+

     transcript = SHA-256("nfckpt tcp 2" || connector's hello || listener's hello)
     keys       = HKDF-SHA256(psk || X25519 shared secret, salt = transcript, info = "nfckpt tcp 2 keys", 64 bytes)
                  connector → listener: the first 32 bytes, listener → connector: the last 32
     proof      = the first record of each side: the transcript, sealed

Promises    H1 no byte of a peer without the key is acted on past its hello and one record header.  H2 a handshake ends in
            handshake_ms_max.  H3 wrong key, version, bound or role, a reflected or degenerate hello: a reason, and the end.
Source      RFC 7748 (X25519), RFC 5869 (HKDF), by the `cryptography` library.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import time
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nfckpt.errors import ConfigError, PeerError
from nfckpt.native import aead
from nfckpt.native.tcp_channel import TcpChannel
from nfckpt.wire.transport import HANDSHAKE_MS_MAX, MESSAGE_BYTES_MAX, SEND_BACKLOG_BYTES_MAX

__all__ = ["TcpConnect", "TcpListener", "TcpOptions"]

MAGIC, VERSION = b"NFCKTCP1", 2
CONNECTOR, LISTENER = 1, 2
HANDSHAKES_MAX = 8
_HELLO = struct.Struct("<8sIB3sQ32s32s")


@dataclass(frozen=True)
class TcpOptions:
    """Bounds and identity of one end. `key`: the pair's 32 secret bytes; never logged."""

    key: bytes = field(repr=False)
    message_bytes_max: int = MESSAGE_BYTES_MAX
    send_backlog_bytes_max: int = SEND_BACKLOG_BYTES_MAX
    handshake_ms_max: int = HANDSHAKE_MS_MAX

    def __post_init__(self) -> None:
        if len(self.key) != 32:
            raise ConfigError(f"a pair key of {len(self.key)} bytes", "32 bytes of os.urandom")
        if not 0 < self.message_bytes_max < 1 << 32:
            raise ConfigError(f"message_bytes_max = {self.message_bytes_max}", "TCP carries at most 2**32 - 1")


class _Handshake:
    """From a connected socket to a TcpChannel: `step()` until it returns one or raises PeerError."""

    def __init__(self, sock: socket.socket, role: int, options: TcpOptions, deadline: float) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._role = role
        self._options = options
        self._deadline = deadline
        self._secret = X25519PrivateKey.generate()
        self._mine = _HELLO.pack(MAGIC, VERSION, role, bytes(3), options.message_bytes_max, os.urandom(32),
                                 self._secret.public_key().public_bytes_raw())
        self._out = self._mine
        self._theirs = b""
        self._transcript = b""
        self._channel: TcpChannel | None = None     # from the peer's hello on; the socket is its own then

    def step(self) -> TcpChannel | None:
        try:
            if self._channel is None:
                self._exchange()
            if self._channel is not None and self._channel.proven(self._transcript):
                done, self._channel = self._channel, None       # no longer ours to abandon
                return done
            if time.monotonic() > self._deadline:
                raise PeerError("the peer did not finish the handshake in time",
                                f"handshake_ms_max is {self._options.handshake_ms_max}")
        except PeerError:
            self.abandon()
            raise
        return None

    def abandon(self) -> None:
        self._sock.close()
        if self._channel is not None:
            self._channel.close()

    def _exchange(self) -> None:
        """The two hellos, to the byte: what follows is the channel's to read."""
        try:
            if self._out:
                self._out = self._out[self._sock.send(self._out):]
            more = self._sock.recv(_HELLO.size - len(self._theirs))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            raise PeerError(f"the connection broke: {e.strerror}") from None
        if not more:
            raise PeerError("the peer hung up during the handshake", "it may have another key or version: see its log")
        self._theirs += more
        if len(self._theirs) == _HELLO.size and not self._out:
            self._agree(self._theirs)

    def _agree(self, hello: bytes) -> None:
        magic, version, role, zero, bound, _nonce, public = _HELLO.unpack(hello)
        if magic != MAGIC or any(zero):
            raise PeerError("the peer is not nfckpt: another magic")
        if version != VERSION:
            raise PeerError(f"the peer speaks version {version}, we speak {VERSION}", "run the same nfckpt on both")
        if role != CONNECTOR + LISTENER - self._role or public == self._mine[-32:]:
            raise PeerError("the peer's hello is our own sent back, or plays our role")
        if bound != self._options.message_bytes_max:
            raise PeerError(f"the peer's message_bytes_max is {bound}, ours {self._options.message_bytes_max}",
                            "configure both alike")
        try:
            shared = self._secret.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise PeerError("the peer's public key is degenerate") from None
        both = self._mine + hello if self._role == CONNECTOR else hello + self._mine
        self._transcript = hashlib.sha256(b"nfckpt tcp 2" + both).digest()
        keys = HKDF(SHA256(), 64, self._transcript, b"nfckpt tcp 2 keys").derive(self._options.key + shared)
        tx, rx = (keys[:32], keys[32:]) if self._role == CONNECTOR else (keys[32:], keys[:32])
        self._channel = TcpChannel(
            self._sock.detach(), aead.make(tx, seals=True), aead.make(rx, seals=False),
            message_bytes_max=self._options.message_bytes_max, send_backlog_bytes_max=self._options.send_backlog_bytes_max)
        self._channel.prove(self._transcript)


class TcpListener:
    """Hands out authenticated channels of a bound and listening socket (made in the right network namespace; owned from here).

    A peer that is refused costs nothing: `refused` counts, `last_refusal` says why.
    """

    def __init__(self, sock: socket.socket, options: TcpOptions) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._options = options
        self._open: list[_Handshake] = []
        self.refused = 0
        self.last_refusal: str | None = None

    def fileno(self) -> int:
        return self._sock.fileno()

    def poll(self) -> TcpChannel | None:
        """One turn of all handshakes. The first that is complete, or None. Never waits, never raises for a peer."""
        while len(self._open) < HANDSHAKES_MAX:
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionError):
                break
            deadline = time.monotonic() + self._options.handshake_ms_max / 1000
            self._open.append(_Handshake(sock, LISTENER, self._options, deadline))
        for handshake in list(self._open):
            try:
                transport = handshake.step()
            except PeerError as e:
                self._open.remove(handshake)
                self.refused += 1
                self.last_refusal = str(e)
                continue
            if transport is not None:
                self._open.remove(handshake)
                return transport
        return None

    def close(self) -> None:
        """Stop listening, give up unfinished handshakes. Idempotent."""
        for handshake in self._open:
            handshake.abandon()
        self._open.clear()
        self._sock.close()


class TcpConnect:
    """The connecting side: an address (host, port), or a socket that is connecting or connected (owned from here)."""

    def __init__(self, where: socket.socket | tuple[str, int], options: TcpOptions) -> None:
        self._options = options
        self._deadline = time.monotonic() + options.handshake_ms_max / 1000
        self._handshake: _Handshake | None = None
        if isinstance(where, socket.socket):
            self._sock = where
            self._sock.setblocking(False)
        else:
            self._sock = socket.socket(socket.AF_INET6 if ":" in where[0] else socket.AF_INET, socket.SOCK_STREAM)
            self._sock.setblocking(False)
            self._sock.connect_ex(where)        # its outcome is read below, as SO_ERROR

    def fileno(self) -> int:
        return self._sock.fileno()

    def poll(self) -> TcpChannel | None:
        """One step. The channel, or None: not yet. Raises PeerError: unreachable, refused, or handshake_ms_max is over."""
        if self._handshake is None:
            poller = select.poll()
            poller.register(self._sock, select.POLLOUT)
            if not poller.poll(0):
                if time.monotonic() > self._deadline:
                    self._sock.close()
                    raise PeerError("no answer from the peer's address in time", "is the replication link up?")
                return None
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._sock.close()
                raise PeerError(f"cannot connect: {os.strerror(error)}", "is the peer started?")
            self._handshake = _Handshake(self._sock, CONNECTOR, self._options, self._deadline)
        return self._handshake.step()

    def close(self) -> None:
        """Give up an unfinished handshake. Idempotent; a channel handed out lives on."""
        if self._handshake is None:
            self._sock.close()
        else:
            self._handshake.abandon()
