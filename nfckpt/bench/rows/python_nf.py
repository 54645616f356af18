"""The NAT written in Python (numpy columns, bursts of 256), protected: native code moves frames, epochs and acks, Python decides."""

from __future__ import annotations

import time

from nfckpt.apps.nat import Nat
from nfckpt.bench.figure import Figure, Scale
from nfckpt.bench.pair import Pair, Slice
from nfckpt.bench.slices import pairs
from nfckpt.bench.work import FRAME_BYTES, NAT, nat_frames, neighbours, segments
from nfckpt.clock import PairClock
from nfckpt.native.headers import parse_burst
from nfckpt.node.app import AppContext

KEYS = ("python_nf_mpps",)
BURST, FLOWS = 256, 1024


class PythonPair(Pair):
    """A Pair whose app is Python: the hook of every poll is what nfckpt/node/lead.py does there, less its millisecond's work."""

    app: Nat

    def poll(self, seconds: float) -> None:
        until = time.monotonic_ns() + int(seconds * 1e9)
        agent, burst, app = self.agent, self.burst, self.app
        ctx = AppContext(agent, PairClock())

        def hook() -> bool:
            now = time.monotonic_ns()
            while (message := self.ring.recv()) is not None:
                self.path.on_ack(message[1], now, True)
            self.ring.flush()
            agent.gate.release()
            ctx.tick(now)
            return self.path.poll(now)

        agent.hook = hook
        while time.monotonic_ns() < until:
            if agent.rx_burst(burst, self.burst_frames):
                app.on_burst(burst, ctx)
                agent.finish(burst)



def teach(app: Nat, pair: Pair) -> None:
    """The app hears its neighbours, as work.teach lets a native one."""
    for port, frame in neighbours():
        pair.burst.push(frame, port)
    parse_burst(pair.burst)
    ctx = AppContext(pair.agent, PairClock())
    ctx.tick(time.monotonic_ns())
    app.on_burst(pair.burst, ctx)
    pair.burst.reset()


def measure(scale: Scale) -> list[Figure]:
    app = Nat(**NAT)
    with segments(nat_frames(scale.small(FLOWS, 64)), 2) as s, PythonPair(app, s.ports, arena_bytes=app.config.arena_bytes, burst=BURST) as pair:
        teach(app, pair)

        def arm(protected: bool) -> Slice:
            pair.protect(protected)
            return pair.run(scale.slice_s)

        both = pairs(lambda: arm(True), lambda: arm(False), scale.pairs, seconds=scale.seconds, pids=[pair.child.pid], tick=scale.tick)
        return [Figure.of(KEYS[0], both.spread(lambda a, _: a.frames_per_s / 1e6), digest=pair.equal(),
                          limit=both.spread(lambda _, b: b.frames_per_s / 1e6).median, limit_what="Mpps unprotected",
                          settings={**pair.settings, "flows": FLOWS, "frame_bytes": FRAME_BYTES, "app": "nfckpt.apps.nat:Nat"})]
