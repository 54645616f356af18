"""A NAT on the bench: frames in, frames out, the clock and the dice in our hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from nfckpt.apps.nat import Nat
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.headers import parse_burst
from nfckpt.native.nat import NativeNat
from nfckpt.state.state import State

S = 10**9
M64 = 2**64 - 1
IN_MAC, OUT_MAC = "02:6e:66:00:00:01", "02:6e:66:00:00:02"
HOST, HOST2, GW, PEER = "02:00:00:00:00:05", "02:00:00:00:00:06", "02:00:00:00:00:fe", "02:00:00:00:00:99"
EXT, EXT2, GATEWAY = "198.51.100.1", "198.51.100.2", "198.51.100.254"
WEB = "192.0.2.9"


def apps() -> dict[str, type]:
    return {"python": Nat, "native": NativeNat}


class Dice:
    """splitmix64, as NativeFunction.random_u64."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def __call__(self) -> int:
        self.state = (self.state + 0x9e3779b97f4a7c15) & M64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xbf58476d1ce4e5b9) & M64
        z = ((z ^ (z >> 27)) * 0x94d049bb133111eb) & M64
        return z ^ (z >> 31)


class FakeContext:
    def __init__(self, seed: int) -> None:
        self.now_ns = S
        self.random_u64 = Dice(seed)
        self.sent: list[tuple[int, bytes]] = []

    def send(self, port: int, frame: bytes) -> bool:
        self.sent.append((port, frame))
        return True

    def call_soon(self, fn: Callable[[], None]) -> None:
        fn()


class Rig:
    """One NAT with its arena. `feed` runs one burst; frames may be scapy packets."""

    def __init__(self, kind: str = "python", *, seed: int = 1, arena: Arena | None = None, **parameters: Any) -> None:
        settings = dict(dict(inside_ip="10.0.0.1", outside_ips=[EXT], gateway=GATEWAY, flows_max=4096), **parameters)
        self.kind, self.app = kind, apps()[kind](**settings)
        self.arena = arena or Arena(self.app.config.arena_bytes)
        self.state = State(self.arena, seed=b"s" * 32)
        self.app.declare(self.state)
        self.ctx = FakeContext(seed)
        if kind == "native":
            self.app.seed(seed)
        self.burst = Burst()

    def feed(self, *frames: tuple[int, bytes | Packet]) -> list[tuple[int, bytes] | None]:
        """What became of each frame: (port, bytes) or None."""
        b = self.burst
        b.reset()
        for port, f in frames:
            b.push(bytes(f), port)
        parse_burst(b)
        if self.kind == "native":
            self.app.process(b, self.ctx.now_ns)
        else:
            self.app.on_burst(b, self.ctx)
        assert set(b.verdict.tolist()) <= {1, 2}
        return [(int(b.out_port[i]), b.frame(i)) if b.verdict[i] == 1 else None for i in range(len(b))]

    def one(self, port: int, frame: bytes | Packet) -> Packet | None:
        """Feed one frame; what came out, decoded, with its port as `.port`, after all its checksums were checked."""
        out = self.feed((port, frame))[0]
        if out is None:
            return None
        p = Ether(out[1])
        assert_checksums(out[1])
        p.port = out[0]
        return p

    def meet(self) -> None:
        """Everybody has said where they are."""
        for port, mac, ip, ours in ((0, HOST, "10.0.0.5", "10.0.0.1"), (0, HOST2, "10.0.0.6", "10.0.0.1"),
                                    (1, GW, GATEWAY, EXT), (1, PEER, "198.51.100.77", EXT)):
            self.feed((port, arp(mac, ip, ours)))

    def wait(self, seconds: float) -> None:
        """Let time pass, with ticks enough for the clock hand to go round."""
        self.ctx.now_ns += round(seconds * S)
        for _ in range(20):
            self.app.on_tick(self.ctx)

    @property
    def counts(self) -> dict[str, int]:
        return {k: v for k, v in self.state.nat.as_dict().items() if v}

    def digest(self) -> bytes:
        return bytes(self.arena.digest())


def arp(mac: str, ip: str, target: str, op: int = 1) -> Packet:
    return Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=op, hwsrc=mac, psrc=ip, pdst=target)


def out(l4: Packet, src: str = "10.0.0.5", dst: str = WEB, mac: str = HOST, **ip: Any) -> tuple[int, Packet]:
    return 0, Ether(src=mac, dst=IN_MAC) / IP(src=src, dst=dst, **ip) / l4


def back(l4: Packet, src: str = WEB, dst: str = EXT, mac: str = GW, **ip: Any) -> tuple[int, Packet]:
    return 1, Ether(src=mac, dst=OUT_MAC) / IP(src=src, dst=dst, **ip) / l4


def assert_checksums(frame: bytes) -> None:
    """Scapy computes every checksum of an unfragmented IPv4 frame again and finds the same."""
    p = Ether(frame)
    if IP not in p or p[IP].frag or p[IP].flags.MF:
        return
    again = Ether(frame)
    del again[IP].chksum
    for layer in (TCP, UDP, ICMP):
        if layer in again and again[IP].payload.__class__ is layer and not (layer is UDP and again[UDP].chksum == 0):
            del again[layer].chksum
    assert bytes(again) == frame, (frame.hex(), bytes(again).hex())


def payloads(frames: Sequence[tuple[int, bytes] | None]) -> list[tuple[int, bytes]]:
    return [f for f in frames if f is not None]
