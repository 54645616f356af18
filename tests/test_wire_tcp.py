"""TCP: golden hello and record, a decoder of its own, every kind of tampering, slow and wrong peers, death.

Every test runs over both ciphers: libcrypto without the GIL, and the `cryptography` package where there is no libcrypto.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from nfckpt.errors import ConfigError, PeerError
from nfckpt.native import aead
from nfckpt.native.tcp_channel import TcpChannel
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions
from tests.test_wire_conformance import KEY

OPTIONS = TcpOptions(KEY, message_bytes_max=1000)
HELLO = struct.Struct("<8sIB3xQ32s32s")


class Probe:
    """A peer written from the drawing in tcp.py alone: plays the connector, byte by byte."""

    def __init__(self, address: tuple[str, int], key: bytes = KEY) -> None:
        self.sock = socket.create_connection(address, timeout=5)
        self.psk = key
        self.secret = X25519PrivateKey.generate()
        self.sent = self.heard = 0

    def hello(self, magic: bytes = b"NFCKTCP1", version: int = 2, role: int = 1, bound: int = 1000,
              public: bytes | None = None) -> bytes:
        return HELLO.pack(magic, version, role, bound, os.urandom(32), public or self.secret.public_key().public_bytes_raw())

    def agree(self, mine: bytes, theirs: bytes) -> None:
        shared = self.secret.exchange(X25519PublicKey.from_public_bytes(theirs[-32:]))
        self.transcript = hashlib.sha256(b"nfckpt tcp 2" + mine + theirs).digest()
        import hmac
        prk = hmac.new(self.transcript, self.psk + shared, "sha256").digest()     # HKDF-Extract, RFC 5869
        keys = HKDFExpand(SHA256(), 64, b"nfckpt tcp 2 keys").derive(prk)
        self.out, self.inn = AESGCM(keys[:32]), AESGCM(keys[32:])

    def seal(self, kind: int, plain: bytes, n: int | None = None, zero: bytes = b"\0\0\0") -> bytes:
        header = struct.pack("<IB", len(plain) if n is None else n, kind) + zero
        body = self.out.encrypt(self.sent.to_bytes(12, "little"), plain, header)
        self.sent += 1
        return header + body

    def open(self) -> tuple[int, bytes]:
        header = self.sock.recv(8, socket.MSG_WAITALL)
        n, kind = struct.unpack("<IB3x", header)
        plain = self.inn.decrypt(self.heard.to_bytes(12, "little"), self.sock.recv(n + 16, socket.MSG_WAITALL), header)
        self.heard += 1
        return kind, plain

    def close(self) -> None:
        self.sock.close()


def message(payload: bytes, kind: int = 1, n: int | None = None, zero: bytes = b"\0\0\0") -> bytes:
    return struct.pack("<IB", len(payload) if n is None else n, kind) + zero + payload + bytes(-len(payload) % 8)


@pytest.fixture(autouse=True, params=[aead.LibcryptoAead, aead.PackageAead], ids=["libcrypto", "package"])
def cipher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[aead.Aead]:
    if request.param is aead.LibcryptoAead and aead.make is not aead.LibcryptoAead:
        pytest.skip(aead.IN_USE)
    monkeypatch.setattr(aead, "make", request.param)
    return request.param


@pytest.fixture
def listener() -> Iterator[TcpListener]:
    server = socket.create_server(("127.0.0.1", 0))
    it = TcpListener(server, OPTIONS)
    it.address = server.getsockname()       # type: ignore[attr-defined]
    yield it
    it.close()


def until(step: Callable[[], object], seconds: float = 5.0):  # type: ignore[no-untyped-def]
    late = time.monotonic() + seconds
    while not (result := step()):
        assert time.monotonic() < late, "in time"
        time.sleep(0.0002)
    return result


def connected(listener: TcpListener) -> tuple[Probe, TcpChannel]:
    probe = Probe(listener.address)         # type: ignore[attr-defined]
    mine = probe.hello()
    probe.sock.sendall(mine)
    listener.poll()
    theirs = bytearray()
    while len(theirs) < HELLO.size:
        listener.poll()
        theirs += probe.sock.recv(HELLO.size - len(theirs))
    probe.agree(mine, bytes(theirs))
    until(lambda: listener.poll() or select.select([probe.sock], [], [], 0)[0])
    assert probe.open() == (1, probe.transcript)
    probe.sock.sendall(probe.seal(1, probe.transcript))
    return probe, until(listener.poll)


def test_an_independent_peer_understands_it(listener: TcpListener) -> None:
    probe, t = connected(listener)
    assert t.send(7, b"hello") and t.send(255, b"") and t.flush()
    assert probe.open() == (2, bytes.fromhex("05000000" "07" "000000") + b"hello\0\0\0" + bytes.fromhex("00000000" "ff" "000000"))
    probe.sock.sendall(probe.seal(2, message(b"a" * 997, 3)[:8]) + probe.seal(2, message(b"a" * 997, 3)[8:] + message(b"", 4)))
    assert until(t.recv) == (3, b"a" * 997) and t.recv() == (4, b"")
    probe.sock.sendall(probe.seal(2, message(b"last")) + probe.seal(3, b""))
    assert until(t.recv) == (1, b"last")
    until(lambda: t.recv() or t.closed)
    assert t.closed == "the peer closed"
    probe.close()


def test_golden_hello_and_record() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    c = TcpConnect(server.getsockname(), TcpOptions(KEY))
    peer, _ = server.accept()
    until(lambda: c.poll() or select.select([peer], [], [], 0)[0])
    hello = peer.recv(1000)
    assert len(hello) == 88
    assert hello[:24].hex() == "4e46434b54435031" "02000000" "01" "000000" "0000000400000000"
    c.close()
    peer.close()
    server.close()
    ours, theirs = socket.socketpair()
    t = TcpChannel(ours.detach(), aead.make(KEY, seals=True), aead.make(KEY, seals=False), message_bytes_max=1000,
                   send_backlog_bytes_max=1000)
    t.prove(bytes(range(32)))
    assert t.send(9, b"hi") and t.send(255, b"") and t.flush()
    assert theirs.recv(1000).hex() == "".join(GOLDEN_RECORDS)
    t.close()
    theirs.close()


GOLDEN_RECORDS = [
    h + AESGCM(KEY).encrypt(n.to_bytes(12, "little"), bytes.fromhex(p), bytes.fromhex(h)).hex()
    for n, (h, p) in enumerate([
        ("20000000" "01" "000000", bytes(range(32)).hex()),
        ("18000000" "02" "000000", "02000000" "09" "000000" "6869000000000000" "00000000" "ff" "000000")])]


@pytest.mark.parametrize(("make", "reason"), [
    (lambda p: p.hello(magic=b"HTTP/1.1"), "magic"),
    (lambda p: p.hello(version=1), "version 1"),
    (lambda p: p.hello(role=2), "our own sent back"),
    (lambda p: p.hello(role=0), "plays our role"),
    (lambda p: p.hello(bound=2000), "message_bytes_max"),
    (lambda p: p.hello(public=bytes(32)), "degenerate"),
    (lambda p: p.hello()[:50], "hung up"),
    (lambda p: b"", "hung up"),
    (lambda p: p.hello() + b"\xff" * 56, "bytes"),
    (lambda p: p.hello() + struct.pack("<IB3x", 32, 1) + bytes(48), "authentication"),
    (lambda p: p.hello() + struct.pack("<IB3x", 40, 1) + bytes(56), "40 bytes"),
])
def test_a_bad_hello_or_first_record_is_refused(listener: TcpListener, make: Callable[[Probe], bytes], reason: str) -> None:
    probe = Probe(listener.address)         # type: ignore[attr-defined]
    probe.sock.sendall(make(probe))
    probe.sock.shutdown(socket.SHUT_WR)
    until(lambda: listener.poll() or listener.refused)
    assert reason in str(listener.last_refusal)
    probe.close()


def test_a_proof_of_another_handshake_is_refused(listener: TcpListener) -> None:
    """The keys are right, the transcript is not."""
    probe = Probe(listener.address)         # type: ignore[attr-defined]
    mine = probe.hello()
    probe.sock.sendall(mine)
    listener.poll()
    theirs = b""
    while len(theirs) < HELLO.size:
        listener.poll()
        theirs += probe.sock.recv(HELLO.size - len(theirs))
    probe.agree(mine, theirs)
    probe.sock.sendall(probe.seal(1, bytes(32)))
    until(lambda: listener.poll() or listener.refused)
    assert "no proof" in str(listener.last_refusal)
    probe.close()


def test_every_byte_of_the_hello_counts(listener: TcpListener) -> None:
    """A man in the middle flips one byte of the connector's hello: no channel, on either side."""
    for at in range(88):
        middle = socket.create_server(("127.0.0.1", 0))
        connect = TcpConnect(middle.getsockname(), OPTIONS)
        left, _ = middle.accept()
        right = socket.create_connection(listener.address)      # type: ignore[attr-defined]
        for s in (left, right):
            s.setblocking(False)
        before, first, failed, served = listener.refused, True, "", None
        late = time.monotonic() + 5
        while not (failed and listener.refused > before):
            assert time.monotonic() < late, at
            try:
                assert failed or connect.poll() is None, f"byte {at}"
            except PeerError as e:
                failed = str(e)
                left.close()
                right.close()
            served = listener.poll()
            assert served is None, f"byte {at}"
            for src, dst in ((left, right), (right, left)):
                try:
                    data = bytearray(src.recv(4096))
                    if data and src is left and first:
                        data[at] ^= 1
                        first = False
                    if data:
                        dst.sendall(data)
                    elif src is right:
                        left.close()
                except OSError:
                    pass
        middle.close()


