"""input = "ship": on switches that learn, without a mirror, the standby gets what the active receives from the active itself."""

from __future__ import annotations

import struct
import time
from typing import ClassVar

import pytest

from nfckpt.errors import PeerError
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.tap import Tap
from nfckpt.testbed.topology import Segment
from tests.native_lab import MS, SECRET, ListPort, frame
from tests.pair_rig import NAT, PairRig, until
from tests.test_agent import SESSION, TERM, Rig
from tests.veth_rig import VethRig

BOTH = pytest.mark.parametrize("profile", ["host", "hosts"])


# ── the active's side ────────────────────────────────────────────────────────────────────────────


def shipping() -> Rig:
    rig = Rig()
    rig.path.ship_inputs()
    rig.path.tap_opened()
    rig.protect()
    return rig


def test_a_burst_is_shipped_before_the_next_is_read_and_before_its_epoch_is_cut() -> None:
    rig = shipping()
    assert rig.rx(frame(1), frame(2, 65), port=1) == 2
    rig.agent.drop(rig.burst)
    assert rig.rx(frame(3)) == 0 and rig.path.staged is None        # the channel has no room: nothing more is read, and no record made
    assert rig.path.shipment_out() == (struct.pack("<QQ", SESSION, 0) + struct.pack("<HHI", 1, 64, 1) + frame(1)
                                       + struct.pack("<HHI", 1, 65, 2) + frame(2, 65) + bytes(7))
    assert rig.path.shipment_out() is None
    assert rig.rx() == 0 and rig.path.staged is not None            # the record that names them follows
    rig.path.shipped()
    assert rig.rx() == 1


def test_a_standby_with_a_tap_is_shipped_nothing_and_neither_is_one_that_is_gone() -> None:
    rig = Rig()
    rig.path.tap_opened()
    rig.protect()
    assert rig.rx(frame(1)) == 1 and rig.path.shipment_out() is None
    rig = shipping()
    rig.rx(frame(1))
    rig.path.end()
    assert rig.path.shipment_out() is None
    rig.agent.drop(rig.burst)
    assert rig.rx(frame(2)) == 1


def test_what_left_is_told_without_frames_too() -> None:
    rig = shipping()
    rig.gate.open()
    rig.agent.emit(1, frame(9))
    rig.gate.release()
    assert rig.path.shipment_out() == struct.pack("<QQ", SESSION, 1) and rig.path.shipment_out() is None


def test_where_the_reader_stands_goes_before_the_frames_that_follow() -> None:
    rig = shipping()
    rig.path.shipment.stands_at(0, 0xffffffff)
    rig.path.shipment_out()
    rig.rx(frame(1), port=0)
    assert struct.unpack_from("<HHI", rig.path.shipment_out() or b"", 16) == (0, 64, 0)      # modulo 2**32
    with pytest.raises(IndexError):
        rig.path.shipment.stands_at(16, 1)


# ── the standby's side ───────────────────────────────────────────────────────────────────────────


class Fed:
    """A standby's path and tap, with frames on its ports that nobody may take for input."""

    def __init__(self, **limits: int) -> None:
        self.ports = [ListPort(), ListPort()]
        self.tap = Tap(list(self.ports), SECRET, 20 * MS, fed=True, **limits)
        self.tap.open()
        self.path = StandbyPath(self.tap, Arena(1 << 16), SECRET, 1)
        self.path.begin(SESSION, TERM, 1)

    def ship(self, *frames: tuple[int, bytes], released: int = 0, session: int = SESSION) -> None:
        self.path.inputs(shipment(*frames, released=released, session=session), 5 * MS)


def shipment(*frames: tuple[int, bytes], released: int = 0, session: int = SESSION) -> bytes:
    return struct.pack("<QQ", session, released) + b"".join(
        struct.pack("<HHI", port, len(one), n) + one + bytes(-len(one) % 8) for n, (port, one) in enumerate(frames, 1))


def test_a_tap_that_is_fed_keeps_what_came_by_the_channel_and_nothing_else() -> None:
    fed = Fed()
    fed.ports[0].arrive(frame(7), 1)                                # flooded to both nodes: the active's, and it ships it
    assert fed.tap.poll(2 * MS) == 0 and not fed.ports[0].waiting
    fed.ship((0, frame(1)), (1, frame(2)), (0, frame(1)))
    assert fed.tap.held_inputs() == [(0, frame(1)), (1, frame(2)), (0, frame(1))]
    fed.tap.name_frame(frame(1), 0, 6 * MS)
    assert fed.tap.held_inputs() == [(1, frame(2)), (0, frame(1))]
    fed.tap.discarding = False                                      # the active is lost: from here on it is ours
    fed.ports[0].arrive(frame(8), 1)
    assert fed.tap.poll(7 * MS) == 0
    fed.tap.unfed()
    assert fed.tap.poll(8 * MS) == 1
    burst = Burst()
    fed.tap.replay(burst, 8)
    assert burst.frames() == [frame(2), frame(1), frame(8)]


