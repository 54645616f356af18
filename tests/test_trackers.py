"""Trackers: each finds what memcmp finds, whoever writes and how; what it finds is captured once, whole, and applies (A1, A4, I4)."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.errors import ConfigError, MachineError, StateError
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.epoch import EpochRecord, EpochWriter, Names
from nfckpt.native.gate import Gate
from nfckpt.native.mmu import probe
from nfckpt.native.typed_array import TypedArray
from nfckpt.node.app import declare
from nfckpt.state import State
from tests.native_lab import SECRET, ListPort
from tests.pair_apps import Samples
from tests.pair_rig import until

PAGE, LINE = 4096, 64
TRACKERS = ("barrier", "mmu", "compare")
HUGE = 2 << 20
SIZE = 5 * PAGE + 100           # of the array: its last page is not full


@pytest.fixture(scope="module", autouse=True)
def _mmu_works_here() -> None:
    try:
        probe()
    except MachineError as e:
        pytest.skip(str(e))


# ── what is found ────────────────────────────────────────────────────────────────────────────────


def recv_into(view: Any, data: bytes) -> None:
    a, b = socket.socketpair()
    with a, b:
        a.sendall(data)
        assert b.recv_into(view) == len(data)


def preadv(view: Any, data: bytes) -> None:
    fd = os.memfd_create("source")
    try:
        os.write(fd, data)
        assert os.preadv(fd, [view], 0) == len(data)
    finally:
        os.close(fd)


def readinto(view: Any, data: bytes) -> None:
    assert io.BytesIO(data).readinto(view) == len(data)


def scalars(view: Any, data: bytes) -> None:
    for i, byte in enumerate(data[:3]):
        view[i] = byte
    view[3:] = np.frombuffer(data[3:], np.uint8)


def through_memoryview(view: Any, data: bytes) -> None:
    memoryview(view)[:] = data


WRITERS: list[Callable[[Any, bytes], None]] = [
    recv_into, preadv, readinto, scalars, through_memoryview,
    lambda view, data: np.copyto(view, np.frombuffer(data, np.uint8)),
    lambda view, data: view.fill(data[0]),
]
writes = st.lists(st.tuples(st.sampled_from(range(len(WRITERS))), st.integers(0, SIZE - 1), st.integers(1, 3 * PAGE), st.binary(min_size=1, max_size=3)),
                  max_size=4)


@pytest.mark.parametrize("huge", [False, True])
@pytest.mark.parametrize("tracker", TRACKERS)
@settings(max_examples=60, deadline=None)
@given(st.lists(writes, max_size=4))
def test_what_is_found_covers_what_memcmp_finds(tracker: str, huge: bool, rounds: list[Any]) -> None:
    arena = Arena(HUGE if huge else 16 * PAGE)
    if huge:                        # as in a node: the mapping of an active is made over memory that is there
        arena.populate()
        arena = Arena(fd=os.dup(arena.fd))
        arena.touch()
    TypedArray(arena, "before", np.uint8, 3)
    array = TypedArray(arena, "array", np.uint8, SIZE, tracker, None)
    after = TypedArray(arena, "after", np.uint8, 3)
    arena.seal()
    arena.forget_writes()
    first = array.offset + LINE
    for ops in rounds:
        before, touched = arena.view().copy(), np.zeros(arena.size, bool)
        for writer, at, n, data in ops:
            n = min(n, SIZE - at)
            data = (data * n)[:n]
            if tracker == "barrier":
                array[at:at + n] = np.frombuffer(data, np.uint8)
            else:
                WRITERS[writer](array.view[at:at + n], data)
            touched[first + at:first + at + n] = True
        arena.view().sum()                                  # reading is no writing
        after[1] = touched.any()
        touched[after.offset + LINE + 1] = True
        found = arena.dirty_line_numbers()
        changed = np.flatnonzero((arena.view() != before).reshape(-1, LINE).any(1))
        assert np.isin(changed, found).all()
        by_line = touched.reshape(-1, LINE).any(1)
        if tracker == "mmu":                                # the region's in pages, the rest in lines
            own = slice(array.offset // LINE, after.offset // LINE)
            by_line[own] = np.repeat(by_line[own].reshape(-1, 64).any(1), 64)
        elif tracker == "compare":
            by_line &= np.isin(np.arange(len(by_line)), changed) | (np.arange(len(by_line)) >= after.offset // LINE)
        assert np.array_equal(found, np.flatnonzero(by_line))
        assert np.array_equal(found, arena.dirty_line_numbers())        # looking does not consume
        arena.forget_writes()
        assert arena.dirty_lines() == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5 * PAGE - 1), st.integers(1, 3 * PAGE)), min_size=1, max_size=5))
def test_a_mark_names_the_lines_it_covers_and_no_other(spans: list[tuple[int, int]]) -> None:
    arena = Arena(8 * PAGE)
    want = set()
    for at, n in spans:
        arena.write_bytes(at, bytes(n))
        want |= set(range(at // LINE, (at + n - 1) // LINE + 1))
    assert arena.dirty_line_numbers().tolist() == sorted(want) and arena.dirty_lines() == len(want)


POPULATED = """
import ctypes, sys
from nfckpt.native.arena import Arena
if sys.argv[1] == "refused":
    assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0         # PR_SET_THP_DISABLE
