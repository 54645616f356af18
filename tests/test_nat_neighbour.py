"""Answers in place of their questions, against the builders (which scapy has checked)."""

from __future__ import annotations

import random

import pytest
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from nfckpt.native.burst import Burst
from nfckpt.native.headers import parse_burst
from nfckpt.native.neighbour import answer_arp, answer_solicitation, ask_arp, sender_mac
from nfckpt.packet import build
from tests import headers_twin
from tests.frames import A, B, corpus, mutate

MAC = int.from_bytes(build.mac_bytes(B), "big")


def burst_of(*frames: bytes | Packet) -> Burst:
    burst = Burst()
    for f in frames:
        burst.push(bytes(f))
    parse_burst(burst)
    return burst


def test_arp_reply() -> None:
    ask = Ether(src=A, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=A, psrc="10.0.0.9", pdst="10.0.0.1")
    b = burst_of(ask, bytes(ask).ljust(60, b"\0"), Ether(src=A) / Dot1Q(vlan=5) / ask.payload, corpus()[0])
    for i in range(3):
        assert sender_mac(b, i) == 0x02000000000a
        answer_arp(b, i, MAC)
    want = build.arp_reply(B, "10.0.0.1", A, "10.0.0.9")
    assert b.frame(0) == want and b.frame(1) == want.ljust(60, b"\0") and b.frame(2)[18:] == want[14:]
    assert b.frame(3) == corpus()[0] and b.icmp_type[0] == 2 and b.src_ip[0] == 0x0a000001
    for i in (0, 3):
        with pytest.raises(ValueError):
            answer_arp(b, i, MAC)


def test_arp_request_in_the_place_of_a_packet() -> None:
    b = burst_of(corpus()[0], corpus()[8], bytes(20))
    for i in range(3):
        assert ask_arp(b, i, MAC, 0x0a000001, 0x0a000009)
        assert b.frame(i) == build.arp_request(B, "10.0.0.1", "10.0.0.9")
    b = burst_of(b"")
    assert not ask_arp(b, 0, MAC, 1, 2) and b.frame(0) == b""


def test_neighbour_advertisement() -> None:
    ours = build.ip6("2001:db8::1") + build.ip6("fe80::1")
    e = Ether(src=A, dst="33:33:ff:00:00:01")
    ns = IPv6(src="2001:db8::9", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt="fe80::1")
    opt = ns / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:77")
    dad = IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt="2001:db8::1")
    b = burst_of(e / ns, e / opt, e / dad)
    assert all(answer_solicitation(b, i, MAC, ours) for i in range(3))
    assert b.frame(0) == build.neighbour_advert(B, "fe80::1", A, "2001:db8::9")
    assert b.frame(1) == build.neighbour_advert(B, "fe80::1", "02:00:00:00:00:77", "2001:db8::9")
    assert b.frame(2) == build.unsolicited_na(B, "2001:db8::1")
    assert [headers_twin.parse(f)["malformed"] for f in b.frames()] == [0, 0, 0] and list(b.icmp_type) == [136] * 3


def test_invalid_solicitations_are_left_alone() -> None:
    ours = build.ip6("2001:db8::1")
    e, ip = Ether(src=A, dst="33:33:ff:00:00:01"), IPv6(src="2001:db8::9", dst="ff02::1:ff00:1", hlim=255)
    ns = ICMPv6ND_NS(tgt="2001:db8::1")
    bad = [e / IPv6(src="2001:db8::9", dst="ff02::1:ff00:1", hlim=254) / ns, e / ip / ICMPv6ND_NS(tgt="2001:db8::2"),
           e / ip / ICMPv6ND_NS(tgt="2001:db8::1", code=1), e / ip / ICMPv6ND_NS(tgt="2001:db8::1", cksum=1),
           e / ip / ns / Raw(b"\1\0" + bytes(6)), e / ip / ns / Raw(b"\1\2" + bytes(6)), e / ip / ns / Raw(b"\1\1\0"),
           e / IPv6(src="::", dst="ff02::1:ff00:1", hlim=255) / ns / ICMPv6NDOptSrcLLAddr(lladdr=A)]
    b = burst_of(*bad)
    assert not any(answer_solicitation(b, i, MAC, ours) for i in range(len(bad)))
    assert b.frames() == [bytes(f) for f in bad]
    rng = random.Random(4)
    good = bytes(e / ip / ns / ICMPv6NDOptSrcLLAddr(lladdr=A))
    for _ in range(2000):
        f = mutate(rng, good)
        b = burst_of(f, good)
        if not answer_solicitation(b, 0, MAC, ours):
            assert b.frame(0) == f
        assert b.frame(1) == good