def test_wrong_key_on_either_side() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    listener = TcpListener(server, OPTIONS)
    connect = TcpConnect(server.getsockname(), TcpOptions(bytes(32), message_bytes_max=1000))
    failed = ""
    late = time.monotonic() + 5
    while not (failed and listener.refused):
        assert time.monotonic() < late
        assert listener.poll() is None
        if not failed:
            try:
                assert connect.poll() is None
            except PeerError as e:
                failed = str(e)
    assert "authentication" in failed or "hung up" in failed or "broke" in failed
    assert "authentication" in str(listener.last_refusal) or "hung up" in str(listener.last_refusal)
    listener.close()
    assert repr(OPTIONS).count("key") == 0
    with pytest.raises(ConfigError):
        TcpOptions(b"short")


def test_a_reflected_stream_is_refused() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    connect = TcpConnect(server.getsockname(), OPTIONS)
    mirror, _ = server.accept()
    mirror.setblocking(False)

    def step() -> bool:
        connect.poll()
        with contextlib.suppress(BlockingIOError):
            mirror.sendall(mirror.recv(4096))
        return False

    with pytest.raises(PeerError, match="sent back"):
        until(step)
    mirror.close()
    server.close()


def test_a_slow_peer_is_dropped_and_others_served() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    listener = TcpListener(server, TcpOptions(KEY, handshake_ms_max=300))
    slow = [socket.create_connection(server.getsockname()) for _ in range(3)]
    drip = HELLO.pack(b"NFCKTCP1", 1, 1, 64 << 20, bytes(32), bytes(range(32)))
    connect = TcpConnect(server.getsockname(), TcpOptions(KEY))
    a: TcpChannel | None = None
    b: TcpChannel | None = None
    began, sent = time.monotonic(), 0
    while a is None or b is None or listener.refused < 3:
        assert time.monotonic() - began < 3
        served = listener.poll()
        a, b = a or served, b or connect.poll()
        if sent < 60 and time.monotonic() - began > sent * 0.01:
            for s in slow:
                with contextlib.suppress(OSError):
                    s.send(drip[sent:sent + 1])
            sent += 1
    assert time.monotonic() - began < 1.5 and "in time" in str(listener.last_refusal)
    a.close()
    b.close()
    for s in slow:
        s.close()
    listener.close()


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1:]


