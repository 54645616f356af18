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
from nfckpt.native.epoch import EpochRecord
from nfckpt.native.sync import PageSync
from nfckpt.native.tap import Tap
from nfckpt.replica import standby
from nfckpt.replica.effects import Effect
from nfckpt.sim.world import World
from nfckpt.wire.messages import decode_outputs
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
        raw = self.rig.build(self.rig.sync(pages), ports_empty=self.rig.epoch % 4)
        return raw, self.encoder.encode_record(raw, 2)

    def cross(self, raw: bytearray, coded: bytes, inputs: list[tuple[int, bytes]]) -> None:
        """One record to the standby, by both readers."""
        if coded[:4] == b"NFD2":
            for (_, key), data in zip(decode(bytes(raw)).names, inputs, strict=True):
                self.inputs[key] = data
            read = read_delta(coded, SECRET, bytes_of(self.standby.arena), self.inputs, self.before)
            assert read.record == bytes(raw)
            record = self.decoder.decode_record(coded, self.standby.arena, self.tap, 2)
            assert record is not None and record == read.record
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
    raw, coded = pair.encode(PAGES)
    pair.cross(raw, coded, [])
    assert bytes_of(pair.rig.arena) == bytes_of(pair.standby.arena)


def test_a_line_written_with_what_it_held_keeps_both_sides_in_step() -> None:
    """It is told as a difference of nothing, and counts among the words that later lines may repeat, on both sides."""
    pair = Pair()
    arena = pair.rig.arena
    stamp = bytes(range(1, 9))
    for line in range(70, 76):
        arena.write_bytes(line * 64, stamp)
    pair.cross(*pair.encode(), [])
    arena.write_bytes(70 * 64, stamp[::-1])
    arena.write_bytes(71 * 64, stamp)                   # as it was
    arena.write_bytes(72 * 64, stamp[::-1])             # the word changed two before
    arena.write_bytes(73 * 64, stamp)
    arena.write_bytes(74 * 64 + 8, stamp[::-1] + stamp)
    raw, coded = pair.encode()
    assert coded[:4] == b"NFD2"
    pair.cross(raw, coded, [])
    assert bytes_of(arena) == bytes_of(pair.standby.arena)


GOLDEN = (
    "4e464432" "35828c98a63c5bc2" "b6921acd3a40cd5d"         # magic, check, window_hash
    "8003" "00"                                             # 384 bytes, flags
    "88ef99abc5e88c9111" "07" "01" "d40f" "00" "00" "02"    # session, term, epoch, now_ns, released_through, first_seq, echo_ns
    "01" "8062" "00" "01" "03" "00"                         # port 0 empty, window at 12544, no name, one output, three lines, no page
    "00" "01" "14" "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"        # whole, to port 1, 20 bytes
    "8c02" "02" "08" "1122"                                 # line 67: of word 1 two bytes from byte 0
    "04" "03" "0a81" "1122"                                 # line 68: of word 0 two bytes from byte 2; word 1 as the one before that
    "05" "3344"                                             # line 69: like line 68
)


def test_golden_bytes() -> None:
    """The wire form is a promise: a change of any byte needs another magic."""
    pair = Pair()
    pair.rig.agent.emit(1, b"\xaa" * 20)
    for at, word in ((64 * 3 + 8, "1122"), (64 * 4 + 2, "1122"), (64 * 4 + 8, "1122"), (64 * 5 + 2, "3344"), (64 * 5 + 10, "1122")):
        pair.rig.arena.write_bytes(pair.rig.off + at, bytes.fromhex(word))
    raw, coded = pair.encode()
    assert coded.hex() == GOLDEN
    pair.cross(raw, coded, [])


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────


def nat_like(rng: random.Random, n: int, size: int) -> list[bytes]:
    return [bytes.fromhex("020000000001020000000002080045000032") + rng.randbytes(size - 18) for _ in range(n)]


