from nfckpt.native.function import NativeFunction
from nfckpt.native.port import Port

class Generator(Port):
    made: int
    def __init__(self, frame: bytes, limit: int = ...) -> None: ...

class LineWriter(NativeFunction):
    def __init__(self, nbytes: int = ..., out_port: int = ...) -> None: ...
