"""Conformance: what every implementation of a contract must do, as functions you can run over your own.

    from nfckpt.sim.conformance import check_transport
    check_transport(lambda **bounds: my_connected_pair(**bounds))

A check raises AssertionError that names the rule and what was seen. Both ends live in the calling thread; a check takes
a few seconds at most and its random choices come from `seed`.
"""

from __future__ import annotations

import random
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from nfckpt.errors import ConfigError
from nfckpt.wire.transport import Transport

__all__ = ["MakePair", "check_transport"]

PATIENCE_S = 10.0


class MakePair(Protocol):
    """Makes two connected ends with these bounds (bytes), the same for both."""

    def __call__(self, *, message_bytes_max: int, send_backlog_bytes_max: int) -> tuple[Transport, Transport]: ...


def check_transport(make_pair: MakePair, *, seed: int = 0) -> None:
    """Hold a Transport to `nfckpt/wire/transport.py`: every rule on fresh pairs, then a random walk."""
    checks: list[Callable[[MakePair, random.Random], None]] = [
        _empty, _order_and_kinds, _sizes, _private_and_writable, _payload_types, _oversize, _backpressure,
        _both_directions, _sleep, _closed_by_peer, _closed_here, _random_walk,
    ]
    for i, check in enumerate(checks):
        check(make_pair, random.Random(seed * 1000 + i))


def _expect(true: object, rule: str) -> None:
    if not true:
        raise AssertionError(rule)


def _pair(make_pair: MakePair, message_max: int = 1 << 20, backlog_max: int = 1 << 18) -> tuple[Transport, Transport]:
    return make_pair(message_bytes_max=message_max, send_backlog_bytes_max=backlog_max)


def _next(sender: Transport, receiver: Transport) -> tuple[int, memoryview]:
    """The next message, pushing the sender on meanwhile."""
    late = time.monotonic() + PATIENCE_S
    while True:
        sender.flush()
        message = receiver.recv()
        if message is not None:
            return message
        _expect(receiver.closed is None, f"open while a message was under way, but closed: {receiver.closed}")
        _expect(time.monotonic() < late, "a sent and flushed message arrives")


def _none(receiver: Transport) -> None:
    for _ in range(20):
        _expect(receiver.recv() is None, "nothing was sent, so nothing arrives")


