"""Every bound of a pair, its unit last in its name, and the relations that must hold between them.

A pair is described by one TOML file:

    [pair]
    name = "edge-nat"
    app = "nfckpt.apps.nat:Nat"
    profile = "hosts"
    [app]                       # keyword arguments of the app's constructor
    inside_ip = "10.0.0.1"
    [bounds]                    # any field of Bounds
    hold_us_max = 0
    [nodes.a]
    ports = ["afpacket:lan@a", "afpacket:wan@a"]
    address = "10.99.0.1:7701"
    netns = "a"
    [nodes.b]
    ...

`load(path)` refuses an unknown key, a wrong type or unit and an impossible bound at its line (ConfigError).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from nfckpt.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Bounds", "NodeConfig", "PairConfig", "check", "load", "loads"]


class Bounds(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All bounds. Hitting one is a visible state or a counted refusal, never a silent drop (I12)."""

    arena_bytes: int = 64 << 20
    """State of the app, rounded up to pages."""
    burst_frames_max: int = 128
    """Frames handed out per poll, 1 to 256."""
    hold_us_max: int = 0
    """How long an epoch may stay open; 0: every poll that had something to say is a checkpoint."""
    quiesce_ms_max: int = 50
    """How long a cut waits for the app to let go of its frames before the attempt is ABORTED."""
    abort_max: int = 20
    """Aborted attempts in a row after which the node is unprotectable and input stops."""
    epochs_outstanding_max: int = 64
    """Epochs shipped and not yet committed; beyond it the open epoch grows instead."""
    names_max: int = 16384
    """Frames consumed in one epoch."""
    gate_frames_max: int = 65536
    gate_bytes_max: int = 64 << 20
    """Outputs waiting for their commit; a full gate stops input."""
    tap_frames_max: int = 131072
    tap_bytes_max: int = 128 << 20
    """Inputs the standby keeps until an epoch names them."""
    tap_skew_ms_max: int = 20
    """The most by which two taps of one segment may see a frame apart, scheduling included."""
    message_bytes_max: int = 256 << 20
    """One record on the channel; lengths are checked before memory is taken."""
    sync_group_pages_max: int = 256
    """4 KiB pages that ride on one checkpoint while a standby is synced: bounds the pause."""
    beat_ms: int = 10
    """A sign of life at least this often, sent by the packet loop itself."""
    hang_ms_max: int = 400
    """Silence after which the peer is suspected. Death is seen much earlier, by the kernel's word or the channel's end."""
    lease_ms: int = 100
    """Profile hosts: emission stops this long after the last acknowledged beat, in the kernel."""
    lease_margin_ms: int = 20
    """What the standby waits beyond the lease: clock rate differences and timer granularity."""
    claim_ms_max: int = 2000
    """How long the witness may take to answer before it is asked again."""
    join_ms_max: int = 10000
    """How long a blank standby tries to reach its active before it asks the witness again."""
    idle_spin_us: int = 50
    idle_wait_ms_max: int = 1
    """An idle loop spins for the first, then sleeps for at most the second."""
    rx_ring_frames: int = 16384
    tx_ring_frames: int = 4096
    """Kernel rings of an AF_PACKET port, 2048 bytes a frame."""
    rate_frames_per_s: int = 100_000
    """The input rate that the bounds above must carry through a takeover."""
    park_frames_max: int = 64
    """Frames the app may park in the arena."""
    unsafe_release_on_abort: bool = False
    """An unprotectable node goes on emitting without protection instead of stopping."""
    unsafe_no_egress_lease: bool = False
    """Profile hosts without the kernel's fence: for ports that are no network devices (tests, simulations)."""


class NodeConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What differs between the two nodes. It never travels with the state (I10)."""

    ports: list[str | dict[str, Any]]
    """One `open_port` form per port of the app, in its order."""
    address: str = ""
    """Profile hosts: "ip:port" where this node's packet process listens when it is active."""
    netns: str = ""
    """Network namespace of the replication link and of the ports' egress lease; "" is the process's own."""
    cpu: int = -1
    """Pin the packet loop to this CPU; -1 leaves it to the scheduler (and lets veth reorder)."""
    resources: dict[str, float] = {}
    """Ray resources that this node's actor needs, to place it by hand."""


class PairConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One pair: an app, two nodes, bounds."""

    name: str
    app: str
    """"module:Class" of the network function."""
    profile: str = "host"
    """"host": both nodes on one kernel, shared memory. "hosts": nothing shared, TCP."""
    app_args: dict[str, Any] = {}
    bounds: Bounds = Bounds()
    nodes: dict[str, NodeConfig]


_TABLES = {"pair": {"name", "app", "profile"}, "app": None, "bounds": set(Bounds.__struct_fields__), "nodes": None}


def check(c: PairConfig) -> None:
    """Relations between bounds. Raises ConfigError that names the key, what was seen and what would do."""
    b = c.bounds

    def need(ok: bool, key: str, why: str) -> None:
        if not ok:
            raise ConfigError(f"{key} = {getattr(b, key, None)!r}: {why}")

    if c.profile not in ("host", "hosts"):
        raise ConfigError(f"profile = {c.profile!r}", 'use "host" (one kernel, shared memory) or "hosts" (TCP, leases)')
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", c.name):
        raise ConfigError(f"name = {c.name!r}", "1 to 40 letters, digits, dots, dashes")
    if not re.fullmatch(r"[\w.]+:\w+", c.app):
        raise ConfigError(f"app = {c.app!r}", 'write it as "module:Class"')
    if len(c.nodes) != 2:
        raise ConfigError(f"{len(c.nodes)} nodes", "a pair has two: [nodes.a] and [nodes.b]")
    widths = {len(n.ports) for n in c.nodes.values()}
    if len(widths) != 1 or widths == {0}:
        raise ConfigError("ports differ in number between the nodes", "give both nodes the same ports, in the same order")
    for name, node in c.nodes.items():
        if c.profile == "hosts" and not re.fullmatch(r".+:\d{1,5}", node.address):
            raise ConfigError(f"address = {node.address!r}", f'nodes.{name} needs address = "ip:port" in profile hosts')
    for key in Bounds.__struct_fields__:
        value = getattr(b, key)
        if not isinstance(value, bool) and value < 0:
            need(False, key, "must not be negative")
    need(4096 <= b.arena_bytes <= 1 << 40, "arena_bytes", "must lie between 4096 and 2**40")
    need(1 <= b.burst_frames_max <= 256, "burst_frames_max", "must lie between 1 and 256")
    need(b.hold_us_max <= 1_000_000, "hold_us_max", "an output may not be held longer than a second")
    need(b.names_max >= 2 * b.burst_frames_max, "names_max", "must hold two bursts")
    need(b.gate_frames_max >= 16 * b.burst_frames_max, "gate_frames_max", "must hold 16 bursts")
    need(b.gate_bytes_max >= 8 << 20, "gate_bytes_max", "must be at least 8 MiB")
    need(b.beat_ms >= 1, "beat_ms", "must be at least 1")
    need(b.hang_ms_max >= 4 * b.beat_ms, "hang_ms_max", f"must be at least four beats ({4 * b.beat_ms} ms)")
    need(b.lease_ms >= 4 * b.beat_ms, "lease_ms", f"must be at least four beats ({4 * b.beat_ms} ms)")
    need(b.lease_margin_ms >= 5, "lease_margin_ms", "must be at least 5: the kernel's timers are that coarse")
    need(b.message_bytes_max >= b.arena_bytes + (32 << 20), "message_bytes_max",
         f"must be at least arena_bytes + 32 MiB ({b.arena_bytes + (32 << 20)}): an epoch may write everything")
    need(b.sync_group_pages_max >= 1, "sync_group_pages_max", "must be at least 1")
    need(b.epochs_outstanding_max >= 1, "epochs_outstanding_max", "must be at least 1")
    # what piles up while nobody answers: the hang bound, the lease and the settling of the tap
    outage_ms = b.hang_ms_max + b.tap_skew_ms_max + (b.lease_ms + b.lease_margin_ms if c.profile == "hosts" else 0)
    frames = b.rate_frames_per_s * outage_ms // 1000
    need(b.tap_frames_max >= frames, "tap_frames_max",
         f"{b.rate_frames_per_s} frames/s × {outage_ms} ms of outage need {frames} (rate_frames_per_s, hang_ms_max, lease_ms)")


def _line(text: str, table: str, key: str) -> int:
    """Line of `key` in [table], or of the table, or 1."""
    here, found = "", 1
    for number, line in enumerate(text.splitlines(), 1):
        if m := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            here = m[1]
            if here == table:
                found = number
        elif here == table and re.match(rf"\s*\"?{re.escape(key)}\"?\s*=", line):
            return number
    return found


def loads(text: str, source: str = "config") -> PairConfig:
    """Parse and check a pair's TOML. Raises ConfigError "source:line: …"."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        m = re.search(r"line (\d+)", str(e))
        raise ConfigError(f"{source}:{m[1] if m else 1}: {e}") from None
    for table, body in raw.items():
        if table not in _TABLES:
            raise ConfigError(f"{source}:{_line(text, table, '')}: unknown table [{table}]", f"tables are {', '.join(_TABLES)}")
        known = _TABLES[table]
        if known is not None and isinstance(body, dict):
            for key in body:
                if key not in known:
                    raise ConfigError(f"{source}:{_line(text, table, key)}: unknown key {key!r} in [{table}]", _guess(key, known))
    try:
        config = msgspec.convert({**raw.get("pair", {}), "app_args": raw.get("app", {}), "bounds": raw.get("bounds", {}),
                                  "nodes": raw.get("nodes", {})}, PairConfig)
        check(config)
    except (msgspec.ValidationError, ConfigError) as e:
        text_of = e.message if isinstance(e, ConfigError) else str(e)
        raise ConfigError(f"{source}:{_where(text, text_of)}: {text_of}", getattr(e, "hint", "")) from None
    return config


def load(path: str | Path) -> PairConfig:
    """`loads` of a file. Raises ConfigError when it cannot be read."""
    try:
        text = Path(path).read_text()
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}", "`nfckpt config example` prints one") from None
    return loads(text, str(path))


def _where(text: str, message: str) -> int:
    if m := re.search(r"`\$\.([\w.\[\]]+)`", message):          # msgspec: … - at `$.bounds.hold_us_max`
        *tables, key = re.sub(r"\[\d+\]", "", m[1]).split(".")
        return _line(text, ".".join(tables) or "pair", key)
    if m := re.match(r"(\w+) = ", message):
        for table in ("bounds", "pair", "nodes.a", "nodes.b"):
            if re.search(rf"(?m)^\s*{m[1]}\s*=", text) and (n := _line(text, table, m[1])) and n > 1:
                return n
    return 1


def _guess(key: str, known: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(sorted(known))}"
