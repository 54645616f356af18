"""What joins the simulated nodes: segments with their ports, and the channel. Everything takes its time from the world.

Picture     host ──┬── hub left ──┬── a:0          a frame sent at 5.000 ms reaches a at 5.3 and b at 6.9: two taps of one
                   │              └── b:0          segment differ by less than the skew; frames of one sender never overtake
                   └── hub right ─┬── a:1          each other on the way to one receiver
                                  └── b:1
            channel: an ordered queue each way; one way can stall; a crash loses a part of what was on its way
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING

from nfckpt.ports.port import PythonPort
from nfckpt.wire.transport import CLOSED

if TYPE_CHECKING:
    from nfckpt.sim.shell import SimShell
    from nfckpt.sim.world import World

__all__ = ["HOST", "Channel", "Hub", "SimPort", "channel_pair"]

US = 1000
HOST = "host"


class Hub:
    """One segment: whatever one endpoint sends, every other endpoint receives, byte for byte. Where inputs are shipped it is a switch
    that has learned: hosts reach the node that led last, and nobody but hosts gets what a node sends."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index = world, index
        self.rings: dict[str, list[tuple[int, int, bytes]]] = {node: [] for node in world.names}
        self._last: dict[tuple[str, str], int] = {}
        self._count = 0

    def send(self, sender: str, frame: bytes) -> None:
        """Now. The world may have a receiver miss it, or get it twice."""
        w = self.world
        for node, ring in self.rings.items():
            if node == sender or (w.ship and (sender != HOST or node != w.at_node)):
                continue
            due = max(w.now + w.net.randrange(w.spread_ns) + w.faults.linger_ns(node, sender, self.index, frame),
                      self._last.get((sender, node), 0))
            self._last[sender, node] = due
            for _ in range(w.faults.copies(node, sender, self.index, frame)):
                self._count += 1
                heapq.heappush(ring, (due, self._count, frame))
            w.wake(w.lives.get(node), due)

    def open(self, node: str) -> None:
        """A fresh socket: what reached the machine before now is not in it."""
        ring = self.rings[node]
        while ring and ring[0][0] < self.world.now:
            heapq.heappop(ring)


class SimPort(PythonPort):
    """Port of one process on one hub. `ts` is when the frame reached this node, by the node's clock."""

    def __init__(self, owner: SimShell, hub: Hub) -> None:
        self.name = f"{owner.node}:{hub.index}"
        self._owner, self._hub, self._world = owner, hub, owner.world
        self._ring = hub.rings[owner.node]
        self._taken: deque[bytes] = deque()
        self.stuck_until = 0            # the link below takes nothing: what is sent stays in the ring
        self.unfinished_until = 0       # the kernel's CPU that fills the next place of the ring is not running

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        ring, now = self._ring, self._world.now
        if not ring or ring[0][0] > now:
            self.py_hidden = False
            return []
        if now < self.unfinished_until:
            self.py_hidden = sum(due <= now for due, _, _ in ring) > 1          # one alone would look like none
            if self.py_hidden:
                return []
        self.py_hidden = False
        out: list[tuple[bytes, int]] = []
        while ring and ring[0][0] <= now and len(out) < max_frames:
            due, _, frame = heapq.heappop(ring)
            out.append((frame, self._owner.mono(due)))
        return out

    def py_tx(self, frame: bytes) -> bool:
        if len(self._taken) >= self._world.tx_ring_frames:
            return False
        self._taken.append(frame)
        return True

    def py_flush(self) -> int:
        w = self._world
        n = len(self._taken) if w.now >= self.stuck_until else 0
        if n and w.net.random() < w.slow_flush:
            n = w.net.randrange(n + 1)
        for _ in range(n):
            if w.fenced(self._owner):       # the egress hook refuses: the kernel leaves this frame and all behind it in the ring
                break
            w.emit(self._owner, self._hub, self._taken.popleft())
        return len(self._taken)


