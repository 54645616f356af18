"""Plain-Python twin of native/headers.pyx: slow, short, written from the RFCs, to differ from it in every test."""

from __future__ import annotations

from typing import Any


class Bad(Exception):
    pass


def need(condition: bool) -> None:
    if not condition:
        raise Bad


def u16(b: bytes, at: int = 0) -> int:
    need(len(b) >= at + 2)
    return int.from_bytes(b[at:at + 2], "big")


def ones_sum(b: bytes) -> int:
    if len(b) % 2:
        b += b"\0"
    total = sum(int.from_bytes(b[k:k + 2], "big") for k in range(0, len(b), 2))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    return total


BLANK: dict[str, Any] = dict(
    ip_version=0, frag=0, proto=0, tcp_flags=0, icmp_type=0, icmp_code=0, l4_off=0, ip_len=0, src_port=0,
    dst_port=0, src_ip=0, dst_ip=0, src_ip6=bytes(16), dst_ip6=bytes(16))


def layer4(r: dict[str, Any], body: bytes, at: int) -> None:
    r["l4_off"] = at
    proto, v = r["proto"], r["ip_version"]
    if proto == 6:
        need(len(body) >= 20)
        need(20 <= (body[12] >> 4) * 4 <= len(body))
        r["tcp_flags"] = body[13]
    elif proto == 17:
        need(len(body) >= 8)
        need(u16(body, 4) >= 8)
        need(r["frag"] == 1 or u16(body, 4) <= len(body))
    elif (proto, v) in ((1, 4), (58, 6)):
        need(len(body) >= (8 if v == 4 else 4))
        r["icmp_type"], r["icmp_code"] = body[0], body[1]
        if (v, body[0]) in ((4, 0), (4, 8), (6, 128), (6, 129)):
            need(len(body) >= 8)
            r["src_port"] = r["dst_port"] = u16(body, 4)
        return
    else:
        return
    r["src_port"], r["dst_port"] = u16(body, 0), u16(body, 2)


def ip4(r: dict[str, Any], b: bytes, at: int) -> None:
    need(len(b) >= 20 and b[0] >> 4 == 4)
    head, total = (b[0] & 15) * 4, u16(b, 2)
    need(20 <= head <= total <= len(b))
    need(ones_sum(b[:head]) == 0xffff)
    word = u16(b, 6)
    more, offset = bool(word & 0x2000), word & 0x1fff
    r.update(ip_version=4, ip_len=total, proto=b[9], src_ip=int.from_bytes(b[12:16], "big"),
             dst_ip=int.from_bytes(b[16:20], "big"))
    body = b[head:total]
    need(not more or len(body) % 8 == 0)
    need(not (more or offset) or offset * 8 + len(body) <= 65535)
    r["frag"] = 2 if offset else 1 if more else 0
    if not offset:
        layer4(r, body, at + head)


def ip6(r: dict[str, Any], b: bytes, at: int) -> None:
    need(len(b) >= 40 and b[0] >> 4 == 6)
    total = 40 + u16(b, 4)
    need(total <= len(b))
    r.update(ip_version=6, ip_len=total, src_ip6=b[8:24], dst_ip6=b[24:40])
    kind, rest = b[6], b[40:total]
    seen: list[int] = []
    while kind in (0, 43, 44, 51, 60):
        need(len(seen) < 8 and len(rest) >= 8)
        need(kind != 0 or not seen)
        need(not (kind == 44 and r["frag"]))
        seen.append(kind)
        if kind == 44:
            word, kind, rest = u16(rest, 2), rest[0], rest[8:]
            need(not word & 1 or len(rest) % 8 == 0)
            need((word & 0xfff8) + len(rest) <= 65535)
            if word & 0xfff8:
                r.update(frag=2, proto=kind)
                return
            r["frag"] = word & 1
            continue
        size = (rest[1] + 2) * 4 if kind == 51 else (rest[1] + 1) * 8
        need(size <= len(rest))
        kind, rest = rest[0], rest[size:]
    r["proto"] = kind
    if kind != 59:
        layer4(r, rest, at + total - len(rest))


def arp(r: dict[str, Any], b: bytes) -> None:
    need(len(b) >= 28 and b[:6] == bytes.fromhex("000108000604"))
    r.update(icmp_type=min(u16(b, 6), 255), src_ip=int.from_bytes(b[14:18], "big"),
             dst_ip=int.from_bytes(b[24:28], "big"))


def parse(frame: bytes) -> dict[str, Any]:
    """Every header column of one frame."""
    r: dict[str, Any] = dict(BLANK, malformed=0, eth_type=0, vlan=0xffff, l3_off=0)
    try:
        need(len(frame) >= 14)
        kind, at = u16(frame, 12), 14
        for _ in range(2):
            if kind in (0x8100, 0x88a8, 0x9100):
                need(len(frame) >= at + 4)
                if r["vlan"] == 0xffff:
                    r["vlan"] = u16(frame, at) & 0xfff
                kind, at = u16(frame, at + 2), at + 4
        r.update(eth_type=kind, l3_off=at)
        if kind == 0x0800:
            ip4(r, frame[at:], at)
        elif kind == 0x86dd:
            ip6(r, frame[at:], at)
        elif kind == 0x0806:
            arp(r, frame[at:])
    except Bad:
        r.update(BLANK, malformed=1)
    return r
