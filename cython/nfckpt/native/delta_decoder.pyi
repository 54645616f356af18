from nfckpt.native.arena import Arena
from nfckpt.native.tap import Tap

FAULTS: tuple[str, ...]

class DeltaDecoder:
    record_bytes_max: int
    def __init__(self, secret: bytes, record_bytes_max: int = ...) -> None: ...
    def decode_record(self, data: memoryview | bytes | bytearray, arena: Arena, tap: Tap, n_ports: int) -> bytearray | None: ...
    def follow_record(self, record: memoryview | bytearray) -> None: ...
