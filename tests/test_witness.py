"""The witness, exhaustively: every order of questions that two nodes and their keepers can put, to depth 7."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
import pytest

from nfckpt.failover.vigil import Vigil
from nfckpt.failover.witness import Answer, Question, Witness, WitnessView
from nfckpt.replica.effects import Ask, Event

DEPTH = 7
OTHER = {"a": "b", "b": "a"}
HERE_A, HERE_B = Question("here", "a", 4, "b", leads=True), Question("here", "b", 4)


Kept = tuple[int, str, str, str, int, int, tuple[tuple[str, str], ...]]


class History(NamedTuple):
    """What was promised so far: all that the rules speak of."""

    witness: Kept
    lives: tuple[int, int]                              # of a, of b: how many processes registered
    granted: tuple[tuple[int, str, int], ...] = ()      # term, node, life
    recorded: tuple[int, str, int] = (0, "", 0)         # term, standby, its life, when last said
    void: bool = True                                   # the standing grant is: solo was granted, or nobody is recorded
    doubt: tuple[int, str, int] = (0, "", 0)            # term, node, its life: claimed, not taken, and not known to be gone


def restored(state: Kept) -> Witness:
    w = Witness()
    w.term, w.holder, w.standby, w.former, w.back, w.passed, w.lives = *state[:6], dict(state[6])
    return w


def kept(w: Witness) -> Kept:
    return w.term, w.holder, w.standby, w.former, w.back, w.passed, tuple(sorted(w.lives.items()))


def questions(h: History) -> list[Question]:
    """All of them, also those that a node in its senses would not put: old terms, terms to come, a blank node's claim."""
    out = []
    for i, node in enumerate("ab"):
        out += [Question("register", node, life=f"{node}{h.lives[i]}"), Question("register", node, life=f"{node}{h.lives[i] + 1}"),
                Question("gone", node)]
        if h.witness[2] == node:                # recorded: it led in the next term on proof, and nobody heard of it
            out += [Question("register", node, h.witness[0] + 1, life=f"{node}{h.lives[i] + 1}"), Question("gone", node, h.witness[0] + 1)]
        for term in range(max(1, h.witness[0] - 2), h.witness[0] + 2):
            out += [Question("suspect", node, term), Question("here", node, term, OTHER[node], leads=True),
                    Question("protected", node, term, OTHER[node]), Question("solo", node, term), Question("reclaim", node, term),
                    Question("claim", node, term),
                    Question("took", node, term)]
    return out


def asked(h: History, q: Question) -> History:
    """The history after one question. Asserts W1 to W4, W6."""
    w = restored(h.witness)
    before = w.view()
    answer = w.ask(q)
    assert answer.term == w.term >= before.term, "terms only grow"
    assert (w.term <= max(before.term, w.passed) + 1 and w.holder != w.standby) or w.holder == w.standby == ""
    lives = list(h.lives)
    if q.verb == "register" and q.life != f"{q.node}{h.lives['ab'.index(q.node)]}":
        lives["ab".index(q.node)] += 1
    life = lives["ab".index(q.node)]
    granted, recorded, void, doubt = dict((t, (n, k)) for t, n, k in h.granted), h.recorded, h.void, h.doubt
    if doubt[1] == q.node and (q.verb == "gone" or (q.verb == "register" and restored(h.witness).lives.get(q.node) != q.life)):
        doubt = (0, "", 0)
    back = q.verb in ("solo", "reclaim") and answer.said == "ok" and w.term > before.term
    if back:                                            # W6
        assert doubt == (q.term, q.node, life) and q.term == before.term - 1, "it was the claimed one's, who may have the only state"
        assert before.holder == "" or q.verb == "reclaim", "a claimant that does not ask again may emit"
    if back or answer.said == "lead" or (q.verb in ("claim", "took") and answer.said == "ok"):
        assert granted.setdefault(w.term, (q.node, life)) == (q.node, life), "W1: a term has one holder, and one process"
        if w.term > before.term:
            if q.verb == "register":                    # W3, W4: blank, and nobody who could claim
                assert w.term > w.passed >= q.term, "W1: what was taken unheard is not granted again"
                assert before.holder in ("", q.node) and before.standby in ("", q.node)
                assert doubt == (0, "", 0), "W6: one whose term was claimed may emit yet"
            elif not back:                              # W2
                assert not void and recorded == (before.term, q.node, life), "the standing grant's owner, and before it was void"
            void = True
    if q.verb == "claim" and w.term > before.term:
        doubt = (before.term, before.holder, lives["ab".index(before.holder)]) if before.holder else (0, "", 0)
    elif back or (q.verb == "took" and answer.said == "ok"):
        doubt = (0, "", 0)
    if answer.said in ("wait", "denied"):
        assert w.view() == before and (answer.said == "denied" or doubt[1] == q.node)
    if q.verb == "protected" and answer.said == "ok":
        assert granted[q.term][0] == q.node == before.holder
        recorded, void = (q.term, q.other, lives["ab".index(q.other)]), False
    if q.verb in ("solo", "reclaim") and answer.said == "ok":
        assert granted[q.term][0] == granted[w.term][0] == q.node, "nobody else was granted a later term"
        void = True
    return History(kept(w), (lives[0], lives[1]), tuple((t, n, k) for t, (n, k) in sorted(granted.items())), recorded, void, doubt)


