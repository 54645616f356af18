"""Shared memory: formats, tampering, seals, rendezvous, death of either side, and no lost wake-up."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import mmap
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nfckpt.errors import ConfigError, MachineError, PeerError
from nfckpt.native.shm_ring import ShmRing
from nfckpt.native.shm_segment import SEALS, Segment
from nfckpt.wire.shm import ShmConnect, ShmListener, ShmOptions, ShmTransport, shm_connect
from tests.digest_twin import nf_hash
from tests.test_wire_conformance import shm_pair
from tests.wire_peer import body, ping, wait

ROOT = Path(__file__).parents[1]
SESSION = bytes(range(16))
KEYS = hashlib.sha256(b"one way").digest(), hashlib.sha256(b"the other").digest()


def ring_pair(ring_bytes: int = 4096, **bounds: int) -> tuple[ShmRing, ShmRing]:
    """Two rings without a rendezvous: fixed session and keys, so that bytes can be compared."""
    a, b = (Segment.create(ring_bytes, SESSION, role) for role in (1, 2))
    return (ShmRing(a, Segment.open(b.fd, SESSION, 2, ring_bytes), tx_keys=KEYS[0], rx_keys=KEYS[1], **bounds),
            ShmRing(b, Segment.open(a.fd, SESSION, 1, ring_bytes), tx_keys=KEYS[1], rx_keys=KEYS[0], **bounds))


def peek(segment: Segment, at: int, n: int) -> bytes:
    return ctypes.string_at(segment.address + at, n)


def poke(segment: Segment, at: int, data: bytes) -> None:
    ctypes.memmove(segment.address + at, data, len(data))


def open_fds() -> set[str]:
    return {os.readlink(f"/proc/self/fd/{f}") for f in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{f}")}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[ShmListener]:
    it = ShmListener(tmp_path / "s", ShmOptions(ring_bytes=1 << 14))
    yield it
    it.close()


@pytest.fixture
def start(listener: ShmListener) -> Iterator[Callable[..., tuple[subprocess.Popen[str], ShmTransport]]]:
    """Start a peer process in a mode and return it with our end of the channel."""
    running: list[subprocess.Popen[str]] = []

    def go(mode: str, *args: object) -> tuple[subprocess.Popen[str], ShmTransport]:
        p = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "wire_peer.py"), mode, str(listener.path), *map(str, args)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
        running.append(p)
        return p, until(listener.accept)

    yield go
    for p in running:
        if p.poll() is None:
            p.kill()
        p.wait(10)
        assert p.stdout
        p.stdout.close()


def until(step: Callable[[], object], seconds: float = 10.0):  # type: ignore[no-untyped-def]
    late = time.monotonic() + seconds
    while not (result := step()):
        assert time.monotonic() < late, "in time"
        time.sleep(0.0005)
    return result


# ---- format

def test_golden_segment_and_record() -> None:
    a, b = ring_pair()
    assert peek(a.tx, 0, 64).hex() == (
        "4e46434b53484d31" "01000000" "01000000" "0010000000000000" "000102030405060708090a0b0c0d0e0f" + "00" * 24)
    a.send(1, b"hello")
    a.send(255, b"")
    assert peek(a.tx, 64, 8) == (64 + 32).to_bytes(8, "little")
    first = peek(a.tx, 4096, 96)
    assert first[:24].hex() == "05000000" "01" "000000" "0000000000000000" "0500000000000000"
    assert first[24:32] == GOLDEN_CHECK
    assert first[32:37] == b"hello"
    assert first[64:88].hex() == "00000000" "ff" "000000" "0100000000000000" "0000000000000000"
    assert b.recv() == (1, b"hello") and b.recv() == (255, b"")
    assert peek(b.tx, 128, 8) == (96).to_bytes(8, "little")


def twin_check(keys: bytes, header: bytes, payload: bytes) -> bytes:
    k = struct.unpack("<4Q", keys)
    seq = int.from_bytes(header[8:16], "little")
    return nf_hash(k, nf_hash(k, seq, header[:24]), payload).to_bytes(8, "little")


GOLDEN_CHECK = twin_check(KEYS[0], bytes.fromhex("0500000001000000" "0000000000000000" "0500000000000000"), b"hello")


def record(payload: bytes, kind: int = 1, seq: int = 0, left: int | None = None, n: int | None = None,
           zero: bytes = b"\0\0\0") -> bytes:
    """A record with a right checksum, whatever else is wrong with it."""
    header = struct.pack("<IB3sQQ", len(payload) if n is None else n, kind, zero, seq, len(payload) if left is None else left)
    whole = header + twin_check(KEYS[0], header, payload) + payload
    return whole + bytes(-len(whole) % 32)


def test_a_foreign_encoder_is_understood() -> None:
    a, b = ring_pair()
    raw = record(b"one", 3) + record(b"two" * 30, 4, seq=1)
    poke(a.tx, 4096, raw)
    poke(a.tx, 64, len(raw).to_bytes(8, "little"))
    assert b.recv() == (3, b"one") and b.recv() == (4, b"two" * 30) and b.recv() is None and b.closed is None


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 63, 64, 127, 128, 129, 159, 191, 192, 900])
def test_every_length_has_the_check_of_a_foreign_encoder(n: int) -> None:
    """The hash reads blocks, lanes and an overlapping tail: each boundary of them."""
    a, b = ring_pair()
    payload = bytes(random.Random(n).randbytes(n))
    raw = record(payload, 3)
    poke(a.tx, 4096, raw)
    poke(a.tx, 64, len(raw).to_bytes(8, "little"))
    assert b.recv() == (3, payload) and b.closed is None


# ---- tampering

def test_every_byte_of_a_record_is_covered() -> None:
    payload = bytes(range(100))
    for at in range(32 + len(payload)):
        a, b = ring_pair()
        a.send(7, b"before")
        a.send(7, payload)
        poke(a.tx, 4096 + 64 + at, bytes([peek(a.tx, 4096 + 64 + at, 1)[0] ^ (1 << at % 8)]))
        assert b.recv() == (7, b"before")
        assert b.closed is None
        assert b.recv() is None and b.closed is not None, f"byte {at}"
        assert b.send(1, b"x") is False and b.before_sleep() is False


@pytest.mark.parametrize(("raw", "reason"), [
    (record(b"x", seq=1), "sequence"),
    (record(b"x", n=5000), "length"),
    (record(b"x", n=0xFFFFFFFF), "length"),
    (record(b"x" * 40, left=41), "length"),
    (record(b"x" * 40, left=39), "length"),
    (record(b"", left=1), "length"),
    (record(b"x", zero=b"\0\1\0"), "length"),
    (record(b"x" * 992, left=1001), "longer"),
    (record(b"x" * 992, left=1 << 63), "longer"),
    (record(b"x" * 992, left=999) + record(b"x" * 6, seq=1), "sequence"),
    (record(b"x" * 992, left=999) + record(b"x" * 7, seq=1, kind=2), "sequence"),
    (record(b"x" * 992, left=999) + record(b"x" * 7, seq=2), "sequence"),
    (record(b"x")[:24] + bytes(8) + b"x" + bytes(31), "checksum"),
    (bytes(64), "checksum"),
])
def test_a_bad_record_ends_the_channel(raw: bytes, reason: str) -> None:
    a, b = ring_pair(message_bytes_max=1000)
    poke(a.tx, 4096, raw)
    poke(a.tx, 64, len(raw).to_bytes(8, "little"))
    assert b.recv() is None
    assert b.closed is not None and reason in b.closed


@pytest.mark.parametrize("head", [1, 31, 4097, 4128, 1 << 40, (1 << 64) - 32])
def test_a_write_position_out_of_range(head: int) -> None:
    a, b = ring_pair()
    poke(a.tx, 64, head.to_bytes(8, "little"))
    assert b.recv() is None and b.closed == "the peer's write position is out of range"


@pytest.mark.parametrize("tail", [1, 8192, 1 << 40, (1 << 64) - 32])
def test_a_read_position_out_of_range(tail: int) -> None:
    a, b = ring_pair(send_backlog_bytes_max=4096)
    b.send(2, b"said before")
    poke(b.tx, 128, tail.to_bytes(8, "little"))
    while a.send(1, bytes(500)):
        pass
    assert a.recv() == (2, b"said before") and a.closed is None
    assert a.recv() is None and a.closed == "the peer's read position is out of range"


def test_a_read_position_that_goes_back() -> None:
    a, b = ring_pair(send_backlog_bytes_max=0)
    for _ in range(20):
        while a.send(1, bytes(500)):
            pass
        while b.recv():
            pass
    poke(b.tx, 128, bytes(8))
    while a.send(1, bytes(500)):
        pass
    assert a.recv() is None and a.closed == "the peer's read position is out of range"


def test_scribbling_while_reading_never_yields_an_unsent_message() -> None:
    """A peer that rewrites its ring at random: every message handed out was sent, or the channel ends."""
    for seed in range(200):
        rng = random.Random(seed)
        a, b = ring_pair()
        sent = []
        for i in range(200):
            payload = rng.randbytes(rng.randrange(300))
            if a.send(i % 256, payload):
                sent.append(payload)
            if rng.random() < 0.05:
                poke(a.tx, rng.choice((64, 128, 192)) if rng.random() < 0.3 else 4096 + rng.randrange(4088), rng.randbytes(8))
            if rng.random() < 0.4 and (got := b.recv()):
                assert got[1] == sent.pop(0)
        a.close()
        b.close()


# ---- seals

def test_sealed_memory_cannot_be_written_by_the_peer() -> None:
    mine = Segment.create(4096, SESSION, 1)
    fd = os.dup(mine.fd)
    try:
        assert fcntl.fcntl(fd, 1034) & SEALS == SEALS
        for act in (
            lambda: mmap.mmap(fd, 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
            lambda: os.pwrite(fd, b"x", 4096), lambda: os.ftruncate(fd, 4096), lambda: os.ftruncate(fd, 1 << 20),
            lambda: os.posix_fallocate(fd, 0, 1 << 20), lambda: fcntl.fcntl(fd, 1033, 0x8),
        ):
            with pytest.raises(PermissionError):
                act()
        theirs = Segment.open(fd, SESSION, 1, 4096)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(theirs.address), 8192, mmap.PROT_READ | mmap.PROT_WRITE) == -1
        poke(mine, 5000, b"still mine")
        assert peek(theirs, 5000, 10) == b"still mine" == peek(theirs, 5000 + 4096, 10), "mapped twice in a row"
    finally:
        os.close(fd)


def memfd(size: int, seals: int = SEALS, header: bytes = b"") -> int:
    fd = os.memfd_create("foreign", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, header, 0)
    fcntl.fcntl(fd, 1033, seals)
    return fd


GOOD = struct.pack("<8sIIQ16s", b"NFCKSHM1", 1, 1, 4096, SESSION)


@pytest.mark.parametrize(("size", "seals", "header", "reason"), [
    (8192, SEALS & ~0x2, GOOD, "seals"), (8192, SEALS & ~0x4, GOOD, "seals"), (8192, SEALS & ~0x10, GOOD, "seals"),
    (8192, SEALS & ~0x1, GOOD, "seals"), (4096, SEALS, GOOD, "bytes for a ring"), (8191, SEALS, GOOD, "bytes for a ring"),
    (1 << 20, SEALS, GOOD, "bytes for a ring"), (8192, SEALS, b"", "magic"), (8192, SEALS, GOOD[:8] + b"\2" + GOOD[9:], "version 2"),
    (8192, SEALS, GOOD[:24] + b"z" * 16, "another session"), (8192, SEALS, GOOD[:12] + b"\2" + GOOD[13:], "role 2"),
    (8192, SEALS, GOOD[:16] + b"\0\x20" + GOOD[18:], "ring 8192"),
])
def test_a_foreign_segment_is_refused(size: int, seals: int, header: bytes, reason: str) -> None:
    fd = memfd(size, seals, header)
    try:
        with pytest.raises(PeerError, match=reason):
            Segment.open(fd, SESSION, 1, 4096)
    finally:
        os.close(fd)
    with open(os.devnull, "rb") as f, pytest.raises(PeerError, match="not a memfd"):
        Segment.open(f.fileno(), SESSION, 1, 4096)


def test_bounds_of_a_segment() -> None:
    for bad in (0, 4095, 5000, 1 << 31):
        with pytest.raises(ConfigError):
            Segment.create(bad, SESSION, 1)
    with pytest.raises(ConfigError):
        Segment.create(4096, b"short", 1)


def test_a_segment_takes_its_memory_in_steps() -> None:
    segment = Segment.blank(1 << 16)
    taken = [os.fstat(segment.fd).st_blocks * 512]
    while not segment.prepare(1 << 14):
        taken.append(os.fstat(segment.fd).st_blocks * 512)
    assert taken == [n << 14 for n in range(5)]
    assert os.fstat(segment.fd).st_blocks * 512 == 4096 + (1 << 16) and segment.prepare(1)
    segment.seal(SESSION, 1)
    theirs = Segment.open(segment.fd, SESSION, 1, 1 << 16)
    assert peek(theirs, 4096, 1 << 16) == bytes(1 << 16) and fcntl.fcntl(segment.fd, 1034) & SEALS == SEALS
    early = Segment.blank(1 << 16)
    early.prepare(4096)
    early.seal(SESSION, 1)                  # takes what is missing
    assert os.fstat(early.fd).st_blocks * 512 == 4096 + (1 << 16)


# ---- rendezvous

def test_a_dead_peers_channel_is_freed_in_steps() -> None:
    a, b = ring_pair(1 << 16, send_backlog_bytes_max=1 << 20)
    while a.send(1, bytes(10_000)):         # it died with the ring full, and more waits for it
        pass
    before, steps = mapped(), 0
    while not a.crumble(16 << 10):
        steps += 1
    assert steps == 14 and before - mapped() == 14 * (16 << 10)          # two rings, each mapped twice, but for the last part
    assert a.crumble(16 << 10)
    a.close()
    a.close()
    assert a.crumble(16 << 10) and a.closed
    b.close()


def mapped() -> int:
    """Bytes of address space that are rings."""
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if "nfckpt-ring" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def test_a_listener_has_the_next_channels_memory_before_it_is_asked(tmp_path: Path) -> None:
    before = open_fds()
    listener = ShmListener(tmp_path / "s", ShmOptions(ring_bytes=1 << 18))
    for _ in range(2):                      # one follower after the other
        for _ in range(10):
            listener.prepare()
        spare = listener._spare
        assert spare is not None and os.fstat(spare.fd).st_blocks * 512 == 4096 + (1 << 18)
        connect = ShmConnect(tmp_path / "s", ShmOptions(ring_bytes=1 << 18))
        mine: ShmTransport | None = None
        theirs: ShmTransport | None = None
        while mine is None or theirs is None:
            mine, theirs = mine or listener.accept(), theirs or connect.poll()
        assert mine.tx is spare
        mine.close()
        theirs.close()
    listener.prepare()
    listener.close()
    assert open_fds() == before


def test_life_page_identity_and_no_leak(tmp_path: Path) -> None:
    before = open_fds()
    life = [memfd(4096, 0, b"life of %d" % i) for i in range(2)]
    listener = ShmListener(tmp_path / "s", ShmOptions(life_fd=life[0]))
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    connect = ShmConnect(tmp_path / "s", ShmOptions(life_fd=life[1]))
    a: ShmTransport | None = None
    b: ShmTransport | None = None
    while a is None or b is None:
        a, b = a or listener.accept(), b or connect.poll()
    assert os.pread(a.peer_life_fd, 20, 0).startswith(b"life of 1") and os.pread(b.peer_life_fd, 20, 0).startswith(b"life of 0")
    assert a.peer_pid == b.peer_pid == os.getpid()
    assert f"\nPid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{a.peer_pidfd}").read_text()
    assert not any(os.get_inheritable(fd) for fd in (a.peer_pidfd, a.peer_life_fd, a.fileno(), a._bell_in, a._bell_out))
    a.close()
    b.close()
    listener.close()
    for fd in life:
        os.close(fd)
    assert not (tmp_path / "s").exists()
    assert open_fds() == before


def test_a_dead_listeners_path_is_taken_over_a_living_ones_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(tmp_path / "s"))
    alive = ShmListener(tmp_path / "s")
    with pytest.raises(MachineError, match="in use"):
        ShmListener(tmp_path / "s")
    alive.close()
    (tmp_path / "s").write_text("no socket")
    with pytest.raises(MachineError):
        ShmListener(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "no socket"


HEAD = struct.Struct("<8sIBBH")
OK_HELLO = HEAD.pack(b"NFCKRDV1", 1, 1, 1, 0) + struct.pack("<Q16s", 64 << 20, b"n" * 16)


@pytest.mark.parametrize(("datagrams", "reason"), [
    ([b"x"], "1 bytes"),
    ([b"GET / HTTP/1.1\r\n\r\n"], "magic"),
    ([OK_HELLO[:8] + b"\2" + OK_HELLO[9:]], "version 2"),
    ([OK_HELLO[:13] + b"\2" + OK_HELLO[14:]], "role 2"),
    ([OK_HELLO[:16] + b"\1" + OK_HELLO[17:]], "message_bytes_max"),
    ([OK_HELLO + b"x"], "hello of"),
    ([OK_HELLO + bytes(600)], "more than"),
    ([OK_HELLO, OK_HELLO], "out of order"),
    ([OK_HELLO[:12] + b"\3" + OK_HELLO[13:]], "out of order"),
    ([OK_HELLO[:12] + b"\4" + OK_HELLO[13:16] + b"no room"], "refused: no room"),
    ([OK_HELLO, HEAD.pack(b"NFCKRDV1", 1, 2, 1, 0) + bytes(24)], "descriptors"),
])
def test_a_bad_handshake_is_refused(listener: ShmListener, datagrams: list[bytes], reason: str) -> None:
    before = open_fds()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.connect(str(listener.path))
        for d in datagrams:
            s.send(d)
        until(lambda: listener.accept() or listener.refused)
        assert listener.refused == 1 and reason in str(listener.last_refusal)
    assert open_fds() == before


def test_too_many_descriptors_and_a_wrong_segment_leave_nothing(listener: ShmListener) -> None:
    before = open_fds()
    for fds in (3, 9):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s, open(os.devnull, "rb") as f:
            s.connect(str(listener.path))
            s.send(OK_HELLO)
            listener.accept()
            s.setblocking(True)
            replies = [socket.recv_fds(s, 512, 4) for _ in range(2)]
            session = replies[1][0][16:32]
            socket.send_fds(s, [HEAD.pack(b"NFCKRDV1", 1, 2, 1, 0) + session + struct.pack("<Q", 4096)], [f.fileno()] * fds)
            assert listener.accept() is None
            for fd in replies[1][1]:
                os.close(fd)
    assert listener.refused == 2
    assert open_fds() == before


def test_a_silent_peer_is_dropped_and_others_served(tmp_path: Path) -> None:
    listener = ShmListener(tmp_path / "s", ShmOptions(handshake_ms_max=150))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(str(tmp_path / "s"))
        connect = ShmConnect(tmp_path / "s")
        got = []
        until(lambda: (got.extend(x for x in (listener.accept(), connect.poll()) if x), len(got) == 2)[1], 1.0)
        assert listener.refused == 0
        until(lambda: listener.accept() or listener.refused, 2.0)
        assert "in time" in str(listener.last_refusal)
    for t in got:
        t.close()
    listener.close()


def test_nobody_there(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(PeerError, match="nobody"):
        shm_connect(tmp_path / "none", began + 0.2, ShmOptions(handshake_ms_max=50))
    assert time.monotonic() - began < 2


def test_an_impostor_process_cannot_finish_anothers_handshake(listener: ShmListener) -> None:
    """The socket is handed to a child in the middle: the READY carries another pid than the HELLO."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours = ShmConnect(left, ShmOptions(ring_bytes=1 << 14))
    theirs = ShmConnect(right, ShmOptions(ring_bytes=1 << 14), role="acceptor")
    assert ours.poll() is None          # our SEGMENT is out; theirs says HELLO from this pid
    pid = os.fork()
    if pid == 0:
        try:
            late = time.monotonic() + 3
            while theirs.poll() is None and time.monotonic() < late:
                pass
        finally:
            os._exit(0)
    try:
        with pytest.raises(PeerError, match="not the one that began"):
            until(ours.poll, 5)
    finally:
        os.waitpid(pid, 0)
        theirs.close()


