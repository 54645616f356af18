"""How a demo is shown: alive while it runs, a table at the end, one JSON object where asked.

Everything that is not the result goes to standard error when the result is JSON; on a terminal as a view that changes
in place, elsewhere as a line an event.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nfckpt.observe.views import Rates, event_line, nodes_table, receipts_table
from nfckpt.testbed.demo import MUST_BE_ZERO, Demo, Report, Stage, TestbedStage
from nfckpt.testbed.traffic import Load

__all__ = ["show"]

LOOK_S = 0.5
WEB_FILE_BYTES = 1 << 20
TOLD = {"active", "protected", "killed", "takeover", "stopped", "witness_silent", "standby_lost", "divergent"}


def show(*, profile: str, kills: int, connections: int, udp_rate: int, seconds: float, ray: bool | None, memory: bool, as_json: bool) -> int:
    """Run a demo and show it. Returns the exit code: 0 when nothing was lost, doubled, reset or changed, else 1."""
    console = Console(stderr=as_json, highlight=False)
    if memory:
        from nfckpt.testbed.memory_demo import MemoryStage
        stage: Stage = MemoryStage(profile, udp_rate)
    else:
        stage = TestbedStage(profile, Load(udp_frames_s=udp_rate, tcp_connections=connections, web_file_bytes=WEB_FILE_BYTES))
    shown = _Shown(console)
    demo = Demo(stage, kills=kills, run_s=seconds, ray=False if memory else ray, on_event=shown.event)
    with shown.following(demo):
        report = demo.run()
    console.print(_result(report))
    if as_json:
        print(json.dumps(report.body))
    if report.problems:
        print("FAILED: " + "; ".join(report.problems), file=sys.stderr)
    return 1 if report.problems else 0


class _Shown:
    """The view while it runs. `event` from any thread; a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self.console, self.rates = console, Rates()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self.demo: Demo | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="demo view", daemon=True)

    def following(self, demo: Demo) -> _Shown:
        self.demo = demo
        return self

    def __enter__(self) -> _Shown:
        if self.live is not None:
            self.live.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join(3.0)
        if self.live is not None:
            self.live.stop()

    def event(self, name: str, at_ns: int, fields: dict[str, Any]) -> None:
        if name in TOLD:
            self.console.print(Text(event_line({"at_s": at_ns / 1e9, "event": name, **fields}), "bold red" if name == "killed" else ""), soft_wrap=True)

    def _look(self) -> None:
        assert self.demo is not None
        while not self._done.wait(LOOK_S):
            if self.live is not None:
                self.live.update(_view(self.demo.look(), self.rates), refresh=True)


def _view(look: dict[str, Any], rates: Rates) -> RenderableType:
    now, traffic = time.monotonic(), look["traffic"]
    there, here, tcp = (traffic.get(name, {}) for name in ("udp server", "udp client", "tcp client"))
    bad = sum(side.get(key, 0) for side in (there, here) for key in ("missing", "duplicated", "corrupt", "sink_overflow"))
    bad_tcp = sum(tcp.get(key, 0) for key in ("failed", "reset", "corrupt", "source_changed"))
    head = Text.assemble(("kills ", "dim"), (f"{look['kills']} of {look['of']}", "bold"), " · ", look["phase"])
    udp_rate = rates.of("udp", there.get("received", 0), now)
    flow = Text.assemble(
        ("udp ", "dim"), f"{there.get('received', 0) + here.get('received', 0):,} frames received",
        f" ({udp_rate:,.0f}/s)" if udp_rate else "", " · ", (f"{bad} lost or doubled so far", "green" if not bad else "bold red"),
        ("   tcp ", "dim"), f"{tcp.get('connections', 0)} connections, {tcp.get('blocks', 0):,} blocks · ",
        (f"{bad_tcp} broken so far", "green" if not bad_tcp else "bold red"))
    return Group(head, nodes_table(look["nodes"], rates, now), flow)


def _result(report: Report) -> RenderableType:
    body = report.body
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, collapse_padding=True)
    tcp, udp = body["tcp"], body["udp"]

    def row(name: str, part: str, good: str) -> None:
        zeros = [f"{body[part][key]} {key.replace('_', ' ')}" for key in MUST_BE_ZERO[part]]
        broken = any(body[part][key] for key in MUST_BE_ZERO[part])
        table.add_row(Text(name, "dim"), good, Text(", ".join(zeros), "bold red" if broken else "green"))

    curl = "" if report.fetched is None else f", curl fetched {report.fetched} files"
    row("tcp", "tcp", f"{tcp['connections']:,} connections, {tcp['opened_during_outage']} opened during an outage{curl}")
    row("udp", "udp", f"{udp['sent']:,} numbered frames sent, {udp['received']:,} received")
    for name, key, what in (("kills", "uncommitted_at_kill", "frames not committed then"), ("", "outage_ms", "ms of outage"),
                            ("", "reprotect_ms", "ms until protected again")):
        table.add_row(Text(name, "dim"), f"{body['kills']} by SIGKILL" if name else "", f"{' '.join(map(str, body[key]))} {what}")
    table.add_row(Text("epochs", "dim"), f"{body['epochs_committed']:,} committed", f"{body['epochs_per_s']:,.0f} a second")
    return Group(receipts_table(body["receipts"]), Text(), table)
