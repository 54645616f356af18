"""Planted bugs are noticed by the simulator. Here those that fall within 60 seeds; `python -m tests.mutants` hunts them all."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, hunt_all, row

QUICK = (
    "release-before-commit", "release-out-of-order", "ack-before-hold", "promote-without-the-backlog", "rule-1-sets", "rule-2-by-position",
    "rule-2-head-only", "rule-3-no-credits", "rule-4-outputs-are-inputs", "rule-5-without-the-skew", "rule-6-credits-never-expire",
    "rule-6-a-gap-is-not-shown", "rule-7-released-is-captured", "rule-8-made-output-past-the-gate", "rule-9-no-skew-after-opening",
    "skip-the-undo", "apply-a-record-twice", "apply-a-part-twice", "capture-with-frames-in-the-app", "input-postpones-the-cut",
    "forget-the-quiesce-number", "drop-at-a-full-gate", "takeover-without-claim", "solo-before-the-grant-is-void",
)
SEEDS = 60


@pytest.mark.timeout(900)
def test_planted_bugs_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("Cython", reason="mutants of kernels are compiled: pip install 'nfckpt[dev]'")
    wanted = [m for m in MUTANTS if m.name in QUICK]
    assert len(wanted) == len(QUICK) >= 20
    lived = []
    with capsys.disabled():
        print(f"\n{'mutant':46} {'breaks':13} {'caught at':9} how")
        for caught in hunt_all(wanted):
            print(row(caught), flush=True)
            if not caught.how or (caught.seed or 0) >= SEEDS:
                lived.append(caught.mutant.name)
    assert lived == []
