"""Report: a chaos run as one HTML file that refers to nothing outside itself. Plots by matplotlib, as inline SVG: pip install nfckpt[report]

    verdict ─► timeline: who led, which faults struck, who emitted ─► outage by kill ─► hold time of the kept epochs
            ─► what was uncommitted at each kill ─► a row a takeover: receipt, what was lost, where the time went ─► points reached, leaks
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfckpt.errors import ConfigError, MachineError
from nfckpt.testbed.chaos.ledger import MUST_BE_ZERO, histogram

if TYPE_CHECKING:
    from nfckpt.testbed.chaos.campaign import Outcome

__all__ = ["need_plots", "page", "write"]

WIDTH_IN = 11.0
STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:1120px;margin:2em auto;padding:0 1em;color:#222}h1{font-size:1.5em}
h2{font-size:1.1em;margin:2em 0 .4em}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15em .7em;text-align:right;border-bottom:1px solid #eee}th{color:#666;font-weight:500}td:first-child,th:first-child{text-align:left}
.good{color:#0a6b2d}.bad{color:#b00020;font-weight:600}code{background:#f4f4f4;padding:.1em .3em}svg{max-width:100%;height:auto}
.wide{overflow-x:auto}.long{max-height:34em;overflow:auto}"""
COLOURS = {"a": "#3465a4", "b": "#ce5c00"}
STEPS = ("notice", "claim", "fence", "settle", "apply", "live")


def need_plots(path: Path) -> None:
    """Raises before a run what would only come out after it: MachineError without matplotlib, ConfigError for a path that cannot be written."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MachineError("the report's plots need matplotlib", "pip install 'nfckpt[report]', or leave out --report") from None
    if not path.parent.is_dir():
        raise ConfigError(f"--report {path}: there is no folder {path.parent}")


def write(path: Path, outcome: Outcome, command: str) -> None:
    """Raises MachineError where the file cannot be written."""
    try:
        path.write_text(page(outcome, command), encoding="utf-8")
    except OSError as e:
        raise MachineError(f"cannot write {path}: {e.strerror}") from e


def page(o: Outcome, command: str) -> str:
    """The whole file."""
    body = o.body
    good = not o.problems and not o.invalid
    verdict = "As promised." if good else "; ".join([*([f"Proves nothing: {o.invalid}"] if o.invalid else []), *o.problems])
    parts = [
        f"<h1>nfckpt chaos, profile {_e(body['profile'])}, seed {body['seed']}</h1>",
        f'<p class="{"good" if good else "bad"}">{_e(verdict)}</p><p><code>{_e(command)}</code></p>',
        _table(["kills", "had something uncommitted", "frames sent", "received", *(key.replace("_", " ") for key in MUST_BE_ZERO), "reordered"],
               [[body["kills"], body["kills_counted"], body["sent"], body["received"], *(body[key] for key in MUST_BE_ZERO), body["reordered"]]]),
        "<h2>Timeline</h2><p>Above: who led, by the nodes' own word, and the faults. Below: who emitted, as the hubs saw it.</p>", _timeline(o),
        "<h2>Outage and return of protection, by kill</h2>", _outages(o),
        "<h2>Uncommitted at the kills</h2>", _bars([name for name, _ in histogram(o.hits)], [n for _, n in histogram(o.hits)], "frames", "kills"),
        "<h2>Takeovers</h2>", _takeovers(o),
        "<h2>Strikes</h2>", _strikes(o),
        "<h2>Fault points reached, both nodes, all lives</h2>", _table(["point", "times"], [[name, n] for name, n in o.reached.items()]),
        "<h2>What would grow if something leaked</h2>",
        _table(list(o.samples[0]), [list(s.values()) for s in o.samples[:: max(1, len(o.samples) // 20)]]) if o.samples else "",
    ]
    return f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>nfckpt chaos {body["seed"]}</title><style>{STYLE}</style></head>' \
           f"<body>{''.join(parts)}</body></html>\n"


# ── plots ────────────────────────────────────────────────────────────────────────────────────────

def _figure(height_in: float, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "nfckpt", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots(rows, 1, **options)


def _svg(figure: Any) -> str:
    """Inline, without the document type and metadata that name outside addresses."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    return text[text.index("<svg"):].replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "", 1).replace("xlink:href", "href")


