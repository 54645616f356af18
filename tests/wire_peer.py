"""The other process of the wire tests: `python wire_peer.py MODE PATH [args]`. It ends when its channel does."""

from __future__ import annotations

import hashlib
import os
import random
import select
import sys
import time

from nfckpt.wire.shm import ShmOptions, ShmTransport, shm_connect
from nfckpt.wire.transport import Transport


def wait(t: Transport, timeout_s: float = 10.0) -> None:
    if t.before_sleep():
        select.select([t.fileno()], [], [], timeout_s)
        t.after_sleep()


def body(i: int) -> bytes:
    """Message i: its number, then 0..200 bytes that follow from it."""
    return i.to_bytes(8, "little") + hashlib.sha256(i.to_bytes(8, "little")).digest() * (i % 7)


def send_all(t: Transport, payload: bytes) -> None:
    while not t.send(1, payload):
        assert t.closed is None, t.closed
        wait(t)


def ping(t: ShmTransport, n: int, seed: int) -> None:
    """Send n messages, sleeping at random, and read n of the other side meanwhile; block whenever idle."""
    rng = random.Random(seed)
    sent = got = 0
    while sent < n or got < n:
        for _ in range(rng.randrange(1, 40)):
            if sent < n and t.send(1, body(sent)):
                sent += 1
        if rng.random() < 0.01:
            time.sleep(rng.random() * 0.0005)
        busy = False
        while (message := t.recv()) is not None:
            assert message[1] == body(got), f"message {got}"
            got += 1
            busy = True
        assert t.closed is None, t.closed
        if not busy and (sent == n or rng.random() < 0.5) and t.before_sleep():
            if sent == n and got < n:       # nothing but a doorbell can end this
                woken = select.select([t.fileno()], [], [], 10.0)[0]
                assert woken, f"lost wake-up: sent {sent}, got {got}"
            elif got < n or sent < n:
                select.select([t.fileno()], [], [], 0.0002)
            t.after_sleep()
    while not t.flush():
        wait(t)


def race(t: ShmTransport, n: int) -> None:
    """Answer n messages, spinning, each after 0 to 3 us: just about when the other side goes to sleep."""
    rng = random.Random(n)
    delays = [range(rng.randrange(150)) for _ in range(1024)]
    for i in range(n):
        while t.recv() is None:
            assert t.closed is None, t.closed
        for _ in delays[i & 1023]:
            pass
        t.send(1, b"answer")


def main() -> None:
    mode, path, *rest = sys.argv[1:]
    options = ShmOptions(ring_bytes=1 << 14)
    t = shm_connect(path, time.monotonic() + 10, options)
    if mode == "flood":                                 # until killed
        i = 0
        while t.closed is None:
            send_all(t, body(i))
            i += 1
            t.recv()
    elif mode == "long":                                # one message that its ring cannot hold, then stop
        send_all(t, b"whole")
        send_all(t, bytes(1 << 20))
        sys.stdout.write("stuck\n")
        sys.stdout.flush()
        time.sleep(30)
    elif mode == "read":
        while t.closed is None:
            if t.recv() is None:
                wait(t)
    elif mode == "ping":
        ping(t, int(rest[0]), int(rest[1]))
        while t.closed is None:                         # let the other side finish
            if t.recv() is None:
                wait(t)
    elif mode == "race":
        race(t, int(rest[0]))
        while t.closed is None:
            if t.recv() is None:
                wait(t)
    elif mode == "exit":
        send_all(t, b"last words")
        os._exit(0)
    t.close()


if __name__ == "__main__":
    main()
