"""Races between the cores: each test is one instruction-exact interleaving that once lost, doubled or stalled something."""

from __future__ import annotations

from nfckpt.native.active_path import ActivePath
from tests.native_lab import MS, frame
from tests.test_agent import Rig


def stage(rig: Rig, n: int) -> ActivePath:
    """Consume and drop one frame; its epoch is captured and waits for the channel."""
    rig.rx(frame(n))
    rig.agent.drop(rig.burst)
    rig.rx()
    assert rig.path.staged is not None and rig.agent.names.n == 0
    return rig.path


def test_a_beat_that_overtakes_a_staged_record_disowns_nothing() -> None:
    """The names of a staged record are not on the wire yet: "empty" before them lets the standby drop their frames (rule 5)."""
    rig = Rig()
    rig.protect()
    rig.ack(0, commits=False, stamp=100 * MS)
    path = stage(rig, 1)
    rig.rx()                                            # both ports found empty, with the record still staged
    assert rig.agent.ports_empty == 3
    assert path.beat()[1] == 0 and rig.agent.ports_empty == 3
    path.shipped()
    assert path.beat() == (100 * MS, 3)                 # behind the record it is true