@pytest.mark.parametrize("size", [64, 1500])
def test_outputs_cost_less_than_themselves(size: int) -> None:
    """wire_frame_ratio <= 1 with random payload: names and outputs together, by the encoder's count and by the reader's."""
    rng, pair = random.Random(size), Pair()
    rig = pair.rig
    got = nat_like(rng, 32, size)
    for data in got:
        rig.ports[0].arrive(data, 1)
        pair.tap.open()
        pair.tap.offer(data, 0, 1)
    assert rig.agent.rx_burst(rig.burst, 32) == 32
    for i in range(32):         # what a NAT writes: both MACs, TTL, two checksums, an address, a port
        f = bytearray(rig.burst.frame(i))
        f[0:12], f[22:23], f[24:30], f[34:36], f[40:42] = (rng.randbytes(n) for n in (12, 1, 6, 2, 2))
        rig.burst.set_frame(i, bytes(f))
    rig.burst.send(slice(None), 1)
    rig.agent.finish(rig.burst)
    raw, coded = pair.encode()
    pair.inputs = {key: data for (_, key), data in zip(decode(bytes(raw)).names, got, strict=True)}
    read = read_delta(coded, SECRET, bytes_of(pair.standby.arena), pair.inputs, pair.before)
    assert read.frame_bytes == pair.encoder.frame_bytes == len(coded) - pair.encoder.state_bytes
    assert read.frame_bytes < (0.75 if size == 64 else 0.05) * 32 * size
    pair.cross(raw, coded, got)


def test_pages_that_do_not_compress_go_as_they_are() -> None:
    rng, pair = random.Random(1), Pair()
    pair.rig.arena.write_bytes(pair.rig.off, rng.randbytes(4 * 4096) + b"much the same " * 1000)
    pair.rig.arena.forget_writes()
    sizes = []
    sync = PageSync(pair.rig.arena, 4)      # page 0 is zeros, then come the random ones
    sync.begin()
    while not sync.done:
        raw = pair.rig.build(sync)
        coded = pair.encoder.encode_record(raw, 2)
        pair.cross(raw, coded, [])
        sizes.append(len(coded) / len(raw))
    assert 0.99 < sizes[0] < 1 and sizes[1] < 0.1, sizes
    assert bytes_of(pair.rig.arena) == bytes_of(pair.standby.arena)


# ── the standby's door ───────────────────────────────────────────────────────────────────────────


class Door:
    """A real ActivePath that encodes, and a real StandbyPath; `session` bytes travel by hand."""

    def __init__(self) -> None:
        self.rig, self.there = Rig(), Standby()
        self.path = ActivePath(self.rig.agent, Engine(Bounds()), self.rig.writer, 8)
        self.path.encode_with(DeltaEncoder(self.rig.arena, SECRET, 1024, 1024))
        self.path.begin(SESSION, TERM, 1)
        self.path.tap_opened()
        self.path.holding = True
        self.before = b""               # the record taken last

    def epoch(self, *got: bytes, seen: bool = True) -> bytes:
        """Frames in on port 0, out on port 1 with another first byte, a write for each; the message that says so."""
        rig = self.rig
        for data in got:
            rig.ports[0].arrive(data, 1)
            if seen:
                self.there.tap.offer(data, 0, 1)
        rig.agent.rx_burst(rig.burst, 32)
        for i in range(len(got)):
            rig.burst.set_frame(i, b"\xee" + rig.burst.frame(i)[1:])
            rig.arena.write_bytes(rig.off + 64 * got[i][0], got[i][:4])
        rig.burst.send(slice(None), 1)
        rig.agent.finish(rig.burst)
        assert self.path.poll(2)
        message = bytes(self.path.staged or b"")
        self.path.shipped()
        assert message[:4] == b"NFD2"
        return message

    def commit(self, message: bytes) -> bool:
        return self.there.path.commit(bytearray(message), 5)


def outputs(there: Standby) -> list[bytes]:
    return [data for _, _, data in there.tap.unseen_outputs()]


