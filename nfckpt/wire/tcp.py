"""TCP: a channel between two machines (the *hosts* profile), authenticated by the pair's key and encrypted.

Handshake   Both ends send their hello at once; then each proves that it has the key before anything else is heard.

      0          8         12     13     16                  24         56            88
     +----------+---------+------+------+-------------------+----------+-------------+
     | magic    | version | role | zero | message_bytes_max | nonce    | X25519      |   little endian
     | NFCKTCP1 | u32 = 1 | u8   | 3    | u64               | 32 bytes | public key  |   role: 1 connector, 2 listener
     +----------+---------+------+------+-------------------+----------+-------------+

     transcript = SHA-256("nfckpt tcp 1" || connector's hello || listener's hello)
     keys       = HKDF-SHA256(psk || X25519 shared secret, salt = transcript, info = "nfckpt tcp 1 keys", 64 bytes)
                  connector → listener: the first 32 bytes, listener → connector: the last 32

Record      Everything after the hello. AES-256-GCM; nonce = 96-bit record counter from 0 (little endian), one key a
            direction, so no nonce comes twice; associated data = the 8 bytes of header.

      0         4      5       8
     +---------+------+-------+---------------------------+----------+
     | length  | type | zero  | ciphertext, length bytes  | tag, 16  |   length <= 131072 (128 KiB)
     | u32     | u8   | 3     |                           |          |   type: 1 PROOF, 2 DATA, 3 CLOSE
     +---------+------+-------+---------------------------+----------+

            PROOF  the transcript, 32 bytes: the first record, once.   CLOSE  empty: goodbye. Without it an end of
            the stream is a truncation.   DATA  a piece of the stream of messages, each

              +---------+------+------+----------------+
              | length  | kind | zero | payload        |     a record holds many small messages or part of a large one;
              | u32     | u8   | 3    |                |     length <= message_bytes_max
              +---------+------+------+----------------+

Work        `send` queues (a `bytes` payload above 16 KiB by reference, all else copied); `flush` seals records and writes
            them, at most 1 MiB a call, so that a large message does not hold up the packet loop. `recv` reads at most
            256 KiB a call and opens one record at a time.
Promises    T1 no byte of a peer without the key is acted on past its hello (88 bytes) and one record header.  T2 nothing is allocated on a
            peer's word: a message grows as its verified bytes come.  T3 a handshake ends in handshake_ms_max.
            T4 wrong key, version or role, a reflected hello, a corrupted, replayed, reordered or cut record: a reason, and the end.
Source      RFC 7748 (X25519), RFC 5869 (HKDF), NIST SP 800-38D (GCM), all by the `cryptography` library.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nfckpt.errors import ConfigError, PeerError
from nfckpt.wire.transport import (
    HANDSHAKE_MS_MAX,
    KIND_MAX,
    MESSAGE_BYTES_MAX,
    SEND_BACKLOG_BYTES_MAX,
    Payload,
)

__all__ = ["TcpConnect", "TcpListener", "TcpOptions", "TcpTransport"]

MAGIC, VERSION = b"NFCKTCP1", 1
CONNECTOR, LISTENER = 1, 2
PROOF, DATA, CLOSE = 1, 2, 3
RECORD_BYTES_MAX = 128 << 10
TAG_BYTES = 16
FLUSH_BYTES_MAX = 1 << 20
RX_BYTES = 256 << 10
BY_REFERENCE_BYTES_MIN = 16 << 10
SMALL_BYTES_MAX = 16 << 10
HANDSHAKES_MAX = 8
_HELLO = struct.Struct("<8sIB3sQ32s32s")
_RECORD = struct.Struct("<IB3s")
_MESSAGE = struct.Struct("<IB3s")
_ZERO = b"\0\0\0"


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


class _Opener:
    """The receiving half: bytes of a socket in, verified records out. One fixed buffer, never grown."""

    def __init__(self, sock: socket.socket, key: bytes = b"") -> None:
        self._sock = sock
        self.key = AESGCM(key) if key else None
        self.ended = False                  # the socket's stream is over
        self._buf = bytearray(RX_BYTES)
        self._view = memoryview(self._buf)
        self._at = self._end = 0
        self._count = 0

    @property
    def waiting(self) -> bool:
        """A whole record lies in the buffer."""
        have = self._end - self._at
        return have >= 8 and have >= 8 + TAG_BYTES + int.from_bytes(self._view[self._at:self._at + 4], "little")

    def read(self) -> bool:
        """One recv. True when bytes came. Sets `ended`; raises PeerError for a broken connection."""
        if self._at == self._end:
            self._at = self._end = 0
        elif self._at and RX_BYTES - self._end < RECORD_BYTES_MAX // 2:
            have = self._end - self._at
            self._buf[:have] = self._buf[self._at:self._end]
            self._at, self._end = 0, have
        if self._end == RX_BYTES:
            return False                    # a peer that talks on before its handshake is through
        try:
            n = self._sock.recv_into(self._view[self._end:])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as e:
            raise PeerError(f"the connection broke: {e.strerror}") from None
        self._end += n
        self.ended = n == 0
        return n > 0

    def exactly(self, n: int) -> bytes | None:
        """n plain bytes (the hello), once they are there."""
        if self._end - self._at < n:
            return None
        self._at += n
        return bytes(self._view[self._at - n:self._at])

    def record(self, longest: int = RECORD_BYTES_MAX) -> tuple[int, bytes] | None:
        """(type, plaintext) of the next record if it is there whole. Raises PeerError."""
        at, have = self._at, self._end - self._at
        if have < 8:
            return None
        length, kind, zero = _RECORD.unpack_from(self._buf, at)
        if length > longest or zero != _ZERO:
            raise PeerError(f"a record of {length} bytes", f"at most {longest}")
        end = at + 8 + length + TAG_BYTES
        if end > self._end:
            return None
        assert self.key is not None
        try:
            plain = self.key.decrypt(self._count.to_bytes(12, "little"), self._view[at + 8:end], self._view[at:at + 8])
        except InvalidTag:
            raise PeerError("a record failed authentication: another key, or corrupted, replayed or reordered") from None
        self._count += 1
        self._at = end
        return kind, plain

    @property
    def torn(self) -> bool:
        return self._end > self._at


class _Sealer:
    """The sending half: numbers and seals records."""

    def __init__(self, key: bytes) -> None:
        self._key = AESGCM(key)
        self._count = 0

    def seal(self, kind: int, plain: Payload) -> list[bytes]:
        header = _RECORD.pack(len(plain), kind, _ZERO)
        body = self._key.encrypt(self._count.to_bytes(12, "little"), plain, header)
        self._count += 1
        return [header, body]


class TcpTransport:
    """A Transport over one authenticated TCP connection. Made by TcpListener and TcpConnect."""

    costly = True                                       # bytes cost: epochs are encoded

    def __init__(self, sock: socket.socket, opener: _Opener, sealer: _Sealer, options: TcpOptions) -> None:
        self._sock = sock
        self._in = opener
        self._seal = sealer
        self._message_max = options.message_bytes_max
        self._backlog_max = options.send_backlog_bytes_max
        self._small = bytearray()                       # the open end of the queue: small messages gather here
        self._queue: deque[memoryview] = deque()        # plaintext, in order, before _small
        self._sealed: deque[memoryview] = deque()       # records, to be written
        self._sealed_bytes = 0
        self._backlog = 0                               # plaintext in _queue and _small
        self._messages: deque[tuple[int, memoryview]] = deque()     # of the last opened record
        self._head = bytearray()                        # a message header cut by a record's end
        self._body: bytearray | None = None             # a message under way
        self._kind = self._need = 0
        self._reason: str | None = None
        self._tx_reason: str | None = None
        self._goodbye = False
        self.bytes_sent = self.bytes_received = 0

    @property
    def closed(self) -> str | None:
        return None if self._messages else self._reason

    @property
    def backlog(self) -> int:
        return self._backlog + self._sealed_bytes

    def fileno(self) -> int:
        return self._sock.fileno()

    # ---- out

    def send(self, kind: int, payload: Payload) -> bool:
        n = payload.nbytes if isinstance(payload, memoryview) else len(payload)
        if not 0 <= kind <= KIND_MAX:
            raise ValueError(f"message kind {kind}: 0..{KIND_MAX}")
        if n > self._message_max:
            raise ConfigError(f"message of {n} bytes", f"message_bytes_max is {self._message_max}")
        if self._reason is not None or self._tx_reason is not None:
            return False
        waits = self._backlog + self._sealed_bytes
        if waits and waits + 8 + n > self._backlog_max:
            self.flush()
            waits = self._backlog + self._sealed_bytes
            if self._tx_reason is not None or (waits and waits + 8 + n > self._backlog_max):
                return False
        self._small += _MESSAGE.pack(n, kind, _ZERO)
        if n > BY_REFERENCE_BYTES_MIN:
            self._queue.append(memoryview(self._small))
            self._queue.append(memoryview(payload if isinstance(payload, bytes) else bytes(payload)))
            self._small = bytearray()
        else:
            self._small += payload
            if len(self._small) >= RECORD_BYTES_MAX:
                self._queue.append(memoryview(self._small))
                self._small = bytearray()
        self._backlog += 8 + n
        self.bytes_sent += n
        return True

    def flush(self) -> bool:
        if not self._sealed and not self._queue and self._tx_reason is None:
            if not self._small:
                return True
            if len(self._small) <= SMALL_BYTES_MAX:         # the usual turn: one record, one write
                raw = b"".join(self._seal.seal(DATA, self._small))
                self._small = bytearray()
                self._backlog = 0
                try:
                    n = self._sock.send(raw)
                except (BlockingIOError, InterruptedError):
                    n = 0
                except OSError as e:
                    self._tx_reason = f"the connection broke: {e.strerror}"
                    return False
                if n == len(raw):
                    return True
                self._sealed.append(memoryview(raw)[n:])
                self._sealed_bytes = len(raw) - n
                return False
        written = 0
        while self._tx_reason is None and written < FLUSH_BYTES_MAX:
            while self._backlog and self._sealed_bytes < RECORD_BYTES_MAX:
                self._seal_one()
            if not self._sealed_bytes:
                return True
            try:
                n = self._sock.sendmsg(self._sealed)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as e:
                self._tx_reason = f"the connection broke: {e.strerror}"
                break
            written += n
            self._sealed_bytes -= n
            while n:
                first = self._sealed[0]
                if n < len(first):
                    self._sealed[0] = first[n:]
                    break
                n -= len(first)
                self._sealed.popleft()
        return self._tx_reason is None and not self._backlog and not self._sealed_bytes

    def _seal_one(self) -> None:
        """One record of up to 128 KiB out of the queue. Pieces are joined only where they are small."""
        if not self._queue:
            self._queue.append(memoryview(self._small))
            self._small = bytearray()
        first = self._queue.popleft()
        if len(first) < RECORD_BYTES_MAX and self._queue:       # a header and the body that follows it
            room = RECORD_BYTES_MAX - len(first)
            second = self._queue.popleft()
            if len(second) > room:
                self._queue.appendleft(second[room:])
            first = memoryview(b"".join((first, second[:room])))
        elif len(first) > RECORD_BYTES_MAX:
            self._queue.appendleft(first[RECORD_BYTES_MAX:])
            first = first[:RECORD_BYTES_MAX]
        self._backlog -= len(first)
        self._put(DATA, first)

    def _put(self, kind: int, plain: Payload) -> None:
        for part in self._seal.seal(kind, plain):
            self._sealed.append(memoryview(part))
            self._sealed_bytes += len(part)

    # ---- in

    def recv(self) -> tuple[int, memoryview] | None:
        if self._messages:
            return self._messages.popleft()
        if self._reason is not None:
            return None
        try:
            if (not self._in.torn or not self._open_records()) and self._in.read():
                self._open_records()
            if self._in.ended and self._reason is None and not self._messages:
                raise PeerError("the peer's stream was cut short"
                                + (" in the middle of a message" if self._in.torn or self._body or self._head else
                                   ": it ended without a goodbye"))
        except PeerError as e:
            self._end(e.message)
        return self._messages.popleft() if self._messages else None

    def _open_records(self) -> bool:
        """Open records until a message is whole. False: none is."""
        while not self._messages:
            record = self._in.record()
            if record is None:
                return False
            kind, plain = record
            if kind == DATA:
                self._parse(plain)
            elif kind == CLOSE and not plain:
                self._end("the peer closed in the middle of a message" if self._body is not None or self._head else
                          "the peer closed")
                return True
            else:
                raise PeerError(f"a record of type {kind}")
        return True

    def _parse(self, plain: bytes) -> None:
        at, n = 0, len(plain)
        while at < n:
            if self._body is None and not self._head and n - at >= 8:       # a whole message, nearly always
                length, kind, zero = _MESSAGE.unpack_from(plain, at)
                end = at + 8 + length
                if end <= n and length <= self._message_max and zero == _ZERO:
                    self._messages.append((kind, memoryview(bytearray(plain[at + 8:end]))))
                    self.bytes_received += length
                    at = end
                    continue
            if self._body is None:
                take = min(8 - len(self._head), n - at)
                self._head += plain[at:at + take]
                at += take
                if len(self._head) < 8:
                    return
                self._need, self._kind, zero = _MESSAGE.unpack(self._head)
                if self._need > self._message_max or zero != _ZERO:
                    raise PeerError(f"a message of {self._need} bytes: more than message_bytes_max = {self._message_max}")
                self._head.clear()
                self._body = bytearray()
            self._body += memoryview(plain)[at:at + self._need]
            got = min(self._need, n - at)
            at += got
            self._need -= got
            if not self._need:
                self._messages.append((self._kind, memoryview(self._body)))
                self.bytes_received += len(self._body)
                self._body = None

    # ---- sleeping and ending

    def before_sleep(self) -> bool:
        self.flush()
        return not (self._messages or self._in.waiting or self._reason or self._tx_reason)

    def after_sleep(self) -> None:
        """Nothing to take back: a socket is its own doorbell."""

    def _end(self, reason: str) -> None:
        self._reason = reason
        self._sock.close()
        self._queue.clear()
        self._sealed.clear()
        self._small = bytearray()
        self._backlog = self._sealed_bytes = 0

    def close(self) -> None:
        if self._reason is None:
            if self.flush():
                self._put(CLOSE, b"")
                with contextlib.suppress(OSError):
                    self._sock.sendmsg(self._sealed)
                    self._sock.shutdown(socket.SHUT_WR)
            self._end("closed here")
        self._messages.clear()


class _Handshake:
    """From a connected socket to a TcpTransport: `step()` until it returns one or raises PeerError."""

    def __init__(self, sock: socket.socket, role: int, options: TcpOptions, deadline: float) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._role = role
        self._options = options
        self._deadline = deadline
        self._secret = X25519PrivateKey.generate()
        self._hello = _HELLO.pack(MAGIC, VERSION, role, _ZERO, options.message_bytes_max, os.urandom(32),
                                  self._secret.public_key().public_bytes_raw())
        self._in = _Opener(sock)
        self._out = bytearray(self._hello)
        self._sealer: _Sealer | None = None
        self._transcript = b""
        self._proven = False

    def step(self) -> TcpTransport | None:
        try:
            self._write()
            self._in.read()
            if self._sealer is None:
                hello = self._in.exactly(_HELLO.size)
                if hello is not None:
                    self._take_hello(hello)
                    self._write()
            if self._sealer is not None and not self._proven:
                record = self._in.record(longest=32)
                if record is not None and record != (PROOF, self._transcript):
                    raise PeerError("the peer's first record is no proof of its key")
                self._proven = record is not None
            if self._sealer is not None and self._proven and not self._out:
                return TcpTransport(self.sock, self._in, self._sealer, self._options)
            if self._in.ended:
                raise PeerError("the peer hung up during the handshake", "it may have another key or version: see its log")
            if time.monotonic() > self._deadline:
                raise PeerError("the peer did not finish the handshake in time",
                                f"handshake_ms_max is {self._options.handshake_ms_max}")
        except PeerError:
            self.sock.close()
            raise
        return None

    def _write(self) -> None:
        try:
            while self._out:
                del self._out[:self.sock.send(self._out)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            raise PeerError(f"the connection broke: {e.strerror}") from None

    def _take_hello(self, hello: bytes) -> None:
        magic, version, role, zero, bound, _nonce, public = _HELLO.unpack(hello)
        if magic != MAGIC or zero != _ZERO:
            raise PeerError("the peer is not nfckpt: another magic")
        if version != VERSION:
            raise PeerError(f"the peer speaks version {version}, we speak {VERSION}", "run the same nfckpt on both")
        if role != CONNECTOR + LISTENER - self._role or public == self._hello[-32:]:
            raise PeerError("the peer's hello is our own sent back, or plays our role")
        if bound != self._options.message_bytes_max:
            raise PeerError(f"the peer's message_bytes_max is {bound}, ours {self._options.message_bytes_max}",
                            "configure both alike")
        try:
            shared = self._secret.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise PeerError("the peer's public key is degenerate") from None
        both = self._hello + hello if self._role == CONNECTOR else hello + self._hello
        self._transcript = hashlib.sha256(b"nfckpt tcp 1" + both).digest()
        keys = HKDF(SHA256(), 64, self._transcript, b"nfckpt tcp 1 keys").derive(self._options.key + shared)
        tx, rx = (keys[:32], keys[32:]) if self._role == CONNECTOR else (keys[32:], keys[:32])
        self._sealer = _Sealer(tx)
        self._in.key = AESGCM(rx)
        self._out += b"".join(self._sealer.seal(PROOF, self._transcript))


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

    def poll(self) -> TcpTransport | None:
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
            handshake.sock.close()
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

    def poll(self) -> TcpTransport | None:
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
        """Give up an unfinished handshake. Idempotent. A channel handed out owns the socket: do not call then."""
        self._sock.close()
