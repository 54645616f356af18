"""The command `nfckpt`: parses, prints, and leaves the work to deploy, observe and testbed.

Every import that costs time is inside the command that needs it: `nfckpt --help` takes a fraction of a second, and a
box is entered before there are threads. An operating error is one line, `error: what (what to do)`, and exit code 2.

Exit codes   0 done   1 it ran, and the answer is no (demo, chaos, doctor, sim, check)   2 error   3 it ran, and proves nothing (chaos)
             130 interrupted, cleaned up
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from nfckpt.errors import ConfigError, NfckptError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app", "main"]

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
PairName = Annotated[Optional[str], typer.Option("--pair", help="Name of the pair; needed when several run.")]  # noqa: UP045
Prefix = Annotated[str, typer.Option("--prefix", help="Names of its namespaces begin with this.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The pair's configuration; `nfckpt config example`.")]

RAY_HELP = "Nodes as Ray actors, or as children of this process. Default: Ray where it is installed."

app = typer.Typer(
    name="nfckpt", no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Network functions that survive the death of the machine they run on.",
    epilog="""Start here:

[bold]nfckpt doctor[/bold]                      what this machine can do

[bold]nfckpt demo[/bold]                        kill a NAT five times under traffic, nothing breaks

[bold]nfckpt config example > nat.toml[/bold]   then nfckpt run nat.toml""")
config_app = typer.Typer(no_args_is_help=True, help="Check a configuration, or print one.")
testbed_app = typer.Typer(no_args_is_help=True, help="Client, two nodes and a server in network namespaces.")
app.add_typer(config_app, name="config")
app.add_typer(testbed_app, name="testbed")


def main() -> None:
    """Entry point of the command."""
    try:
        app()
    except NfckptError as e:
        print(f"error: {e}".replace("\n", " "), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:                     # `nfckpt … | head`
        sys.stderr.close()
        sys.exit(1)


# ── demo ─────────────────────────────────────────────────────────────────────────────────────────

@app.command(epilog="""Examples:

nfckpt demo

nfckpt demo --profile host --kills 10 --json > result.json

nfckpt demo --kills 1 --connections 20 --udp-rate 5000 --no-ray""")
def demo(
    profile: Annotated[str, typer.Option(help="hosts: nothing shared, TCP and leases. host: shared memory.")] = "hosts",
    kills: Annotated[int, typer.Option(min=1, max=1000, help="SIGKILLs of the active, each after protection is back.")] = 5,
    connections: Annotated[int, typer.Option(min=0, max=10_000, help="Long TCP connections.")] = 200,
    udp_rate: Annotated[int, typer.Option(min=1, max=1_000_000, help="Numbered UDP frames a second, client to server.")] = 20_000,
    seconds: Annotated[float, typer.Option(min=0.0, max=3600.0, help="Protected running before each kill, and at the end.")] = 1.0,
    ray: Annotated[Optional[bool], typer.Option("--ray/--no-ray", help=RAY_HELP)] = None,  # noqa: UP045
    memory: Annotated[bool, typer.Option("--memory", help="Over memory ports, without namespaces.")] = False,
    as_json: Json = False,
) -> None:
    """A NAT between kernel TCP connections and numbered UDP; its active is killed again and again.

    Runs in private namespaces whose end removes everything, as root or as an ordinary user. Where the kernel allows
    neither, it says so and runs over memory ports. Exit code 0 only when nothing was lost, doubled, reset or changed.
    """
    from nfckpt.testbed import box
    if not memory and not box.inside():
        reason = box.available()
        if reason is None:
            box.enter_box()                     # runs this command again inside, and exits
        print(f"no namespaces here, so the demo runs over memory ports: {reason}", file=sys.stderr)
        memory = True
    if box.inside():
        os.environ["TMPDIR"] = "/run"           # goes with the box, also when we are killed
    from nfckpt.testbed.demo_view import show
    raise typer.Exit(show(profile=profile, kills=kills, connections=connections, udp_rate=udp_rate, seconds=seconds, ray=ray,
                          memory=memory, as_json=as_json))


# ── chaos ────────────────────────────────────────────────────────────────────────────────────────

@app.command(epilog="""Examples:

