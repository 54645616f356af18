"""Encoded epochs: what is decoded is what was captured, byte for byte, or nothing; a frame the tap lost costs time only (I5, I7, I14)."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfckpt.checkpoint.delta import FAULTS, DeltaDecoder, DeltaEncoder
from nfckpt.checkpoint.engine import Engine
from nfckpt.config import Bounds
from nfckpt.errors import PeerError
from nfckpt.native.active_path import ActivePath
from nfckpt.native.arena import Arena
from nfckpt.native.epoch import EpochRecord
from nfckpt.native.tap import Tap
from tests.delta_twin import Before, read_delta
from tests.native_lab import MS, SECRET, ListPort, frame
from tests.test_epoch import PAGES, SESSION, TERM, Rig, Standby, bytes_of, decode


class Pair:
    """An active that keeps inputs, an encoder; a standby's arena, tap and decoder; a reader beside them that believes nobody."""

    def __init__(self, from_inputs: bool = True) -> None:
        self.rig, self.standby = Rig(), Standby()
        self.encoder = DeltaEncoder(self.rig.arena, SECRET, 1024, 1024)
        self.encoder.restart()
        self.encoder.from_inputs = from_inputs
        self.path = ActivePath(self.rig.agent, Engine(Bounds()), self.rig.writer, 8)
        self.path.encode_with(self.encoder)
        self.decoder = DeltaDecoder(SECRET)
        self.before = Before()
        self.inputs: dict[int, bytes] = {}
        self.tap = Tap([ListPort(), ListPort()], SECRET, 20 * MS)

    def process(self, got: list[tuple[int, bytes]], rng: random.Random, tap: bool = True) -> None:
        """Frames through an app that rewrites, drops, and makes some of its own."""
        rig = self.rig
        self.tap.reset()
        self.tap.open()
        for port, data in got:
            rig.ports[port].arrive(data, 1)
            if tap:
                self.tap.offer(data, port, 1)
        while n := rig.agent.rx_burst(rig.burst, 32):
            for i in range(n):
                if rng.random() < 0.2:
                    continue
                rig.burst.set_frame(i, rewrite(rig.burst.frame(i), rng))
                rig.burst.send(i, rng.randrange(2))
            rig.agent.finish(rig.burst)
        if rng.random() < 0.3:
            rig.agent.emit(rng.randrange(2), rng.randbytes(rng.randrange(1, 200)))

    def encode(self, pages: int = 0) -> tuple[bytearray, bytes]:
        raw = self.rig.build(pages, ports_empty=self.rig.epoch % 4)
        return raw, bytes(self.encoder.encode_record(raw, 2))

    def cross(self, raw: bytearray, coded: bytes, inputs: list[tuple[int, bytes]]) -> None:
        """One record to the standby, by both readers."""
        if coded[:4] == b"NFD1":
            for (_, key), data in zip(decode(bytes(raw)).names, inputs, strict=True):
                self.inputs[key] = data
            read = read_delta(coded, SECRET, bytes_of(self.standby.arena), self.inputs, self.before)
            assert read.record == bytes(raw)
            record = self.decoder.decode_record(coded, self.standby.arena, self.tap, 2)
            assert record is not None and bytes(record) == read.record
            assert len(coded) < len(raw)
        else:
            assert coded == bytes(raw)
        head = decode(bytes(raw)).head
        self.before = Before(*(head[k] for k in Before._fields))
        self.decoder.follow_record(raw)
        EpochRecord(bytearray(raw), self.standby.arena, 2).swap(self.standby.arena)


def rewrite(data: bytes, rng: random.Random) -> bytes:
    """Some runs of other bytes, and now and then a shorter frame."""
    for _ in range(rng.randrange(5)):
        at = rng.randrange(len(data))
        other = rng.randbytes(min(rng.randrange(12), len(data) - at))
        data = data[:at] + other + data[at + len(other):]
    return data[:rng.randrange(len(data)) + 1] if rng.random() < 0.1 else data


FRAME = st.tuples(st.integers(0, 1), st.integers(1, 1514), st.integers(0, 1 << 16))


def order(rig: Rig, got: list[tuple[int, bytes]], raw: bytearray) -> list[tuple[int, bytes]]:
    """`got` as the agent named it: per port in order, ports as the record has them."""
    queues = {p: [f for q, f in got if q == p] for p in (0, 1)}
    return [(port, queues[port].pop(0)) for port, _ in decode(bytes(raw)).names]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32),
       st.lists(st.tuples(st.lists(FRAME, max_size=12), st.integers(0, 12), st.sampled_from((0, 0, 3))), min_size=1, max_size=6))
def test_what_is_decoded_is_what_was_captured(seed: int, epochs: list[tuple[list[tuple[int, int, int]], int, int]]) -> None:
    """Any frames, rewrites, writes and pages: kernel and reader give the record back, and both arenas end alike."""
    rng = random.Random(seed)
    pair = Pair()
    for frames, writes, pages in epochs:
        got = [(port, random.Random(which).randbytes(size)) for port, size, which in frames]
        pair.process(got, rng)
        pair.rig.scribble(rng, writes)
        raw, coded = pair.encode(pages)
        pair.cross(raw, coded, [f for _, f in order(pair.rig, got, raw)])
    pair.rig.writer.restart_sync()
    raw, coded = pair.encode(PAGES)
    pair.cross(raw, coded, [])
    assert bytes_of(pair.rig.arena) == bytes_of(pair.standby.arena)


GOLDEN = (
    "4e464431" "103c9153eec3fd6b" "49ca0758dc08697f"         # magic, check, window_hash
    "9802" "00"                                             # 280 bytes, flags
    "88ef99abc5e88c9111" "07" "01" "d40f" "00" "00" "02"    # session, term, epoch, now_ns, released_through, first_seq, echo_ns
    "01" "8062" "00" "01" "02" "00"                         # port 0 empty, window at 12544, no name, one output, two lines, no page
    "00" "01" "14" "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"        # whole, to port 1, 20 bytes
    "8601" "02" "081122"                                    # line 67: of word 1 two bytes from byte 0
    "02" "03" "0a1122" "81"                                 # line 68: of word 0 two bytes from byte 2; word 1 as the one before that
)


def test_golden_bytes() -> None:
    """The wire form is a promise: a change of any byte needs another magic."""
    pair = Pair()
    pair.rig.agent.emit(1, b"\xaa" * 20)
    for at in (64 * 3 + 8, 64 * 4 + 2, 64 * 4 + 8):
        pair.rig.arena.write_bytes(pair.rig.off + at, b"\x11\x22")
    raw, coded = pair.encode()
    assert coded.hex() == GOLDEN
    pair.cross(raw, coded, [])
