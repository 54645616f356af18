"""Python NAT against native NAT: the same frames, clock and dice; the same bytes out and the same arena, burst by burst."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.frames import fix_ip4, mutate
from tests.nat_rig import (
    EXT,
    EXT2,
    GATEWAY,
    GW,
    HOST,
    HOST2,
    IN_MAC,
    OUT_MAC,
    PEER,
    Rig,
    arp,
    assert_checksums,
)

HOSTS = {"10.0.0.5": HOST, "10.0.0.6": HOST2, "10.0.0.8": HOST}
REMOTES = ["192.0.2.9", "203.0.113.5", "198.51.100.77", "198.51.100.78"]
PORTS = [1, 53, 80, 4711, 0]
FLAGS = ["S", "SA", "A", "A", "A", "PA", "FA", "R", "RA"]


class Traffic:
    """Frames that know what came out before: replies to real mappings, errors about real packets."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.outside: list[bytes] = []          # what the NAT sent out, and in
        self.inside: list[bytes] = []

    def l4(self, sport: int, dport: int, kind: str | None = None) -> Packet:
        rng = self.rng
        kind = kind or rng.choice(("tcp", "tcp", "udp", "udp0", "echo"))
        data = Raw(b"d" * rng.randrange(20))
        if kind == "tcp":
            return TCP(sport=sport, dport=dport, flags=rng.choice(FLAGS)) / data
        if kind == "echo":
            return ICMP(type=rng.choice((8, 8, 8, 0, 13)), id=sport) / data
        return UDP(sport=sport, dport=dport, **({"chksum": 0} if kind == "udp0" else {})) / data

    def fresh_out(self) -> tuple[int, bytes]:
        rng = self.rng
        src = rng.choice(list(HOSTS))
        dst = rng.choice([*REMOTES, REMOTES[0], EXT])
        more: dict[str, object] = {}
        dport = rng.choice(PORTS)
        if dst == EXT and self.outside:         # hairpin: to an external endpoint that exists
            l4 = Ether(rng.choice(self.outside)).payload.payload
            dport = getattr(l4, "sport", dport)
        l4 = self.l4(rng.choice(PORTS[:4]), dport)
        if rng.random() < 0.1:
            more = {"flags": rng.choice(("MF", "DF")), "frag": rng.choice((0, 3)), "id": rng.randrange(4)}
            l4 = UDP(sport=1, dport=53, len=500, chksum=7) / Raw(b"f" * 8)
        return 0, bytes(Ether(src=HOSTS[src], dst=IN_MAC) / IP(src=src, dst=dst, ttl=rng.choice((1, 64, 64, 64)), **more) / l4)

    def reply(self) -> tuple[int, bytes]:
        rng = self.rng
        p = Ether(rng.choice(self.outside)) if self.outside else None
        if p is None or IP not in p or rng.random() < 0.2:
            dst = rng.choice((EXT, EXT, EXT2, "10.0.0.5"))
            return 1, bytes(Ether(src=GW, dst=OUT_MAC) / IP(src=rng.choice(REMOTES), dst=dst)
                            / self.l4(rng.choice(PORTS), rng.randrange(2000, 2030)))
        e = Ether(src=rng.choice((GW, PEER)), dst=OUT_MAC)
        src, dst, l4 = p[IP].dst, p[IP].src, p[IP].payload
        if rng.random() < 0.1:
            src = rng.choice(REMOTES)
        if rng.random() < 0.15:
            return 1, bytes(e / IP(src=rng.choice((src, "192.0.2.250")), dst=dst) / ICMP(type=rng.choice((3, 11, 5)))
                            / Raw(bytes(p[IP])[:rng.choice((28, 40, 600))]))
        if TCP in p:
            new: Packet = TCP(sport=p[TCP].dport, dport=p[TCP].sport, flags=rng.choice(FLAGS))
        elif UDP in p and isinstance(l4, UDP):
            new = UDP(sport=p[UDP].dport ^ (rng.random() < 0.1), dport=p[UDP].sport)
        elif ICMP in p:
            new = ICMP(type=0, id=p[ICMP].id)
        else:
            new = Raw(b"?")
        return 1, bytes(e / IP(src=src, dst=dst) / new)

    def again(self) -> tuple[int, bytes]:
        """Established flows: out and in."""
        rng = self.rng
        p = Ether(rng.choice(self.inside)) if self.inside else None
        if p is None or IP not in p or not isinstance(p[IP].payload, (TCP, UDP)):
            return self.fresh_out()
        l4 = p[IP].payload
        new = (TCP(sport=l4.dport, dport=l4.sport, flags=rng.choice("SAAAAFR")) if isinstance(l4, TCP)
               else UDP(sport=l4.dport, dport=l4.sport))
        if rng.random() < 0.1:
            new = ICMP(type=3, code=3) / Raw(bytes(p[IP]))
        return 0, bytes(Ether(src=HOST, dst=IN_MAC) / IP(src=p[IP].dst, dst=p[IP].src) / new)

    def odd(self) -> tuple[int, bytes]:
        rng = self.rng
        which = rng.randrange(6)
        if which == 0:
            ip = rng.choice([*HOSTS, "10.0.0.1", "0.0.0.0", "10.0.0.99"])
            return 0, bytes(arp(rng.choice((HOST, HOST2, "01:00:00:00:00:01")), ip, rng.choice(("10.0.0.1", ip)), rng.choice((1, 2))))
        if which == 1:
            return 1, bytes(arp(rng.choice((GW, PEER)), rng.choice((GATEWAY, *REMOTES[2:])), rng.choice((EXT, EXT2, GATEWAY)), rng.choice((1, 2))))
        if which == 2:
            ns = IPv6(src="2001:db8::9", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt="2001:db8::1")
            return rng.randrange(2), bytes(Ether(src=HOST, dst="33:33:ff:00:00:01") / ns)
        if which == 3:
            return rng.randrange(3), rng.randbytes(rng.randrange(70))
        port, frame = rng.choice((self.fresh_out, self.reply))()
        return port, fix_ip4(mutate(rng, frame))

    def burst(self) -> list[tuple[int, bytes]]:
        rng = self.rng
        calm = rng.random() < 0.7               # without ARP the vectorised pass is at work
        kinds = [self.again] * 4 + [self.reply] * 4 + [self.fresh_out] * 2 + ([] if calm else [self.odd] * 2)
        return [rng.choice(kinds)() for _ in range(rng.choice((1, 4, 32, 60)))]