nfckpt chaos --kills 20

nfckpt chaos --kills 1000 --profile host --no-ray --report chaos.html --json > chaos.json

nfckpt chaos --faults kill,machine,point-active --seed 7

nfckpt chaos --input ship --profile host

nfckpt chaos --list-faults""")
def chaos(
    kills: Annotated[int, typer.Option(min=1, max=1_000_000, help="Nodes to kill; faults that kill nobody come between.")] = 20,
    faults: Annotated[str, typer.Option(help="all, or names and beginnings of names with commas between.")] = "all",
    app: Annotated[str, typer.Option(help='A network function that takes the parameters of Nat, "module:Class".')] = "nfckpt.native.nat:NativeNat",
    profile: Annotated[str, typer.Option(help="hosts: nothing shared, TCP and leases. host: shared memory.")] = "hosts",
    input: Annotated[str, typer.Option(help="tap: both nodes see the segments. ship: switches that learn, and the active sends what it receives.")] = "tap",
    seed: Annotated[Optional[int], typer.Option(min=0, help="Which faults strike whom and when. Default: a new one.")] = None,  # noqa: UP045
    rate: Annotated[int, typer.Option(min=2, max=1_000_000, help="Numbered UDP frames a second, both directions together.")] = 20_000,
    seconds: Annotated[float, typer.Option(min=0.0, help="Stop after so long, however many kills there were; 0: never.")] = 0.0,
    ray: Annotated[Optional[bool], typer.Option("--ray/--no-ray", help=RAY_HELP)] = None,  # noqa: UP045
    report: Annotated[Optional[Path], typer.Option(help="Write the run as one HTML file: needs pip install 'nfckpt\\[report]'.")] = None,  # noqa: UP045
    log: Annotated[Optional[Path], typer.Option(help="Append every event and strike to this file, as JSON lines.")] = None,  # noqa: UP045
    list_faults: Annotated[bool, typer.Option("--list-faults", help="What can be done to a pair, and where it can die.")] = False,
    as_json: Json = False,
) -> None:
    """Kill a pair under traffic again and again, in every way there is, and account for every frame.

    Runs in private namespaces whose end removes everything. The same seed draws the same faults. Exit code 0 only when nothing was
    lost, doubled, reset or in doubt; 3 when a sink dropped frames, so that the run proves nothing.
    """
    import json
    if list_faults:
        from nfckpt.testbed.chaos.view import faults_body, faults_table
        if as_json:
            print(json.dumps(faults_body()))
        else:
            _console().print(faults_table())
        return
    from nfckpt.testbed.chaos.faults import chosen
    if profile not in ("host", "hosts"):
        raise ConfigError(f"--profile {profile}", "host or hosts")
    if input not in ("tap", "ship"):
        raise ConfigError(f"--input {input}", "tap or ship")
    from nfckpt.deploy.foreground import has_ray
    with_ray = has_ray() if ray is None else ray
    chosen(faults, profile, with_ray, input)
    if report is not None:
        from nfckpt.testbed.chaos.report import need_plots
        need_plots(report)
    from nfckpt.testbed import box
    if not box.inside():
        if seed is None:
            sys.orig_argv += ["--seed", str(int.from_bytes(os.urandom(3), "big"))]
        box.enter_box()                         # runs this command again inside, and exits
    os.environ["TMPDIR"] = "/run"               # goes with the box, also when we are killed
    from nfckpt.testbed.chaos.view import run as run_chaos
    raise typer.Exit(run_chaos(seed=seed or 0, kills=kills, faults=faults, app=app, profile=profile, rate=rate, seconds=seconds, ray=with_ray,
                               as_json=as_json, report=report, log=log, input=input))


# ── a pair ───────────────────────────────────────────────────────────────────────────────────────

@app.command(epilog="""Examples:

nfckpt run nat.toml

nfckpt run nat.toml --local --log events.jsonl --fifo /run/edge.events

