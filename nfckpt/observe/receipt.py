"""Receipt of a takeover: what happened, what it cost, and where the time went. Printed, logged, returned as JSON."""

from __future__ import annotations

import msgspec

__all__ = ["Receipt"]


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """All counts are frames, all times µs on the node's own clock, from the moment the loss was noticed."""

    term: int
    node: str
    reason: str
    proof: bool
    """The kernel's own word, not silence."""
    exact: bool
    """False: the tap had a gap, so loss or doubling can not be excluded."""
    committed_epoch: int
    uncommitted: int
    """Inputs on the segment that no committed epoch named when the loss was noticed."""
    replayed: int
    """Inputs that no committed epoch named, run again."""
    reemitted: int
    """Committed outputs that were not seen leaving."""
    suppressed: int
    """Frames seen after the promotion that a committed epoch had already answered for."""
    doubled: int
    """Late frames of the old active, seen after their re-emission: each left twice."""
    active_missed: int
    """Frames the old active's ring dropped; nobody answers for them."""
    tap_missed: int
    """Frames an epoch named that this tap never saw."""
    blank: bool = False
    """Nobody had the state any more: the service began anew, all counts above are 0, and what the term before knew is gone."""
    quarantined: int = 0
    """Inputs of the replay that the app did not survive: taken out, undone, written down."""
    steps_us: dict[str, int]
    """detection, grant, fence, settle, apply, app, announce (with what is emitted again): each step's length; total: until the first
    frame could leave; replay: from then until the frames that the old active may have had are through the app."""

    @classmethod
    def of_loss(cls, term: int, node: str) -> Receipt:
        """`node` leads `term` blank: the term before ended and nobody was whole."""
        return cls(term=term, node=node, reason=f"nobody has the state of term {term - 1}: all of it is gone", proof=False, exact=False,
                   committed_epoch=0, uncommitted=0, replayed=0, reemitted=0, suppressed=0, doubled=0, active_missed=0, tap_missed=0,
                   blank=True, steps_us={})
