"""A blank standby is given all of an arena while the app works on.

A   1 GiB of incompressible bytes (256 MiB in a short run), in groups of 256 pages that ride on the epochs of a running app
B   as many bytes in bare records of a group's size: the bandwidth of the channel
"""

from __future__ import annotations

import time

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.slices import pairs
from nfckpt.bench.work import line_writer, segments, udp_frame
from nfckpt.errors import PeerError
from nfckpt.native.bench import fill, ping

KEYS = ("sync_ratio",)
BURST, GROUP = 32, 256
RECORD_BYTES = GROUP * 4100 - 4096      # at most 2**20 for a ping


def measure(scale: Scale) -> list[Figure]:
    arena_bytes = scale.large_bytes
    app = line_writer(arena_bytes)
    with segments([udp_frame(9)]) as s, Pair(app, s.ports, arena_bytes=arena_bytes, burst=BURST, window=16, ring_bytes=16 << 20,
                                             pages_max=GROUP) as pair:
        fill(pair.arena, "lines", 1)
        records = arena_bytes // RECORD_BYTES + 1

        def sync() -> float:
            pair.drain()
            pair.ask("blank")
            pair.path.sync.begin()
            began = time.monotonic()
            pair.path.sync_pages = True
            while pair.path.sync_pages:
                pair.poll(0.001)
                if time.monotonic() - began > 60:
                    raise PeerError("the sync does not end")
            pair.drain()
            return time.monotonic() - began

        def channel() -> float:
            pair.drain()
            began = time.monotonic()
            ping(pair.ring, RECORD_BYTES, 8, records, time.monotonic_ns() + 60 * 10**9)
            return time.monotonic() - began

        both = pairs(sync, channel, scale.small(3, 1), seconds=scale.seconds, pids=[pair.child.pid], tick=scale.tick)
        digest = pair.equal()
        return [Figure.of(KEYS[0], both.spread(lambda a, b: a / b), digest=digest,
                          limit=both.spread(lambda _, b: arena_bytes / b / 2**30).median, limit_what="GiB/s of the bare channel",
                          note=f"{both.spread(lambda a, _: a).median:.2f} s for {arena_bytes >> 20} MiB",
                          settings={**pair.settings, "sync_group_pages_max": GROUP, "frames_per_epoch": BURST, "tracker": "barrier"})]
