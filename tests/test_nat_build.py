"""Built frames, against scapy."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from nfckpt.errors import ConfigError
from nfckpt.packet import build
from tests.frames import A, B


def test_arp() -> None:
    ask = Ether(src=A, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=A, psrc="10.0.0.1", hwdst="00:00:00:00:00:00", pdst="10.0.0.2")
    assert build.arp_request(A, "10.0.0.1", "10.0.0.2") == bytes(ask)
    answer = Ether(src=A, dst=B) / ARP(op=2, hwsrc=A, psrc="10.0.0.1", hwdst=B, pdst="10.0.0.2")
    assert build.arp_reply(A, "10.0.0.1", B, 0x0a000002) == bytes(answer)
    p = Ether(build.gratuitous_arp(A, "10.0.0.1"))
    assert p.dst == "ff:ff:ff:ff:ff:ff" and p[ARP].psrc == p[ARP].pdst == "10.0.0.1" and p[ARP].hwsrc == A


def test_neighbour_adverts() -> None:
    opt = ICMPv6NDOptDstLLAddr(lladdr=A)
    for solicited in (True, False):
        want = (Ether(src=A, dst=B) / IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=255)
                / ICMPv6ND_NA(R=0, S=solicited, O=1, tgt="2001:db8::1") / opt)
        assert build.neighbour_advert(A, "2001:db8::1", B, "2001:db8::2", solicited=solicited) == bytes(want)
    want = (Ether(src=A, dst="33:33:00:00:00:01") / IPv6(src="2001:db8::1", dst="ff02::1", hlim=255)
            / ICMPv6ND_NA(R=0, S=0, O=1, tgt="2001:db8::1") / opt)
    assert build.unsolicited_na(A, "2001:db8::1") == bytes(want)


@pytest.mark.parametrize("kind, code, rest", [(11, 0, 0), (3, 4, 1400)])
def test_icmp_errors(kind: int, code: int, rest: int) -> None:
    for inner in (IP(src="10.0.0.9", dst="8.8.8.8") / UDP(sport=1, dport=2) / b"data data data",
                  IP(src="10.0.0.9", dst="8.8.8.8", options=b"\x94\x04\0\0") / TCP(),
                  IP(src="10.0.0.9", dst="8.8.8.8", proto=99)):
        frame = bytes(Ether(src=A, dst=B) / inner).ljust(60, b"\0")
        raw = bytes(inner)
        want = (Ether(src=B, dst=A) / IP(src="10.0.0.1", dst="10.0.0.9", ttl=64, id=0, tos=0xc0)
                / ICMP(type=kind, code=code, unused=rest, nexthopmtu=rest) / raw[:(raw[0] & 15) * 4 + 8])
        got = build.icmp_error(frame, kind, code, "10.0.0.1", B, rest=rest)
        assert got == bytes(want)


def test_refusals() -> None:
    for bad in ("02:00", "xx", b"12345"):
        with pytest.raises(ConfigError):
            build.mac_bytes(bad)
    for address in ("10.0.0", b"123", 1 << 32, -1):
        with pytest.raises(ConfigError):
            build.ip4(address)      # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        build.ip6("10.0.0.1")
    with pytest.raises(ConfigError):
        build.icmp_error(b"\0" * 20, 3, 1, "10.0.0.1", A)
