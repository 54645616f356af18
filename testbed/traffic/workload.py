"""Workload: start all traffic on a testbed, watch it, note the kills, stop it, add it up.

    with Testbed() as bed, Workload(bed) as work:      # a network function must already forward
        work.start()
        work.mark_kill()                               # at the moment of each kill
        result = work.stop()
    assert problems(result) == []

Result      {"valid": True, "seconds": 30.1, "cpu_s": {"udp client": 3.9, …},
             "tcp": {"connections", "opened_during_outage", "failed", "reset", "long_broken", "corrupt", "source_changed", "blocks"},
             "udp": {"sent", "received", "lost", "duplicated", "reordered", "corrupt", "source_changed",
                     "sink_overflow", "send_errors", "skipped", "delay_ms_max", "sources"},   # client to server
             "udp_reverse": {…},                                            # server to client, through the mapping
             "web": {"fetched", "failed", "corrupt"} or None,
             "twins": {"sent", "received", "corrupt", "overflow", "asked", "answered"} or None,
             "marks": {"udp": [{"t_ns", "sent": by stream}, …], "udp_reverse": […]},    # by `mark`, and
             "absent": {"udp": [(stream, number), …], "udp_reverse": […]},              # what was lost
             "kills": [{"t_ns", "outage_ms", "opened_during_outage"}, …], "outage_ms": [3.1, …]}

outage_ms   per kill: the largest one-way delay of a frame, or silence in which frames were lost, of either direction,
            that began before the next kill and at most WINDOW_S later; 0.0 where none passed `late_ms`. A direction
            that fell silent for good is out until its sender stopped.
Promises    W1 every sent number is received or lost.  W2 `valid` is False where a sink dropped frames or a log is full.
            W3 when the workload's process dies, its programs exit by themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import nfckpt
from nfckpt.errors import ConfigError, MachineError
from nfckpt.testbed import netns
from nfckpt.testbed.topology import CLIENT_IPS, GATEWAY_IP, SERVER_IP, Testbed

__all__ = ["Load", "Workload", "problems"]

WINDOW_S = 1.0          # what begins later than this after a kill has another cause
READY_S_MAX = 15.0
REPORT_S_MAX = 45.0     # a fetch by curl may take 30


@dataclass(frozen=True)
class Load:
    """How much of what. Zero turns a part off, but `udp_frames_s`, which the outage is measured by."""

    udp_frames_s: int = 20_000
    udp_reverse_frames_s: int = 2_000
    udp_streams: int = 8                # each from a source address and port of its own
    udp_payload_bytes: int = 64
    tcp_connections: int = 200
    tcp_opens_s: float = 20.0
    tcp_bits_s: float = 6e6             # payload, both directions together
    tcp_block_bytes: int = 1024
    web_file_bytes: int = 0             # e.g. 1 << 20: a curl loop, where curl exists
    twin_groups_s: float = 0.0          # four identical datagrams and ARP requests, so often
    late_ms: float = 2.0                # what an outage is made of; below it lies the scheduler's noise

    def __post_init__(self) -> None:
        if not 1 <= self.udp_frames_s <= 1_000_000 or not 0 <= self.udp_reverse_frames_s <= 1_000_000:
            raise ConfigError("UDP rates", "1 to 1,000,000 frames/s; reverse 0 to 1,000,000")
        if not 1 <= self.udp_streams <= 64 or not 40 <= self.udp_payload_bytes <= 1472:
            raise ConfigError("UDP streams or payload", "1 to 64 streams of 40 to 1472 bytes")
        if not 0 <= self.tcp_connections <= 10_000 or not 28 <= self.tcp_block_bytes <= 65_536:
            raise ConfigError("TCP connections or block size", "0 to 10,000 connections, blocks of 28 to 65,536 bytes")


class Workload:
    """All traffic of one testbed. One start, one stop. Not thread-safe but for `live` and `mark_kill`."""

    def __init__(self, bed: Testbed, load: Load | None = None) -> None:
        self.bed, self.load = bed, load or Load()
        self.programs: dict[str, Program] = {}
        self.kills: list[int] = []
        self._started = 0.0

    def __enter__(self) -> Workload:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for program in self.programs.values():
            program.end()

    def start(self) -> None:
        """Returns when all flows have been answered once and everything sends. Raises MachineError when no frame passes."""
        load = self.load
        udp = {"server": SERVER_IP, "device": "eth0", "streams": load.udp_streams,
               "payload_bytes": load.udp_payload_bytes, "late_ms": load.late_ms}
        self._add("udp server", {**udp, "addresses": [SERVER_IP], "frames_s": load.udp_reverse_frames_s})
        self._add("udp client", {**udp, "addresses": CLIENT_IPS, "frames_s": load.udp_frames_s})
        self._add("tcp server", {"server": SERVER_IP})
        if load.web_file_bytes and shutil.which("curl"):
            self._add("web server", {"server": SERVER_IP, "file_bytes": load.web_file_bytes})
        if load.twin_groups_s:
            twins = {"server": SERVER_IP, "gateway": GATEWAY_IP, "device": "eth0", "groups_s": load.twin_groups_s}
            self._add("twins server", {**twins, "address": SERVER_IP})
            self._add("twins client", {**twins, "address": CLIENT_IPS[0]})
        self._all("ready")
        self._add("tcp client", {"server": SERVER_IP, "connections": load.tcp_connections, "opens_s": load.tcp_opens_s,
                                 "bits_s": load.tcp_bits_s, "block_bytes": load.tcp_block_bytes})
        if "web server" in self.programs:
            self._add("web client", {"server": SERVER_IP, "file_bytes": load.web_file_bytes})
        self._all("ready")
        self._started = time.monotonic()
        for name in "udp server", "udp client", *self._clients():
            self.programs[name].say("go")

    def live(self) -> dict[str, dict[str, int]]:
        """Counters as of at most 0.25 s ago, by program, e.g. live()["udp server"]["received"]."""
        return {name: dict(program.events.get("live", {})) for name, program in self.programs.items()}

    def mark_kill(self, t_ns: int | None = None) -> None:
        """A kill happens now, or at CLOCK_MONOTONIC `t_ns` (time.monotonic_ns())."""
        self.kills.append(time.monotonic_ns() if t_ns is None else t_ns)

    def mark(self) -> None:
        """Note what was sent so far: a loss can be told from one of before."""
        for name in "udp client", "udp server":
            self.programs[name].say("mark")

    def stop(self) -> dict[str, Any]:
        """Stop sending, let everything arrive (at most 5 s), and return the result described above."""
        for name in "udp client", "udp server", *self._clients():
            self.programs[name].say("halt")
        for name in "udp client", "udp server":
            self.programs[name].event("halted", READY_S_MAX)
        seconds = time.monotonic() - self._started
        for name in self._clients():        # the servers answer until the last client is done
            self.programs[name].say("report")
        for name, other in (("udp client", "udp server"), ("udp server", "udp client")):
            self.programs[name].say("report " + json.dumps(self.programs[other].events["halted"]["sent_by_stream"]))
        got = {name: self.programs[name].event("result", REPORT_S_MAX) for name in ("udp client", "udp server", *self._clients())}
        for name in "tcp server", "web server", "twins server":
            if name in self.programs:
                self.programs[name].say("report")
                got[name] = self.programs[name].event("result", REPORT_S_MAX)
        return self._add_up(got, seconds)

    def _clients(self) -> list[str]:
        return [name for name in ("tcp client", "web client", "twins client") if name in self.programs]

    def _add(self, name: str, want: dict[str, Any]) -> None:
        module, role = name.split()
        self.programs[name] = Program(self.bed.ns(role), module, {**want, "role": role})

    def _all(self, event: str) -> None:
        deadline = time.monotonic() + READY_S_MAX
        for program in self.programs.values():
            program.event(event, deadline - time.monotonic())

    def _add_up(self, got: dict[str, dict[str, Any]], seconds: float) -> dict[str, Any]:
        stopped = {name: self.programs[name].events["halted"]["t_ns"] for name in ("udp client", "udp server")}
        forth, back = got["udp server"], got["udp client"]      # what each sink saw
        opened: list[list[int]] = got["tcp client"]["opened"]
        kills = []
        for t, until in zip(self.kills, [*self.kills[1:], 1 << 63], strict=False):
            until = min(until, t + int(WINDOW_S * 1e9))
            ns = max(_outage_ns(forth, t, until, stopped["udp client"]), _outage_ns(back, t, until, stopped["udp server"]))
            during = sum(syn <= t + ns and answer >= t for syn, answer in opened) if ns else 0
            kills.append({"t_ns": t, "outage_ms": round(ns / 1e6, 3), "opened_during_outage": during})
        tcp = {key: got["tcp client"][key] for key in ("connections", "failed", "reset", "long_broken", "corrupt", "source_changed", "blocks")}
        tcp["corrupt"] += got["tcp server"]["corrupt"]
        web = {key: got["web client"][key] for key in ("fetched", "failed", "corrupt")} if "web client" in got else None
        twins = {**got["twins client"], **got["twins server"]} if "twins client" in got else None
        return {
            "valid": not any(sink["sink_overflow"] or sink["log_full"] for sink in (forth, back)) and not (twins and twins["overflow"]),
            "seconds": round(seconds, 3),
            "tcp": {**tcp, "opened_during_outage": sum(kill["opened_during_outage"] for kill in kills)},
            "udp": _one_way(back, forth), "udp_reverse": _one_way(forth, back), "web": web, "twins": twins,
            "marks": {"udp": back["marks"], "udp_reverse": forth["marks"]}, "absent": {"udp": forth["absent"], "udp_reverse": back["absent"]},
            "kills": kills, "outage_ms": [kill["outage_ms"] for kill in kills],
            "cpu_s": {name: result["cpu_s"] for name, result in got.items()},
        }


def problems(result: dict[str, Any]) -> list[str]:
    """What is wrong with a result, one line each; empty where nothing was lost, changed, reset or left unproven."""
    found = [] if result["valid"] else ["invalid: a sink dropped frames or its log is full; take fewer frames a second"]
    for part, keys in (
        ("tcp", ("failed", "reset", "corrupt", "source_changed")), ("web", ("failed", "corrupt")),
        ("udp", ("lost", "duplicated", "corrupt", "source_changed")),
        ("udp_reverse", ("lost", "duplicated", "corrupt", "source_changed")),
    ):
        found += [f"{part}: {result[part][key]} {key}" for key in keys if result[part] and result[part][key]]
    return found


def _one_way(sender: dict[str, Any], sink: dict[str, Any]) -> dict[str, Any]:
    keys = "received", "duplicated", "reordered", "corrupt", "source_changed", "sink_overflow", "delay_ms_max", "sources"
    return {"sent": sender["sent"], "lost": sender["sent"] - sink["received"], "send_errors": sender["send_errors"], "skipped": sender["skipped"],
            **{key: sink[key] for key in keys}}


def _outage_ns(sink: dict[str, Any], t: int, until: int, sender_stopped: int) -> int:
    """Longest delay or silence that touches [t, until]."""
    longest = 0
    for spell in sink["episodes"]:
        lateness: int = max(spell["delay_ns"], spell["gap_ns"])
        if spell["t_last"] >= t and spell["t_first"] - lateness <= until:
            longest = max(longest, lateness)
    if sink["received"] and sink["last_ns"] <= until and sender_stopped - sink["last_ns"] > 1e9:
        longest = max(longest, sender_stopped - sink["last_ns"])
    return longest


# An interrupt at the terminal is the driver's: it stops the programs and reads their results. A session of its own would do as well, but
# where the kernel schedules sessions as groups, the driver's priority is not that of one: its sinks then starved for half a second.
OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


class Program:
    """One program in a namespace, its last event of each kind, and a thread that reads them."""

    def __init__(self, namespace: str, module: str, want: dict[str, Any]) -> None:
        package = str(Path(nfckpt.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        self.name = f"traffic.{module} {want['role']}"
        self.events: dict[str, dict[str, Any]] = {}
        self._news = threading.Condition()
        self._child = netns.popen_in(
            namespace, [sys.executable, "-m", f"nfckpt.testbed.traffic.{module}", json.dumps(want)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
            **OWN_GROUP)
        threading.Thread(target=self._read, name=self.name, daemon=True).start()

    def say(self, command: str) -> None:
        assert self._child.stdin
        try:
            self._child.stdin.write(command + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise MachineError(f"{self.name} has died", "its own message is on standard error") from None

    def event(self, name: str, seconds: float) -> dict[str, Any]:
        """Wait for an event. Raises MachineError when the program dies first or `seconds` pass."""
        with self._news:
            self._news.wait_for(lambda: name in self.events or "end" in self.events, seconds)
            if name in self.events:
                return self.events[name]
        if "end" in self.events:
            raise MachineError(f"{self.name} has died", "its own message is on standard error")
        raise MachineError(f"{self.name}: no {name!r} in {seconds:.0f} s", "does the network function forward?")

    def ask(self, command: str, name: str, seconds: float) -> dict[str, Any]:
        """Say it, and wait for the event that answers."""
        with self._news:
            self.events.pop(name, None)
        self.say(command)
        return self.event(name, seconds)

    def end(self) -> None:
        assert self._child.stdin and self._child.stdout
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(1.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _read(self) -> None:
        assert self._child.stdout
        with self._child.stdout as lines:
            for line in lines:
                fields = json.loads(line)
                with self._news:
                    self.events[fields.pop("event")] = fields
                    self._news.notify_all()
        with self._news:
            self.events["end"] = {}
            self._news.notify_all()
