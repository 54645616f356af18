"""Topology: client and server with two nodes between them, each hub, host and node in a namespace of its own.

                      hub_lan           nodes           hub_wan
    client eth0 ────── [client]                          [server] ────── eth0 server
    10.0.0.2/24        [ a ] ─────── lan  a  wan ─────── [ a ]           198.51.100.2/24
    gw 10.0.0.1        [ b ] ──┐         rep         ┌── [ b ]
                               │          │          │
                               │        [ a ]        │                   a rep 10.99.0.1/24
                               │        hub_rep      │                   b rep 10.99.0.2/24
                               │        [ b ]        │
                               │          │          │
                               │         rep         │
                               └─── lan   b   wan ───┘

The hubs are bridges that learn nothing and flood everything: both nodes see every frame. `Testbed(segment="switch")` puts learning
switches in their places: a frame goes where its address was last seen, and the nodes' two ports mirror each other (filters.py), so that the
standby gets its copy, or, with "bare", do not: then only the active gets what is sent to the pair. A takeover moves the pair's virtual MAC to the other port by what the new active announces. `where` asks. The
nodes' `lan` and `wan` have no address, no ARP, no IPv6, and are promiscuous: their kernels answer nothing, only the
network function does. `rep` is an ordinary interface. The client's other addresses are 10.0.0.3 to .9. The server knows its own subnet only, so
what reaches it must come from 198.51.100.1, the address of the network function.

Promises    T1 all offloads are off on every device that a packet socket may see: all but `rep` (read back).
            T2 nothing but the endpoints sends by itself.
            T3 `down` stops the hubs first: whoever still holds a port reaches nobody from then on.
            T4 two testbeds with different prefixes do not meet.
            T5 on a switch, a port that is cut loses what was learned there, as one whose cable is pulled does.
"""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

from nfckpt.errors import ConfigError, MachineError
from nfckpt.testbed import netns, procs
from nfckpt.testbed.filters import mirror, shut

__all__ = [
    "CLIENT_IPS", "GATEWAY_IP", "LINKS", "NAT_IP", "NODES", "REP_IPS", "ROLES", "SERVER_IP", "Segment", "Testbed", "clean", "leftovers",
]

Segment = Literal["hub", "switch", "bare"]
AGEING_CS = 300_00      # a learned address is forgotten after 300 s of silence (IEEE 802.1D's default)
NUD_PERMANENT = 0x80    # an entry of a port itself, not learned
ROLES = ("client", "hub_lan", "a", "hub_rep", "b", "hub_wan", "server")
NODES = ("a", "b")
CLIENT_IPS = tuple(f"10.0.0.{i}" for i in range(2, 10))
GATEWAY_IP, NAT_IP, SERVER_IP = "10.0.0.1", "198.51.100.1", "198.51.100.2"
REP_IPS = {"a": "10.99.0.1", "b": "10.99.0.2"}
# link -> (hub, its port). A link is cut by the hub no longer forwarding there: at once, both ways, and the carrier
# stays, as when a switch further on dies; so nobody can learn of a death from a link light. (An interface set down and
# up again forwards only when the kernel's link watch and neighbour retries get to it, 1 to 2 s later.)
LINKS = {
    "client": ("hub_lan", "client"), "server": ("hub_wan", "server"),
    **{f"{node}.{device}": (f"hub_{device}", node) for node in NODES for device in ("lan", "wan", "rep")},
}


