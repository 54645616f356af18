"""A real pair over memory ports, under numbered traffic in both directions, with a sink that ticks every frame off.

    endpoint 0 ──┬── a ──┬── endpoint 0      hub "left" and hub "right"; 1 is node a, 2 is node b. What a node ever sent stands
     of left     └── b ──┘    of right       in the header of its own ring (`emitted`), so nothing it emits goes unseen.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ClassVar

import msgspec
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Ether
from typing_extensions import Self

from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.deploy.local import LocalPair
from nfckpt.native.burst import Burst
from nfckpt.ports.memory import MemoryHub

COUNTER, NAT = "nfckpt.apps.counter:Counter", "nfckpt.native.nat:NativeNat"
LEFT, RIGHT = 0, 1
RING_FRAMES = 1 << 16
NUMBER_AT = 42                  # first byte of a UDP payload
TAIL_AT = 64                    # of a memory ring: frames ever published
HOST, PEER, IN_MAC, OUT_MAC = "02:00:00:00:00:05", "02:00:00:00:00:99", "02:6e:66:00:00:01", "02:6e:66:00:00:02"
HOST_IP, PEER_IP, NAT_IP = "10.0.0.5", "198.51.100.77", "198.51.100.1"
APP_ARGS: dict[str, dict[str, Any]] = {
    NAT: dict(inside_ip="10.0.0.1", outside_ips=[NAT_IP], filtering="endpoint_independent", flows_max=1024)}


def until(what: Callable[[], Any], timeout_s: float = 8.0, every_s: float = 0.005) -> Any:
    """Wait for `what()` to be true, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(every_s)
    return value


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in socks:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in socks]


class Traffic:
    """Numbered frames each way, on one thread. `template[d]` goes in on side d and comes out on the other."""

    def __init__(self, ends: list[Any], frames_s: int) -> None:
        self.ends, self.frames_s = ends, frames_s
        udp = UDP(sport=4000, dport=5000, chksum=0) / bytes(22)
        self.template = [bytes(Ether(src=HOST, dst=IN_MAC) / IP(src=HOST_IP, dst=PEER_IP) / udp),
                         bytes(Ether(src=PEER, dst=OUT_MAC) / IP(src=PEER_IP, dst=NAT_IP) / udp)]
        self.sent, self.received, self.doubled, self.strange = [0, 0], [0, 0], 0, 0
        self._seen = [bytearray(), bytearray()]
        self.gap_ns, self._last_ns = 0, 0
        self.other: list[bytes] = []            # what is not ours: ARP of the app
        self.extra: deque[tuple[int, bytes]] = deque()          # (side, frame) to be sent in between
        self._running, self._done = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go(self) -> None:
        self._running.set()

    def pause(self) -> None:
        """Send no more; the sink goes on."""
        self._running.clear()

    def forget(self) -> None:
        """Count from 0. Only while nothing is under way."""
        self._seen = [bytearray(), bytearray()]
        self.sent, self.received = [0, 0], [0, 0]

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def watch_gap(self) -> None:
        """From now on `gap_ns` is the longest time without an output."""
        self.gap_ns, self._last_ns = 0, time.monotonic_ns()

    def lost(self) -> list[list[int]]:
        """Numbers that did not come, per direction."""
        return [[n for n, times in enumerate(seen) if not times] for seen in self._seen]

    def _run(self) -> None:
        burst, due = Burst(), 0.0
        before = time.monotonic()
        while not self._done.is_set():
            now = time.monotonic()
            due = min(due + (now - before) * self.frames_s, 200.0) if self._running.is_set() else 0.0
            before = now
            if n := int(due):
                due -= n
                for side in (LEFT, RIGHT):
                    head, tail, first = self.template[side][:NUMBER_AT], self.template[side][NUMBER_AT + 8:], self.sent[side]
                    self._seen[side] += bytes(n)
                    self.sent[side] = first + n
                    self.ends[side].tx_burst([head + (first + i).to_bytes(8, "big") + tail for i in range(n)])
            while self.extra:
                side, frame = self.extra.popleft()
                self.ends[side].tx_burst([frame])
            for side in (LEFT, RIGHT):
                while self._receive(burst, side):
                    pass
            time.sleep(0.0005)

    def _receive(self, burst: Burst, side: int) -> int:
        burst.reset()
        n = int(self.ends[side].rx_burst(burst, 256))
        numbered = 0
        for frame in burst.frames():
            if frame[12:14] != b"\x08\x00":
                self.other.append(frame)
                continue
            numbered += 1
            number, seen = int.from_bytes(frame[NUMBER_AT:NUMBER_AT + 8], "big"), self._seen[1 - side]
            if number >= len(seen):
                self.strange += 1
            elif seen[number]:
                self.doubled += 1
            else:
                seen[number] = 1
                self.received[1 - side] += 1
        if numbered:
            now = time.monotonic_ns()
            self.gap_ns, self._last_ns = max(self.gap_ns, now - (self._last_ns or now)), now
        return n


