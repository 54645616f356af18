"""Rewriting in place: every checksum right afterwards by scapy's own reckoning, nothing else changed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from nfckpt.errors import StateError
from nfckpt.native.burst import Burst
from nfckpt.native.headers import parse_burst
from nfckpt.native.rewrite import internet_checksum, macs, quoted, rewrite, rewrite_quoted, ttl
from tests import headers_twin
from tests.frames import A, B, corpus


def burst_of(*frames: bytes | Packet) -> Burst:
    burst = Burst()
    for f in frames:
        burst.push(bytes(f))
    parse_burst(burst)
    return burst


def rebuilt(frame: bytes) -> bytes:
    """The frame with every checksum computed again from nothing by scapy."""
    p = Ether(frame)
    layer = p
    while layer:
        for field in ("chksum", "cksum"):
            if field in layer.fields and not (isinstance(layer, UDP) and layer.chksum == 0):
                delattr(layer, field)           # not layer.fields: that leaves the cached bytes in place
        layer = layer.payload
    return bytes(p)


def packets(rng: random.Random) -> list[Packet]:
    data = Raw(rng.randbytes(rng.randrange(0, 90)))
    ip = IP(src=".".join(str(rng.randrange(256)) for _ in range(4)), dst="192.0.2.1", ttl=rng.randint(2, 255),
            id=rng.randrange(65536), options=rng.choice((b"", b"\x94\x04\0\0")))
    e = Ether(src=A, dst=B) / Dot1Q(vlan=3) if rng.random() < 0.3 else Ether(src=A, dst=B)
    s, d = rng.randrange(65536), rng.randrange(65536)
    return [e / ip / TCP(sport=s, dport=d, seq=rng.randrange(2**32)) / data, e / ip / UDP(sport=s, dport=d) / data,
            e / ip / ICMP(type=8, id=s) / data, e / ip / ICMP(type=0, id=s) / data,
            e / ip / UDP(sport=s, dport=d, chksum=0) / data]


@pytest.mark.parametrize("seed", range(4))
def test_ip4_rewrites_leave_right_checksums(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        frames = [bytes(p) for p in packets(rng)]
        b = burst_of(*frames)
        before = ttl(b).copy()
        n = len(frames)
        which: dict[str, object] = {}
        for name, top in (("src_ip", 2**32), ("dst_ip", 2**32), ("src_port", 2**16)):
            if rng.random() < 0.7:
                which[name] = (rng.randrange(top) if rng.random() < 0.3
                               else np.array([rng.choice((0, top - 1, rng.randrange(top))) for _ in range(n)]))
        rewrite(b, np.arange(n), **which, ttl_decrement=True)
        assert (ttl(b) == before - 1).all()
        for i, f in enumerate(b.frames()):
            assert f == rebuilt(f), (frames[i].hex(), which)
            row = headers_twin.parse(f)
            assert not row["malformed"]
            for name, value in which.items():
                want = int(value if isinstance(value, int) else value[i])    # type: ignore[index]
                assert row[name] == want == int(getattr(b, name)[i])
            assert row["dst_port"] == int(b.dst_port[i])


def test_wrong_checksums_stay_wrong_and_no_udp_checksum_stays_none() -> None:
    bad = bytearray(bytes(Ether(src=A, dst=B) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / b"xyz"))
    bad[-1] ^= 0x55
    none = Ether(src=A, dst=B) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2, chksum=0) / b"xyz"
    b = burst_of(bytes(bad), none)
    rewrite(b, [0, 1], src_ip=0x01020304, dst_port=9)
    assert rebuilt(b.frame(0)) != b.frame(0)
    assert Ether(b.frame(1))[UDP].chksum == 0


def test_a_udp_sum_of_zero_goes_out_as_ffff() -> None:
    """RFC 768: an incremental update that lands on 0 must not read as "no checksum"."""
    b = burst_of(Ether(src=A, dst=B) / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=0, dport=2))
    for port in range(65536):
        rewrite(b, [0], src_port=port)
        if b.frame(0)[40:42] == b"\xff\xff":
            assert rebuilt(b.frame(0)) == b.frame(0)
            return
        assert b.frame(0)[40:42] != b"\0\0"
    raise AssertionError("no port gave a sum of zero")


def test_ip6_rewrites() -> None:
    e, ip = Ether(src=A, dst=B), IPv6(src="2001:db8::1", dst="2001:db8::2", hlim=9)
    b = burst_of(e / ip / UDP(sport=1, dport=2) / b"abc", e / ip / TCP(sport=1, dport=2) / b"abcd",
                 e / ip / ICMPv6EchoRequest(id=4, data=b"q"))
    new = bytes(range(16))
    rewrite(b, slice(None), src_ip6=new, dst_ip6=np.array([new[::-1]] * 3 and [list(new[::-1])] * 3, np.uint8),
            src_port=77, ttl_decrement=True)
    for i, f in enumerate(b.frames()):
        assert f == rebuilt(f)
        assert b.src_ip6[i].tobytes() == new and Ether(f)[IPv6].hlim == 8 and headers_twin.parse(f)["src_port"] == 77


def test_macs_and_masks() -> None:
    b = burst_of(*[corpus()[0]] * 3)
    rewrite(b, np.array([True, False, True]), src_mac=bytes(6), dst_mac=np.arange(12, dtype=np.uint8).reshape(2, 6))
    assert [f[:12] for f in b.frames()] == [bytes(range(6)) + bytes(6), corpus()[0][:12], bytes(range(6, 12)) + bytes(6)]
    dst, src = macs(b)
    assert int(dst[0]) == 0x000102030405 and int(src[1]) == 0x02000000000a
    assert [f[12:] for f in b.frames()] == [corpus()[0][12:]] * 3


def test_a_later_fragment_keeps_its_payload() -> None:
    p = Ether(src=A, dst=B) / IP(src="10.0.0.1", dst="10.0.0.2", frag=3, proto=17) / Raw(bytes(range(64)))
    b = burst_of(p)
    rewrite(b, [0], src_ip=1, src_port=2)
    assert b.frame(0)[34:] == bytes(p)[34:] and b.frame(0) == rebuilt(b.frame(0))


def test_refusals_write_nothing() -> None:
    frames = [corpus()[0], corpus()[16]]
    b = burst_of(*frames)
    for bad in (dict(idx=[0, 1], src_ip=1), dict(idx=[0], src_ip=[1, 2, 3]), dict(idx=[0, 1], src_ip6=bytes(16)),
                dict(idx=np.array([True]), ttl_decrement=True)):
        with pytest.raises(StateError):
            rewrite(b, **bad)           # type: ignore[arg-type]
    for index in ([2], [-1]):
        with pytest.raises(IndexError):
            rewrite(b, index, src_port=1)
    assert b.frames() == frames


@pytest.mark.parametrize("inner", [
    IP(src="203.0.113.1", dst="10.0.0.2") / UDP(sport=4000, dport=53) / b"question",
    IP(src="203.0.113.1", dst="10.0.0.2") / UDP(sport=4000, dport=53, chksum=0) / b"question",
    IP(src="203.0.113.1", dst="10.0.0.2", options=b"\x94\x04\0\0") / TCP(sport=4000, dport=80) / b"GET",
    IP(src="203.0.113.1", dst="10.0.0.2") / ICMP(type=8, id=4000) / b"ping",
])
def test_the_packet_in_an_icmp_error(inner: Packet) -> None:
    raw = bytes(inner)
    head = (raw[0] & 15) * 4
    for cut in (head + 8, head + 18, len(raw)):
        e = Ether(src=A, dst=B) / IP(src="10.0.0.2", dst="203.0.113.1") / ICMP(type=3, code=1) / Raw(raw[:cut])
        b = burst_of(e)
        q = quoted(b, 0)
        assert q is not None and q[1] == 0xcb007101 and q[2] == 4000
        rewrite_quoted(b, 0, src_ip=0x0a090909, src_port=1234)
        assert headers_twin.ones_sum(b.frame(0)[34:]) == 0xffff            # the ICMP sum around it
        fresh = IP(raw)
        fresh.src = "10.9.9.9"
        layer = fresh.payload
        if isinstance(layer, ICMP):
            layer.id = 1234
        else:
            layer.sport = 1234
        for part, name in ((fresh, "chksum"), (layer, "chksum")):
            if not (part.name == "UDP" and part.chksum == 0):
                delattr(part, name)
        assert b.frame(0)[42:] == bytes(fresh)[:cut]
        assert quoted(b, 0) == (q[0], 0x0a090909, 1234, q[3], 1234 if q[0] == 1 else q[4])


def test_no_quote_where_there_is_none() -> None:
    ip = IP(src="10.0.0.2", dst="203.0.113.1")
    e = Ether(src=A, dst=B) / ip
    good = bytes(e / ICMP(type=3, code=1) / Raw(bytes(IP() / UDP())))
    wrong = bytearray(good)
    wrong[36] ^= 1
    frames = [e / ICMP(type=8), e / ICMP(type=3) / Raw(bytes(IP() / UDP())[:27]), bytes(wrong),
              e / ICMP(type=3) / Raw(bytes(IP(frag=1) / UDP())), e / ICMP(type=5) / Raw(bytes(IP() / UDP())),
              e / ICMP(type=3) / Raw(bytes(IP() / ICMP(type=3) / Raw(bytes(8)))), e / UDP()]
    b = burst_of(good, *frames)
    assert quoted(b, 0) is not None
    assert [quoted(b, i) for i in range(1, len(frames) + 1)] == [None] * len(frames)
    with pytest.raises(StateError):
        rewrite_quoted(b, 1, src_ip=1)


def test_internet_checksum() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xffff - 0xddf2      # RFC 1071's own example
    rng = random.Random(1)
    for n in range(70):
        data = rng.randbytes(n)
        assert internet_checksum(data) == 0xffff - headers_twin.ones_sum(data)
