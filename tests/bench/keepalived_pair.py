"""A NAT as Linux ships it: nftables in the kernel, conntrackd carries its table over, keepalived says who; on the testbed's nodes.

    with Testbed("kd") as bed, KernelNatPair(bed, folder, advert_s=0.1) as pair:
        pair.wait_protected()
        dead, t_ns = pair.kill()        # the machine of the master dies
        pair.revive(dead)               # it boots again, empty

    lan 10.0.0.11, .12   ── VIP 10.0.0.1 ──┐                ┌── VIP 198.51.100.1 ──   wan 198.51.100.11, .12
                          VRRP 51, advert_s │ one sync group │ VRRP 52, advert_s
                                            └─ notify script: commit, flush, resync, bulk ─► conntrackd ─ FTFW over rep ─► peer

The configuration is the one a careful operator would write, and where the manuals leave a choice, the one that favours them:
the sync group moves both addresses together; `nopreempt` spares the second switch when a machine comes back; priorities near 255
keep the skew small; keepalived runs with real-time priority and locked memory, as its manual advises for sub-second
adverts (with its default limit of 10 ms of real time the kernel kills it on a busy core); conntrackd accepts a whole flow table in its queues and syncs UDP too; the firewall drops what has no state yet, so that neither a
RST nor an ICMP error answers a frame which arrives between the switch of the address and the commit of the table.
Sources: keepalived.conf(5), conntrackd.conf(5), Debian's examples of conntrackd (sync/ftfw, primary-backup.sh).

Promises    K1 a death: all links of the node cut at once, then SIGKILL to every process in its namespace, so nothing says goodbye.
            K2 a reboot: no process, no flow table, no virtual address is left from before; links first, then the daemons.
            K3 leaving it ends every process it started.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from nfckpt.errors import MachineError, ProtectionError
from nfckpt.testbed import netns, procs
from nfckpt.testbed.topology import GATEWAY_IP, NAT_IP, NODES, REP_IPS, Testbed

__all__ = ["PACKAGES", "KernelNatPair", "conntrackd_conf", "keepalived_conf", "missing", "notify_script", "ruleset"]

PACKAGES = {"keepalived": "keepalived", "conntrackd": "conntrackd", "conntrack": "conntrack", "nft": "nftables", "ip": "iproute2"}
OWN = {"a": ("10.0.0.11", "198.51.100.11"), "b": ("10.0.0.12", "198.51.100.12")}
PRIORITY = {"a": 250, "b": 240}
PROTECTED_S_MAX = 30.0
LOOK_S = 0.05


def missing() -> list[str]:
    """Debian packages to install before this can run; empty where all programs are there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted({package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None})


def ruleset() -> str:
    """nftables: source NAT, a stateful firewall, nothing said to frames without state. The same on both nodes."""
    return f"""\
table inet nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 10.0.0.0/24 oifname "wan" snat ip to {NAT_IP}
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan" oifname "wan" meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn ct state new accept
        iifname "lan" oifname "wan" meta l4proto != tcp ct state new accept
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname {{ "lo", "rep" }} accept
        ip protocol vrrp accept
        icmp type echo-request accept
    }}
}}
"""


def keepalived_conf(node: str, advert_s: float, script: Path) -> str:
    """keepalived.conf of `node`. `advert_s`: VRRP version 3 counts in hundredths, 0.01 is the least."""
    def instance(device: str, router: int, vip: str) -> str:
        return f"""\
vrrp_instance {device} {{
    state BACKUP
    nopreempt
    interface {device}
    virtual_router_id {router}
    priority {PRIORITY[node]}
    advert_int {advert_s:g}
    virtual_ipaddress {{
        {vip}/24 dev {device}
    }}
}}
"""
    return f"""\
global_defs {{
    router_id {node}
    script_user root
    enable_script_security
    vrrp_version 3
    vrrp_rt_priority 50
    vrrp_rlimit_rttime 1000000
    vrrp_no_swap
    vrrp_garp_master_delay 1
    vrrp_garp_master_repeat 5
    vrrp_garp_master_refresh 10
}}
vrrp_sync_group nat {{
    group {{
        lan
        wan
    }}
    notify_master "{script} primary"
    notify_backup "{script} backup"
    notify_fault "{script} fault"
}}
{instance("lan", 51, GATEWAY_IP)}{instance("wan", 52, NAT_IP)}"""