nfckpt run nat.toml --address 192.0.2.10:6379     (a Ray cluster that runs already)""")
def run(
    config_file: ConfigFile,
    ray: Annotated[Optional[bool], typer.Option("--ray/--local", help=RAY_HELP)] = None,  # noqa: UP045
    address: Annotated[Optional[str], typer.Option(help="Ray cluster to use; otherwise a local one is started.")] = None,  # noqa: UP045
    log: Annotated[Optional[Path], typer.Option(help="Append every event to this file, as JSON lines.")] = None,  # noqa: UP045
    fifo: Annotated[Optional[Path], typer.Option(help="Every event into this named pipe too; made where there is none.")] = None,  # noqa: UP045
    key_file: Annotated[Optional[Path], typer.Option(help="The pair's key (`nfckpt key`); otherwise a fresh one.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines on standard output.")] = False,
) -> None:
    """Run a pair in the foreground until Ctrl-C; nothing is left of it then but its receipts.

    Meanwhile `nfckpt status`, `failover`, `events` and `receipts` reach it; commands of the configuration's [[hooks]] follow its events.
    """
    import functools
    import json
    import signal

    from nfckpt.config import load
    from nfckpt.deploy.foreground import make_pair, run_foreground
    from nfckpt.deploy.preflight import preflight
    from nfckpt.observe.journal import Journal
    from nfckpt.observe.views import event_line

    config = load(config_file)
    preflight(config)
    make = functools.partial(make_pair, ray=ray, address=address, key=_key(key_file))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def say(row: dict[str, Any]) -> None:
        print(json.dumps(row, default=str) if as_json else event_line(row), flush=True)

    journal = functools.partial(Journal, config, log=log, fifo=fifo, on_error=lambda text: print(f"error: {text}", file=sys.stderr, flush=True))
    run_foreground(config, make, journal, say)


def _key(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} holds no key: {e}", "make one with `nfckpt key > FILE`") from None


@app.command(epilog="""Examples:

nfckpt status

nfckpt status --pair edge-nat --watch

nfckpt status --json | jq .protected""")
def status(
    pair: PairName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew, twice a second, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """Roles, protection and counters of a running pair. With --json --watch: one object a line."""
    import json
    import time

    from nfckpt.deploy.control import ask
    if as_json:
        print(json.dumps(ask(pair, "status")), flush=True)
        while watch:
            time.sleep(0.5)
            print(json.dumps(ask(pair, "status")), flush=True)
        return
    from rich.live import Live

    from nfckpt.observe.views import Rates, status_view
    rates = Rates()
    console = _console()

    def view() -> Any:
        return status_view(ask(pair, "status"), rates, time.monotonic())

    if not watch:
        console.print(view())
        return
    with Live(view(), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(0.5)
            live.update(view(), refresh=True)


@app.command(epilog="""Examples:

nfckpt failover

nfckpt failover --pair edge-nat --json""")
def failover(pair: PairName = None, as_json: Json = False) -> None:
    """Planned switch: the standby of a protected pair becomes the active, nothing is lost."""
    import json

    from nfckpt.deploy.control import ask
    body = ask(pair, "failover")
    print(json.dumps(body) if as_json else f"{body['to']} is the active of {body['pair']} now, {body['from']} was")


@app.command(epilog="""Examples:

nfckpt maintenance b

nfckpt maintenance b --off --pair edge-nat""")
def maintenance(
    node: Annotated[str, typer.Argument(help="The node to take out.", show_default=False)],
    off: Annotated[bool, typer.Option("--off", help="It may run again: it is synced, and protects.")] = False,
    pair: PairName = None,
    as_json: Json = False,
) -> None:
    """Take a node out: its role is handed over first, then its process ends, and none is started until --off. The pair goes on alone."""
    import json

    from nfckpt.deploy.control import ask
    body = ask(pair, "maintained" if off else "maintenance", node)
    print(json.dumps(body) if as_json else f"{node} {'runs again' if off else 'is in maintenance'}; {body['active'] or 'nobody'} is the active of {body['pair']}")


@app.command(epilog="""Examples:

nfckpt witness