def _empty(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    for t in (a, b):
        _expect(isinstance(t, Transport), "an implementation has every member of Transport")
        _none(t)
        _expect(t.closed is None, "a new channel is open")
        _expect(t.flush() is True, "nothing waits on a new channel")
        _expect((t.backlog, t.bytes_sent, t.bytes_received) == (0, 0, 0), "a new channel counts from 0")
    a.close()
    b.close()


def _order_and_kinds(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    for kind in range(256):
        _expect(a.send(kind, b"k%d" % kind), "256 small messages fit")
    for kind in range(256):
        got, body = _next(a, b)
        _expect((got, bytes(body)) == (kind, b"k%d" % kind), f"messages arrive in order with their kind: {kind}, got {got}")
    _none(b)
    _expect(b.bytes_received == a.bytes_sent == sum(len(b"k%d" % k) for k in range(256)), "both ends count payload bytes")
    for bad in (-1, 256):
        try:
            a.send(bad, b"")
        except ValueError:
            continue
        raise AssertionError("a kind outside 0..255 raises ValueError")
    a.close()
    b.close()


def _sizes(make_pair: MakePair, rng: random.Random) -> None:
    bound = 5_000_000
    a, b = _pair(make_pair, bound, 1 << 16)
    near = [x + d for x in (32, 64, 4096, 16384, 65536, 131072, 262144, 1 << 20) for d in (-33, -9, -8, -1, 0, 1)]
    for n in (0, 1, 2, 7, *[x for x in near if x > 0], bound - 1, bound, 0):
        body = rng.randbytes(n)
        _expect(a.send(7, body), f"a message of {n} bytes is accepted when nothing waits, whatever the backlog bound")
        kind, got = _next(a, b)
        _expect(kind == 7 and got == body, f"a message of {n} bytes arrives whole and unchanged")
        _expect(a.flush() and a.backlog == 0, "nothing waits once it has arrived")
    a.close()
    b.close()


def _private_and_writable(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    mine = bytearray(b"first" * 2000)
    _expect(a.send(1, mine), "room")
    mine[:] = b"LATER" * 2000
    _, got = _next(a, b)
    _expect(got == b"first" * 2000, "the payload is the caller's again when send returns")
    _expect(not got.readonly and got.format == "B" and got.ndim == 1, "recv gives a writable view of bytes")
    got[:5] = b"swap!"
    a.send(1, b"second" * 2000)
    _, other = _next(a, b)
    _expect(bytes(other) == b"second" * 2000 and bytes(got[:10]) == b"swap!first", "each message has memory of its own")
    a.close()
    b.close()
    _expect(bytes(got[:5]) == b"swap!", "a received message outlives its channel")


def _payload_types(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    for n in (3, 50_000):
        raw = rng.randbytes(n)
        for payload in (raw, bytearray(raw), memoryview(raw), memoryview(b"x" + raw + b"y")[1:-1]):
            _expect(a.send(2, payload), "room")
            _expect(_next(a, b)[1] == raw, f"{type(payload).__name__} of {n} bytes arrives")
    a.close()
    b.close()


def _oversize(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair, 1000)
    try:
        a.send(1, bytes(1001))
    except ConfigError:
        pass
    else:
        raise AssertionError("a message above message_bytes_max raises ConfigError")
    _expect(a.bytes_sent == 0 and a.backlog == 0, "a refused message leaves no trace")
    _expect(a.send(1, bytes(1000)) and len(_next(a, b)[1]) == 1000, "the channel lives on")
    a.close()
    b.close()


def _backpressure(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair, 1 << 20, 1 << 18)
    sent: deque[bytes] = deque()
    refused = accepted_bytes = 0
    while refused < 3:
        body = len(sent).to_bytes(4, "little") + rng.randbytes(rng.choice((10, 5000, 40_000)))
        before = a.bytes_sent
        if a.send(3, body):
            sent.append(body)
            accepted_bytes += len(body)
        else:
            refused += 1
            _expect(a.bytes_sent == before, "False means nothing was taken")
        _expect(a.backlog <= (1 << 18) + 65536, f"the backlog stays within its bound: {a.backlog}")
        _expect(accepted_bytes < 64 << 20, "a reader that does not read stops the writer")
    _expect(not a.flush(), "flush says that something waits")
    for i in range(len(sent)):
        _expect(_next(a, b)[1] == sent[i], f"message {i} of {len(sent)} survives backpressure")
    _none(b)
    _expect(a.flush() and a.send(3, b"again") and bytes(_next(a, b)[1]) == b"again", "there is room again")
    a.close()
    b.close()


def _both_directions(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    for i in range(500):
        x, y = rng.randbytes(rng.randrange(3000)), rng.randbytes(rng.randrange(3000))
        _expect(a.send(i % 256, x) and b.send(255 - i % 256, y), "room")
        kind, body = _next(a, b)
        _expect((kind, bytes(body)) == (i % 256, x), "one way")
        kind, body = _next(b, a)
        _expect((kind, bytes(body)) == (255 - i % 256, y), "and the other")
    a.close()
    b.close()


def _sleep(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    if b.fileno() < 0:
        a.close()
        b.close()
        return
    poller = select.poll()
    poller.register(b.fileno(), select.POLLIN)
    for i in range(50):
        _none(b)
        _expect(b.before_sleep() is True, "an idle reader may sleep")
        _expect(not poller.poll(0), "nothing there, nothing readable")
        a.send(1, b"%d" % i)
        a.flush()
        _expect(poller.poll(int(PATIENCE_S * 1000)), "a message wakes the sleeper")
        b.after_sleep()
        _expect(_next(a, b)[1] == b"%d" % i, "and it is there")
    a.send(1, b"early")
    a.send(1, b"early too")
    a.flush()
    _expect(b.before_sleep() is False or poller.poll(int(PATIENCE_S * 1000)), "no sleep over a waiting message")
    b.after_sleep()
    _next(a, b)
    _expect(b.before_sleep() is False or poller.poll(0), "not over the second of two either")
    b.after_sleep()
    _next(a, b)
    b.before_sleep()
    a.close()
    _expect(poller.poll(int(PATIENCE_S * 1000)), "a goodbye wakes the sleeper")
    b.after_sleep()
    _none(b)
    _expect(b.closed is not None and b.before_sleep() is False, "nobody sleeps on a closed channel")
    b.close()


def _closed_by_peer(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    b.send(9, b"never read by a")
    b.flush()
    bodies = [rng.randbytes(rng.randrange(33)) for _ in range(50)]
    for body in bodies:
        _expect(a.send(4, body), "room")
    late = time.monotonic() + PATIENCE_S
    while not a.flush():
        _expect(time.monotonic() < late, "50 small messages can be pushed without a reader")
    a.close()
    for body in bodies:
        _expect(b.closed is None, "not closed before the last whole message is received")
        got = b.recv()
        while got is None and time.monotonic() < late and b.closed is None:
            got = b.recv()
        _expect(got is not None and got[1] == body, f"whole messages come before the end ({b.closed})")
    while b.closed is None:
        _expect(b.recv() is None and time.monotonic() < late, "then the end")
    _expect(isinstance(b.closed, str), "with a reason")
    reason = b.closed
    _none(b)
    _expect(b.send(4, b"x") is False and b.flush() in (True, False) and b.closed == reason, "which stays")
    b.close()
    b.close()
    _expect(b.recv() is None and b.closed is not None, "close after the end does nothing")


def _closed_here(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair)
    a.close()
    a.close()
    _expect(a.closed is not None, "closed at once from this side")
    _expect(a.send(1, b"x") is False and a.recv() is None and a.before_sleep() is False, "and inert")
    a.after_sleep()
    b.close()


def _random_walk(make_pair: MakePair, rng: random.Random) -> None:
    a, b = _pair(make_pair, 1 << 20, 1 << 17)
    ends = {0: a, 1: b}
    under_way: dict[int, deque[tuple[int, bytes]]] = {0: deque(), 1: deque()}
    sizes = (0, 1, 40, 64, 1000, 9000, 70_000, 300_000, 1 << 20)
    weights = (3, 3, 20, 20, 15, 8, 3, 2, 1)
    idle_since = time.monotonic()
    left = 3000
    while left or under_way[0] or under_way[1]:
        me = rng.randrange(2)
        t, act = ends[me], rng.random()
        if act < 0.45 and left:
            kind, body = rng.randrange(256), rng.randbytes(rng.choices(sizes, weights)[0])
            left -= 1
            if t.send(kind, body):
                under_way[me].append((kind, body))
        elif act < 0.65:
            t.flush()
        else:
            got = t.recv()
            if got is not None:
                _expect(under_way[1 - me], "nothing arrives that was not accepted")
                kind, body = under_way[1 - me].popleft()
                _expect(got[0] == kind and got[1] == body, "each message once, in order, unchanged")
                idle_since = time.monotonic()
        _expect(a.closed is None and b.closed is None, f"open throughout: {a.closed}, {b.closed}")
        _expect(time.monotonic() - idle_since < PATIENCE_S, "no message is stuck")
    _expect(a.bytes_sent == b.bytes_received and b.bytes_sent == a.bytes_received, "every byte is accounted for")
    a.close()
    b.close()