def ends(t: TcpChannel) -> str:
    """What comes before the end must be nothing; the reason."""
    until(lambda: t.closed or t.recv())
    assert t.closed is not None and t.bytes_received == 0
    assert t.fileno() == -1 and not t.send(1, b"x")
    return t.closed


def test_every_byte_of_a_record_is_covered(listener: TcpListener) -> None:
    raw_length = 8 + 8 + 24 + 16
    for at in range(raw_length):
        probe, t = connected(listener)
        probe.sock.sendall(flipped(probe.seal(2, message(b"x" * 20)), at))
        probe.close()
        reason = ends(t)
        assert any(w in reason for w in ("authentication", "cut short", "bytes")), (at, reason)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda p: p.seal(2, message(b"", n=1001)), "message_bytes_max"),
    (lambda p: p.seal(2, message(b"", n=0xFFFFFFFF)), "message_bytes_max"),
    (lambda p: p.seal(2, message(b"x", zero=b"\0\0\1")), "message_bytes_max"),
    (lambda p: p.seal(2, b"x" * 131080), "131080 bytes"),
    (lambda p: p.seal(2, b"x" * 17), "17 bytes"),
    (lambda p: struct.pack("<IB3x", 0xFFFFFFFF, 2) + bytes(100), "4294967295 bytes"),
    (lambda p: p.seal(2, b"", zero=b"\1\0\0"), "bytes"),
    (lambda p: p.seal(1, p.transcript), "type 1"),
    (lambda p: p.seal(9, b""), "type 9"),
    (lambda p: p.seal(3, b"x" * 8), "type 3"),
    (lambda p: p.seal(2, message(b"", n=50)) + p.seal(3, b""), "middle of a message"),
    (lambda p: p.seal(2, message(b"x" * 8, n=50)) + p.seal(3, b""), "middle of a message"),
    (lambda p: p.seal(2, message(b"x" * 20))[:-1], "cut short in the middle"),
    (lambda p: b"", "without a goodbye"),
])
def test_a_bad_stream_ends_with_a_reason(listener: TcpListener, make: Callable[[Probe], bytes], reason: str) -> None:
    probe, t = connected(listener)
    probe.sock.sendall(make(probe))
    probe.sock.shutdown(socket.SHUT_WR)
    assert reason in ends(t)
    probe.close()


