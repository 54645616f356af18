"""The arithmetic of a lease, over thousands of random histories: no mark outlives the standby's promise (I9)."""

from __future__ import annotations

import random

import pytest

from nfckpt.errors import ConfigError
from nfckpt.failover.lease_clock import MS, LeaseClock, Promise, margin_ms_min

LEASE, BEAT = 100, 25


def test_an_ack_moves_the_sockets_to_the_mark_that_was_armed_before_the_beat() -> None:
    c = LeaseClock(LEASE, BEAT)
    assert not c.holds(0) and c.mark == 0
    a = c.beat(1000 * MS)
    assert a.ms == LEASE and not c.holds(1001 * MS)
    assert c.acked(a.seq, 1040 * MS) == a.mark == c.mark
    assert c.until_ns == (1000 + LEASE - 8) * MS            # from the arming, not from the ack
    assert c.holds(1091 * MS) and not c.holds(1092 * MS)


def test_stale_acks_change_nothing() -> None:
    c = LeaseClock(LEASE, BEAT)
    one, two = c.beat(0), c.beat(25 * MS)
    assert c.acked(99, 26 * MS) is None                     # never sent
    assert c.acked(two.seq, 30 * MS) == two.mark
    assert c.acked(one.seq, 31 * MS) is None                # older than the one in use
    assert c.acked(two.seq, 32 * MS) is None                # doubled
    three = c.beat(50 * MS)
    assert c.acked(three.seq, 150 * MS) is None             # its lease ran out on the way
    assert c.until_ns == 117 * MS


def test_the_mark_in_use_is_never_armed_again() -> None:
    c = LeaseClock(LEASE, BEAT)
    a = c.beat(0)
    assert c.acked(a.seq, MS) == a.mark
    c.seq = a.seq + (1 << 24) - 1                           # as after 2**24 unanswered beats
    assert c.beat(2 * MS).mark != a.mark
    c.seq = (1 << 24) - 1
    assert c.beat(3 * MS).mark & 0xFFFFFF                   # and never the bare tag


@pytest.mark.parametrize("seed", range(40))
def test_no_mark_lives_when_the_standby_is_free(seed: int) -> None:
    """Two clocks of different rate, random delays, losses and stops between any two steps of the active."""
    rng = random.Random(seed)
    margin = margin_ms_min(LEASE, below_hook_ms=0)
    rate_a, rate_s = (1 + rng.uniform(-5e-4, 5e-4) for _ in "as")
    offset = rng.randrange(10**12)
    clock, promise = LeaseClock(LEASE, BEAT), Promise(LEASE, margin)
    dead_at: dict[int, float] = {}                          # mark -> true time at which the kernel drops it
    true = 0.0

    def stop() -> float:                                    # ms: scheduling, or a SIGSTOP
        return rng.choice([0.01, 0.01, 0.01, 1, 30, 500])

    for _ in range(300):
        true += BEAT
        a = clock.beat(round(true * rate_a * MS))
        true += stop()                                      # stopped between reading the clock and arming
        dead_at[a.mark] = true + a.ms / rate_a + 5.0        # a tick up to late_ms late
        true += stop()                                      # between arming and sending
        if rng.random() < 0.2:
            continue                                        # beat lost
        received = true + rng.uniform(0.05, 3)
        promise.ack(offset + round(received * rate_s * MS))
        true = received + rng.uniform(0.05, 3)
        if rng.random() < 0.2:
            continue                                        # ack lost: the standby is bound, we may not emit
        true += stop()
        mark = clock.acked(a.seq, round(true * rate_a * MS))
        assert mark in (None, a.mark)
        if clock.mark:                                      # stopped here, and continued at any later time
            free = (promise.free_ns - offset) / MS / rate_s
            assert dead_at[clock.mark] <= free


def test_the_promise_never_moves_back() -> None:
    p = Promise(LEASE, 10)
    assert p.wait_ns(5) == 0
    p.ack(1000 * MS)
    p.ack(900 * MS)
    assert p.wait_ns(1000 * MS) == 110 * MS and p.wait_ns(1110 * MS) == 0


def test_bounds_that_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigError):
        LeaseClock(50, 25)
    with pytest.raises(ConfigError):
        Promise(100, 1)
    with pytest.raises(AssertionError):
        c = LeaseClock(100, 25)
        c.beat(10)
        c.beat(9)
