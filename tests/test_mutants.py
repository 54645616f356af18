"""Planted bugs are noticed: by the simulator, by a kernel's CHECK, or by the test that is named where the simulator does not reach.

Each has a seed that is known to notice it, or a test by name. That seed is tried first; a change that hides a bug there has it hunted
through 300.
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
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    lived = []
    with capsys.disabled():
        print(f"\n{'mutant':46} {'breaks':13} {'caught at':9} how")
        for caught in hunt_all(MUTANTS):
            print(row(caught), flush=True)
            if not caught.how:
                lived.append(caught.mutant.name)
    assert lived == []