class Channel:
    """One end; see `channel_pair`. The part of nfckpt.wire.transport.Transport that nodes use."""

    def __init__(self, world: World, bytes_max: int) -> None:
        self.world, self.bytes_max = world, bytes_max
        self.inbox: deque[tuple[int, int, bytearray]] = deque()
        self.waiting_bytes = 0
        self.end_ns = -1                # when this end hears that the other one is gone
        self.end_reason = ""
        self.closed: str | None = None
        self.peer: Channel
        self.owner: SimShell
        self.last_ns = 0
        self.stalled_ns = 0             # nothing sent from here arrives before
        self.lie: tuple[int, bytearray] | None = None      # comes next, and the peer never sent it
        self.lying = False              # what `recv` gave last is one

    def send(self, kind: int, payload: bytes | memoryview) -> bool:
        peer = self.peer
        if self.closed is not None or (peer.waiting_bytes and peer.waiting_bytes + len(payload) > self.bytes_max):
            return False                # a beat may still find room where a record does not
        w = self.world
        self.last_ns = max(self.last_ns, w.now + w.delay_ns(), self.stalled_ns)
        if peer.closed is None and peer.end_ns < 0:
            peer.inbox.append((self.last_ns, kind, bytearray(payload)))
            peer.waiting_bytes += len(payload)
            w.wake(peer.owner, self.last_ns)
        return True

    def recv(self) -> tuple[int, memoryview] | None:
        self.lying = False
        if self.closed is None and self.lie is not None:
            (kind, body), self.lie, self.lying = self.lie, None, True
            return kind, memoryview(body)
        if self.closed is None and self.inbox and self.inbox[0][0] <= self.world.now:
            _, kind, body = self.inbox.popleft()
            self.waiting_bytes -= len(body)
            return kind, memoryview(body)
        if self.closed is None and 0 <= self.end_ns <= self.world.now and not self.inbox:
            self.closed = self.end_reason
        return None

    def flush(self) -> None:
        """Nothing is kept back."""

    def stall(self, until_ns: int) -> None:
        """What is sent from here arrives no earlier: a partition of one direction."""
        self.stalled_ns = until_ns
        self.last_ns = max(self.last_ns, until_ns)
        inbox = self.peer.inbox
        for i, (due, kind, body) in enumerate(inbox):
            if due > self.world.now:
                inbox[i] = max(due, until_ns), kind, body
        if self.peer.end_ns >= 0:
            self.peer.end_ns = max(self.peer.end_ns, until_ns)

    def cut(self, notice_ns: int) -> None:
        """What was on its way to here is gone. `notice_ns`: when this end hears of the cut, -1 never."""
        self._lose(sum(due <= self.world.now for due, _, _ in self.inbox))
        if self.end_ns < 0:
            self.end_ns = self.world.far if notice_ns < 0 else self.world.now + notice_ns
            self.end_reason = "connection reset"

    def close(self) -> None:
        """In order: what was sent still arrives."""
        self._leave(CLOSED, len(self.peer.inbox))

    def crash(self, notice_ns: int) -> None:
        """The process died: of what was on its way a part is lost. `notice_ns`: when the other end hears of it, -1 never."""
        w = self.world
        arrived = sum(due <= w.now for due, _, _ in self.peer.inbox)
        self._leave("the peer's process is dead", w.net.randint(arrived, len(self.peer.inbox)), notice_ns)

    def _lose(self, keep: int) -> None:
        while len(self.inbox) > keep:
            self.waiting_bytes -= len(self.inbox.pop()[2])

    def _leave(self, reason: str, keep: int, notice_ns: int = 0) -> None:
        if self.closed is not None:
            return
        self.closed = "closed here"
        peer = self.peer
        peer._lose(keep)
        if peer.end_ns < 0:
            peer.end_ns = self.world.far if notice_ns < 0 else max(self.world.now + notice_ns, self.last_ns)
            peer.end_reason = reason


def channel_pair(world: World, bytes_max: int) -> tuple[Channel, Channel]:
    """Two connected ends."""
    a, b = Channel(world, bytes_max), Channel(world, bytes_max)
    a.peer, b.peer = b, a
    return a, b
