"""Every port keeps the contract of nfckpt/ports/port.py."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import pytest

from nfckpt.ports import AfPacketPort, MemoryHub, MemoryPort, PythonPort
from nfckpt.ports.port import Port, PortLike
from nfckpt.ports.wrappers import FaultyPort, RecorderPort
from nfckpt.sim.conformance_port import check_port
from tests.ports_lab import veth


class Cable(PythonPort):
    """A pair of Python ports joined by two queues."""

    def __init__(self, mine: deque[tuple[bytes, int]], other: deque[tuple[bytes, int]]) -> None:
        self.name, self.mine, self.other = "cable", mine, other

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        return [self.mine.popleft() for _ in range(min(max_frames, len(self.mine)))]

    def py_tx(self, frame: bytes) -> bool | None:
        if not 14 <= len(frame) <= 1522:
            return None
        if len(self.other) == 128:
            return False
        self.other.append((frame, time.monotonic_ns()))
        return True


def cable() -> tuple[Port, Port]:
    left: deque[tuple[bytes, int]] = deque()
    right: deque[tuple[bytes, int]] = deque()
    return Cable(left, right), Cable(right, left)


def hub() -> tuple[Port, Port]:
    with MemoryHub(2, frames=256) as h:
        return h.open(0), h.open(1)


@pytest.mark.parametrize("make_pair", [
    MemoryPort.pair,
    lambda: MemoryPort.pair(frames=128),
    hub,
    cable,
    lambda: tuple(FaultyPort(p, seed=1) for p in MemoryPort.pair()),
], ids=["memory", "memory-128", "hub", "python", "faultless"])
def test_in_memory(make_pair) -> None:
    check_port(make_pair)


def test_recorder(tmp_path: Path) -> None:
    def make_pair() -> tuple[Port, Port]:
        a, b = MemoryPort.pair()
        return RecorderPort(a, tmp_path / "a.pcap"), RecorderPort(b, tmp_path / "b.pcap")

    check_port(make_pair)


def test_af_packet() -> None:
    with veth() as lab:
        check_port(lambda: (AfPacketPort(lab.dev, lab.a), AfPacketPort(lab.dev, lab.b)))


def test_ports_are_what_python_code_may_ask_of_them() -> None:
    a, b = MemoryPort.pair()
    assert isinstance(a, PortLike) and isinstance(FaultyPort(b, 1), PortLike)
