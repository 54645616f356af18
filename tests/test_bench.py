"""What an author meets: an app on the bench, killed, or wrong in every way we could think of."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from nfckpt import Bench, Bounds
from nfckpt.errors import ConfigError, NfckptError, PortError

APPS = '''
import numpy as np
from nfckpt import Burst, NetworkFunction, PollingFunction

class Wire(NetworkFunction):
    ports = ("left", "right")
    def declare(self, state):
        self.seen = state.counters("seen", ["left", "right"])
        self.last = state.array("last", "u8", 2)
    def on_burst(self, burst, ctx):
        self.seen.add(burst.port)
        self.last[0] += len(burst)
        burst.send(slice(None), 1 - burst.port)

class Keeps(PollingFunction):
    """Lets go of a frame only in its second life."""
    ports = ("left", "right")
    def declare(self, state):
        self.lives = state.counters("lives", 1)
    def run(self, agent, ctx):
        held, second = [], self.lives["0"] == 1
        while agent.running:
            burst = Burst()
            if agent.rx_burst(burst):
                burst.send(slice(None), 1 - burst.port)
                if second:
                    agent.tx_burst(burst)
                held.append(burst)
            elif not second and not held and ctx.now_ns > 100_000_000:
                self.lives.put("0", 1)

class Parks(NetworkFunction):
    """Keeps every frame for later, until one arrives on the right; then lets all go, the oldest first."""
    ports = ("left", "right")
    def declare(self, state):
        self.handles = state.values("handles")
    def on_burst(self, burst, ctx):
        queue = self.handles.as_dict().get("queue", [])
        queue += [ctx.park(burst, int(i)) for i in np.flatnonzero(burst.port == 0)]
        if (burst.port == 1).any():
            for handle in queue:
                ctx.send(1, ctx.unpark(handle)[1])
            queue = []
        self.handles["queue"] = queue
        burst.drop(burst.port == 1)

class Poison(Wire):
    def on_burst(self, burst, ctx):
        if any(b"poison" in frame for frame in burst.frames()):
            raise ValueError("cannot digest this")
        super().on_burst(burst, ctx)

class NoVerdict(Wire):
    def on_burst(self, burst, ctx):
        self.seen.add(burst.port)

class Init(Wire):
    def __init__(self, limit):
        if limit < 0: raise ValueError("limit below 0")

class Declare(Wire):
    def declare(self, state):
        self.limit = 1 // 0

class Large(Wire):
    def declare(self, state):
        state.flow_table("large", capacity=10_000_000, key_bytes=16, value=64)

class Returns(PollingFunction):
    ports = ("left", "right")
    def run(self, agent, ctx):
        pass

class Plain:
    pass
'''


@pytest.fixture(scope="module", autouse=True)
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("apps")
    (folder / "bench_apps.py").write_text(APPS)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def frames(n: int, text: bytes = b"") -> list[bytes]:
    return [bytes.fromhex("020000000001" "020000000002" "88b5") + i.to_bytes(8, "big") + text.ljust(38, b"\0") for i in range(n)]


def numbers(came: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[14:22], "big") for frame in came]


def test_a_wire_is_killed_three_times() -> None:
    sent = frames(3000)
    with Bench("bench_apps:Wire") as bench:
        for first in (0, 1000, 2000):
            bench.send(0, sent[first:first + 500])
            bench.kill()
            bench.send(0, sent[first + 500:first + 1000])
            bench.wait_protected()
        assert numbers(bench.receive(1)) == list(range(3000))
        assert bench.counts == {"seen": {"left": 3000, "right": 0}}
        assert bench.pair.failover() and bench.pair.wait_protected(term=5)
        bench.send(1, sent[:10])
        assert numbers(bench.receive(0)) == list(range(10))
        with pytest.raises(PortError, match="refused"):
            bench.send(0, [b"short"])


def test_frames_of_an_epoch_that_stays_open_longer_than_the_skew() -> None:
    """They are consumed, named by no record, and no port has anything more: a beat must not disown them."""
    with Bench("bench_apps:Wire", bounds=Bounds(hold_us_max=1_000_000)) as bench:
        bench.send(0, frames(10))
        time.sleep(0.2)
        bench.kill()
        assert numbers(bench.receive(1, quiet_s=1.5)) == list(range(10))


def test_frames_that_the_app_never_let_go() -> None:
    with Bench("bench_apps:Keeps", bounds=Bounds(quiesce_ms_max=20, abort_max=10)) as bench:
        deadline = time.monotonic() + 5
        while bench.counts["lives"]["0"] == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        bench.send(0, frames(10))
        bench.pair.wait_protected(term=2)          # unprotectable: it stops, and the standby runs the frames again
        assert numbers(bench.receive(1)) == list(range(10))
        assert "kept its frames" in bench.pair.keepers["a"].last_exit[1]


def test_parked_frames_outlive_the_node() -> None:
    with Bench("bench_apps:Parks") as bench:
        bench.send(0, frames(40))
        assert bench.receive(1) == []
        bench.kill()
        bench.send(1, frames(1))
        assert numbers(bench.receive(1)) == list(range(40))


def test_a_frame_that_always_raises_is_quarantined_and_service_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    """It ends the active; the second time, in the replay, it is undone, set aside and passed over: nothing else is lost."""
    with Bench("bench_apps:Poison") as bench:
        bench.send(0, frames(10))
        assert numbers(bench.receive(1)) == list(range(10))
        bench.send(0, frames(1, b"poison"))
        bench.pair.wait_protected(term=2)
        assert bench.counts == {"seen": {"left": 10, "right": 0}}
        assert bench.pair.status()[bench.pair.active]["quarantined"] == 1
        bench.send(0, frames(5))
        assert numbers(bench.receive(1)) == list(range(5)) and bench.receive(0) == []
        assert bench.counts == {"seen": {"left": 15, "right": 0}}        # and not what the poisoned burst emitted
    assert capfd.readouterr().err.count("ValueError: cannot digest this") >= 1


def test_frames_without_a_verdict_are_dropped_and_counted() -> None:
    with Bench("bench_apps:NoVerdict") as bench:
        bench.send(0, frames(10))
        assert bench.receive(1) == []
        assert bench.pair.status()["a"]["agent"]["undecided"] == 10


@pytest.mark.parametrize("app, args, said", [
    ("nowhere:App", {}, "No module named 'nowhere'.*PYTHONPATH"),
    ("bench_apps:Nope", {}, "no attribute 'Nope'"),
    ("bench_apps:Plain", {}, "no network function"),
    ("bench_apps:Init", {}, "missing 1 required .* 'limit'"),
    ("bench_apps:Init", {"limit": -1}, r"ValueError: limit below 0 \(bench_apps.py:\d+\)"),
    ("bench_apps:Declare", {}, r"declare raised ZeroDivisionError.*bench_apps.py:\d+"),
    ("bench_apps:Large", {}, "region 'large' .* does not fit.*arena_bytes"),
    ("bench_apps:Wire", {"ports": 3}, r"has ports \['left', 'right'\], the nodes give 3"),
])
def test_an_app_that_cannot_start_says_why_at_once(app: str, args: dict[str, int], said: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=said), Bench(app, **args):
        pass
    assert time.monotonic() - began < 5


def test_a_loop_that_returns_is_an_error_that_says_so() -> None:
    bench = Bench("bench_apps:Returns")
    with bench._stack, bench.pair, pytest.raises(NfckptError, match="run returned while"):
        bench.pair.wait_protected(2)