arena = Arena(5 << 20)
arena.write_bytes(12345, b"kept")
huge = arena.populate(3 << 20)
kib = {row.split(":")[0]: int(row.split()[1]) for row in open("/proc/self/smaps_rollup") if row.endswith("kB\\n")}
print(huge >> 10, kib["ShmemPmdMapped"], __import__("os").fstat(arena.fd).st_blocks // 2, bytes(arena.view()[12345:12349]), arena.view().sum())
"""


@pytest.mark.parametrize(("how", "huge_kib"), [("allowed", 4 << 10), ("refused", 0)])
def test_memory_is_taken_in_huge_pages_or_else_in_small_ones(how: str, huge_kib: int) -> None:
    """What is asked for, in whole huge pages; what was there stays."""
    can = tuple(int(n) for n in platform.release().split(".")[:2]) >= (6, 1) and Path("/sys/kernel/mm/transparent_hugepage").is_dir()
    out = subprocess.run([sys.executable, "-c", POPULATED, how], capture_output=True, text=True, timeout=30)
    assert out.returncode == 0, out.stderr
    assert out.stdout.split(" ", 3) == [*[str(huge_kib if can else 0)] * 2, str(4 << 10), f"b'kept' {sum(b'kept')}\n"]


def test_a_sparse_arena_of_64_gib() -> None:
    """Tens of GiB of address space, a few pages of memory: marks, and 4 GiB under the mmu tracker."""
    arena, peak = Arena(64 << 30), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wide = TypedArray(arena, "wide", np.uint64, 7 << 30, "barrier")
    watched = TypedArray(arena, "watched", np.uint64, 512 << 20, "mmu", None)
    arena.forget_writes()
    numbers = [0, 1 << 20, (7 << 30) - 1]
    for i in numbers:
        wide[i] = 7
    watched.view[[5, 512 << 19, -1]] = 9
    pages = {(watched.offset + LINE + 8 * i) // PAGE for i in (5, 512 << 19, (512 << 20) - 1)}
    want = sorted({(wide.offset + LINE + 8 * i) // LINE for i in numbers} | {64 * p + k for p in pages for k in range(64)})
    rig = Rig(arena)
    other = Arena(64 << 30)
    assert rig.capture(other) == want
    assert other.view()[watched.offset + LINE + 40] == 9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 256 << 10       # KiB


@pytest.mark.parametrize("tracker", ("mmu", "compare"))
def test_a_view_outlives_its_arena_object(tracker: str) -> None:
    view = TypedArray(Arena(16 * PAGE), "a", np.uint64, 100, tracker, None).view
    view[:] = 3
    assert int(view.sum()) == 300


def test_only_watched_regions_are_writable() -> None:
    arena = Arena(16 * PAGE)
    array = TypedArray(arena, "marked", np.uint8, 10)
    with pytest.raises(ValueError, match="read-only"):
        array.view[0] = 1
    with pytest.raises(StateError, match="calls that mark"):
        arena.writable("marked")


# ── one mapping ──────────────────────────────────────────────────────────────────────────────────


def test_a_second_writable_mapping_is_refused() -> None:
    """The standby's arena is mapped anew at a takeover; from seal() on that mapping is the only way in."""
    standby = Arena(16 * PAGE)
    active = Arena(fd=os.dup(standby.fd))
    array = TypedArray(active, "a", np.uint8, 100, "mmu", None)
    active.seal()
    with pytest.raises(StateError, match="sealed: writes through a second mapping"):
        Arena(fd=os.dup(active.fd))
    with pytest.raises(PermissionError):
        mmap.mmap(active.fd, active.size)
    with pytest.raises(PermissionError):
        os.pwrite(active.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.open(f"/proc/self/fd/{active.fd}", os.O_RDWR | os.O_TRUNC)
    array.view[:] = 5                                       # the first one goes on
    assert active.view("a")[LINE] == 5 and standby.view()[array.offset + LINE] == 5


def test_trackers_after_fork() -> None:
    """A child has no arena: it cannot write it, and its end does not disturb the parent's trackers."""
    arena = Arena(64 * PAGE)
    array = TypedArray(arena, "a", np.uint8, 20 * PAGE, "mmu", None)
    arena.forget_writes()
    sys.stdout.flush()
    for child_writes in (True, False):
        r, w = os.pipe()
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
            os.close(w)
            os.read(r, 1)
            if child_writes:
                array.view[3 * PAGE] = 1
            del arena, array
            os._exit(0)
        array.view[7 * PAGE] += 1
        alive = arena.dirty_line_numbers()
        arena.forget_writes()
        os.close(w)
        os.close(r)
        status = os.waitpid(pid, 0)[1]
        assert os.WTERMSIG(status) == signal.SIGSEGV if child_writes else status == 0
        array.view[7 * PAGE] += 1
        page = (array.offset + LINE + 7 * PAGE) // PAGE
        assert alive.tolist() == arena.dirty_line_numbers().tolist() == list(range(64 * page, 64 * page + 64))
        arena.forget_writes()


# ── capture ──────────────────────────────────────────────────────────────────────────────────────


class Rig:
    def __init__(self, arena: Arena) -> None:
        self.arena, self.gate = arena, Gate([ListPort()], 8, 1 << 16)
        self.writer, self.names, self.epoch = EpochWriter(SECRET), Names(16), 0

    def build(self) -> bytearray:
        self.epoch += 1
        return self.writer.build(self.arena, self.gate, self.names, 1, 1, self.epoch, 0, 0, 0)

    def capture(self, standby: Arena) -> list[int]:
        """One epoch, applied; the numbers of its lines, ascending."""
        memory = self.build()
        record = EpochRecord(memory, standby, 1)
        record.swap(standby)
        assert record.agrees(standby, SECRET)
        numbers = np.frombuffer(memory, np.uint32, record.n_lines, 144)
        return sorted(numbers.tolist())


def mixed(arena: Arena) -> State:
    state = State(arena, seed=b"s" * 32)
    state.counters("totals", 100)
    state.array("samples", np.float32, 3000, tracker="mmu", fallback=None)
    state.flow_table("flows", capacity=64, key_bytes=8, value=8)
    state.array("small", np.uint16, (40, 50), tracker="compare")
    state.seal()
    return state


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_mixed_trackers_in_one_arena_arrive_whole(seed: int) -> None:
    """Every epoch: the second arena is the first one's copy, line for line, and an epoch without writes has no line."""
    rng = np.random.default_rng(seed)
    arena, standby = Arena(64 * PAGE), Arena(64 * PAGE)
    state, rig = mixed(arena), Rig(arena)
    for _ in range(6):
        for _ in range(rng.integers(0, 4)):
            at = int(rng.integers(0, 2900))
            [lambda: state.totals.add(int(rng.integers(0, 100))),
             lambda at=at: state.samples.view[at:at + 50].fill(rng.random()),
             lambda: np.multiply(state.samples.view, 0.5, out=state.samples.view),
             lambda at=at: np.add.at(state.small.view, (at // 80, at % 50), 1),
             lambda: state.flows.insert(rng.integers(0, 100, (3, 8)).astype(np.uint8), 10**9)][rng.integers(0, 5)]()
        rig.capture(standby)
        assert np.array_equal(arena.view(), standby.view())
        assert rig.capture(standby) == []


def test_a_takeover_arms_the_fresh_mapping_only() -> None:
    """The standby tracks nothing; a fresh app over its bytes does, and finds what was committed."""
    first, standby = Arena(64 * PAGE), Arena(64 * PAGE)
    state = mixed(first)
    state.samples.view[:] = 1.5
    Rig(first).capture(standby)
    assert standby.dirty_lines() == 0
    fresh = Arena(fd=os.dup(standby.fd))
    state, second = mixed(fresh), Arena(64 * PAGE)
    assert (state.samples.view == 1.5).all() and fresh.dirty_lines() == 0
    second.write_bytes(0, standby.view().tobytes())
    state.samples.view[2000] = 2.5
    page = (state.samples.offset + LINE + 8000) // PAGE
    assert Rig(fresh).capture(second) == list(range(64 * page, 64 * page + 64))
    assert np.array_equal(fresh.view(), second.view())


def test_a_write_between_two_looks_is_in_the_next_capture() -> None:
    """An idle poll looks at watched regions now and then; a capture always does."""
    arena, standby = Arena(64 * PAGE), Arena(64 * PAGE)
    state, rig = mixed(arena), Rig(arena)
    agent = Agent([ListPort()], arena, rig.gate, SECRET)
    rig.capture(standby)
    for value in range(3):
        assert not agent.pending                            # it has just looked, or looks and finds nothing
        state.samples.view[7] = value + 1
        rig.capture(standby)
        assert np.array_equal(arena.view(), standby.view())
    for name in ("samples", "small"):                       # nothing but this write, by a tick, say
        state[name].view.reshape(-1)[5] += 1
        until(lambda: agent.pending)
        rig.capture(standby)
        assert np.array_equal(arena.view(), standby.view())


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


NO_UFFD = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
code = b"".join(struct.pack("=HBBI", *i) for i in (
    (0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (0x06, 0, 0, 0x50000 | 1), (0x06, 0, 0, 0x7fff0000)))     # EPERM, else allow
program = ctypes.create_string_buffer(code)
fprog = struct.pack("=HxxxxxxQ", 4, ctypes.addressof(program))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.create_string_buffer(fprog)) == 0
from nfckpt.errors import MachineError
from nfckpt.native.arena import Arena
from nfckpt.state import State
arena = Arena(1 << 18)
state = State(arena, seed=bytes(32))
try:
    state.array("samples", "f4", 3000, tracker="mmu", fallback=None)
except MachineError as e:
    print(e)
array = state.array("samples", "f4", 3000, tracker="mmu")
array.view[9] = 1
print(array.describe()["tracker"], arena.dirty_lines(), arena.layout_digest().hex(), sep="|")
"""


def test_without_mmu_there_is_a_named_fallback_that_still_pairs() -> None:
    """A process whose seccomp filter forbids userfaultfd, as a container's does."""
    number = {"x86_64": "323", "aarch64": "282"}[os.uname().machine]
    out = subprocess.run([sys.executable, "-c", NO_UFFD, number], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out[0].startswith("region 'samples' insists on the mmu tracker: userfaultfd: Operation not permitted (")
    tracker, dirty, digest = out[1].split("|")
    assert (tracker, dirty) == ("compare (no mmu: userfaultfd: Operation not permitted)", "2")      # stamp and sample
    arena = Arena(1 << 18)
    state = State(arena, seed=bytes(32))
    assert state.array("samples", "f4", 3000, tracker="mmu").describe()["tracker"] == "mmu"
    assert arena.layout_digest().hex() == digest            # a fallback on one node only


def test_a_refused_region_leaves_nothing_behind() -> None:
    arena = Arena(16 * PAGE)
    for tracker, fallback in (("soft-dirty", "compare"), ("mmu", "barrier")):
        with pytest.raises(StateError, match="one of barrier, mmu, compare"):
            arena.region("r", 100, tracker=tracker, fallback=fallback)
    arena.region("r", 100, tracker="compare")
    with pytest.raises(StateError, match="'r' declared twice"):
        arena.region("r", 100, tracker="mmu")
    with pytest.raises(StateError, match="does not fit"):
        arena.region("s", 16 * PAGE, tracker="mmu")
    assert arena.used == 2 * PAGE and arena.trackers == {"r": ("compare", None)} and arena.scan_faults == 0


@contextlib.contextmanager
def address_space(spare: int) -> Iterator[None]:
    """At most `spare` bytes more than now can be mapped."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * PAGE + spare, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_too_large_for_memory() -> None:
    arena = Arena(2 << 30)                                  # holes: more than a long-lived process has free in its heap
    with address_space(32 << 20):
        with pytest.raises(StateError, match="cannot map an arena of 1073741824 bytes"):
            Arena(1 << 30)
        with pytest.raises(StateError, match="no memory for the shadow of 1073741824 bytes"):
            arena.region("r", 1 << 30, tracker="compare")
    for size in (0, -1, (1 << 38) + 1):
        with pytest.raises(ConfigError, match="arena of"):
            Arena(size)
    os.fstat(0)                                             # a refused arena closes nobody's file


def test_more_state_than_the_machine_has_memory() -> None:
    nodes = {n: NodeConfig(ports=["mem:0@0", "mem:1@0"], address="127.0.0.1:1") for n in "ab"}
    config = PairConfig(name="p", app="tests.pair_apps:Samples", nodes=nodes, bounds=Bounds(arena_bytes=1 << 38))
    app = Samples()
    app.declare = lambda state: state.array("all", np.uint8, (1 << 38) - (64 << 20))     # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigError, match="bytes on a machine that has"):
        declare(config, app, Arena(1 << 38), bytes(32))


def test_staging_exhausted_drains_nothing() -> None:
    arena, standby = Arena(64 << 20), Arena(64 << 20)
    array = TypedArray(arena, "a", np.uint64, 6 << 20, "mmu", None)
    array.view[:] = np.arange(array.size)
    rig = Rig(arena)
    with address_space(16 << 20), pytest.raises((MemoryError, StateError)):
        rig.build()
    rig.capture(standby)
    assert np.array_equal(arena.view(), standby.view())


def test_a_scan_that_the_kernel_refuses_marks_the_whole_region() -> None:
    """Somebody maps other memory over a part of the region: the kernel no longer vouches for it."""
    out = subprocess.run([sys.executable, "-c", """
import ctypes
import numpy as np
from nfckpt.native.arena import Arena
from nfckpt.native.typed_array import TypedArray
arena = Arena(1 << 18)
array = TypedArray(arena, "a", np.uint8, 20 * 4096, "mmu", None)
arena.forget_writes()
libc = ctypes.CDLL(None)
libc.mmap.argtypes, libc.mmap.restype = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long], ctypes.c_void_p
at = array.view.ctypes.data - 64 + 8 * 4096
assert libc.mmap(at, 4096, 3, 0x11, arena.fd, array.offset + 8 * 4096) == at       # MAP_SHARED | MAP_FIXED
array.view[3] = 1
print(arena.dirty_lines(), arena.scan_faults)
"""], capture_output=True, text=True, check=True).stdout.split()
    assert out == [str(21 * 64), "1"]
