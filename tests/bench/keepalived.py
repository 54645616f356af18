"""Our NAT beside the one Linux ships with: the same testbed, traffic and deaths for nfckpt and for keepalived + conntrackd.

    python -m tests.bench.keepalived [--json] [--kills 3] [--advert 1,0.1,0.01]

Needs keepalived, conntrackd, conntrack, nftables, iproute2 (Debian's packages) and root. Runs in a box, whose end takes everything along.

Picture     arm after arm, each on a fresh testbed:  protected ─► traffic ─► ┌ run ─► death ─► other node serves ─► reboot ─► protected ┐ ─► add up
                                                                              └──────────────────── kills times ─────────────────────────┘
Arms        host, hosts     nfckpt's NAT in both profiles, default bounds
            1 s, 0.1 s, …   nftables NAT, conntrackd and keepalived with these adverts (keepalived_pair.py says how they are set up)
Death       of the serving node's machine, the same for all: its lan, wan and replication links stop forwarding within a millisecond,
            then SIGKILL to its daemons; theirs loses its flow table and addresses too, ours its packet process, and our
            witness hears nothing more from that node. Profile host means one kernel, so there the pair shares memory and the
            process's death is seen by the kernel: what a crash of the process costs, not that of a machine.
Figures     outage_ms       as Workload counts it, a kill each            udp_lost     frames of both directions, of udp_sent
            tcp_broken      of the long connections                       new_failed   of those opened meanwhile, of new_opened
            false_takeovers elections that no death asked for             ratio        median outage ÷ that of arm host, of arm hosts
            inexact         takeovers whose receipt says that frames may be missing: the standby's ring overflowed
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from nfckpt.bench.machine import machine, machine_line
from nfckpt.deploy.local import LocalPair
from nfckpt.errors import MachineError, NfckptError, ProtectionError
from nfckpt.failover.witness import Answer, Question
from nfckpt.testbed import procs
from nfckpt.testbed.box import enter_box
from nfckpt.testbed.demo import pair_config
from nfckpt.testbed.topology import Testbed, leftovers
from nfckpt.testbed.traffic import Load, Workload
from tests.bench.keepalived_pair import KernelNatPair, missing

APP = "nfckpt.native.nat:NativeNat"
OURS = ("host", "hosts")
RUN_S = 1.0
TAKEN_S_MAX, PROTECTED_S_MAX, LOOK_S = 15.0, 30.0, 0.02
PREFIX = "kd"
THEY_DO_WELL = (
    "frames stay in the kernel: no copy to a process, no core spent on polling, and the path scales over all cores",
    "no app to write, nothing to declare: NAT, firewall and routing of any nftables ruleset, IPv6 and VRRPv3 for IPv6 included",
    "as many backups as wanted, in any order of priority; ours has one standby at a time",
    "no delay on any frame in normal operation: nothing waits for a commit",
    "established TCP connections outlive the takeover: what is lost is sent again by their ends",
    "twenty years of production, in every distribution; BFD, scripts and tracked interfaces decide with it",
    "nodes need no mirror port, no packet loop and no witness",
)


class Arm(Protocol):
    """One way to keep a NAT alive on two nodes. A context manager: both nodes started inside, nothing left after."""

    @property
    def active(self) -> str: ...
    @property
    def false_takeovers(self) -> int: ...
    @property
    def inexact(self) -> int: ...           # takeovers that by their own receipt may have lost something
    def wait_protected(self) -> str: ...
    def kill(self) -> tuple[str, int]: ...
    def revive(self, node: str) -> None: ...


class MachinePair(LocalPair):
    """nfckpt, its nodes mortal as machines are: links and processes go at once, and the witness is not told."""

    def __init__(self, bed: Testbed, profile: str) -> None:
        super().__init__(pair_config(bed, profile, APP), on_event=self._note)
        self.bed, self.kills, self.inexact = bed, 0, 0
        self.dead: set[str] = set()

    def _ask(self, question: Question) -> Answer:
        if question.node in self.dead:
            raise MachineError(f"{question.node} has no way to the witness")
        return super()._ask(question)

    def __enter__(self) -> MachinePair:
        self.start()
        return self

    def _note(self, name: str, _: int, fields: dict[str, Any]) -> None:
        self.inexact += name == "receipt" and not fields["exact"]

    def wait_protected(self, timeout_s: float = PROTECTED_S_MAX, term: int = 0) -> str:
        """Until both nodes say so themselves. Returns the active's name."""
        deadline = time.monotonic() + timeout_s
        super().wait_protected(timeout_s, term)
        while time.monotonic() < deadline:
            nodes, node = self.status(), self.active
            if all(s.get("protected") for s in nodes.values()) and nodes[node]["role"] == "active":
                return node
            time.sleep(LOOK_S)
        raise ProtectionError(f"not protected within {timeout_s:.0f} s")

    @property
    def false_takeovers(self) -> int:
        return self.view().term - 1 - self.kills

    def kill(self) -> tuple[str, int]:
        node = self.active
        pid = procs.owner(self.bed.ns(node), "lan")
        self._term_min = self.view().term + 1
        t = time.monotonic_ns()
        self.dead.add(node)
        self.bed.links_down(node)
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        return node, t

    def revive(self, node: str) -> None:
        self.bed.links_up(node)
        self.dead.remove(node)


