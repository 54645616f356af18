"""Flow table against a dict, under the two laws of the arena: every changed line was marked, a copy goes on alike."""
import numpy as np
import pytest

from nfckpt.errors import StateError
from nfckpt.native.arena import Arena
from nfckpt.state.flow_table import FlowTable
from tests.arena_laws import Marked, copy_of

SEED = bytes(range(32))
VALUE = np.dtype([("port", "u2"), ("count", "u8")])
S = 10**9


def table(arena, capacity=64, key_bytes=12, value=VALUE, touch_ns=10**8, seed=SEED):
    return FlowTable(arena, "flows", capacity=capacity, key_bytes=key_bytes, value=value, touch_ns=touch_ns, seed=seed)


def keys_of(numbers, key_bytes=12):
    k = np.zeros((len(numbers), key_bytes), np.uint8)
    k[:, :4] = np.asarray(numbers, "<u4").reshape(-1, 1).view(np.uint8)
    return k


class Twin:
    """What a flow table means: a dict with a size limit."""

    def __init__(self, capacity, touch_ns):
        self.d, self.capacity, self.touch_ns, self.refused = {}, capacity, touch_ns, 0

    def insert(self, n, now):
        if n in self.d:
            if now - self.d[n][0] >= self.touch_ns:
                self.d[n][0] = now
            return True
        if len(self.d) == self.capacity:
            self.refused += 1
            return False
        self.d[n] = [now, (0, 0), 0]
        return True


WIDE = np.dtype({"names": ["port", "count"], "formats": ["u2", "u8"], "offsets": [0, 150], "itemsize": 200})
NARROW = np.dtype([("port", "u2"), ("count", "u4")])


@pytest.mark.parametrize(("seed", "key_bytes", "value", "stride"), [
    (0, 12, VALUE, 64), (1, 16, VALUE, 64), (2, 8, NARROW, 32), (3, 4, NARROW, 32), (4, 64, WIDE, 320), (5, 40, VALUE, 128)])
def test_differential(seed, key_bytes, value, stride):
    rng = np.random.default_rng(seed)
    arena = Arena(1 << 16)
    flows, twin = table(arena, key_bytes=key_bytes, value=value), Twin(64, 10**8)
    assert flows.values.strides == (stride,)

    def keys_of(numbers):
        k = np.zeros((len(numbers), key_bytes), np.uint8)
        k[:, -4:] = np.asarray(numbers, "<u4").reshape(-1, 1).view(np.uint8)
        return k

    def number_of(key):
        return int.from_bytes(bytes(key[-4:]), "little")

    now = S
    for _ in range(600):
        now += int(rng.integers(0, 3 * 10**8))
        numbers = rng.integers(0, 100, rng.integers(1, 12))
        op = rng.integers(0, 6)
        with Marked(arena):
            if op <= 1:
                slots, fresh = flows.insert(keys_of(numbers), now)
                for n, s, f in zip(numbers, slots, fresh, strict=True):
                    known = n in twin.d
                    assert twin.insert(n, now) == (s >= 0)
                    assert f == (s >= 0 and not known)
            elif op == 2:
                numbers = np.unique(numbers)
                slots = flows.find(keys_of(numbers))
                assert flows.erase(slots) == sum(twin.d.pop(n, None) is not None for n in numbers)
            elif op == 3:
                known = [n for n in np.unique(numbers) if n in twin.d]
                if known:
                    values = np.array([(n & 0xffff, now & 0xffffffff) for n in known], VALUE)
                    flows.put(flows.find(keys_of(known)), values)
                    for n in known:
                        twin.d[n][1] = (n & 0xffff, now & 0xffffffff)
            elif op == 4:
                known = [n for n in np.unique(numbers) if n in twin.d]
                timeout = int(rng.integers(0, 5)) * S
                if known:
                    flows.set_timeout(flows.find(keys_of(known)), timeout)
                    for n in known:
                        twin.d[n][2] = timeout
            else:
                _, keys, values = flows.expire(now, 2 * S, budget=64)
                gone = {n for n, (seen, _, t) in twin.d.items() if now - seen > (t or 2 * S) + 10**8}
                assert {number_of(k) for k in keys} == gone
                assert [tuple(v) for v in values.tolist()] == [twin.d[number_of(k)][1] for k in keys]
                for n in gone:
                    del twin.d[n]
        assert len(flows) == len(twin.d) and flows.refused == twin.refused
    everything = {number_of(k): (seen, tuple(v.tolist())) for k, v, seen in flows}
    assert everything == {n: (seen, v) for n, (seen, v, _) in twin.d.items()}
    every = flows.find(keys_of(range(100)))
    assert [s >= 0 for s in every] == [n in twin.d for n in range(100)]


