"""Every planted bug is noticed: by the simulator within 300 seeds, or by the test that is named."""

from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, SEEDS, hunt_all, row


@pytest.mark.timeout(900)
def test_every_mutant_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("Cython", reason="mutants of kernels are compiled: pip install 'nfckpt[dev]'")
    lived = []
    with capsys.disabled():
        print(f"\n{'mutant':46} {'breaks':13} {'caught at':9} how")
        for caught in hunt_all(MUTANTS):
            print(row(caught), flush=True)
            if not caught.how or (caught.seed or 0) >= SEEDS:
                lived.append(caught.mutant.name)
    assert lived == []
    assert len(MUTANTS) >= 20 and len({m.name for m in MUTANTS}) == len(MUTANTS)
