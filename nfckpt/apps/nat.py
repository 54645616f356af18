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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nfckpt.apps.nat_plan import (
    FRAGMENT,
    FRAGMENT_KEY,
    INSIDE,
    MAPPING,
    MAPPING_KEY,
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
from nfckpt.apps.tcp_phase import STEP, is_established, opens, tcp_step
from nfckpt.native.neighbour import answer_arp, answer_solicitation, ask_arp, sender_mac
from nfckpt.native.rewrite import macs, quoted, rewrite, rewrite_one, rewrite_quoted, ttl
from nfckpt.nf import Context, NetworkFunction

if TYPE_CHECKING:
    from nfckpt.native.burst import Burst
    from nfckpt.state.flow_table import FlowTable
    from nfckpt.state.state import State

__all__ = ["Nat"]

TCP, UDP, ICMP = 6, 17, 1
ASK_NS = 10**9
SWEEP = 1024                                                     # slots looked at per tick; at most 256 are closed
POOL = np.full(256, -1, np.int64)
for _proto, _number in PROTOCOLS.items():
    POOL[_proto] = _number


class Frame(NamedTuple):
    """One frame's columns, as Python numbers."""

    i: int
    port: int
    malformed: int
    vlan: int
    eth_type: int
    ip_version: int
    frag: int
    proto: int
    src: int
    dst: int
    sport: int
    dport: int
    tcp_flags: int
    kind: int           # ICMP type; ARP operation
    ttl: int
    dst_mac: int
    src_mac: int


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
        self._gateway = c.gateway_ip
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

        self._session, self._mapping, self._neighbour = (t.values for t in (s.sessions, s.mappings, s.neighbours))
        self._by_port = s.by_port.view

    def announce(self, ctx: Context) -> Iterable[tuple[int, bytes]]:
        return self.config.announcements()

    # ---- a burst

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        self._ctx, self._now, self._events = ctx, ctx.now_ns, [0] * len(Fate)
        self._dst_mac, src_mac = macs(burst)
        self._ttl = ttl(burst)
        fates = np.full(len(burst), -1, np.int64)
        if not np.count_nonzero(burst.eth_type == 0x0806):        # ARP may change a next hop in the middle of the burst
            self._known_flows(burst, fates)
        rest = (fates < 0).nonzero()[0]
        if rest.size:
            b = burst
            columns = (b.port, b.malformed, b.vlan, b.eth_type, b.ip_version, b.frag, b.proto, b.src_ip, b.dst_ip, b.src_port,
                       b.dst_port, b.tcp_flags, b.icmp_type, self._ttl, self._dst_mac, src_mac)
            for row in zip(rest.tolist(), *(c[rest].tolist() for c in columns), strict=True):
                fates[row[0]] = self._one(burst, Frame(*row))
        counts = np.bincount(fates, minlength=len(Fate)) + np.array(self._events)
        which = counts.nonzero()[0]
        self.counters.add(which, counts[which])

    def _known_flows(self, b: Burst, fates: NDArray[np.int64]) -> None:
        """Translate all frames of known sessions that change nothing but the time they were last seen."""
        proto, port = b.proto, b.port
        out = port == INSIDE
        tcp, icmp = proto == TCP, proto == ICMP
        some_tcp, some_icmp = np.count_nonzero(tcp), np.count_nonzero(icmp)     # a column nobody needs costs as much as one that all do
        known_kind = tcp | (proto == UDP)
        if some_icmp:
            known_kind |= icmp & (b.icmp_type == np.where(out, 8, 0))
        plain = ((b.ip_version == 4) & (b.frag == 0) & (b.vlan == 0xffff) & (self._ttl > 1) & (port <= OUTSIDE)
                 & (self._dst_mac == self._macs[port & 1]) & known_kind)
        at = plain.nonzero()[0]
        if not at.size:
            return
        proto, out = proto[at], out[at]
        key = np.zeros(at.size, SESSION_KEY)
        key["proto"] = proto
        key["in_ip"], key["in_port"] = b.src_ip[at], b.src_port[at]
        key["remote_ip"], key["remote_port"] = b.dst_ip[at], b.dst_port[at]
        known = out.copy()
        back = (~out).nonzero()[0]
        if back.size:
            key["remote_ip"][back], key["remote_port"][back] = b.src_ip[at[back]], b.src_port[at[back]]
            mapping = self._mappings_of(proto[back], b.dst_ip[at[back]], b.dst_port[at[back]])
            hit = mapping >= 0
            inner = self.mappings.keys[mapping[hit]].view(MAPPING_KEY)[:, 0]
            back = back[hit]
            key["in_ip"][back], key["in_port"][back] = inner["in_ip"], inner["in_port"]
            known[back] = True
        if some_icmp:
            key["remote_port"][proto == ICMP] = 0
        slots = self.sessions.find(key)
        known &= slots >= 0
        found = known.nonzero()[0]
        if found.size < at.size:
            at, key, proto, out, slots, known = (column[found] for column in (at, key, proto, out, slots, known))
        value = self.sessions.get(slots)
        hop = self.neighbours.get(np.where(out, value["hop_out"], value["hop_in"]))
        known &= (value["hairpin"] == 0) & (hop["known"] != 0)
        if some_tcp:
            changes = (proto == TCP) & (STEP[out.astype(np.intp), value["tcp"], b.tcp_flags[at] & 31] != value["tcp"])
            if changes.any():
                known &= ~(np.isin(slots, slots[changes]))  # order matters within such a session
        self.sessions.touch(slots[known], self._now)
        for side, fate, outward in ((known & out, Fate.SENT_OUT, True), (known & ~out, Fate.SENT_IN, False)):
            k = side.nonzero()[0]
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
        return np.where(good, self._by_port[pool, np.where(good, port.astype(np.int64) - lo, 0)].astype(np.int64) - 1, -1)

    # ---- one frame: the rules

    def _one(self, b: Burst, f: Frame) -> Fate:
        """Decide about one frame, in order with all others of its kind."""
        b.drop(f.i)
        port = f.port
        if f.malformed:
            return Fate.MALFORMED
        if f.vlan != 0xffff or port > OUTSIDE:
            return Fate.NOT_TRANSLATABLE
        if f.eth_type == 0x0806:
            return self._arp(b, f)
        if f.ip_version == 6 and answer_solicitation(b, f.i, self._mac[port], self._ip6[port]):
            b.send(f.i, port)
            return Fate.ANSWERED
        if f.ip_version != 4:
            return Fate.NOT_TRANSLATABLE
        if f.dst_mac != self._mac[port]:
            return Fate.NOT_FOR_US
        if _impossible(f.src) or _impossible(f.dst) or f.src in self._ours[port] or self._on_link(f.dst, INSIDE):
            return Fate.BAD_ADDRESS
        if self._on_link(f.src, INSIDE) != (port == INSIDE) or (port == OUTSIDE and f.dst not in self._ours[OUTSIDE]):
            return Fate.BAD_ADDRESS
        if f.ttl <= 1:
            return Fate.TTL_EXPIRED
        if f.frag == 2:
            return self._later_fragment(b, f)
        if f.proto == ICMP:
            if f.kind in (3, 4, 11, 12):
                return self._icmp_error(b, f)
            if f.kind != (0 if port else 8) or (port == INSIDE and f.dst in self._ours[OUTSIDE]):
                return Fate.NOT_TRANSLATABLE
        elif f.proto not in (TCP, UDP) or not f.sport or not f.dport:
            return Fate.NOT_TRANSLATABLE
        return self._outbound(b, f) if port == INSIDE else self._inbound(b, f)

    def _outbound(self, b: Burst, f: Frame) -> Fate:
        hairpin = f.dst in self._ours[OUTSIDE]
        target = self._mapping_of(f.proto, f.dst, f.dport) if hairpin else 0
        if target < 0:
            return Fate.NO_FLOW
        slot = _find(self.sessions, SESSION_KEY, f.src, f.dst, f.sport, f.dport if f.proto != ICMP else 0, f.proto)
        if slot < 0:
            if f.proto == TCP and not opens(f.tcp_flags):
                return Fate.NO_FLOW
            slot = self._open_outbound(f, hairpin)
            if slot < 0:
                return Fate(~slot)
        ext_ip, hop_out, ext_port = (self._session[name].item(slot) for name in ("ext_ip", "hop_out", "ext_port"))
        if not hairpin:
            return self._forward(b, f, Fate.SENT_OUT, OUTSIDE, hop_out, [(slot, True)], src_ip=ext_ip, src_port=ext_port)
        other = self._admit(f, target, ext_ip, ext_port, True)
        if other < 0:
            return Fate(~other)
        in_ip, in_port = self._inner(target)
        return self._forward(b, f, Fate.HAIRPINNED, INSIDE, self._session["hop_in"].item(other), [(slot, True), (other, False)],
                             src_ip=ext_ip, src_port=ext_port, dst_ip=in_ip, dst_port=in_port)

    def _inbound(self, b: Burst, f: Frame) -> Fate:
        target = self._mapping_of(f.proto, f.dst, f.dport)
        if target < 0:
            return Fate.NO_FLOW
        slot = self._admit(f, target, f.src, f.sport if f.proto != ICMP else 0, False)
        if slot < 0:
            return Fate(~slot)
        in_ip, in_port = self._inner(target)
        return self._forward(b, f, Fate.SENT_IN, INSIDE, self._session["hop_in"].item(slot), [(slot, False)],
                             dst_ip=in_ip, dst_port=in_port)

    def _admit(self, f: Frame, target: int, remote_ip: int, remote_port: int, hairpin: bool) -> int:
        """Session of a packet from a remote to the mapping `target`: an old one, a new one if filtering lets it; or ~fate."""
        in_ip, in_port = self._inner(target)
        key = in_ip, remote_ip, in_port, remote_port, f.proto
        slot = _find(self.sessions, SESSION_KEY, *key)
        if slot >= 0:
            return slot
        if self.config.filtering == "address_and_port_dependent":
            return ~Fate.FILTERED
        if self.permits is not None and _find(self.permits, PERMIT_KEY, in_ip, remote_ip, in_port, f.proto) < 0:
            return ~Fate.FILTERED
        if f.proto == TCP and not opens(f.tcp_flags):
            return ~Fate.NO_FLOW
        hop_in = self._hop(in_ip, INSIDE)
        hop_out = hop_in if hairpin else self._next_hop(remote_ip)
        if hop_out == ~Fate.BAD_ADDRESS:
            return hop_out
        if hop_in < 0 or hop_out < 0:
            return ~Fate.NO_ROOM
        slot = self._insert(self.sessions, SESSION_KEY, *key)
        if slot < 0:
            return ~Fate.NO_ROOM
        self._finish(slot, target, hop_out, hop_in, hairpin, 0, f.proto)
        return slot

    def _open_outbound(self, f: Frame, hairpin: bool) -> int:
        """Slot of the new session, or ~fate."""
        hop_in = self._hop(f.src, INSIDE)
        hop_out = hop_in if hairpin else self._next_hop(f.dst)
        if hop_out == ~Fate.BAD_ADDRESS:
            return hop_out
        if hop_in < 0 or hop_out < 0:
            return ~Fate.NO_ROOM
        if not self._neighbour["known"][hop_in] and not f.src_mac >> 40 & 1:
            self._learn(hop_in, f.src_mac)                      # a host that speaks has said where it is
        slot = self._insert(self.sessions, SESSION_KEY, f.src, f.dst, f.sport, f.dport if f.proto != ICMP else 0, f.proto)
        if slot < 0:
            return ~Fate.NO_ROOM
        mappings = len(self.mappings)
        mapping = self._insert(self.mappings, MAPPING_KEY, f.src, f.sport, f.proto)
        if len(self.mappings) > mappings:
            c, address = self.config, f.src % len(self._outside)
            wish = c.port_lo + self._ctx.random_u64() % (c.port_hi - c.port_lo + 1)
            wish ^= (wish ^ f.sport) & 1                        # RFC 4787, 4.2.2: parity
            pool = address * 3 + PROTOCOLS[f.proto]
            port = int(self.external.allocate(pool, wish)[0])
            if port < 0:
                self.mappings.erase(mapping)
                self.sessions.erase(slot)
                return ~Fate.NO_PORTS
            self.mappings.put(mapping, np.array([(0, port, address)], MAPPING))
            self.by_port.set((pool, port - c.port_lo), mapping + 1)
            self._events[Fate.MAPPED] += 1
        permit = -1
        if self.permits is not None:
            permit = self._insert(self.permits, PERMIT_KEY, f.src, f.dst, f.sport, f.proto)
            self.permits.put(permit, np.array([(self.permits.values["sessions"].item(permit) + 1,)], PERMIT))
        self._finish(slot, mapping, hop_out, hop_in, hairpin, permit + 1, f.proto)
        return slot

    def _finish(self, slot: int, mapping: int, hop_out: int, hop_in: int, hairpin: bool, permitted: int, proto: int) -> None:
        """Fill a new session in and count it with its mapping."""
        sessions, ext_port, address = self._mapping[mapping].item()
        self.sessions.put(slot, np.array(
            [(mapping, self._ours[OUTSIDE][address], hop_out, hop_in, ext_port, 0, hairpin, permitted)], SESSION))
        self.sessions.set_timeout(slot, self._timeout_ns.get(proto, self._transitory_ns))
        self.mappings.put(mapping, np.array([(sessions + 1, ext_port, address)], MAPPING))
        self._events[Fate.OPENED] += 1

    def _forward(self, b: Burst, f: Frame, fate: Fate, out: int, hop: int, sessions: list[tuple[int, bool]],
                 **change: int) -> Fate:
        """Send the frame, changed, to next hop `hop`; move on the TCP phase and the clock of its sessions."""
        if not self._neighbour["known"][hop]:
            return self._ask(b, f, hop, out)
        if f.frag == 1:
            slot = self._insert(self.fragments, FRAGMENT_KEY, *_fragment(b, f))
            if slot < 0:
                return Fate.NO_ROOM
            self.fragments.put(slot, np.array(
                [(change.get("src_ip", f.src), change.get("dst_ip", f.dst), hop, out, fate)], FRAGMENT))
        for slot, outbound in sessions:
            self.sessions.touch(slot, self._now)
            if f.proto == TCP:
                before = self._session["tcp"].item(slot)
                phase = tcp_step(before, f.tcp_flags, outbound)
                if phase != before:
                    session = self.sessions.get(slot)
                    session["tcp"] = phase
                    self.sessions.put(slot, session)
                    self.sessions.set_timeout(slot, self._established_ns if is_established(phase) else self._transitory_ns)
        return self._emit(b, f, fate, out, hop, **change)

    def _emit(self, b: Burst, f: Frame, fate: Fate, out: int, hop: int, **change: int) -> Fate:
        mac = int.from_bytes(self._neighbour["mac"][hop].tobytes(), "big")
        rewrite_one(b, f.i, **change, src_mac=self._mac[out], dst_mac=mac, ttl_decrement=True)
        b.send(f.i, out)
        return fate

    def _later_fragment(self, b: Burst, f: Frame) -> Fate:
        slot = _find(self.fragments, FRAGMENT_KEY, *_fragment(b, f))
        if slot < 0:
            return Fate.NO_FRAGMENT
        src, dst, hop, out, fate = self.fragments.values[slot].item()
        return self._emit(b, f, Fate(fate), out, hop, src_ip=src, dst_ip=dst)

    def _icmp_error(self, b: Burst, f: Frame) -> Fate:
        """RFC 5508, 4: translate what is quoted, and the error's own address; sessions do not live longer by it."""
        q = quoted(b, f.i)
        if q is None:
            return Fate.NO_ERROR_FLOW
        proto, src, sport, dst, dport = q
        if f.dst != src or (f.port == INSIDE and src in self._ours[OUTSIDE]):
            return Fate.NO_ERROR_FLOW
        if f.port == OUTSIDE:           # about a packet that we sent out: its source is ours
            target = self._mapping_of(proto, src, sport)
            if target < 0:
                return Fate.NO_ERROR_FLOW
            in_ip, in_port = self._inner(target)
            remote, remote_port = dst, dport
        else:                           # about a packet that we let in: its destination is inside
            in_ip, in_port, remote, remote_port = dst, dport, src, sport
        slot = _find(self.sessions, SESSION_KEY, in_ip, remote, in_port, 0 if proto == ICMP else remote_port, proto)
        if slot < 0:
            return Fate.NO_ERROR_FLOW
        out, hop_name = (INSIDE, "hop_in") if f.port else (OUTSIDE, "hop_out")
        hop = self._session[hop_name].item(slot)
        if not self._neighbour["known"][hop]:
            return self._ask(b, f, hop, out)
        if f.port == OUTSIDE:
            rewrite_quoted(b, f.i, src_ip=in_ip, src_port=in_port)
            return self._emit(b, f, Fate.SENT_IN, out, hop, dst_ip=in_ip)
        ext_ip, ext_port = self._session["ext_ip"].item(slot), self._session["ext_port"].item(slot)
        rewrite_quoted(b, f.i, dst_ip=ext_ip, dst_port=ext_port)
        return self._emit(b, f, Fate.SENT_OUT, out, hop, src_ip=ext_ip)

    # ---- addresses and neighbours

    def _on_link(self, ip: int, port: int) -> bool:
        net, mask = self._net[port]
        return ip & mask == net

    def _mapping_of(self, proto: int, ip: int, port: int) -> int:
        """Mapping slot of an external endpoint, -1 where there is none."""
        c = self.config
        if ip not in self._ours[OUTSIDE] or not c.port_lo <= port <= c.port_hi:
            return -1
        pool = self._ours[OUTSIDE].index(ip) * 3 + PROTOCOLS[proto]
        return int(self._by_port[pool, port - c.port_lo]) - 1

    def _inner(self, mapping: int) -> tuple[int, int]:
        """Inside address and port of a mapping."""
        in_ip, in_port, _ = self.mappings.keys[mapping].view(MAPPING_KEY)[0].item()
        return in_ip, in_port

    def _hop(self, ip: int, port: int) -> int:
        """The neighbour's slot, made where it was unknown; -1: no room."""
        return self._insert(self.neighbours, NEIGHBOUR_KEY, ip, port)

    def _next_hop(self, ip: int) -> int:
        """Slot of the outside neighbour that takes packets to `ip`; -1: no room; ~BAD_ADDRESS: no way there."""
        if self._on_link(ip, OUTSIDE):
            return self._hop(ip, OUTSIDE)
        return self._hop(self._gateway, OUTSIDE) if self._gateway else ~Fate.BAD_ADDRESS

    def _learn(self, slot: int, mac: int) -> None:
        row = self.neighbours.get(slot)
        row["mac"], row["known"] = np.frombuffer(mac.to_bytes(6, "big"), np.uint8), 1
        self.neighbours.put(slot, row)

    def _ask(self, b: Burst, f: Frame, hop: int, port: int) -> Fate:
        """The frame becomes the ARP request for its next hop, unless that was asked for within the last second."""
        row = self.neighbours.get(hop)
        asked = row["asked"].item(0)
        if not asked or self._now - asked >= ASK_NS:
            ip = int(self.neighbours.keys[hop].view(NEIGHBOUR_KEY)[0]["ip"])
            if ask_arp(b, f.i, self._mac[port], self._ours[port][0], ip):
                row["asked"] = max(self._now, 1)
                self.neighbours.put(hop, row)
                b.send(f.i, port)
                self._events[Fate.ASKED] += 1
        return Fate.NO_NEIGHBOUR

    def _arp(self, b: Burst, f: Frame) -> Fate:
        """RFC 826: update who is known, add who speaks to us, answer who asks for us."""
        mac = sender_mac(b, f.i)
        if f.src in self._ours[f.port] or not mac:
            return Fate.ARP_HEARD
        ours = f.dst in self._ours[f.port]
        if self._on_link(f.src, f.port):
            slot = self._hop(f.src, f.port) if ours else _find(self.neighbours, NEIGHBOUR_KEY, f.src, f.port)
            if slot >= 0:
                self._learn(slot, mac)
        if not ours or f.kind != 1:
            return Fate.ARP_HEARD
        answer_arp(b, f.i, self._mac[f.port])
        b.send(f.i, f.port)
        return Fate.ANSWERED

    # ---- time

    def on_tick(self, ctx: Context) -> None:
        """Close sessions and forget fragments that timed out, as far as the clock hand gets."""
        self.fragments.expire(ctx.now_ns, self._fragment_ns, SWEEP)
        slots, keys, values = self.sessions.expire(ctx.now_ns, self._transitory_ns, SWEEP)
        for key, session in zip(keys.view(SESSION_KEY)[:, 0], values, strict=True):
            if self.permits is not None and session["permitted"]:
                permit = int(session["permitted"]) - 1
                left = self.permits.get(permit)
                left["sessions"] -= 1
                self.permits.put(permit, left)
                if not left["sessions"][0]:
                    self.permits.erase(permit)
            mapping = int(session["mapping"])
            sessions, ext_port, address = self._mapping[mapping].item()
            self.mappings.put(mapping, np.array([(sessions - 1, ext_port, address)], MAPPING))
            if sessions == 1:
                pool = address * 3 + PROTOCOLS[int(key["proto"])]
                self.by_port.set((pool, ext_port - self.config.port_lo), 0)
                self.external.release(pool, ext_port)
                self.mappings.erase(mapping)
        if len(slots):
            self.counters.add(int(Fate.EXPIRED), len(slots))

    def _insert(self, table: FlowTable, dtype: np.dtype[np.void], *fields: int) -> int:
        return int(table.insert(np.array([fields], dtype), self._now)[0][0])


def _find(table: FlowTable, dtype: np.dtype[np.void], *fields: int) -> int:
    return int(table.find(np.array([fields], dtype))[0])


def _fragment(b: Burst, f: Frame) -> tuple[int, int, int, int, int]:
    """Fields of the frame's FRAGMENT_KEY."""
    return f.src, f.dst, int.from_bytes(b.frame(f.i)[18:20], "big"), f.proto, f.port


def _impossible(ip: int) -> bool:
    """This network, loopback, multicast, reserved: none can be a unicast endpoint here (RFC 1812, 4.2.2.11)."""
    return ip >> 24 in (0, 127) or ip >> 28 >= 14
