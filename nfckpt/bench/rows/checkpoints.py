"""Checkpoints a second, and how long the poll takes that makes one.

A   the loop of the product, each poll that consumed something an epoch. Input is paced: no more than 32 frames an epoch, so when the
    window of epochs on their way is full the input waits, and counted are those of exactly 32 frames, over a slice that ends when
    the last of them is committed.
B   records of the same size that the standby's process only copies out and answers: the channel with nothing behind it. Such a record
    is written into lines that the other core has read last, checked and published, which is most of a pause.
And the same app over the same ports without any protection, as bursts of 32 a second, for the note: no checkpoint of each can be faster here.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from nfckpt.bench.figure import DifferenceError, Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.slices import Pairs, pairs
from nfckpt.bench.work import FRAME_BYTES, line_writer, segments, udp_frame
from nfckpt.native.arena import Arena
from nfckpt.native.bench import gather, write_lines

KEYS = ("checkpoints_per_s", "pause_us_p50", "pause_us_p99")
BURST, WINDOW, SKEW_MS = 32, 256, 20
UNPROTECTED_SLICES = 5
PORTS = "memory, alone: they make their frames", "memory hub: the active's core also sends its input"
BARE = "bare records of {} bytes, copied out and answered, a second"


@dataclass(frozen=True)
class Rate:
    counted_per_s: float
    pause_us_p50: float
    pause_us_p99: float


def rates(scale: Scale, *, tap: bool) -> tuple[Pairs[Rate, float], str, dict[str, Any], int]:
    """(both arms, digest, settings with what was measured beside, bytes of a record)."""
    arena_bytes = scale.large_bytes
    app = line_writer(arena_bytes)
    with segments([udp_frame(9)], tapped=tap) as s, Pair(
            app, s.ports, arena_bytes=arena_bytes, burst=BURST, window=WINDOW, tap=s.tap, tap_fds=s.fds,
            skew_ms=SKEW_MS if tap else 0) as pair:
        s.generator.pace(pair.agent, BURST)
        pair.run(0.01)
        nbytes = pair.record_bytes()

        def whole() -> Rate:
            before = app.whole
            app.watch(pair.agent, BURST)
            pair.path.measure(True)
            took = pair.run(scale.slice_s)
            pair.path.measure(False)
            app.watch(None, BURST)
            return Rate((app.whole - before) / took.seconds, **pair.path.pauses())

        both = pairs(whole, lambda: pair.pings(nbytes, WINDOW, scale.slice_s), scale.pairs, seconds=scale.seconds, pids=[pair.child.pid],
                     tick=scale.tick)
        digest = pair.equal()
        if tap:
            seen = pair.there["tap"]
            named = seen["matched"] + seen["credited"]
            if pair.there["drops"] or seen["tap_missed"] or named != pair.agent.handed_out:
                raise DifferenceError(f"the tap lost frames: {pair.agent.handed_out} named, {named} found, {seen['tap_missed']} missed, "
                                      f"{pair.there['drops']} dropped by its ring")
        settings = {**pair.settings, "frame_bytes": FRAME_BYTES, "lines_per_frame": 1, "tracker": "barrier", "encoding": "raw lines",
                    "ports": PORTS[tap], "tap": tap, "record_bytes": nbytes}
        s.generator.pace(None, BURST)
        pair.protect(False)
        slices = [pair.run(scale.slice_s).frames_per_s / BURST for _ in range(UNPROTECTED_SLICES)]
        settings["unprotected_bursts_per_s"] = round(statistics.median(slices))
        settings["copy_us"] = round(copy_us(pair.arena, BURST), 3)
        return both, digest, settings, nbytes


def unprotected(settings: dict[str, Any]) -> str:
    return f"unprotected, the same app over the same ports: {settings['unprotected_bursts_per_s']:,} bursts of {BURST} a second"


def copy_us(arena: Arena, lines: int) -> float:
    """Median µs of copying so many lines anywhere in `arena` that were just written, and nothing else: no capture can be shorter."""
    rng, into, took = np.random.default_rng(1), np.zeros(lines * 64, np.uint8), []
    for _ in range(2000):
        where = rng.integers(64, arena.size // 64, lines, np.uint32)
        write_lines(arena, where)
        took.append(gather(arena, where, into))
        arena.forget_writes()
    return float(np.median(took)) / 1000


def measure(scale: Scale) -> list[Figure]:
    both, digest, settings, nbytes = rates(scale, tap=False)
    common: dict[str, Any] = {"digest": digest, "settings": settings}
    limit: dict[str, Any] = {"limit": both.spread(lambda _, b: 1e6 / b).median,
                             "limit_what": f"µs a bare record of {nbytes} bytes takes from core to core, of many; copy_us: the copy of the lines"}
    return [
        Figure.of("checkpoints_per_s", both.spread(lambda a, _: a.counted_per_s), limit=both.spread(lambda _, b: b).median,
                  limit_what=BARE.format(nbytes), note=unprotected(settings), **common),
        Figure.of("pause_us_p50", both.spread(lambda a, _: a.pause_us_p50), **limit, **common),
        Figure.of("pause_us_p99", both.spread(lambda a, _: a.pause_us_p99), **limit, **common),
    ]