def test_replayed_and_reordered_records(listener: TcpListener) -> None:
    probe, t = connected(listener)
    raw = probe.seal(2, message(b"once"))
    probe.sock.sendall(raw + raw)
    assert until(t.recv) == (1, b"once")
    until(lambda: t.recv() or t.closed)
    assert "replayed" in str(t.closed)
    probe.close()
    probe, t = connected(listener)
    one, two = probe.seal(2, message(b"one")), probe.seal(2, message(b"two"))
    probe.sock.sendall(two + one)
    assert "reordered" in ends(t)
    probe.close()
    probe, t = connected(listener)
    t.send(1, b"mine")
    t.flush()
    probe.sock.sendall(probe.sock.recv(4096))       # our own record sent back: the other direction has another key
    assert "authentication" in ends(t)
    probe.close()


def test_random_garbage_never_raises(listener: TcpListener) -> None:
    rng = random.Random(5)
    for _ in range(60):
        probe, t = connected(listener)
        good = b"".join(probe.seal(2, message(rng.randbytes(rng.randrange(500)))) for _ in range(5))
        at = rng.randrange(len(good))
        probe.sock.sendall(good[:at] + rng.randbytes(rng.randrange(1, 200)))
        probe.close()
        until(lambda t=t: (t.recv(), t.closed)[1])


