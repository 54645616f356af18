"""Every planted bug is noticed: by the simulator, by a kernel's CHECK, or by the test that is named where the simulator does not reach.

Each begins with the seed that is known to notice it; a change that hides it there has it hunted through all of them.
"""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, hunt_all, row


@pytest.mark.timeout(1800)
def test_planted_bugs_are_caught(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("Cython", reason="mutants of kernels are compiled: pip install 'nfckpt[dev]'")
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 60
    lived = []
    with capsys.disabled():
        print(f"\n{'mutant':46} {'breaks':13} {'caught at':9} how")
        for caught in hunt_all(MUTANTS):
            print(row(caught), flush=True)
            if not caught.how:
                lived.append(caught.mutant.name)
    assert lived == []