nfckpt witness --force --pair edge-nat""")
def witness(
    pair: PairName = None,
    force: Annotated[bool, typer.Option("--force", help="The nodes it still waits for are dead: grant terms without them.")] = False,
    as_json: Json = False,
) -> None:
    """Who holds the term, by the witness; and whom a restarted one still waits for before it grants anything."""
    import json

    from nfckpt.deploy.control import ask
    body = ask(pair, "force" if force else "witness")
    waits = f"; blank, waits for {', '.join(body['missing'])}" if body["missing"] else ""
    print(json.dumps(body) if as_json else
          f"{body['pair']}: term {body['term']}, active {body['holder'] or 'nobody'}, standby {body['standby'] or 'nobody'}{waits}")


@app.command(epilog="""Examples:

nfckpt receipts

nfckpt receipts --json | jq '.receipts[].steps_us.total'""")
def receipts(pair: PairName = None, as_json: Json = False) -> None:
    """What each takeover found, did and cost; with --pair also of a pair that does not run now (its default folder)."""
    import json

    from nfckpt.deploy.control import ask, pairs
    from nfckpt.observe.events import read_rows, receipts_path
    from nfckpt.observe.journal import bare
    if pair is not None and pair not in pairs() and (kept := read_rows(receipts_path(pair))):
        body: dict[str, Any] = {"pair": pair, "receipts": [bare(row) for row in kept]}
    else:
        body = ask(pair, "receipts")
    if as_json:
        print(json.dumps(body))
    elif body["receipts"]:
        from nfckpt.observe.views import receipts_table
        _console().print(receipts_table(body["receipts"]))
    else:
        print(f"no takeover of {body['pair']} yet")


@app.command(epilog="""Examples:

nfckpt events

nfckpt events --json | jq 'select(.event == "takeover")'""")
def events(pair: PairName = None, as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """The last events of a running pair, in order. All that come: `nfckpt run --log` or `--fifo`."""
    import json

    from nfckpt.deploy.control import ask
    from nfckpt.observe.views import event_line
    for row in ask(pair, "events")["events"]:
        print(json.dumps(row) if as_json else event_line(row))


# ── configuration ────────────────────────────────────────────────────────────────────────────────

@config_app.command("check", epilog="""Examples:

nfckpt config check nat.toml

nfckpt config check nat.toml --json""")
def config_check(config_file: ConfigFile, as_json: Json = False) -> None:
    """Refuse an unknown key, a wrong type or unit, an impossible bound, at its line; load the app and declare its state."""
    import json

    from nfckpt.config import load
    from nfckpt.deploy.preflight import preflight
    try:
        body = preflight(load(config_file))
    except ConfigError as e:
        if not as_json:
            raise
        print(json.dumps({"ok": False, "error": e.message, "hint": e.hint}))
        raise typer.Exit(2) from None
    if as_json:
        print(json.dumps({"ok": True, **body}, default=str))
        return
    used, of = body["arena_used_bytes"], body["arena_bytes"]
    print(f"{config_file}: good. {body['app']} keeps {used:,} of {of:,} bytes in {len(body['structures'])} structures.")


@config_app.command("example", epilog="Example:\n\nnfckpt config example > nat.toml")
def config_example() -> None:
    """Print a whole configuration, every bound with its default."""
    from nfckpt.config import example
    print(example(), end="")


@app.command(epilog="Example:\n\n(umask 077; nfckpt key > pair.key); nfckpt run nat.toml --key-file pair.key")
def key() -> None:
    """Print a fresh key for a pair: 64 hexadecimal digits."""
    from nfckpt.secrets import new_key
    print(new_key().hex())


# ── the simulator ────────────────────────────────────────────────────────────────────────────────

@app.command(epilog="""Examples:

nfckpt sim

nfckpt sim --seeds 5000

nfckpt sim --seed 42 --trace

