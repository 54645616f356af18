from typing import Any

from nfckpt.apps.nat_plan import NatConfig
from nfckpt.native.function import NativeFunction

class NativeNat(NativeFunction):
    @property
    def config(self) -> NatConfig: ...
    def __init__(self, **parameters: Any) -> None: ...
