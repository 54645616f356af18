"""What the structures cost, ns per item, from Python in bursts of 32 and 256 and in one call over all flows.

    python tests/bench/bench_state.py [flows]

One call over all flows is the native speed (bulk find); the difference to bursts is the crossing. `floor` is a numpy gather
of the same 64-byte records in the same order: what the memory allows, measured in the same second.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable

import numpy as np

from nfckpt.native.arena import Arena
from nfckpt.state import State


def ns_per_item(call: Callable[[], object], items: int, seconds: float) -> float:
    """Median of nine slices."""
    call()
    rounds, slices = 1, []
    start = time.perf_counter_ns()
    while len(slices) < 9:
        t = time.perf_counter_ns()
        for _ in range(rounds):
            call()
        took = time.perf_counter_ns() - t
        if took < seconds / 9 * 1e9 / 2 and time.perf_counter_ns() - start < seconds * 1e9:
            rounds *= 2
            continue
        slices.append(took / rounds / items)
    return float(np.median(slices))


def run(flows: int, seconds: float = 0.3) -> tuple[dict[str, float], str]:
    """Figures by name, and what was checked: every slot found holds the key it was asked for."""
    arena = Arena(flows * 80 + (1 << 21) + flows * 16)
    state = State(arena, seed=b"benchmark".ljust(16))
    table = state.flow_table("flows", capacity=flows, key_bytes=16, value=32)
    ports = state.port_pool("ports", protocols=2)
    keys = np.zeros((flows, 16), np.uint8)
    keys.view("<u4")[:, 0] = np.arange(flows)
    table.insert(keys, 10**9)
    order = np.random.default_rng(1).permutation(flows)
    shuffled, slots = keys[order], table.find(keys[order])
    records = np.zeros((flows, 8), np.uint64)
    got = {
        "floor": ns_per_item(lambda: records[order], flows, seconds),
        "find all": ns_per_item(lambda: table.find(shuffled), flows, seconds),
        "touch all (young)": ns_per_item(lambda: table.touch(slots, 10**9), flows, seconds),
    }
    for n in (32, 256):
        k, s = shuffled[:n], slots[:n]
        got[f"find {n}"] = ns_per_item(lambda k=k: table.find(k), n, seconds)
        got[f"insert known {n}"] = ns_per_item(lambda k=k: table.insert(k, 10**9), n, seconds)
        got[f"get {n}"] = ns_per_item(lambda s=s: table.get(s), n, seconds)
        got[f"allocate+release {n}"] = ns_per_item(
            lambda n=n: ports.release(0, ports.allocate(np.zeros(n, np.int64), 5000)), n, seconds)
    got["expire, 64 slots, none idle"] = ns_per_item(lambda: table.expire(10**9, 10**12, 64), 1, seconds)
    right = np.array_equal(table.keys[slots], shuffled)
    return got, f"{len(table)} flows found" if right else "WRONG"


if __name__ == "__main__":
    figures, checked = run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}; {checked}")
    for name, ns in figures.items():
        print(f"{name:32s} {ns:9.1f} ns")