def drive(flows, rng, steps):
    for _ in range(steps):
        numbers = rng.integers(0, 90, 5)
        now = int(rng.integers(S, 100 * S))
        slots, _ = flows.insert(keys_of(numbers), now)
        slots = np.unique(slots[slots >= 0])
        flows.put(slots, (int(now) & 0xffff, now))
        if rng.integers(0, 2):
            flows.erase(flows.find(keys_of(rng.integers(0, 90, 4))))
        flows.expire(now, 50 * S, 16)


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_goes_on_alike(seed):
    arena = Arena(1 << 16)
    flows = table(arena)
    drive(flows, np.random.default_rng(seed), int(np.random.default_rng(seed).integers(0, 60)))
    other = copy_of(arena)
    again = table(other, seed=b"\xff" * 32)         # a region that is initialised keeps its own secret
    assert other.layout_digest() == arena.layout_digest() and other.digest() == arena.digest()
    for t in (flows, again):
        drive(t, np.random.default_rng(seed + 100), 60)
    assert other.digest() == arena.digest()


def test_known_flow_dirties_one_line_new_flow_three():
    arena = Arena(1 << 16)
    flows = table(arena, key_bytes=16, value=32)
    arena.forget_writes()
    slots, _ = flows.insert(keys_of([7], 16), S)
    assert arena.dirty_lines() == 3
    arena.forget_writes()
    flows.touch(slots, 2 * S)
    flows.put(slots, np.void(b"x" * 32))
    assert arena.dirty_lines() == 1
    arena.forget_writes()
    flows.touch(slots, 2 * S + 5 * 10**7)           # younger than touch_ns: no write
    flows.put(slots, np.void(b"x" * 32))            # the same bytes: no write
    flows.find(keys_of([7, 8], 16))
    assert arena.dirty_lines() == 0


def test_full_refuses_counts_and_recovers():
    arena = Arena(1 << 16)
    flows = table(arena, capacity=10)
    slots, fresh = flows.insert(keys_of(range(13)), S)
    assert (slots >= 0).sum() == 10 and fresh.sum() == 10 and flows.refused == 3 and flows.fill == 1.0
    assert flows.insert(keys_of([3]), S)[0][0] == slots[3]      # a key that is there is not refused
    assert flows.erase([slots[4], slots[4], -1]) == 1
    assert flows.insert(keys_of([99]), S)[0][0] == slots[4] and flows.refused == 3


def test_endurance_no_rot():
    arena = Arena(1 << 16)
    flows = table(arena, capacity=100)
    for i in range(3000):
        slots, fresh = flows.insert(keys_of(range(i * 50, i * 50 + 50)), S)
        assert fresh.all() and flows.erase(slots) == 50
    assert len(flows) == 0 and flows.refused == 0
    assert (flows.find(keys_of(range(150_000))) == -1).all()
    buckets = arena.view()[flows.offset + 64:flows.offset + 64 + 4 * 256]
    assert not buckets.any()                                    # nothing is left behind


def test_touch_never_expires_early():
    arena = Arena(1 << 16)
    flows = table(arena)
    flows.insert(keys_of([1]), S)
    slot = flows.find(keys_of([1]))
    flows.touch(slot, S + 10**8 - 1)                            # not written
    assert len(flows.expire(S + 10**8 + 2 * S, 2 * S, 64)[0]) == 0
    slots, keys, values = flows.expire(S + 10**8 + 2 * S + 1, 2 * S, 64)
    assert slots.tolist() == slot.tolist() and (keys == keys_of([1])).all() and values.tolist() == [(0, 0)]
    assert [len(a) for a in flows.expire(9 * S, S)] == [0, 0, 0]


def test_sweep_is_bounded_and_goes_round():
    arena = Arena(1 << 18)
    flows = table(arena, capacity=1000)
    flows.insert(keys_of(range(1000)), S)
    with Marked(arena) as m:
        assert flows.sweep(9 * S, S, 10).tolist() == list(range(10))
    assert len(m.marked) == 1                                   # the hand
    assert flows.sweep(9 * S, S, 5000).tolist() == list(range(10, 266))
    assert sum(len(flows.expire(9 * S, S, 100)[0]) for _ in range(10)) == 1000
    assert len(flows) == 0 and len(flows.sweep(9 * S, S, 0)) == 0


def test_out_of_contract():
    arena = Arena(1 << 16)
    flows = table(arena)
    for bad in ([0], [-1], [64], [2**40]):
        with pytest.raises(StateError, match="not in use"):
            flows.get(bad)
        with pytest.raises(StateError, match="not in use"):
            flows.touch(bad, S)
    with pytest.raises(StateError, match="keys of shape"):
        flows.find(np.zeros((3, 8), np.uint8))
    for kw in ({"key_bytes": 13}, {"key_bytes": 68}, {"capacity": 0}, {"value": 0}, {"value": np.dtype(object)}, {"seed": b""},
               {"capacity": 1 << 20}):
        with pytest.raises(StateError):
            table(Arena(1 << 16), **kw)
    other = copy_of(arena)
    with pytest.raises(StateError, match="does not hold"):
        table(other, capacity=65)
    with pytest.raises(ValueError):
        flows.values["port"][0] = 1
    assert flows.find(np.zeros((0, 12), np.uint8)).shape == (0,) and flows.insert(np.zeros((0, 12), np.uint8), S)[0].shape == (0,)
    with pytest.raises(ValueError):
        flows.find(np.zeros((3, 24), np.uint8)[:, ::2])
    big = flows.insert(keys_of([5]).view("V12"), S)[0]          # any array of the right size
    assert big[0] >= 0
