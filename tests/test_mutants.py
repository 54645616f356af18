"""Planted bugs are noticed: by the simulator, by a kernel's CHECK, or by the test that is named where the simulator does not reach.

Here run those of which a seed is known that notices them, that seed first; a change that hides a bug there has it hunted through
all of them. `python -m tests.mutants` hunts every bug, also those of which no seed is known yet.
"""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, Mutant, changed, hunt_all, row


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_bug_fits_the_code_as_it_is(mutant: Mutant) -> None:
    assert changed(mutant)


@pytest.mark.timeout(1800)
def test_planted_bugs_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("Cython", reason="mutants of kernels are compiled: pip install 'nfckpt[dev]'")
    wanted = [m for m in MUTANTS if m.at is not None or m.by != "sim"]
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) and len(wanted) >= 30
    lived = []
    with capsys.disabled():
        print(f"\n{'mutant':46} {'breaks':13} {'caught at':9} how")
        for caught in hunt_all(wanted):
            print(row(caught), flush=True)
            if not caught.how:
                lived.append(caught.mutant.name)
    assert lived == []