def virtual_kib() -> int:
    """What was asked for, touched or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() // 1024


def test_memory_is_bounded_whatever_a_peer_claims() -> None:
    largest = (1 << 32) - 1
    ours, theirs = socket.socketpair()
    t = TcpChannel(ours.detach(), aead.make(KEY, seals=True), aead.make(bytes(32), seals=False), message_bytes_max=largest,
                   send_backlog_bytes_max=1000)
    proof = bytes(32)
    peer = aead_records(bytes(32))
    theirs.sendall(peer(1, proof))
    t.prove(proof)
    assert until(lambda: t.proven(proof))
    before = virtual_kib()
    theirs.sendall(peer(2, message(b"x" * 96, n=largest)))
    for _ in range(50):
        assert t.recv() is None
    assert t.closed is None and virtual_kib() - before < 8 << 10
    for _ in range(20):                                     # it grows as verified bytes come, and no faster
        theirs.sendall(peer(2, b"y" * 131072))
        assert t.recv() is None
    assert t.closed is None and virtual_kib() - before < 24 << 10
    t.close()
    theirs.close()


def aead_records(key: bytes) -> Callable[[int, bytes], bytes]:
    """A sealer of records, written from the drawing."""
    aes, count = AESGCM(key), iter(range(1 << 30))

    def seal(kind: int, plain: bytes) -> bytes:
        header = struct.pack("<IB3x", len(plain), kind)
        return header + aes.encrypt(next(count).to_bytes(12, "little"), plain, header)
    return seal


def test_peer_process_killed_mid_stream() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    listener = TcpListener(server, TcpOptions(KEY))
    address = server.getsockname()
    pid = os.fork()
    if pid == 0:
        try:
            c = TcpConnect(address, TcpOptions(KEY))
            t = until(c.poll)
            i = 0
            while t.closed is None:
                i += t.send(1, i.to_bytes(8, "little") * (1 + i % 50))
                t.flush()
        finally:
            os._exit(0)
    try:
        t = until(listener.poll)
        got = 0
        late = time.monotonic() + 20
        while t.closed is None:
            assert time.monotonic() < late
            if m := t.recv():
                assert m[1] == got.to_bytes(8, "little") * (1 + got % 50)
                got += 1
                if got == 5000:
                    os.kill(pid, signal.SIGKILL)
        assert got >= 5000 and ("cut short" in t.closed or "broke" in t.closed)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        listener.close()


def test_a_socket_still_connecting_and_nobody_there() -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        dead = s.getsockname()
    with pytest.raises(PeerError, match="cannot connect"):
        until(TcpConnect(dead, OPTIONS).poll)
    server = socket.create_server(("127.0.0.1", 0))
    early = socket.socket()
    early.setblocking(False)
    early.connect_ex(server.getsockname())
    listener, connect = TcpListener(server, OPTIONS), TcpConnect(early, OPTIONS)
    ends_ = {}
    until(lambda: (ends_.update({k: v for k, v in (("a", listener.poll()), ("b", connect.poll())) if v}), len(ends_) == 2)[1])
    for t in ends_.values():
        t.close()
    listener.close()


def test_many_small_messages_share_a_record(listener: TcpListener) -> None:
    probe, t = connected(listener)
    before = b"\xff" * 1000
    for _ in range(20):                                     # what it leaves in our buffer must not come out as padding
        assert t.send(1, before)
    assert t.flush() and probe.open() == (2, message(before) * 20)
    for i in range(1000):
        assert t.send(1, b"%d" % i)
    assert t.flush()
    assert probe.open() == (2, b"".join(message(b"%d" % i) for i in range(1000)))      # one record for all
    t.close()
    assert probe.open() == (3, b"")
    probe.close()