# ---- death

def test_reader_killed_mid_stream(start: Callable[..., tuple[subprocess.Popen[str], ShmTransport]]) -> None:
    peer, t = start("read")
    sent = 0
    while sent < 5000:
        sent += t.send(1, body(sent))
    peer.send_signal(signal.SIGKILL)
    peer.wait(10)
    late = time.monotonic() + 10
    while t.closed is None:             # a writer that keeps writing into the void is told, and never stuck
        t.send(1, bytes(1000))
        t.recv()
        assert time.monotonic() < late
    assert t.closed == "the peer's process is dead"
    assert t.send(1, b"x") is False
    t.close()


def test_writer_killed_mid_stream(start: Callable[..., tuple[subprocess.Popen[str], ShmTransport]]) -> None:
    peer, t = start("flood")
    got = 0
    while t.closed is None:
        m = t.recv()
        if m is None:
            continue
        assert m[1] == body(got)
        got += 1
        if got == 20_000:
            peer.send_signal(signal.SIGKILL)
    assert got >= 20_000 and t.closed is not None and "dead" in t.closed
    t.close()


def test_writer_dies_in_the_middle_of_a_message(start: Callable[..., tuple[subprocess.Popen[str], ShmTransport]]) -> None:
    peer, t = start("long")
    assert peer.stdout and peer.stdout.readline() == "stuck\n"
    peer.send_signal(signal.SIGKILL)
    peer.wait(10)
    assert until(t.recv) == (1, b"whole")
    assert t.closed is None
    until(lambda: t.recv() or t.closed)
    assert t.closed == "the peer's process died in the middle of a message"
    t.close()


