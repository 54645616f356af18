"""The witness, exhaustively: every order of questions that two nodes and their keepers can put, to depth 7."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from nfckpt.failover.witness import Question, Witness

DEPTH = 7
OTHER = {"a": "b", "b": "a"}


class History(NamedTuple):
    """What was promised so far: all that the rules speak of."""

    witness: tuple[int, str, str, tuple[tuple[str, str], ...]]
    lives: tuple[int, int]                              # of a, of b: how many processes registered
    granted: tuple[tuple[int, str, int], ...] = ()      # term, node, life
    recorded: tuple[int, str, int] = (0, "", 0)         # term, standby, its life, when last said
    void: bool = True                                   # the standing grant is: solo was granted, or nobody is recorded


def restored(state: tuple[int, str, str, tuple[tuple[str, str], ...]]) -> Witness:
    w = Witness()
    w.term, w.holder, w.standby, w.lives = *state[:3], dict(state[3])
    return w


def kept(w: Witness) -> tuple[int, str, str, tuple[tuple[str, str], ...]]:
    return w.term, w.holder, w.standby, tuple(sorted(w.lives.items()))


def questions(h: History) -> list[Question]:
    """All of them, also those that a node in its senses would not put: old terms, terms to come, a blank node's claim."""
    out = []
    for i, node in enumerate("ab"):
        out += [Question("register", node, life=f"{node}{h.lives[i]}"), Question("register", node, life=f"{node}{h.lives[i] + 1}"),
                Question("gone", node)]
        for term in range(max(1, h.witness[0] - 1), h.witness[0] + 2):
            out += [Question("protected", node, term, OTHER[node]), Question("solo", node, term), Question("claim", node, term),
                    Question("took", node, term)]
    return out


def asked(h: History, q: Question) -> History:
    """The history after one question. Asserts W1 to W4."""
    w = restored(h.witness)
    before = w.view()
    answer = w.ask(q)
    assert answer.term == w.term >= before.term, "terms only grow"
    assert (w.term <= before.term + 1 and w.holder != w.standby) or w.holder == w.standby == ""
    lives = list(h.lives)
    if q.verb == "register" and q.life != f"{q.node}{h.lives['ab'.index(q.node)]}":
        lives["ab".index(q.node)] += 1
    life = lives["ab".index(q.node)]
    granted, recorded, void = dict((t, (n, k)) for t, n, k in h.granted), h.recorded, h.void
    if answer.said == "lead" or (q.verb in ("claim", "took") and answer.said == "ok"):
        assert granted.setdefault(w.term, (q.node, life)) == (q.node, life), "W1: a term has one holder, and one process"
        if w.term > before.term:
            if q.verb == "register":                    # W3, W4: blank, and nobody who could claim
                assert before.holder in ("", q.node) and before.standby in ("", q.node)
            else:                                       # W2
                assert not void and recorded == (before.term, q.node, life), "the standing grant's owner, and before it was void"
            void = True
    if q.verb == "protected" and answer.said == "ok":
        assert granted[q.term][0] == q.node == before.holder
        recorded, void = (q.term, q.other, lives["ab".index(q.other)]), False
    if q.verb == "solo" and answer.said == "ok":
        assert granted[q.term][0] == q.node and w.term == q.term, "nobody was granted a later term"
        void = True
    return History(kept(w), (lives[0], lives[1]), tuple((t, n, k) for t, (n, k) in sorted(granted.items())), recorded, void)


def test_w1_to_w4_in_every_order_of_questions() -> None:
    seen = {History(kept(Witness()), (0, 0))}
    front = set(seen)
    for _ in range(DEPTH):
        front = {after for h in front for q in questions(h) for after in [asked(h, q)]} - seen
        seen |= front
    assert len(seen) > 5000
    assert {len(h.granted) for h in seen} >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("said_first", ["claim", "solo"])
def test_claim_and_solo_exclude_each_other(said_first: str) -> None:
    w = Witness()
    for q in (Question("register", "a", life="1"), Question("register", "b", life="2"), Question("protected", "a", 1, "b")):
        assert w.ask(q).said in ("lead", "follow", "ok")
    both = {"claim": Question("claim", "b", 2), "solo": Question("solo", "a", 1)}
    assert w.ask(both.pop(said_first)).said == "ok"
    (second,) = both.values()
    assert w.ask(second).said == "denied"


def test_a_word_that_is_none_of_its_own_is_denied() -> None:
    w = Witness()
    for verb in ("", "unknown", "crown", "ask", "_init__", "_class__"):
        assert w.ask(Question(verb, "a")).said == "denied", verb
