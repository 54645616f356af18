"""The pair's key, and what is derived from it: one secret per purpose (HKDF-SHA256, RFC 5869)."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from nfckpt.errors import ConfigError

__all__ = ["PairSecrets", "new_key"]


def new_key() -> bytes:
    """32 random bytes: the key of a new pair."""
    return os.urandom(32)


class PairSecrets:
    """`tap`: names of frames; `table`: hashing in the app's tables; `channel`: authentication between hosts;
    `check`: says that two nodes have one key, and nothing about it. 32 bytes each."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ConfigError(f"a pair's key of {len(key)} bytes", "it has 32: `nfckpt key`")
        self.tap, self.table, self.channel, self.check = (
            HKDF(hashes.SHA256(), 32, None, b"nfckpt 1 " + purpose).derive(key) for purpose in (b"tap", b"table", b"channel", b"check"))
