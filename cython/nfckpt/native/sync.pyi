from nfckpt.native.arena import Arena

class PageSync:
    next: int
    done: bool
    sent: int
    group: int
    group_max: int
    def __init__(self, arena: Arena, group_max: int, pause_us: int = ...) -> None: ...
    def begin(self) -> None: ...
