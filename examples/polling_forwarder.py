"""Polling forwarder: an app that owns its loop, as with DPDK. It writes into each frame its place in the stream.

The next place is one number in the arena. If a crash lost or repeated a step of the app, a place would be missing or be
given twice; if it lost or repeated a frame, the sender's own number would.
"""

import time

from nfckpt import Burst, Context, LocalPair, MemoryHub, PollingAgent, PollingFunction, State
from nfckpt.config import NodeConfig, PairConfig


class Forwarder(PollingFunction):
    ports = ("left", "right")

    def declare(self, state: State) -> None:
        self.next = state.array("next", "u8", 1)                # zeros when it is new

    def run(self, agent: PollingAgent, ctx: Context) -> None:
        burst = Burst()
        while agent.running:
            n = agent.rx_burst(burst, 64)
            if n == 0:                                          # no packets: the moment when a checkpoint is cut
                continue
            place = int(self.next[0])
            for i in range(n):
                frame = burst.frame(i)
                burst.set_frame(i, frame[:14] + (place + i).to_bytes(8, "big") + frame[22:])
            self.next.set(0, place + n)
            burst.send(slice(None), 1 - burst.port)
            agent.tx_burst(burst)
            agent.drop(burst)                                   # what a full gate refused, if anything


if __name__ == "__main__":
    head = bytes.fromhex("020000000001" "020000000002" "88b5") + bytes(8)       # addresses, type, room for the place
    frames = [head + n.to_bytes(8, "big") + bytes(30) for n in range(2000)]
    with MemoryHub(3, 4096) as left, MemoryHub(3, 4096) as right:       # two segments; we are endpoint 0, the nodes 1 and 2
        sender, sink, burst, came = left.open(0), right.open(0), Burst(), []
        nodes = {n: NodeConfig(ports=[hub.endpoint_spec(i, by_path=True) for hub in (left, right)]) for i, n in enumerate("ab", 1)}
        with LocalPair(PairConfig(name="forwarder", app="polling_forwarder:Forwarder", nodes=nodes)) as pair:
            pair.wait_protected()
            for n in range(0, 3000, 20):
                sender.tx_burst(frames[n:n + 20])               # after 2000: none, only what is still under way comes out
                if n in (500, 1500):                            # the second one hits the node that survived the first
                    print("kill -9 of node {}, process {}".format(*pair.kill_active()))
                if n in (1480, 2000):
                    pair.wait_protected(term=2 if n < 1500 else 3)
                time.sleep(0.002)
                burst.reset()
                sink.rx_burst(burst, 256)
                came += [(int.from_bytes(f[14:22], "big"), int.from_bytes(f[22:30], "big")) for f in burst.frames()]
    assert came == [(n, n) for n in range(2000)], came          # each frame once, each place once, in order
    print("2000 frames, each once, each in its place")
