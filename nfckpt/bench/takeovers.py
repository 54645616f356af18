"""Takeovers: a protected pair between client and server, numbered UDP both ways, and its active ended again and again.

Picture     client ══ hub ══ a, b (the NAT) ══ hub ══ server        in a private box; the pair by the local runner
            protected ─► rest ─► end the active ─► somebody emits ─► protected ─► … `times` times ─► stop, add up

Outage      the largest one-way delay of any frame sent from 5 ms before the end of the active to `window_ms` after it, in either
            direction, minus the median of those sent before. Senders look every 100 µs at what is due, on a real-time
            priority where the machine gives it, and nodes, senders and sinks share the machine's cores.
Promises    T1 a run that lost, doubled or changed a frame says so, whatever its outages.   T2 a takeover nobody asked for is counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from nfckpt.bench.boxed import in_box
from nfckpt.bench.figure import DifferenceError, Scale
from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.errors import ProtectionError

__all__ = ["Plan", "Takeover", "Takeovers", "describe", "flows", "run", "times"]

MODULE = "nfckpt.bench.takeovers"       # also where it is __main__
STREAMS, PAYLOAD, LATE_MS = 16, 64, 2.0
TICK_US = 200
SINK_NICE = 7               # clients and servers have machines of their own: a sink only has to keep up with its ring
BEFORE_MS, NEAR_MS = 5, 40
DISCARD_PORT = 9
PROTECTED_S_MAX = 60.0
ANSWER_S_MAX = 60.0         # of a traffic program, whose turn comes late on a busy machine
MS = 1_000_000
Way = Literal["kill", "segv", "stop", "machine", "graceful", "none"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is done how often. `ways`: in turn; none: nothing is ended, for `rest_s`. `frames_s`: of each direction. `burn`: processes
    that want a core each, all the time. `arena_bytes`: at least so much state, in memory, zeros beyond the app's own."""

    ways: list[Way]
    times: int
    profile: Literal["host", "hosts"] = "host"
    app: str = "nfckpt.native.nat:NativeNat"
    flows: int = 100_000
    frames_s: int = 25_000
    rest_s: float = 0.4
    window_ms: int = 300
    arena_bytes: int = 0
    burn: int = 0
    bounds: dict[str, Any] = {}


class Takeover(msgspec.Struct, frozen=True, kw_only=True):
    """One of them. Times in µs from the active's end, but `steps_us`, which are the receipt's; `protected_us` the next protection."""

    way: Way
    outage_us: float
    worst_us: float             # when the frame was sent that came latest
    near_us: float              # the outage as of the frames sent within NEAR_MS alone: without the next standby's arrival
    idle_us: float              # the outage of a window as long before it, in which nothing ended
    told_us: float              # until the survivor was told: the kernel's word, or how long before the end it had heard the last
    median_us: float
    gap_us: float               # the longest time in which a sender sent nothing
    protected_us: float
    sync_us: float              # from the new standby's hello to protection
    start_us: float             # from the end of the old process to the new one's hello: process, interpreter, imports
    hang_bound_us: float        # as status said before the end
    receipt: dict[str, Any]


class Takeovers(msgspec.Struct, frozen=True, kw_only=True):
    """All of one plan."""

    plan: Plan
    each: list[Takeover]
    problems: list[str]         # what was lost, doubled, changed; empty when nothing
    false_takeovers: int
    seconds: float
    frames: int
    flows: int
    state_bytes: int
    hang_bound_ms: float        # of the standby, at the end
    hole_ms: float
    lates: int
    standbys_lost: int

    @property
    def plan_skew_us(self) -> int:
        return 1000 * msgspec.convert(self.plan.bounds, Bounds).tap_skew_ms_max

    def outages_us(self, *ways: str) -> list[float]:
        return sorted(t.outage_us for t in self.each if not ways or t.way in ways)

    def step_us(self, name: str) -> float:
        """Median of a receipt's step, 0 where none has it."""
        found = [t.receipt["steps_us"][name] for t in self.each if name in t.receipt.get("steps_us", {})]
        return statistics.median(found) if found else 0.0


