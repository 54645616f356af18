"""Views: what people see of a pair. Functions from plain dicts (a status, events, receipts) to rich tables and lines.

    pair edge-nat · host · nfckpt.apps.nat:Nat · protected

    node  role     term  protected   epoch  epochs/s          hold      rx      tx  held  tap  drops    pid
    a     active      3  yes        482113    41,204   20 µs (cpu)  812044  811990     3    0      0  41233
    b     standby     3  yes        482110                                            7      0  41240

    if a died now       8.4 ms    expected outage (start 8.1)
    if it hung          408.5 ms  expected outage (detection 400.0, start 8.1)
    …
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["Rates", "event_line", "nodes_table", "outlook_view", "receipts_table", "status_view"]

Status = dict[str, dict[str, Any]]
ROLE_STYLE = {"active": "bold green", "solo": "bold yellow", "protecting": "yellow", "holding": "yellow", "standby": "cyan",
              "syncing": "yellow", "down": "red", "silent": "red", "fenced": "red"}
DROPS = ("rx_ring_drops", "rx_oversize")


class Rates:
    """Per second, from two looks at counters that only grow; a counter that fell (a fresh process) begins anew."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def of(self, key: str, value: float, at_s: float) -> float | None:
        """None until two looks lie at least 0.1 s apart."""
        then, before = self._last.get(key, (at_s, value))
        if key not in self._last or value < before:
            self._last[key] = at_s, value
        elif at_s - then >= 0.1:
            self._last[key] = at_s, value
            return (value - before) / (at_s - then)
        return None


def status_view(body: dict[str, Any], rates: Rates | None = None, at_s: float = 0.0) -> RenderableType:
    """A pair's status as `nfckpt status` gets it: deploy/foreground.py, status_body."""
    nodes: Status = body["nodes"]
    protected = Text("protected", "green") if body["protected"] else Text("NOT protected", "bold red")
    if any(s.get("unwitnessed") for s in nodes.values()):
        protected.append(" · unwitnessed", "bold red")
    head = Text.assemble(("pair ", "dim"), (body["pair"], "bold"), f" · {body['profile']} · {body['app']} · ", protected)
    parts: list[RenderableType] = [head]
    if (trouble := body.get("trouble")) is not None:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_row("  why", Text(trouble["why"], "yellow"))
        table.add_row("  since", f"{_duration(trouble['since_s'])} ago")
        table.add_row("  to do", Text(trouble["to_do"], "bold"))
        parts.append(table)
    return Group(*parts, Text(), nodes_table(nodes, rates, at_s), Text(), outlook_view(body))


def outlook_view(body: dict[str, Any]) -> RenderableType:
    """What the death of the active would cost now."""
    look = body.get("if_it_died_now")
    active = body["active"] or "nobody"
    if look is None:
        return Text(f"if {active} died now: its state would be gone, the service would begin anew, blank", "bold red")
    outage = look["outage_ms"]
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_row(Text(f"if {active} died now", "bold"), Text(f"{outage['crash']['total']:,.1f} ms", "bold"), "expected outage" + _parts(outage["crash"]))
    table.add_row("if it hung", f"{outage['hang']['total']:,.1f} ms", "expected outage" + _parts(outage["hang"]))
    table.add_row("  to replay", f"{look['replay_frames']:,}", f"frames, {look['replay_frames_per_s']:,} a second ({look['replay_rate_from']})")
    table.add_row("  outputs held", f"{look['outputs_held']:,}", "frames that wait for their commit")
    table.add_row("  outputs unseen", f"{look['outputs_unseen']:,}", "committed frames that would leave again if they were not seen until then")
    if not look["exact"]:
        table.add_row("  inexact", "", Text("the standby's tap has a gap: loss or doubling could not be excluded", "yellow"))
    return table


def _parts(steps: dict[str, float]) -> str:
    """` (detection 400.0, start 5.1)`: the steps that matter."""
    shown = ", ".join(f"{name} {ms:,.1f}" for name, ms in steps.items() if name != "total" and ms >= 0.05)
    return f" ({shown})" if shown else ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def nodes_table(nodes: Status, rates: Rates | None = None, at_s: float = 0.0) -> Table:
    """One row a node."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("node", "role", "term", "protected", "epoch", "epochs/s", "hold", "rx", "tx", "held", "tap", "drops", "pid"):
        table.add_column(heading, justify="left" if heading in ("node", "role", "protected") else "right")
    for name, s in sorted(nodes.items()):
        ports = s.get("ports", {}).values()
        role = str(s.get("role", "down"))
        rate = rates.of(name, s.get("epoch", 0), at_s) if rates and role == "active" else None
        table.add_row(
            name, Text(role, ROLE_STYLE.get(role, "")), str(s.get("term", 0)), "yes" if s.get("protected") else "no",
            str(s.get("epoch", 0)), f"{rate:,.0f}" if rate is not None else "", _hold(s), str(sum(p["rx_frames"] for p in ports)),
            str(sum(p["tx_frames"] for p in ports)), str(s.get("outputs_held", "")), str(s.get("inputs_waiting", "")),
            str(sum(p.get(d, 0) for p in ports for d in DROPS)), str(s.get("pid") or ""))
    return table


def _hold(s: dict[str, Any]) -> str:
    """`250 µs (cpu)`: how long epochs stay open, and what binds it under policy auto."""
    if "hold_us" not in s:
        return ""
    return f"{s['hold_us']:g} µs" + (f" ({s['hold_binds']})" if s.get("hold_policy") == "auto" else "")


def receipts_table(receipts: list[dict[str, Any]]) -> Table:
    """A few lines a takeover: what it cost in frames and in time, where the time went, and why it happened."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for r in receipts:
        lines = [Text(f"{r['time']}  ", "dim") + Text(r["reason"], "dim") if "time" in r else Text(r["reason"], "dim")]
        if r.get("blank"):
            lines.insert(0, Text("begun anew: the state is gone", "bold red"))
        else:
            ms = {name: us / 1000 for name, us in r["steps_us"].items()}
            missed, stranded = r["active_missed"] + r["tap_missed"], r.get("stranded", 0)
            bad = r["doubled"] or missed or stranded or not r["exact"]
            steps = ", ".join(f"{name} {t:.1f}" for name, t in ms.items() if name != "total" and t >= 0.5)
            more = "".join(f"{r[what]} {what}, " for what in ("stranded", "quarantined") if r.get(what))
            lines.insert(0, Text(f"{ms.get('total', 0):.1f} ms{f' ({steps})' if steps else ''}: {r['replayed']} replayed, {r['reemitted']} emitted again, "
                                 f"{r['doubled']} doubled, {missed} missed, {more}{'exact' if r['exact'] else 'NOT exact'}",
                                 "yellow" if bad else ""))
            lines[1:1] = [Text("  " + port["port"] + ": " + ", ".join(f"{n} {name}" for name, n in port.items() if name != "port" and n))
                          for port in r.get("ports", []) if any(n for name, n in port.items() if name not in ("port", "committed"))]
        table.add_row(Text(f"term {r['term']}", "bold"), Text(r["node"], "bold"), Text("\n").join(lines))
    return table


def event_line(row: dict[str, Any]) -> str:
    """`09:30:00.123  a  protected  peer=b term=2`"""
    rest = " ".join(f"{k}={v}" for k, v in row.items() if k not in ("n", "time", "event", "node", "at_s", "steps_us", "ports", "digests"))
    return f"{row['time'][11:23] if 'time' in row else format(row['at_s'], '12.3f')}  {row.get('node', ''):<8} {row['event']:<16} {rest}".rstrip()