def test_outputs_that_left_are_forgotten_as_soon_as_it_is_said() -> None:
    fed = Fed()
    for seq in range(4):
        fed.tap.expect_frame(seq, 1, frame(seq), MS)
    fed.ship((1, frame(0)))                                         # as input it is another frame: outputs are not seen here
    assert fed.tap.waiting_outputs == 4 and fed.tap.waiting_inputs == 1
    fed.tap.forget_released(3)
    assert fed.tap.unseen_outputs() == [(3, 1, frame(3))]
    assert not fed.path.may_still_come()                            # nothing to wait for: it would pass unseen


def test_it_knows_where_the_active_stood() -> None:
    fed = Fed()
    fed.ship((0, frame(1)))
    assert fed.tap.stood_at(0) is None
    fed.path.inputs(struct.pack("<QQHHI", SESSION, 0, 0, 0, 41), MS)
    assert (fed.tap.stood_at(0), fed.tap.stood_at(1)) == (41, None)


def test_a_shipment_that_does_not_add_up_is_taken_as_a_whole_or_not_at_all() -> None:
    whole = shipment((0, frame(1)), (1, frame(2, 65)))
    fed = Fed()
    ends = {16, 16 + 8 + 64, len(whole)}
    for n in range(len(whole)):
        if n not in ends:
            with pytest.raises(PeerError):
                fed.path.inputs(whole[:n], MS)
    for bad in (shipment((2, frame(1))), shipment((0, frame(1)), session=SESSION + 1), shipment((0, frame(1)), (0, bytes(9217)))):
        with pytest.raises(PeerError):
            fed.path.inputs(bad, MS)
    assert fed.tap.waiting_inputs == 0 and fed.tap.counters()["seen"] == 0
    fed.tap.unfed()
    with pytest.raises(PeerError):                                  # from a peer that was set up otherwise
        fed.path.inputs(whole, MS)


def test_a_full_buffer_shows() -> None:
    fed = Fed(frames_max=256)
    fed.ship(*[(0, frame(n)) for n in range(300)])
    assert fed.tap.counters()["overflow"] == 300 - fed.tap.waiting_inputs > 0 and not fed.tap.is_exact(6 * MS)


# ── real pairs on real switches ──────────────────────────────────────────────────────────────────


class Bare(VethRig):
    SEGMENT: ClassVar[Segment] = "bare"


def settle(rig: PairRig) -> None:
    """The traffic ends, and what is on its way arrives."""
    rig.traffic.pause()
    before = (0, 0)
    while before != (before := (rig.traffic.received[0], rig.traffic.received[1])):
        time.sleep(0.3)


@pytest.mark.box
@BOTH
def test_a_takeover_loses_what_the_dead_kernel_held_and_says_how_much(profile: str) -> None:
    with Bare(profile, NAT, input="ship", frames_s=3000, announce_refresh_s=0) as rig:
        for n in range(3):
            until(lambda n=n: min(rig.traffic.received) > 1000 * (n + 1))
            rig.kill_active()
            rig.protected(n + 2)
        receipts = rig.receipts(3)
        settle(rig)
        lost = sum(map(len, rig.traffic.lost()))
        assert rig.traffic.strange == 0 and rig.traffic.doubled <= sum(r["reemitted"] for r in receipts)
        assert [r["exact"] for r in receipts] == [profile == "host"] * 3       # of another machine nobody can ask
        if profile == "host":
            assert lost == sum(r["stranded"] for r in receipts) == sum(r["lost"] for r in receipts)
        assert sum(rig.through()) == sum(rig.traffic.received) + rig.opened     # what is emitted again is not counted again


@pytest.mark.box
@BOTH
def test_a_planned_switch_loses_what_came_to_the_old_node_meanwhile(profile: str) -> None:
    with Bare(profile, NAT, input="ship", frames_s=2000, announce_refresh_s=0) as rig:
        until(lambda: min(rig.traffic.received) > 500)
        old = rig.active
        rig.pair.switch()
        (receipt,) = rig.receipts(1)
        assert rig.active != old and receipt["reemitted"] == 0
        settle(rig)
        lost = sum(map(len, rig.traffic.lost()))
        assert (rig.traffic.strange, rig.traffic.doubled) == (0, 0)
        if profile == "host":
            assert lost == receipt["stranded"]