def times(scale: Scale) -> int:
    """How many takeovers a row makes: 100, fewer in a short run."""
    return scale.small(max(10, min(100, round(100 * scale.seconds / 6))), 2)


def flows(scale: Scale) -> int:
    return scale.small(100_000, 200)


def describe(found: Takeovers, note: str) -> dict[str, Any]:
    """What every Figure of these rows says."""
    plan = found.plan
    return {"slices": len(found.each), "note": "; ".join([note, *found.problems, f"{found.frames:,} frames"]), "settings": {
        "ways": " ".join(plan.ways), "takeovers": len(found.each), "profile": plan.profile, "app": plan.app, "flows": plan.flows,
        "frames_per_s": f"{plan.frames_s} each way", "frame_bytes": PAYLOAD + 42, "nice": "-15 where allowed",
        "median_delay_us": round(statistics.median(t.median_us for t in found.each)) if found.each else "-",
        "latest_sent_us": round(statistics.median(t.worst_us for t in found.each)) if found.each else "-",
        "sender_gap_us_max": round(max((t.gap_us for t in found.each), default=0))}}


def run(plan: Plan, scale: Scale) -> Takeovers:
    """In a box of its own. Raises UnavailableError, DifferenceError."""
    raw = in_box(MODULE, [msgspec.json.encode(plan).decode()], scale, f"{plan.times} × {', '.join(plan.ways)}")
    found = msgspec.convert(raw, Takeovers)
    if found.problems:
        raise DifferenceError(f"{', '.join(plan.ways)}: {'; '.join(found.problems)}")
    return found


# ── inside the box ───────────────────────────────────────────────────────────────────────────────