def measure(make: Callable[[Testbed, Path], AbstractContextManager[Arm]], kills: int, load: Load) -> dict[str, Any]:
    """One arm's figures. Raises NfckptError where the arm did not come up, take over or protect itself again."""
    with tempfile.TemporaryDirectory(prefix="keepalived-") as folder, Testbed(PREFIX) as bed, \
            make(bed, Path(folder) / "arm") as arm, Workload(bed, load) as work:
        arm.wait_protected()
        work.start()
        for _ in range(kills):
            time.sleep(RUN_S)
            arm.wait_protected()
            dead, t = arm.kill()
            work.mark_kill(t)
            deadline = time.monotonic() + TAKEN_S_MAX
            while arm.active in ("", dead):
                if time.monotonic() > deadline:
                    raise ProtectionError(f"{dead} died, and nobody took over within {TAKEN_S_MAX:.0f} s")
                time.sleep(LOOK_S)
            time.sleep(RUN_S)
            arm.revive(dead)
        arm.wait_protected()
        time.sleep(RUN_S)
        result = work.stop()
        false_takeovers, inexact = arm.false_takeovers, arm.inexact
    udp, tcp = (result["udp"], result["udp_reverse"]), result["tcp"]
    return {
        "valid": result["valid"], "kills": kills, "outage_ms": result["outage_ms"],
        "udp_sent": sum(way["sent"] for way in udp), "udp_lost": sum(way["lost"] for way in udp), "udp_doubled": sum(way["duplicated"] for way in udp),
        "tcp_long": load.tcp_connections, "tcp_broken": tcp["long_broken"],
        "new_opened": tcp["connections"] - load.tcp_connections, "new_failed": tcp["failed"] + tcp["reset"] - tcp["long_broken"],
        "false_takeovers": false_takeovers, "inexact": inexact,
    }


def arms(adverts: list[float]) -> dict[str, Callable[[Testbed, Path], AbstractContextManager[Arm]]]:
    """Name → how to make it, ours first."""
    def ours(profile: str) -> Callable[[Testbed, Path], AbstractContextManager[Arm]]:
        return lambda bed, _: MachinePair(bed, profile)

    def theirs(advert_s: float) -> Callable[[Testbed, Path], AbstractContextManager[Arm]]:
        return lambda bed, folder: KernelNatPair(bed, folder, advert_s)

    return {**{profile: ours(profile) for profile in OURS}, **{f"{a:g} s": theirs(a) for a in adverts}}


def compare(rows: dict[str, dict[str, Any]]) -> None:
    """Give every row its median and how many times ours it is, where both were measured."""
    for row in rows.values():
        row["outage_ms_p50"] = statistics.median(row["outage_ms"])
    for row in rows.values():
        row["ratio"] = {profile: round(row["outage_ms_p50"] / mine, 1) for profile in OURS
                        if profile in rows and (mine := rows[profile]["outage_ms_p50"]) > 0}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows for a reader."""
    head = f"{'':9}{'outage ms, a kill each':>34}{'UDP lost':>18}{'TCP broken':>12}{'new failed':>12}{'false':>7}{'÷ host':>9}{'÷ hosts':>9}"
    lines = [head]
    for name, row in rows.items():
        outages = ", ".join(f"{ms:,.1f}" for ms in row["outage_ms"])
        ratios = [f"{row['ratio'][profile]:,.1f}" if profile in row["ratio"] else "-" for profile in OURS]
        lines.append(f"{name:9}{outages:>34}{row['udp_lost']:>8,} of {row['udp_sent']:>6,}{row['tcp_broken']:>5} of {row['tcp_long']:>3}"
                     f"{row['new_failed']:>5} of {row['new_opened']:>3}{row['false_takeovers']:>7}{ratios[0]:>9}{ratios[1]:>9}"
                     + ("" if row["valid"] else "   invalid: a sink dropped frames")
                     + (f"   {row['inexact']} inexact, by their receipts" if row["inexact"] else ""))
    return "\n".join(lines)


def advert_list(text: str) -> list[float]:
    try:
        adverts = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: seconds, separated by commas") from None
    if not all(0.01 <= a <= 40.95 for a in adverts):
        raise argparse.ArgumentTypeError("VRRP version 3 has adverts of 0.01 to 40.95 s")
    return adverts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.keepalived", description="nfckpt beside keepalived + conntrackd")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--kills", type=int, default=3, help="machine deaths an arm")
    parser.add_argument("--advert", type=advert_list, default="1,0.1,0.01", help="keepalived's advert intervals in seconds")
    want = parser.parse_args()
    if want.kills < 1:
        parser.error("--kills: at least one")
    if missing():
        print(f"not installed here: {', '.join(missing())}. As root: apt-get install {' '.join(missing())}", file=sys.stderr)
        return 2
    enter_box()
    rows: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for name, make in arms(want.advert).items():
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows[name] = measure(make, want.kills, Load())
        except NfckptError as e:
            errors[name] = str(e)
    compare(rows)
    left = leftovers(PREFIX)
    if want.json:
        print(json.dumps({"machine": machine(), "rows": rows, "errors": errors, "they_do_well": THEY_DO_WELL, "leftovers": left}))
    else:
        print(machine_line(machine()))
        print(table(rows))
        print(*(f"{name}: {why}" for name, why in errors.items()), sep="\n", end="\n" if errors else "")
        print("What they do well:", *(f"  - {line}" for line in THEY_DO_WELL), sep="\n")
        print(f"left over: {', '.join(left) or 'nothing'}")
    return 1 if errors or left or not all(row["valid"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
