"""Values: a small map for configuration and other slow-path facts, one MessagePack blob in the arena.

Picture     | stamp u64 | generation u64 | length u32 | ... pad to 64 | blob, at most max_bytes |

    settings = state.values("settings", max_bytes=4096)
    settings["allow"] = ["10.0.0.0/8"]          # encodes the whole map; one write of at most max_bytes
    settings["allow"]                           # decodes: a copy. Changing it in place changes nothing; assign again

Promises    V1 a map that would not fit raises StateError and leaves the old content.
            V2 `generation` grows by one with each change; a reader that remembers it knows when to look again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, MutableMapping
from typing import Any

import msgspec

from nfckpt.errors import StateError
from nfckpt.native.arena import Arena
from nfckpt.native.structure import Structure

__all__ = ["Values"]

HEAD = struct.Struct("<QI")     # generation, length; after the stamp


class Values(Structure, MutableMapping[str, Any]):
    """dict of str -> None, bool, int (64 bits), float, str, bytes, list, dict; made by `State.values`."""

    def __init__(self, arena: Arena, name: str, *, max_bytes: int = 4096) -> None:
        if not 64 <= max_bytes <= 1 << 20:
            raise StateError(f"values {name!r}: max_bytes {max_bytes}", "64 to 1048576")
        self.max_bytes = max_bytes
        self.declare(arena, name, "values", f"max_bytes={max_bytes}", 64 + max_bytes)

    def _head(self) -> tuple[int, int]:
        generation, length = HEAD.unpack_from(self.arena.view().data, self.offset + 8)
        return generation, length

    @property
    def generation(self) -> int:
        """Changes so far."""
        return self._head()[0]

    def as_dict(self) -> dict[str, Any]:
        """The whole map, decoded: a copy."""
        length = self._head()[1]
        if length == 0:
            return {}
        blob = self.arena.view()[self.offset + 64 : self.offset + 64 + length]
        return msgspec.msgpack.decode(blob.tobytes(), type=dict[str, Any])

    def replace(self, content: dict[str, Any]) -> None:
        """The map becomes `content`. Raises StateError when it is too large or cannot be encoded."""
        if not all(isinstance(k, str) for k in content):
            raise StateError(f"values {self.name!r}: keys {list(content)!r:.80}", "keys are strings")
        try:
            blob = msgspec.msgpack.encode(content)
        except (TypeError, ValueError, OverflowError, RecursionError) as e:
            raise StateError(f"values {self.name!r}: {e}", "None, bool, int, float, str, bytes, list, dict") from None
        if len(blob) > self.max_bytes:
            raise StateError(
                f"values {self.name!r}: {len(blob)} bytes do not fit into {self.max_bytes}", "raise max_bytes or store less"
            )
        self.arena.write_bytes(self.offset + 64, blob)
        self.arena.write_bytes(self.offset + 8, HEAD.pack(self.generation + 1, len(blob)))

    def __getitem__(self, key: str) -> Any:
        return self.as_dict()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.replace({**self.as_dict(), key: value})

    def __delitem__(self, key: str) -> None:
        content = self.as_dict()
        del content[key]
        self.replace(content)

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_dict())

    def __len__(self) -> int:
        return len(self.as_dict())

    @property
    def fill(self) -> float:
        return self._head()[1] / self.max_bytes
