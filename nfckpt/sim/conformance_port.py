"""Conformance of ports: what nfckpt/ports/port.py promises, tried on any implementation. Run it over yours.

        def test_my_port():
            check_port(lambda: (MyPort("left"), MyPort("right")))      # joined: what one sends the other receives

Each check gets a fresh pair, and closes it. The pair must lose nothing while it is read as it is written. A broken promise
is an AssertionError that begins with the check's name.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from nfckpt.errors import PortError
from nfckpt.native.burst import Burst
from nfckpt.ports.port import Port

__all__ = ["CHECKS", "check_port", "numbered_frame"]

MakePair = Callable[[], tuple[Port, Port]]

ETHERTYPE = 0x88B5              # IEEE 802: local experiments; no stack answers it
PATIENCE_S = 5.0
FULL_FRAMES_MAX = 100_000       # a port that takes so many without a flush has no ring to fill


def numbered_frame(n: int, size: int, vlan: int | None = None) -> bytes:
    """Frame number n, `size` bytes (14 or more, 18 with a tag); its bytes tell its number wherever they fit."""
    head = bytes.fromhex("02000000000a02000000000b")
    if vlan is not None:
        head += struct.pack("!HH", 0x8100, vlan)
    head += struct.pack("!H", ETHERTYPE)
    body = struct.pack("!I", n) + bytes((n + i) & 0xFF for i in range(max(0, size - len(head) - 4)))
    return (head + body)[:size]


def _receive(port: Port, count: int, max_frames: int = 32) -> list[bytes]:
    """`count` frames, or fewer when nothing has come for PATIENCE_S."""
    got: list[bytes] = []
    burst = Burst()
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count and time.monotonic() < deadline:
        burst.reset()
        if port.rx_burst(burst, max_frames):
            got += burst.frames()
            deadline = time.monotonic() + PATIENCE_S
    return got


def _send(port: Port, frames: list[bytes]) -> None:
    left = frames
    deadline = time.monotonic() + PATIENCE_S
    while left:
        left = left[port.tx_burst(left):]
        assert time.monotonic() < deadline, f"{len(left)} frames found the ring full for {PATIENCE_S} s"


def whole_and_in_order(a: Port, b: Port) -> None:
    """Every size from 14 to 1514, both ways, byte for byte."""
    for sender, receiver in ((a, b), (b, a)):
        frames = [numbered_frame(n, n) for n in range(14, 1515)]
        got: list[bytes] = []
        for i in range(0, len(frames), 64):
            _send(sender, frames[i : i + 64])
            got += _receive(receiver, len(frames[i : i + 64]))
        for want, have in zip(frames, got, strict=True):
            assert have == want, f"frame of {len(want)} bytes came as {len(have)}"


def vlan_tags_kept(a: Port, b: Port) -> None:
    """A tag is part of the frame: ids 0, 1, 4095, with priority, up to a full 1518 bytes, and two tags.

    From 20 bytes on: Linux itself drops a tagged frame that ends right after its tag (skb_vlan_untag).
    """
    frames = [numbered_frame(n, size, vlan) for n, (size, vlan) in enumerate(
        [(20, 0), (64, 1), (65, 4095), (66, 0xE001), (1514, 7), (1518, 7)]
    )]
    frames.append(frames[1][:12] + struct.pack("!HH", 0x88A8, 100) + frames[1][12:])
    _send(a, frames)
    assert _receive(b, len(frames)) == frames


def burst_limits_respected(a: Port, b: Port) -> None:
    """Never more than asked for, never more than the burst has room for; what did not fit comes next."""
    frames = [numbered_frame(n, 60 + n % 7) for n in range(300)]
    got: list[bytes] = []
    for i in range(0, 300, 100):
        _send(a, frames[i : i + 100])
        burst = Burst()
        deadline = time.monotonic() + PATIENCE_S
        while len(got) < i + 100 and time.monotonic() < deadline:
            burst.reset()
            n = b.rx_burst(burst, 7)
            assert n == len(burst) <= 7, f"{n} frames, {len(burst)} in the burst, 7 asked for"
            got += burst.frames()
    assert got == frames

    big = [numbered_frame(n, 1514) for n in range(100)]
    small = Burst(32 * 1024)                # room for about 14 of them
    _send(a, big)
    got = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < 100 and time.monotonic() < deadline:
        small.reset()
        n = b.rx_burst(small, 256)
        assert n < 32, f"{n} frames of 1514 bytes in a burst of 32 KB"
        got += small.frames()
    assert got == big
    assert b.rx_burst(Burst(), 0) == 0, "asked for none, got some"


def time_is_monotonic_now(a: Port, b: Port) -> None:
    """ts lies between the sending and the receiving, and port index is what the caller said."""
    before = time.monotonic_ns()
    _send(a, [numbered_frame(n, 64) for n in range(5)])
    burst = Burst()
    deadline = time.monotonic() + PATIENCE_S
    while len(burst) < 5 and time.monotonic() < deadline:
        b.rx_burst(burst, 32, 3)
    after = time.monotonic_ns()
    assert len(burst) == 5
    slack = 100_000                         # two clocks are compared where the kernel stamps: microseconds apart
    assert all(before - slack <= t <= after for t in burst.ts.tolist()), (before, burst.ts.tolist(), after)
    assert burst.port.tolist() == [3] * 5


def full_then_recovers(a: Port, b: Port) -> None:
    """tx answers 0 when the ring is full, loses nothing, and takes more once flushed and read."""
    sent: list[bytes] = []
    while len(sent) < FULL_FRAMES_MAX:
        frame = numbered_frame(len(sent), 60)
        taken = a.tx_frame(frame)
        if taken == 0:
            break
        assert taken == 1
        sent.append(frame)
    full = a.counters()["tx_full"]
    assert full == (1 if len(sent) < FULL_FRAMES_MAX else 0)
    got: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while a.tx_flush() and time.monotonic() < deadline:
        got += _receive(b, 1)
    got += _receive(b, len(sent) - len(got), 256)
    assert len(got) == len(sent) and got == sent
    more = [numbered_frame(n, 61) for n in range(10)]
    _send(a, more)
    assert _receive(b, 10) == more


def refused_for_good(a: Port, b: Port) -> None:
    """Nothing, half a header and a frame for no wire are refused, counted, and do not hold up what follows."""
    junk = [b"", b"\x00", bytes(13), bytes(65_000)]
    good = numbered_frame(1, 60)
    assert [a.tx_frame(f) for f in junk] == [-1] * 4
    _send(a, [junk[0], good, junk[3], good])
    assert _receive(b, 2) == [good, good]
    assert a.counters()["tx_errors"] == 6


def discarded_for_good(a: Port, b: Port) -> None:
    """What discard gave up never arrives; what is sent afterwards does, first thing."""
    waiting = sum(a.tx_frame(numbered_frame(n, 60)) == 1 for n in range(20))
    given_up = a.discard()
    assert given_up in (0, waiting), f"{given_up} of {waiting} given up"
    after = [numbered_frame(100 + n, 60) for n in range(50)]
    _send(a, after)
    assert _receive(b, 50 + waiting - given_up)[-50:] == after
    assert a.counters()["tx_errors"] == given_up


def staged_frames_wait(a: Port, b: Port) -> None:
    """What is staged leaves only after its publish, in order; a port that cannot stage says so and keeps nothing."""
    frames = [numbered_frame(n, 60 + n % 5) for n in range(30)]
    staged = sum(a.stage_frame(f) for f in frames)
    if staged == 0:
        _send(a, frames)
        assert _receive(b, 30) == frames
        return
    assert staged == 30 and a.tx_frame(frames[0]) == 0, "tx went past a staged frame"
    a.tx_flush()
    assert b.rx_burst(Burst()) == 0, "a staged frame left"
    for first, last in ((0, 1), (1, 12), (12, 30)):
        assert [a.publish_frame() for _ in range(first, last)] == [1] * (last - first)
        a.tx_flush()
        assert _receive(b, last - first) == frames[first:last]
        assert b.rx_burst(Burst()) == 0, "a frame left before its publish"
    assert a.publish_frame() == -1
    errors = a.counters()["tx_errors"]
    staged = 0                              # round the ring and until it has no more room
    while staged < FULL_FRAMES_MAX and a.stage_frame(frames[0]):
        staged += 1
    assert not a.stage_frame(bytes(13)) and not a.stage_frame(bytes(65_000))
    assert a.discard() == staged and a.publish_frame() == -1 and a.counters()["tx_errors"] == errors + staged + 1
    _send(a, frames[:3])
    assert _receive(b, 3) == frames[:3]
    assert a.stage_frame(frames[0])         # and closed with one staged


def counters_add_up(a: Port, b: Port) -> None:
    """Frames and bytes sent on one side are frames and bytes received on the other, and nothing else happened."""
    frames = [numbered_frame(n, 60 + 31 * n) for n in range(40)]
    _send(a, frames)
    _receive(b, 40)
    tx, rx = a.counters(), b.counters()
    octets = sum(map(len, frames))
    assert (tx["tx_frames"], tx["tx_bytes"]) == (40, octets) == (rx["rx_frames"], rx["rx_bytes"]), (tx, rx)
    for key in ("rx_ring_drops", "rx_oversize", "rx_bad_checksum", "tx_errors"):
        assert tx[key] == rx[key] == 0, key
    assert tx["rx_frames"] == 0, "a port hears itself"


def close_is_idempotent(a: Port, b: Port) -> None:
    """Close twice; afterwards every call says so, none hangs or crashes, and the counters are still there."""
    _send(a, [numbered_frame(0, 60)])
    a.close()
    a.close()
    calls: tuple[Callable[[], object], ...] = (lambda: a.rx_burst(Burst(), 1), a.tx_flush)
    for call in calls:
        try:
            call()
        except PortError:
            continue
        raise AssertionError("a closed port answers as if it were open")
    assert a.tx_frame(numbered_frame(0, 60)) == -1
    assert a.gone
    assert a.counters()["tx_frames"] == 1


CHECKS: tuple[Callable[[Port, Port], None], ...] = (
    whole_and_in_order, vlan_tags_kept, burst_limits_respected, time_is_monotonic_now, full_then_recovers,
    refused_for_good, discarded_for_good, staged_frames_wait, counters_add_up, close_is_idempotent,
)


def check_port(make_pair: MakePair) -> None:
    """Run every check over fresh pairs. Raises AssertionError, beginning with the name of the check that failed."""
    for check in CHECKS:
        a, b = make_pair()
        try:
            check(a, b)
        except AssertionError as e:
            raise AssertionError(f"{check.__name__}: {e}") from e
        finally:
            a.close()
            b.close()
