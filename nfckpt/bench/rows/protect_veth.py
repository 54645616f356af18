"""What protection costs on real devices: CPU the active's thread needs a frame, without ÷ with protection.

In both arms the native NAT runs between client and server on two hubs, at 100,000 frames/s, and the standby taps the same hubs; the
active spins 50 µs and then sleeps, as a node does. All of it in a private box, in a process of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

from nfckpt.bench.boxed import in_box
from nfckpt.bench.figure import DifferenceError, Figure, Scale, UnavailableError
from nfckpt.bench.pair import Pair, Slice
from nfckpt.bench.slices import pairs
from nfckpt.config import Bounds
from nfckpt.native.nat import NativeNat
from nfckpt.native.patience import Patience
from nfckpt.ports.af_packet import AfPacketPort

KEYS = ("protect_ratio",)
MODULE = "nfckpt.bench.rows.protect_veth"      # also where it is __main__
BURST, RATE, PORT, PAYLOAD, SKEW_MS = 128, 100_000, 9_000, 64, 20


class SleepyPair(Pair):
    """A Pair whose active sleeps when there is nothing to do, as nfckpt/node/shell.py lets it."""

    def poll(self, seconds: float) -> None:
        until = time.monotonic_ns() + int(seconds * 1e9)
        poll = select.poll()
        for fd in [port.fileno() for port in self.agent.ports] + [self.ring.fileno()]:
            poll.register(fd, select.POLLIN)
        bounds = Bounds()
        patience = Patience(bounds.idle_spin_us, 0)
        while time.monotonic_ns() < until:
            self.path.run(self.app, self.burst, self.burst_frames, until, patience)     # type: ignore[arg-type]
            if self.ring.closed is not None:
                raise DifferenceError(f"the standby ended: {self.ring.closed}")
            if time.monotonic_ns() < until and self.ring.before_sleep():
                poll.poll(bounds.idle_wait_ms_max)
                self.ring.after_sleep()


def measure(scale: Scale) -> list[Figure]:
    found = in_box(MODULE, [str(scale.seconds), "tiny" if scale.tiny else ""], scale)
    return [Figure(**{**found, "spread": tuple(found["spread"])})]


# ── inside the box ───────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _host(ns: str, *arguments: str) -> Iterator[None]:
    """A host's process in its namespace: a deaf socket on PORT; with arguments (address, frames/s) it sends there."""
    from nfckpt.testbed import netns
    process = netns.popen_in(ns, [sys.executable, "-m", MODULE, "host", *arguments], stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _be_host(arguments: list[str]) -> None:
    from nfckpt.native.traffic import Sender, deaf
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        deaf(sock)
        sock.bind(("0.0.0.0", PORT))
        if arguments:
            sock.connect((arguments[0], PORT))
            sender = Sender([(sock.fileno(), None, 0)], int(arguments[1]), PAYLOAD)
            threading.Thread(target=sender.run, daemon=True).start()
        sys.stdin.read()


def _inside(scale: Scale) -> Figure:
    from nfckpt.testbed.topology import NAT_IP, SERVER_IP, Testbed
    app = NativeNat(inside_ip="10.0.0.1", outside_ips=[NAT_IP], flows_max=4096)
    with Testbed() as bed, contextlib.ExitStack() as stack:
        ports = [AfPacketPort(device, bed.ns("a")) for device in ("lan", "wan")]
        for port in ports:
            stack.callback(port.close)
        pair = stack.enter_context(SleepyPair(
            app, ports, arena_bytes=app.config.arena_bytes, burst=BURST, skew_ms=SKEW_MS, share_cpu=True,
            tap=[{"scheme": "afpacket", "ifname": device, "netns": bed.ns("b")} for device in ("lan", "wan")]))
        stack.enter_context(_host(bed.ns("server")))
        stack.enter_context(_host(bed.ns("client"), SERVER_IP, str(RATE)))
        slice_s = scale.small(200, 20) / 1000
        deadline = time.monotonic() + 10
        while pair.run(0.1).frames < RATE // 100:
            if time.monotonic() > deadline:
                raise UnavailableError("no traffic arrives from the client")

        def arm(protected: bool) -> Slice:
            pair.protect(protected)
            frames, cpu, began = pair.agent.handed_out, time.thread_time(), time.monotonic()
            pair.poll(slice_s)
            return Slice(time.monotonic() - began, time.thread_time() - cpu, pair.agent.handed_out - frames, 0)

        both = pairs(lambda: arm(False), lambda: arm(True), max(3, int(scale.seconds / 2 / slice_s)) if not scale.tiny else 3,
                     seconds=scale.seconds, pids=[pair.child.pid])
        digest = pair.equal()
        rate = both.spread(lambda _, b: b.frames_per_s).median
        return Figure.of(KEYS[0], both.spread(lambda a, b: a.cpu_ns_per_frame / b.cpu_ns_per_frame), digest=digest, limit=1.0,
                         limit_what="no cost", note=f"{rate:,.0f} frames/s came; {both.spread(lambda a, _: a.cpu_ns_per_frame).median:.0f} ns a frame "
                         f"unprotected, {both.spread(lambda _, b: b.cpu_ns_per_frame).median:.0f} protected",
                         settings={**pair.settings, "frames_per_s": RATE, "frame_bytes": PAYLOAD + 42, "ports": "AF_PACKET on veth",
                                   "app": "nfckpt.native.nat:NativeNat"})


def main() -> None:
    """Not for people: `host …` in a namespace, or SECONDS TINY, which enters a box and prints one figure as JSON."""
    if sys.argv[1] == "host":
        _be_host(sys.argv[2:])
        return
    from nfckpt.testbed import box
    box.enter_box()
    print(json.dumps(dataclasses.asdict(_inside(Scale(float(sys.argv[1]), sys.argv[2] == "tiny")))))


if __name__ == "__main__":
    main()