def _timeline(o: Outcome) -> str:
    figure, (roles, faults, emits) = _figure(3.6, 3, sharex=True, gridspec_kw={"height_ratios": [1, 2, 1]})

    def at(ns: int) -> float:
        return (ns - o.began_ns) / 1e9

    end = at(o.ended_ns)
    leads = [(max(0.0, at(t)), fields["node"]) for name, t, fields in o.events if name == "active"]
    for (start, node), (stop, _) in zip(leads, [*leads[1:], (end, "")], strict=True):
        roles.broken_barh([(start, max(0.0, stop - start))], ("ab".index(node) + 0.1, 0.8), color=COLOURS[node])
    bare = [(max(0.0, at(t)), name) for name, t, _ in o.events if name in ("protected", "takeover", "standby_lost")]
    for (start, name), (stop, _) in zip(bare, [*bare[1:], (end, "")], strict=True):
        if name != "protected":
            roles.axvspan(start, stop, color="#b00020", alpha=0.12, linewidth=0)
    roles.set(yticks=[0.5, 1.5], yticklabels=["a leads", "b leads"], ylim=(0, 2))
    names = sorted({hit.label.split()[0] for hit in o.hits})
    for bad, colour, marker in ((False, "#333", "|"), (True, "#b00020", "X")):
        rows = [hit for hit in o.hits if bool(hit.lost) is bad]
        faults.scatter([at(hit.t_ns) for hit in rows], [names.index(hit.label.split()[0]) for hit in rows], c=colour, marker=marker)
    faults.set(yticks=range(len(names)), yticklabels=names)
    for run in o.runs:
        emits.broken_barh([(at(run.first_ns), max(0.001, (run.last_ns - run.first_ns) / 1e9))], ("ab".index(run.node) + 0.1, 0.8),
                          color=COLOURS[run.node])
    emits.set(yticks=[0.5, 1.5], yticklabels=["a emits", "b emits"], ylim=(0, 2), xlim=(0, max(end, 0.001)), xlabel="s; shaded: unprotected")
    return _svg(figure)


def _outages(o: Outcome) -> str:
    figure, (outage, again) = _figure(3.0, 2, sharex=True)
    kills = [hit for hit in o.hits if hit.node]
    for axis, what, title in ((outage, "outage_ms", "outage, ms"), (again, "reprotect_ms", "protected again, ms")):
        for was_active, colour, name in ((True, "#204a87", "the active died"), (False, "#8ae234", "the standby died")):
            rows = [(i, getattr(hit, what)) for i, hit in enumerate(kills, 1) if hit.was_active is was_active and getattr(hit, what)]
            if rows:
                axis.scatter(*zip(*rows, strict=True), s=9, c=colour, label=name)
        axis.set(ylabel=title, yscale="log")
    if kills:
        again.legend(loc="upper right", frameon=False)
    again.set(xlabel="kill")
    return _svg(figure)


def _bars(names: Sequence[str], values: Sequence[int], x: str, y: str) -> str:
    figure, axis = _figure(1.8)
    axis.bar(names, values, color="#555753")
    axis.set(xlabel=x, ylabel=y)
    return _svg(figure)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────

def _takeovers(o: Outcome) -> str:
    """The ledger of each takeover."""
    rows = []
    ends = [at for name, at, _ in o.events if name == "receipt"]
    for at, r in zip(ends, o.body["receipts"], strict=True):
        hit = next((h for h in reversed(o.hits) if h.t_ns <= at and h.node), None)
        rows.append([r["term"], r["node"], hit.label if hit else "", r["reason"][:60], "yes" if r["exact"] else "NO", r["uncommitted"], r["replayed"],
                     r["reemitted"], r["suppressed"], r["doubled"], r["active_missed"], r["tap_missed"], hit.lost if hit else 0,
                     *(f"{r['steps_us'].get(step, 0) / 1000:.1f}" for step in STEPS), f"{r['steps_us']['total'] / 1000:.1f}"])
    return '<div class="wide long">' + _table(
        ["term", "node", "after", "reason", "exact", "uncommitted", "replayed", "emitted again", "suppressed", "doubled", "active missed", "tap missed",
         "lost", *(f"{step} ms" for step in STEPS), "total ms"], rows) + "</div>"


def _strikes(o: Outcome) -> str:
    began = o.began_ns
    return '<div class="wide long">' + _table(
        ["strike", "at s", "fault", "of", "uncommitted", "outage ms", "protected again ms", "lost"],
        [[hit.number, f"{(hit.t_ns - began) / 1e9:.2f}", hit.label + ("" if hit.reached else " (not reached)"), hit.node, hit.uncommitted, hit.outage_ms,
          hit.reprotect_ms, hit.lost] for hit in o.hits]) + "</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(value: Any) -> str:
        shown = "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
        return f"<td>{_e(shown)}</td>"

    return f"<table><tr>{''.join(f'<th>{_e(h)}</th>' for h in head)}</tr>" \
           + "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows) + "</table>"


def _e(text: Any) -> str:
    return html.escape(str(text))
