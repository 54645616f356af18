"""Witness: hands out terms, one at a time, to one node each. Sans-I/O; a named detached Ray actor or a local runner carries it.

Rules       W1 A term is granted to one node, once, and terms only grow: also past one that was taken on proof while nobody was heard.
               Who registers, or is gone, says so (`term`: the last its keeper saw the node take or lead).
            W2 Only the node recorded as `standby` of the current term may claim the next one. It is recorded when the
               active says that it is whole, and struck out when the active is allowed to go solo: whichever comes first wins.
            W3 A pair without holder is led by the first node that registers; it starts blank.
            W4 A holder that is gone and has a standby is not replaced by a blank node: the standby claims.
            W5 A process that asks again to be registered, because no answer came in time, is not taken for a new, blank one.
            W6 A claim is under way until the claimant says that it `took`: the active of before can emit no more, itself is about to.
               Until then that `former` is not forgotten, which may be merely stopped and have the only state: while it is not
               known to be gone nobody leads blank, and should the claimant be gone, it is given the term after. (Profile hosts,
               where the claimant waits for the answer to `took`, before it emits: also at once, `reclaim`. Whichever comes first.)
            W7 Where the replication link can be cut, a standby says `suspect` before it claims. That changes nothing here: whoever
               carries our answers tells the holder too, and one that lives asks to go solo. So of two that live the active goes on.
            W8 A restarted witness knows no term and answers `wait` until both nodes have said `here`, or an operator forces it; who
               leads, and who is recorded, it takes from them. A node's first `here` may have been said before an answer of our
               predecessor reached it, so only one that repeats our mark (`number`) counts.

Picture     register(a) → lead(1)      register(b) → follow(a)      protected(1, a, b) → ok: b may claim 2
            solo(1, a) → ok: b struck out          or          claim(2, b) → ok: a's solo(1) has to wait
                                                               took(2, b) → ok: a's solo(1) is denied from now on
                                                               or gone(b), solo(1, a) → ok, a leads on in term 3

            restarted: here(a, leads 4 with b) → wait, mark 9      here(b) → wait, mark 9      both again, with mark 9 → ok: term 4
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

__all__ = ["Answer", "Question", "Witness", "WitnessView"]


VERBS = frozenset({"register", "protected", "solo", "reclaim", "suspect", "claim", "took", "gone", "view", "here"})
TERM_MAX = 1 << 31
TO_ALL = frozenset({"register", "here", "gone", "view"})        # answered by a restarted witness too


class Question(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a node (or its keeper) asks. `verb`: one of VERBS."""

    verb: str
    node: str
    term: int = 0
    other: str = ""             # protected: the standby; here: the recorded one, by who leads
    life: str = ""              # register: of this process and no other
    number: int = 0             # comes back in the answer: of which session the asker spoke; here: the witness's mark
    leads: bool = False         # here: the asker is the active of `term`


class Answer(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`said`: lead, follow, ok, denied, wait (no answer yet: ask again)."""

    verb: str
    said: str
    term: int
    holder: str = ""
    number: int = 0


class WitnessView(msgspec.Struct, frozen=True):
    term: int
    holder: str
    standby: str
    missing: tuple[str, ...] = ()
    """Nodes that a restarted witness has not heard yet: it grants nothing before."""
    former: str = ""
    """Who led until the holder claimed; it may lead on until the holder took the term."""

    @property
    def leads(self) -> str:
        """Who leads now, for all we know; "" before anybody does."""
        return self.former or self.holder


class Witness:
    """State of one pair's terms. `ask(question)` answers it; every rule is in this one function's branches.

    After a restart, which lost all of that: `missing` names both nodes, and `mark` is a number above 0 that no predecessor had.
    """

    def __init__(self, missing: Iterable[str] = (), mark: int = 0) -> None:
        self.term = 0
        self.holder = ""
        self.standby = ""
        self.former = ""                        # whose term was claimed, and not yet taken
        self.passed = 0                         # the last term that somebody led, as far as was heard
        self.back = -1                          # the holder's own term, until it hears that it was given a later one
        self.lives: dict[str, str] = {}         # node -> the process that registered last
        self.missing = set(missing)
        self.mark = mark

    def view(self) -> WitnessView:
        return WitnessView(self.term, self.holder, self.standby, tuple(sorted(self.missing)), self.former)

    def ask(self, q: Question) -> Answer:
        """Answer one question. Unknown verbs are denied."""
        if q.verb not in VERBS:
            said = "denied"
        elif self.missing and q.verb not in TO_ALL:
            said = "wait"
        else:
            said = getattr(self, f"_{q.verb}")(q)
        return Answer(q.verb, said, self.term, self.holder, self.mark if q.verb == "here" else q.number)

    def force(self) -> None:
        """An operator's word that the nodes we still wait for are dead, and hold nothing of an earlier term."""
        self.missing.clear()

    def _here(self, q: Question) -> str:
        if q.node in self.missing and q.number == self.mark:
            self.missing.discard(q.node)
            if q.leads and q.term > self.term:
                # one that registered with us since is blank
                self.term, self.holder, self.standby = q.term, q.node, "" if q.other in self.lives else q.other
        return "wait" if self.missing else "ok"

    def _register(self, q: Question) -> str:
        if not q.life or self.lives.get(q.node) != q.life:
            self._gone(q)                       # a process that registers is blank: what it was is lost
        self.lives[q.node] = q.life
        self.missing.discard(q.node)            # and holds nothing
        if self.missing:
            return "wait"
        if self.holder == q.node:
            return "lead"
        if self.holder or self.standby or self.former:
            return "follow"
        self.term, self.holder, self.back = max(self.term, self.passed) + 1, q.node, -1
        return "lead"

    def _protected(self, q: Question) -> str:
        if (q.term, q.node) != (self.term, self.holder) or not q.other or q.other == q.node:
            return "denied"
        self.standby = q.other
        return "ok"

    def _solo(self, q: Question) -> str:
        if (q.term, q.node) == (self.term - 1, self.former):
            if self.holder and q.verb == "solo":
                return "wait"                   # the claimant lives, for all we know, and may take it without asking again
            self.term, self.holder, self.former, self.back = self.term + 1, q.node, "", q.term
        elif q.node != self.holder or q.term not in (self.term, self.back):
            return "denied"
        self.standby = ""
        return "ok"

    _reclaim = _solo

    def _suspect(self, q: Question) -> str:
        return "ok" if (q.node, q.term) == (self.standby, self.term + 1) else "denied"

    def _claim(self, q: Question) -> str:
        if q.node == self.holder and q.term == self.term:
            return "ok"                         # asked again: the answer was lost
        if q.node != self.standby or q.term != self.term + 1:
            return "denied"
        self.term, self.holder, self.standby, self.former, self.back = q.term, q.node, "", self.holder, -1
        return "ok"

    def _took(self, q: Question) -> str:
        """Without a claim: a takeover on proof, with the standing grant, is reported, and judged like one."""
        said = self._claim(q)
        if said == "ok":
            self.former = ""
        return said

    def _gone(self, q: Question) -> str:
        """The node's keeper saw its process end."""
        if q.term <= (self.term + 1 if self.term else TERM_MAX):        # a node takes one term unheard at most
            self.passed = max(self.passed, q.term)
        if q.node == self.standby:
            self.standby = ""
        if q.node == self.holder:
            self.holder = ""
        if q.node == self.former:
            self.former = ""
        return "ok"

    def _view(self, q: Question) -> str:
        return "ok"