class Testbed:
    """One testbed. `with Testbed() as bed:` brings it up and takes it down; `prefix` lets several run at once. `segment`: what lan
    and wan are.

    Runs in a box or, as root, on the host, where it stays until `down` or `clean(prefix)`.
    """

    __test__ = False    # pytest: not a test class

    def __init__(self, prefix: str = "nf", segment: Segment = "hub") -> None:
        _names(prefix)
        if segment not in ("hub", "switch", "bare"):
            raise ConfigError(f"no segment {segment!r}", 'use "hub", "switch" (learning, with a mirror between the nodes) or "bare" (without)')
        self.prefix, self.segment = prefix, segment

    def __enter__(self) -> Testbed:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    def ns(self, role: str) -> str:
        """Name of the namespace of `role`, one of ROLES."""
        if role not in ROLES:
            raise ConfigError(f"no {role!r} in the testbed", f"one of {', '.join(ROLES)}")
        return f"{self.prefix}-{role}"

    def is_up(self) -> bool:
        return set(_names(self.prefix)) <= set(netns.listing())

    def up(self) -> None:
        """Build it, about 70 ms. Raises MachineError when it, or a part left over, exists; leaves nothing if it fails."""
        made: list[str] = []
        try:
            for name in _names(self.prefix):
                netns.create(name)
                made.append(name)
            self._hub("hub_lan", {"client": "eth0", "a": "lan", "b": "lan"})
            self._hub("hub_wan", {"server": "eth0", "a": "wan", "b": "wan"})
            self._hub("hub_rep", {"a": "rep", "b": "rep"})
            for node in NODES:
                netns.run_in(self.ns(node), _set_up_node, REP_IPS[node])
            netns.run_in(self.ns("client"), _set_up_host, CLIENT_IPS, GATEWAY_IP)
            netns.run_in(self.ns("server"), _set_up_host, (SERVER_IP,), None)
        except BaseException as error:
            for name in made:
                netns.remove(name)
            if type(error).__name__ == "NetlinkError":      # pyroute2 is not imported before it is needed
                raise MachineError(f"no testbed: {error}", "needs veth and bridge in the kernel: see `nfckpt doctor`") from error
            raise

    def down(self) -> None:
        """Stop the hubs, remove the namespaces; 5 ms. Idempotent, and works on a testbed another process brought up."""
        there = set(netns.listing())
        for role in "hub_lan", "hub_wan", "hub_rep":
            if self.ns(role) in there:
                with suppress(MachineError, OSError):   # a name without namespace or hub, from an `up` that was killed
                    netns.run_in(self.ns(role), netns.set_flags, "hub", off=netns.UP)
        for name in _names(self.prefix):
            netns.remove(name)

    def cut(self, link: str) -> None:
        """Nothing passes one of LINKS any more, in neither direction, from now on. 0.3 ms."""
        self._switch(link, up=False)

    def mend(self, link: str) -> None:
        """Let it pass again."""
        self._switch(link, up=True)

    def unplug(self, link: str) -> None:
        """Pull the cable of one of LINKS: nothing passes, and both ends lose carrier."""
        self._plug(link, up=False)

    def plug(self, link: str) -> None:
        """Put it back: carrier at once, frames when the kernel's link watch gets to it, 1 to 2 s later."""
        self._plug(link, up=True)

    def links_down(self, node: str) -> None:
        """The network side of a machine death: all links of `node` go, within a millisecond, and nothing says goodbye."""
        for link in _links_of(node):
            self._switch(link, up=False)

    def links_up(self, node: str) -> None:
        """Plug the node in again."""
        for link in _links_of(node):
            self._switch(link, up=True)

    def _plug(self, link: str, up: bool) -> None:
        hub, port = _end(link)
        netns.run_in(self.ns(hub), netns.set_flags, port, on=netns.UP if up else 0, off=0 if up else netns.UP)
    def where(self, mac: str) -> dict[str, str]:
        """Which port each switch has learned a MAC at, as {"lan": "a", "wan": "a"}; a segment that has not, and a hub, are left out."""
        return {name: port for name in ("lan", "wan") if (port := netns.run_in(self.ns(f"hub_{name}"), _learned, mac.lower()))}

    def _switch(self, link: str, up: bool) -> None:
        hub, port = _end(link)
        netns.run_in(self.ns(hub), netns.set_bridge_port, port, up)
        if self.segment == "switch" and hub != "hub_rep":
            netns.run_in(self.ns(hub), shut, port, not up)

    def _hub(self, hub: str, plugs: dict[str, str]) -> None:
        learns = self.segment != "hub" and hub != "hub_rep"
        netns.run_in(self.ns(hub), _set_up_hub, {role: (self.ns(role), device, _mac(role, device)) for role, device in plugs.items()}, learns)
        if learns and self.segment == "switch":
            netns.run_in(self.ns(hub), mirror, *NODES)


def leftovers(prefix: str = "nf") -> list[str]:
    """Namespaces of a testbed that exist now: all of them while it is up, some after a crash, none otherwise."""
    there = set(netns.listing())
    return [name for name in _names(prefix) if name in there]


