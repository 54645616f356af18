"""Where the pair is: announced, repeated, refreshed; and on learning switches the pair's address moves by it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest

from nfckpt.apps.nat import Nat
from nfckpt.apps.nat_plan import NatConfig
from nfckpt.config import Bounds, NodeConfig, PairConfig, check
from nfckpt.deploy.local import LocalPair
from nfckpt.errors import ConfigError
from nfckpt.node.announcer import MS, Announcer
from nfckpt.packet import build
from nfckpt.testbed import netns
from nfckpt.testbed.bench import Bench
from nfckpt.testbed.demo import Demo, TestbedStage, pair_config
from nfckpt.testbed.topology import Testbed, clean, leftovers
from nfckpt.testbed.traffic import Load

FRAMES = [(0, b"lan"), (1, b"wan")]
INSIDE_MAC = NatConfig(inside_ip="10.0.0.1", outside_ips=["198.51.100.1"]).inside_mac


class SilentNat(Nat):
    """The planted bug: nobody is told."""

    def announce(self, ctx: object) -> list[tuple[int, bytes]]:
        return []


def rounds(bounds: Bounds, until_s: float, step_ms: int = 10) -> list[float]:
    """Seconds at which a whole announcement left."""
    sent: list[tuple[int, bytes]] = []
    at: list[float] = []
    announcer, start = Announcer(bounds, FRAMES), 7_000_000_000
    for now in range(0, int(until_s * 1000), step_ms):
        before = len(sent)
        announcer.tick(start + now * MS, lambda *frame: sent.append(frame) is None)
        assert sent[before:] in ([], FRAMES)
        at += [now / 1000] if len(sent) > before else []
    return at


def test_at_once_repeated_then_refreshed() -> None:
    assert rounds(Bounds(announce_repeats=2, announce_gap_ms=500, announce_refresh_s=3), 10) == [0, 0.5, 1.0, 4.0, 7.0]
    assert rounds(Bounds(announce_repeats=1, announce_gap_ms=20, announce_refresh_s=0), 5) == [0, 0.02]
    assert rounds(Bounds(announce_repeats=0, announce_refresh_s=0), 5) == [0]


def test_a_late_tick_does_not_make_up() -> None:
    assert rounds(Bounds(announce_repeats=3, announce_gap_ms=500, announce_refresh_s=0), 9, step_ms=2000) == [0, 2, 4, 6]


def test_what_a_full_gate_refused_is_offered_again() -> None:
    sent: list[tuple[int, bytes]] = []
    room = 1

    def emit(port: int, frame: bytes) -> bool:
        if len(sent) >= room:
            return False
        sent.append((port, frame))
        return True

    announcer = Announcer(Bounds(), FRAMES)
    announcer.tick(0, emit)
    announcer.tick(MS, emit)
    assert sent == FRAMES[:1]
    room = 9
    announcer.tick(2 * MS, emit)
    announcer.tick(3 * MS, emit)
    assert sent == FRAMES


def test_an_app_that_announces_nothing_sends_nothing() -> None:
    Announcer(Bounds(), ()).tick(1 << 62, lambda *_: pytest.fail("emitted"))


def test_each_active_repeats_its_announcement() -> None:
    mine = build.gratuitous_arp(INSIDE_MAC, "10.0.0.1")
    bounds = Bounds(announce_repeats=2, announce_gap_ms=100, announce_refresh_s=0)
    with Bench("nfckpt.apps.nat:Nat", bounds=bounds, inside_ip="10.0.0.1", outside_ips=["198.51.100.1"]) as bench:
        for _ in range(2):
            assert sum(frame.startswith(mine) for frame in bench.receive(0, quiet_s=2.0)) == 3
            bench.kill()
            bench.wait_protected()


@pytest.mark.parametrize(("key", "value"), [("announce_repeats", 101), ("announce_gap_ms", 9), ("announce_refresh_s", -1)])
def test_bounds_that_cannot_be(key: str, value: int) -> None:
    pair = PairConfig(name="x", app="a:B", nodes={n: NodeConfig(ports=["afpacket:lan"]) for n in "ab"}, bounds=msgspec.structs.replace(Bounds(), **{key: value}))
    with pytest.raises(ConfigError, match=key):
        check(pair)


# ---- a learning switch, on real veth


@pytest.fixture
def switch() -> Iterator[Testbed]:
    prefix = f"s{os.getpid()}"
    clean(prefix)
    with Testbed(prefix, "switch") as bed:
        yield bed
    assert leftovers(prefix) == []


class Ends:
    """A packet socket on the lan device of the client and of each node."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.socks = {role: netns.run_in(bed.ns(role), self._open, device) for role, device in (("client", "eth0"), ("a", "lan"), ("b", "lan"))}

    @staticmethod
    def _open(device: str) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind((device, 0))
        sock.setsockopt(263, 23, 1)         # SOL_PACKET, PACKET_IGNORE_OUTGOING
        sock.settimeout(0.1)
        return sock

    def send(self, role: str, to: bytes, source: bytes) -> dict[str, int]:
        """How many copies of the frame each of the others got."""
        frame = to + source + b"\x88\xb5" + os.urandom(50)
        self.socks[role].send(frame)
        return {other: self._count(sock, frame) for other, sock in self.socks.items() if other != role}

    @staticmethod
    def _count(sock: socket.socket, frame: bytes) -> int:
        found = 0
        try:
            while True:
                found += sock.recv(2048) == frame
        except TimeoutError:
            return found

    def close(self) -> None:
        for sock in self.socks.values():
            sock.close()


