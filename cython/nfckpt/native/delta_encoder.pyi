from nfckpt.native.arena import Arena
from nfckpt.native.kept_inputs import KeptInputs

class DeltaEncoder:
    kept: KeptInputs
    from_inputs: bool
    frame_bytes: int
    state_bytes: int
    plain_records: int
    def __init__(self, arena: Arena, secret: bytes, names: int, outputs: int) -> None: ...
    def restart(self) -> None: ...
    def encode_record(self, record: memoryview | bytearray, n_ports: int) -> bytes: ...
