"""The firewall and the counter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from nfckpt.apps.counter import FLOW, Counter
from nfckpt.apps.firewall import Firewall, parse_rule
from nfckpt.errors import ConfigError
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.headers import parse_burst
from nfckpt.nf import NetworkFunction
from nfckpt.state.state import State
from tests.frames import A, B
from tests.nat_rig import FakeContext, arp

E = Ether(src=A, dst=B)
IN, WEB = "10.0.0.5", "192.0.2.9"


class Bench:
    def __init__(self, app: NetworkFunction) -> None:
        self.app, self.ctx = app, FakeContext(1)
        self.state = State(Arena(1 << 25), seed=b"s" * 32)
        app.declare(self.state)

    def feed(self, *frames: tuple[int, Packet | bytes]) -> list[bool]:
        """Which frames passed; those that did passed unchanged, to the other side."""
        b = Burst()
        for port, f in frames:
            b.push(bytes(f), port)
        parse_burst(b)
        self.app.on_burst(b, self.ctx)
        assert b.frames() == [bytes(f) for _, f in frames]
        passed = b.verdict == 1
        assert (b.out_port[passed] == 1 - b.port[passed]).all() and set(b.verdict.tolist()) <= {1, 2}
        return [bool(p) for p in passed]

    def one(self, port: int, frame: Packet | bytes) -> bool:
        return self.feed((port, frame))[0]

    def wait(self, seconds: float) -> None:
        self.ctx.now_ns += round(seconds * 1e9)
        for _ in range(70):
            self.app.on_tick(self.ctx)


def pair(l4: Any, reply: Any, v6: bool = False) -> tuple[Packet, Packet]:
    if v6:
        return E / IPv6(src="2001:db8::5", dst="2001:db8::9") / l4, E / IPv6(src="2001:db8::9", dst="2001:db8::5") / reply
    return E / IP(src=IN, dst=WEB) / l4, E / IP(src=WEB, dst=IN) / reply


PAIRS = [
    pair(TCP(sport=9, dport=80, flags="S"), TCP(sport=80, dport=9, flags="SA")),
    pair(UDP(sport=9, dport=53), UDP(sport=53, dport=9)),
    pair(ICMP(type=8, id=9), ICMP(type=0, id=9)),
    pair(TCP(sport=9, dport=80, flags="S"), TCP(sport=80, dport=9, flags="SA"), v6=True),
    pair(ICMPv6EchoRequest(id=9), ICMPv6EchoReply(id=9), v6=True),
]


@pytest.mark.parametrize("go, come", PAIRS)
def test_inside_opens_and_outside_answers(go: Packet, come: Packet) -> None:
    f = Bench(Firewall())
    assert not f.one(1, come)
    assert f.feed((1, come), (0, go), (1, come), (0, go)) == [False, True, True, True]
    assert f.feed((1, come), (0, go)) == [True, True]
    assert not f.one(1, go)                         # the same packet from outside is another flow
    assert len(f.state.sessions) == 1
    f.wait(310)
    assert f.one(1, come) == (TCP in go)            # both SYNs seen: established
    f.wait(7500)
    assert not f.one(1, come) and len(f.state.sessions) == 0


def test_tcp_closes() -> None:
    f = Bench(Firewall())
    go, come = PAIRS[0]
    fin, nif = pair(TCP(sport=9, dport=80, flags="FA"), TCP(sport=80, dport=9, flags="FA"))
    assert all(f.feed((0, go), (1, come), (0, fin), (1, nif)))
    assert f.one(0, fin)
    f.wait(239)
    assert len(f.state.sessions) == 1
    f.wait(2)
    assert not f.one(1, nif) and not f.one(0, fin) and f.one(0, go)
    assert f.state.firewall["opened"] == 2 and f.state.firewall["expired"] == 1


def test_rules_live_in_the_state() -> None:
    f = Bench(Firewall(allow=["tcp 10.0.0.5/32 22-23", "icmp 10.0.0.0/24", "udp 2001:db8::/64 53"]))
    ssh = [E / IP(src=WEB, dst=IN) / TCP(sport=5, dport=d, flags="S") for d in (21, 22, 23, 24)]
    assert [f.one(1, p) for p in ssh] == [False, True, True, False]
    assert f.one(0, E / IP(src=IN, dst=WEB) / TCP(sport=22, dport=5, flags="SA"))
    assert not f.one(1, E / IP(src=WEB, dst="10.0.0.6") / TCP(sport=5, dport=22, flags="S"))
    assert not f.one(1, E / IP(src=WEB, dst=IN) / TCP(sport=6, dport=22, flags="A"))
    assert f.one(1, E / IP(src=WEB, dst=IN) / ICMP(type=8, id=1))
    assert f.one(1, E / IPv6(src="2001:db8:1::1", dst="2001:db8::7") / UDP(sport=5, dport=53))
    f.app.set_rules([])                             # type: ignore[attr-defined]
    assert not f.one(1, E / IP(src=WEB, dst=IN) / TCP(sport=7, dport=22, flags="S")) and f.one(1, ssh[1])
    for bad in ("tcp 10.0.0.5/24 22", "tcp 10.0.0.5", "icmp 10.0.0.0/24 5", "udp 10.0.0.0/24 9-5", "x", "", "gre 10.0.0.0/8 1"):
        with pytest.raises(ConfigError):
            parse_rule(bad)
        with pytest.raises(ConfigError):
            Firewall(allow=[bad])


def test_what_always_passes_and_what_never_does() -> None:
    f = Bench(Firewall())
    six = IPv6(src="2001:db8::9", dst="2001:db8::5")
    always = [arp(A, WEB, IN), E / six / ICMPv6ND_NS(tgt="2001:db8::5"), E / six / ICMPv6PacketTooBig(mtu=1280)]
    assert all(f.one(port, p) for p in always for port in (0, 1))
    never = [b"", bytes(E / IP(src=IN, dst=WEB) / TCP(flags="S"))[:50], E / IP(src=IN, dst=WEB, frag=2, proto=17) / b"x",
             Ether(src=A, dst=B, type=0x88cc) / b"lldp", E / IP(src=IN, dst=WEB, proto=47) / b"gre",
             E / IP(src=IN, dst=WEB) / TCP(flags="A"), E / IP(src=IN, dst=WEB) / ICMP(type=0)]
    before = f.state.arena.view("sessions").tobytes()
    assert not any(f.one(port, p) for p in never for port in (0, 1))
    assert f.state.arena.view("sessions").tobytes() == before
    assert f.one(0, Ether(src=A, dst=B) / Dot1Q(vlan=4) / IP(src=IN, dst=WEB) / UDP(sport=1, dport=2))


def test_icmp_errors_pass_with_their_session() -> None:
    f = Bench(Firewall())
    go, come = PAIRS[1]
    error = E / IP(src="203.0.113.1", dst=IN) / ICMP(type=11) / Raw(bytes(go[IP]))
    assert not f.one(1, error) and f.one(0, go) and f.one(1, error)
    assert f.one(0, E / IP(src=IN, dst=WEB) / ICMP(type=3, code=3) / Raw(bytes(come[IP])))
    assert not f.one(1, E / IP(src="203.0.113.1", dst=IN) / ICMP(type=11) / Raw(bytes(come[IP])))


def test_a_full_firewall_says_so() -> None:
    f = Bench(Firewall(flows_max=4))
    got = f.feed(*[(0, E / IP(src=IN, dst=WEB) / UDP(sport=s, dport=53)) for s in range(1, 11)])
    assert sum(got) == 4 and f.state.firewall["no_room"] == 6


def test_counter() -> None:
    f = Bench(Counter(flows_max=2))
    a = E / IP(src=IN, dst=WEB) / UDP(sport=1, dport=2) / b"four"
    b = E / IP(src=WEB, dst=IN) / UDP(sport=2, dport=1)
    c = E / IP(src=WEB, dst="10.0.0.7") / UDP(sport=2, dport=1)
    assert all(f.feed((0, a), (1, b), (0, a), (1, c), (0, b"short"), (0, arp(A, IN, WEB)), (0, a)))
    n, m = len(bytes(a)), len(bytes(b))
    assert f.state.totals.as_dict() == {
        "left_frames": 5, "right_frames": 2, "left_bytes": 3 * n + 5 + 42, "right_bytes": 2 * m}
    flows = {tuple(np.frombuffer(k, FLOW)[0].item()): v.item() for k, v, _ in f.state.flows}
    assert flows == {(0x0a000005, 0xc0000209, 1, 2, 17): (3, 3 * n), (0xc0000209, 0x0a000005, 2, 1, 17): (1, m)}
    assert f.state.flows.refused == 1
    f.wait(301)
    assert len(f.state.flows) == 0