def clean(prefix: str = "nf") -> list[str]:
    """Kill every process in the testbed's namespaces, or with a packet socket there, and remove them. Returns what went.

    For after a crash outside a box; inside one, nothing is ever left.
    """
    names = leftovers(prefix)
    victims = {pid for name in names for pid in procs.members(name)} - {os.getpid()}
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 1.0
    while any(os.path.exists(f"/proc/{pid}/fd/0") for pid in victims) and time.monotonic() < deadline:
        time.sleep(0.005)
    Testbed(prefix).down()
    return names + [f"pid {pid}" for pid in sorted(victims)]


def _names(prefix: str) -> list[str]:
    if not re.fullmatch(r"[a-z0-9]{1,16}", prefix):
        raise ConfigError(f"testbed prefix {prefix!r}", "1 to 16 lower-case letters and digits")
    return [f"{prefix}-{role}" for role in ROLES]


def _end(link: str) -> tuple[str, str]:
    if link not in LINKS:
        raise ConfigError(f"no link {link!r} in the testbed", f"one of {', '.join(LINKS)}")
    return LINKS[link]


def _links_of(node: str) -> list[str]:
    if node not in NODES:
        raise ConfigError(f"no node {node!r} in the testbed", "a or b")
    # rep first: over it a node would still say what left by ports that are cut, and be believed
    return [f"{node}.rep", f"{node}.wan", f"{node}.lan"]


def _mac(role: str, device: str) -> str:
    """Fixed, locally administered: a capture can be read, and two runs compared."""
    return f"02:00:00:00:{ROLES.index(role):02x}:{('eth0', 'lan', 'wan', 'rep').index(device):02x}"


# What follows runs on a helper thread inside the namespace it sets up.


def _route() -> Any:
    from pyroute2 import IPRoute  # 0.16 s: not paid by commands that build nothing
    return IPRoute()


def _index(ip: Any, device: str) -> int:
    return int(ip.link_lookup(ifname=device)[0])


def _cable(device: str, other: str, other_device: str, other_mac: str) -> None:
    """A veth from here, `device`, to `other_device` in namespace `other`."""
    fd = os.open(netns.NETNS_DIR / other, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _route() as ip:
            ip.link("add", ifname=device, kind="veth", peer={"ifname": other_device, "address": other_mac, "net_ns_fd": fd})
    finally:
        os.close(fd)


def _learned(mac: str) -> str:
    """The port of the bridge in this namespace where `mac` was last seen; "" where it was not."""
    with _route() as ip:
        names = {link["index"]: link.get("ifname") for link in ip.get_links()}
        for entry in ip.fdb("dump"):
            if entry.get("lladdr") == mac and entry.get("master") and not entry["state"] & NUD_PERMANENT:
                return str(names[entry["ifindex"]])
    return ""


def _set_up_hub(plugs: dict[str, tuple[str, str, str]], learns: bool) -> None:
    with _route() as ip:
        ip.link("add", ifname="hub", kind="bridge", br_stp_state=0, br_ageing_time=AGEING_CS if learns else 0, br_mcast_snooping=0)
        for table in "iptables", "ip6tables", "arptables":     # on, they drop frames whose IP header they dislike
            netns.sysctl(f"net/bridge/bridge-nf-call-{table}", 0)
        hub = _index(ip, "hub")
        ip.link("set", index=hub, state="up")
        for device, (other, other_device, mac) in plugs.items():
            _cable(device, other, other_device, mac)
            if other_device != "rep":
                netns.offloads_off(device)
            port = _index(ip, device)
            ip.link("set", index=port, master=hub, state="up")
            ip.brport("set", index=port, learning=int(learns), unicast_flood=1, mcast_flood=1, bcast_flood=1)


def _set_up_node(rep_ip: str) -> None:
    netns.set_flags("lo", netns.UP)
    netns.sysctl("net/ipv4/ip_forward", 0)      # a new namespace may inherit 1, and would answer with ICMP errors
    for device in "lan", "wan":
        netns.offloads_off(device)
        netns.set_flags(device, netns.UP | netns.NOARP | netns.PROMISC)
    netns.set_flags("rep", netns.UP)
    with _route() as ip:
        ip.addr("add", index=_index(ip, "rep"), address=rep_ip, prefixlen=24)


def _set_up_host(addresses: tuple[str, ...], gateway: str | None) -> None:
    netns.set_flags("lo", netns.UP)
    netns.offloads_off("eth0")
    netns.set_flags("eth0", netns.UP)
    with _route() as ip:
        for address in addresses:
            ip.addr("add", index=_index(ip, "eth0"), address=address, prefixlen=24)
        if gateway:
            ip.route("add", dst="default", gateway=gateway)