def test_w1_to_w6_in_every_order_of_questions() -> None:
    seen = {History(kept(Witness()), (0, 0))}
    front = set(seen)
    for _ in range(DEPTH):
        front = {after for h in front for q in questions(h) for after in [asked(h, q)]} - seen
        seen |= front
    assert len(seen) > 5000
    assert {len(h.granted) for h in seen} >= {0, 1, 2, 3, 4}


PROTECTED = (Question("register", "a", life="1"), Question("register", "b", life="2"), Question("protected", "a", 1, "b"))


@pytest.mark.parametrize(("script", "said"), [
    ("solo(a1) claim(b2)", "ok denied"),                                    # whichever comes first
    ("claim(b2) took(b2) solo(a1) reclaim(a1)", "ok ok denied denied"),
    ("took(b2) solo(a1)", "ok denied"),                                     # on proof: not claimed before
    ("claim(b2) solo(a1) gone(b) solo(a1) solo(a1) took(b2)", "ok wait ok ok ok denied"),       # asked again: the answer was lost
    ("claim(b2) reclaim(a1) took(b2) register(b3)", "ok ok denied follow"),
    ("claim(b2) gone(b) register(b3) gone(a) register(b3)", "ok ok follow ok lead"),            # a may be stopped, not dead
    ("claim(b2) gone(a) solo(a1) gone(b) register(b3)", "ok ok denied ok lead"),
    ("gone(a) claim(b2) solo(a1) gone(b) register(b3)", "ok ok denied ok lead"),
    ("claim(b2) gone(b) solo(a1) protected(a1) protected(a3) claim(b4)", "ok ok ok denied ok ok"),
])
def test_a_claim_is_final_once_it_was_taken(script: str, said: str) -> None:
    w = Witness()
    for q in PROTECTED:
        assert w.ask(q).said in ("lead", "follow", "ok")
    answers = []
    for verb, node, number in re.findall(r"(\w+)\((\w)(\d?)\)", script):
        answers.append(w.ask(Question(verb, node, int(number or 0), OTHER[node], life=number)).said)
    assert " ".join(answers) == said


def test_a_term_that_nobody_can_have_led_is_not_believed() -> None:
    """Or one word would carry the terms out of what native code can hold."""
    w = Witness()
    for q in PROTECTED:
        w.ask(q)
    for verb in ("gone", "register"):
        w.ask(Question(verb, "b", 1 << 62, life="9"))
        w.ask(Question(verb, "b", 3, life="9"))
    assert w.ask(Question("register", "a", 2, life="8")) == Answer("register", "lead", 3, "a")
    fresh = Witness()
    assert fresh.ask(Question("register", "a", 1 << 62, life="1")).term == 1 and Witness().ask(Question("register", "a", 40, life="1")).term == 41


def test_a_word_that_is_none_of_its_own_is_denied() -> None:
    w = Witness()
    for verb in ("", "unknown", "crown", "ask", "_init__", "_class__"):
        assert w.ask(Question(verb, "a")).said == "denied", verb