nfckpt sim --app my_nat:MyNat --seeds 1000""")
def sim(
    seeds: Annotated[int, typer.Option(min=1, max=10_000_000, help="How many, from --seed on.")] = 200,
    seed: Annotated[Optional[int], typer.Option(min=0, help="Only this one; with --seeds, the first one.")] = None,  # noqa: UP045
    events: Annotated[int, typer.Option(min=1, max=10_000_000, help="Events with faults, a seed; then it must heal.")] = 1500,
    trace: Annotated[bool, typer.Option("--trace", help="Print all that happens in simulated time.")] = False,
    faults: Annotated[Optional[str], typer.Option(help="Only these of the seed's faults, 0,3,7 or none: a shrunk replay.")] = None,  # noqa: UP045
    app: Annotated[Optional[str], typer.Option(help='Your own network function, "module:Class" (nfckpt/sim/app.py says more).')] = None,  # noqa: UP045
    jobs: Annotated[int, typer.Option(min=0, max=1024, help="Processes; 0: one a CPU.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the replication cores of both nodes in a simulated world full of faults, and check what must never be untrue.

    The same seed does the same, everywhere. Exit code 1 when a promise was broken: the line says how to replay it, and how with
    the fewest faults; or when a campaign of 500 seeds or more left a transition or a fault unproven.
    """
    import json

    from rich.progress import Progress

    from nfckpt.sim.campaign import Campaign
    from nfckpt.sim.world import TOY
    one = seed is not None and "--seeds" not in sys.argv
    first = seed or 0
    try:
        only = None if faults is None else frozenset() if faults == "none" else frozenset(int(n) for n in faults.split(","))
    except ValueError:
        raise ConfigError(f"--faults {faults}", "numbers with commas between them, as a violation prints them; or none") from None
    count = 1 if one else seeds
    with Progress(console=_console(stderr=True), transient=True, disable=as_json or trace or count == 1) as progress:
        bar = progress.add_task("seeds", total=count)
        report = Campaign(range(first, first + count), events=events, app=app or TOY, faults=only,
                          jobs=min(jobs or len(os.sched_getaffinity(0)), count),
                          told=None if as_json else lambda text: print(text, flush=True),
                          done=lambda n: progress.update(bar, completed=n), echo=print if trace else None).run()
    print(json.dumps(report.as_json()) if as_json else report.text())
    raise typer.Exit(0 if report.ok else 1)


