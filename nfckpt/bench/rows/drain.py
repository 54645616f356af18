"""How fast a standby works off what piled up while it was not reading: ten backlogs of 1,000 epochs of the native NAT, each made at
the active's full speed (one burst an epoch, captured and in the ring), then drained: names found in the tap, outputs registered and seen.
"""

from __future__ import annotations

import time

from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair
from nfckpt.bench.slices import pairs
from nfckpt.bench.work import NAT, nat_frames, segments, teach
from nfckpt.native.nat import NativeNat
from nfckpt.native.patience import Patience

KEYS = ("drain_ratio",)
BURST, FLOWS, BACKLOG = 32, 1024, 1000
IDLE_US = 20


def measure(scale: Scale) -> list[Figure]:
    app = NativeNat(**NAT)
    backlog = scale.small(BACKLOG, 50)
    with segments(nat_frames(FLOWS), 2, limit=1, tapped=True) as s, Pair(app, s.ports, arena_bytes=app.config.arena_bytes, burst=BURST, window=BACKLOG,
                                                            ring_bytes=32 << 20, tap=s.tap, tap_fds=s.fds, skew_ms=20) as pair:
        teach(app, time.monotonic_ns())

        def one() -> tuple[float, float]:
            """Epochs a second drained, and made."""
            pair.drain()
            pair.ask("hold")
            first, began = pair.engine.epoch, time.monotonic_ns()
            s.generator.limit = s.generator.made + backlog * BURST
            pair.path.run(app, pair.burst, BURST, began + 10**10, Patience(IDLE_US, 0))
            epochs, made_ns = pair.engine.epoch - first, time.monotonic_ns() - began - IDLE_US * 1000
            drained_ns = pair.ask("drain", epoch=pair.engine.epoch - 1)["ns"]
            pair.drain()
            return epochs * 1e9 / drained_ns, epochs * 1e9 / made_ns

        both = pairs(one, lambda: None, scale.small(10, 2), seconds=scale.seconds, pids=[pair.child.pid], tick=scale.tick)
        digest = pair.equal()
        return [Figure.of(KEYS[0], both.spread(lambda a, _: a[0] / a[1]), digest=digest, limit=both.spread(lambda a, _: a[1]).median,
                          limit_what="epochs a second made", note=f"{both.spread(lambda a, _: a[0]).median:,.0f} epochs a second drained",
                          settings={**pair.settings, "flows": FLOWS, "backlog_epochs": backlog, "app": "nfckpt.native.nat:NativeNat"})]
