from nfckpt.native.aead import Aead
from nfckpt.native.channel import Channel

REASONS: dict[int, str]

class TcpChannel(Channel):
    def __init__(
        self, fd: int, tx: Aead, rx: Aead, *, message_bytes_max: int, send_backlog_bytes_max: int,
    ) -> None: ...
    def prove(self, transcript: bytes) -> None: ...
    def proven(self, transcript: bytes) -> bool: ...
