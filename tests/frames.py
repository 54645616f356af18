"""Frames for tests: one of every kind the parser knows, random ones, and mutations of them."""

from __future__ import annotations

import logging
import random
from functools import cache

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)

from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import (  # noqa: E402
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether  # noqa: E402
from scapy.packet import Packet, Raw  # noqa: E402

A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def well_formed() -> list[Packet]:
    """One scapy packet of every kind, each well formed."""
    e, i4, i6 = Ether(src=A, dst=B), IP(src="10.1.2.3", dst="198.51.100.7"), IPv6(src="2001:db8::1", dst="2001:db8::2")
    data = Raw(b"payload!" * 4)
    return [
        e / i4 / TCP(sport=1234, dport=80, flags="S", options=[("MSS", 1460)]),
        e / i4 / TCP(sport=1234, dport=80, flags="FPA") / data,
        e / i4 / UDP(sport=53, dport=5353) / data,
        e / i4 / UDP(sport=53, dport=5353, chksum=0) / data,
        e / i4 / ICMP(type=8, id=77, seq=1) / data,
        e / i4 / ICMP(type=0, id=78) / data,
        e / i4 / ICMP(type=3, code=3) / IP(src="198.51.100.7", dst="10.1.2.3") / UDP(sport=5, dport=6) / data,
        e / IP(src="10.1.2.3", dst="8.8.8.8", options=b"\x94\x04\0\0") / UDP(sport=1, dport=2) / data,
        e / IP(src="10.1.2.3", dst="8.8.8.8", flags="MF", proto=17) / UDP(sport=1, dport=2, len=400) / data,
        e / IP(src="10.1.2.3", dst="8.8.8.8", frag=5, proto=17) / data,
        e / IP(src="10.1.2.3", dst="8.8.8.8", proto=47) / data,
        e / Dot1Q(vlan=7) / i4 / UDP(sport=1, dport=2),
        Ether(src=A, dst=B, type=0x88a8) / Dot1AD(vlan=9, type=0x8100) / Dot1Q(vlan=7) / i4 / TCP(sport=1, dport=2),
        e / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / i4 / UDP(),
        e / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2"), e / ARP(op=2, psrc="10.0.0.2", pdst="10.0.0.1"),
        e / i6 / TCP(sport=9, dport=10, flags="A"), e / i6 / UDP(sport=9, dport=10) / data,
        e / i6 / ICMPv6EchoRequest(id=9), e / i6 / ICMPv6ND_NS(tgt="2001:db8::2"),
        e / i6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting(addresses=["::1"]) / UDP(sport=3, dport=4),
        e / i6 / IPv6ExtHdrFragment(offset=0, m=0, nh=17) / UDP(sport=3, dport=4),
        e / i6 / IPv6ExtHdrFragment(offset=0, m=1, nh=17) / UDP(sport=3, dport=4, len=99) / data,
        e / i6 / IPv6ExtHdrFragment(offset=8, m=1, nh=17) / data,
        e / IPv6(src="::1", dst="::2", nh=59),
        Ether(src=A, dst=B, type=0x88cc) / data,
    ]


@cache
def corpus() -> tuple[bytes, ...]:
    """The bytes of `well_formed()`, as they are and padded to 60 bytes."""
    plain = [bytes(p) for p in well_formed()]
    return tuple(plain + [f.ljust(60, b"\0") for f in plain])


def mutate(rng: random.Random, frame: bytes) -> bytes:
    """A few bytes changed, a cut, an extension, a slice repeated, or a length field that lies."""
    b = bytearray(frame)
    for _ in range(rng.randint(1, 3)):
        how = rng.randrange(6)
        if how == 0 and b:
            b[rng.randrange(len(b))] = rng.choice((0, 1, 4, 6, 0x45, 0x7f, 0xff, rng.randrange(256)))
        elif how == 1:
            del b[rng.randint(0, len(b)):]
        elif how == 2:
            b += rng.randbytes(rng.randint(1, 40))
        elif how == 3 and len(b) > 20:
            at = rng.randrange(12, len(b))
            b[at:at] = b[at:at + rng.randint(1, 16)]
        elif how == 4 and len(b) > 40:
            b[rng.randrange(12, 60) % len(b)] ^= 1 << rng.randrange(8)
        elif len(b) > 20:
            at = rng.choice((16, 17, 18, 20, 38)) % len(b)
            b[at] = rng.randrange(256)
    return bytes(b)


def fix_ip4(frame: bytes) -> bytes:
    """The same frame with a right IPv4 header checksum where one can be computed: lets mutants get further in."""
    from tests.headers_twin import ones_sum
    if len(frame) < 34 or frame[12:14] != b"\x08\0":
        return frame
    head = (frame[14] & 15) * 4
    if head < 20 or len(frame) < 14 + head:
        return frame
    b = bytearray(frame)
    b[24:26] = bytes(2)
    b[24:26] = (0xffff - ones_sum(bytes(b[14:14 + head]))).to_bytes(2, "big")
    return bytes(b)
