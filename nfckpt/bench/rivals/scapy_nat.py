"""The NAT in scapy, without any fault tolerance: the way it is often prototyped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nfckpt.bench.rivals.plain_nat import EXTERNAL, GATEWAY_MAC, OUTSIDE_MAC

__all__ = ["ScapyNat"]


class ScapyNat:
    about = "scapy, not fault tolerant"

    def __init__(self, ports: Iterator[int]) -> None:
        self._ports = ports
        self._table: dict[tuple[str, int, int], int] = {}

    def __enter__(self) -> ScapyNat:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __call__(self, burst: Sequence[bytes]) -> list[bytes]:
        return [self._one(frame) for frame in burst]

    def _one(self, frame: bytes) -> bytes:
        packet = Ether(frame)
        ip, udp = packet[IP], packet[UDP]
        flow = ip.src, udp.sport, ip.proto
        if flow not in self._table:
            self._table[flow] = next(self._ports)
        packet.src, packet.dst = OUTSIDE_MAC, GATEWAY_MAC
        ip.src, ip.ttl, udp.sport = EXTERNAL, ip.ttl - 1, self._table[flow]
        del ip.chksum
        return bytes(packet)