def test_a_record_torn_by_death_was_never_there() -> None:
    """The writer dies before it publishes: half a record lies in its ring, beyond its write position."""
    a, b = ring_pair()
    watch, life = socket.socketpair()
    there = ShmRing(b.tx, b.rx, tx_keys=KEYS[1], rx_keys=KEYS[0], sock=watch.fileno())
    a.send(1, b"whole")
    poke(a.tx, 4096 + 64, record(b"y" * 200, seq=1)[:100])
    life.close()
    assert there.peer_is_gone() and there.recv() == (1, b"whole") and there.closed is None
    assert there.recv() is None and there.closed == "the peer's process is dead"
    watch.close()


def test_replayed_and_reordered_records() -> None:
    for records in ((0, 0), (0, 2), (0, 1, 0)):
        a, b = ring_pair()
        raw = b"".join(record(b"%d" % seq, seq=seq) for seq in records)
        poke(a.tx, 4096, raw)
        poke(a.tx, 64, len(raw).to_bytes(8, "little"))
        got = [b.recv() for _ in records]
        assert got[-1] is None and all(got[:-1]) and b.closed == "a record is out of sequence", records


def test_a_segment_left_by_a_dead_process() -> None:
    """Its memfd outlives it in whoever holds a descriptor: no new session takes it, and what it said whole in its own is still read."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            left = Segment.create(4096, SESSION, 1)
            mine = Segment.create(4096, SESSION, 2)         # stands in for the reader's: nothing was read
            ring = ShmRing(left, Segment.open(mine.fd, SESSION, 2, 4096), tx_keys=KEYS[0], rx_keys=KEYS[1])
            ring.send(7, b"last words")
            socket.send_fds(theirs, [b"x"], [left.fd])
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, (fd,), _, _ = socket.recv_fds(ours, 16, 1)
    os.waitpid(pid, 0)
    theirs.close()
    try:
        with pytest.raises(PeerError, match="another session"):
            Segment.open(fd, bytes(16), 1, 4096)
        with pytest.raises(PeerError, match="role"):
            Segment.open(fd, SESSION, 2, 4096)
        ring = ShmRing(Segment.create(4096, SESSION, 2), Segment.open(fd, SESSION, 1, 4096), tx_keys=KEYS[1], rx_keys=KEYS[0],
                       sock=ours.fileno())
        assert ring.recv() == (7, b"last words")
        assert ring.recv() is None and ring.peer_is_gone()
        assert ring.recv() is None and ring.closed == "the peer's process is dead"
        ring.close()
    finally:
        os.close(fd)
        ours.close()


def test_a_sleeping_reader_is_woken_by_death_and_by_last_words(
        start: Callable[..., tuple[subprocess.Popen[str], ShmTransport]]) -> None:
    _, t = start("exit")
    got = []
    late = time.monotonic() + 10
    while t.closed is None:
        assert time.monotonic() < late
        m = t.recv()
        if m:
            got.append(bytes(m[1]))
        else:
            wait(t, 5.0)
    assert got == [b"last words"] and t.closed == "the peer's process is dead"
    t.close()


# ---- doorbell

def test_doorbell_two_processes_100k_messages(start: Callable[..., tuple[subprocess.Popen[str], ShmTransport]]) -> None:
    """Both sides send, sleep at random and block on nothing but the doorbell; a lost wake-up fails after 10 s."""
    _, t = start("ping", 100_000, 1)
    began = time.monotonic()
    ping(t, 100_000, 2)
    took = time.monotonic() - began
    assert took < 60 and t.bells > 100
    print(f"100,000 messages each way in {took:.1f} s, {t.bells} bells rung")
    t.close()


def test_doorbell_race(start: Callable[..., tuple[subprocess.Popen[str], ShmTransport]]) -> None:
    """The narrowest moment: the answer comes just as we announce our sleep. Each side on its own CPU, both wait a random
    few microseconds first, so that the two meet in every order."""
    rounds, slept, refrained = 50_000, 0, 0
    cpus = os.sched_getaffinity(0)
    delays = [range(random.Random(i).randrange(500)) for i in range(1023)]
    peer, t = start("race", rounds)
    poller = select.poll()
    poller.register(t.fileno(), select.POLLIN)
    os.sched_setaffinity(0, {min(cpus)})
    os.sched_setaffinity(peer.pid, {max(cpus)})
    try:
        for i in range(rounds):
            t.send(1, b"question")
            for _ in delays[i % 1023]:
                pass
            while t.recv() is None:
                if t.before_sleep():
                    slept += 1
                    assert poller.poll(5000), f"lost wake-up in round {i}"
                    t.after_sleep()
                else:
                    refrained += 1
    finally:
        os.sched_setaffinity(0, cpus)
    print(f"{rounds} rounds: slept {slept} times, thought better of it {refrained} times")
    if len(cpus) > 1:
        assert slept > 50
    t.close()


def test_doorbell_one_at_a_time_threads() -> None:
    """The narrowest race: each message is sent just as the other side goes to sleep. 20,000 round trips, always blocking."""
    a, b = shm_pair(4096, message_bytes_max=1000, send_backlog_bytes_max=1000)
    failed: list[str] = []

    def echo(t: ShmTransport, n: int, serve: bool) -> None:
        if serve:
            t.send(1, b"ball")
        for i in range(n):
            while (m := t.recv()) is None:
                if t.before_sleep():
                    if not select.select([t.fileno()], [], [], 10.0)[0]:
                        failed.append(f"lost wake-up at {i}")
                        return
                    t.after_sleep()
            t.send(m[0], m[1])

    other = threading.Thread(target=echo, args=(b, 20_000, False))
    other.start()
    echo(a, 20_000, True)
    other.join(30)
    assert not failed and not other.is_alive()
    a.close()
    b.close()


def test_a_sleeping_writer_is_woken_by_room() -> None:
    a, b = shm_pair(4096, message_bytes_max=1 << 20, send_backlog_bytes_max=1 << 20)
    assert a.send(1, bytes(100_000)) and a.backlog > 0
    poller = select.poll()
    poller.register(a.fileno(), select.POLLIN)
    wakes = 0
    while True:
        if a.before_sleep():
            assert not poller.poll(0)
            wants_room = a.backlog > 0
            m = b.recv()
            assert bool(poller.poll(5000 if wants_room else 0)) == wants_room, "room rings, for one who wants it"
            a.after_sleep()
            wakes += wants_room
        else:
            m = b.recv()
        if m:
            break
    assert len(m[1]) == 100_000 and a.flush() and wakes > 10
    a.close()
    b.close()


def test_one_bell_a_sleep() -> None:
    a, b = shm_pair(1 << 16)
    assert b.before_sleep()
    for _ in range(100):
        a.send(1, b"x")
    assert a.bells == 1
    b.after_sleep()
    while b.recv():
        a.send(1, b"y") if a.bytes_sent < 200 else None
    assert a.bells == 1, "an awake reader costs no system call"
    a.close()
    b.close()
