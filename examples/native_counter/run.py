"""Run the native counter as a pair over memory ports, kill its active node with SIGKILL, check frames and counts."""

from nfckpt import Bench

head = bytes.fromhex("020000000001" "020000000002" "88b5")
frames = [head + n.to_bytes(8, "big") + bytes(38) for n in range(10_000)]
with Bench("native_counter:NativeCounter") as bench:
    bench.send(0, frames[:5000])
    print("kill -9 of node", bench.kill())
    bench.send(0, frames[5000:])                                # at once: nobody is active yet
    came = [int.from_bytes(frame[14:22], "big") for frame in bench.receive(1)]
    totals = bench.counts["totals"]
assert came == list(range(10_000)), f"{len(came)} frames, {len(set(came))} different"
assert totals == {"left_frames": 10_000, "right_frames": 0, "left_bytes": 600_000, "right_bytes": 0}, totals
print("10000 frames, each once, each counted once")
