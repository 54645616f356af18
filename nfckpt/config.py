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

import difflib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from nfckpt.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Bounds", "Hook", "NodeConfig", "PairConfig", "check", "example", "load", "loads"]

_T = TypeVar("_T")


class Bounds(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """All bounds. Hitting one is a visible state or a counted refusal, never a silent drop (I12)."""

    arena_bytes: int = 64 << 20
    """State of the app, rounded up to pages."""
    burst_frames_max: int = 128
    """Frames handed out per poll, 1 to 256."""
    hold_us_max: int = 0
    """How long an epoch may stay open; 0: every poll that had something to say is a checkpoint."""
    hold_policy: Literal["fixed", "auto"] = "fixed"
    """"fixed": epochs stay open for hold_us_max. "auto": hold_us_max is the target, and the hold is the shortest that
    hold_cpu_percent_max allows, from one burst up to the target."""
    hold_cpu_percent_max: int = 10
    """Policy auto: share of the packet thread's time that captures may take."""
    hold_frames_max: int = 8192
    """Outputs held by the open epoch; at so many it closes, however long it may stay open."""
    hold_dirty_bytes_max: int = 16 << 20
    """Written in the open epoch, counted in whole pages; at so much it closes."""
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
    """4 KiB pages that ride on one checkpoint while a standby is synced."""
    sync_pause_us_max: int = 250
    """How long a poll with pages should take: groups shrink below sync_group_pages_max to keep to it."""
    beat_ms: int = 10
    """A sign of life at least this often, sent by the packet loop itself."""
    hang_ms: int = 100
    """Silence after which the peer is suspected. Death is seen much earlier, by the kernel's word or the channel's end."""
    hang_ms_max: int = 400
    """Where the scheduler leaves longer holes, four times the longest of the last minute counts instead of hang_ms, up to this; `status`
    shows the bound of the moment (`hang_bound_ms`)."""
    lease_ms: int = 100
    """Profile hosts: emission stops this long after the last acknowledged beat, in the kernel."""
    lease_margin_ms: int = 20
    """What the standby waits beyond the lease: clock rate differences and timer granularity."""
    claim_ms_max: int = 2000
    """How long the witness may take to answer before it is asked again."""
    claim_ms: int = 50
    """Profile hosts: how long a standby that lost the active waits before it claims, so that an active that lives is preferred."""
    when_alone: Literal["stop", "unsafe_continue"] = "stop"
    """A node that lost its peer without proof and hears no witness for claim_ms_max: emits nothing until it hears one, or goes on
    by itself. If the peer does so too, both emit."""
    join_ms_max: int = 10000
    """How long a blank standby tries to reach its active before it asks the witness again."""
    port_down_ms_max: int = 1000
    """How long a port of the standby may be without carrier before the standby gives up its place."""
    cut_off_ms: int = 100
    """How long the standby may see on a port what the active does not, and nothing that both see, before the active hands over: its link is
    cut where no carrier tells. 0: never; nor where input = "ship"."""
    orphan_ms_max: int = 5000
    """Under Ray: how long a packet process whose actor is gone forwards on, for the actor's next life to take it over."""
    idle_spin_us: int = 50
    idle_yield_us: int = 100
    idle_wait_ms_max: int = 1
    """An idle loop spins for the first, then looks again whenever nobody else needs its core, then sleeps for at most the third."""
    rx_ring_frames: int = 16384
    tx_ring_frames: int = 4096
    """Kernel rings of an AF_PACKET port, 2048 bytes a frame."""
    rate_frames_per_s: int = 100_000
    """The input rate that the bounds above must carry through a takeover."""
    burst_ms_max: int = 100
    """CPU time that the app may take over one frame of a replay: beyond it, it loops for ever, and the frame is quarantined."""
    loop_ms_max: int = 10_000
    """CPU time without a poll after which the kernel's timer ends the active's process (signal 26): it loops for ever."""
    quarantine_frames_max: int = 16
    """Frames that one active life may take out of the replay because the app does not survive them; at the next it stops."""
    quarantine_bytes_max: int = 1 << 20
    """Size of a node's quarantine folder; beyond it frames are quarantined and counted, but no longer written down."""
    receipts_bytes_max: int = 1 << 20
    """Size of the file of receipts; then it becomes FILE.1, and the one before that goes: about 1,000 takeovers each."""
    quarantine_s_max: int = 600
    """How long a frame that equals a quarantined one is dropped."""
    announce_repeats: int = 3
    announce_gap_ms: int = 500
    announce_refresh_s: int = 60
    """A new active announces itself at once, then so many times more, so far apart; from then on once in the last of these (0: no
    more), which must be shorter than a switch of the segment remembers an address (mostly 300 s)."""
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
    metrics: str = ""
    """"ip:port" where the node answers Prometheus, in its process's own network namespace; "" does not. Off unless it is asked for: it has
    no authentication, and two nodes of one machine need two ports."""


class Hook(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A command that events start: observe/hooks.py."""

    on: list[str]
    """Names of events; "*" is all of them."""
    run: list[str]
    """Program and arguments; no shell."""
    hook_s_max: float = 10.0
    """How long it may take; then it is killed."""


class PairConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One pair: an app, two nodes, bounds."""

    name: str
    app: str
    """"module:Class" of the network function."""
    profile: str = "host"
    """"host": both nodes on one kernel, shared memory. "hosts": nothing shared, TCP."""
    input: str = "tap"
    """How the standby gets what the active receives. "tap": its own ports see both the input and the output (a hub, a mirror). "ship": the
    active sends it; for switches that learn. Then what a dead active's kernel had received and not handed out is lost, and counted."""
    app_args: dict[str, Any] = {}
    quarantine_dir: str = ""
    """Folder on each node for frames that its app did not survive; "" is nfckpt-UID-quarantine in the folder for temporary files."""
    receipts_dir: str = ""
    """Folder where `nfckpt run` keeps receipts; "" is nfckpt in $STATE_DIRECTORY, $XDG_STATE_HOME or ~/.local/state."""
    preempt: str = ""
    """Node that takes its role back by a planned switch once the pair is protected again; "": whoever leads goes on."""
    preempt_delay_s: float = 0.0
    """… and has been protected without a break for so long."""
    hooks: list[Hook] = []
    bounds: Bounds = Bounds()
    nodes: dict[str, NodeConfig]


class _Pair(msgspec.Struct):
    name: str
    app: str
    profile: str = "host"
    input: str = "tap"
    quarantine_dir: str = ""
    receipts_dir: str = ""
    preempt: str = ""
    preempt_delay_s: float = 0.0


_TABLES = ("pair", "app", "bounds", "nodes", "hooks")
_NAME = r"[A-Za-z0-9_.-]{1,40}"


def check(c: PairConfig) -> None:
    """Relations between bounds. Raises ConfigError that names the key, what was seen and what would do."""
    b = c.bounds

    def need(ok: bool, key: str, why: str) -> None:
        if not ok:
            raise ConfigError(f"{key} = {getattr(b, key, None)!r}: {why}")

    if c.profile not in ("host", "hosts"):
        raise ConfigError(f"profile = {c.profile!r}", 'use "host" (one kernel, shared memory) or "hosts" (TCP, leases)')
    if c.input not in ("tap", "ship"):
        raise ConfigError(f"input = {c.input!r}", 'use "tap" (the standby\'s ports see the segment) or "ship" (the active sends what it receives)')
    if not re.fullmatch(_NAME, c.name):
        raise ConfigError(f"name = {c.name!r}", "1 to 40 letters, digits, dots, dashes")
    if c.preempt and c.preempt not in c.nodes:
        raise ConfigError(f"preempt = {c.preempt!r}: no such node", f"nodes: {', '.join(c.nodes)}; leave it out and whoever leads goes on")
    if not 0 <= c.preempt_delay_s <= 86400:
        raise ConfigError(f"preempt_delay_s = {c.preempt_delay_s}", "between 0 and 86400 seconds")
    if not re.fullmatch(r"[\w.]+:\w+", c.app):
        raise ConfigError(f"app = {c.app!r}", 'write it as "module:Class"')
    if len(c.nodes) != 2:
        raise ConfigError(f"nodes: {len(c.nodes)} of them", "a pair has two: [nodes.a] and [nodes.b]")
    widths = {name: len(n.ports) for name, n in c.nodes.items()}
    if len(set(widths.values())) != 1 or 0 in widths.values():
        last = list(widths)[-1]
        raise ConfigError(f"nodes.{last}.ports: {' and '.join(str(w) for w in widths.values())} ports",
                          "give both nodes the same ports, in the same order")
    for name, node in c.nodes.items():
        if not re.fullmatch(_NAME, name):
            raise ConfigError(f"nodes.{name}: not a name", "1 to 40 letters, digits, dots, dashes")
        if not -1 <= node.cpu < 4096:
            raise ConfigError(f"nodes.{name}.cpu = {node.cpu}", "a CPU's number, or -1 for any")
        m = re.fullmatch(r".+:(\d{1,5})", node.address)
        if c.profile == "hosts" and not (m and 0 < int(m[1]) < 65536):
            raise ConfigError(f"nodes.{name}.address = {node.address!r}", 'profile hosts needs address = "ip:port"')
        m = re.fullmatch(r".+:(\d{1,5})", node.metrics)
        if node.metrics and not (m and 0 < int(m[1]) < 65536):
            raise ConfigError(f"nodes.{name}.metrics = {node.metrics!r}", 'an address, "127.0.0.1:9464", or leave it out')
    if len(asked := [n.metrics for n in c.nodes.values() if n.metrics]) != len(set(asked)) and c.profile == "host":
        raise ConfigError(f"nodes.{list(c.nodes)[-1]}.metrics is that of the other node", "on one machine each needs a port of its own")
    for i, hook in enumerate(c.hooks):
        if not hook.on or not hook.run or not 0 < hook.hook_s_max <= 3600:
            raise ConfigError(f"hooks.{i}: on = {hook.on}, run = {hook.run}, hook_s_max = {hook.hook_s_max}",
                              "name events and a program, and give it up to 3600 s")
    if c.profile == "hosts" and len({n.address for n in c.nodes.values()}) != 2:
        raise ConfigError(f"nodes.{list(c.nodes)[-1]}.address is that of the other node", "each listens on one of its own")
    for key in Bounds.__struct_fields__:
        value = getattr(b, key)
        if isinstance(value, int) and value < 0:
            need(False, key, "must not be negative")
    need(4096 <= b.arena_bytes <= 1 << 38, "arena_bytes", "must lie between 4096 and 2**38")
    need(1 <= b.burst_frames_max <= 256, "burst_frames_max", "must lie between 1 and 256")
    need(b.hold_us_max <= 1_000_000, "hold_us_max", "an output may not be held longer than a second")
    need(b.hold_policy == "fixed" or b.hold_us_max >= 1, "hold_us_max", 'is the target of hold_policy = "auto": at least 1')
    need(1 <= b.hold_cpu_percent_max <= 100, "hold_cpu_percent_max", "must lie between 1 and 100")
    need(b.hold_frames_max >= 1, "hold_frames_max", "must be at least 1")
    need(b.hold_dirty_bytes_max >= 4096, "hold_dirty_bytes_max", "must be at least one page, 4096")
    need(b.names_max >= 2 * b.burst_frames_max, "names_max", "must hold two bursts")
    need(b.tap_frames_max <= 1 << 25, "tap_frames_max", "must not be above 2**25")
    need(b.tap_bytes_max <= 1 << 30, "tap_bytes_max", "must not be above 2**30")
    need(b.gate_frames_max <= 1 << 24, "gate_frames_max", "must not be above 2**24: the standby's tap expects twice as many")
    need(b.gate_bytes_max <= 1 << 29, "gate_bytes_max", "must not be above 2**29: the standby's tap expects twice as many")
    need(b.tap_frames_max >= b.names_max, "tap_frames_max", f"must hold the names of one epoch ({b.names_max}: names_max)")
    need(b.gate_frames_max >= 16 * b.burst_frames_max, "gate_frames_max", "must hold 16 bursts")
    need(b.gate_bytes_max >= 8 << 20, "gate_bytes_max", "must be at least 8 MiB")
    need(b.beat_ms >= 1, "beat_ms", "must be at least 1")
    need(b.hang_ms_max >= 4 * b.beat_ms, "hang_ms_max", f"must be at least four beats ({4 * b.beat_ms} ms)")
    need(b.hang_ms >= 4 * b.beat_ms, "hang_ms", f"must be at least four beats ({4 * b.beat_ms} ms)")
    need(b.hang_ms <= b.hang_ms_max, "hang_ms", f"must not be above hang_ms_max ({b.hang_ms_max}), up to which it adapts")
    need(b.lease_ms >= 4 * b.beat_ms, "lease_ms", f"must be at least four beats ({4 * b.beat_ms} ms)")
    need(b.claim_ms <= b.lease_ms + b.lease_margin_ms, "claim_ms",
         f"must not be above lease_ms + lease_margin_ms ({b.lease_ms + b.lease_margin_ms}): a takeover waits for those anyhow")
    need(b.lease_margin_ms >= 5, "lease_margin_ms", "must be at least 5: the kernel's timers are that coarse")
    # one epoch may write every line, send a full gate, name every frame and carry a group of pages
    epoch = (b.arena_bytes * 17 // 16 + b.gate_bytes_max + 16 * b.gate_frames_max + 9 * b.names_max
             + 4100 * b.sync_group_pages_max + 4096)
    need(b.message_bytes_max >= epoch, "message_bytes_max",
         f"one epoch may have {epoch} bytes (arena_bytes, gate_bytes_max, names_max, sync_group_pages_max)")
    need(b.sync_group_pages_max >= 1, "sync_group_pages_max", "must be at least 1")
    need(b.sync_pause_us_max >= 10, "sync_pause_us_max", "must be at least 10: a group has one page at least")
    need(b.epochs_outstanding_max >= 1, "epochs_outstanding_max", "must be at least 1")
    need(1 <= b.burst_ms_max <= b.hang_ms_max, "burst_ms_max", f"must lie between 1 and hang_ms_max ({b.hang_ms_max})")
    need(b.loop_ms_max >= 2 * b.hang_ms_max, "loop_ms_max", f"must be at least twice hang_ms_max ({b.hang_ms_max})")
    need(c.input != "ship" or b.message_bytes_max >= 4 << 20, "message_bytes_max", 'must be at least 4194304 with input = "ship": a burst is one message')
    need(b.quarantine_frames_max <= 64, "quarantine_frames_max", "an agent remembers at most 64")
    need(b.announce_repeats <= 100, "announce_repeats", "at most 100")
    need(b.announce_gap_ms >= 10 or not b.announce_repeats, "announce_gap_ms", "must be at least 10: a segment is not to be flooded")
    need(b.idle_wait_ms_max <= b.beat_ms, "idle_wait_ms_max", f"must not be above beat_ms ({b.beat_ms}): beats would be late")
    for key in ("rx_ring_frames", "tx_ring_frames"):
        need(64 <= getattr(b, key) <= 1 << 19 and not getattr(b, key) % 32, key, "a multiple of 32 between 64 and 524288")
    need(b.tap_frames_max >= b.rx_ring_frames, "tap_frames_max", f"must hold what the ring may ({b.rx_ring_frames}: rx_ring_frames)")
    # what piles up while nobody answers: the hang bound, the lease and the settling of the tap
    outage_ms = b.hang_ms_max + b.tap_skew_ms_max + (b.lease_ms + b.lease_margin_ms if c.profile == "hosts" else 0)
    frames = b.rate_frames_per_s * outage_ms // 1000
    need(b.tap_frames_max >= frames, "tap_frames_max",
         f"{b.rate_frames_per_s} frames/s × {outage_ms} ms of outage need {frames} (rate_frames_per_s, hang_ms_max, lease_ms)")


_DOT = re.compile(r"\s*\.\s*")
_KEY = r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'"
_HEADER = re.compile(rf"\s*\[\[?\s*((?:{_KEY})(?:\s*\.\s*(?:{_KEY}))*)\s*\]")
_ASSIGNMENT = re.compile(rf"\s*((?:{_KEY})(?:\s*\.\s*(?:{_KEY}))*)\s*=")

Keys = tuple[str, ...]


class _Refused(Exception):
    """`path`: of the key at fault, e.g. ("bounds", "hold_us_max"), or of the nearest table that exists."""

    def __init__(self, path: Keys, message: str, hint: str = "") -> None:
        self.path, self.message, self.hint = path, message, hint


def _lines(text: str) -> dict[Keys, int]:
    """Where each table and key is written. Inside an inline table only the table is known."""
    here: Keys = ()
    found: dict[Keys, int] = {(): 1}
    for number, line in enumerate(text.splitlines(), 1):
        if m := _HEADER.match(line):
            here = _path(m[1])
            if line.lstrip().startswith("[["):
                found.setdefault(here, number)
                here += (str(sum(path[:-1] == here for path in found)),)
            for depth in range(1, len(here) + 1):
                found.setdefault(here[:depth], number)
        elif m := _ASSIGNMENT.match(line):
            found.setdefault(here + _path(m[1]), number)
    return found


def _path(dotted: str) -> Keys:
    return tuple(part.strip("\"'") for part in _DOT.split(dotted))


def _known(path: Keys, body: Any, known: Iterable[str]) -> None:
    where = ".".join(path)
    if not isinstance(body, dict):
        raise _Refused(path, f"{where} = {body!r}", f"it is a table: [{where}]")
    for key in body:
        if key not in known:
            raise _Refused((*path, key), f"unknown key {key!r} in [{where}]", _guess(key, known))


def _typed(path: Keys, body: dict[str, Any], to: type[_T]) -> _T:
    try:
        return msgspec.convert(body, to)
    except msgspec.ValidationError as e:
        at = re.search(r" - at `\$\.?(\w*).*`$", str(e))
        key = at[1] if at else ""
        why = str(e)[:at.start()] if at else str(e).replace("Object missing required field", f"[{'.'.join(path)}] lacks")
        shown = f"{key} = {body[key]!r}: {why}" if key in body else why
        raise _Refused((*path, key) if key else path, shown, _unit(key)) from None


def loads(text: str, source: str = "config") -> PairConfig:
    """Parse and check a pair's TOML. Raises ConfigError "source:line: …"."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        m = re.search(r"line (\d+)", str(e))
        raise ConfigError(f"{source}:{m[1] if m else len(text.splitlines())}: {e}") from None
    lines = _lines(text)
    try:
        for table in raw:
            if table not in _TABLES:
                raise _Refused((table,), f"unknown table [{table}]", f"tables are {', '.join(_TABLES)}")
        _known(("pair",), raw.setdefault("pair", {}), _Pair.__struct_fields__)
        _known(("bounds",), raw.setdefault("bounds", {}), Bounds.__struct_fields__)
        _known(("nodes",), raw.setdefault("nodes", {}), raw["nodes"])
        if not isinstance(raw.setdefault("hooks", []), list):
            raise _Refused(("hooks",), "[hooks] is one table", "each hook is one: [[hooks]]")
        for i, hook in enumerate(raw["hooks"]):
            _known(("hooks", str(i)), hook, Hook.__struct_fields__)
        _known(("app",), raw.setdefault("app", {}), raw["app"])
        for name, node in raw["nodes"].items():
            _known(("nodes", name), node, NodeConfig.__struct_fields__)
        pair = _typed(("pair",), raw["pair"], _Pair)
        config = PairConfig(
            name=pair.name, app=pair.app, profile=pair.profile, input=pair.input, app_args=raw["app"],
            quarantine_dir=pair.quarantine_dir, receipts_dir=pair.receipts_dir, preempt=pair.preempt, preempt_delay_s=pair.preempt_delay_s,
            hooks=[_typed(("hooks", str(i)), hook, Hook) for i, hook in enumerate(raw["hooks"])],
            bounds=_typed(("bounds",), raw["bounds"], Bounds),
            nodes={name: _typed(("nodes", name), node, NodeConfig) for name, node in raw["nodes"].items()})
        check(config)
    except _Refused as e:
        path = e.path
        while path not in lines:
            path = path[:-1]
        raise ConfigError(f"{source}:{lines[path]}: {e.message}", e.hint) from None
    except ConfigError as e:
        raise ConfigError(f"{source}:{_blame(e.message, lines)}: {e.message}", e.hint) from None
    return config


def load(path: str | Path) -> PairConfig:
    """`loads` of a file. Raises ConfigError when it cannot be read."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: {getattr(e, 'strerror', '') or e}", "`nfckpt config example` prints one") from None
    return loads(text, str(path))


def example() -> str:
    """A whole configuration that passes, every bound with its default in a comment."""
    bounds = "\n".join(f"# {f.name} = {json.dumps(f.default)}" for f in msgspec.structs.fields(Bounds))
    return f"""\
# A pair for `nfckpt run`: one app, two nodes. Check it with `nfckpt config check FILE`.
[pair]
name = "edge-nat"
app = "nfckpt.apps.nat:Nat"         # module:Class
profile = "hosts"                   # "host": both nodes on one kernel. "hosts": nothing shared, TCP and leases
# input = "ship"                    # for switches that learn; without: the standby's ports see the segment (a hub, a mirror)
# preempt = "a"                     # takes its role back once it is a standby again; without: whoever leads goes on
# preempt_delay_s = 30              # … and has been one for so long

[app]                               # arguments of the class
inside_ip = "10.0.0.1"
outside_ips = ["198.51.100.1"]

[nodes.a]
ports = ["afpacket:lan@nf-a", "afpacket:wan@nf-a"]      # one per port of the app: device@network-namespace
address = "10.99.0.1:7701"          # where this node listens for its standby
netns = "nf-a"
cpu = 0

[nodes.b]
ports = ["afpacket:lan@nf-b", "afpacket:wan@nf-b"]
address = "10.99.0.2:7701"
netns = "nf-b"
cpu = 1
# metrics = "127.0.0.1:9464"        # Prometheus; off without

# [[hooks]]                         # commands that events start, one after the other
# on = ["takeover", "solo"]
# run = ["/usr/local/sbin/page", "edge"]

[bounds]                            # the defaults; the unit is the end of each name
{bounds}
"""


def _blame(message: str, lines: dict[Keys, int]) -> int:
    """Line of the first key that the message names and that the file sets, else of a table it names, else 1."""
    for word in re.findall(r"[\w.-]+", message):
        for path in (("bounds", word), ("pair", word), _path(word), _path(word)[:-1]):
            if path and path in lines:
                return lines[path]
    return lines.get(("nodes",), 1)


UNITS = {"us": "µs", "ms": "ms", "bytes": "bytes", "frames": "frames", "percent": "percent", "pages": "pages"}


def _unit(key: str) -> str:
    units = [words for part, words in UNITS.items() if part in key.split("_")]
    return f"a whole number of {units[0]}" if units and key in Bounds.__struct_fields__ else ""


def _guess(key: str, known: Iterable[str]) -> str:
    stem = [part for part in key.split("_") if part not in UNITS and part != "s"]
    for name in known:
        if [part for part in name.split("_") if part not in UNITS] == stem:
            return f"did you mean {name!r}, {_unit(name)}?" if _unit(name) else f"did you mean {name!r}?"
    near = difflib.get_close_matches(key, list(known), 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(sorted(known))}"
