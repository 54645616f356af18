"""Views: what people see of a pair. Functions from plain dicts (a status, events, receipts) to rich tables and lines.

    node  role     term  protected   epoch  epochs/s          hold      rx      tx  held  tap  drops    pid
    a     active      3  yes        482113    41,204   20 µs (cpu)  812044  811990     3    0      0  41233
    b     standby     3  yes        482110                                            7      0  41240
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["Rates", "event_line", "receipts_table", "status_view"]

Status = dict[str, dict[str, Any]]
ROLE_STYLE = {"active": "bold green", "solo": "bold yellow", "protecting": "yellow", "holding": "yellow", "standby": "cyan",
              "syncing": "yellow", "down": "red", "fenced": "red"}
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
    """A pair's status as `nfckpt status` gets it: {"pair", "profile", "app", "active", "protected", "nodes"}."""
    nodes: Status = body["nodes"]
    protected = Text("protected", "green") if body["protected"] else Text("NOT protected", "bold red")
    if any(s.get("unwitnessed") for s in nodes.values()):
        protected.append(" · unwitnessed", "bold red")
    head = Text.assemble(("pair ", "dim"), (body["pair"], "bold"), f" · {body['profile']} · {body['app']} · ", protected)
    return Group(head, nodes_table(nodes, rates, at_s))


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
    """Two lines a takeover: counts in frames, times in ms, and why it happened."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for r in receipts:
        ms = {name: us / 1000 for name, us in r["steps_us"].items()}
        missed = r["active_missed"] + r["tap_missed"]
        if r.get("blank"):
            table.add_row(Text(f"term {r['term']}", "bold"), Text(r["node"], "bold"),
                          Text.assemble(("started BLANK", "bold red"), "\n", (r["reason"], "dim")))
            continue
        bad = r["doubled"] or missed or not r["exact"]
        steps = ", ".join(f"{name} {t:.1f}" for name, t in ms.items() if name != "total" and t >= 0.5)
        quarantined = f"{r['quarantined']} quarantined, " if r.get("quarantined") else ""
        counts = (f"{ms.get('total', 0):.1f} ms{f' ({steps})' if steps else ''}: {r['replayed']} replayed, {r['reemitted']} emitted again, "
                  f"{r['doubled']} doubled, {missed} missed, {quarantined}{'exact' if r['exact'] else 'NOT exact'}")
        table.add_row(Text(f"term {r['term']}", "bold"), Text(r["node"], "bold"),
                      Text.assemble((counts, "yellow" if bad else ""), "\n", (r["reason"], "dim")))
    return table


def event_line(row: dict[str, Any]) -> str:
    """`a  protected  peer=b term=2`"""
    rest = " ".join(f"{k}={v}" for k, v in row.items() if k not in ("event", "node", "at_s", "steps_us"))
    return f"{row['at_s']:12.3f}  {row.get('node', ''):<8} {row['event']:<16} {rest}".rstrip()
