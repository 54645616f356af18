from typing import Any

import numpy as np
from numpy.typing import NDArray

COLUMNS: dict[str, str]
OWNED_: int
SEND_: int
DROP_: int
DONE_: int

class Burst:
    """Columns have shape (n,); src_ip6 and dst_ip6 have shape (n, 16)."""

    n: int
    length: NDArray[np.uint32]
    port: NDArray[np.uint8]
    ts: NDArray[np.uint64]
    key: NDArray[np.uint64]
    verdict: NDArray[np.uint8]
    out_port: NDArray[np.uint8]
    eth_type: NDArray[np.uint16]
    vlan: NDArray[np.uint16]
    ip_version: NDArray[np.uint8]
    malformed: NDArray[np.uint8]
    frag: NDArray[np.uint8]
    proto: NDArray[np.uint8]
    l3_off: NDArray[np.uint16]
    l4_off: NDArray[np.uint16]
    ip_len: NDArray[np.uint16]
    src_ip: NDArray[np.uint32]
    dst_ip: NDArray[np.uint32]
    src_port: NDArray[np.uint16]
    dst_port: NDArray[np.uint16]
    tcp_flags: NDArray[np.uint8]
    icmp_type: NDArray[np.uint8]
    icmp_code: NDArray[np.uint8]
    src_ip6: NDArray[np.uint8]
    dst_ip6: NDArray[np.uint8]
    def __init__(self, buf_bytes: int = ...) -> None: ...
    def __len__(self) -> int: ...
    def push(self, frame: bytes | bytearray | memoryview, port: int = ..., ts: int = ...) -> int: ...
    def frame(self, i: int) -> bytes: ...
    def frames(self) -> list[bytes]: ...
    def set_frame(self, i: int, frame: bytes) -> None: ...
    def reset(self) -> None: ...
    def send(self, which: Any, port: Any) -> None: ...
    def drop(self, which: Any) -> None: ...
