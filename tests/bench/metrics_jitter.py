"""Does serving metrics delay the packet loop? Gaps between the polls of a Python app's loop, in three arms that take turns:

    none       no metrics
    board      as nfckpt does it: the loop shows a part a ms, a process at nice 15 answers 20 scrapes a second
    thread     as it does not: a thread of the packet process at nice 15, which takes the numbers itself, 20 scrapes a second

    nice -n -15 python -m tests.bench.metrics_jitter [rounds]

Prints, per arm, the median over rounds of: p50 and p99 of the gaps, µs; and the gaps of 20 to 1000 µs, how many a second and ms in them a
second. Those are what a lock or a long turn makes; longer ones are the scheduler's, on a machine that others use too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.exposition import generate_latest

from nfckpt.config import Bounds
from nfckpt.observe.board import Board, ExporterSpec
from nfckpt.observe.metrics import registry
from tests.pair_rig import free_ports, until

SLICE_S, SCRAPE_S = 2.0, 0.05
PORTS = {f"{i}:eth{i}": dict.fromkeys(("rx_frames", "rx_bytes", "rx_ring_drops", "tx_frames", "tx_bytes", "tx_full", "tx_errors"), 7) for i in range(2)}


def parts() -> Iterator[dict[str, Any]]:
    """As many numbers as an active has, made by as many look-ups."""
    yield {"node": "a", "pid": os.getpid(), "profile": "host", "app": "x:Y", "start_us": 5}
    yield {"role": "active", "term": 3, "protected": True, "epoch": 812, "commits": 812, "commit_wait_ns": 10**9, "aborts": 0, "outputs_held": 3}
    yield {"quarantined": 0, "syncing": False, "staging_full": 0, "hold_us": 1.5, "hold_binds": "none", "epochs_closed": {"time": 1, "frames": 0}}
    yield {"agent": {f"counter_{i}": i for i in range(12)}}
    yield {"ports": PORTS}
    yield {"channel": {"bytes_sent": 1, "bytes_received": 2, "backlog": 0}}


def gaps(seconds: float, slow: Callable[[int], object]) -> list[int]:
    """A loop that reads the clock, with `slow(now)` once a ms, as a packet loop has it."""
    out, due, end = [], 0, time.monotonic_ns() + int(seconds * 1e9)
    before = time.monotonic_ns()
    while before < end:
        if before >= due:
            due = before + 1_000_000
            slow(before)
        now = time.monotonic_ns()
        out.append(now - before)
        before = now
    return out


def arm(kind: str) -> list[int]:
    done = threading.Event()
    if kind == "none":
        return gaps(SLICE_S, lambda now: None)
    spec = ExporterSpec("p", "a", "host", f"127.0.0.1:{free_ports(1)[0]}", Bounds())
    if kind == "board":
        board = Board(spec)
        scraper = subprocess.Popen([sys.executable, "-c", "import os, sys, time, urllib.request as u\nos.setpriority(0, 0, 15)\nwhile True:\n time.sleep(float(sys.argv[2]))\n try: u.urlopen(sys.argv[1]).read()\n"
                                    " except OSError: pass", f"http://{spec.address}/metrics", str(SCRAPE_S)])
        until(lambda: _answers(spec.address))
        try:
            return gaps(SLICE_S, lambda now: board.turn(now, parts))
        finally:
            scraper.kill()
            scraper.wait()
            assert board._exporter is not None and board._exporter.stdin is not None
            board._exporter.stdin.close()
            board._exporter.wait()

    def serve() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        while not done.wait(SCRAPE_S):
            body = {"at_ns": time.monotonic_ns()}
            for part in parts():
                body |= part
            generate_latest(registry(spec, lambda body=body: body))      # type: ignore[misc]

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return gaps(SLICE_S, lambda now: None)
    finally:
        done.set()
        thread.join()


def _answers(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://{address}/metrics").read())
    except OSError:
        return False


def main() -> None:
    rounds = next((int(a) for a in sys.argv[1:] if a.isdigit()), 5)
    sys.setswitchinterval(0.0005)
    seen: dict[str, list[list[float]]] = {"none": [], "board": [], "thread": []}
    for _ in range(rounds):
        for kind, rows in seen.items():
            g = sorted(arm(kind))
            short = [x for x in g if 20_000 <= x < 1_000_000]
            rows.append([g[len(g) // 2] / 1000, g[int(len(g) * 0.99)] / 1000, len(short) / SLICE_S, sum(short) / 1e6 / SLICE_S])
    for kind, rows in seen.items():
        names = ("p50_us", "p99_us", "short_gaps_per_s", "short_gaps_ms_per_s")
        print(json.dumps({"arm": kind} | {name: round(statistics.median(column), 3) for name, column in zip(names, zip(*rows, strict=True), strict=True)}))


if __name__ == "__main__":
    main()
