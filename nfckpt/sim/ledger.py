"""Ledger: every frame taken in once, every output left once, over any number of takeovers. Knows nothing of the app.

Picture     hosts send ─► sent      an epoch of the lead ─► open      committed, or emitted by permission ─► settled
            at the end      consumed == sent - missed          for every input, identical copies counted together
                            emitted == made                    for every output

Settled is what survives: a takeover drops what is open, a blank start waives all that was before (it was not promised).
Not lost    missed by the active's own ring (counted); unseen by the tap, until all that was sent of that frame is settled: from
            then on the tap owes the next copy again. What was sent near such a gap, if a takeover falls into it: the tap says
            `tap_gap` then, promotable and inexact (a credit of the unseen frame takes a copy, and vouches for what came before).
            with inputs shipped, on a switch: what only the dead active was sent, and its standby does not hold.
Not doubled an output which the tap's own gap hid from it, for as long as it may not yet know that it left.
Order       a replayed frame is never older than a settled one of its port by more than two skews (rule 5), unless what was settled in
            between passed the tap unseen: then nothing told it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NoReturn

__all__ = ["Copies", "Key", "Ledger"]

Key = tuple[int, bytes]         # port, frame
GAP_SKEWS = 6                   # four for which the tap says so, and what was under way at its ends


@dataclass(slots=True)
class Copies:
    """What became of one input, byte-identical copies together."""

    times: list[int] = field(default_factory=list)      # ns, when each was sent
    missed: int = 0
    unseen: int = 0
    consumed: int = 0
    waived: bool = False


class Ledger:
    """`fail(text)` raises. `skew_ns`: the most by which two taps differ."""

    def __init__(self, fail: Callable[[str], NoReturn], skew_ns: int) -> None:
        self._fail, self._skew_ns = fail, skew_ns
        self.inputs: dict[Key, Copies] = {}
        self.due: set[Key] = set()                      # inputs that still wait for their turn
        self.owed: Counter[Key] = Counter()             # settled outputs that have not left
        self.hidden: dict[Key, int] = {}                # outputs that the tap did not see, until when that excuses a second one
        self.unknowns: Counter[Key] = Counter()         # outputs that are emitted again because nobody saw whether they had left
        self._shipped: Counter[Key] = Counter()         # inputs that reached the present standby by the channel,
        self._settled: Counter[Key] = Counter()         # and what was settled since its session began
        self._gaps: deque[int] = deque(maxlen=64)       # when the tap did not see an input
        self.lead: object = None
        self._open: dict[int, tuple[list[Key], list[Key]]] = {}
        self._newest = [0] * 16
        self.consumed = self.emitted = self.doubled = 0

    # ── the segment ──────────────────────────────────────────────────────────────────────────────

    def sent(self, key: Key, now: int) -> None:
        self.inputs.setdefault(key, Copies()).times.append(now)
        self._weigh(key)

    def missed(self, key: Key) -> None:
        """The active's own ring dropped a copy."""
        if key in self.inputs:
            self.inputs[key].missed += 1
            self._weigh(key)

    def unseen(self, key: Key, until: int) -> None:
        """The tap missed a copy of an input, just sent, or an output of the active."""
        if key in self.inputs:
            self.inputs[key].unseen += 1
            self._gaps.append(self.inputs[key].times[-1])
            self._weigh(key)
        else:
            self.hidden[key] = until

    def session(self) -> None:
        """A standby was let in."""
        self._shipped.clear()
        self._settled.clear()

    def shipped(self, key: Key) -> None:
        """It got this input by the channel."""
        self._shipped[key] += 1

    def stranded(self, held: Counter[Key]) -> None:
        """The active is gone, and only it was sent the frames: what its standby does not hold died with it. It holds what it was sent
        and what is not settled."""
        for key, n in self._shipped.items():
            if held[key] < n - self._settled[key]:
                self._fail(f"input {key[1][14:21].hex()} of port {key[0]} was shipped {n} times, {self._settled[key]} are settled, and the standby holds {held[key]}")
        for key in sorted(self.due):
            c = self.inputs[key]
            c.missed = max(c.missed, len(c.times) - c.unseen - c.consumed - held[key])
            self._weigh(key)

    def unknown(self, key: Key) -> None:
        """It is emitted again; perhaps it had left."""
        self.unknowns[key] += 1

    def _weigh(self, key: Key) -> None:
        c = self.inputs[key]
        if c.consumed < len(c.times) - c.missed - c.unseen and not c.waived:
            self.due.add(key)
        else:
            self.due.discard(key)

    # ── the lead ─────────────────────────────────────────────────────────────────────────────────

    def leads(self, lead: object, blank: bool) -> None:
        self.lead = lead
        self._open.clear()
        for key in sorted(self.due):
            c = self.inputs[key]
            if any(abs(t - gap) <= GAP_SKEWS * self._skew_ns for t in c.times for gap in self._gaps):
                c.unseen = len(c.times) - c.missed - c.consumed
                self.due.discard(key)
        if blank:
            self.unknowns.clear()
            for c in self.inputs.values():
                c.waived = True
            self.due.clear()
            self.owed.clear()

    def took(self, lead: object, epoch: int, keys: Iterable[Key]) -> None:
        """The lead's app was handed these in the open epoch."""
        if lead is self.lead:
            self._open.setdefault(epoch, ([], []))[0].extend(keys)

    def made(self, lead: object, epoch: int, key: Key) -> None:
        """The lead's app gave the agent this output in the open epoch."""
        if lead is self.lead:
            self._open.setdefault(epoch, ([], []))[1].append(key)

    def settle(self, epoch: int | None = None) -> None:
        """Committed through `epoch`; None: all of it, by permission."""
        for e in [e for e in self._open if epoch is None or e <= epoch]:
            taken, made = self._open.pop(e)
            for key in taken:
                self._consume(key)
            self.owed.update(made)

    def _consume(self, key: Key) -> None:
        c = self.inputs.get(key)
        if c is None:
            return                                      # a stray, see Referee.took
        k, c.consumed = c.consumed, c.consumed + 1
        self._settled[key] += 1
        self.consumed += 1
        if c.waived:
            return
        if c.consumed > len(c.times):
            self._fail(f"input {key[1][14:21].hex()} of port {key[0]} was taken in {c.consumed} times, sent {len(c.times)} times")
        newest = self._newest[key[0]]
        if c.times[-1] < newest - 2 * self._skew_ns and not any(c.times[-1] <= gap <= newest for gap in self._gaps):
            self._fail(f"rule 5: input {key[1][14:21].hex()} was taken in {(newest - c.times[-1]) / 1e6:.1f} ms after a later one")
        self._newest[key[0]] = max(newest, c.times[k])
        if c.consumed >= len(c.times) - c.missed:
            c.unseen = 0                                # the tap must not remember what is over (rule 6)
        self._weigh(key)

    def left(self, key: Key, now: int) -> bool:
        """An output passed the fence. False: it is a second one, excused by a gap of the tap."""
        self.emitted += 1
        if self.owed[key] <= 0:
            if now < self.hidden.get(key, 0) or self.unknowns[key]:
                self.unknowns[key] -= self.unknowns[key] > 0
                self.doubled += 1
                return False
            self._fail(f"output {key[1][14:29].hex()} of port {key[0]} left without a state that survives, or twice")
        self.owed[key] -= 1
        if not self.owed[key]:
            del self.owed[key]
        return True
