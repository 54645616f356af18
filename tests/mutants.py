"""Planted bugs: each breaks one promise in one place of the cores, and something must notice.

        python -m tests.mutants                 # all of them, as a table
        python -m tests.mutants rule-5 ack-…    # those whose name begins so

A mutant is a list of text replacements, applied to a copy of the package: links to every file, and the changed ones in their place.
A changed kernel is compiled for it (one extension, without optimisation) and kept in build/mutants by its content. Nothing in the
cores knows of mutants, no checker does either. `by`: the simulator, or a test where the simulator does not reach.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MUTANTS", "SEEDS", "Caught", "Mutant", "hunt", "hunt_all", "row"]

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 300
PATIENCE_S = 400.0
NATIVE = "native/"


@dataclass(frozen=True)
class Change:
    file: str                   # below nfckpt/
    old: str                    # once in it
    new: str


@dataclass(frozen=True)
class Mutant:
    name: str
    promise: str
    changes: tuple[Change, ...]
    by: str = "sim"             # or a test, "tests/test_x.py::test_y"
    at: int | None = None       # a seed that is known to notice: the first one tried


def _m(name: str, promise: str, *changes: tuple[str, str, str], by: str = "sim", at: int | None = None) -> Mutant:
    return Mutant(name, promise, tuple(Change(*c) for c in changes), by, at)


ACTIVE, STANDBY, TAKEOVER, WITNESS = "replica/active.py", "replica/standby.py", "failover/takeover.py", "failover/witness.py"
TAP, GATE, AGENT, ENGINE, EPOCH = (f"native/{n}.pyx" for n in ("tap", "gate", "agent", "engine", "epoch"))
ACTIVE_PATH, STANDBY_PATH = (f"native/{n}.pyx" for n in ("active_path", "standby_path"))
LEADS, FOLLOWS = "native/active_path.pyx", "native/standby_path.pyx"

MUTANTS = [
    _m("release-before-commit", "I5", (GATE, "if h.epoch > self.committed:", "if self.committed != ALL and h.epoch > self.committed + 1:"), at=0),
    _m("release-out-of-order", "I5: in order", (GATE, "h = &self.held[<uint32_t>self.head & self.mask]\n            if h.epoch",
       "h = &self.held[<uint32_t>(self.head ^ 1 if self.head ^ 1 < self.tail else self.head) & self.mask]\n            if h.epoch"), at=0),
    _m("released-before-the-kernel-took-it", "I6, rule 7", (GATE, "if self._waiting == 0:\n", "if True:\n"), at=0),
    _m("ack-before-hold", "I7", (STANDBY, "self.waiting.append((now, payload))\n            return self.work(now)",
       "self.waiting.append((now, payload))\n            return [Send(kinds.ACK, self.path.ack(self.path.epoch + len(self.waiting), now))]"), at=0),
    _m("promote-without-the-backlog", "I8",         # registered and acked, applied with the next one, and not at a promotion
       (FOLLOWS, "\ncdef class StandbyPath:", "\ncdef uint8_t LATE[1 << 20]\ncdef uint64_t LATE_N = 0\n\ncdef class StandbyPath:"),
       (FOLLOWS, "        cdef Record r\n",
        "        cdef Record r, late\n        global LATE_N\n"),
       (FOLLOWS, "        record_apply(&r, self.arena)\n",
        "        if LATE_N and record_parse(&late, LATE, LATE_N, self.arena, self.n_ports) == 0 and late.h.session == self.session:\n"
        "            record_apply(&late, self.arena)\n        memcpy(LATE, data, n)\n        LATE_N = n\n"),
       (FOLLOWS, "if self.last_page and not record_agrees(", "if False and not record_agrees("), at=0),
    _m("trim-on-captured", "I6", (LEADS, "if self.agent.names.n or self.staging.count:", "if self.agent.names.n:"), at=242),
    _m("trim-on-consumed", "I6", (LEADS, "if self.agent.names.n or self.staging.count:", "if self.staging.count:"), at=162),
    _m("rule-1-sets", "rule 1", (TAP, "        if self.inputs.push(key", "        if self.inputs.find(key) != NO_ENTRY:\n            return False\n        if self.inputs.push(key"), at=7),
    _m("rule-1-counts-and-no-more", "rule 1", (EPOCH, "        by[i] = captured_by - (<uint64_t>h.ages[i] << AGE_BITS) + tap.skew_ns\n",
       "        by[i] = <uint64_t>-1\n"),
       by="tests/test_core.py::test_rule_1_what_the_tap_missed_puts_no_later_frame_in_its_place"),
    _m("rule-1-any-frame-of-its-kind", "rule 1", (TAP, "if e.key == key and e.live and e.seq <= by:", "if e.key == key and e.live:"),
       by="tests/test_core.py::test_rule_1_what_the_tap_missed_puts_no_later_frame_in_its_place"),
    _m("rule-1-any-frame-of-its-kind-far-behind", "rule 1", (TAP, "return i if i != NO_ENTRY and self.inputs.entries[i].seq <= by else <uint32_t>NO_ENTRY",
       "return i"), by="tests/test_tap.py::test_rule_1_a_name_is_of_no_frame_that_came_long_after_it"),
    _m("rule-1-any-name-of-its-kind", "rule 1", (TAP, "while i != NO_ENTRY and stamp > self.credits.entries[i].seq:", "while False:"),
       by="tests/test_tap.py::test_rule_1_a_name_is_of_no_frame_that_came_long_after_it"),
    _m("rule-1-a-slow-record", "rule 1", (FOLLOWS, "self.captured_by(r.h, came)):", "came):"),
       by="tests/test_core.py::test_rule_1_what_the_tap_missed_puts_no_later_frame_in_its_place"),
    _m("rule-1-the-age-of-the-last", "rule 1", (AGENT, "self._youngest[i] = max(self._youngest[i], b.ts[at])", "self._youngest[i] = b.ts[at]"),
       by="tests/test_core.py::test_rule_1_stamps_of_a_ring_may_go_back"),
    _m("rule-1-the-fastest-of-long-ago", "rule 1", (FOLLOWS, "self._apart if came - self._apart_ns <= 2 * <uint64_t>SECOND else INT64_MAX", "self._apart"),
       by="tests/test_core.py::test_rule_1_clocks_drift_apart_while_nothing_happens"),
    _m("rule-1-ages-untold", "rule 1", (LEADS, "        self.agent.ages(now, want.ages)\n", "        memset(want.ages, 0, sizeof(want.ages))\n"),
       (LEADS, "from libc.stdlib cimport calloc, free\n", "from libc.stdlib cimport calloc, free\nfrom libc.string cimport memset\n"),
       by="tests/test_core.py::test_rule_1_what_the_tap_missed_puts_no_later_frame_in_its_place"),
    _m("rule-5-the-first-of-its-kind", "rule 5", (TAP, "while i != NO_ENTRY and self.inputs.entries[i].ts + self.skew_ns < self.named_ts[port]:", "while False:"),
       by="tests/test_tap.py::test_rule_5_a_name_is_of_the_next_of_its_kind"),
    _m("rule-2-by-position", "rule 2", (TAP, "if e.key == key and e.live and e.seq <= by:", "if e.live and e.port == port:"), at=0),
    _m("rule-2-head-only", "rule 2", (TAP, "end = min(number + NEAR,", "end = min(number + 1,"),
       (TAP, "        i = self.inputs.find(key)\n        return", "        i = NO_ENTRY\n        return"), at=12),
    _m("rule-3-no-credits", "rule 3", (TAP, "elif not self.fed and self.credits.push(key, now, by, port, NULL, 0) == NO_ENTRY:", "elif False:"), at=17),
    _m("rule-4-outputs-are-inputs", "rule 4", (TAP, "        i = NO_ENTRY if self.fed else self.expected.find(key)\n        if i", "        i = NO_ENTRY\n        if i"), at=0),
    _m("rule-4-filter-ends-at-promotion", "rule 4", (TAP, "                e.mark = REEMITTED\n",
       "                self.expected.remove(<uint32_t>number & self.expected.mask)\n"), at=12),
    _m("rule-5-missed-frames-stay", "rule 5", (TAP, "if e.ts + self.skew_ns >= self.named_ts[e.port]:\n", "if True:\n"),
       (TAP, "if e.ts + self.skew_ns < self.named_ts[e.port]:\n", "if False:\n"), at=36),
    _m("rule-5-without-the-skew", "rule 5", (TAP, "if e.ts + self.skew_ns >= self.named_ts[e.port]:\n", "if e.ts >= self.named_ts[e.port]:\n"),
       by="tests/test_tap.py::test_rule_5_older_than_a_named_frame_by_more_than_the_skew"),
    _m("rule-5-hidden-is-empty-at-the-active", "rule 5", (AGENT, "if n < want and b.has_room() and not b.hidden >> i & 1:", "if n < want and b.has_room():"),
       by="tests/test_agent.py::test_a_port_with_hidden_frames_was_not_found_empty"),
    _m("rule-6-hidden-is-read", "rule 6", (TAP, "if self._scratch.hidden >> p & 1:", "if False:"), at=238),
    _m("rule-6-credits-never-expire", "rule 6", (TAP, "if i == NO_ENTRY or self.credits.entries[i].ts + self.skew_ns >= now:", "if True:"), at=13),
    _m("rule-6-a-gap-is-not-shown", "rule 6, I12", (TAP, "if drops != self._drops and self.buffering and not self.fed:", "if False:"), at=9),
    _m("rule-7-outputs-never-forgotten", "rule 7", (TAP, "if min(now, alive_ns) > self.rt_at + self.skew_ns:", "if False:"), at=81),
    _m("rule-7-forgotten-after-the-active-died", "rule 7", (TAP, "if min(now, alive_ns) > self.rt_at + self.skew_ns:", "if now > self.rt_at + self.skew_ns:"), at=81),
    _m("rule-7-released-is-captured", "rule 7", (EPOCH, "h.released_through = gate.released_through", "h.released_through = gate.captured"), at=13),
    _m("rule-8-made-output-past-the-gate", "rule 8", (AGENT, "<const uint8_t*>frame, n, self.epoch):", "<const uint8_t*>frame, n, 0):"), at=0),
    _m("rule-9-port-not-covered", "rule 9", (TAP, "if self.named_ts[p] < since:", "if False:"), at=175),
    _m("rule-9-no-skew-after-opening", "rule 9", (STANDBY, "self.tap.covers(self.open_ns + skew)", "self.tap.covers(self.open_ns)"),
       (STANDBY, "if now - self.welcome_ns < skew:", "if now < self.welcome_ns:"), at=203),
    _m("rule-9-names-of-before", "rule 9", (STANDBY, "if self.tap.waiting_credits and now - self.covered_ns <= skew:", "if False:"),
       by="tests/test_core.py::test_rule_9_a_name_that_may_be_of_before_the_tap_is_waited_for"),
    _m("cut-off-though-both-saw-one", "I13", ("native/cut_off.pyx", "a.n >= ALONE and self.shared_ts[p] <= a.first and now", "a.n >= ALONE and now"),
       by="tests/test_tap.py::test_one_frame_that_both_saw_says_that_it_is_not"),
    _m("cut-off-is-not-recalled", "I13", ("node/lead.py", "        tap.recall()\n", ""), by="tests/test_outcomes.py::test_active_port_cut_off"),
    _m("recalled-though-a-younger-one-was-seen", "I5: once", (TAP, " and e.seq >= cut.seen_through[e.port]:", ":"),
       by="tests/test_tap.py::test_outputs_into_a_cut_port_are_recalled_unless_a_younger_one_was_seen"),
    _m("skip-the-undo", "I8", (EPOCH, "for i in range(r.h.n_lines, 0, -1):", "for i in range(0, 0, -1):"), at=3),
    _m("apply-a-record-twice", "I8, I14", (FOLLOWS, "elif r.h.epoch != self.epoch + 1:", "elif r.h.epoch > self.epoch + 1:"), at=85),
    _m("apply-a-part-twice", "I8", (EPOCH, "        _swap_line(r, arena, i)\n    for i in range(r.h.n_pages):",
       "        _swap_line(r, arena, i)\n    if r.h.n_lines > 4:\n        _swap_line(r, arena, 0)\n    for i in range(r.h.n_pages):"), at=0),
    _m("capture-with-frames-in-the-app", "I1", (LEADS, "if self.agent.in_flight:\n", "if False:\n"), at=4),
    _m("a-line-waits-for-the-next-capture", "I4", ("native/arena.pyx", "            memcpy(lines + i * LINE, base + <uint64_t>log[i] * LINE, LINE)\n        self.clear_dirty()\n",
       "            memcpy(lines + i * LINE, base + <uint64_t>log[i] * LINE, LINE)\n        if n > 2:\n            i = log[n - 1]\n"
       "            number[n - 1] = number[0]\n            memcpy(lines + (n - 1) * LINE, lines, LINE)\n            self.clear_dirty()\n"
       "            self.mark(i * LINE, 1)\n            return\n        self.clear_dirty()\n"), at=0),
    _m("input-postpones-the-cut", "I3", (ENGINE, "if pending and self.opened_ns == 0:", "if pending:"), at=0),
    _m("forget-the-quiesce-number", "I11", (ENGINE, "if number != self._request or not self._requested:", "if not self._requested:"), at=4),
    _m("drop-at-a-full-gate", "I12", (AGENT, "and self.gate.room(4 * <uint32_t>max_frames, 2 * <uint64_t>burst.buf_bytes))", "and True)"), at=50),
    _m("no-fence-on-suspicion-host", "I9", (TAKEOVER, "                    effects.append(KillPeer())\n                if self.peer_dead:\n", "                if True:\n"), at=37),
    _m("no-fence-on-suspicion-hosts", "I9", (TAKEOVER, "elif not self.leases or now >=", "elif True or now >="), at=332),
    _m("takeover-without-claim", "I9", (TAKEOVER, "                effects += self._ask(now, \"claim\")\n",
       "                effects += self._ask(now, \"claim\")\n                self._next(now, Step.FENCE)\n"), at=13),
    _m("beats-answered-after-the-claim", "I9", (STANDBY, "if self.claimed:\n                return", "if False:\n                return"),
       by="tests/test_core.py::test_an_active_that_wakes_up_after_the_claim_gets_no_more_answers"),
    _m("lease-counts-from-the-welcome", "I9", (STANDBY, "            self.acked_ns = now\n", "            self.acked_ns = self.welcome_ns\n"),
       by="tests/test_core.py::test_i9_hosts_the_lease_of_the_last_answer_must_have_run_out"),
    _m("mark-used-before-its-beat-is-answered", "I9", (ACTIVE, "effects.append(LeaseArm(arm.mark, arm.ms))",
       "effects += [LeaseArm(arm.mark, arm.ms), LeaseStamp(arm.mark)]"),
       by="tests/test_core.py::test_i9_hosts_a_mark_is_used_once_its_beat_is_answered"),
    _m("solo-before-the-grant-is-void", "I9", (ACTIVE, "if self.peer_dead and not self.silent and not self.handed:", "if True:"), at=10),
    _m("switch-taken-back-on-proof", "I9", (ACTIVE, "if self.peer_dead and not self.silent and not self.handed:", "if self.peer_dead and not self.silent:"),
       by="tests/test_core.py::test_a_switch_to_a_standby_that_died_is_taken_back"),
    _m("switch-by-the-standing-grant", "I9", (TAKEOVER, "self.standby.granted or (self.standby.promotable", "self.handover or (self.standby.promotable"),
       (STANDBY, "isinstance(message, Handover) and self.granted:", "isinstance(message, Handover) and self.state is S.STANDBY:"),
       (ACTIVE, "self.preparing, self.prepare_ns = True, 0", "self.handing_over = True"), at=241),
    _m("switch-forgets-a-silent-death", "I13", (ACTIVE, "encode_control(Handover(self.session, self.term, agent.gate.released_through)))]\n",
       "encode_control(Handover(self.session, self.term, agent.gate.released_through))), Stop(4, \"handed over\")]\n"),
       by="tests/test_core.py::test_after_a_switch_the_old_active_ends_when_the_witness_says_so"),
    _m("witness-grants-twice", "W1, I9", (WITNESS, "        elif q.node != self.holder or q.term not in (self.term, self.back):\n", "        elif q.term > self.term:\n"), at=13),
    _m("witness-grants-what-was-taken-unheard", "W1, I9", (WITNESS, "max(self.term, self.passed) + 1", "self.term + 1"),
       by="tests/test_witness.py::test_w1_to_w6_in_every_order_of_questions"),
    _m("recorded-in-a-term-that-nobody-knows", "I13", (ACTIVE, "        if self.unheard:\n            return []\n", ""),
       by="tests/test_core.py::test_no_standby_is_recorded_in_a_term_that_the_witness_does_not_know"),
    _m("witness-forgets-whose-term-was-claimed", "W6, I9", (WITNESS, "if self.holder or self.standby or self.former:", "if self.holder or self.standby:"), at=85),
    _m("witness-undoes-a-claim-that-may-be-used", "W6, I9", (WITNESS, "if self.holder and q.verb == \"solo\":", "if False:"),
       by="tests/test_witness.py::test_a_claim_is_final_once_it_was_taken"),
    _m("witness-undoes-what-was-taken", "W6, I9", (WITNESS, "        if said == \"ok\":\n            self.former = \"\"\n", ""), at=13),
    _m("witness-restarted-grants-at-once", "W8, I9", (WITNESS, "elif self.missing and q.verb not in TO_ALL:", "elif False:"),
       by="tests/test_witness.py::test_w8_a_restarted_witness_grants_nothing_before_it_has_heard_both"),
    _m("what-was-said-to-another-witness-counts", "W8, I9", (WITNESS, "if q.node in self.missing and q.number == self.mark:", "if q.node in self.missing:"),
       by="tests/test_witness.py::test_w8_a_restarted_witness_grants_nothing_before_it_has_heard_both"),
    _m("mark-in-use-is-armed-again", "I9", ("failover/lease_clock.py", "in (self.mark, SOLO_MARK):", "== SOLO_MARK:"),
       by="tests/test_fence_lease_clock.py::test_the_mark_in_use_is_never_armed_again"),
    _m("mark-of-a-lease-that-ran-out", "I9", ("failover/lease_clock.py", " or now_ns >= self._end(armed):", ":"),
       by="tests/test_fence_lease_clock.py::test_stale_acks_change_nothing"),
    _m("claimed-is-taken", "W6, I9", (TAKEOVER, " and (self.kills or self.alone or not self.unheard):", ":"), at=16),
    _m("goes-on-in-the-term-of-before", "W6", (ACTIVE, "self.asking, self.term = False, answer.term", "self.asking = False"), at=26),
    _m("witness-forgets-who-was-struck", "W2, I9", (WITNESS, "if q.node != self.standby or q.term != self.term + 1:", "if q.term != self.term + 1:"), at=15),
    _m("witness-replaces-a-holder-that-has-a-standby", "W4, I13", (WITNESS, "if self.holder or self.standby or self.former:", "if self.holder or self.former:"), at=5),
    _m("protected-before-it-is-recorded", "I13", (ACTIVE, "return [Ask(self._question(\"protected\"))]",
       "self._move(\"recorded\")\n        return [Ask(self._question(\"protected\")), Send(kinds.CONTROL, encode_control(Protected(self.session, self.term))),\n"
       "                Event(\"protected\", {\"peer\": self.peer, \"term\": self.term})]"),
       by="tests/test_core.py::test_protection_begins_when_the_witness_has_recorded_the_standby"),
    _m("sync-promotable-too-early", "I13, rule 9", (STANDBY, "return self.state in (S.WHOLE, S.STANDBY)", "return self.state is not S.JOINING"),
       by="tests/test_core.py::test_i13_only_a_whole_standby_may_claim"),
    _m("whole-before-the-last-page", "I8, rule 9", (STANDBY, "if self.path.last_page and not self.waiting and", "if not self.waiting and"), at=0),
    _m("settle-at-once", "exactly once", (TAKEOVER, "settled = self.standby", "settled = True or self.standby"), at=8),
    _m("outputs-of-before-are-not-held", "I5", (ACTIVE, "        gate.shut(self.engine.committed)\n", ""), at=0),
    _m("follower-let-in-while-output-waits", "rule 4", (ACTIVE, "                return False\n        return True\n", "                return False\n        return False\n"), at=106),
    _m("the-node-s-own-clock-travels", "I10, I15", (LEADS, "<uint64_t>(<int64_t>now + self.clock_offset_ns)\n        want.echo_ns", "now\n        want.echo_ns"), at=0),
    _m("clock-runs-backwards-at-promotion", "I15", ("clock.py", "        self._last = max(self._last, committed_ns)\n", "        self._last = 0\n"), at=0),
    _m("ack-of-another-session", "I14", (LEADS, "if ack.session != self.session:", "if False:"), at=17),
    _m("ack-of-an-epoch-never-shipped", "I14", (LEADS, "            if r < 0:\n                return -3\n", "            if r < 0:\n                return 0\n"), at=96),
    _m("record-of-another-session", "I14", (FOLLOWS, "if r.h.session != self.session or r.h.term != self.term or self.session == 0:", "if self.session == 0:"),
       by="tests/test_epoch.py::test_what_does_not_belong_here_is_refused_and_changes_nothing"),
    _m("stale-segment-accepted", "I14", ("native/shm_segment.pyx", 'if len(session) != 16 or memcmp(s.h.session, <const uint8_t*>session, 16) != 0:', "if False:"),
       by="tests/test_wire_shm.py::test_a_segment_left_by_a_dead_process"),
    _m("the-key-says-hello", "I10", ("secrets.py", "b\"channel\", b\"check\"))", "b\"channel\", b\"check\"))\n        self.check = key"),
       by="tests/test_parts.py::test_i10_no_key_travels"),
    _m("a-secret-lies-in-the-state", "I10", ("state/state.py", "seed = hashlib.sha256(b\"nfckpt flow table\\0\" + self._seed + name.encode()).digest()", "seed = self._seed"),
       by="tests/test_parts.py::test_i10_no_key_travels"),
    _m("a-node-s-name-lies-in-the-state", "I10", ("node/parts.py", "self.arena, self.secrets.table)", "self.arena, self.secrets.table + self.core.node.encode())"),
       by="tests/test_parts.py::test_i10_the_state_does_not_say_whose_it_is"),
    # planted by hand: one line each
    _m("the-first-protected-epoch-is-let-go", "I5", (GATE, "        self.committed = epoch\n\n    def captured_all", "        self.committed = epoch + 1\n\n    def captured_all"), at=0),
    _m("an-ack-commits-the-next-one-too", "I5, I6", (LEADS, "self.agent.gate.commit_through(ack.epoch)", "self.agent.gate.commit_through(ack.epoch + 1)"), at=0),
    _m("outputs-that-were-seen-are-emitted-again", "I5: once", (TAP, "        if i != NO_ENTRY:\n            if self.expected.entries[i].mark == REEMITTED:",
       "        if i != NO_ENTRY:\n            if now_or_never(ts):\n                return False\n            if self.expected.entries[i].mark == REEMITTED:"),
       (TAP, "\ncdef class Tap:", "\ncdef inline bint now_or_never(uint64_t ts) noexcept nogil:\n    return ts % 8 == 0\n\n\ncdef class Tap:"), at=12),
    _m("the-last-output-is-not-registered", "I7, rule 3", (EPOCH, "    for i in range(h.n_outputs):\n        oh = <OutputHead*>(r.outputs + q)\n        q += sizeof(OutputHead)\n        CHECK(",
       "    for i in range(h.n_outputs - (h.n_outputs > 1)):\n        oh = <OutputHead*>(r.outputs + q)\n        q += sizeof(OutputHead)\n        CHECK("), at=0),
    _m("the-first-name-is-not-registered", "I7, rule 3", (EPOCH, "        tap.name(r.keys[i], r.ports[i], now, by[r.ports[i]])",
       "        if i or h.n_names < 2:\n            tap.name(r.keys[i], r.ports[i], now, by[r.ports[i]])"), at=0),
    _m("one-port-empty-is-all-empty", "I6, rule 5", (TAP, "if ports >> p & 1:", "if ports:"),
       by="tests/test_tap.py::test_rule_5_a_port_found_empty_is_the_same_word"),
    _m("empty-as-of-now", "I6, rule 5", (LEADS, "        want.echo_ns = self.echo_ns\n", "        want.echo_ns = self.peer_stamp\n"),
       by="tests/test_agent.py::test_beats_and_records_carry_what_was_heard_before"),
    _m("empty-before-it-was-read", "I6, rule 5", (AGENT, "if n < want and b.has_room() and", "if n <= want and b.has_room() and"), at=123),
    _m("a-line-of-the-last-page-sent-is-forgotten", "I8", ("native/sync.pyx", "if line >> 6 < self.next:", "if (line >> 6) + 1 < self.next:"), at=0),
    _m("the-last-line-is-not-applied", "I8", (EPOCH, "    for i in range(r.h.n_lines):\n        if i + ASK_LINES", "    for i in range(r.h.n_lines - (r.h.n_lines > 2)):\n        if i + ASK_LINES"), at=0),
    _m("parting-is-not-said", "I9", (ACTIVE, "[Send(kinds.CONTROL, encode_control(Parting(self.session))), Ask(", "[Ask("),
       by="tests/test_core.py::test_protection_is_given_up_with_a_word_before_the_witness_is_asked"),
    _m("parted-and-promoted-on-proof", "I9", (TAKEOVER, " and self.kills and not self.parted):", " and self.kills):"),
       by="tests/test_core.py::test_an_active_that_parted_may_have_struck_us_out_before_it_died"),
    _m("answers-a-beat-late", "I9", (STANDBY, "            self.acked_ns = now\n            return [Send(", "            self.acked_ns = max(self.acked_ns, now - 12 * MS)\n            return [Send("),
       by="tests/test_core.py::test_i9_hosts_the_lease_of_the_last_answer_must_have_run_out"),
    _m("record-that-overruns", "I14", (EPOCH, "    if p != total:\n        return 8\n", ""),
       by="tests/test_epoch.py::test_every_truncation_is_refused"),
    _m("promoted-without-what-was-shipped", "input", (TAP, "        self.fed = self.discarding = False\n", "        self.fed = self.discarding = False\n        self.inputs.reset()\n"), at=5),
    _m("forgets-what-has-not-left", "I5: once", (STANDBY_PATH, "        self.released(min(head.released_through, self.next_seq))\n", "        self.released(self.next_seq)\n"), at=13),
    _m("a-record-overtakes-its-inputs", "H1", (ACTIVE_PATH, "if self.shipping and not self.shipment.clear(self.agent.gate.released_through):", "if False:"),
       by="tests/test_ship.py::test_a_burst_is_shipped_before_the_next_is_read_and_before_its_epoch_is_cut"),
]


SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))      # here: the first look is not safe between threads


# ── planting ─────────────────────────────────────────────────────────────────────────────────────


def changed(mutant: Mutant) -> dict[str, str]:
    """Each file that this bug changes, and its text then. Raises ValueError where a change fits nowhere, or in two places."""
    texts: dict[str, str] = {}
    for change in mutant.changes:
        text = texts.get(change.file) or (ROOT / "nfckpt" / change.file).read_text()
        if text.count(change.old) != 1:
            raise ValueError(f"{mutant.name} does not apply: {change.file} has {text.count(change.old)} times {change.old!r}")
        texts[change.file] = text.replace(change.old, change.new)
    return texts


@contextmanager
def planted(mutant: Mutant) -> Iterator[Path]:
    """A folder to put first on PYTHONPATH: the package with this bug in it."""
    with tempfile.TemporaryDirectory(prefix="nfckpt-mutant-") as folder:
        package = Path(folder) / "nfckpt"
        shutil.copytree(ROOT / "nfckpt", package, copy_function=os.symlink)
        for file, text in changed(mutant).items():
            (package / file).unlink()
            (package / file).write_text(text)
            if file.startswith(NATIVE):
                _compile(package, package / file)
        yield Path(folder)


def _compile(package: Path, source: Path) -> None:
    """One kernel, into its place."""
    known = hashlib.sha256(SUFFIX.encode() + source.read_bytes())
    for pxd in sorted(source.parent.glob("*.pxd")):
        known.update(pxd.read_bytes())
    kept = ROOT / "build" / "mutants" / f"{source.stem}-{known.hexdigest()[:24]}{SUFFIX}"
    target = source.with_name(source.stem + SUFFIX)
    target.unlink(missing_ok=True)
    if not kept.exists():
        c = source.with_suffix(".c")
        c.unlink(missing_ok=True)
        _run([sys.executable, "-m", "cython", "-3", "--module-name", f"nfckpt.native.{source.stem}", str(source), "-o", str(c)], package.parent)
        cc = os.environ.get("CC", "cc").split()
        _run([*cc, "-shared", "-fPIC", "-O0", "-w", f"-I{sysconfig.get_path('include')}", str(c), "-o", str(target)], package.parent)
        kept.parent.mkdir(parents=True, exist_ok=True)
        half = kept.with_suffix(f".{os.getpid()}.{source.parent.parent.parent.name}")
        shutil.copy(target, half)
        half.replace(kept)
    else:
        target.symlink_to(kept)


def _run(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


# ── hunting ──────────────────────────────────────────────────────────────────────────────────────

HUNT = """
import sys
from nfckpt.sim.campaign import first_violation
found = first_violation(map(int, sys.argv[1:]), about_to=lambda seed: print(seed, flush=True))
print("caught" if found else "lived", found[1].split("; replay")[0] if found else "", flush=True)
"""


@dataclass(frozen=True)
class Caught:
    mutant: Mutant
    seed: int | None            # None: not caught, or caught by a test
    how: str                    # "" : it lived
    seconds: float


def hunt(mutant: Mutant) -> Caught:
    """Run it until something notices: a violation, a CHECK that aborts, or the named test."""
    began = time.monotonic()
    with planted(mutant) as folder:
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        if mutant.by != "sim":
            done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib", f"--rootdir={ROOT}", f"{ROOT}/{mutant.by}"],
                                  env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
            failed = done.returncode == 1 and re.search(r"[1-9]\d* failed", done.stdout) is not None
            return Caught(mutant, None, mutant.by if failed else "", time.monotonic() - began)
        try:
            seeds = dict.fromkeys((*([] if mutant.at is None else [mutant.at]), *range(SEEDS)))
            done = subprocess.run([sys.executable, "-c", HUNT, *map(str, seeds)], env=environment, cwd=folder, capture_output=True, text=True,
                                  check=False, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return Caught(mutant, None, "", time.monotonic() - began)
    lines = done.stdout.splitlines()
    seconds = time.monotonic() - began
    if lines and lines[-1].startswith("lived"):
        return Caught(mutant, None, "", seconds)
    if lines and lines[-1].startswith("caught"):
        return Caught(mutant, int(lines[-2]), lines[-1].removeprefix("caught "), seconds)
    if done.returncode < 0 and lines:
        return Caught(mutant, int(lines[-1]), f"the kernel's CHECK: {done.stderr.strip().splitlines()[0] if done.stderr else ''}", seconds)
    raise RuntimeError(f"{mutant.name}: {done.stderr[-2000:]}")


def hunt_all(mutants: list[Mutant]) -> Iterator[Caught]:
    """All, as many at a time as there are CPUs, in order."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(hunt, mutants)


def row(c: Caught) -> str:
    where = f"seed {c.seed}" if c.seed is not None else "a test" if c.how else "LIVED"
    return f"{c.mutant.name:46} {c.mutant.promise:13} {where:9} {c.how[:110]}"


if __name__ == "__main__":
    wanted = [m for m in MUTANTS if len(sys.argv) == 1 or any(m.name.startswith(a) for a in sys.argv[1:])]
    lived = 0
    for result in hunt_all(wanted):
        print(f"{row(result)}   {result.seconds:.0f} s", flush=True)
        lived += not result.how
    print(f"{len(wanted) - lived} of {len(wanted)} caught")
    sys.exit(1 if lived else 0)