SETTINGS: list[dict[str, object]] = [
    {},
    {"filtering": "endpoint_independent", "outside_ips": [EXT, EXT2], "inside_ip6s": ["2001:db8::1"]},
    {"filtering": "address_dependent", "port_lo": 2000, "port_hi": 2007, "udp_s": 2.0},
    {"filtering": "endpoint_independent", "flows_max": 12, "neighbours_max": 5, "fragments_max": 2, "gateway": None},
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("settings", range(len(SETTINGS)))
def test_python_and_native_do_the_same(settings: int, seed: int) -> None:
    rng = random.Random(seed * 100 + settings)
    python, native = (Rig(kind, seed=seed, **SETTINGS[settings]) for kind in ("python", "native"))
    if seed != 1:
        python.meet()
        native.meet()
    traffic = Traffic(rng)
    for step in range(60):
        frames = traffic.burst()
        got, want = python.feed(*frames), native.feed(*frames)
        assert got == want, (step, [(f[0], f[1].hex()) for f, a, b in zip(frames, got, want, strict=True) if a != b])
        assert python.counts == native.counts, step
        assert python.digest() == native.digest(), (step, _difference(python, native))
        for f in got:
            if f is not None and len(f[1]) > 40 and f[1][12:14] == b"\x08\0":
                (traffic.outside if f[0] else traffic.inside).append(f[1])
        del traffic.outside[:-60], traffic.inside[:-60]
        pause = rng.choice((0, 10**6, 3 * 10**8, 10**9, 61 * 10**9) if step % 10 == 0 else (0, 10**5, 2 * 10**8))
        pause = 400 * 10**9 if step == 40 else pause
        for r in (python, native):
            r.ctx.now_ns += pause
            r.app.on_tick(r.ctx)
        assert python.digest() == native.digest(), (step, _difference(python, native))
    counts = python.counts
    assert counts["sent_out"] > 50 and counts["sent_in"] > 50 and counts["expired"] > 0, counts
    if settings == 1:
        assert counts["hairpinned"] > 0
    if settings == 2:
        assert counts["no_ports"] > 0
    if settings == 3:
        assert counts["no_room"] > 0


def test_many_flows_that_end_together_end_alike() -> None:
    rigs = [Rig(kind, udp_s=1.0, filtering="address_dependent") for kind in ("python", "native")]
    plain = bytes(Ether(src=HOST, dst=IN_MAC) / IP(src="10.0.0.5", dst=REMOTES[0]) / UDP(sport=0, dport=53, chksum=0))
    frames = [(0, plain[:34] + (1024 + k).to_bytes(2, "big") + plain[36:]) for k in range(1500)]
    for r in rigs:
        r.meet()
        for k in range(0, 1500, 250):
            r.feed(*frames[k:k + 250])
        assert len(r.state.sessions) == 1500
        r.ctx.now_ns += 3 * 10**9
    for tick in range(12):
        for r in rigs:
            r.app.on_tick(r.ctx)
        assert rigs[0].digest() == rigs[1].digest(), (tick, _difference(*rigs))
    assert [len(r.state.sessions) for r in rigs] == [0, 0] and len(rigs[0].state.permits) == 0


def _difference(a: Rig, b: Rig) -> list[str]:
    return [name for name in a.arena.regions if (a.arena.view(name) != b.arena.view(name)).any()]


@pytest.mark.parametrize("kind", ["python", "native"])
def test_what_well_formed_traffic_becomes_has_right_checksums(kind: str) -> None:
    rng = random.Random(5)
    r = Rig(kind, filtering="endpoint_independent", outside_ips=[EXT, EXT2])
    r.meet()
    traffic = Traffic(rng)
    seen = 0
    for _ in range(60):
        frames = [rng.choice((traffic.again, traffic.reply, traffic.fresh_out))() for _ in range(32)]
        for f in r.feed(*frames):
            if f is not None and f[1][12:14] == b"\x08\0":
                assert_checksums(f[1])
                seen += 1
                (traffic.outside if f[0] else traffic.inside).append(f[1])
        del traffic.outside[:-60], traffic.inside[:-60]
    assert seen > 600


def test_the_order_of_a_burst_does_not_depend_on_how_it_is_cut() -> None:
    """One burst of 60 or 60 bursts of one: the same bytes out."""
    rng = random.Random(9)
    whole, single = Rig("python"), Rig("python")
    whole.meet()
    single.meet()
    traffic = Traffic(rng)
    for _ in range(25):
        frames = traffic.burst()
        got = whole.feed(*frames)
        assert got == [single.feed(f)[0] for f in frames]
        assert whole.digest() == single.digest()
        for f in got:
            if f is not None and f[1][12:14] == b"\x08\0":
                (traffic.outside if f[0] else traffic.inside).append(f[1])
