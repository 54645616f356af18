"""Rate limiter: a token bucket for each source address. Buckets are state: a crash must not refill them.

Here 5 sources send 400 frames each and a bucket of 100 tokens gains one more in 1,000 s: the first 100 of each pass.
"""

import numpy as np

from nfckpt import Bench, Burst, Context, NetworkFunction, State


class RateLimiter(NetworkFunction):
    ports = ("inside", "outside")

    def __init__(self, tokens_max: int, tokens_per_s: float) -> None:
        self.tokens_max, self.tokens_per_s = tokens_max, tokens_per_s

    def declare(self, state: State) -> None:
        self.counts = state.counters("limiter", ["passed", "refused"])
        self.buckets = state.flow_table("buckets", capacity=65536, key_bytes=4, value=[("spent", "f8"), ("at_ns", "u8")])

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        burst.send(burst.port == 1, 0)                          # what comes from outside passes
        burst.drop(burst.port == 0)                             # what comes from inside needs a token
        for i in np.flatnonzero(burst.port == 0):               # in order: frames of one source share a bucket
            slot, _ = self.buckets.insert(burst.src_ip[i:i + 1], ctx.now_ns)
            spent, at_ns = self.buckets.get(slot)[0] if slot[0] >= 0 else (self.tokens_max, ctx.now_ns)   # -1: no room
            spent = max(0.0, spent - (ctx.now_ns - int(at_ns)) * self.tokens_per_s / 1e9)
            passes = spent + 1 <= self.tokens_max
            self.counts.add("passed" if passes else "refused")
            if passes:
                burst.send(i, 1)
                self.buckets.put(slot, np.array((spent + 1, ctx.now_ns), self.buckets.value_dtype))


if __name__ == "__main__":
    from scapy.all import IP, UDP, Ether  # here, not above: the nodes import this module too
    frames = [bytes(Ether() / IP(src=f"10.0.0.{n % 5}", dst="192.0.2.1") / UDP() / n.to_bytes(4, "big")) for n in range(2000)]
    with Bench("rate_limiter:RateLimiter", tokens_max=100, tokens_per_s=0.001) as bench:
        bench.send(0, frames[:300])                             # 60 tokens of each bucket
        print("kill -9 of node", bench.kill())
        bench.send(0, frames[300:])                             # at once: nobody is active yet
        passed = [int.from_bytes(frame[42:46], "big") for frame in bench.receive(1)]
        counts = bench.counts["limiter"]
    assert passed == list(range(500)), passed                   # none lost, none twice, nobody got a token more
    assert counts == {"passed": 500, "refused": 1500}, counts
    print("500 of 2000 frames passed, each once, the first 100 of each source")