class Stage:
    """The testbed, the pair, the traffic, for the time of one plan."""

    def __init__(self, plan: Plan, stack: contextlib.ExitStack) -> None:
        from nfckpt.apps.nat_plan import NatConfig
        from nfckpt.deploy.local import LocalPair
        from nfckpt.testbed.demo import CHANNEL_PORT
        from nfckpt.testbed.topology import (
            CLIENT_IPS,
            GATEWAY_IP,
            NAT_IP,
            NODES,
            REP_IPS,
            SERVER_IP,
            Testbed,
        )
        from nfckpt.testbed.traffic.workload import Program
        self.plan = plan
        self.events: list[tuple[str, int, dict[str, Any]]] = []
        self.news = threading.Condition()
        self.bed = stack.enter_context(Testbed())
        parameters: dict[str, Any] = {"inside_ip": GATEWAY_IP, "outside_ips": [NAT_IP, "198.51.100.3"],
                                      "flows_max": max(1024, 5 * plan.flows // 4), "udp_s": 36_000.0}
        arena = max(NatConfig(**parameters).arena_bytes, plan.arena_bytes)
        bounds = {"arena_bytes": arena, "message_bytes_max": max(Bounds().message_bytes_max, 2 * arena + (160 << 20)), **plan.bounds}
        self.config = PairConfig(
            name="takeovers", app=plan.app, app_args=parameters, profile=plan.profile, bounds=msgspec.convert(bounds, Bounds),
            nodes={node: NodeConfig(ports=[f"afpacket:{device}@{self.bed.ns(node)}" for device in ("lan", "wan")], netns=self.bed.ns(node),
                                    address=f"{REP_IPS[node]}:{CHANNEL_PORT}", cpu=cpu) for cpu, node in enumerate(NODES)})
        self.pair: LocalPair = stack.enter_context(LocalPair(self.config, on_event=self._note))
        self.pair.wait_protected(PROTECTED_S_MAX)
        self._open_flows(CLIENT_IPS, SERVER_IP)
        want = {"server": SERVER_IP, "device": "eth0", "streams": STREAMS, "payload_bytes": PAYLOAD, "late_ms": LATE_MS,
                "frames_s": plan.frames_s, "tick_us": TICK_US, "nice": SINK_NICE}
        self.ends = {role: Program(self.bed.ns(role), "udp", {**want, "role": role, "addresses": list(ips)})
                     for role, ips in (("server", (SERVER_IP,)), ("client", CLIENT_IPS))}
        for program in self.ends.values():
            stack.callback(program.end)
        for program in self.ends.values():
            program.event("ready", 15)
        for role in "server", "client":
            self.ends[role].say("go")
        time.sleep(0.2)

    def _note(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        with self.news:
            self.events.append((name, at_ns, fields))
            self.news.notify_all()

    def wait(self, name: str, fits: Callable[[dict[str, Any]], bool], seconds: float = PROTECTED_S_MAX) -> tuple[int, dict[str, Any]]:
        """When it happened and its fields."""
        def found() -> list[tuple[str, int, dict[str, Any]]]:
            return [e for e in self.events if e[0] == name and fits(e[2])]

        with self.news:
            if not self.news.wait_for(found, seconds):
                raise ProtectionError(f"no {name!r} within {seconds:.0f} s; last: {[(n, f) for n, _, f in self.events[-14:]]}")
            return found()[-1][1:]

    def _open_flows(self, addresses: tuple[str, ...], server: str) -> None:
        """One datagram from each of `flows` sources, so that the NAT keeps as many sessions."""
        from nfckpt.testbed import netns

        def deaf() -> socket.socket:
            from nfckpt.native.traffic import deaf
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            deaf(sock)
            sock.bind((server, DISCARD_PORT))
            return sock

        def send() -> None:
            for i in range(self.plan.flows):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.bind((addresses[i % len(addresses)], 2000 + i // len(addresses)))
                    sock.sendto(b"flow", (server, DISCARD_PORT))
                if i < 50 or i % 100 == 99:
                    time.sleep(0.005)       # the first are asked for by ARP; the rest at a rate that every ring carries

        with netns.run_in(self.bed.ns("server"), deaf):
            netns.run_in(self.bed.ns("client"), send)
            time.sleep(0.1)

    def status(self) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """The active, its status and the standby's, once both say that they are protected."""
        deadline = time.monotonic() + PROTECTED_S_MAX
        while time.monotonic() < deadline:
            nodes = self.pair.status()
            active = self.pair.active
            if active in nodes and all(s.get("protected") for s in nodes.values()) and nodes[active]["role"] == "active":
                return active, nodes[active], next(s for name, s in nodes.items() if name != active)
            time.sleep(0.01)
        raise ProtectionError(f"not protected again within {PROTECTED_S_MAX:.0f} s")

    def end_active(self, node: str, way: Way) -> int:
        """Returns when, CLOCK_MONOTONIC ns."""
        pid = self.pair.keepers[node].pid
        t = time.monotonic_ns()
        if way == "graceful":
            deadline = t + round(PROTECTED_S_MAX * 1e9)
            while not self.pair.failover():             # protection may be lost since we looked
                if time.monotonic_ns() > deadline:
                    raise ProtectionError("no planned switch: the pair is not protected")
                time.sleep(0.01)
                t = time.monotonic_ns()
        elif way == "machine":
            self.bed.cut(f"{node}.rep")         # first: the kernel of a process that ends would close its TCP connections
            os.kill(pid, signal.SIGKILL)
            self.bed.links_down(node)
        else:
            os.kill(pid, {"kill": signal.SIGKILL, "segv": signal.SIGSEGV, "stop": signal.SIGSTOP}[way])
        return t

    def _worst_us(self, t: int, window_ms: int) -> tuple[float, dict[str, Any], list[dict[str, Any]]]:
        """The outage around `t` and up to `window_ms` after it, what the sink that saw it says, and what both say."""
        seen = [p.ask(f"around {t} {t - BEFORE_MS * MS} {t + window_ms * MS}", "around", ANSWER_S_MAX) for p in self.ends.values()]
        worst = max(seen, key=lambda s: s["worst_ns"] - s["median_ns"])
        return (worst["worst_ns"] - worst["median_ns"]) / 1e3, worst, seen

    def one(self, way: Way) -> Takeover:
        window_ms = self.plan.window_ms
        idle_us = self._worst_us(time.monotonic_ns() - window_ms * MS, window_ms)[0]
        node, active, standby = self.status()           # at the last moment: protection may be lost while the sinks count
        term = int(active["term"]) + 1
        t = self.end_active(node, way)
        self.wait("active", lambda f: f["term"] >= term)
        if way == "machine":
            time.sleep(0.2)
            self.bed.links_up(node)
        _, receipt = self.wait("receipt", lambda f: f["term"] >= term, 10)
        _, taken = self.wait("takeover", lambda f: f["term"] >= term)
        protected, _ = self.wait("protected", lambda f: f["term"] >= term)
        protecting, _ = self.wait("protecting", lambda f: True)
        exited, _ = self.wait("exited", lambda f: f["node"] == node)
        time.sleep(max(0.0, (t + window_ms * MS - time.monotonic_ns()) / 1e9) + 0.02)
        outage_us, worst, seen = self._worst_us(t, window_ms)
        near_us = self._worst_us(t, min(NEAR_MS, window_ms))[0]
        return Takeover(way=way, outage_us=outage_us, worst_us=(worst["worst_sent_ns"] - t) / 1e3, near_us=near_us, idle_us=idle_us, told_us=(taken["lost_ns"] - t) / 1e3, median_us=worst["median_ns"] / 1e3,
                        gap_us=max(s["gap_ns"] for s in seen) / 1e3, protected_us=(protected - t) / 1e3,
                        sync_us=(protected - protecting) / 1e3, start_us=(protecting - exited) / 1e3,
                        hang_bound_us=1e3 * float(standby.get("hang_bound_ms", 0)), receipt=receipt)


def _inside(plan: Plan) -> Takeovers:
    resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)     # as a careless machine has it
    with contextlib.ExitStack() as stack:
        stage = Stage(plan, stack)
        for _ in range(plan.burn):
            stack.enter_context(_burner())
        began = time.monotonic()
        _, active, _ = stage.status()
        first_term = int(active["term"])
        each = []
        if plan.ways == ["none"]:
            time.sleep(plan.rest_s)
        else:
            for i in range(plan.times):
                time.sleep(plan.rest_s)
                each.append(stage.one(plan.ways[i % len(plan.ways)]))
        seconds = time.monotonic() - began
        _, active, standby = stage.status()
        for end in stage.ends.values():
            end.say("halt")
        for end in stage.ends.values():
            end.event("halted", 15)
        for end in stage.ends.values():
            end.say("report")
        client, server = (stage.ends[role].event("result", 45) for role in ("client", "server"))
        problems = [f"{count} {what} {way}" for way, sink, sender in (("forth", server, client), ("back", client, server))
                    for what, count in (("lost", sender["sent"] - sink["received"]),
                                        *((key, sink[key]) for key in ("duplicated", "corrupt", "source_changed", "sink_overflow"))) if count]
        state = active["state"]
        return Takeovers(plan=plan, each=each, problems=problems, seconds=seconds, frames=client["received"] + server["received"],
                         false_takeovers=int(active["term"]) - first_term - len(each),
                         flows=next((round(row["fill"] * plan.flows * 5 / 4) for row in state if row["name"] == "sessions" and row["fill"]), 0),
                         state_bytes=int(active["arena_used_bytes"]), hang_bound_ms=float(standby["hang_bound_ms"]),
                         hole_ms=float(standby["hole_ms"]), lates=int(standby["peer_lates"]),
                         standbys_lost=sum(name == "standby_lost" for name, _, _ in stage.events))


@contextlib.contextmanager
def _burner() -> Any:
    import subprocess
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], stdin=subprocess.DEVNULL, start_new_session=True)
    os.setpriority(os.PRIO_PROCESS, process.pid, max(0, os.getpriority(os.PRIO_PROCESS, process.pid)))      # others' work, not the pair's
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Not for people: PLAN as JSON; enters a box and prints a Takeovers as JSON."""
    from nfckpt.testbed import box
    box.enter_box()
    with contextlib.suppress(OSError):      # what else runs on this machine is not what is measured
        os.setsid()
        os.nice(-15)
        with open("/proc/self/autogroup", "w") as group:    # where sessions are scheduled as groups, nice counts inside one only
            group.write("-15")
    print(json.dumps(msgspec.to_builtins(_inside(msgspec.json.decode(sys.argv[1], type=Plan)))))


if __name__ == "__main__":
    main()
