"""The two laws of the arena, as checks that every structure's tests share."""
import numpy as np

from nfckpt.native.arena import Arena


def copy_of(arena):
    """A second arena with the same bytes: what the standby holds."""
    other = Arena(arena.size)
    other.write_bytes(0, arena.view().tobytes())
    other.forget_writes()
    return other


class Marked:
    """`with Marked(arena): ...`: every line that changed was marked, and at most `spare` lines beyond those were."""

    def __init__(self, arena, spare=None):
        self.arena, self.spare = arena, spare

    def __enter__(self):
        self.before = self.arena.view().copy()
        self.arena.forget_writes()
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            return
        self.changed = np.flatnonzero((self.arena.view() != self.before).reshape(-1, 64).any(1))
        self.marked = self.arena.dirty_line_numbers()
        assert len(self.marked) == self.arena.dirty_lines()
        assert np.isin(self.changed, self.marked).all(), "a line changed without a mark"
        if self.spare is not None:
            assert len(self.marked) <= len(self.changed) + self.spare