class PairRig:
    """`with PairRig("hosts", NAT, hang_ms_max=200) as rig:` starts the pair and its traffic; the end removes every trace."""

    def __init__(self, profile: str = "host", app: str = COUNTER, *, frames_s: int = 2000, traffic: bool = True,
                 app_args: dict[str, Any] | None = None, b_differs: dict[str, Any] | None = None, quarantine_dir: str = "", preempt: str = "",
                 **bounds: Any) -> None:
        self._stack = contextlib.ExitStack()
        self.profile, self.app, self._traffic = profile, app, traffic
        self.events: list[tuple[str, dict[str, Any]]] = []
        try:
            ends, nodes = self._segments()
            self.traffic = Traffic(ends, frames_s)
            self._stack.callback(self.traffic.close)
            self.config = PairConfig(
                name="rig", app=app, profile=profile, app_args=app_args or APP_ARGS.get(app, {}), quarantine_dir=quarantine_dir,
                preempt=preempt,
                bounds=Bounds(**{**self.BOUNDS, "hang_ms": bounds.get("hang_ms_max", 400), **bounds}), nodes=nodes)
        except BaseException:
            self._stack.close()
            raise
        self.pair = LocalPair(self.config, on_event=lambda name, at_ns, fields: self.events.append((name, fields)))
        b = self.pair.keepers["b"]                          # what node b alone believes: config or key
        differs = dict(b_differs or {})
        key = differs.pop("key", b.spec.key)
        self._agreed = not b_differs
        b.spec = msgspec.structs.replace(b.spec, key=key, config=msgspec.structs.replace(self.config, **differs))

    BOUNDS: ClassVar[dict[str, Any]] = {"unsafe_no_egress_lease": True, "arena_bytes": 8 << 20, "message_bytes_max": 128 << 20}

    def _segments(self) -> tuple[list[Any], dict[str, NodeConfig]]:
        """The ports of the traffic, left and right, and the nodes with theirs."""
        self.hubs = [self._stack.enter_context(MemoryHub(3, RING_FRAMES)) for _ in range(2)]
        listen = free_ports(2)
        nodes = {name: NodeConfig(ports=[hub.endpoint_spec(i, by_path=True) for hub in self.hubs], address=f"127.0.0.1:{listen[i - 1]}")
                 for i, name in enumerate("ab", 1)}
        return [self._stack.enter_context(hub.open(0)) for hub in self.hubs], nodes

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(self.pair)
            if not self._agreed:
                return self
            self.pair.wait_protected()
            if self.app == NAT:
                self._meet()
            if self._traffic:
                self.traffic.go()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _meet(self) -> None:
        """Both hosts say where they are; the first frame out says which port answers must go to."""
        for side, mac, ip, ours in ((LEFT, HOST, HOST_IP, "10.0.0.1"), (RIGHT, PEER, PEER_IP, NAT_IP)):
            self.traffic.ends[side].tx_burst([bytes(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=mac, psrc=ip, pdst=ours))])
        until(lambda: len([f for f in self.traffic.other if f[12:14] == b"\x08\x06" and f[21] == 2]) == 2)
        t = self.traffic
        t._done.set()
        t._thread.join()
        burst = Burst()
        t.ends[LEFT].tx_burst([t.template[LEFT]])
        out: list[bytes] = []

        def seen() -> list[bytes]:                      # besides what is announced again meanwhile
            burst.reset()
            t.ends[RIGHT].rx_burst(burst, 1)
            out.extend(frame for frame in burst.frames() if frame[12:14] == b"\x08\x00")
            return out

        until(seen)
        t.template[RIGHT] = t.template[RIGHT][:36] + out[0][34:36] + t.template[RIGHT][38:]
        self.opened = 1
        t._done.clear()
        t._thread = threading.Thread(target=t._run, daemon=True)
        t._thread.start()

    opened = 0                      # frames that passed from left to right before the numbered ones

    # ── what happens to it ───────────────────────────────────────────────────────────────────────

    @property
    def active(self) -> str:
        return self.pair.active

    @property
    def standby(self) -> str:
        return "b" if self.active == "a" else "a"

    @property
    def term(self) -> int:
        return int(self.pair.witness.view().term)

    def kill_active(self) -> str:
        return self.pair.kill_active()[0]

    def kill_standby(self, signal_number: int = signal.SIGKILL) -> str:
        """And wait until its keeper knows. Returns its name."""
        name = self.standby
        keeper = self.pair.keepers[name]
        starts = keeper.starts
        assert keeper.kill(signal_number)
        if signal_number == signal.SIGKILL:
            until(lambda: keeper.starts > starts)
        return name

    def protected(self, term: int = 0, timeout_s: float = 10.0) -> str:
        return self.pair.wait_protected(timeout_s, term)

    # ── what is seen ─────────────────────────────────────────────────────────────────────────────

    def emitted(self, node: str) -> int:
        """Frames this node's life, and all before it, ever put on a segment."""
        end = 1 if node == "a" else 2
        return sum(int.from_bytes(os.pread(hub.fds[end], 8, TAIL_AT), "little") for hub in self.hubs)

    def seen(self, name: str, node: str = "", **fields: Any) -> list[dict[str, Any]]:
        """Events of that name, of that node, with these fields."""
        want = fields | ({"node": node} if node else {})
        return [f for n, f in list(self.events) if n == name and all(f.get(k) == v for k, v in want.items())]

    def receipts(self, n: int) -> list[dict[str, Any]]:
        """The first `n`, once they are there."""
        return until(lambda: len(found := self.seen("receipt")) >= n and found)

    def through(self) -> list[int]:
        """Frames that the app counted, left to right and right to left."""
        rows = {row["name"]: row["counts"] for row in self.pair.status()[self.active]["state"] if "counts" in row}
        if self.app == NAT:
            return [rows["nat"]["sent_out"], rows["nat"]["sent_in"]]
        return [rows["totals"]["left_frames"], rows["totals"]["right_frames"]]

    def check(self) -> None:
        """End the traffic: every frame came, each once, and the app counted each once."""
        t = self.traffic
        t.pause()
        time.sleep(0.01)
        deadline = time.monotonic() + 5
        while t.received != t.sent and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)                                     # for what comes twice
        assert min(t.sent) > 0
        assert (t.lost(), t.doubled, t.strange) == ([[], []], 0, 0), (self.events[-20:], self.seen("receipt"))
        assert self.through() == [t.sent[LEFT] + self.opened, t.sent[RIGHT]]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP for the length of the block; a process that is gone by then is let rest."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def pauses(seed: int, n: int, longest_s: float = 0.15) -> list[float]:
    rng = random.Random(seed)
    return [rng.uniform(0, longest_s) for _ in range(n)]
