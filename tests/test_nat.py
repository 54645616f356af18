"""What the NATs promise, rule by rule, over both of them."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from nfckpt.apps.nat_plan import NatConfig
from nfckpt.errors import ConfigError
from nfckpt.packet import build
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
    WEB,
    Rig,
    apps,
    arp,
    assert_checksums,
    back,
    out,
)

pytestmark = pytest.mark.parametrize("kind", list(apps()))


def rig(kind: str, **parameters: object) -> Rig:
    r = Rig(kind, **parameters)
    r.meet()
    return r


def some(p: Packet | None) -> Packet:
    assert p is not None
    return p


def connect(r: Rig, sport: int = 4711, dport: int = 80, dst: str = WEB) -> int:
    """A TCP handshake; returns the external port."""
    syn = some(r.one(*out(TCP(sport=sport, dport=dport, flags="S"), dst=dst)))
    port = syn[TCP].sport
    some(r.one(*back(TCP(sport=dport, dport=port, flags="SA"), src=dst)))
    some(r.one(*out(TCP(sport=sport, dport=dport, flags="A"), dst=dst)))
    return port


@pytest.mark.parametrize("l4, reply", [
    (TCP(sport=4711, dport=80, flags="S"), lambda port: TCP(sport=80, dport=port, flags="SA")),
    (UDP(sport=4711, dport=80) / b"hi", lambda port: UDP(sport=80, dport=port) / b"ho"),
    (UDP(sport=4711, dport=80, chksum=0) / b"hi", lambda port: UDP(sport=80, dport=port, chksum=0) / b"ho"),
    (ICMP(type=8, id=4711) / b"ping", lambda port: ICMP(type=0, id=port) / b"ping"),
])
def test_round_trip(kind: str, l4: Packet, reply: object) -> None:
    r = rig(kind)
    for _ in range(2):                  # a new flow, then a known one
        p = some(r.one(*out(l4, ttl=64)))
        assert (p.port, p.src, p.dst) == (1, OUT_MAC, GW)
        assert (p[IP].src, p[IP].dst, p[IP].ttl) == (EXT, WEB, 63)
        port = p[ICMP].id if ICMP in p else p.payload.payload.sport
        assert port >= 1024 and port % 2 == 1
        q = some(r.one(*back(reply(port), ttl=9)))      # type: ignore[operator]
        assert (q.port, q.src, q.dst) == (0, IN_MAC, HOST)
        assert (q[IP].src, q[IP].dst, q[IP].ttl) == (WEB, "10.0.0.5", 8)
        assert (q[ICMP].id if ICMP in q else q.payload.payload.dport) == 4711
    assert r.counts == {"sent_out": 2, "sent_in": 2, "answered": 4, "mapped": 1, "opened": 1}


def test_the_mapping_is_endpoint_independent(kind: str) -> None:
    r = rig(kind)
    ports = {some(r.one(*out(UDP(sport=5000, dport=d), dst=dst)))[UDP].sport
             for d in (53, 54) for dst in ("192.0.2.1", "203.0.113.5", "198.51.100.77")}
    assert len(ports) == 1
    assert some(r.one(*out(UDP(sport=5001, dport=53))))[UDP].sport not in ports
    assert r.counts["mapped"] == 2 and r.counts["opened"] == 7


@pytest.mark.parametrize("filtering, letin", [
    ("endpoint_independent", (1, 1, 1)), ("address_dependent", (1, 1, 0)), ("address_and_port_dependent", (1, 0, 0))])
def test_filtering(kind: str, filtering: str, letin: tuple[int, ...]) -> None:
    r = rig(kind, filtering=filtering)
    port = some(r.one(*out(UDP(sport=5000, dport=53))))[UDP].sport
    got = tuple(int(r.one(*back(UDP(sport=s, dport=port), src=src)) is not None)
                for src, s in ((WEB, 53), (WEB, 99), ("203.0.113.5", 53)))
    assert got == letin
    assert r.counts.get("filtered", 0) == 3 - sum(letin)
    if filtering != "address_dependent":
        return
    r.wait(301)
    assert len(r.state.permits) == len(r.state.sessions) == len(r.state.mappings) == 0


def test_on_link_destinations_go_there_and_not_to_the_gateway(kind: str) -> None:
    r = rig(kind)
    assert some(r.one(*out(UDP(sport=1, dport=2), dst="198.51.100.77"))).dst == PEER


def test_unknown_next_hop_becomes_an_arp_request(kind: str) -> None:
    r = Rig(kind)
    p = some(r.one(*out(UDP(sport=5000, dport=53))))
    assert p.port == 1 and bytes(p) == build.arp_request(OUT_MAC, EXT, GATEWAY)
    assert r.one(*out(UDP(sport=5000, dport=53))) is None           # at most once a second
    r.wait(1)
    assert ARP in some(r.one(*out(UDP(sport=5000, dport=53))))
    r.one(1, Ether(src=GW, dst=OUT_MAC) / ARP(op=2, hwsrc=GW, psrc=GATEWAY, hwdst=OUT_MAC, pdst=EXT))
    assert some(r.one(*out(UDP(sport=5000, dport=53)))).dst == GW
    assert r.counts == {"no_neighbour": 3, "asked": 2, "arp_heard": 1, "sent_out": 1, "mapped": 1, "opened": 1}


def test_arp(kind: str) -> None:
    r = Rig(kind, outside_ips=[EXT, EXT2])
    for port, mac, ours in ((0, IN_MAC, "10.0.0.1"), (1, OUT_MAC, EXT), (1, OUT_MAC, EXT2)):
        ip = "10.0.0.5" if port == 0 else "198.51.100.9"
        p = some(r.one(port, arp(HOST, ip, ours)))
        assert p.port == port and bytes(p) == build.arp_reply(mac, ours, HOST, ip)
    assert r.one(0, arp(HOST, "10.0.0.5", "10.0.0.77")) is None
    assert r.one(1, arp(HOST, "198.51.100.9", "10.0.0.1")) is None
    assert r.one(0, arp(HOST, "10.0.0.1", "10.0.0.1")) is None      # somebody claims our address
    assert some(r.one(0, arp(HOST, "0.0.0.0", "10.0.0.1")))[ARP].psrc == "10.0.0.1"      # a probe
    assert len(r.state.neighbours) == 2
    r.one(0, arp(HOST2, "10.0.0.5", "10.0.0.5"))                   # it moved, and says so
    r.one(1, arp(GW, GATEWAY, EXT))
    port_ = some(r.one(*out(UDP(sport=1, dport=2), mac=HOST2)))[UDP].sport
    assert some(r.one(*back(UDP(sport=2, dport=port_), dst=EXT2 if 0x0a000005 % 2 else EXT))).dst == HOST2


def test_a_next_hop_that_moves_moves_its_flows(kind: str) -> None:
    r = rig(kind)
    r.one(*out(UDP(sport=5000, dport=53)))
    frames = [out(UDP(sport=5000, dport=53)), (1, arp(PEER, GATEWAY, EXT)), out(UDP(sport=5000, dport=53))]
    got = r.feed(*frames)
    assert [Ether(f[1]).dst for f in got if f and f[0] == 1] == [GW, PEER, PEER]


def test_neighbour_solicitations(kind: str) -> None:
    r = Rig(kind, inside_ip6s=["2001:db8::1"], outside_ip6s=["2001:db8:1::1"])
    ns = Ether(src=HOST, dst="33:33:ff:00:00:01") / IPv6(src="2001:db8::9", dst="ff02::1:ff00:1", hlim=255)
    p = some(r.one(0, ns / ICMPv6ND_NS(tgt="2001:db8::1")))
    assert p[ICMPv6ND_NA].tgt == "2001:db8::1" and p.dst == HOST and p.src == IN_MAC and p.port == 0
    assert r.one(1, ns / ICMPv6ND_NS(tgt="2001:db8::1")) is None
    assert r.one(0, ns / UDP()) is None
    assert r.counts == {"answered": 1, "not_translatable": 2}


def test_tcp_timeouts(kind: str) -> None:
    """RFC 5382 REQ-5: established 2 h 4 min, transitory 4 min."""
    r = rig(kind)
    r.one(*out(TCP(sport=1, dport=80, flags="S")))
    r.wait(239)
    assert len(r.state.sessions) == 1
    r.wait(2)
    assert len(r.state.sessions) == len(r.state.mappings) == len(r.state.external) == 0
    connect(r)
    r.wait(7439)
    assert len(r.state.sessions) == 1
    r.wait(2)
    assert len(r.state.sessions) == 0
    for ending in ("FA", "R"):
        port = connect(r)
        r.one(*out(TCP(sport=4711, dport=80, flags=ending)))
        r.one(*back(TCP(sport=80, dport=port, flags=ending)))
        r.wait(239)
        assert len(r.state.sessions) == 1
        r.wait(2)
        assert len(r.state.sessions) == 0
    assert r.counts["expired"] == 4


def test_tcp_opens_by_syn_only_and_a_reset_is_not_believed_blindly(kind: str) -> None:
    r = rig(kind)
    for flags in ("A", "SA", "R", "FA", "SR"):
        assert r.one(*out(TCP(sport=1, dport=80, flags=flags))) is None
    assert r.counts["no_flow"] == 5 and len(r.state.sessions) == 0
    port = connect(r)
    r.feed(back(TCP(sport=80, dport=port, flags="R")), out(TCP(sport=4711, dport=80, flags="A")))
    r.wait(500)
    assert len(r.state.sessions) == 1               # traffic after the reset: still established
    r.feed(out(TCP(sport=4711, dport=80, flags="FA")), back(TCP(sport=80, dport=port, flags="FA")),
           out(TCP(sport=4711, dport=80, flags="S")), back(TCP(sport=80, dport=port, flags="SA")))
    r.wait(500)
    assert len(r.state.sessions) == 1               # closed, and opened again in the same burst


def test_udp_and_icmp_timeouts_and_refresh(kind: str) -> None:
    r = rig(kind)
    port = some(r.one(*out(UDP(sport=1, dport=53))))[UDP].sport
    r.one(*out(ICMP(type=8, id=3)))
    r.wait(62)
    assert len(r.state.sessions) == 1
    for k in range(3):
        r.wait(230)
        if k % 2:
            r.one(*back(UDP(sport=53, dport=port)))
        else:
            r.one(*out(UDP(sport=1, dport=53)))
    assert len(r.state.sessions) == 1
    r.wait(299)
    assert len(r.state.sessions) == 1
    r.wait(2)
    assert len(r.state.sessions) == 0
    assert r.one(*back(UDP(sport=53, dport=port))) is None and r.counts["no_flow"] == 1
    assert not r.state.by_port.view.any()


def test_ports_run_out_loudly_and_come_back(kind: str) -> None:
    r = rig(kind, port_lo=2000, port_hi=2009)
    got = [r.one(*out(UDP(sport=s, dport=53))) for s in range(1, 21)]
    ports = [p[UDP].sport for p in got if p is not None]
    assert sorted(ports) == list(range(2000, 2010)) and r.counts["no_ports"] == 10
    assert len(r.state.sessions) == len(r.state.mappings) == 10
    assert r.one(*out(TCP(sport=1, dport=53, flags="S"))) is not None   # TCP has ports of its own
    r.wait(301)
    assert r.one(*out(UDP(sport=30, dport=53))) is not None


def test_flows_run_out_loudly(kind: str) -> None:
    r = rig(kind, flows_max=8)
    got = [r.one(*out(UDP(sport=5000, dport=d))) for d in range(1, 21)]
    assert sum(p is not None for p in got) == 8 and r.counts["no_room"] == 12
    assert len(r.state.mappings) == 1
    r.wait(301)
    assert len(r.state.sessions) == len(r.state.mappings) == 0


def test_neighbours_run_out_loudly(kind: str) -> None:
    r = Rig(kind, neighbours_max=2, gateway=None)
    r.feed((1, arp(PEER, "198.51.100.77", EXT)), (0, arp(HOST, "10.0.0.5", "10.0.0.1")))
    assert r.one(*out(UDP(sport=1, dport=2), dst="198.51.100.78")) is None
    assert r.one(*out(UDP(sport=1, dport=2), dst=WEB)) is None          # no gateway
    assert r.one(*out(UDP(sport=1, dport=2), dst="198.51.100.77")) is not None
    assert r.counts["no_room"] == 1 and r.counts["bad_address"] == 1


@pytest.mark.parametrize("inner", ["udp", "tcp", "echo"])
def test_icmp_errors_from_outside(kind: str, inner: str) -> None:
    r = rig(kind)
    l4 = {"udp": UDP(sport=4711, dport=53) / b"question", "tcp": TCP(sport=4711, dport=80, flags="S"),
          "echo": ICMP(type=8, id=4711) / b"ping"}[inner]
    sent = some(r.one(*out(l4)))
    for cut in (28, 400):
        quote = bytes(sent[IP])[:cut]
        p = some(r.one(*back(ICMP(type=11, code=0) / Raw(quote), src="203.0.113.7")))
        assert (p.port, p.dst, p[IP].src, p[IP].dst) == (0, HOST, "203.0.113.7", "10.0.0.5")
        want = out(l4)[1][IP]
        want.ttl = 63
        assert bytes(p[ICMP])[8:] == bytes(want)[:cut]              # the host sees what it sent
    assert r.one(*back(ICMP(type=11) / Raw(bytes(sent[IP])[:27]), src="203.0.113.7")) is None
    other = IP(src=EXT, dst=WEB) / UDP(sport=9, dport=9)
    assert r.one(*back(ICMP(type=3, code=3) / Raw(bytes(other)))) is None
    broken = bytearray(bytes(back(ICMP(type=3, code=3) / Raw(bytes(sent[IP])))[1]))
    broken[-1] ^= 1
    assert r.one(1, bytes(broken)) is None
    assert r.counts["no_error_flow"] == 3 and r.counts["sent_in"] == 2


def test_icmp_errors_from_inside(kind: str) -> None:
    r = rig(kind)
    port = some(r.one(*out(UDP(sport=4711, dport=53))))[UDP].sport
    answer = back(UDP(sport=53, dport=port) / b"answer")
    got = some(r.one(*answer))
    p = some(r.one(*out(ICMP(type=3, code=3) / Raw(bytes(got[IP])))))
    assert (p.port, p.dst, p[IP].src, p[IP].dst) == (1, GW, EXT, WEB)
    want = answer[1][IP]
    want.ttl = 63
    assert bytes(p[ICMP])[8:] == bytes(want)
    assert r.one(*out(ICMP(type=3, code=3) / Raw(bytes(got[IP])), dst="203.0.113.1")) is None


def test_hairpin(kind: str) -> None:
    """RFC 4787 REQ-9: two hosts inside talk by their external endpoints, and see only those."""
    r = rig(kind, filtering="endpoint_independent")
    a = some(r.one(*out(UDP(sport=1001, dport=53))))[UDP].sport
    b = some(r.one(*out(UDP(sport=1002, dport=53), src="10.0.0.6", mac=HOST2)))[UDP].sport
    for _ in range(2):
        p = some(r.one(*out(UDP(sport=1001, dport=b) / b"hello", dst=EXT)))
        assert (p.port, p.src, p.dst) == (0, IN_MAC, HOST2)
        assert (p[IP].src, p[UDP].sport, p[IP].dst, p[UDP].dport) == (EXT, a, "10.0.0.6", 1002)
        q = some(r.one(*out(UDP(sport=1002, dport=a) / b"hello", src="10.0.0.6", dst=EXT, mac=HOST2)))
        assert (q[IP].src, q[UDP].sport, q[IP].dst, q[UDP].dport, q.dst) == (EXT, b, "10.0.0.5", 1001, HOST)
    assert r.one(*out(UDP(sport=1001, dport=b ^ 1), dst=EXT)) is None
    assert r.one(*back(UDP(sport=a, dport=b), src=EXT)) is None         # nobody outside has our address
    assert r.one(*out(ICMP(type=8, id=1), dst=EXT)) is None
    assert r.counts["hairpinned"] == 4
    r.wait(301)
    assert len(r.state.sessions) == 0


def test_fragments(kind: str) -> None:
    r = rig(kind, fragments_max=2)
    first = UDP(sport=4711, dport=53, len=1000, chksum=0x1234) / Raw(b"x" * 64)
    later = out(Raw(b"y" * 33), frag=9, id=7, proto=17)
    assert r.one(*later) is None
    p = some(r.one(*out(first, flags="MF", id=7)))
    q = some(r.one(*later))
    assert p[IP].src == q[IP].src == EXT and bytes(q[IP].payload) == b"y" * 33 and q.dst == GW and q[IP].frag == 9
    reply = UDP(sport=53, dport=p[UDP].sport, len=1000, chksum=0x1234) / Raw(b"x" * 64)
    assert some(r.one(*back(reply, flags="MF", id=8)))[IP].dst == "10.0.0.5"
    assert some(r.one(*back(Raw(b"z"), frag=9, id=8, proto=17)))[IP].dst == "10.0.0.5"
    assert r.one(*back(Raw(b"z"), frag=9, id=9, proto=17)) is None
    assert r.one(*out(first, flags="MF", id=9)) is None                 # no room to remember it
    r.wait(16)
    assert r.one(*later) is None
    assert r.counts["no_fragment"] == 3 and r.counts["no_room"] == 1 and len(r.state.fragments) == 0


def test_what_is_not_ours_or_cannot_be_is_dropped_and_changes_nothing(kind: str) -> None:
    r = rig(kind)
    before, empty = r.digest(), dict(r.counts)
    syn = TCP(sport=1, dport=80, flags="S")
    cases: dict[str, list[tuple[int, bytes | Packet]]] = {
        "not_for_us": [(0, Ether(src=HOST, dst=HOST2) / IP(src="10.0.0.5", dst=WEB) / syn),
                       (1, Ether(src=GW, dst=IN_MAC) / IP(src=WEB, dst=EXT) / syn)],
        "bad_address": [out(syn, src="10.0.1.5"), out(syn, src="10.0.0.1"), out(syn, dst="10.0.0.7"), out(syn, dst="224.0.0.1"),
                        out(syn, dst="127.0.0.1"), out(syn, dst="255.255.255.255"), out(syn, src=EXT),
                        back(syn, dst="10.0.0.5"), back(syn, dst="198.51.100.3"), back(syn, src="10.0.0.5"),
                        back(syn, src="0.0.0.0"), back(syn, src=EXT)],
        "ttl_expired": [out(syn, ttl=1), out(syn, ttl=0), back(syn, ttl=1)],
        "no_flow": [back(syn), back(UDP(sport=1, dport=5000)), back(UDP(sport=1, dport=80)), back(ICMP(type=0, id=9))],
        "not_translatable": [out(Raw(b"gre"), proto=47), out(ICMP(type=0, id=1)), out(ICMP(type=13)), back(ICMP(type=8)),
                             out(UDP(sport=0, dport=1)), out(TCP(sport=1, dport=0, flags="S")),
                             (0, Ether(src=HOST, dst=IN_MAC) / Dot1Q(vlan=1) / IP(src="10.0.0.5", dst=WEB) / syn),
                             (0, Ether(src=HOST, dst=IN_MAC) / IPv6() / UDP()), (1, Ether(type=0x88cc) / b"lldp"),
                             (5, out(syn)[1])],
        "malformed": [(0, b""), (0, bytes(out(syn)[1])[:50]), (1, b"\xff" * 12 + b"\x86\xdd"),
                      (0, bytes(arp(HOST, "10.0.0.5", "10.0.0.1"))[:40])],
        "no_error_flow": [back(ICMP(type=3) / Raw(bytes(IP(src=EXT, dst=WEB) / UDP())))],
    }
    for fate, frames in cases.items():
        for f in frames:
            assert r.feed(f) == [None], (fate, f)
        assert r.counts.pop(fate) == len(frames)
        got = r.counts
        assert {k: got[k] for k in empty} == empty
    for fate in cases:
        r.state.nat.put(fate, 0)
    assert r.digest() == before


def test_two_outside_addresses_are_paired_with_hosts(kind: str) -> None:
    r = rig(kind, outside_ips=[EXT, EXT2])
    a = {some(r.one(*out(UDP(sport=s, dport=53))))[IP].src for s in range(1, 9)}
    b = {some(r.one(*out(UDP(sport=s, dport=53), src="10.0.0.6", mac=HOST2)))[IP].src for s in range(1, 9)}
    assert a | b == {EXT, EXT2} and len(a) == len(b) == 1
    p = some(r.one(*out(UDP(sport=3, dport=53))))
    assert some(r.one(*back(UDP(sport=53, dport=p[UDP].sport), dst=p[IP].src)))[UDP].dport == 3
    wrong = EXT if p[IP].src == EXT2 else EXT2
    assert r.one(*back(UDP(sport=53, dport=p[UDP].sport), dst=wrong)) is None or r.counts["filtered"]


def test_state_survives_the_machine(kind: str) -> None:
    """A copy of the arena, a fresh app: flows go on, and mappings stay what they were."""
    r = rig(kind)
    port = connect(r)
    twin = Rig(kind)
    twin.arena.write_bytes(0, r.arena.view().tobytes())
    fresh = Rig(kind, seed=99, arena=twin.arena.__class__(fd=__import__("os").dup(twin.arena.fd)))
    fresh.ctx.now_ns = r.ctx.now_ns
    assert some(fresh.one(*back(TCP(sport=80, dport=port, flags="PA") / b"data")))[TCP].dport == 4711
    assert some(fresh.one(*out(TCP(sport=4711, dport=80, flags="A"))))[TCP].sport == port
    assert some(fresh.one(*out(TCP(sport=4711, dport=81, flags="S"))))[TCP].sport == port


def test_announcements(kind: str) -> None:
    r = Rig(kind, outside_ips=[EXT, EXT2], inside_ip6s=["2001:db8::1"])
    before = r.digest()
    assert list(r.app.announce(r.ctx)) == [
        (0, build.gratuitous_arp(IN_MAC, "10.0.0.1")), (0, build.unsolicited_na(IN_MAC, "2001:db8::1")),
        (1, build.gratuitous_arp(OUT_MAC, EXT)), (1, build.gratuitous_arp(OUT_MAC, EXT2)),
        (1, build.arp_request(OUT_MAC, EXT, GATEWAY))]
    assert r.digest() == before


def test_a_known_flow_dirties_one_line_beside_the_counters(kind: str) -> None:
    r = rig(kind)
    connect(r)
    r.ctx.now_ns += 10**9
    frames = [out(TCP(sport=4711, dport=80, flags="A")) for _ in range(32)]
    r.arena.forget_writes()
    r.feed(*frames)
    assert r.arena.dirty_lines() == 2               # the session's, and the counter's
    r.arena.forget_writes()
    r.feed(*frames)
    assert r.arena.dirty_lines() == 1


def test_a_big_mixed_burst(kind: str) -> None:
    r = rig(kind)
    frames = [out(UDP(sport=1000 + k % 40, dport=53) / (b"x" * (k % 7))) for k in range(256)]
    for _ in range(2):
        got = r.feed(*frames)
        assert all(f is not None and f[0] == 1 for f in got)
        for f in got:
            assert f is not None
            assert_checksums(f[1])
    assert r.counts["mapped"] == 40


def test_parameters_that_cannot_hold(kind: str) -> None:
    good = dict(inside_ip="10.0.0.1", outside_ips=[EXT])
    for bad in (dict(outside_ips=EXT), dict(outside_ips=[]), dict(filtering="none"), dict(port_lo=0), dict(gateway="10.9.9.9"),
                dict(inside_ip=EXT), dict(inside_mac="01:00:00:00:00:00"), dict(udp_s=0), dict(flows_max=0),
                dict(inside_prefix=31), dict(inside_ip="x"), dict(outside_ips=["10.0.0.9"])):
        with pytest.raises(ConfigError):
            apps()[kind](**{**good, **bad})
    assert NatConfig(**good).arena_bytes > 4096     # type: ignore[arg-type]
