"""Every transport through the one published suite, with several seeds and ring sizes."""

from __future__ import annotations

import socket
import time

import pytest

from nfckpt.errors import NfckptError
from nfckpt.native.tcp_channel import TcpChannel
from nfckpt.sim.conformance import check_transport
from nfckpt.wire.memory import memory_pair
from nfckpt.wire.shm import ShmConnect, ShmOptions, ShmTransport
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions
from nfckpt.wire.transport import Transport

KEY = bytes(range(32))


def shm_pair(ring_bytes: int = 1 << 16, **bounds: int) -> tuple[ShmTransport, ShmTransport]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    options = ShmOptions(ring_bytes=ring_bytes, **bounds)
    one, two = ShmConnect(left, options), ShmConnect(right, options, role="acceptor")
    a = b = None
    late = time.monotonic() + 5
    while a is None or b is None:
        a = a or one.poll()
        b = b or two.poll()
        assert time.monotonic() < late
    return a, b


def tcp_pair(**bounds: int) -> tuple[TcpChannel, TcpChannel]:
    options = TcpOptions(KEY, **bounds)
    with socket.create_server(("127.0.0.1", 0)) as server:
        listener = TcpListener(server, options)
        connect = TcpConnect(server.getsockname(), options)
        a = b = None
        late = time.monotonic() + 5
        while a is None or b is None:
            a = a or connect.poll()
            b = b or listener.poll()
            assert time.monotonic() < late
    return a, b


@pytest.mark.parametrize("seed", range(3))
def test_memory(seed: int) -> None:
    check_transport(memory_pair, seed=seed)


@pytest.mark.parametrize(("ring_bytes", "seed"), [(4096, 0), (1 << 16, 1), (1 << 20, 2)])
def test_shm(ring_bytes: int, seed: int) -> None:
    check_transport(lambda **bounds: shm_pair(ring_bytes, **bounds), seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_tcp(seed: int) -> None:
    check_transport(tcp_pair, seed=seed)


class Broken:
    """A transport with one planted bug; everything else passes through."""

    def __init__(self, inner: Transport, bug: str) -> None:
        self.__dict__.update(inner=inner, bug=bug, n=0)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def send(self, kind: int, payload: bytes) -> bool:
        self.__dict__["n"] += 1
        if self.bug == "drops" and self.n == 100:
            return True
        if self.bug == "repeats" and self.n == 100:
            self.inner.send(kind, payload)
        if self.bug == "cuts" and len(payload) > 4000:
            payload = payload[:-1]
        return self.inner.send(kind, payload)

    def recv(self) -> object:
        got = self.inner.recv()
        if got and self.bug == "read-only":
            return got[0], memoryview(bytes(got[1]))
        return got

    @property
    def closed(self) -> str | None:
        return self.inner._last if self.bug == "closes early" else self.inner.closed


@pytest.mark.parametrize("bug", ["drops", "repeats", "cuts", "read-only", "closes early"])
def test_the_suite_catches(bug: str) -> None:
    def make(**bounds: int) -> tuple[Transport, Transport]:
        a, b = memory_pair(**bounds)
        return Broken(a, bug), Broken(b, bug)

    with pytest.raises((AssertionError, NfckptError)):
        check_transport(make)
