"""Gate: nothing leaves before its commit; then in order, once, byte for byte; nothing is dropped, whatever the port does (I5)."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfckpt.errors import StateError
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.ports import Port
from nfckpt.ports.memory import MemoryPort
from tests.native_lab import SECRET, ListPort, frame

ARENA = Arena(1 << 16)


def rig(n_ports: int = 1, capacity: int = 256, buf_bytes: int = 1 << 20) -> tuple[Agent, Gate, list[ListPort]]:
    """A gate, an agent to put frames into it (`emit`, under `agent.epoch`), and where they go."""
    ports = [ListPort() for _ in range(n_ports)]
    gate = Gate(list(ports), capacity, buf_bytes)
    return Agent(list(ports), ARENA, gate, SECRET, names_max=256), gate, ports


def hold(agent: Agent, epoch: int, *numbers: int, port: int = 0) -> None:
    agent.epoch = epoch
    for n in numbers:
        assert agent.emit(port, frame(n))


def test_i5_nothing_leaves_before_its_commit() -> None:
    agent, gate, (port,) = rig()
    hold(agent, 1, 0, 1)
    hold(agent, 2, 2)
    hold(agent, 3, 3, 4)
    assert gate.release() == 0 and port.left == port.ring == []
    gate.commit(1)
    assert port.left == []                  # a commit permits; release lets go
    assert gate.release() == 2 and port.left == [frame(0), frame(1)]
    assert gate.release() == 0
    gate.commit(2)
    gate.commit(1)                          # commits only grow
    assert gate.committed == 2 and gate.release() == 1
    gate.commit(3)
    assert gate.release() == 2
    assert port.left == [frame(n) for n in range(5)]
    assert (gate.head, gate.tail, gate.released_through, gate.held_frames) == (5, 5, 5, 0)


class Watched(ListPort):
    """Notes, whenever the device takes frames, what the gate says has begun to leave."""

    def __init__(self, seen: list[list[int]]) -> None:
        super().__init__()
        self.seen = seen
        self.gate: Gate

    def py_tx(self, out: bytes) -> bool | None:
        self.seen.append(self.gate.leaving_through)
        return super().py_tx(out)


def test_g4_a_frame_is_named_before_it_leaves() -> None:
    """Whoever dies at any instruction has left behind, by port, what can have left: not less, and nothing that was not committed."""
    seen: list[list[int]] = []
    ports = [Watched(seen) for _ in range(2)]
    gate = Gate(list(ports), 256, 1 << 20)
    for p in ports:
        p.gate = gate
    agent = Agent(list(ports), ARENA, gate, SECRET, names_max=256)
    hold(agent, 1, 0, 1)
    hold(agent, 1, 2, port=1)
    hold(agent, 2, 3)
    assert gate.leaving_through == [0, 0]
    gate.release()
    assert seen == [] and gate.leaving_through == [0, 0]
    gate.commit(1)
    gate.release()
    assert seen == [[1, 0], [2, 0], [2, 3]] and gate.leaving_through == [3, 3]


def test_one_commit_for_many_epochs() -> None:
    agent, gate, (port,) = rig()
    for epoch in range(1, 10):
        hold(agent, epoch, epoch)
    gate.commit(7)
    assert gate.release() == 7 and gate.held_frames == 2
    assert port.left == [frame(n) for n in range(1, 8)]


def test_order_across_ports_is_that_of_holding() -> None:
    agent, gate, ports = rig(3)
    seen: list[tuple[int, bytes]] = []
    for i, port in enumerate(ports):
        port.py_tx = lambda out, i=i: seen.append((i, out)) or True     # type: ignore[method-assign]
    for n in range(30):
        hold(agent, 1, n, port=n * 7 % 3)
    gate.commit(1)
    gate.release()
    assert seen == [(n * 7 % 3, frame(n)) for n in range(30)]


def test_full_refuses_and_counts_and_drops_nothing() -> None:
    agent, gate, (port,) = rig(capacity=256)
    hold(agent, 1, *range(256))
    assert not agent.emit(0, frame(999)) and not agent.emit(0, frame(999))
    assert (gate.refused_full, agent.counters()["refused_full"], agent.counters()["made"]) == (2, 2, 256)
    gate.commit(1)
    assert gate.release() == 256
    assert port.left == [frame(n) for n in range(256)]
    hold(agent, 2, 5)
    assert gate.tail == 257                 # a refused frame had no number


def test_full_of_bytes() -> None:
    agent, gate, (port,) = rig(buf_bytes=1 << 16)
    n = [agent.emit(0, frame(n, 1500)) for n in range(50)].index(False)
    assert 30 <= n <= 43 and gate.refused_full == 50 - n
    gate.commit(1)
    assert gate.release() == n and port.left == [frame(k, 1500) for k in range(n)]
    assert agent.emit(0, frame(0, 9216))


def test_a_full_port_is_tried_again_and_nothing_overtakes() -> None:
    agent, gate, ports = rig(2)
    ports[0].room, ports[0].stuck = 2, 2
    hold(agent, 1, 0, 1, 2, port=0)
    hold(agent, 1, 3, port=1)
    gate.commit(1)
    assert gate.release() == 2
    assert gate.head == 2 and ports[1].left == []           # 3 does not pass 2
    assert gate.release() == 0 and gate.held_frames == 2
    ports[0].stuck = 0
    assert gate.release() == 2
    assert ports[0].left == [frame(0), frame(1), frame(2)] and ports[1].left == [frame(3)]


def test_released_through_counts_only_what_the_port_gave_away() -> None:
    agent, gate, (port,) = rig()
    port.stuck = 3
    hold(agent, 1, *range(5))
    gate.commit(1)
    assert gate.release() == 5 and gate.head == 5
    assert len(port.left) == 2 and gate.released_through == 0       # a word too late is only slow, one too early loses frames
    assert gate.release() == 0 and gate.released_through == 0
    port.stuck = 0
    assert gate.release() == 0              # nothing new, and still the ring is looked after
    assert gate.released_through == 5 and len(port.left) == 5


def test_released_through_waits_for_the_slowest_port() -> None:
    agent, gate, ports = rig(2)
    ports[1].stuck = 1
    hold(agent, 1, 0, port=1)
    hold(agent, 1, 1, port=0)
    gate.commit(1)
    gate.release()
    assert ports[0].left == [frame(1)] and gate.released_through == 0
    hold(agent, 2, 2, port=0)
    gate.commit(2)
    gate.release()
    assert gate.released_through == 0
    ports[1].stuck = 0
    gate.release()
    assert gate.released_through == 3


def test_what_a_port_took_before_it_was_gone_is_not_released() -> None:
    agent, gate, (port,) = rig()
    port.stuck = 9
    hold(agent, 1, 0, 1)
    gate.commit(1)
    gate.release()
    port.close()
    gate.release()
    assert gate.released_through == 0


def test_a_frame_the_port_refuses_for_good_blocks_nobody() -> None:
    agent, gate, (port,) = rig()
    port.refuse = {1500}
    agent.emit(0, frame(0))
    agent.emit(0, frame(1, 1500))
    agent.emit(0, frame(2))
    gate.commit(1)
    assert gate.release() == 3 and gate.refused_port == 1
    assert port.left == [frame(0), frame(2)] and gate.released_through == 3


def test_open_and_shut() -> None:
    agent, gate, (port,) = rig()
    hold(agent, 5, 0)
    gate.open()
    assert gate.is_open and gate.release() == 1
    hold(agent, 99, 1)
    assert gate.release() == 1
    gate.commit(3)                          # a late ack does not shut it
    assert gate.is_open
    gate.shut(99)
    assert not gate.is_open and gate.committed == 99
    hold(agent, 99, 2)                      # of the last committed epoch: by permission
    hold(agent, 100, 3)
    assert gate.release() == 1
    assert port.left == [frame(0), frame(1), frame(2)]
    gate.commit(100)
    assert gate.release() == 1 and port.left[-1] == frame(3)


def test_numbers_go_on_where_the_committed_outputs_ended() -> None:
    agent, gate, (port,) = rig()
    gate.start_at(1000)
    assert (gate.head, gate.tail, gate.captured, gate.released_through, gate.uncaptured) == (1000, 1000, 1000, 1000, 0)
    hold(agent, 1, 1, 2)
    assert gate.uncaptured == 2
    gate.captured_all()
    assert gate.uncaptured == 0 and gate.held_frames == 2
    with pytest.raises(StateError):
        gate.start_at(5)
    gate.commit(1)
    gate.release()
    assert gate.released_through == 1002 and port.left == [frame(1), frame(2)]


def test_bounds_of_a_gate() -> None:
    for capacity, size in ((1 << 25, 1 << 20), (256, (1 << 31) + 1), (256, 65535)):
        with pytest.raises(StateError):
            Gate([ListPort()], capacity, size)


def load(seed: int, steps: int) -> int:
    """Random frames, commits and moods of two ports, against two lists. Returns how often the byte ring went round."""
    rng = random.Random(seed)
    agent, gate, ports = rig(2, 256, 1 << 16)
    held: deque[tuple[int, int, bytes]] = deque()       # epoch, port, bytes
    due: list[list[bytes]] = [[], []]
    epoch, committed, total, refused = 1, 0, 0, 0
    for step in range(steps):
        for port in ports:
            port.room, port.stuck = rng.choice((None, None, 3, 0)), rng.choice((0, 0, 1, 7))
        agent.epoch = epoch
        for _ in range(rng.randrange(12)):
            out, port_no = frame(step * 100 + len(held), rng.choice((60, 61, 1514, rng.randrange(1, 9217)))), rng.randrange(2)
            if agent.emit(port_no, out):
                held.append((epoch, port_no, out))
                total += len(out)
            else:
                refused += 1
        epoch += rng.randrange(2)
        if rng.random() < 0.5:
            committed = rng.randrange(committed, epoch)
            gate.commit(committed)
        before = gate.head
        n = gate.release()
        assert gate.head == before + n
        for _ in range(n):
            its_epoch, port_no, out = held.popleft()
            assert its_epoch <= committed, "left before its commit"
            due[port_no].append(out)
        for port, frames in zip(ports, due, strict=True):
            assert len(port.left) + len(port.ring) == len(frames)
            assert frames[len(port.left) - 1:len(port.left)] == port.left[-1:]
        if any(port.ring for port in ports):
            assert gate.released_through <= before + n - 1
        else:
            assert gate.released_through == gate.head
        assert gate.refused_full == refused and gate.held_frames == len(held)
    for port in ports:
        port.room, port.stuck = None, 0
    gate.commit(epoch)
    gate.release()
    for _, port_no, out in held:
        due[port_no].append(out)
    assert [port.left for port in ports] == due
    assert gate.released_through == gate.tail == len(due[0]) + len(due[1])
    return total >> 16


def test_wrap_around_under_load() -> None:
    assert sum(load(seed, 400) for seed in range(4)) > 60


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30))
def test_any_load(seed: int) -> None:
    load(seed, 30)


def test_held_frames_wait_in_the_ports_ring_and_behind_it_in_order() -> None:
    """Where a port can stage, the gate's bytes stay unused until its ring is full; what leaves is what was held, in order, and what
    a capture reads is the same."""
    a, b = MemoryPort.pair(frames=64)
    gate = Gate([a], 256, 1 << 16)
    agent = Agent([a], ARENA, gate, SECRET, names_max=256)
    writer = EpochWriter(SECRET)
    agent.forget_names()
    hold(agent, 1, *range(16))              # a quarter of the ring, and the rest here
    assert not a.stage_frame(frame(99))
    hold(agent, 1, *range(16, 30))
    hold(agent, 2, *range(30, 40))
    record = bytes(writer.build(ARENA, gate, agent.names, 1, 1, 1, 0, 0, 0))
    at = [record.index(frame(n)) for n in range(40)]
    assert at == sorted(at)
    assert gate.release() == 0 and read(b) == []
    gate.commit(1)
    assert gate.release() == 30 and read(b) == [frame(n) for n in range(30)]
    hold(agent, 3, 40)                      # ten of epoch 2 are in the gate's bytes: this one may not pass them
    gate.commit(3)
    assert gate.release() == 11 and read(b) == [frame(n) for n in range(30, 41)]
    hold(agent, 4, 41)
    a.close()                               # the port is gone, a capture may still read what was held
    assert frame(41) in bytes(writer.build(ARENA, gate, agent.names, 1, 1, 2, 0, 0, 0))
    gate.commit(4)
    assert gate.release() == 1 and gate.refused_port == 1


def read(port: Port) -> list[bytes]:
    burst = Burst()
    port.rx_burst(burst, 256)
    return burst.frames()
