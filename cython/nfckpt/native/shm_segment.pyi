MAGIC: bytes
SEALS: int
RING_BYTES_MIN: int
RING_BYTES_MAX: int

class Segment:
    ring_bytes: int
    fd: int
    writable: bool
    @staticmethod
    def create(ring_bytes: int, session: bytes, role: int) -> Segment: ...
    @staticmethod
    def open(fd: int, session: bytes, role: int, ring_bytes: int) -> Segment: ...
    def close(self) -> None: ...
    @property
    def address(self) -> int: ...
