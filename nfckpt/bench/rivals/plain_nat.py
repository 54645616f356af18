"""The NAT on a Python dict: what pickle_nat ships whole and redis_nat keeps elsewhere is its table."""

from __future__ import annotations

import struct
from typing import Any

from nfckpt.packet import build

__all__ = ["EXTERNAL", "GATEWAY_MAC", "OUTSIDE_MAC", "flow_of", "translate"]

EXTERNAL, OUTSIDE_MAC, GATEWAY_MAC = "198.51.100.1", "02:6e:66:00:00:02", "02:00:00:00:00:fe"
_EXTERNAL = int.from_bytes(build.ip4(EXTERNAL), "big")
_MACS = build.mac_bytes(GATEWAY_MAC) + build.mac_bytes(OUTSIDE_MAC)


def flow_of(frame: bytes) -> tuple[int, int, int]:
    """(address, port, protocol) of the host inside."""
    address, = struct.unpack_from("!I", frame, 26)
    port, = struct.unpack_from("!H", frame, 34)
    return int(address), int(port), frame[23]


def translate(frame: bytes, ext_port: int) -> bytes:
    """As it leaves: new addresses, one hop less, the header's checksum again. UDP here has no checksum (0)."""
    out = bytearray(frame)
    out[0:12] = _MACS
    out[22] -= 1
    struct.pack_into("!I", out, 26, _EXTERNAL)
    struct.pack_into("!H", out, 34, ext_port)
    out[24:26] = b"\0\0"
    words: tuple[Any, ...] = struct.unpack_from("!10H", out, 14)
    total = sum(words)
    total = (total & 0xffff) + (total >> 16)
    struct.pack_into("!H", out, 24, ~(total + (total >> 16)) & 0xffff)
    return bytes(out)
