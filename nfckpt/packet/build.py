"""Frames from nothing, as bytes: ARP, neighbour discovery, ICMP errors. For announcements, refusals and tests.

    ctx.send(port, build.gratuitous_arp(mac, "198.51.100.1"))

MACs are "02:00:00:00:00:01" or 6 bytes; IPv4 addresses "192.0.2.1", 4 bytes or an int; IPv6 "2001:db8::1" or 16 bytes.
Frames are not padded: the driver does that. Nothing here is for the hot path: there is native/rewrite for that.
"""

from __future__ import annotations

import socket
import struct

from nfckpt.errors import ConfigError
from nfckpt.native.rewrite import internet_checksum

__all__ = [
    "BROADCAST", "arp_reply", "arp_request", "gratuitous_arp", "icmp_error", "ip4", "ip4_int", "ip6", "mac_bytes",
    "neighbour_advert", "unsolicited_na",
]

BROADCAST = b"\xff" * 6


def mac_bytes(mac: str | bytes) -> bytes:
    """6 bytes. Raises ConfigError for anything else."""
    try:
        raw = mac if isinstance(mac, bytes) else bytes.fromhex(mac.replace(":", "").replace("-", ""))
    except ValueError:
        raw = b""
    if len(raw) != 6:
        raise ConfigError(f"{mac!r} is not a MAC address", "write it as 02:00:00:00:00:01")
    return raw


def ip4(address: str | bytes | int) -> bytes:
    """4 bytes, network order. Raises ConfigError for anything else."""
    try:
        if isinstance(address, int):
            return address.to_bytes(4, "big")
        raw = address if isinstance(address, bytes) else socket.inet_pton(socket.AF_INET, address)
    except (OSError, OverflowError):
        raw = b""
    if len(raw) != 4:
        raise ConfigError(f"{address!r} is not an IPv4 address", "write it as 192.0.2.1")
    return raw


def ip4_int(address: str | bytes | int) -> int:
    """The address as the burst's columns have it: a number, host order."""
    return int.from_bytes(ip4(address), "big")


def ip6(address: str | bytes) -> bytes:
    """16 bytes. Raises ConfigError for anything else."""
    try:
        raw = address if isinstance(address, bytes) else socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        raw = b""
    if len(raw) != 16:
        raise ConfigError(f"{address!r} is not an IPv6 address", "write it as 2001:db8::1")
    return raw


def _arp(op: int, eth_dst: bytes, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    return eth_dst + sha + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, op) + sha + spa + tha + tpa


def arp_request(mac: str | bytes, source: str | bytes | int, target: str | bytes | int) -> bytes:
    """Who has `target`? Tell `source`, at `mac`. Broadcast, 42 bytes (RFC 826)."""
    return _arp(1, BROADCAST, mac_bytes(mac), ip4(source), bytes(6), ip4(target))


def arp_reply(
    mac: str | bytes, source: str | bytes | int, to_mac: str | bytes, to: str | bytes | int
) -> bytes:
    """`source` is at `mac`; to one asker. 42 bytes (RFC 826)."""
    return _arp(2, mac_bytes(to_mac), mac_bytes(mac), ip4(source), mac_bytes(to_mac), ip4(to))


def gratuitous_arp(mac: str | bytes, address: str | bytes | int) -> bytes:
    """`address` is at `mac` now: an ARP announcement, a broadcast request for oneself (RFC 5227, 3)."""
    return arp_request(mac, address, address)


def neighbour_advert(
    mac: str | bytes, target: str | bytes, to_mac: str | bytes, to: str | bytes, *, solicited: bool = True
) -> bytes:
    """`target` is at `mac`, override set, with the target link-layer option. 86 bytes (RFC 4861, 4.4)."""
    flags = 0x60000000 if solicited else 0x20000000
    body = struct.pack("!BBHI", 136, 0, 0, flags) + ip6(target) + b"\x02\x01" + mac_bytes(mac)
    pseudo = ip6(target) + ip6(to) + struct.pack("!II", len(body), 58)
    body = body[:2] + internet_checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    head = struct.pack("!IHBB", 0x60000000, len(body), 58, 255) + ip6(target) + ip6(to)
    return mac_bytes(to_mac) + mac_bytes(mac) + b"\x86\xdd" + head + body


def unsolicited_na(mac: str | bytes, address: str | bytes) -> bytes:
    """`address` is at `mac` now: to all nodes of the link (RFC 4861, 7.2.6)."""
    return neighbour_advert(mac, address, bytes.fromhex("333300000001"), "ff02::1", solicited=False)


def icmp_error(
    frame: bytes, kind: int, code: int, source: str | bytes | int, mac: str | bytes, *, rest: int = 0, ttl: int = 64
) -> bytes:
    """An ICMP error about an untagged IPv4 `frame`, back to its sender: its header and first 8 bytes quoted (RFC 792).

    kind 3 unreachable, 11 time exceeded, 12 parameter problem. `rest` is the second word of the ICMP header
    (type 3 code 4: the next hop's MTU). Raises ConfigError where `frame` carries no whole IPv4 header.
    """
    head = (frame[14] & 15) * 4 if len(frame) > 14 and frame[12:14] == b"\x08\0" else 0
    if head < 20 or len(frame) < 14 + head:
        raise ConfigError("an ICMP error needs an IPv4 frame to quote")
    end = 14 + min(int.from_bytes(frame[16:18], "big"), head + 8)
    body = struct.pack("!BBHI", kind, code, 0, rest) + frame[14:end]
    body = body[:2] + internet_checksum(body).to_bytes(2, "big") + body[4:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0, ttl, 1, 0) + ip4(source) + frame[26:30]
    ip = ip[:10] + internet_checksum(ip).to_bytes(2, "big") + ip[12:]
    return frame[6:12] + mac_bytes(mac) + b"\x08\0" + ip + body
