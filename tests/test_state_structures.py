"""Counters, arrays, port pools, timers and values against plain-Python twins, under the two laws of the arena."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfckpt.errors import StateError
from nfckpt.native.arena import Arena
from nfckpt.state import Counters, PortPool, State, TimerWheel, TypedArray, Values
from tests.arena_laws import Marked, copy_of

MS = 10**6
few = settings(max_examples=40, deadline=None, derandomize=True)


# ---- port pool

class PoolTwin:
    """Two lists of free ports, oldest first."""

    def __init__(self, lo, hi):
        self.lo, self.out = lo, set()
        self.free = {0: [p for p in range(lo, hi + 1) if not p & 1], 1: [p for p in range(lo, hi + 1) if p & 1]}
        self.refused = 0

    def allocate(self, preferred):
        if not self.free[0] and not self.free[1]:
            self.refused += 1
            return -1
        if preferred and preferred in self.free[preferred & 1]:
            port = preferred
        else:
            first = self.lo & 1                             # parity of the range's first port wins ties
            parity = preferred & 1 if preferred else max((first, 1 - first), key=lambda c: len(self.free[c]))
            if not self.free[parity]:
                parity ^= 1
            port = self.free[parity][0]
        self.free[port & 1].remove(port)
        self.out.add(port)
        return port

    def release(self, port):
        if port not in self.out:
            return False
        self.out.remove(port)
        self.free[port & 1].append(port)
        return True


@few
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 24))
def test_port_pool_differential(seed, lo, n):
    rng = np.random.default_rng(seed)
    hi = lo + n - 1
    arena = Arena(1 << 14)
    pool = PortPool(arena, "p", lo=lo, hi=hi, addresses=2, protocols=2)
    twins = [PoolTwin(lo, hi) for _ in range(4)]
    for _ in range(150):
        k = int(rng.integers(0, 4))
        port = int(rng.integers(0, hi + 4))
        with Marked(arena) as m:
            if rng.random() < 0.6:
                port *= int(rng.random() < 0.7)
                assert pool.allocate(k, port).tolist() == [twins[k].allocate(port)]
            else:
                assert pool.release(k, port) == twins[k].release(port)
        assert len(m.marked) <= 4
        assert pool.available(k) == sum(map(len, twins[k].free.values()))
    every = np.arange(lo, hi + 1)
    for k in range(4):
        assert pool.is_free(k, every).tolist() == [p not in twins[k].out for p in every]
    assert pool.refused == sum(t.refused for t in twins) and len(pool) == sum(len(t.out) for t in twins)


def test_port_pool_whole_range_fifo_and_refusal():
    arena = Arena(1 << 20)
    pool = PortPool(arena, "p", lo=1, hi=65535)
    got = pool.allocate(np.zeros(65535, int))
    assert sorted(got) == list(range(1, 65536)) and pool.fill == 1.0
    assert pool.allocate([0, 0], 77).tolist() == [-1, -1] and pool.refused == 2
    assert pool.release(0, [10, 30, 20, 21]) == 4 and pool.release(0, [10, 0]) == 0
    assert pool.allocate([0] * 3, 44).tolist() == [10, 30, 20]          # same parity, longest free first
    assert pool.allocate(0, 44).tolist() == [21]                        # then the other
    for bad in ((1, 5), (-1, 5), (0, 70000), (0, -2), ([0, 0], [1, 2, 3])):
        with pytest.raises(StateError):
            pool.allocate(*bad)


def test_port_pool_a_port_rests():
    pool = PortPool(Arena(1 << 20), "p", lo=1024, hi=2047)
    first = int(pool.allocate(0, 1025)[0])
    pool.release(0, first)
    assert first not in pool.allocate([0] * 511, 1).tolist() and pool.allocate(0, 1).tolist() == [first]


# ---- timers

class WheelTwin:
    """id -> (deadline, when it was armed); what may and what must fire at `now`."""

    def __init__(self, tick):
        self.d, self.tick = {}, tick

    def due(self, now):
        ticks = {i: (d // self.tick, at // self.tick) for i, (d, at) in self.d.items()}
        may = {i for i, (d, _) in ticks.items() if d < now // self.tick}
        return may, {i for i in may if ticks[i][1] < now // self.tick}


@few
@given(st.integers(0, 2**32))
def test_timer_wheel_differential(seed):
    rng = np.random.default_rng(seed)
    arena = Arena(1 << 16)
    wheel, twin = TimerWheel(arena, "t", capacity=50, tick_ns=MS), WheelTwin(MS)
    now = int(rng.integers(0, 10**15))
    for _ in range(150):
        now += int(rng.choice([0, MS // 3, MS, 50 * MS, 4096 * MS, 10**11], p=[.2, .3, .2, .2, .07, .03]))
        ids = np.unique(rng.integers(0, 50, 6))
        op = rng.integers(0, 4)
        with Marked(arena):
            if op <= 1:
                spans = rng.choice([-5 * MS, 0, MS, 20 * MS, 4096 * MS, 9000 * MS], len(ids))
                deadlines = np.maximum(now + spans, 0)
                wheel.arm(ids, deadlines.astype(np.uint64))
                twin.d.update({int(i): (int(d), now) for i, d in zip(ids, deadlines, strict=True)})
            elif op == 2:
                assert wheel.cancel(ids) == sum(twin.d.pop(int(i), None) is not None for i in ids)
            else:
                (may, must), limit = twin.due(now), int(rng.integers(1, 8))
                fired = []
                while len(got := wheel.advance(now, limit)):
                    assert len(got) <= limit
                    fired += got.tolist()
                assert len(set(fired)) == len(fired) and must <= set(fired) <= may
                for i in fired:
                    del twin.d[i]
        assert len(wheel) == len(twin.d)
    assert wheel.armed(np.arange(50)).tolist() == [i in twin.d for i in range(50)]
    now += 10**12
    assert set(wheel.advance(now, 50).tolist()) == set(twin.d)


def test_timer_wheel_fires_once_in_order_never_early_and_rearms_for_one_line():
    arena = Arena(1 << 18)
    wheel = TimerWheel(arena, "t", capacity=1000, tick_ns=10 * MS)
    wheel.advance(10**12)
    deadlines = np.uint64(10**12) + np.arange(1000, dtype=np.uint64)[::-1] * np.uint64(7 * MS)
    wheel.arm(np.arange(1000), deadlines)
    order = []
    for now in range(10**12, 10**12 + 8 * 10**9, 3 * MS):
        got = wheel.advance(now)
        late = now - deadlines[got].astype(np.int64)
        assert (late >= 0).all() and (late < 13 * MS).all()             # a tick and a poll
        order += got.tolist()
    assert sorted(order) == list(range(1000)) and (np.diff(deadlines[order].astype(np.int64) // (10 * MS)) >= 0).all()
    wheel.arm([5, 6], 2 * 10**12)
    with Marked(arena) as m:
        wheel.arm([5], 3 * 10**12)
    assert len(m.marked) == 1
    with Marked(arena) as m:
        wheel.arm([5], 3 * 10**12)
        wheel.advance(10**12 + 8 * 10**9 - 1)
    assert len(m.marked) == 0
    for bad in ([1000], [-1]):
        with pytest.raises(StateError):
            wheel.arm(bad, 1)


# ---- counters

def test_counters():
    arena = Arena(1 << 14)
    c = Counters(arena, "c", [f"n{i}" for i in range(20)])
    with Marked(arena, spare=0) as m:
        c.add("n0")
        c.add([1, 2, 2], [5, 7, 1])
        c.add("n7", 2**64 - 1)
    assert len(m.marked) == 1
    c.add("n7", 3)
    with pytest.raises(OverflowError):
        c.add("n0", -1)
    with pytest.raises(StateError, match="columns"):
        c.add([1, 2], [1, 2, 3])
    assert c["n7"] == 2 and c.values[:3].tolist() == [1, 5, 8] and c.as_dict()["n2"] == 8
    c.put("n19", 9)
    assert c.values[19] == 9 and c.index("n19") == 19
    with Marked(arena) as m:
        c.add(np.arange(20), np.zeros(20, int))
        for bad in ([20], [-1], "nope"):
            with pytest.raises(StateError):
                c.add(bad)
    assert len(m.marked) == 0
    assert Counters(Arena(1 << 14), "c", 2).names == ("0", "1")
    for names in ([], ["a", "a"], 0):
        with pytest.raises(StateError):
            Counters(Arena(1 << 14), "c", names)


# ---- arrays

indices = st.one_of(
    st.integers(-6, 5), st.slices(6), st.tuples(st.integers(-6, 5), st.integers(0, 8)), st.tuples(st.slices(6), st.slices(9)),
    st.tuples(st.slices(6), st.integers(0, 8)), st.lists(st.integers(-6, 5), min_size=1, max_size=4),
    st.tuples(st.lists(st.integers(0, 5), min_size=2, max_size=2), st.lists(st.integers(0, 8), min_size=2, max_size=2)),
    st.integers(0, 2**54 - 1).map(lambda m: np.array([m >> i & 1 for i in range(54)], bool).reshape(6, 9)),
    st.just(Ellipsis), st.tuples(),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(indices, st.integers(1, 10**9)), min_size=1, max_size=8))
def test_array_set_is_numpys(writes):
    arena = Arena(1 << 14)
    array, twin = TypedArray(arena, "a", "i8", (6, 9)), np.zeros((6, 9), "i8")
    for k, (index, value) in enumerate(writes):
        with Marked(arena, spare=0 if len(writes) == 1 else None):
            array.set(index, value + k)
        twin[index] = value + k
        assert (array.view == twin).all() and (np.asarray(array) == twin).all()


def test_array_edges():
    arena = Arena(1 << 14)
    a = TypedArray(arena, "a", [("x", "u2"), ("y", "u4")], 10)
    a.set(3, (7, 9))
    assert a[3].tolist() == (7, 9)
    for bad, error in ((10, IndexError), ("x", StateError), (["x", "y"], StateError)):
        with pytest.raises(error):
            a.set(bad, (1, 1))
    with pytest.raises(ValueError):
        a.set(slice(0, 3), np.zeros(4, a.dtype))
    with pytest.raises(ValueError):
        a.view[0] = (1, 1)
    for dtype, shape in ((object, 3), ("u1", 0), ("u1", (3, -1)), ("u1", 1 << 40)):
        with pytest.raises(StateError):
            TypedArray(Arena(1 << 14), "a", dtype, shape)


# ---- values

content = st.dictionaries(st.text(max_size=8), st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**63) | st.text(max_size=8) | st.binary(max_size=8) | st.floats(allow_nan=False),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=4), c, max_size=3), max_leaves=8), max_size=6)


@few
@given(st.lists(content, max_size=4))
def test_values_are_a_dict(contents):
    arena = Arena(1 << 14)
    v, twin = Values(arena, "v", max_bytes=1024), {}
    for c in contents:
        with Marked(arena):
            for key, value in c.items():
                v[key] = value
                twin[key] = value
        assert dict(v) == twin and Values.as_dict(v) == twin and len(v) == len(twin)
    assert v.generation == sum(map(len, contents))
    for key in list(twin):
        del v[key]
    assert dict(v) == {}


def test_values_too_large_leaves_the_old():
    arena = Arena(1 << 14)
    v = Values(arena, "v", max_bytes=64)
    v["a"] = "x" * 40
    with Marked(arena) as m:
        for bad in ({"b": "y" * 40}, {"b": object()}, {"b": 2**70}, {3: 1}):
            with pytest.raises(StateError):
                v.update(bad)
        with pytest.raises(KeyError):
            del v["c"]
    assert len(m.marked) == 0 and dict(v) == {"a": "x" * 40} and v.generation == 1


# ---- State

def declare(arena, seed=b"s" * 16):
    state = State(arena, seed=seed)
    state.flow_table("flows", capacity=40, key_bytes=16, value=[("n", "u8")], touch_ms=1)
    state.counters("hits", ["in", "out"])
    state.array("weights", "f8", (4, 4))
    state.port_pool("ports", lo=100, hi=140, protocols=2)
    state.timers("idle", capacity=40, tick_ms=1)
    state.values("settings")
    state.seal()
    return state


def step(state, rng, now):
    keys = rng.integers(0, 60, (4, 1)).astype("<u8").view(np.uint8)
    keys = np.concatenate([keys, keys], 1)
    slots, _ = state.flows.insert(keys, now)
    slots = np.unique(slots[slots >= 0])
    state.flows.put(slots, (now,))
    state.idle.arm(slots, now + 5 * MS)
    state.hits.add([0, 1], [4, len(slots)])
    state.weights.set(int(rng.integers(0, 4)), rng.random(4))
    port = state.ports.allocate([0, 1], int(rng.integers(90, 150)))
    if rng.random() < 0.7:
        state.ports.release([0, 1], port)
    fired = state.idle.advance(now, 16)
    state.flows.erase(fired)
    state.flows.expire(now, 20 * MS, 8)
    if rng.random() < 0.2:
        state.settings[f"k{rng.integers(0, 5)}"] = int(rng.integers(0, 100))


@pytest.mark.parametrize("seed", range(8))
def test_state_a_copy_goes_on_alike_and_every_line_is_marked(seed):
    rng = np.random.default_rng(seed)
    arena = Arena(1 << 18)
    state, now = declare(arena), 10**9
    for _ in range(int(rng.integers(0, 120))):
        now += int(rng.integers(0, 3 * MS))
        with Marked(arena):
            step(state, rng, now)
    other = copy_of(arena)
    with Marked(other) as m:
        again = declare(other, seed=b"another, unused.")
    assert len(m.marked) == 0 and other.layout_digest() == arena.layout_digest()
    a, b = np.random.default_rng(seed + 50), np.random.default_rng(seed + 50)
    for _ in range(100):
        now += int(rng.integers(0, 3 * MS))
        step(state, a, now)
        step(again, b, now)
        assert a.random() == b.random()
    assert (arena.view() == other.view()).all() and again.describe() == state.describe()
    assert arena.digest() == other.digest()


def test_state_fresh_on_both_nodes_is_the_same_bytes():
    one, two = Arena(1 << 18), Arena(1 << 18)
    declare(one), declare(two)
    assert one.digest() == two.digest() and one.layout_digest() == two.layout_digest()
    three = Arena(1 << 18)
    declare(three, seed=b"t" * 16)
    assert three.layout_digest() == one.layout_digest() and three.digest() != one.digest()      # the seed is no layout


def test_state_names_and_rows():
    state = declare(Arena(1 << 18))
    assert list(state) == ["flows", "hits", "weights", "ports", "idle", "settings"]
    assert state.flows is state["flows"]
    state.ports.allocate([0] * 41)
    rows = {r["name"]: r for r in state.describe()}
    assert rows["ports"] == {"name": "ports", "kind": "port_pool", "bytes": rows["ports"]["bytes"], "fill": 0.5, "refused": 0,
                             "tracker": "barrier"}
    assert rows["flows"]["fill"] == 0.0 and rows["hits"]["fill"] is None
    with pytest.raises(AttributeError, match="nothing"):
        _ = state.nothing
    with pytest.raises(StateError, match="after start"):
        state.counters("late", ["a"])
    fresh = State(Arena(1 << 18), seed=b"s" * 16)
    for bad in ("seal", "arena", "_x", "a b", "describe", ""):
        with pytest.raises(StateError, match="named"):
            fresh.counters(bad, ["a"])
    fresh.counters("twice", ["a"])
    with pytest.raises(StateError, match="twice"):
        fresh.counters("twice", ["a"])
    with pytest.raises(StateError):
        State(Arena(1 << 18), seed=b"short")
