"""How a chaos run is shown: a line a strike while it runs, tables at the end, one JSON object where asked, and the exit code.

Exit codes   0 as promised   1 something was lost, doubled, reset or not protected again: the line says how to replay it
             3 the run proves nothing (a sink dropped frames)
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nfckpt.observe.events import EventLog
from nfckpt.observe.stream import EventStream
from nfckpt.testbed.chaos.campaign import Campaign, Outcome
from nfckpt.testbed.chaos.faults import FAULTS, chosen, points
from nfckpt.testbed.chaos.ledger import MUST_BE_ZERO, histogram
from nfckpt.testbed.traffic import Load

__all__ = ["faults_body", "faults_table", "load_of", "run"]


def load_of(rate: int) -> Load:
    """`rate` numbered frames a second, both directions together; long and short TCP, ARP and identical frames beside it."""
    return Load(udp_frames_s=rate - rate // 2, udp_reverse_frames_s=rate // 2, tcp_connections=100, tcp_opens_s=20.0, tcp_bits_s=2e6,
                twin_groups_s=25.0)


def run(*, seed: int, kills: int, faults: str, app: str, profile: str, rate: int, seconds: float, ray: bool, as_json: bool,
        report: Path | None, log: Path | None, input: str = "tap") -> int:
    """Run, show, return the exit code."""
    console = Console(stderr=True, highlight=False)
    stream, events = EventStream(), EventLog(log, on_error=lambda text: print(f"error: {text}", file=sys.stderr))
    stream.feed("log", events.add)
    replay = shlex.join(["nfckpt", "chaos", "--seed", str(seed), "--kills", str(kills), "--faults", faults, "--profile", profile, "--rate", str(rate),
                         "--app", app, *([] if ray else ["--no-ray"]), *(["--seconds", str(seconds)] if seconds else []), *(["--input", input] if input != "tap" else [])])
    with Progress(TextColumn("kills"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, transient=True,
                  disable=not console.is_terminal) as bar:
        task = bar.add_task("kills", total=kills)

        def say(text: str) -> None:
            bar.update(task, completed=campaign.killed)
            console.print(text, markup=False, soft_wrap=True)

        campaign = Campaign(seed=seed, kills=kills, faults=chosen(faults, profile, ray, input), profile=profile, app=app, load=load_of(rate), ray=ray,
                            run_s=seconds, input=input, say=say, on_event=stream.note)
        try:
            outcome = campaign.run()
        finally:
            stream.close()
            events.close()
    console.print(result(outcome))
    if report is not None:
        from nfckpt.testbed.chaos.report import write
        write(report, outcome, replay)
        console.print(f"report: {report}", soft_wrap=True)
    if as_json:
        print(json.dumps(outcome.body))
    if outcome.invalid:
        print(f"INVALID: {outcome.invalid}", file=sys.stderr)
        return 3
    if outcome.problems:
        print(f"FAILED: {'; '.join(outcome.problems)}\nreplay: {replay}", file=sys.stderr)
        return 1
    return 0


def result(o: Outcome) -> RenderableType:
    """The run as tables."""
    body = o.body
    head = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)

    def row(name: str, *cells: str | Text) -> None:
        head.add_row(Text(name, "dim"), *cells)

    def zeros(*keys: str) -> Text:
        return Text(", ".join(f"{body[key]} {key.replace('_', ' ')}" for key in keys), "bold red" if any(body[k] for k in keys) else "green")

    row("frames", f"{body['sent']:,} sent, {body['received']:,} received, {body['reordered']} reordered", zeros(*MUST_BE_ZERO[:5]))
    row("tcp", f"{body['tcp_connections']:,} connections", zeros(*MUST_BE_ZERO[5:]))
    row("kills", f"{body['kills']}, of which {body['kills_counted']} had something uncommitted: "
        + ", ".join(f"{n} with {what}" for what, n in histogram(o.hits) if n))
    row("outage", " ".join(f"{name} {ms:.1f}" for name, ms in body["outage_ms"].items()) + " ms",
        "protected again " + " ".join(f"{name} {ms:.0f}" for name, ms in body["reprotect_ms"].items()) + " ms")
    row("states", f"{o.digests} epochs at which both arenas were compared whole; {len(o.runs)} changes of sender")
    missed = [name for name, n in o.reached.items() if not n]
    row("points", f"{len(o.reached) - len(missed)} of {len(o.reached)} reached" + (f"; not {', '.join(missed)}" if missed else ""))
    if o.apart:
        row("cut off", f"{o.apart} frames sent while a data port of the active was cut")
    if o.samples:
        first, last = o.samples[min(2, len(o.samples) - 1)], o.samples[-1]
        row("leaks", " · ".join(f"{name} {first[name]:g} → {last[name]:g}" for name in ("rss_mb", "fds", "threads", "processes")))
    if "stranded" in body:
        row("shipped", f"{body['stranded']:,} frames had come to dead actives that never read them" + (
            "" if all(r["exact"] for r in body["receipts"]) else ", as far as can be told"))
    inexact = sum(not r["exact"] for r in body["receipts"])
    row("receipts", f"{len(body['receipts'])}, {inexact} inexact; replayed {sum(r['replayed'] for r in body['receipts']):,}, "
        f"emitted again {sum(r['reemitted'] for r in body['receipts']):,}, suppressed {sum(r['suppressed'] for r in body['receipts']):,}")
    losing = [hit for hit in o.hits if hit.lost]
    loss = [Text(f"strike {hit.number}, {hit.label}: {hit.lost} lost", "bold red") for hit in losing[:20]]
    return Group(head, *loss)


def faults_body() -> dict[str, Any]:
    """{"faults": [{"name", "kills", "profile", "default", "what"}], "points": [{"name", "who", "survivable", "what"}]}"""
    found = {p.name: p for profile in ("host", "hosts") for p in points(profile)}
    return {"faults": [{"name": f.name, "kills": f.kills, "profile": f.profile or "both", "default": f.covered, "what": f.what}
                       for f in FAULTS.values()],
            "points": [{"name": p.name, "who": p.who, "survivable": p.survivable, "what": p.what} for p in found.values()]}


def faults_table() -> RenderableType:
    """The same for people."""
    body = faults_body()
    faults, named = Table(box=None, pad_edge=False), Table(box=None, pad_edge=False)
    for column in ("fault", "kills", "profile", "default", ""):
        faults.add_column(column)
    for f in body["faults"]:
        faults.add_row(f["name"], "yes" if f["kills"] else "", f["profile"], "yes" if f["default"] else "", f["what"])
    for column in ("fault point", "in the", "may die there", ""):
        named.add_column(column)
    for p in body["points"]:
        named.add_row(p["name"], p["who"], "yes" if p["survivable"] else "", p["what"])
    return Group(faults, Text(), named)
