"""Firewall: stateful, transparent. Frames pass unchanged between inside and outside, or not at all.

    Firewall(allow=["tcp 10.0.0.5/32 22", "udp 10.0.0.0/24 5000-5010", "icmp 10.0.0.0/24"])

Picture     inside -> outside     opens a session: TCP by its SYN, UDP, ping
            outside -> inside     passes where a session knows it, or an `allow` rule names its destination
            both ways             ARP, neighbour discovery, ICMP errors about a session, ICMPv6 errors (RFC 4890, 4.3.1)

IPv4 and IPv6. Timeouts and TCP phases are those of the NAT. Later fragments carry no ports and are dropped and counted:
a network that needs them wants path MTU discovery to work, which this firewall lets through. Tagged frames are judged
by what they carry. Rules live in `state.rules` and so survive with the sessions; `set_rules` replaces them at run time:
`ctx.call_soon(lambda: firewall.set_rules([...]))`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nfckpt.apps.tcp_phase import STEP, is_established, opens, tcp_step
from nfckpt.errors import ConfigError
from nfckpt.native.rewrite import quoted
from nfckpt.nf import Context, NetworkFunction

if TYPE_CHECKING:
    from nfckpt.native.burst import Burst
    from nfckpt.state.state import State

__all__ = ["COUNTERS", "Firewall", "parse_rule"]

INSIDE = 0
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMP6)}
KEY = np.dtype([("in_ip", "u1", 16), ("out_ip", "u1", 16), ("in_port", "u2"), ("out_port", "u2"), ("proto", "u4")])
SESSION = np.dtype([("tcp", "u8")])
ECHO = [8, 128]
COUNTERS = ["passed_out", "passed_in", "passed_always", "malformed", "fragments", "not_opening", "refused", "no_room",
            "unknown_protocol", "opened", "expired"]
OUT, IN, ALWAYS, MALFORMED, FRAGMENT, NOT_OPENING, REFUSED, NO_ROOM, UNKNOWN, OPENED, EXPIRED = range(11)
ESTABLISHED_NS, TRANSITORY_NS, UDP_NS, ICMP_NS = 7440 * 10**9, 240 * 10**9, 300 * 10**9, 60 * 10**9
SWEEP = 1024

Rule = tuple[tuple[int, ...], int, int, int, int, int]      # protocols, IP version, network, mask, first and last port


def parse_rule(text: str) -> Rule:
    """"tcp 10.0.0.5/32 22-25": protocol, destination, ports (none for icmp). Raises ConfigError."""
    try:
        kind, net, *ports = text.split()
        network = ipaddress.ip_network(net)
        lo, hi = (int(p) for p in (ports[0].split("-") * 2)[:2]) if ports else (0, 65535)
        if kind not in PROTOCOLS or len(ports) != (kind != "icmp") or not 0 <= lo <= hi <= 65535:
            raise ValueError
    except ValueError:
        raise ConfigError(f"rule {text!r}", 'write "tcp 10.0.0.5/32 22-25", "udp …" or "icmp 10.0.0.0/24"') from None
    return PROTOCOLS[kind], network.version, int(network.network_address), int(network.netmask), lo, hi


class Firewall(NetworkFunction):
    """Two ports, frames unchanged. `allow`: rules that stand when the state is new; afterwards the state's own hold."""

    ports = ("inside", "outside")
    tick_ms = 10
    declares_ahead = True

    def __init__(self, allow: Sequence[str] = (), flows_max: int = 65536) -> None:
        for rule in allow:
            parse_rule(rule)
        self._allow, self.flows_max = list(allow), flows_max
        self._generation, self._rules = -1, list[Rule]()

    def declare(self, state: State) -> None:
        self.counters = state.counters("firewall", COUNTERS)
        self.sessions = state.flow_table("sessions", capacity=self.flows_max, key_bytes=KEY.itemsize, value=SESSION)
        self.rules = state.values("rules", max_bytes=65536)
        if self.rules.generation == 0:
            self.set_rules(self._allow)

    def set_rules(self, allow: Sequence[str]) -> None:
        """Replace the rules. Sessions that stand go on. Raises ConfigError for a rule it cannot read."""
        for rule in allow:
            parse_rule(rule)
        self.rules.replace({"allow": list(allow)})

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        b, now = burst, ctx.now_ns
        outbound = b.port == INSIDE
        fate = np.full(len(b), -1, np.int64)
        discovery = (b.proto == ICMP6) & (b.ip_version == 6) & np.isin(b.icmp_type, [1, 2, 3, 4, 133, 134, 135, 136, 137])
        fate[(b.eth_type == 0x0806) | discovery] = ALWAYS
        fate[b.malformed != 0] = MALFORMED
        fate[(fate < 0) & (b.ip_version == 0)] = UNKNOWN
        fate[(fate < 0) & (b.frag == 2)] = FRAGMENT
        keys = self._keys(b, outbound)
        slots = self.sessions.find(keys)
        phase = self.sessions.values["tcp"][slots].astype(np.intp)
        changes = (b.proto == TCP) & (STEP[outbound.astype(np.intp), phase & 31, b.tcp_flags & 31] != phase)
        known = (fate < 0) & (slots >= 0) & ~np.isin(slots, slots[changes & (slots >= 0)])
        self.sessions.touch(slots[known], now)
        fate[known] = np.where(outbound[known], OUT, IN)
        opened = 0
        for i in np.flatnonzero(fate < 0).tolist():         # in order: these change state
            fate[i], new = self._one(b, i, keys[i:i + 1], bool(outbound[i]), now)
            opened += new
        passed = fate <= ALWAYS
        b.drop(~passed)
        b.send(passed, 1 - b.port[passed])
        counts = np.bincount(fate, minlength=len(COUNTERS))
        counts[OPENED] += opened
        which = np.flatnonzero(counts)
        self.counters.add(which, counts[which])

    def _keys(self, b: Burst, outbound: NDArray[np.bool_]) -> NDArray[Any]:
        key = np.zeros(len(b), KEY)
        four, six, out = b.ip_version == 4, b.ip_version == 6, outbound
        src, dst = np.zeros((len(b), 16), np.uint8), np.zeros((len(b), 16), np.uint8)
        for to, ip4, ip6 in ((src, b.src_ip, b.src_ip6), (dst, b.dst_ip, b.dst_ip6)):
            to[four, :4] = ip4[four].astype(">u4").view(np.uint8).reshape(-1, 4)
            to[six] = ip6[six]
        ping = (b.proto == ICMP) | (b.proto == ICMP6)
        key["in_ip"], key["out_ip"] = np.where(out[:, None], src, dst), np.where(out[:, None], dst, src)
        key["in_port"] = np.where(out, b.src_port, b.dst_port)
        key["out_port"] = np.where(ping, 0, np.where(out, b.dst_port, b.src_port))
        key["proto"] = b.proto
        return key

    def _one(self, b: Burst, i: int, key: NDArray[Any], outbound: bool, now: int) -> tuple[int, int]:
        """(fate, sessions opened) of a frame that no unchanging session knows."""
        proto, flags, kind = int(b.proto[i]), int(b.tcp_flags[i]), int(b.icmp_type[i])
        slot = int(self.sessions.find(key)[0])
        opened = 0
        if slot < 0:
            if proto not in (TCP, UDP, ICMP, ICMP6):
                return UNKNOWN, 0
            if proto == ICMP and kind in (3, 4, 11, 12):
                return (OUT if outbound else IN, 0) if self._quotes_a_session(b, i, outbound) else (REFUSED, 0)
            if (proto == TCP and not opens(flags)) or (proto in (ICMP, ICMP6) and kind not in ECHO):
                return NOT_OPENING, 0
            if not outbound and not self._allowed(b, i, proto):
                return REFUSED, 0
            slot = int(self.sessions.insert(key, now)[0][0])
            if slot < 0:
                return NO_ROOM, 0
            opened = 1
            self.sessions.set_timeout(slot, {TCP: TRANSITORY_NS, UDP: UDP_NS}.get(proto, ICMP_NS))
        self.sessions.touch(slot, now)
        if proto == TCP:
            before = self.sessions.values["tcp"].item(slot)
            phase = tcp_step(before, flags, outbound)
            if phase != before:
                self.sessions.put(slot, np.array([(phase,)], SESSION))
                self.sessions.set_timeout(slot, ESTABLISHED_NS if is_established(phase) else TRANSITORY_NS)
        return (OUT if outbound else IN), opened

    def _quotes_a_session(self, b: Burst, i: int, outbound: bool) -> bool:
        """The packet in an ICMP error went the other way: its source is on the side the error goes to."""
        q = quoted(b, i)
        if q is None:
            return False
        proto, src, sport, dst, dport = q
        key = np.zeros(1, KEY)
        inner, outer = ((dst, dport), (src, sport)) if outbound else ((src, sport), (dst, dport))
        for name, (ip, port) in (("in", inner), ("out", outer)):
            key[f"{name}_ip"][0, :4] = list(ip.to_bytes(4, "big"))
            key[f"{name}_port"] = 0 if proto == ICMP and name == "out" else port
        key["proto"] = proto
        return bool(self.sessions.find(key)[0] >= 0)

    def _allowed(self, b: Burst, i: int, proto: int) -> bool:
        """A rule names this packet's destination."""
        if self._generation != self.rules.generation:       # also after a takeover, where it may have changed unseen
            self._rules = [parse_rule(r) for r in self.rules["allow"]]
            self._generation = self.rules.generation
        version, port = int(b.ip_version[i]), int(b.dst_port[i])
        dst = int(b.dst_ip[i]) if version == 4 else int.from_bytes(b.dst_ip6[i].tobytes(), "big")
        return any(proto in p and version == v and dst & mask == net and (proto in (ICMP, ICMP6) or lo <= port <= hi)
                   for p, v, net, mask, lo, hi in self._rules)

    def on_tick(self, ctx: Context) -> None:
        """Forget sessions that timed out, as far as the clock hand gets."""
        slots, _, _ = self.sessions.expire(ctx.now_ns, TRANSITORY_NS, SWEEP)
        if len(slots):
            self.counters.add(EXPIRED, len(slots))
