"""TCP endpoint: many long connections and a stream of short ones, exchanging blocks that prove themselves.

    0       4      8     12       16   20     22    24    28
    | magic | conn | seq | length | ip | port | pad | crc | body: a slice of TABLE chosen by (conn, seq) |
      u32     u32    u32   u32      u32  u16    u16   u32   all big-endian; crc: zlib.crc32 of everything else

The client sends a block, the server checks it and answers with one of its own that carries the address it sees the
client at. A long connection sends on a fixed schedule, whatever came back; a short one asks once and closes.

Counted     failed: could not connect in CONNECT_S_MAX, ended early, or had no answer by the end.  reset: a RST.
            long_broken: how many of the long connections did either.
            corrupt: a block with a wrong crc, number or body.  source_changed: the address is not the one seen first.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from nfckpt.testbed.traffic.control import LIVE_S, Control, config, cpu_s, emit

SERVER_PORT = 9_001
MAGIC = 0x4E465431      # "NFT1"
HEAD = struct.Struct("!IIIIIHHI")
TABLE = random.Random(1).randbytes(1 << 17)
CONNECT_S_MAX, DRAIN_S_MAX, TICK_S = 10.0, 5.0, 0.01


def block(conn: int, seq: int, length: int, ip: int = 0, port: int = 0) -> bytes:
    """One block, `length` bytes in all, 28 <= length <= 65536."""
    body = _body(conn, seq, length)
    head = HEAD.pack(MAGIC, conn, seq, length, ip, port, 0, 0)
    return HEAD.pack(MAGIC, conn, seq, length, ip, port, 0, zlib.crc32(body, zlib.crc32(head))) + body


def _body(conn: int, seq: int, length: int) -> bytes:
    start = (conn * 2_654_435_761 + seq * 40_503) & 0xFFFF
    return TABLE[start:start + length - HEAD.size]


class Blocks(asyncio.Protocol):
    """Cuts a connection's bytes into checked blocks. `on_block(conn, seq, length, ip, port)`; `on_corrupt()` ends it."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= HEAD.size:
            magic, conn, seq, length, ip, port, _, _ = HEAD.unpack_from(self.buffer)
            if magic != MAGIC or not HEAD.size <= length <= 1 << 16:
                return self._corrupt()
            if len(self.buffer) < length:
                return None
            if self.buffer[:length] != block(conn, seq, length, ip, port):
                return self._corrupt()
            del self.buffer[:length]
            if not self.on_block(conn, seq, length, ip, port):
                return self._corrupt()
        return None

    def _corrupt(self) -> None:
        self.on_corrupt()
        self.buffer.clear()
        if self.transport:
            self.transport.abort()

    def on_block(self, conn: int, seq: int, length: int, ip: int, port: int) -> bool:
        """False: it is not the block expected here."""
        raise NotImplementedError

    def on_corrupt(self) -> None:
        raise NotImplementedError


