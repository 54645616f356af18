"""Our NAT, protected, beside the same NAT as others would write it or would keep its state (nfckpt/bench/rivals)."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator

from nfckpt.bench.figure import DifferenceError, Figure, Scale, UnavailableError
from nfckpt.bench.pair import SECRET, Pair
from nfckpt.bench.rivals import Rival
from nfckpt.bench.rivals.pickle_nat import PickleNat
from nfckpt.bench.rivals.redis_nat import RedisNat
from nfckpt.bench.rivals.scapy_nat import ScapyNat
from nfckpt.bench.slices import pairs
from nfckpt.bench.work import FRAME_BYTES, NAT, nat_frames, segments, teach
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.headers import parse_burst
from nfckpt.native.nat import NativeNat
from nfckpt.state.state import State

KEYS = ("vs_scapy", "vs_pickle", "vs_redis")
BURST, FLOWS, RIVAL_BURST = 128, 4096, 32


def ours(frames: list[bytes]) -> list[bytes]:
    """What the native NAT makes of each of `frames`, all of new flows."""
    app = NativeNat(**{**NAT, "flows_max": 2 * FLOWS})
    app.declare(State(Arena(app.config.arena_bytes), seed=SECRET))
    now = time.monotonic_ns()
    teach(app, now)
    out: list[bytes] = []
    burst = Burst()
    for first in range(0, len(frames), 32):
        burst.reset()
        for frame in frames[first:first + 32]:
            burst.push(frame, 0)
        parse_burst(burst)
        app.process(burst, now)
        out += [burst.frame(i) for i in range(len(burst))]
    return out


class Runner:
    """A rival fed with `frames` in turn. Raises DifferenceError when its first round is not `expected`."""

    def __init__(self, rival: Rival, frames: list[bytes], expected: list[bytes]) -> None:
        self._rival, self._bursts, self._at = rival, [frames[i:i + RIVAL_BURST] for i in range(0, len(frames), RIVAL_BURST)], 0
        made = [frame for burst in self._bursts for frame in rival(burst)]
        if made != expected:
            raise DifferenceError(f"{rival.about}: other outputs than the native NAT's")
        self.digest = hashlib.sha256(b"".join(made)).hexdigest()

    def run(self, seconds: float) -> float:
        """Frames a second."""
        began, n = time.monotonic(), 0
        while (took := time.monotonic() - began) < seconds or n == 0:
            n += len(self._rival(self._bursts[self._at]))
            self._at = (self._at + 1) % len(self._bursts)
        return n / took


@contextlib.contextmanager
def _held(pair: Pair) -> Iterator[None]:
    """Meanwhile the standby sleeps, and its CPU is the rival's."""
    pair.drain()
    pair.ask("hold")
    try:
        yield
    finally:
        pair.ask("drain", epoch=0)


def measure(scale: Scale) -> list[Figure]:
    frames = nat_frames(scale.small(FLOWS // 4 if scale.quick else FLOWS, 64))
    expected = ours(frames)
    ports = [int.from_bytes(frame[34:36], "big") for frame in expected]
    app = NativeNat(**{**NAT, "flows_max": 2 * FLOWS})
    figures = []
    with segments(frames, 2) as s, Pair(app, s.ports, arena_bytes=app.config.arena_bytes, burst=BURST) as pair:
        teach(app, time.monotonic_ns())
        cpu = int(pair.settings["cpu_standby"])
        rivals: dict[str, Callable[[], Rival]] = {
            "vs_scapy": lambda: ScapyNat(iter(ports)), "vs_pickle": lambda: PickleNat(iter(ports), cpu),
            "vs_redis": lambda: RedisNat(iter(ports), cpu)}
        for key, make in rivals.items():
            try:
                with contextlib.ExitStack() as stack:
                    with _held(pair):
                        rival = stack.enter_context(make())
                        runner = Runner(rival, frames, expected)

                    def theirs(runner: Runner = runner) -> float:
                        with _held(pair):
                            return runner.run(scale.slice_s)

                    both = pairs(lambda: pair.run(scale.slice_s).frames_per_s, theirs, scale.small(max(3, scale.pairs // 3), 3),
                                 seconds=scale.seconds / 3, pids=[pair.child.pid], tick=scale.tick)
                settings = {**pair.settings, "flows": len(frames), "frame_bytes": FRAME_BYTES, "rival": rival.about, "rival_burst": RIVAL_BURST}
                figures.append(Figure.of(key, both.spread(lambda a, b: a / b), limit=both.spread(lambda _, b: b).median,
                                         limit_what=f"frames a second: {rival.about}", digest=runner.digest, settings=settings))
            except UnavailableError as e:
                figures.append(Figure.missing(key, e.message))
        pair.equal()
    return figures
