"""Ports: frames a second one way, and the time of a ping-pong. Each end is a process; 64-byte frames, bursts of 32.

        python tests/bench/bench_ports.py [seconds]        needs root for AF_PACKET

Python enters native code once a burst (ping-pong: twice a frame, which its figures hold), so absolute times are upper bounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from nfckpt.native.burst import Burst  # noqa: E402
from nfckpt.ports import MemoryHub, open_port  # noqa: E402
from nfckpt.sim.conformance_port import numbered_frame  # noqa: E402

FRAME_BYTES = 64
IDLE_S = 0.5


def child(role: str, spec: dict[str, Any]) -> None:
    """sink: count until nothing has come for IDLE_S. echo: send back until then. Prints a JSON line at both ends."""
    port = open_port(spec)
    burst = Burst()
    print("ready", flush=True)
    calls, first, last = 0, 0, time.monotonic_ns() + 5 * 10**9
    while True:
        burst.reset()
        if port.rx_burst(burst, 256 if role == "sink" else 1):
            last = time.monotonic_ns()
            first = first or last
            if role == "echo":
                port.tx_from(burst)
        else:
            calls += 1
            if calls % 1000 == 0 and time.monotonic_ns() - last > IDLE_S * 1e9:
                break
    print(json.dumps({**port.counters(), "ns": last - first}), flush=True)
    port.close()


@contextlib.contextmanager
def other(role: str, spec: dict[str, Any], fds: list[int]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", role, json.dumps(spec)], stdout=subprocess.PIPE, text=True, pass_fds=fds
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


def one_way(mine: dict[str, Any], theirs: dict[str, Any], fds: list[int], seconds: float) -> dict[str, float]:
    """Send as fast as the port takes. Returns Mpps in and out and the receiver's share of drops."""
    burst = Burst()
    for n in range(32):
        burst.push(numbered_frame(n, FRAME_BYTES))
    with other("sink", theirs, fds) as sink, open_port(mine) as port:
        start = time.monotonic_ns()
        end = start + int(seconds * 1e9)
        while time.monotonic_ns() < end:
            done = port.tx_from(burst)
            while done < 32:
                done += port.tx_from(burst, done)
        while port.tx_flush():
            pass
        took = time.monotonic_ns() - start
        sent = port.counters()["tx_frames"]
        got = json.loads(sink.communicate(timeout=10)[0])
    assert got["rx_frames"] + got["rx_ring_drops"] == sent, (sent, got)
    return {
        "tx_mpps": sent / took * 1e3,
        "rx_mpps": got["rx_frames"] / max(1, got["ns"]) * 1e3,
        "dropped": got["rx_ring_drops"] / sent,
    }


def ping_pong(mine: dict[str, Any], theirs: dict[str, Any], fds: list[int], rounds: int) -> dict[str, float]:
    """Round trip of one frame, both ends spinning, in microseconds."""
    frame, burst, times = Burst(), Burst(), np.zeros(rounds)
    frame.push(numbered_frame(0, FRAME_BYTES))
    with other("echo", theirs, fds), open_port(mine) as port:
        for i in range(rounds):
            start = time.monotonic_ns()
            port.tx_from(frame)
            burst.reset()
            while not port.rx_burst(burst, 1):
                assert time.monotonic_ns() - start < 5e9, "the echo is gone"
            times[i] = time.monotonic_ns() - start
    return {f"p{q}": float(np.percentile(times, q)) / 1e3 for q in (50, 99)}


def run(seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    from ports_lab import veth

    results: dict[str, dict[str, float]] = {}
    for name, wait in (("pair", True), ("hub", False)):
        with MemoryHub(2, frames=1024, wait=wait) as hub:
            a, b = hub.endpoint_spec(0), hub.endpoint_spec(1)
            results[f"memory {name}"] = one_way(a, b, hub.fds, seconds)
    with MemoryHub(2, wait=True) as hub:
        results["memory ping-pong us"] = ping_pong(hub.endpoint_spec(0), hub.endpoint_spec(1), hub.fds, rounds)
    with veth() as lab:
        a, b = ({"scheme": "afpacket", "ifname": lab.dev, "netns": ns} for ns in (lab.a, lab.b))
        results["af_packet veth"] = one_way(a, b, [], seconds)
        results["af_packet ping-pong us"] = ping_pong(a, b, [], rounds)
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
    else:
        print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {FRAME_BYTES}-byte frames")
        for what, figures in run(float(sys.argv[1]) if sys.argv[1:] else 1.0, 20_000).items():
            print(f"{what:24}", "  ".join(f"{k} {v:.3f}" for k, v in figures.items()))
