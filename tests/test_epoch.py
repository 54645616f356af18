"""Epoch record: what is captured is what arrives; swap undoes itself; nothing that does not add up gets in (I4, I7, I8, I14)."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfckpt.errors import PeerError, StateError
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.epoch import EpochRecord, EpochWriter
from nfckpt.native.gate import Gate
from nfckpt.native.standby_path import StandbyPath
from nfckpt.native.sync import PageSync
from nfckpt.native.tap import Tap
from tests.native_lab import MS, SECRET, ListPort, frame
from tests.test_wire_shm import ring_pair

PAGES = 12
SESSION, TERM = 0x1122334455667788, 7
HEADER = struct.Struct("<4sHH 3Q 4Q 6I 2Q Q 32s")
FIELDS = [
    "magic", "version", "flags", "session", "term", "epoch", "now_ns", "released_through", "first_seq", "echo_ns", "n_names",
    "n_outputs", "output_bytes", "n_lines", "n_pages", "ports_empty", "window_off", "window_hash", "total_bytes", "ages",
]
ACK = struct.Struct("<4Q2I")


class Decoded(NamedTuple):
    """What a record says, by a reader that shares no line with the kernel's."""

    head: dict[str, int]
    names: list[tuple[int, int]]
    outputs: list[tuple[int, bytes]]
    lines: list[tuple[int, bytes]]
    pages: list[tuple[int, bytes]]