def conntrackd_conf(node: str, folder: Path) -> str:
    """conntrackd.conf of `node`: FTFW (reliable) over the replication link; lock, log and socket in `folder`."""
    peer = NODES[1 - NODES.index(node)]
    own = "".join(f"            IPv4_address {a}\n" for a in (
        "127.0.0.1", GATEWAY_IP, NAT_IP, *REP_IPS.values(), *(a for both in OWN.values() for a in both)))
    return f"""\
Sync {{
    Mode FTFW {{
        ResendQueueSize 131072
        ACKWindowSize 300
        CommitTimeout 180
        PurgeTimeout 60
        StartupResync yes
    }}
    UDP {{
        IPv4_address {REP_IPS[node]}
        IPv4_Destination_Address {REP_IPS[peer]}
        Port 3780
        Interface rep
        SndSocketBuffer 4194304
        RcvSocketBuffer 4194304
        Checksum on
    }}
}}
General {{
    Systemd no
    Scheduler {{
        Type RR
        Priority 40
    }}
    HashSize 32768
    HashLimit 131072
    LogFile {folder}/conntrackd.log
    Syslog off
    LockFile {folder}/conntrackd.lock
    UNIX {{
        Path {folder}/conntrackd.ctl
    }}
    NetlinkBufferSize 2097152
    NetlinkBufferSizeMaxGrowth 8388608
    NetlinkEventsReliable on
    Filter From Kernelspace {{
        Protocol Accept {{
            TCP
            UDP
            ICMP
        }}
        Address Ignore {{
{own}        }}
    }}
}}
"""


def notify_script(node: str, folder: Path, log: Path) -> str:
    """Debian's primary-backup.sh, and one line "node state" a transition in `log`."""
    ask = f"conntrackd -C {folder}/conntrackd.conf"
    return f"""\
#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
echo "{node} $1" >> {log}
case "$1" in
primary)
    {ask} -c            # commit what the peer told us into the kernel
    {ask} -f            # forget it here
    {ask} -R            # take the kernel's table in as ours
    {ask} -B            # and tell it to the backup
    ;;
backup)
    {ask} -t            # let what is left in the kernel age soon
    {ask} -n            # ask the master for its table
    ;;
fault)
    {ask} -t
    ;;
esac >> {folder}/notify.log 2>&1
echo "{node} $1-done" >> {log}
"""