def test_w7_a_suspicion_changes_nothing_and_tells_who_holds() -> None:
    w = Witness()
    for q in (Question("register", "a", life="1"), Question("register", "b", life="2"), Question("protected", "a", 1, "b")):
        w.ask(q)
    before = w.view()
    assert w.ask(Question("suspect", "b", 2)) == Answer("suspect", "ok", 1, "a")
    assert [w.ask(Question("suspect", node, term)).said for node, term in (("a", 2), ("b", 1), ("b", 3), ("c", 2))] == ["denied"] * 4
    assert w.view() == before
    assert w.ask(Question("solo", "a", 1)).said == "ok"
    assert w.ask(Question("suspect", "b", 2)).said == w.ask(Question("claim", "b", 2)).said == "denied"


def said(w: Witness, *asked: Question) -> list[str]:
    return [w.ask(q).said for q in asked]


def marked(q: Question, mark: int = 9) -> Question:
    return msgspec.structs.replace(q, number=mark)


EVERY = [Question("claim", "b", 5), Question("took", "b", 5), Question("solo", "a", 4), Question("protected", "a", 4, "b"),
         Question("suspect", "b", 5)]


def test_w8_a_restarted_witness_grants_nothing_before_it_has_heard_both() -> None:
    w = Witness("ab", mark=9)
    assert said(w, *EVERY) == ["wait"] * 5
    assert said(w, HERE_A, HERE_B) == ["wait", "wait"] and w.view().missing == ("a", "b")       # what they said may be old
    assert said(w, marked(HERE_A), *EVERY) == ["wait"] * 6 and w.view().missing == ("b",)
    assert said(w, marked(HERE_B)) == ["ok"] and w.view() == WitnessView(4, "a", "b")
    assert said(w, Question("claim", "b", 5)) == ["ok"] and w.view() == WitnessView(5, "b", "", former="a")


def test_w8_who_leads_a_later_term_is_believed_and_a_blank_one_is_no_standby() -> None:
    w = Witness("ab", mark=9)
    assert said(w, marked(HERE_A), marked(Question("here", "b", 5, leads=True))) == ["wait", "ok"]
    assert w.view() == WitnessView(5, "b", "") and said(w, Question("solo", "a", 4)) == ["denied"]
    w = Witness("ab", mark=9)
    assert said(w, Question("register", "b", life="new"), marked(HERE_A)) == ["wait", "ok"]     # a did not notice yet
    assert w.view() == WitnessView(4, "a", "") and said(w, Question("claim", "b", 5)) == ["denied"]
    assert said(w, Question("register", "b", life="new")) == ["follow"]


def test_w8_blank_nodes_and_an_operators_word() -> None:
    w = Witness("ab", mark=9)
    assert said(w, Question("register", "b", life="1"), Question("register", "a", life="2"), Question("register", "b", life="1")) == [
        "wait", "lead", "follow"]
    w = Witness("ab", mark=9)
    assert said(w, marked(HERE_A), Question("solo", "a", 4)) == ["wait", "wait"]
    w.force()
    assert said(w, Question("solo", "a", 4)) == ["ok"] and w.view() == WitnessView(4, "a", "")


MS = 1_000_000


def test_vigil_says_when_nobody_answers_and_repeats_a_mark_at_once() -> None:
    v = Vigil("a", claim_ms_max=100, now=1000 * MS)

    def tick(ms: int) -> list[Ask | Event]:
        return v.tick(ms * MS, term=4, leads=True, other="b")      # type: ignore[return-value]

    assert tick(1050) == [] and tick(1051) == [Ask(HERE_A)] and tick(1052) == []
    assert v.heard(1053 * MS, Answer("here", "ok", 4, "a")) == [] and not v.unwitnessed
    assert tick(1102) == [Ask(HERE_A)]
    assert tick(1154) == [Ask(HERE_A), Event("unwitnessed", {"silent_ms": 101})] and v.unwitnessed
    assert v.heard(1155 * MS, Answer("here", "wait", 0, "", 9)) == [] and v.unwitnessed         # it is there, and grants nothing
    assert tick(1156) == [Ask(marked(HERE_A))] and tick(1157) == []
    assert v.heard(1158 * MS, Answer("here", "ok", 4, "a", 9)) == [Event("witnessed", {})] and not v.unwitnessed
    assert tick(1159) == []
    assert v.heard(1160 * MS, Answer("solo", "ok", 4, "a")) == []                              # any answer will do