def decode(record: bytes) -> Decoded:
    """Raises AssertionError or struct.error for a record that does not add up."""
    head = dict(zip(FIELDS, HEADER.unpack_from(record), strict=True))
    assert head["magic"] == b"NFE1" and head["version"] == 2 and head["total_bytes"] == len(record)
    at = HEADER.size

    def part(n: int) -> bytes:
        nonlocal at
        assert at + n <= len(record)
        at += n
        return record[at - n:at]

    def padded(n: int) -> bytes:
        return part(-(-n // 8) * 8)[:n]

    keys = struct.unpack(f"<{head['n_names']}Q", part(8 * head["n_names"]))
    names = list(zip(padded(head["n_names"]), keys, strict=True))
    outputs, end = [], at + head["output_bytes"]
    assert head["n_outputs"] * 8 <= head["output_bytes"]
    for _ in range(head["n_outputs"]):
        port, n, _ = struct.unpack("<HHI", part(8))
        assert n
        outputs.append((port, padded(n)))
    assert at == end

    def blocks(n: int, size: int) -> list[tuple[int, bytes]]:
        numbers = struct.unpack(f"<{n}I", padded(4 * n))
        return [(number, part(size)) for number in numbers]

    lines, pages = blocks(head["n_lines"], 64), blocks(head["n_pages"], 4096)
    assert at == len(record)
    return Decoded(head, names, outputs, lines, pages)


class Rig:
    """An active without a node: arena, agent, gate, writer. `build()` is a capture of what was done since the last one."""

    def __init__(self) -> None:
        self.arena = Arena(PAGES * 4096)
        self.off = self.arena.region("all", (PAGES - 1) * 4096)
        self.arena.seal()
        self.ports = [ListPort(), ListPort()]
        self.gate = Gate(list(self.ports), 1024, 2 << 20)
        self.agent = Agent(list(self.ports), self.arena, self.gate, SECRET, names_max=1024)
        self.agent.recording = True
        self.writer = EpochWriter(SECRET)
        self.epoch = 1
        self.burst = Burst()

    def consume(self, *frames: tuple[int, bytes]) -> None:
        for port, got in frames:
            self.ports[port].arrive(got, 1)
        while self.agent.rx_burst(self.burst, 64):
            self.agent.drop(self.burst)

    def build(self, sync: PageSync | None = None, ports_empty: int = 0, pages: bool = True) -> bytearray:
        self.epoch += 1
        return bytearray(self.writer.build(self.arena, self.gate, self.agent.names, SESSION, TERM, self.epoch - 1, 1000 + self.epoch,
                                           1, ports_empty, sync, pages, (5, 300)))

    def sync(self, pages: int) -> PageSync | None:
        """One that begins, in groups of `pages`; None for 0."""
        if not pages:
            return None
        sync = PageSync(self.arena, pages)
        sync.begin()
        return sync

    def scribble(self, rng: random.Random, n: int) -> None:
        for _ in range(n):
            size = rng.choice((1, 8, 64, 65, 300))
            self.arena.write_bytes(self.off + rng.randrange((PAGES - 1) * 4096 - size), rng.randbytes(size))


def bytes_of(arena: Arena) -> bytes:
    return arena.view().tobytes()


# ── the record ───────────────────────────────────────────────────────────────────────────────────


def test_a_record_says_what_was_done() -> None:
    rig = Rig()
    rig.build()
    rig.consume((0, frame(1)), (1, frame(2)), (0, frame(1)))
    rig.agent.emit(1, frame(3, 61))
    rig.agent.emit(0, frame(4, 1514))
    rig.arena.write_bytes(rig.off + 64 * 70, b"hello")
    record = rig.build(ports_empty=2)
    said = decode(record)
    assert said.outputs == [(1, frame(3, 61)), (0, frame(4, 1514))]
    assert said.head["ages"] == struct.pack("<16H", 5, 300, *[0] * 14)
    assert [port for port, _ in said.names] in ([0, 0, 1], [1, 0, 0])
    keys = [key for port, key in said.names if port == 0]
    assert keys[0] == keys[1] and len({key for _, key in said.names}) == 2
    assert said.lines == [(rig.off // 64 + 70, b"hello".ljust(64, b"\0"))] and said.pages == []
    got = EpochRecord(record, rig.arena, 2)
    for name in ("session", "term", "epoch", "now_ns", "released_through", "first_seq", "echo_ns", "ports_empty", "n_names",
                 "n_outputs", "n_lines", "n_pages"):
        assert getattr(got, name) == said.head[name], name
    assert (got.session, got.term, got.epoch, got.ports_empty, got.first_seq, got.next_seq) == (SESSION, TERM, 2, 2, 0, 2)
    empty = decode(rig.build())             # a capture drains
    assert (empty.names, empty.outputs, empty.lines, empty.head["first_seq"]) == ([], [], [], 2)
    assert empty.head["ages"] == bytes(32)  # of nothing
    assert rig.gate.held_frames == 2 and rig.gate.uncaptured == 0


GOLDEN = (
    "4e46453102000000887766554433221107000000000000009900000000000000"
    "08070605040302010b0a0000000000000b0a0000000000001817161514131211"
    "0000000000000000000000000000000000000000030000000009000000000000"
    "ef30aef2e4a271569000000000000000"
    "0000000000000000000000000000000000000000000000000000000000000000"
)


def test_golden_header() -> None:
    """The wire form is a promise: a change of any byte needs another version."""
    rig = Rig()
    rig.gate.start_at(0x0a0b)
    rig.arena.forget_writes()
    record = rig.writer.build(rig.arena, rig.gate, rig.agent.names, SESSION, TERM, 0x99, 0x0102030405060708, 0x1112131415161718, 3)
    assert bytes(record[:144]).hex() == GOLDEN
    head = decode(bytes(record)).head
    assert [head[k] for k in FIELDS if k != "window_hash"] == [
        b"NFE1", 2, 0, SESSION, TERM, 0x99, 0x0102030405060708, 0x0a0b, 0x0a0b, 0x1112131415161718, 0, 0, 0, 0, 0, 3,
        0x99 * 2654435761 % (PAGES * 16) * 256, 144, bytes(32)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 5), st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=12))
def test_swap_and_unswap_are_inverse(seed: int, group: int, epochs: list[tuple[int, bool]]) -> None:
    """Any dirty lines, with pages of a running sync among them: forward the standby is the active as far as the sync has come,
    back it is what it was. Each page crosses once, and no line whose page is still to come."""
    rng = random.Random(seed)
    rig, standby, whole = Rig(), Arena(PAGES * 4096), False
    rig.scribble(rng, 20)
    stages, records, crossed, sync = [bytes_of(standby)], [], [], PageSync(rig.arena, group)
    sync.begin()
    for writes, pages in epochs:
        rig.scribble(rng, writes)
        before = sync.next
        memory = rig.build(sync, pages=pages)
        said = decode(memory)
        crossed += [number for number, _ in said.pages]
        assert len(crossed) == len(set(crossed)) and all(number // 64 < before for number, _ in said.lines)
        record = EpochRecord(memory, standby, 2)
        assert (record.n_lines, record.n_pages) == (len(said.lines), len(said.pages))
        record.swap(standby)
        mirror = bytearray(stages[-1])
        for blocks, size in ((said.lines, 64), (said.pages, 4096)):
            for number, data in blocks:
                mirror[number * size:(number + 1) * size] = data
        assert bytes_of(standby) == mirror
        whole = whole or record.last
        assert whole == sync.done
        assert bytes_of(standby)[:sync.next * 4096] == bytes_of(rig.arena)[:sync.next * 4096]
        if whole:
            assert bytes_of(standby) == bytes_of(rig.arena) and record.agrees(standby, SECRET)
        stages.append(bytes_of(standby))
        records.append(record)
    for record, stage in zip(reversed(records), reversed(stages[:-1]), strict=True):
        record.unswap(standby)
        assert bytes_of(standby) == stage
    for record, stage in zip(records, stages[1:], strict=True):
        record.swap(standby)
        assert bytes_of(standby) == stage


def test_a_line_inside_a_page_is_undone_exactly() -> None:
    """No honest active sends both."""
    rig, standby = Rig(), Arena(PAGES * 4096)
    rig.arena.forget_writes()
    rig.arena.write_bytes(rig.off, b"\xdd" * 4096)
    before = b"\x55" * (PAGES * 4096)
    standby.write_bytes(0, before)
    memory = rig.build() + struct.pack("<2I", rig.off // 4096, 0) + b"\xee" * 4096
    struct.pack_into("<I", memory, 80, 1)                # n_pages
    struct.pack_into("<Q", memory, 104, len(memory))
    record = EpochRecord(memory, standby, 2)
    assert record.n_lines == 64 and record.n_pages == 1
    record.swap(standby)
    assert bytes_of(standby)[rig.off:rig.off + 4096] == b"\xee" * 4096
    record.unswap(standby)
    assert bytes_of(standby) == before


def test_a_line_named_twice_is_undone_exactly() -> None:
    rig, standby = Rig(), Arena(PAGES * 4096)
    rig.arena.forget_writes()
    for n in range(3):
        rig.arena.write_bytes(rig.off + 64 * n, bytes([n + 1]) * 64)
    memory = rig.build()
    struct.pack_into("<3I", memory, HEADER.size, 70, 70, 70)      # the numbers of its three lines
    record = EpochRecord(memory, standby, 2)
    record.swap(standby)
    assert bytes_of(standby)[70 * 64:71 * 64] == b"\x03" * 64
    record.unswap(standby)
    assert not any(bytes_of(standby))


def test_the_window_finds_a_silent_difference() -> None:
    rig, standby = Rig(), Arena(PAGES * 4096)
    rig.scribble(random.Random(1), 30)
    record = EpochRecord(rig.build(rig.sync(PAGES)), standby, 2)
    record.swap(standby)
    standby.write_bytes(rig.off + 2 * 4096 + 17, b"!" + bytes([bytes_of(standby)[rig.off + 2 * 4096 + 18] ^ 1]))
    seen = 0
    for _ in range(PAGES * 16):             # the window visits every block once in so many epochs
        record = EpochRecord(rig.build(), standby, 2)
        record.swap(standby)
        seen += not record.agrees(standby, SECRET)
    assert seen == 1
    assert not EpochRecord(rig.build(), standby, 2).agrees(standby, SECRET[::-1])


def test_sync_restarts_and_skips_zero_pages() -> None:
    rig = Rig()
    rig.arena.forget_writes()
    rig.arena.view()[::4096].sum()          # every page is there, and all but one read zero
    rig.arena.write_bytes(rig.off + 5 * 4096, b"x")
    sync = PageSync(rig.arena, 8)
    assert sync.done
    for _ in range(2):
        sync.begin()
        assert sync.next == 0 and not sync.done
        said = decode(rig.build(sync))
        assert [number for number, _ in said.pages] == [6] and said.head["flags"] == 0 and sync.next == 8     # 8 were looked at
        said = decode(rig.build(sync))
        assert not said.pages and said.head["flags"] == 1 and sync.done and sync.sent == 1
    assert decode(rig.build(sync)).head["flags"] == 0
    with pytest.raises(StateError):
        EpochWriter(b"short")


def test_holes_of_the_arena_are_never_touched() -> None:
    """Reading a hole of a memfd allocates it: a sync of an empty GiB would take a GiB."""
    arena = Arena(1 << 30)
    off = arena.region("all", (1 << 30) - 4096)
    for page in (0, 1, 70_000, 262_142):
        arena.write_bytes(off + page * 4096, b"x")
    arena.forget_writes()
    port, sync = ListPort(), PageSync(arena, 16)
    agent = Agent([port], arena, Gate([port], 64, 1 << 16), SECRET, names_max=64)
    sync.begin()
    seen, records = [], 0
    while not sync.done:
        said = decode(EpochWriter(SECRET).build(arena, agent.gate, agent.names, SESSION, TERM, 1, 0, 0, 0, sync))
        seen += [number for number, _ in said.pages]
        records += 1
    assert seen == [1, 2, 70_001, 262_143] and records == 1
    assert os.fstat(arena.fd).st_blocks * 512 < 16 * 4096


# ── records that do not add up ───────────────────────────────────────────────────────────────────


def samples() -> list[bytes]:
    rng, out = random.Random(4), list[bytes]()
    rig = Rig()
    for names, outputs, writes, pages in ((0, 0, 0, 0), (3, 2, 4, 0), (17, 9, 9, 5), (0, 1, 0, 12), (5, 0, 30, 3), (1, 4, 1, 0)):
        sync = rig.sync(pages)
        if 0 < pages < PAGES:
            rig.build(sync)                 # lines of what it carried may ride with what comes
        rig.consume(*((rng.randrange(2), frame(n)) for n in range(names)))
        for n in range(outputs):
            rig.agent.emit(rng.randrange(2), frame(n, rng.randrange(1, 200)))
        rig.scribble(rng, writes)
        out.append(bytes(rig.build(sync)))
    return out


NASTY = (0, 1, 2, 7, 8, 63, 64, 255, 4096, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, 1 << 61, (1 << 63) + 8, (1 << 64) - 1,
         PAGES, PAGES - 1, PAGES * 64, PAGES * 64 - 1, PAGES * 4096 - 256, PAGES * 4096 - 255)


def mutant(rng: random.Random, record: bytes) -> bytes:
    out = bytearray(record)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        how = rng.randrange(6)
        if how == 0:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif how == 1:
            struct.pack_into("<I", out, 64 + 4 * rng.randrange(6), rng.choice(NASTY) & 0xffffffff)
        elif how == 2:
            struct.pack_into("<Q", out, 8 * rng.randrange(18), rng.choice(NASTY) & 2**64 - 1)
        elif how == 3:
            at = rng.randrange(len(out) - 3)        # near the numbers as often as in the bytes
            at = at if rng.random() < 0.3 else min(HEADER.size + at % 200, len(out) - 4)
            struct.pack_into("<I", out, at, rng.choice(NASTY) & 0xffffffff)
        elif how == 4:
            del out[max(rng.choice((rng.randrange(len(out)), len(out) - 8, len(out) - 1, HEADER.size - 1, HEADER.size)), HEADER.size - 1):]
        else:
            out += rng.randbytes(rng.choice((1, 8, 64, 68, 72)))
        if len(out) < HEADER.size:
            break
    if len(out) >= HEADER.size and rng.random() < 0.6:      # past the first door
        struct.pack_into("<Q", out, 104, len(out))
    return bytes(out)


def test_mutants_are_refused_or_harmless() -> None:
    rng, base = random.Random(5), samples()
    ports = [ListPort(), ListPort()]
    tap = Tap(list(ports), SECRET, MS, 1024, 1 << 16, 1024, 1 << 18)
    arena = Arena(PAGES * 4096)
    arena.write_bytes(0, random.Random(6).randbytes(PAGES * 4096))
    before, canary = arena.view().copy(), bytes(range(128))
    verdicts: dict[str, int] = {}
    for _ in range(24_000):
        bad = mutant(rng, rng.choice(base))
        memory = bytearray(canary + bad + canary)
        try:
            record = EpochRecord(memoryview(memory)[128:-128], arena, 2)
        except PeerError as e:
            verdicts[str(e)] = verdicts.get(str(e), 0) + 1
            assert bytes(memory) == canary + bad + canary
            continue
        verdicts["accepted"] = verdicts.get("accepted", 0) + 1
        said = decode(bad)                  # the independent reader finds nothing wrong either
        assert all(number < PAGES * 64 for number, _ in said.lines) and all(number < PAGES for number, _ in said.pages)
        assert all(port < 2 for port, _ in [*said.names, *said.outputs])
        assert said.head["window_off"] <= PAGES * 4096 - 256
        if not record.register(tap, 1):
            tap.reset()
            tap.open()
        record.swap(arena)
        record.agrees(arena, SECRET)
        record.unswap(arena)
        assert memory[128:-128] == bad and memory[:128] == canary == memory[-128:]
        if verdicts["accepted"] % 16 == 0:
            assert np.array_equal(arena.view(), before)
    assert np.array_equal(arena.view(), before)
    assert len(verdicts) == 11 and min(verdicts.values()) > 20, verdicts


@pytest.mark.parametrize("n", [0, 1, 111])
def test_shorter_than_a_header(n: int) -> None:
    with pytest.raises(PeerError, match="shorter"):
        EpochRecord(bytearray(samples()[0][:n]), Arena(4096), 1)


def test_every_truncation_is_refused() -> None:
    record, arena = samples()[1], Arena(PAGES * 4096)
    for n in range(len(record)):
        for patched in (False, n >= HEADER.size):
            memory = bytearray(record[:n])
            if patched:
                struct.pack_into("<Q", memory, 104, n)
            with pytest.raises(PeerError):
                EpochRecord(memory, arena, 2)


# ── the standby's door ───────────────────────────────────────────────────────────────────────────


class Standby:
    def __init__(self, **limits: int) -> None:
        self.arena = Arena(PAGES * 4096)
        self.ports = [ListPort(), ListPort()]
        self.tap = Tap(list(self.ports), SECRET, 20 * MS, **limits)
        self.path = StandbyPath(self.tap, self.arena, SECRET, 1)
        self.path.begin(SESSION, TERM, 1)
        self.path.tap_open = True
        self.tap.open()

    def refuses(self, record: bytes, why: str) -> None:
        before, epoch = (bytes_of(self.arena), self.tap.counters(), self.tap.waiting_credits, self.tap.waiting_outputs), self.path.epoch
        with pytest.raises(PeerError, match=why):
            self.path.commit(bytearray(record), 5)
        assert before == (bytes_of(self.arena), self.tap.counters(), self.tap.waiting_credits, self.tap.waiting_outputs)
        assert self.path.epoch == epoch


def records(n: int, pages: int = 0) -> tuple[Rig, list[bytearray]]:
    rig, out, rng = Rig(), [], random.Random(8)
    sync = rig.sync(pages)
    for k in range(n):
        rig.consume((0, frame(k)))
        rig.agent.emit(1, frame(1000 + k))
        rig.scribble(rng, 3)
        out.append(rig.build(sync))
    return rig, out


def patched(record: bytes, field: int, value: int) -> bytes:
    out = bytearray(record)
    struct.pack_into("<Q", out, field, value)
    return bytes(out)


def test_records_in_order_are_taken() -> None:
    rig, all_of_them = records(5, PAGES)
    standby = Standby()
    for k, record in enumerate(all_of_them):
        assert standby.path.commit(record, 100 + k)
        assert (standby.path.epoch, standby.path.next_seq, standby.path.commit_ns) == (k + 1, k + 1, 100 + k)
    assert bytes_of(standby.arena) == bytes_of(rig.arena)
    assert standby.path.last_page and standby.path.divergent_epoch == 0 and standby.path.epochs == 5
    assert (standby.tap.waiting_credits, standby.tap.waiting_outputs) == (5, 5)
    assert standby.tap.unseen_outputs() == [(k, 1, frame(1000 + k)) for k in range(5)]


REFUSALS: list[tuple[str, Callable[[list[bytearray]], bytes]]] = [
    ("session or term", lambda r: patched(r[1], 8, SESSION ^ 1)),
    ("session or term", lambda r: patched(r[1], 8, 0)),
    ("session or term", lambda r: patched(r[1], 16, TERM - 1)),
    ("session or term", lambda r: patched(r[1], 16, TERM + 1)),
    ("where 2 was due", lambda r: bytes(r[2])),
    ("where 2 was due", lambda r: bytes(r[0])),
    ("where 2 was due", lambda r: patched(r[1], 24, 1 << 63)),
    ("shorter than its header", lambda r: b""),
    ("another length", lambda r: bytes(r[1]) + bytes(8)),
]


@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_what_does_not_belong_here_is_refused_and_changes_nothing(case: int) -> None:
    """Another session, another term, too early, twice, no record at all; the due one is still welcome."""
    _, three = records(3)
    copy = [bytearray(r) for r in three]
    standby = Standby()
    assert standby.path.commit(three[0], 2)
    why, make = REFUSALS[case]
    standby.refuses(make(copy), why)
    assert standby.path.commit(three[1], 3) and standby.path.epoch == 2


def test_pages_before_the_tap_is_open_are_refused() -> None:
    _, (record,) = records(1, 2)
    standby = Standby()
    standby.path.tap_open = False
    standby.refuses(bytes(record), "before the tap")
    standby.path.tap_open = True
    assert standby.path.commit(record, 6)


def test_nothing_is_taken_before_a_session_began() -> None:
    standby = Standby()
    path = StandbyPath(standby.tap, standby.arena, SECRET, 1)
    rig = Rig()
    record = bytearray(rig.writer.build(rig.arena, rig.gate, rig.agent.names, 0, 0, 1, 0, 0, 0))
    with pytest.raises(PeerError, match="session"):
        path.commit(record, 1)


def test_rule_3_registered_before_the_ack() -> None:
    """The ack's own count of waiting inputs shows it: what the epoch names waits no more when the ack is made."""
    _, (one, two) = records(2)
    standby = Standby()
    mine, active = ring_pair()
    standby.path.attach(mine)
    standby.tap.offer(frame(0), 0, 1)
    standby.tap.offer(frame(77), 0, 2)
    assert standby.path.commit(one, 50)
    kind, payload = active.recv() or (0, memoryview(b""))
    assert kind == 2 and ACK.unpack(payload) == (SESSION, 1, 50, 0, 1, 0)
    assert ACK.unpack(standby.path.ack(9, 51)) == (SESSION, 9, 51, 0, 1, 0)
    assert standby.path.commit(two, 52) and active.recv() is not None


def test_no_room_in_the_tap_is_no_ack_and_takes_nothing() -> None:
    rig = Rig()
    rig.consume(*((0, frame(n)) for n in range(60)))
    first = rig.build()
    rig.consume(*((1, frame(n)) for n in range(10)))
    rig.scribble(random.Random(3), 5)
    second = rig.build()
    kept = bytes(second)
    standby = Standby(frames_max=64)
    mine, active = ring_pair()
    standby.path.attach(mine)
    assert standby.path.commit(first, 2) and active.recv() is not None
    before = bytes_of(standby.arena)
    assert not standby.path.commit(second, 3)
    assert active.recv() is None, "acknowledged before it was registered"
    assert (bytes_of(standby.arena), standby.path.epoch, standby.tap.waiting_credits, bytes(second)) == (before, 1, 60, kept)
    for n in range(60):
        standby.tap.offer(frame(n), 0, 4)
    assert standby.path.commit(second, 5) and standby.path.epoch == 2
    assert ACK.unpack((active.recv() or (0, b""))[1])[1] == 2


def test_a_difference_is_reported_with_its_epoch() -> None:
    rig, (record,) = records(1, PAGES)
    standby = Standby()
    assert standby.path.commit(record, 1) and standby.path.divergent_epoch == 0
    standby.arena.write_bytes(0, b"\xff" * (PAGES * 4096))
    assert standby.path.commit(rig.build(), 2)
    assert standby.path.divergent_epoch == 2
