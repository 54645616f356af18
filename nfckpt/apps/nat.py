"""Nat: network address and port translation for IPv4, in Python.

Picture     10.0.0.5:4711 -> 192.0.2.9:80     inside  | Nat |  outside     198.51.100.1:40112 -> 192.0.2.9:80
            10.0.0.5:4711 <- 192.0.2.9:80             |     |              198.51.100.1:40112 <- 192.0.2.9:80

    nat = Nat(inside_ip="10.0.0.1", outside_ips=["198.51.100.1"], gateway="198.51.100.254")

Parameters are the fields of `NatConfig`, the state is drawn there too. Behaviour: endpoint-independent mapping, paired
addresses, parity kept, hairpinning, one of three filterings (RFC 4787); TCP phases and their timeouts (RFC 5382); ICMP
echo and errors, the quoted packet translated both ways (RFC 5508). Fragments: the first one decides and is remembered,
later ones follow it; one that comes before its first is dropped and counted. Frames to an unknown next hop become the
ARP request for it. Every frame meets one `Fate`, which has a counter.

How it works: one vectorised pass serves the frames of established flows, whose fate nothing else in the burst can
change; `_one` serves all others in order, and reads as the rules. `native/nat.pyx` does the same to the byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nfckpt.apps.nat_plan import (
    FRAGMENT,
    FRAGMENT_KEY,
    INSIDE,
    MAPPING,
    MAPPING_KEY,
    NEIGHBOUR,
    NEIGHBOUR_KEY,
    OUTSIDE,
    PERMIT,
    PERMIT_KEY,
    PROTOCOLS,
    SESSION,
    SESSION_KEY,
    Fate,
    NatConfig,
    NatState,
)
from nfckpt.native.neighbour import answer_arp, answer_solicitation, ask_arp, sender_mac
from nfckpt.native.rewrite import macs, quoted, rewrite, rewrite_quoted, ttl
from nfckpt.nf import Context, NetworkFunction

if TYPE_CHECKING:
    from nfckpt.native.burst import Burst
    from nfckpt.state.flow_table import FlowTable
    from nfckpt.state.state import State

__all__ = ["Nat", "tcp_step"]

TCP, UDP, ICMP = 6, 17, 1
FIN, SYN, RST, ACK = 1, 2, 4, 16
SYN_OUT, SYN_IN, FIN_OUT, FIN_IN, RESET = 1, 2, 4, 8, 16         # TCP phase of a session
ASK_NS = 10**9
SWEEP = 1024                                                     # slots looked at per tick
POOL = np.full(256, -1, np.int64)
for _proto, _number in PROTOCOLS.items():
    POOL[_proto] = _number


def tcp_step(phase: int, flags: int, outbound: bool) -> int:
    """The TCP phase after a segment with `flags`. A SYN on a closed session begins anew; a segment after a reset means
    that the peer did not believe it (RFC 7857, 2.2)."""
    if flags & RST:
        return phase | RESET
    syn, fin = (SYN_OUT, FIN_OUT) if outbound else (SYN_IN, FIN_IN)
    closed = phase & RESET or phase & (FIN_OUT | FIN_IN) == FIN_OUT | FIN_IN
    if closed and flags & (SYN | ACK) == SYN:
        return syn
    return phase & ~RESET | (syn if flags & SYN else 0) | (fin if flags & FIN else 0)


STEP = np.array([[[tcp_step(p, f, out) for f in range(32)] for p in range(32)] for out in (False, True)], np.uint8)


def _established(phase: int) -> bool:
    """Both SYNs seen, not both FINs, no reset."""
    return phase & 3 == 3 and phase & 12 != 12 and not phase & RESET


class Nat(NetworkFunction):
    """NAPT44 as RFC 4787, 5382 and 5508 want it. `Nat(**fields of NatConfig)`; raises ConfigError.

    Give the node an arena of `nat.config.arena_bytes`. Counters: `state.nat`, named after `Fate`.
    """

    ports = ("inside", "outside")
    tick_ms = 10

    def __init__(self, **parameters: Any) -> None:
        c = self.config = NatConfig(**parameters)
        self._mac = (c.mac(INSIDE), c.mac(OUTSIDE))
        self._ours = (c.addresses(INSIDE), c.addresses(OUTSIDE))
        self._net = tuple((a[0] & c.mask(p), c.mask(p)) for p, a in enumerate(self._ours))
        self._outside = np.array(self._ours[OUTSIDE], np.uint32)
        self._macs = np.array(self._mac, np.uint64)
        self._mac_bytes = tuple(m.to_bytes(6, "big") for m in self._mac)
        self._ip6 = (c.ip6(INSIDE), c.ip6(OUTSIDE))
        self._timeout_ns = {UDP: round(c.udp_s * 1e9), ICMP: round(c.icmp_s * 1e9)}
        self._established_ns, self._transitory_ns = round(c.tcp_established_s * 1e9), round(c.tcp_transitory_s * 1e9)
        self._fragment_ns = round(c.fragment_s * 1e9)

    def declare(self, state: State) -> None:
        s = NatState(state, self.config)
        self.counters, self.sessions, self.mappings, self.external = s.counters, s.sessions, s.mappings, s.ports
        self.by_port, self.neighbours, self.fragments, self.permits = s.by_port, s.neighbours, s.fragments, s.permits

    def announce(self, ctx: Context) -> Iterable[tuple[int, bytes]]:
        return self.config.announcements()

    # ---- a burst

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        self._ctx, self._now, self._events = ctx, ctx.now_ns, [0] * len(Fate)
        self._dst_mac, self._ttl = macs(burst)[0], ttl(burst)
        fates = np.full(len(burst), -1, np.int64)
        if not (burst.eth_type == 0x0806).any():        # ARP may change a next hop in the middle of the burst
            self._known_flows(burst, fates)
        rest = np.flatnonzero(fates < 0)
        for i in rest.tolist():
            fates[i] = self._one(burst, i)
        counts = np.bincount(fates, minlength=len(Fate)) + np.array(self._events)
        which = np.flatnonzero(counts)
        self.counters.add(which, counts[which])

    def _known_flows(self, b: Burst, fates: NDArray[np.int64]) -> None:
        """Translate all frames of known sessions that change nothing but the time they were last seen."""
        proto, port = b.proto, b.port
        out = port == INSIDE
        plain = ((b.ip_version == 4) & (b.frag == 0) & (b.vlan == 0xffff) & (self._ttl > 1) & (port <= OUTSIDE)
                 & (self._dst_mac == self._macs[port & 1])
                 & ((proto == TCP) | (proto == UDP) | ((proto == ICMP) & (b.icmp_type == np.where(out, 8, 0)))))
        at = np.flatnonzero(plain)
        if not at.size:
            return
        proto, out = proto[at], out[at]
        key = np.zeros(at.size, SESSION_KEY)
        key["proto"] = proto
        key["in_ip"], key["in_port"] = b.src_ip[at], b.src_port[at]
        key["remote_ip"] = np.where(out, b.dst_ip[at], b.src_ip[at])
        key["remote_port"] = np.where(proto == ICMP, 0, np.where(out, b.dst_port[at], b.src_port[at]))
        known = out.copy()
        back = np.flatnonzero(~out)
        if back.size:
            mapping = self._mappings_of(proto[back], b.dst_ip[at[back]], b.dst_port[at[back]])
            hit = mapping >= 0
            inner = self.mappings.keys[mapping[hit]].view(MAPPING_KEY)[:, 0]
            back = back[hit]
            key["in_ip"][back], key["in_port"][back] = inner["in_ip"], inner["in_port"]
            known[back] = True
        slots = self.sessions.find(key)
        known &= slots >= 0
        if not known.any():
            return
        value = self.sessions.values[slots]
        hop = self.neighbours.values[np.where(out, value["hop_out"], value["hop_in"]) * known]
        changes = (proto == TCP) & (STEP[out.astype(np.intp), value["tcp"], b.tcp_flags[at] & 31] != value["tcp"])
        known &= (value["hairpin"] == 0) & (hop["known"] != 0)
        if changes.any():
            known &= ~(np.isin(slots, slots[changes]))  # order matters within such a session
        self.sessions.touch(slots[known], self._now)
        for side, fate, outward in ((known & out, Fate.SENT_OUT, True), (known & ~out, Fate.SENT_IN, False)):
            k = np.flatnonzero(side)
            if not k.size:
                continue
            frames = at[k]
            if outward:
                rewrite(b, frames, src_ip=value["ext_ip"][k], src_port=value["ext_port"][k], ttl_decrement=True,
                        src_mac=self._mac_bytes[OUTSIDE], dst_mac=hop["mac"][k])
            else:
                rewrite(b, frames, dst_ip=key["in_ip"][k], dst_port=key["in_port"][k], ttl_decrement=True,
                        src_mac=self._mac_bytes[INSIDE], dst_mac=hop["mac"][k])
            b.send(frames, OUTSIDE if outward else INSIDE)
            fates[frames] = fate

    def _mappings_of(self, proto: NDArray[Any], ip: NDArray[Any], port: NDArray[Any]) -> NDArray[np.int64]:
        """Mapping slots of external endpoints, -1 where there is none."""
        match = ip[:, None] == self._outside
        number, lo = POOL[proto], self.config.port_lo
        good = match.any(1) & (number >= 0) & (port >= lo) & (port <= self.config.port_hi)
        pool = np.where(good, match.argmax(1) * 3 + number, 0)
        return np.where(good, self.by_port.view[pool, np.where(good, port.astype(np.int64) - lo, 0)].astype(np.int64) - 1, -1)

    # ---- one frame: the rules

    def _one(self, b: Burst, i: int) -> Fate:
        """Decide about frame i, in order with all others of its kind."""
        b.drop(i)
        port = int(b.port[i])
        if b.malformed[i]:
            return Fate.MALFORMED
        if b.vlan[i] != 0xffff or port > OUTSIDE:
            return Fate.NOT_TRANSLATABLE
        if b.eth_type[i] == 0x0806:
            return self._arp(b, i, port)
        if b.ip_version[i] == 6 and answer_solicitation(b, i, self._mac[port], self._ip6[port]):
            b.send(i, port)
            return Fate.ANSWERED
        if b.ip_version[i] != 4:
            return Fate.NOT_TRANSLATABLE
        if int(self._dst_mac[i]) != self._mac[port]:
            return Fate.NOT_FOR_US
        src, dst = int(b.src_ip[i]), int(b.dst_ip[i])
        if self._impossible(src) or self._impossible(dst) or src in self._ours[port] or self._on_link(dst, INSIDE):
            return Fate.BAD_ADDRESS
        if self._on_link(src, INSIDE) != (port == INSIDE) or (port == OUTSIDE and dst not in self._ours[OUTSIDE]):
            return Fate.BAD_ADDRESS
        if self._ttl[i] <= 1:
            return Fate.TTL_EXPIRED
        if b.frag[i] == 2:
            return self._later_fragment(b, i, port)
        proto, kind = int(b.proto[i]), int(b.icmp_type[i])
        if proto == ICMP and kind in (3, 4, 11, 12):
            return self._icmp_error(b, i, port)
        if proto == ICMP:
            if kind != (0 if port else 8) or (dst in self._ours[OUTSIDE] and port == INSIDE):
                return Fate.NOT_TRANSLATABLE
        elif proto not in (TCP, UDP) or not b.src_port[i] or not b.dst_port[i]:
            return Fate.NOT_TRANSLATABLE
        return self._outbound(b, i, proto) if port == INSIDE else self._inbound(b, i, proto)

    def _outbound(self, b: Burst, i: int, proto: int) -> Fate:
        src, dst, sport, dport = int(b.src_ip[i]), int(b.dst_ip[i]), int(b.src_port[i]), int(b.dst_port[i])
        remote_port = 0 if proto == ICMP else dport
        hairpin = dst in self._ours[OUTSIDE]
        target = self._mapping_of(proto, dst, dport) if hairpin else 0
        if target < 0:
            return Fate.NO_FLOW
        slot = _find(self.sessions, _session_key(src, sport, dst, remote_port, proto))
        if slot < 0:
            if proto == TCP and b.tcp_flags[i] & (SYN | ACK | RST) != SYN:
                return Fate.NO_FLOW
            opened = self._open_outbound(b, i, src, sport, dst, remote_port, proto, hairpin)
            if isinstance(opened, Fate):
                return opened
            slot = opened
        session = self.sessions.get(slot)[0]
        if not hairpin:
            return self._forward(b, i, Fate.SENT_OUT, OUTSIDE, int(session["hop_out"]), [(slot, True)],
                                 src_ip=int(session["ext_ip"]), src_port=int(session["ext_port"]))
        ext_ip, ext_port = int(session["ext_ip"]), int(session["ext_port"])
        inner = self.mappings.keys[target].view(MAPPING_KEY)[0]
        admitted = self._admit(b, i, target, inner, ext_ip, ext_port, proto, True)
        if isinstance(admitted, Fate):
            return admitted
        return self._forward(b, i, Fate.HAIRPINNED, INSIDE, int(self.sessions.get(admitted)["hop_in"][0]),
                             [(slot, True), (admitted, False)], src_ip=ext_ip, src_port=ext_port,
                             dst_ip=int(inner["in_ip"]), dst_port=int(inner["in_port"]))

    def _inbound(self, b: Burst, i: int, proto: int) -> Fate:
        target = self._mapping_of(proto, int(b.dst_ip[i]), int(b.dst_port[i]))
        if target < 0:
            return Fate.NO_FLOW
        inner = self.mappings.keys[target].view(MAPPING_KEY)[0]
        remote_port = 0 if proto == ICMP else int(b.src_port[i])
        slot = self._admit(b, i, target, inner, int(b.src_ip[i]), remote_port, proto, False)
        if isinstance(slot, Fate):
            return slot
        return self._forward(b, i, Fate.SENT_IN, INSIDE, int(self.sessions.get(slot)["hop_in"][0]), [(slot, False)],
                             dst_ip=int(inner["in_ip"]), dst_port=int(inner["in_port"]))

    def _admit(self, b: Burst, i: int, target: int, inner: Any, remote_ip: int, remote_port: int, proto: int,
               hairpin: bool) -> int | Fate:
        """Session of a packet from a remote to the mapping `target`: an old one, or a new one where filtering lets it."""
        in_ip, in_port = int(inner["in_ip"]), int(inner["in_port"])
        key = _session_key(in_ip, in_port, remote_ip, remote_port, proto)
        slot = _find(self.sessions, key)
        if slot >= 0:
            return slot
        if self.config.filtering == "address_and_port_dependent":
            return Fate.FILTERED
        if self.permits is not None and _find(self.permits, _key(PERMIT_KEY, in_ip, remote_ip, in_port, proto)) < 0:
            return Fate.FILTERED
        if proto == TCP and b.tcp_flags[i] & (SYN | ACK | RST) != SYN:
            return Fate.NO_FLOW
        hop_in = self._hop(in_ip, INSIDE)
        hop_out = hop_in if hairpin else self._next_hop(remote_ip)
        if isinstance(hop_out, Fate):
            return hop_out
        if hop_in < 0 or hop_out < 0:
            return Fate.NO_ROOM
        slot = _insert(self.sessions, key, self._now)
        if slot < 0:
            return Fate.NO_ROOM
        self._finish(slot, target, hop_out, hop_in, hairpin, 0, proto)
        return slot

    def _open_outbound(self, b: Burst, i: int, src: int, sport: int, dst: int, dport: int, proto: int,
                       hairpin: bool) -> int | Fate:
        hop_in = self._hop(src, INSIDE)
        hop_out = hop_in if hairpin else self._next_hop(dst)
        if isinstance(hop_out, Fate):
            return hop_out
        if hop_in < 0 or hop_out < 0:
            return Fate.NO_ROOM
        if not self.neighbours.get(hop_in)["known"][0]:         # a host that speaks has said where it is
            mac = int.from_bytes(b.frame(i)[6:12], "big")
            if not mac >> 40 & 1:
                self._learn(hop_in, mac)
        slot = _insert(self.sessions, _session_key(src, sport, dst, dport, proto), self._now)
        if slot < 0:
            return Fate.NO_ROOM
        key = _key(MAPPING_KEY, src, sport, proto)
        mapping, fresh = (int(x[0]) for x in self.mappings.insert(key, self._now))
        if fresh:
            c, address = self.config, src % len(self._outside)
            wish = c.port_lo + self._ctx.random_u64() % (c.port_hi - c.port_lo + 1)
            wish ^= (wish ^ sport) & 1                          # RFC 4787, 4.2.2: parity
            pool = address * 3 + PROTOCOLS[proto]
            port = int(self.external.allocate(pool, wish)[0])
            if port < 0:
                self.mappings.erase(mapping)
                self.sessions.erase(slot)
                return Fate.NO_PORTS
            self.mappings.put(mapping, np.array([(0, port, address)], MAPPING))
            self.by_port.set((pool, port - c.port_lo), mapping + 1)
            self._events[Fate.MAPPED] += 1
        permitted = 0
        if self.permits is not None:
            permitted = _insert(self.permits, _key(PERMIT_KEY, src, dst, sport, proto), self._now) + 1
            self.permits.put(permitted - 1, np.array([(int(self.permits.get(permitted - 1)["sessions"][0]) + 1,)], PERMIT))
        self._finish(slot, mapping, hop_out, hop_in, hairpin, permitted, proto)
        return slot

    def _finish(self, slot: int, mapping: int, hop_out: int, hop_in: int, hairpin: bool, permitted: int, proto: int) -> None:
        """Fill a new session in and count it with its mapping."""
        m = self.mappings.get(mapping)
        ext_ip = self._ours[OUTSIDE][int(m["address"][0])]
        self.sessions.put(slot, np.array(
            [(mapping, ext_ip, hop_out, hop_in, int(m["ext_port"][0]), 0, hairpin, permitted)], SESSION))
        self.sessions.set_timeout(slot, self._timeout_ns.get(proto, self._transitory_ns))
        m["sessions"] += 1
        self.mappings.put(mapping, m)
        self._events[Fate.OPENED] += 1

    def _forward(self, b: Burst, i: int, fate: Fate, out: int, hop: int, sessions: list[tuple[int, bool]],
                 **change: int) -> Fate:
        """Send frame i, changed, to next hop `hop`; move on the TCP phase and the clock of its sessions."""
        if not self.neighbours.get(hop)["known"][0]:
            return self._ask(b, i, hop, out)
        if b.frag[i] == 1:
            src, dst = int(b.src_ip[i]), int(b.dst_ip[i])
            slot = _insert(self.fragments, self._fragment_key(b, i), self._now)
            if slot < 0:
                return Fate.NO_ROOM
            self.fragments.put(slot, np.array(
                [(change.get("src_ip", src), change.get("dst_ip", dst), hop, out, fate)], FRAGMENT))
        for slot, outbound in sessions:
            self.sessions.touch(slot, self._now)
            if b.proto[i] == TCP:
                session = self.sessions.get(slot)
                phase = tcp_step(int(session["tcp"][0]), int(b.tcp_flags[i]), outbound)
                if phase != session["tcp"][0]:
                    session["tcp"] = phase
                    self.sessions.put(slot, session)
                    self.sessions.set_timeout(slot, self._established_ns if _established(phase) else self._transitory_ns)
        return self._emit(b, i, fate, out, hop, **change)

    def _emit(self, b: Burst, i: int, fate: Fate, out: int, hop: int, **change: int) -> Fate:
        rewrite(b, [i], **change, src_mac=self._mac_bytes[out], dst_mac=self.neighbours.get(hop)["mac"][0],
                ttl_decrement=True)
        b.send(i, out)
        return fate

    def _later_fragment(self, b: Burst, i: int, port: int) -> Fate:
        slot = _find(self.fragments, self._fragment_key(b, i))
        if slot < 0:
            return Fate.NO_FRAGMENT
        f = self.fragments.get(slot)[0]
        return self._emit(b, i, Fate(int(f["fate"])), int(f["out"]), int(f["hop"]), src_ip=int(f["src"]), dst_ip=int(f["dst"]))

    def _fragment_key(self, b: Burst, i: int) -> NDArray[Any]:
        at = int(b.l3_off[i]) + 4
        ident = int.from_bytes(b.frame(i)[at:at + 2], "big")
        return _key(FRAGMENT_KEY, int(b.src_ip[i]), int(b.dst_ip[i]), ident, int(b.proto[i]), int(b.port[i]))

    def _icmp_error(self, b: Burst, i: int, port: int) -> Fate:
        """RFC 5508, 4: translate what is quoted, and the error's own address; sessions do not live longer by it."""
        q = quoted(b, i)
        if q is None:
            return Fate.NO_ERROR_FLOW
        proto, src, sport, dst, dport = q
        if int(b.dst_ip[i]) != src or (port == INSIDE and src in self._ours[OUTSIDE]):
            return Fate.NO_ERROR_FLOW
        if port == OUTSIDE:             # about a packet that we sent out: its source is ours
            target = self._mapping_of(proto, src, sport)
            if target < 0:
                return Fate.NO_ERROR_FLOW
            inner = self.mappings.keys[target].view(MAPPING_KEY)[0]
            in_ip, in_port, remote, remote_port = int(inner["in_ip"]), int(inner["in_port"]), dst, dport
        else:                           # about a packet that we let in: its destination is inside
            in_ip, in_port, remote, remote_port = dst, dport, src, sport
        slot = _find(self.sessions, _session_key(in_ip, in_port, remote, 0 if proto == ICMP else remote_port, proto))
        if slot < 0:
            return Fate.NO_ERROR_FLOW
        session = self.sessions.get(slot)[0]
        out, hop = (INSIDE, int(session["hop_in"])) if port else (OUTSIDE, int(session["hop_out"]))
        if not self.neighbours.get(hop)["known"][0]:
            return self._ask(b, i, hop, out)
        if port == OUTSIDE:
            rewrite_quoted(b, i, src_ip=in_ip, src_port=in_port)
            return self._emit(b, i, Fate.SENT_IN, out, hop, dst_ip=in_ip)
        rewrite_quoted(b, i, dst_ip=int(session["ext_ip"]), dst_port=int(session["ext_port"]))
        return self._emit(b, i, Fate.SENT_OUT, out, hop, src_ip=int(session["ext_ip"]))

    # ---- addresses and neighbours

    def _on_link(self, ip: int, port: int) -> bool:
        net, mask = self._net[port]
        return ip & mask == net

    @staticmethod
    def _impossible(ip: int) -> bool:
        """This network, loopback, multicast, reserved: none can be a unicast endpoint here (RFC 1812, 4.2.2.11)."""
        return ip >> 24 in (0, 127) or ip >> 28 >= 14

    def _mapping_of(self, proto: int, ip: int, port: int) -> int:
        return int(self._mappings_of(np.array([proto]), np.array([ip], np.uint32), np.array([port], np.uint16))[0])

    def _hop(self, ip: int, port: int) -> int:
        """The neighbour's slot, made where it was unknown; -1: no room."""
        return _insert(self.neighbours, _key(NEIGHBOUR_KEY, ip, port), self._now)

    def _next_hop(self, ip: int) -> int | Fate:
        """Slot of the outside neighbour that takes packets to `ip`."""
        if self._on_link(ip, OUTSIDE):
            return self._hop(ip, OUTSIDE)
        if not self.config.gateway_ip:
            return Fate.BAD_ADDRESS
        return self._hop(self.config.gateway_ip, OUTSIDE)

    def _learn(self, slot: int, mac: int) -> None:
        row = self.neighbours.get(slot)
        row["mac"], row["known"] = np.frombuffer(mac.to_bytes(6, "big"), np.uint8), 1
        self.neighbours.put(slot, row)

    def _ask(self, b: Burst, i: int, hop: int, port: int) -> Fate:
        """Frame i becomes the ARP request for its next hop, unless that was asked for within the last second."""
        row = self.neighbours.get(hop)
        asked = int(row["asked"][0])
        if not asked or self._now - asked >= ASK_NS:
            ip = int(self.neighbours.keys[hop].view(NEIGHBOUR_KEY)[0]["ip"])
            if ask_arp(b, i, self._mac[port], self._ours[port][0], ip):
                row["asked"] = max(self._now, 1)
                self.neighbours.put(hop, row)
                b.send(i, port)
                self._events[Fate.ASKED] += 1
        return Fate.NO_NEIGHBOUR

    def _arp(self, b: Burst, i: int, port: int) -> Fate:
        """RFC 826: update who is known, add who speaks to us, answer who asks for us."""
        sender, target, mac = int(b.src_ip[i]), int(b.dst_ip[i]), sender_mac(b, i)
        if sender in self._ours[port] or not mac:
            return Fate.ARP_HEARD
        ours = target in self._ours[port]
        if self._on_link(sender, port):
            slot = self._hop(sender, port) if ours else _find(self.neighbours, _key(NEIGHBOUR_KEY, sender, port))
            if slot >= 0:
                self._learn(slot, mac)
        if not ours or b.icmp_type[i] != 1:
            return Fate.ARP_HEARD
        answer_arp(b, i, self._mac[port])
        b.send(i, port)
        return Fate.ANSWERED

    # ---- time

    def on_tick(self, ctx: Context) -> None:
        """Close sessions and forget fragments that timed out, as far as the clock hand gets."""
        self.fragments.expire(ctx.now_ns, self._fragment_ns, SWEEP)
        slots, keys, values = self.sessions.expire(ctx.now_ns, self._transitory_ns, SWEEP)
        for key, session in zip(keys.view(SESSION_KEY)[:, 0], values, strict=True):
            if session["permitted"]:
                assert self.permits is not None
                permit = int(session["permitted"]) - 1
                left = self.permits.get(permit)
                left["sessions"] -= 1
                self.permits.put(permit, left)
                if not left["sessions"][0]:
                    self.permits.erase(permit)
            mapping = int(session["mapping"])
            m = self.mappings.get(mapping)
            m["sessions"] -= 1
            self.mappings.put(mapping, m)
            if not m["sessions"][0]:
                pool = int(m["address"][0]) * 3 + PROTOCOLS[int(key["proto"])]
                self.by_port.set((pool, int(m["ext_port"][0]) - self.config.port_lo), 0)
                self.external.release(pool, int(m["ext_port"][0]))
                self.mappings.erase(mapping)
        if len(slots):
            self.counters.add(int(Fate.EXPIRED), len(slots))


def _key(dtype: np.dtype[np.void], *fields: int) -> NDArray[Any]:
    return np.array([fields], dtype)


def _session_key(in_ip: int, in_port: int, remote_ip: int, remote_port: int, proto: int) -> NDArray[Any]:
    return _key(SESSION_KEY, in_ip, remote_ip, in_port, remote_port, proto)


def _find(table: FlowTable, key: NDArray[Any]) -> int:
    return int(table.find(key)[0])


def _insert(table: FlowTable, key: NDArray[Any], now: int) -> int:
    return int(table.insert(key, now)[0][0])


assert NEIGHBOUR.itemsize == 16 and SESSION.itemsize == 24