def test_an_input_that_comes_late_is_waited_for() -> None:
    door = Door()
    message = door.epoch(frame(7), seen=False)
    before = bytes_of(door.there.arena)
    assert not door.commit(message) and door.there.path.missing
    assert (door.there.path.epoch, door.there.tap.waiting_credits, bytes_of(door.there.arena)) == (0, 0, before)     # nothing of it
    door.there.ports[0].arrive(frame(7), 3)          # in the port's ring, not read yet: the path looks
    assert door.commit(message) and not door.there.path.missing
    assert outputs(door.there) == [b"\xee" + frame(7)[1:]] and door.there.tap.waiting_inputs == 0
    assert bytes_of(door.there.arena) == bytes_of(door.rig.arena)


def test_an_input_the_tap_lost_is_made_up_for() -> None:
    """The active's gate still has every output of an epoch that is not committed."""
    door = Door()
    first = door.epoch(frame(1))
    message = door.epoch(frame(7, 61), frame(8, 1500), seen=False)
    assert door.commit(first) and not door.commit(message) and door.there.path.missing
    answer = door.path.outputs_of(2)
    session, epoch, whole = decode_outputs(memoryview(answer))
    assert (session, epoch) == (SESSION, 2)
    for bad in (whole[:-8], b"", whole[8:], b"\0" * len(whole)):
        door.there.path.supply(bytes(bad))
        if len(bad):
            with pytest.raises(PeerError, match="outputs that are not its own"):
                door.commit(message)
        else:
            assert not door.commit(message)
    door.there.path.supply(bytes(whole))
    assert door.commit(message)
    assert outputs(door.there) == [b"\xee" + f[1:] for f in (frame(1), frame(7, 61), frame(8, 1500))]
    assert door.there.tap.waiting_credits == 2           # their names wait for the frames, as ever
    assert door.commit(door.epoch(frame(9)))             # what was supplied is not taken for the next one's
    assert outputs(door.there) == [b"\xee" + frame(9)[1:]]


def test_outputs_are_given_for_what_is_on_its_way_only() -> None:
    door = Door()
    door.epoch(frame(1))
    for epoch in (0, 2, 1 << 63):
        with pytest.raises(PeerError, match="were asked for"):
            door.path.outputs_of(epoch)
    assert frame(1)[1:] in door.path.outputs_of(1)
    assert door.path.outputs_of(1)[:16] == SESSION.to_bytes(8, "little") + (1).to_bytes(8, "little")


def test_a_supplied_output_that_is_another_is_seen() -> None:
    """Outputs of the right lengths with a wrong byte: the check of the whole record says so, and nothing is acknowledged."""
    door = Door()
    message = door.epoch(frame(7), seen=False)
    whole = bytearray(door.path.outputs_of(1)[16:])
    whole[20] ^= 1
    door.there.path.supply(bytes(whole))
    assert not door.commit(message) and door.there.path.divergent_epoch == 1 and door.there.path.epoch == 0


def test_a_frame_that_the_wire_padded_is_the_same_input() -> None:
    door = Door()
    message = door.epoch(frame(7, 42), seen=False)
    door.there.tap.offer(frame(7, 42).ljust(60, b"\0"), 0, 1)
    assert door.commit(message) and outputs(door.there) == [b"\xee" + frame(7, 42)[1:]]


def test_an_arena_that_differs_is_divergent_and_not_acknowledged() -> None:
    """XOR against other bytes gives other bytes: they must not be applied, and the standby must not be promoted with them."""
    door = Door()
    assert door.commit(door.epoch(frame(7)))
    door.there.arena.write_bytes(door.rig.off + 64 * 7 + 40, b"\1")
    before = bytes_of(door.there.arena)
    assert not door.commit(door.epoch(frame(7)))
    assert door.there.path.divergent_epoch == 2 and door.there.path.epoch == 1 and bytes_of(door.there.arena) == before


def test_a_part_that_comes_twice_or_out_of_order_is_refused() -> None:
    door = Door()
    first, second, third = door.epoch(frame(1)), door.epoch(frame(2)), door.epoch(frame(3))
    assert door.commit(first)
    for message in (first, third):
        door.there.refuses(message, "does not follow")
    assert door.commit(second) and door.commit(third)
    assert bytes_of(door.there.arena) == bytes_of(door.rig.arena)
    other = Door()
    other.path.begin(SESSION + 1, TERM, 1)
    other.path.tap_opened()
    fresh = Door()
    fresh.there.tap.offer(frame(1), 0, 1)
    fresh.there.refuses(other.epoch(frame(1)), "another session")
    fresh.there.refuses(door.epoch(frame(4)), "does not follow")


