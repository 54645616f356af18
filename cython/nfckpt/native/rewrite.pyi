from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nfckpt.native.burst import Burst

def rewrite(
    burst: Burst,
    idx: Any,
    src_ip: ArrayLike | None = None,
    dst_ip: ArrayLike | None = None,
    src_port: ArrayLike | None = None,
    dst_port: ArrayLike | None = None,
    src_mac: bytes | ArrayLike | None = None,
    dst_mac: bytes | ArrayLike | None = None,
    *,
    src_ip6: bytes | ArrayLike | None = None,
    dst_ip6: bytes | ArrayLike | None = None,
    ttl_decrement: bool = False,
) -> None: ...
def rewrite_one(
    burst: Burst,
    i: int,
    *,
    src_ip: int | None = None,
    dst_ip: int | None = None,
    src_port: int | None = None,
    dst_port: int | None = None,
    src_mac: int | None = None,
    dst_mac: int | None = None,
    ttl_decrement: bool = False,
) -> None: ...
def ttl(burst: Burst) -> NDArray[np.uint8]: ...
def macs(burst: Burst) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]: ...
def quoted(burst: Burst, i: int) -> tuple[int, int, int, int, int] | None: ...
def rewrite_quoted(
    burst: Burst,
    i: int,
    *,
    src_ip: int | None = None,
    dst_ip: int | None = None,
    src_port: int | None = None,
    dst_port: int | None = None,
) -> None: ...
def internet_checksum(data: bytes | bytearray | memoryview) -> int: ...
