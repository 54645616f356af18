"""A reader of encoded epochs that shares no line with the kernel's: nfckpt/checkpoint/delta.py, read aloud."""

from __future__ import annotations

import struct
from typing import NamedTuple

import zstandard

from tests.digest_twin import nf_hash

M64 = 2**64 - 1
HEADER = struct.Struct("<4sHH 3Q 4Q 6I 2Q Q 16H")


class Before(NamedTuple):
    """Of the header of the record before."""

    session: int = 0
    term: int = 0
    now_ns: int = 0
    released_through: int = 0
    first_seq: int = 0
    echo_ns: int = 0
    n_outputs: int = 0


class Read(NamedTuple):
    record: bytes
    head: Before
    frame_bytes: int


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def part(self, n: int) -> bytes:
        assert 0 <= n <= len(self.data) - self.at, "cut short"
        self.at += n
        return self.data[self.at - n:self.at]

    def byte(self) -> int:
        return self.part(1)[0]

    def number(self) -> int:
        n = 0
        for shift in range(0, 70, 7):
            b = self.byte()
            n |= (b & 127) << shift
            if b < 128:
                return n & M64
        raise AssertionError("a number without an end")

    def signed(self) -> int:
        return self.sign(self.number())

    @staticmethod
    def sign(n: int) -> int:
        return n >> 1 if n % 2 == 0 else -(n + 1 >> 1)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def read_delta(data: bytes, secret: bytes, arena: bytes, inputs: dict[int, bytes], before: Before, n_ports: int = 2) -> Read:
    """`arena`: before this epoch; `inputs`: key -> frame. Raises AssertionError, KeyError (an input that is not there)."""
    r = Reader(data)
    assert r.part(4) == b"NFD2"
    check, window_hash = struct.unpack("<QQ", r.part(16))
    total, flags = r.number(), r.number()
    session, term, epoch = before.session ^ r.number(), before.term ^ r.number(), r.number()
    now_ns = before.now_ns + r.signed() & M64
    released_through = before.released_through + r.signed() & M64
    first_seq = before.first_seq + before.n_outputs + r.signed() & M64
    echo_ns = before.echo_ns + r.signed() & M64
    ports_empty, window_off, n_names, n_outputs, n_lines, n_pages = (r.number() for _ in range(6))
    ages = [r.number() for _ in range(n_ports)] if n_names else []
    frames_at = r.at
    names = r.part(8 * n_names)
    keys = struct.unpack(f"<{n_names}Q", names)
    ports = b""
    while len(ports) < n_names:
        port, run = r.byte(), r.number()
        assert 0 < run <= n_names - len(ports)
        ports += bytes([port]) * run
    outputs, port, length, following = b"", 0, 0, 0
    for _ in range(n_outputs):
        head = r.byte()
        assert head < 16
        port = port if head & 2 else r.byte()
        length = length if head & 4 else r.number()
        assert 0 < length <= 9216
        if head & 1:
            base = following if head & 8 else r.number()
            following = base + 1
            frame = bytearray(inputs[keys[base]].ljust(length, b"\0")[:length])
            at = 0
            while at < length:
                at += r.number()
                assert at <= length
                if at < length:
                    n = r.number()
                    assert 0 < n <= length - at
                    frame[at:at + n] = r.part(n)
                    at += n
        else:
            frame = bytearray(r.part(length))
        outputs += struct.pack("<HHI", port, length, 0) + padded(bytes(frame))
    frame_bytes = r.at - frames_at
    numbers, lines, number, told = [], b"", 0, [0] * 8
    mask, hows = 0, b""
    for _ in range(n_lines):
        step = r.number()
        number += r.sign(step >> 1)
        numbers.append(number)
        assert 0 <= number * 64 < len(arena)
        if step % 2 == 0:
            mask = r.byte()
            hows = r.part(mask.bit_count())
        words = list(struct.unpack("<8Q", arena[number * 64:number * 64 + 64]))
        if mask == 0:
            lines += r.part(64)
            continue
        left = iter(hows)
        for w in range(8):
            if mask >> w & 1:
                how = next(left)
                if how & 128:
                    assert how < 136
                    words[w] = told[how & 7]
                else:
                    first, n = how & 7, (how >> 3) + 1
                    assert first + n <= 8
                    words[w] ^= int.from_bytes(bytes(first) + r.part(n), "little")
                    told = [words[w], *told[:7]]
        lines += struct.pack("<8Q", *words)
    page_numbers, number, pages = [], 0, b""
    for _ in range(n_pages):
        number += r.signed()
        page_numbers.append(number)
        assert 0 <= number * 4096 < len(arena)
    if n_pages:
        how = r.byte()
        assert how in (0, 1)
        pages = r.part(4096 * n_pages) if how == 0 else zstandard.ZstdDecompressor().decompress(r.part(r.number()))
        assert len(pages) == 4096 * n_pages
    assert r.at == len(data)
    head = HEADER.pack(b"NFE1", 2, flags, session, term, epoch, now_ns, released_through, first_seq, echo_ns, n_names, n_outputs,
                       len(outputs), n_lines, n_pages, ports_empty, window_off, window_hash, total, *ages, *[0] * (16 - len(ages)))
    record = (head + names + padded(ports) + outputs + padded(struct.pack(f"<{n_lines}I", *numbers)) + lines
              + padded(struct.pack(f"<{n_pages}I", *page_numbers)) + pages)
    assert len(record) == total and nf_hash(struct.unpack("<4Q", secret), epoch, record) == check
    return Read(record, Before(session, term, now_ns, released_through, first_seq, echo_ns, n_outputs), frame_bytes)