def test_a_new_session_begins_with_a_blank_shadow() -> None:
    door = Door()
    door.epoch(frame(1))
    door.path.end()
    door.path.engine.channel_lost()
    again = Door()
    door.there = again.there
    door.path.begin(SESSION, TERM, 1)
    door.path.sync.begin()
    door.path.sync_pages = True
    door.there.path.begin(SESSION, TERM, 2)
    message = door.epoch(frame(1), seen=False)          # the tap is not open: it must not be needed
    assert door.commit(message) and not door.there.path.missing
    assert bytes_of(door.there.arena) == bytes_of(door.rig.arena)


def test_pairs_ask_and_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated pairs whose taps lose frames: outputs are asked for, come, and no promise is broken on the way."""
    seen = Counter[str]()
    need, decoded = standby.Standby._need, standby.decode_outputs

    def asks(self: standby.Standby, now: int) -> list[Effect]:
        effects = need(self, now)
        seen["asked"] += len(effects)
        return effects

    def answers(payload: memoryview) -> tuple[int, int, memoryview]:
        seen["answered"] += 1
        return decoded(payload)

    monkeypatch.setattr(standby.Standby, "_need", asks)
    monkeypatch.setattr(standby, "decode_outputs", answers)
    for seed in range(12):
        World(seed).run()
    assert seen["asked"] >= seen["answered"] > 0, seen


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def samples() -> list[tuple[bytes, Door]]:
    """Encodings that use every part of the format, each with the standby it is for."""
    out = []
    for seed in range(3):
        rng, door = random.Random(seed), Door()
        first = door.epoch(*(frame(rng.randrange(40), rng.choice((60, 99, 200))) for _ in range(5)))
        record = DeltaDecoder(SECRET).decode_record(first, door.there.arena, door.there.tap, 2)
        assert record is not None
        door.before = bytes(record)
        assert door.commit(first)
        door.rig.scribble(rng, 30)
        door.rig.agent.emit(0, rng.randbytes(70))
        if seed:
            door.path.sync.begin()
            door.path.sync_pages = True
        out.append((door.epoch(*(frame(rng.randrange(40), rng.choice((60, 99, 200))) for _ in range(9))), door))
    return out


def test_mutants_are_refused_or_divergent() -> None:
    """No bytes of a peer get further than the check: an error with its reason, a wait for an input, or `divergent`."""
    rng, seen = random.Random(7), Counter[str]()
    for message, door in samples():
        decoder, arena = DeltaDecoder(SECRET, 1 << 20), door.there.arena
        decoder.follow_record(bytearray(door.before))
        good = decoder.decode_record(message, arena, door.there.tap, 2)
        assert good is not None
        before = bytes_of(arena)
        for _ in range(6000):
            mutant = bytearray(message)
            for _ in range(rng.choice((1, 1, 2, 5))):
                at = rng.randrange(4, 64) if rng.random() < 0.5 else rng.randrange(len(mutant))
                mutant[at] = rng.choice((0, 1, 127, 128, 255, mutant[at] ^ 1 << rng.randrange(8)))
            if rng.random() < 0.2:
                mutant = mutant[:rng.randrange(len(mutant))]
            elif rng.random() < 0.1:
                mutant += rng.randbytes(3)
            try:
                record = decoder.decode_record(bytes(mutant), arena, door.there.tap, 2)
                seen["waits" if record is None else "decodes"] += 1
                assert record is None or record == good
            except PeerError as e:
                seen[e.message.removeprefix("encoded epoch ")] += 1
        assert bytes_of(arena) == before
    unseen = set(FAULTS[1:]) - set(seen)
    assert unseen <= {FAULTS[12], FAULTS[13]}, unseen       # no memory; outputs of another: tested above
    assert seen[FAULTS[14]] > 100
