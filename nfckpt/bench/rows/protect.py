"""What protection costs the active a frame: CPU of its thread with protection minus without, the native NAT over memory ports at
full speed. The protected arm's rate is `native_nf_mpps`.
"""

from __future__ import annotations

import time

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair, Slice
from nfckpt.bench.slices import pairs
from nfckpt.bench.work import FRAME_BYTES, NAT, nat_frames, segments, teach
from nfckpt.native.nat import NativeNat

KEYS = ("protect_ns", "native_nf_mpps")
BURST, FLOWS = 128, 1024


def measure(scale: Scale) -> list[Figure]:
    app = NativeNat(**NAT)
    with segments(nat_frames(scale.small(FLOWS, 64)), 2) as s, Pair(app, s.ports, arena_bytes=app.config.arena_bytes, burst=BURST) as pair:
        teach(app, time.monotonic_ns())

        def arm(protected: bool) -> Slice:
            pair.protect(protected)
            return pair.run(scale.slice_s)

        both = pairs(lambda: arm(True), lambda: arm(False), scale.pairs, seconds=scale.seconds, pids=[pair.child.pid], tick=scale.tick)
        digest = pair.equal()
        settings = {**pair.settings, "flows": FLOWS, "frame_bytes": FRAME_BYTES, "app": "nfckpt.native.nat:NativeNat",
                    "ports": "memory, alone: they make their frames"}
        rate = both.spread(lambda a, _: a.frames_per_s / 1e6)
        return [
            Figure.of("protect_ns", both.spread(lambda a, b: a.cpu_ns_per_frame - b.cpu_ns_per_frame), digest=digest, settings=settings,
                      limit=both.spread(lambda _, b: b.cpu_ns_per_frame).median, limit_what="ns a frame unprotected"),
            Figure.of("native_nf_mpps", rate, digest=digest, settings=settings,
                      limit=both.spread(lambda _, b: b.frames_per_s / 1e6).median, limit_what="Mpps unprotected"),
        ]