class Served(Blocks):
    """The server's end."""

    def __init__(self, count: dict[str, int]) -> None:
        super().__init__()
        self.count, self.conn, self.seq, self.ip, self.port = count, -1, 0, 0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        address, self.port = transport.get_extra_info("peername")[:2]
        self.ip = struct.unpack("!I", socket.inet_aton(address))[0]
        self.count["accepted"] += 1

    def on_block(self, conn: int, seq: int, length: int, ip: int, port: int) -> bool:
        if seq != self.seq or self.conn not in (-1, conn):
            return False
        self.conn, self.seq = conn, seq + 1
        self.count["blocks"] += 1
        assert self.transport
        self.transport.write(block(conn, seq, length, self.ip, self.port))
        return True

    def on_corrupt(self) -> None:
        self.count["corrupt"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.count["reset"] += isinstance(exc, ConnectionError)


class Asked(Blocks):
    """The client's end."""

    def __init__(self, conn: int, length: int, count: dict[str, int], done: Callable[[Asked], None]) -> None:
        super().__init__()
        self.conn, self.length, self.count, self.done = conn, length, count, done
        self.sent = self.answered = 0
        self.source: tuple[int, int] | None = None
        self.closing = self.lost = False

    def ask(self) -> None:
        if self.transport and not self.lost:
            self.transport.write(block(self.conn, self.sent, self.length))
            self.sent += 1

    def on_block(self, conn: int, seq: int, length: int, ip: int, port: int) -> bool:
        if (conn, seq, length) != (self.conn, self.answered, self.length):
            return False
        self.answered += 1
        self.count["blocks"] += 1
        if self.source is None:
            self.source = ip, port
        self.count["source_changed"] += self.source != (ip, port)
        self.done(self)
        return True

    def on_corrupt(self) -> None:
        self.count["corrupt"] += 1
        self.closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if isinstance(exc, ConnectionError):
            self.count["reset"] += 1
        elif not self.closing:
            self.count["failed"] += 1
        self.done(self)

    def close(self) -> None:
        self.closing = True
        if self.transport:
            self.transport.close()


class Client:
    """All connections. `want`: server, connections, opens_s, bits_s (both directions, payload), block_bytes."""

    def __init__(self, want: dict[str, Any]) -> None:
        self.want = want
        self.length: int = want["block_bytes"]
        self.count = {"connections": 0, "failed": 0, "reset": 0, "corrupt": 0, "source_changed": 0, "blocks": 0}
        self.numbers = itertools.count()
        self.long: list[Asked] = []
        self.opened: list[tuple[int, int]] = []     # (SYN, answer) of each short connection, CLOCK_MONOTONIC ns
        self.short: set[asyncio.Task[None]] = set()
        self.sending = False
        self.long_broken = 0

    async def connect(self, done: Callable[[Asked], None]) -> Asked | None:
        loop = asyncio.get_running_loop()
        conn = next(self.numbers)
        try:
            _, end = await asyncio.wait_for(
                loop.create_connection(lambda: Asked(conn, self.length, self.count, done), self.want["server"], SERVER_PORT),
                CONNECT_S_MAX)
        except ConnectionError:
            self.count["reset"] += 1
        except (OSError, asyncio.TimeoutError):
            self.count["failed"] += 1
        else:
            self.count["connections"] += 1
            return end
        return None

    async def open_long(self) -> None:
        """All long connections, 20 at a time; each has had one answer."""
        room = asyncio.Semaphore(20)

        async def one() -> None:
            async with room:
                answered = asyncio.Event()
                end = await self.connect(lambda _: answered.set())
                if end:
                    self.long.append(end)
                    end.ask()
                    await asyncio.wait_for(answered.wait(), CONNECT_S_MAX)

        await asyncio.gather(*(one() for _ in range(self.want["connections"])))

    async def one_short(self) -> None:
        started = time.monotonic_ns()
        done = asyncio.Event()
        end = await self.connect(lambda _: done.set())
        if end is None:
            return
        end.ask()
        try:
            await asyncio.wait_for(done.wait(), CONNECT_S_MAX)
            if end.answered:
                self.opened.append((started, time.monotonic_ns()))
        except asyncio.TimeoutError:
            self.count["failed"] += 1
        end.close()

    async def run(self) -> None:
        """Ask and open on schedule until `sending` is cleared."""
        asks_s = self.want["bits_s"] / 8 / 2 / self.length
        start = time.monotonic()
        asked = opened = 0
        while self.sending:
            elapsed = time.monotonic() - start
            while asked < elapsed * asks_s and self.long:
                self.long[asked % len(self.long)].ask()
                asked += 1
            while opened < elapsed * self.want["opens_s"]:
                task = asyncio.create_task(self.one_short())
                self.short.add(task)
                task.add_done_callback(self.short.discard)
                opened += 1
            await asyncio.sleep(TICK_S)

    async def drain(self) -> None:
        """Every question answered, then every connection closed by FIN; what is left after DRAIN_S_MAX failed."""
        deadline = time.monotonic() + DRAIN_S_MAX
        while (self.short or any(c.answered < c.sent and not c.lost for c in self.long)) and time.monotonic() < deadline:
            await asyncio.sleep(TICK_S)
        self.count["failed"] += sum(c.answered < c.sent and not c.lost for c in self.long) + len(self.short)
        self.long_broken = sum(c.answered < c.sent or c.lost for c in self.long)
        for end in self.long:
            end.close()
        while any(not c.lost for c in self.long) and time.monotonic() < deadline:
            await asyncio.sleep(TICK_S)


async def serve() -> None:
    loop, control = asyncio.get_running_loop(), Control()
    count = {"accepted": 0, "corrupt": 0, "reset": 0, "blocks": 0}
    server = await loop.create_server(lambda: Served(count), config()["server"], SERVER_PORT, backlog=512)
    emit("ready")
    stop = asyncio.Event()

    def command() -> None:
        if "report" in control.read():
            stop.set()

    loop.add_reader(0, command)
    await stop.wait()
    server.close()
    emit("result", **count, cpu_s=cpu_s())


async def ask() -> None:
    loop, control = asyncio.get_running_loop(), Control()
    client = Client(config())
    report = asyncio.Event()
    runner: list[asyncio.Task[None]] = []

    def command() -> None:
        for word in control.read():
            if word == "go":
                client.sending = True
                runner.append(asyncio.create_task(client.run()))
            elif word == "halt":
                client.sending = False
                emit("halted", t_ns=time.monotonic_ns())
            elif word == "report":
                report.set()

    loop.add_reader(0, command)
    await client.open_long()
    emit("ready")
    while not report.is_set():
        emit("live", **client.count)
        try:
            await asyncio.wait_for(report.wait(), LIVE_S)
        except asyncio.TimeoutError:
            continue
    client.sending = False
    await asyncio.gather(*runner)
    await client.drain()
    emit("result", **client.count, long_broken=client.long_broken, opened=client.opened, cpu_s=cpu_s())


def main() -> None:
    os.nice(5)      # packet loops come first
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(serve() if config()["role"] == "server" else ask())
    sys.stdout.flush()


if __name__ == "__main__":
    main()
