"""Plain-Python twin of digest.pxd."""

from __future__ import annotations

import struct
from collections.abc import Sequence

M64 = (1 << 64) - 1


def fold(a: int, b: int) -> int:
    product = a * b
    return product & M64 ^ product >> 64


def nf_hash(k: Sequence[int], seed: int, data: bytes) -> int:
    h = fold(seed ^ k[0], len(data) ^ k[1])
    g = h ^ k[3]
    at, left = 0, len(data)
    if left >= 128:
        c, d = h ^ k[2], h ^ k[1]
        while left >= 64:
            w = struct.unpack_from("<8Q", data, at)
            h, g = fold(w[0] ^ k[1], w[1] ^ h), fold(w[2] ^ k[2], w[3] ^ g)
            c, d = fold(w[4] ^ k[3], w[5] ^ c), fold(w[6] ^ k[0], w[7] ^ d)
            at, left = at + 64, left - 64
        h, g = fold(h ^ k[0], c ^ k[3]), fold(g ^ k[1], d ^ k[2])
    while left > 0:
        block = data[at:at + 32] if left >= 32 else data[-32:].ljust(32, b"\0")
        w = struct.unpack("<4Q", block)
        h, g = fold(w[0] ^ k[1], w[1] ^ h), fold(w[2] ^ k[2], w[3] ^ g)
        at, left = at + 32, left - 32
    return fold(h ^ k[2], g ^ k[3])
