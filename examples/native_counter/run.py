"""Run the native counter as a pair over memory ports, kill its active node with SIGKILL, check frames and counts."""

import time

from nfckpt import Burst, LocalPair, MemoryHub
from nfckpt.config import NodeConfig, PairConfig

head = bytes.fromhex("020000000001" "020000000002" "88b5")
frames = [head + n.to_bytes(8, "big") + bytes(38) for n in range(20_000)]
with MemoryHub(3, 1 << 15) as left, MemoryHub(3, 1 << 15) as right:    # two segments; we are endpoint 0, the nodes 1 and 2
    sender, sink, burst, came = left.open(0), right.open(0), Burst(), []
    nodes = {n: NodeConfig(ports=[hub.endpoint_spec(i, by_path=True) for hub in (left, right)]) for i, n in enumerate("ab", 1)}
    with LocalPair(PairConfig(name="counter", app="native_counter:NativeCounter", nodes=nodes)) as pair:
        pair.wait_protected()
        for n in range(0, 30_000, 100):
            sender.tx_burst(frames[n:n + 100])                  # after 20,000: none, only what is still under way comes out
            if n == 5000:
                print("kill -9 of node {}, process {}".format(*pair.kill_active()))
            elif n == 20_000:
                pair.wait_protected(term=2)
            time.sleep(0.002)
            burst.reset()
            sink.rx_burst(burst, 256)
            came += [int.from_bytes(frame[14:22], "big") for frame in burst.frames()]
        totals = pair.status()[pair.active]["state"][0]["counts"]
assert came == list(range(20_000)), f"{len(came)} frames, {len(set(came))} different"
assert totals == {"left_frames": 20_000, "right_frames": 0, "left_bytes": 1_200_000, "right_bytes": 0}, totals
print("20000 frames, each once, each counted once")