@app.command(epilog="""Examples:

nfckpt check balancer:Balancer --args '{"address": "192.0.2.1"}'

nfckpt check my_nf:MyNf --pcap inside.pcap --pcap outside.pcap

nfckpt check my_nf:MyNf --seed 7 --json""")
def check(
    app_class: Annotated[str, typer.Argument(metavar="MODULE:CLASS", help="The network function, found as Python finds it here.")],
    pcap: Annotated[list[Path], typer.Option(help="Traffic of port 0; again for port 1, and so on. Otherwise made up.")] = [],  # noqa: B006
    args: Annotated[str, typer.Option(help="Arguments of the class, a JSON object.")] = "{}",
    cache: Annotated[list[str], typer.Option(help="An attribute that a takeover may lose: the app makes it again.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(min=0, help="The same seed does the same.")] = 0,
    as_json: Json = False,
) -> None:
    """Run a network function over traffic, kill it after every burst at every stage, and compare with an unkilled twin.

    Names what it keeps outside the arena, and clocks and chance that it reads around ctx. Exit code 1 when something was found.
    """
    import json

    from nfckpt.sim.check_nf import examine
    try:
        app_args = json.loads(args)
        if not isinstance(app_args, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise ConfigError(f"--args {args!r}: {e}", """a JSON object, '{"flows_max": 1024}'""") from None
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    report = examine(app_class, pcap or None, app_args=app_args, seed=seed, caches=cache)
    print(json.dumps(report.as_json()) if as_json else report.text())
    raise typer.Exit(0 if report.ok else 1)


# ── measurements ─────────────────────────────────────────────────────────────────────────────────

@app.command(epilog="""Examples:

nfckpt bench --quick

nfckpt bench checkpoints vs_redis --seconds 20

nfckpt bench failover --json

nfckpt bench --json > result.json""")
def bench(
    rows: Annotated[Optional[list[str]], typer.Argument(metavar="[ROWS…]", help="Rows, keys or groups of --list; all that are in no group without.")] = None,  # noqa: UP045
    quick: Annotated[bool, typer.Option("--quick", help="All rows in under a minute, with wider spreads.")] = False,
    seconds: Annotated[Optional[float], typer.Option(min=0.1, max=600.0, help="Measured time a row; 6 without.")] = None,  # noqa: UP045
    list_rows: Annotated[bool, typer.Option("--list", help="What can be measured, with targets; measures nothing.")] = False,
    as_json: Json = False,
) -> None:
    """What a checkpoint costs here: two arms in turn in one run, medians of their ratios, the limit beside each.

    Exit code 1 when a row failed or two arenas that should be equal are not; a missed target is none.
    """
    from nfckpt.bench import report
    if list_rows:
        report.listing(as_json)
        return
    raise typer.Exit(report.run(rows or [], seconds or (report.QUICK_S if quick else report.SECONDS), as_json))


# ── the machine ──────────────────────────────────────────────────────────────────────────────────

@app.command(epilog="""Examples:

nfckpt doctor

nfckpt doctor --device eth0 --json""")
def doctor(
    device: Annotated[Optional[str], typer.Option(help="A network device to look at as well.")] = None,  # noqa: UP045
    as_json: Json = False,
) -> None:
    """Try everything nfckpt needs of this machine, each with its remedy. Changes nothing."""
    from nfckpt.observe import doctor as rooms
    raise typer.Exit(rooms.run(as_json, device))


@app.command()
def version(as_json: Json = False) -> None:
    """Versions of nfckpt, its protocol, Python and the kernel."""
    import json
    import platform
    from importlib import metadata

    from nfckpt.wire.messages import PROTOCOL
    try:
        ours = metadata.version("nfckpt")
    except metadata.PackageNotFoundError:       # a checkout on PYTHONPATH
        ours = "0+checkout"
    body = {"nfckpt": ours, "protocol": PROTOCOL, "python": platform.python_version(), "kernel": platform.release()}
    print(json.dumps(body) if as_json else " · ".join(f"{name} {value}" for name, value in body.items()))


# ── testbed ──────────────────────────────────────────────────────────────────────────────────────

@testbed_app.command("up", epilog="""Examples:

nfckpt testbed up

ip netns exec nf-client ping 10.0.0.1""")
def testbed_up(prefix: Prefix = "nf") -> None:
    """Build it on this host, to stay until `down`. Needs root; `testbed run` does not."""
    from nfckpt.testbed.topology import ROLES, Testbed
    Testbed(prefix).up()
    print("up: " + " ".join(f"{prefix}-{role}" for role in ROLES))


@testbed_app.command("down", epilog="Example:\n\nnfckpt testbed down")
def testbed_down(prefix: Prefix = "nf") -> None:
    """Remove it again."""
    from nfckpt.testbed.topology import Testbed
    Testbed(prefix).down()


@testbed_app.command("clean", epilog="Example:\n\nnfckpt testbed clean")
def testbed_clean(prefix: Prefix = "nf") -> None:
    """Remove what a crash left: kills every process in the testbed's namespaces, then removes those."""
    from nfckpt.testbed.topology import clean
    gone = clean(prefix)
    print("removed: " + " ".join(gone) if gone else "nothing left over")


@testbed_app.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}, epilog="""Examples:

nfckpt testbed run -- bash

nfckpt testbed run -- sh -c 'ip netns exec nf-client ip address'""")
def testbed_run(command: Annotated[list[str], typer.Argument(metavar="-- CMD…", help="What to run.")], prefix: Prefix = "nf") -> None:
    """Bring it up in a private box, run a command there, and leave nothing. Works as an ordinary user too."""
    from nfckpt.testbed import box
    box.enter_box()
    import subprocess

    from nfckpt.testbed.topology import Testbed
    with Testbed(prefix):
        try:
            raise typer.Exit(subprocess.run(command, check=False).returncode)
        except OSError as e:
            raise ConfigError(f"cannot run {command[0]}: {e.strerror}", "write the command after --") from None


def _console(stderr: bool = False) -> Console:
    from rich.console import Console
    return Console(highlight=False, stderr=stderr)
