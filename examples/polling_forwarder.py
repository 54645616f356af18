"""Polling forwarder: an app that owns its loop, as with DPDK. It writes into each frame its place in the stream.

The next place is one number in the arena. If a crash lost or repeated a step of the app, a place would be missing or be
given twice; if it lost or repeated a frame, the sender's own number would.
"""

from nfckpt import Bench, Burst, Context, PollingAgent, PollingFunction, State


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
            self.next[0] = place + n
            burst.send(slice(None), 1 - burst.port)
            agent.tx_burst(burst)
            agent.drop(burst)                                   # what a full gate refused, if anything


if __name__ == "__main__":
    head = bytes.fromhex("020000000001" "020000000002" "88b5") + bytes(8)       # addresses, type, room for the place
    frames = [head + n.to_bytes(8, "big") + bytes(30) for n in range(3000)]
    with Bench("polling_forwarder:Forwarder") as bench:
        for first in (0, 1000, 2000):
            bench.send(0, frames[first:first + 500])
            print("kill -9 of node", bench.kill())              # each time the one that survived the last time
            bench.send(0, frames[first + 500:first + 1000])     # at once: nobody is active yet
            bench.wait_protected()
        came = [(int.from_bytes(f[14:22], "big"), int.from_bytes(f[22:30], "big")) for f in bench.receive(1)]
    assert came == [(n, n) for n in range(3000)], came          # each frame once, each place once, in order
    print("3000 frames, each once, each in its place")
