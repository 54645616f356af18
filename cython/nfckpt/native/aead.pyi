class Aead:
    count: int
    seals: bool
    def __init__(self, key: bytes, *, seals: bool) -> None: ...

class LibcryptoAead(Aead): ...
class PackageAead(Aead): ...

make: type[Aead]
IN_USE: str
