"""The header parser against its twin, against scapy, and against noise."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether

from nfckpt.native.burst import Burst
from nfckpt.native.headers import parse_burst
from tests import headers_twin
from tests.frames import corpus, fix_ip4, mutate, well_formed

SMALL = ("malformed", "eth_type", "vlan", "l3_off", "ip_version", "frag", "proto", "tcp_flags", "icmp_type",
         "icmp_code", "l4_off", "ip_len", "src_port", "dst_port", "src_ip", "dst_ip")


def columns(b: Burst, i: int) -> dict[str, Any]:
    row: dict[str, Any] = {name: int(getattr(b, name)[i]) for name in SMALL}
    return dict(row, src_ip6=b.src_ip6[i].tobytes(), dst_ip6=b.dst_ip6[i].tobytes())


def check(frames: list[bytes]) -> int:
    """Differential check of `frames`; returns how many were well formed."""
    good = 0
    burst = Burst()
    for start in range(0, len(frames), 50):
        part = frames[start:start + 50]
        burst.reset()
        for f in part:
            burst.push(f)
        parse_burst(burst)
        for i, f in enumerate(part):
            want = headers_twin.parse(f)
            assert columns(burst, i) == want, f.hex()
            good += not want["malformed"]
        assert burst.frames() == part
    return good


def test_well_formed_frames_parse_like_the_twin_and_none_is_malformed() -> None:
    assert check(list(corpus())) == len(corpus())


def test_every_truncation() -> None:
    """A frame cut anywhere before its IP length is malformed, and the parser agrees with the twin at every cut."""
    for f in corpus():
        check([f[:k] for k in range(len(f))])


@pytest.mark.parametrize("seed", range(6))
def test_mutations(seed: int) -> None:
    rng = random.Random(seed)
    frames = [mutate(rng, rng.choice(corpus())) for _ in range(4000)]
    good = check([fix_ip4(f) if k % 2 else f for k, f in enumerate(frames)])
    assert 400 < good < 3800


def test_noise() -> None:
    rng = random.Random(7)
    frames = [rng.randbytes(rng.randrange(0, 120)) for _ in range(2000)]
    kinds = (b"\x08\0E", b"\x08\0F", b"\x86\xdd`", b"\x81\0", b"\x08\6\0\1\x08\0\6\4")
    frames += [fix_ip4(rng.randbytes(12) + rng.choice(kinds) + rng.randbytes(rng.randrange(100))) for _ in range(4000)]
    check(frames)


def test_no_byte_outside_the_frame_is_read() -> None:
    """H1, H3: what lies around a frame in the buffer cannot change its columns."""
    rng = random.Random(3)
    burst = Burst()
    for _ in range(1500):
        f = fix_ip4(mutate(rng, rng.choice(corpus())))
        rows = []
        for noise in (b"\0", b"\xff", b"\x45"):
            burst.reset()
            burst.push(noise * (len(f) + 200))        # the same buffer bytes first hold noise
            burst.reset()
            burst.push(f)
            parse_burst(burst)
            rows.append(columns(burst, 0))
        assert rows[0] == rows[1] == rows[2], f.hex()


def test_first_leaves_earlier_frames_alone() -> None:
    burst = Burst()
    burst.push(corpus()[0])
    parse_burst(burst)
    before = columns(burst, 0)
    burst.set_frame(0, b"\xff" * 60)
    burst.push(corpus()[2])
    parse_burst(burst, 1)
    assert columns(burst, 0) == before and burst.proto[1] == 17
    with pytest.raises(IndexError):
        parse_burst(burst, -1)


def test_scapy_agrees_on_well_formed_frames() -> None:
    burst = Burst()
    seen = 0
    for p in well_formed():
        burst.reset()
        raw = bytes(p)
        burst.push(raw)
        parse_burst(burst)
        again = Ether(raw)
        row = columns(burst, 0)
        if ARP in again:
            assert (row["icmp_type"], row["src_ip"]) == (again[ARP].op, int.from_bytes(raw[28:32], "big"))
        for layer, version in ((IP, 4), (IPv6, 6)):
            if row["ip_version"] == version:
                assert layer in again and again[layer].version == version
        if row["ip_version"] == 4 and row["frag"] != 2:
            for layer in (TCP, UDP):
                if layer in again and ICMP not in again:
                    assert (row["src_port"], row["dst_port"]) == (again[layer].sport, again[layer].dport)
                    seen += 1
            if ICMP in again:
                assert (row["icmp_type"], row["icmp_code"]) == (again[ICMP].type, again[ICMP].code)
    assert seen >= 8


def test_a_wrong_ip_checksum_is_malformed() -> None:
    f = bytearray(corpus()[0])
    f[24] ^= 1
    burst = Burst()
    burst.push(bytes(f))
    parse_burst(burst)
    assert burst.malformed[0] == 1 and burst.ip_version[0] == 0 and burst.src_ip[0] == 0


def test_a_full_burst_parses() -> None:
    burst = Burst()
    for _ in range(256):
        burst.push(corpus()[0])
    parse_burst(burst)
    assert np.all(burst.dst_port == 80) and len(burst.dst_port) == 256