VIRTUAL, CLIENT, BROADCAST = bytes.fromhex(INSIDE_MAC.replace(":", "")), bytes.fromhex("020000000000"), b"\xff" * 6


@pytest.mark.box
def test_a_switch_with_a_mirror_gives_each_node_each_frame_once(switch: Testbed) -> None:
    ends = Ends(switch)
    try:
        ends.send("client", BROADCAST, CLIENT)
        for active, standby in ("a", "b"), ("b", "a"):
            assert ends.send(active, BROADCAST, VIRTUAL) == {"client": 1, standby: 1}       # an announcement
            assert switch.where(INSIDE_MAC) == {"lan": active}
            assert ends.send("client", VIRTUAL, CLIENT) == {"a": 1, "b": 1}
            assert ends.send("client", BROADCAST, CLIENT) == {"a": 1, "b": 1}
            assert ends.send(active, CLIENT, VIRTUAL) == {"client": 1, standby: 1}
        switch.cut("b.lan")                                                                # where the address was
        assert switch.where(INSIDE_MAC) == {}
        assert ends.send("client", VIRTUAL, CLIENT) == {"a": 1, "b": 0}                     # flooded
        assert ends.send("b", BROADCAST, VIRTUAL) == {"client": 0, "a": 0}
        assert ends.send("a", BROADCAST, VIRTUAL) == {"client": 1, "b": 0}
        switch.mend("b.lan")
        assert switch.where(INSIDE_MAC) == {"lan": "a"}
        assert ends.send("client", VIRTUAL, CLIENT) == {"a": 1, "b": 1}
    finally:
        ends.close()


def test_a_segment_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="token ring"):
        Testbed("x", "token ring")      # type: ignore[arg-type]


PATIENT = Bounds(hang_ms_max=1500, rate_frames_per_s=20_000)        # a busy machine's stalls are not what is tested
LIGHT = Load(udp_frames_s=2000, udp_reverse_frames_s=500, tcp_connections=20, tcp_opens_s=5, tcp_bits_s=5e5)


@pytest.mark.box
@pytest.mark.parametrize("profile", ["host", "hosts"])
def test_flows_survive_a_takeover_on_learning_switches(profile: str) -> None:
    stage = TestbedStage(profile, LIGHT, prefix=f"s{os.getpid()}", segment="switch")
    stage.config = pair_config(stage.bed, profile, bounds=PATIENT)
    places: list[dict[str, str]] = []

    def look(name: str, _: int, fields: dict[str, object]) -> None:
        if name == "receipt" or (name == "protected" and not places):
            places.append(stage.bed.where(INSIDE_MAC))

    report = Demo(stage, kills=1, run_s=0.5, ray=False, on_event=look).run()
    assert report.problems == []
    assert places == [{"lan": "a"}, {"lan": "b"}]
    assert [receipt["exact"] for receipt in report.body["receipts"]] == [True]


@pytest.mark.box
@pytest.mark.parametrize(("app", "moved"), [("nfckpt.apps.nat:Nat", {"lan": "b"}), ("tests.test_announce:SilentNat", {"lan": "a"})])
def test_the_address_moves_by_the_announcement(app: str, moved: dict[str, str]) -> None:
    """No frame leaves by lan but what is announced: with nothing announced, the switch goes on sending to the dead node's port."""
    with Testbed(f"s{os.getpid()}", "switch") as bed, LocalPair(pair_config(bed, "host", app, PATIENT)) as pair:
        assert pair.wait_protected() == "a"
        ends = Ends(bed)
        ends.send("a", BROADCAST, VIRTUAL)          # as an earlier life announced it
        ends.close()
        assert bed.where(INSIDE_MAC) == {"lan": "a"}
        pair.kill_active()
        assert pair.wait_protected(term=2) == "b"
        time.sleep(0.05)
        assert bed.where(INSIDE_MAC) == moved
