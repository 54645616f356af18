"""Each kept input, and a few hundred mutations of them: a bounded piece of `python -m tests.fuzz`."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets
from tests.fuzz.targets import CORPUS, TARGETS, kept, mutate, seeds
from tests.test_examples import ROOT


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_inputs(target: str) -> None:
    inputs = kept(target)
    assert inputs and all(len(data) < 64 << 10 for data in inputs)
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_mutations(target: str) -> None:
    corpus, run = kept(target), TARGETS[target]

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**32).map(lambda seed: mutate(random.Random(seed), corpus)) | st.binary(max_size=300))
    def one(data: bytes) -> None:
        run(data)

    one()


def test_a_seed_of_every_kind_is_whole() -> None:
    """Or mutations would never come past the first check."""
    for target, named in seeds().items():
        assert {p.name for p in (CORPUS / target).iterdir()} >= set(named), target
    for name, record in seeds()["epoch"].items():
        assert targets.EpochRecord(bytearray(record), targets._arena, 2).n_names == (0 if name == "empty" else 3)
    assert targets.loads((CORPUS / "config" / "example").read_text())


def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that lets a KeyError out on one byte."""
    def careless(payload: memoryview) -> object:
        if bytes(payload[1:2]) == b"\xff":
            raise KeyError("type")
        return targets.decode_ack(payload)

    monkeypatch.setattr(targets, "decode_control", careless)
    corpus, rng = kept("wire"), random.Random(1)
    with pytest.raises(KeyError):
        for _ in range(20_000):
            TARGETS["wire"](mutate(rng, corpus))


def test_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", "wire", "--seconds", "1", "--unguided"], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and "nothing found" in done.stdout, done.stderr