class KernelNatPair:
    """Both nodes of an upped `bed`. `folder`: an empty one, for configurations and logs. One thread calls."""

    inexact = 0         # it promises nothing about frames, and writes no receipt

    def __init__(self, bed: Testbed, folder: Path, advert_s: float) -> None:
        self.bed, self.advert_s = bed, advert_s
        self.log = folder / "transitions"
        self.folders = {node: folder / node for node in NODES}
        self.dead: set[str] = set()
        self.kills = 0
        self._children: dict[str, list[subprocess.Popen[bytes]]] = {node: [] for node in NODES}

    def __enter__(self) -> KernelNatPair:
        if missing():
            raise MachineError(f"not installed here: {', '.join(missing())}", f"apt-get install {' '.join(missing())}")
        try:
            for node in NODES:
                self._prepare(node)
            for node in NODES:
                self._boot(node)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def transitions(self) -> list[str]:
        """"a primary", "a primary-done", "b backup", …: what the notify scripts wrote, in order."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def false_takeovers(self) -> int:
        """Elections of a master that no death asked for; the first one had to be."""
        return sum(line.endswith(" primary") for line in self.transitions()) - 1 - self.kills

    @property
    def active(self) -> str:
        """The living node that holds both virtual addresses; "" while none or both do."""
        holders = [node for node in NODES if node not in self.dead and all(vip in self._run(node, "ip", "-o", "-4", "addr") for vip in (f" {GATEWAY_IP}/", f" {NAT_IP}/"))]
        return holders[0] if len(holders) == 1 else ""

    def wait_protected(self) -> str:
        """Until one node is master and has told its flow table to the other one. Returns the master's name. Raises
        ProtectionError."""
        deadline = time.monotonic() + PROTECTED_S_MAX
        seen = "no master"
        while time.monotonic() < deadline:
            if node := self.active:
                own, told = self._cache(node, "internal"), self._cache(NODES[1 - NODES.index(node)], "external")
                if f"{node} primary-done" in self.transitions() and told >= 0.95 * own:
                    return node
                seen = f"{node} is master with {own} flows, its peer was told {told}"
            time.sleep(LOOK_S)
        raise ProtectionError(f"keepalived and conntrackd: not protected within {PROTECTED_S_MAX:.0f} s: {seen}",
                              f"{self.folders['a'].parent} has their logs")

    def kill(self) -> tuple[str, int]:
        """The master's machine dies. Returns its name and when, CLOCK_MONOTONIC ns. Raises ProtectionError where none is master."""
        node = self.active
        if not node:
            raise ProtectionError("no master, or two, now", "wait_protected() first")
        victims = self._processes(node)
        t = time.monotonic_ns()
        self.bed.links_down(node)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        self.dead.add(node)
        self.kills += 1
        return node, t

    def revive(self, node: str) -> None:
        """It boots: nothing of its former life is left; links, then daemons."""
        self._stop(node)
        self._run(node, "conntrack", "-F")
        for device, vip in ("lan", GATEWAY_IP), ("wan", NAT_IP):
            if f" {vip}/" in self._run(node, "ip", "-o", "-4", "addr", "show", "dev", device):
                self._run(node, "ip", "addr", "del", f"{vip}/24", "dev", device)
        self.bed.links_up(node)
        self.dead.remove(node)
        self._boot(node)

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self, node: str) -> None:
        folder = self.folders[node]
        folder.mkdir(parents=True)
        script = folder / "notify.sh"
        script.write_text(notify_script(node, folder, self.log))
        script.chmod(stat.S_IRWXU)
        (folder / "keepalived.conf").write_text(keepalived_conf(node, self.advert_s, script))
        (folder / "conntrackd.conf").write_text(conntrackd_conf(node, folder))
        (folder / "nat.nft").write_text(ruleset())
        netns.run_in(self.bed.ns(node), _route_here)
        for device, address in zip(("lan", "wan"), OWN[node], strict=True):
            self._run(node, "ip", "addr", "add", f"{address}/24", "dev", device)
        self._run(node, "nft", "-f", str(folder / "nat.nft"))

    def _boot(self, node: str) -> None:
        folder = self.folders[node]
        for left in "conntrackd.lock", "conntrackd.ctl", "keepalived.pid", "vrrp.pid":
            (folder / left).unlink(missing_ok=True)
        self._start(node, "conntrackd", "-C", str(folder / "conntrackd.conf"))
        deadline = time.monotonic() + 5.0
        while not (folder / "conntrackd.ctl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._start(node, "keepalived", "--dont-fork", "--vrrp", "--log-console", "--use-file", str(folder / "keepalived.conf"),
                    "--pid", str(folder / "keepalived.pid"), "--vrrp_pid", str(folder / "vrrp.pid"))

    def _start(self, node: str, *argv: str) -> None:
        with open(self.folders[node] / f"{argv[0]}.out", "ab") as out:
            child = netns.popen_in(self.bed.ns(node), [_program(argv[0]), *argv[1:]], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self._children[node].append(child)

    def _processes(self, node: str) -> list[int]:
        return [pid for pid in procs.members(self.bed.ns(node)) if pid != os.getpid()]

    def _stop(self, node: str) -> None:
        for pid in self._processes(node):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while self._children[node]:
            self._children[node].pop().wait()

    def _end(self) -> None:
        for node in NODES:
            self._stop(node)

    def _cache(self, node: str, which: str) -> int:
        lines = self._run(node, "conntrackd", "-C", str(self.folders[node] / "conntrackd.conf"), "-s", check=False).splitlines()
        for head, line in itertools.pairwise(lines):
            if head.startswith(f"cache {which}"):
                return int(line.split()[-1])        # "current active connections:  1234"
        return -1

    def _run(self, node: str, *argv: str, check: bool = True) -> str:
        done = netns.run_in(self.bed.ns(node), _output, argv)
        if check and done.returncode:
            raise MachineError(f"{' '.join(argv)} on {node}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


def _program(name: str) -> str:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or name


def _output(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_program(argv[0]), *argv[1:]], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def _route_here() -> None:
    """Make the node of the calling thread's namespace a router: what the testbed's own nodes must not be."""
    for device in "lan", "wan":
        netns.set_flags(device, off=netns.NOARP | netns.PROMISC)
    for path, value in {
        "net/ipv4/ip_forward": 1, "net/ipv4/conf/all/send_redirects": 0, "net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2,
        "net/ipv4/conf/default/send_redirects": 0, "net/ipv4/conf/lan/send_redirects": 0, "net/ipv4/conf/wan/send_redirects": 0,
        "net/netfilter/nf_conntrack_tcp_loose": 0,          # no flow is taken up half way: it waits for the committed table
        "net/netfilter/nf_conntrack_tcp_be_liberal": 1,     # and its window is then not known
    }.items():
        netns.sysctl(path, value)
