"""What a check_nf says: findings, the smallest difference, the report in words and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nfckpt.sim.nf_parts import STAGES
from nfckpt.sim.nf_shrink import Case

__all__ = ["KINDS", "Difference", "Finding", "Report", "what_differs"]

KINDS = {
    "kept": "kept outside the arena", "clock": "reads a clock around ctx", "chance": "draws chance around ctx",
    "unmarked": "written without marking", "declared": "declare writes over what was committed", "raises": "raises", "unsteady": "is not the same twice",
}


@dataclass(frozen=True)
class Finding:
    """`kind`: one of KINDS; `name`: the attribute, function or region; `where`: "file.py:12", as many as are known."""

    kind: str
    name: str
    where: tuple[str, ...] = ()
    detail: str = ""

    def __str__(self) -> str:
        return f"{KINDS[self.kind]}: {self.name}" + (f"  ({', '.join(self.where)})" if self.where else "") + (f"  {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Difference:
    """The smallest case that was found. `frames`: (port, bytes). `kills`: (number of frames before it, stage). `what`: lines."""

    frames: tuple[tuple[int, bytes], ...]
    kills: tuple[tuple[int, str], ...]
    what: tuple[str, ...]


@dataclass
class Report:
    """Nothing found: `ok`. Hints are no findings: lines that this traffic never ran."""

    app: str
    seed: int
    frames: int = 0
    bursts: int = 0
    kills: int = 0
    findings: list[Finding] = field(default_factory=list)
    difference: Difference | None = None
    hints: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings and self.difference is None

    def text(self) -> str:
        head = f"{self.app}: {self.frames} frames in {self.bursts} bursts, killed {self.kills:,} times, seed {self.seed}: "
        lines = [head + ("no difference to the unkilled twin" if self.ok else "does not survive" if self.difference else "something is wrong")]
        if (d := self.difference) is not None:
            lines.append(f"  fewest frames    {len(d.frames)}")
            lines += [f"    {n:3}  port {port}  {len(f):4} bytes  {f[:48].hex(' ', 2)}{' …' if len(f) > 48 else ''}" for n, (port, f) in enumerate(d.frames)]
            lines += [f"  killed           after frame {n - 1}, {STAGES[stage]} ({stage})" if n else
                      f"  killed           before the first frame, {STAGES[stage]} ({stage})" for n, stage in d.kills]
            lines += [f"  {line}" for line in d.what]
        lines += [f"  {finding}" for finding in self.findings]
        lines += [f"  hint: {hint}" for hint in self.hints]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        d = self.difference
        return {"ok": self.ok, "app": self.app, "seed": self.seed, "frames": self.frames, "bursts": self.bursts, "kills": self.kills,
                "findings": [{"kind": f.kind, "name": f.name, "where": list(f.where), "detail": f.detail} for f in self.findings],
                "difference": d and {"frames": [[port, frame.hex()] for port, frame in d.frames], "kills": [list(k) for k in d.kills],
                                     "what": list(d.what)}, "hints": self.hints}


def what_differs(case: Case) -> list[str]:
    """The first output and the regions that differ, in lines."""
    twin, killed = case.twin, case.killed
    if killed.error is not None:
        return ["raised after the takeover", *("  " + line for line in killed.error[1].strip().splitlines()[-3:])]
    lines = []
    for port in sorted({p for p, _, _ in twin.outputs} | {p for p, _, _ in killed.outputs}):
        a, b = twin.of_port(port), killed.of_port(port)
        if a == b:
            continue
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        lines.append(f"first difference  output {at} of port {port}, which has {len(a)} in the twin and {len(b)} in the killed run")
        lines += _bytes(a[at] if at < len(a) else None, b[at] if at < len(b) else None)
        break
    for name, theirs in twin.regions.items():
        ours = killed.regions.get(name)
        if ours is not None and ours != theirs:
            off = next(i for i, (x, y) in enumerate(zip(theirs, ours, strict=True)) if x != y)
            off -= off % 8
            numbers = [int.from_bytes(b[off:off + 8], "little") for b in (theirs, ours)]
            lines.append(f"state             region {name} at byte {off}: {numbers[0]} in the twin, {numbers[1]} in the killed run")
    return lines


def _bytes(twin: bytes | None, killed: bytes | None) -> list[str]:
    if twin is None or killed is None:
        return [f"  {'only in the twin' if killed is None else 'only when killed'}: {(twin or killed or b'')[:48].hex(' ', 2)}"]
    at = next((i for i, (x, y) in enumerate(zip(twin, killed, strict=False)) if x != y), min(len(twin), len(killed)))
    low = max(0, at - 4)
    return [f"  from byte {low}: twin    {twin[low:at + 12].hex(' ', 2)}   ({len(twin)} bytes)",
            f"  {' ' * len(f'from byte {low}:')} killed  {killed[low:at + 12].hex(' ', 2)}   ({len(killed)} bytes)"]
