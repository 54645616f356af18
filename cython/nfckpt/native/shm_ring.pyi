from nfckpt.native.channel import Channel
from nfckpt.native.shm_segment import Segment

REASONS: dict[int, str]

class ShmRing(Channel):
    tx: Segment
    rx: Segment
    bells: int
    def __init__(
        self, tx: Segment, rx: Segment, *, tx_keys: bytes, rx_keys: bytes, bell_out: int = -1, pidfd: int = -1,
        sock: int = -1, message_bytes_max: int = ..., send_backlog_bytes_max: int = ...,
    ) -> None: ...
    def peer_is_gone(self) -> bool: ...
    def crumble(self, nbytes: int) -> bool: ...
