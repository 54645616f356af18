"""Receipt of a takeover: what happened, what it cost, and where the time went. Printed, logged, returned as JSON.

    word or last sign ──detection──► noticed ──grant─► ──fence─► ──settle─► ──apply─► ──start─► ──reemit──► live ──replay──► done
    of the old active                                                                                          │ ──announce──► told
    └──────────────────────────────────────── steps_us["total"]: the outage as this node can know it ─────────┘

A `Draft` is begun when the new active is live and finished when nothing of the old one can still be on its way (two skews later).
A term that begins blank after another has a receipt too: it says that the state is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from nfckpt.failover.takeover import Takeover
    from nfckpt.native.tap import Tap
    from nfckpt.replica.standby import Standby

__all__ = ["Digests", "Draft", "PortCounts", "Receipt", "blank"]

STEPS = {"claim": "grant", "fence": "fence", "settle": "settle", "apply": "apply", "app": "start", "reemit": "reemit"}
"""The mark that ends a step, and the step's name, in the order of time."""


class PortCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Frames of one port. What the receipt says of all ports together has the same names."""

    port: str
    committed: int
    """Inputs that committed epochs answered for, as far as this node saw them while it followed."""
    replayed: int
    reemitted: int
    suppressed: int
    doubled: int
    lost: int


class Digests(msgspec.Struct, frozen=True, kw_only=True):
    """Keyed hashes of the 256 bytes at `offset` of the arena, which the last committed epoch carries: as the active captured them, and
    as they stood here once everything was applied. Another window each epoch; every one is compared when it comes."""

    offset: int
    active: str
    standby: str


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """All counts are frames, all times µs on the node's own clock."""

    term: int
    node: str
    reason: str
    proof: bool
    """The kernel's own word, not silence."""
    exact: bool
    """False: the tap had a gap, so loss or doubling can not be excluded; or the state is gone (`blank`)."""
    blank: bool = False
    """Nobody held the state when the term before ended: the service began anew. Nothing but the reason means anything then."""
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
    lost: int
    """Inputs that nobody answers for: `active_missed` and `stranded`."""
    active_missed: int
    """Frames the old active's ring dropped; nobody answers for them."""
    stranded: int = 0
    """input = "ship": frames that came to the dead active's device and that it never handed to its app: unread, dropped by its full ring,
    or longer than a slot."""
    tap_missed: int
    """Frames an epoch named that this tap never saw."""
    quarantined: int = 0
    """Inputs of the replay that the app did not survive: taken out, undone, written down."""
    ports: list[PortCounts]
    digests: Digests | None
    """None: no epoch was committed."""
    steps_us: dict[str, int]
    """detection (since the kernel's word, or the last sign of life), grant, fence, settle, apply, start (of the app),
    reemit (outputs that nobody saw leaving), and their sum, total: until the first frame could leave. From there, replay: until the frames
    that the old active may have had are through the app; and announce: until the segment was told where we are (0: before, input = "ship")."""


def blank(term: int, node: str) -> Receipt:
    """Of a term that follows another, with nothing of it."""
    return Receipt(term=term, node=node, reason=f"no node held the state of term {term - 1}: begun anew, its state and held outputs are gone",
                   proof=False, exact=False, blank=True, committed_epoch=0, uncommitted=0, replayed=0, reemitted=0, suppressed=0, doubled=0,
                   lost=0, active_missed=0, tap_missed=0, ports=[], digests=None, steps_us={})


class Draft:
    """`takeover.marks` has all of `STEPS`; `live_ns`: when the first frame could leave; `due_ns`: when `finish` may be called."""

    def __init__(self, takeover: Takeover, standby: Standby, tap: Tap, *, node: str, uncommitted: int, reemitted: list[int],
                 digests: Digests | None, live_ns: int, due_ns: int) -> None:
        self.takeover, self.node, self.uncommitted, self.reemitted, self.due_ns = takeover, node, uncommitted, reemitted, due_ns
        self.epoch, self.digests = standby.path.epoch, digests
        self.waiting, self.before = tap.waiting_by_port(), tap.port_counters()
        self.live_ns = live_ns
        self.exact = bool(tap.is_exact(live_ns))
        self.stranded = [0] * len(reemitted)
        at, marks = takeover.started_ns, takeover.marks
        self.steps = {"detection": (at - takeover.lost_ns) // 1000}
        self.outage_us = (live_ns - takeover.lost_ns) // 1000
        for mark, step in STEPS.items():
            self.steps[step] = (marks.get(mark, at) - at) // 1000
            at = marks.get(mark, at)

    def strand(self, frames: list[int | None]) -> None:
        """By port: frames that only the dead active received, where inputs were shipped; None: nobody can tell."""
        self.exact = self.exact and None not in frames
        self.stranded = [n or 0 for n in frames]

    def finish(self, tap: Tap, quarantined: int, replayed_ns: int, told_ns: int) -> Receipt:
        """`replayed_ns`: when the frames that the old active may have had were through the app; 0: there were none. `told_ns`: when we had
        announced ourselves; 0: we have not."""
        rows = [PortCounts(
            port=f"{i}:{port.name}", committed=was["matched"] + was["credited"], replayed=waiting, reemitted=again,
            suppressed=now["credited"] - was["credited"], doubled=now["doubled"], lost=now["active_missed"] + stranded)
            for i, (port, was, now, waiting, again, stranded) in enumerate(
                zip(tap.ports, self.before, tap.port_counters(), self.waiting, self.reemitted, self.stranded, strict=True))]
        t, stranded = self.takeover, sum(self.stranded)
        lost = sum(row.lost for row in rows)
        return Receipt(
            term=t.term, node=self.node, reason=t.reason, proof=t.proof, exact=self.exact, committed_epoch=self.epoch,
            uncommitted=self.uncommitted, quarantined=quarantined, lost=lost, active_missed=lost - stranded, stranded=stranded, tap_missed=tap.counters()["tap_missed"],
            replayed=sum(self.waiting), reemitted=sum(self.reemitted), suppressed=sum(row.suppressed for row in rows),
            doubled=sum(row.doubled for row in rows), ports=rows, digests=self.digests,
            steps_us={**self.steps, "total": self.outage_us, "replay": max(0, replayed_ns - self.live_ns) // 1000,
                      "announce": max(0, told_ns - self.live_ns) // 1000})
