"""What both NATs share: their parameters, the layout of their state, the list of fates a frame can meet.

Picture     session  (inside ip:port, remote ip:port, protocol) -> mapping, external ip:port, next hops, TCP phase
            mapping  (inside ip:port, protocol)                 -> external ip:port, number of sessions
            by_port  [address and protocol, external port]      -> mapping slot + 1, or 0
            permit   (inside ip:port, protocol, remote ip)      -> number of sessions; filtering address_dependent only
            neighbour (ip, port index)                          -> MAC, or when it was last asked for
            fragment (src, dst, id, protocol, port index)       -> what its first fragment was translated to

A mapping is the same whoever the remote is (endpoint-independent, RFC 4787 REQ-1) and lives as long as it has a session.
Neighbours are never erased, so sessions name their next hops by slot; a MAC that changes is overwritten in place.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from nfckpt.errors import ConfigError
from nfckpt.packet import build

if TYPE_CHECKING:
    from nfckpt.state.state import State

__all__ = ["FILTERINGS", "INSIDE", "OUTSIDE", "Fate", "NatConfig", "NatState"]

INSIDE, OUTSIDE = 0, 1
FILTERINGS = ("endpoint_independent", "address_dependent", "address_and_port_dependent")
S = 10**9


class Fate(IntEnum):
    """What became of a frame: each frame meets exactly one, the counter of that name. The last four count events."""

    SENT_OUT = 0            # translated, inside to outside
    SENT_IN = 1             # translated, outside to inside
    HAIRPINNED = 2          # inside to inside by way of external addresses (RFC 4787 REQ-9)
    ANSWERED = 3            # ARP request or neighbour solicitation for one of our addresses
    ARP_HEARD = 4           # other ARP: learned from where it helps, not forwarded
    MALFORMED = 5           # from here on: dropped
    NOT_FOR_US = 6          # another station's MAC address
    NOT_TRANSLATABLE = 7    # tagged, not IPv4, or nothing with ports
    BAD_ADDRESS = 8         # a source or destination that cannot be on this side
    TTL_EXPIRED = 9
    NO_FLOW = 10            # no mapping or session, and not a packet that may open one
    FILTERED = 11           # a mapping, but the filtering does not let this remote in
    NO_PORTS = 12           # every external port of the address is taken
    NO_ROOM = 13            # flows, neighbours or fragments are full
    NO_NEIGHBOUR = 14       # next hop unknown: asked for, at most once a second
    NO_FRAGMENT = 15        # a later fragment whose first one was not seen (or is too long ago)
    NO_ERROR_FLOW = 16      # an ICMP error about nothing we translated, or broken
    MAPPED = 17             # events: a mapping was made
    OPENED = 18             # a session was opened
    EXPIRED = 19            # a session timed out
    ASKED = 20              # an ARP request was sent


def _record(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[np.void]:
    return np.dtype(list(fields))


SESSION_KEY = _record(("in_ip", "u4"), ("remote_ip", "u4"), ("in_port", "u2"), ("remote_port", "u2"), ("proto", "u4"))
SESSION = _record(("mapping", "u4"), ("ext_ip", "u4"), ("hop_out", "u4"), ("hop_in", "u4"), ("ext_port", "u2"),
                  ("tcp", "u1"), ("hairpin", "u1"), ("permitted", "u4"))
MAPPING_KEY = _record(("in_ip", "u4"), ("in_port", "u2"), ("proto", "u2"))
MAPPING = _record(("sessions", "u4"), ("ext_port", "u2"), ("address", "u2"))
PERMIT_KEY = _record(("in_ip", "u4"), ("remote_ip", "u4"), ("in_port", "u2"), ("proto", "u2"))
PERMIT = _record(("sessions", "u8"))
NEIGHBOUR_KEY = _record(("ip", "u4"), ("port", "u4"))
NEIGHBOUR = _record(("mac", "u1", 6), ("known", "u2"), ("asked", "u8"))
FRAGMENT_KEY = _record(("src", "u4"), ("dst", "u4"), ("id", "u2"), ("proto", "u1"), ("port", "u1"))
FRAGMENT = _record(("src", "u4"), ("dst", "u4"), ("hop", "u4"), ("out", "u2"), ("fate", "u2"))

PROTOCOLS = {6: 0, 17: 1, 1: 2}         # TCP, UDP, ICMP echo: number within an address's pools


@dataclass(frozen=True)
class NatConfig:
    """Parameters of `Nat` and `NativeNat`. Addresses as text, times and sizes with their unit last.

    Raises ConfigError for what cannot hold. Defaults of the timeouts: RFC 5382 REQ-5, RFC 4787 REQ-5, RFC 5508 REQ-2.
    """

    inside_ip: str
    outside_ips: Sequence[str]
    inside_prefix: int = 24
    outside_prefix: int = 24
    gateway: str | None = None                  # next hop for what is not on the outside link; None: there is no such thing
    inside_mac: str = "02:6e:66:00:00:01"       # shared by the pair: the standby takes it over
    outside_mac: str = "02:6e:66:00:00:02"
    inside_ip6s: Sequence[str] = ()             # neighbour solicitations for these are answered; IPv6 is not translated
    outside_ip6s: Sequence[str] = ()
    filtering: str = "address_and_port_dependent"
    port_lo: int = 1024
    port_hi: int = 65535
    flows_max: int = 65536                      # sessions
    neighbours_max: int = 1024
    fragments_max: int = 1024
    tcp_established_s: float = 7440.0
    tcp_transitory_s: float = 240.0
    udp_s: float = 300.0
    icmp_s: float = 60.0
    fragment_s: float = 15.0

    def __post_init__(self) -> None:
        if isinstance(self.outside_ips, str) or not 1 <= len(self.outside_ips) <= 256:
            raise ConfigError(f"outside_ips {self.outside_ips!r}", "a list of 1 to 256 addresses")
        if self.filtering not in FILTERINGS:
            raise ConfigError(f"filtering {self.filtering!r}", f"one of {', '.join(FILTERINGS)}")
        for name in ("inside_prefix", "outside_prefix"):
            if not 1 <= getattr(self, name) <= 30:
                raise ConfigError(f"{name} {getattr(self, name)}", "1 to 30")
        if not 1 <= self.port_lo <= self.port_hi <= 65535:
            raise ConfigError(f"ports {self.port_lo} to {self.port_hi}", "1 <= port_lo <= port_hi <= 65535")
        for name in ("tcp_established_s", "tcp_transitory_s", "udp_s", "icmp_s", "fragment_s"):
            if not 0.001 <= getattr(self, name) <= 4_000_000:
                raise ConfigError(f"{name} {getattr(self, name)}", "0.001 to 4,000,000 s")
        for name in ("flows_max", "neighbours_max", "fragments_max"):
            if not 1 <= getattr(self, name) <= 1 << 26:
                raise ConfigError(f"{name} {getattr(self, name)}", f"1 to {1 << 26}")
        addresses = [self.inside_ip, *self.outside_ips, *([self.gateway] if self.gateway else [])]
        numbers = [build.ip4_int(a) for a in addresses]
        if len(set(numbers)) != len(numbers):
            raise ConfigError(f"addresses {addresses}: one of them twice")
        inside = ipaddress.ip_network(f"{self.inside_ip}/{self.inside_prefix}", strict=False)
        if any(ipaddress.ip_address(a) in inside for a in addresses[1:]):
            raise ConfigError(f"an outside address lies in the inside network {inside}")
        if self.gateway and (numbers[-1] ^ numbers[1]) & self.mask(OUTSIDE):
            raise ConfigError(f"gateway {self.gateway} is not on the link of {self.outside_ips[0]}/{self.outside_prefix}")
        if any(build.mac_bytes(m)[0] & 1 for m in (self.inside_mac, self.outside_mac)):
            raise ConfigError("a port's MAC address is a group address", "the first byte must be even")

    def mask(self, port: int) -> int:
        """Netmask of a port's link."""
        prefix = self.outside_prefix if port else self.inside_prefix
        return (0xffffffff << (32 - prefix)) & 0xffffffff

    def mac(self, port: int) -> int:
        """Our MAC address on a port, as a number."""
        return int.from_bytes(build.mac_bytes(self.outside_mac if port else self.inside_mac), "big")

    def addresses(self, port: int) -> list[int]:
        """Our IPv4 addresses on a port; the first one defines the link."""
        return [build.ip4_int(a) for a in (self.outside_ips if port else [self.inside_ip])]

    def ip6(self, port: int) -> bytes:
        """Our IPv6 addresses on a port, 16 bytes each, joined."""
        return b"".join(build.ip6(a) for a in (self.outside_ip6s if port else self.inside_ip6s))

    @property
    def gateway_ip(self) -> int:
        """0 where there is none."""
        return build.ip4_int(self.gateway) if self.gateway else 0

    def announcements(self) -> list[tuple[int, bytes]]:
        """Gratuitous ARP and unsolicited NA for each of our addresses, and an ARP request for the gateway."""
        out: list[tuple[int, bytes]] = []
        for port, mac, ip6s in ((INSIDE, self.inside_mac, self.inside_ip6s), (OUTSIDE, self.outside_mac, self.outside_ip6s)):
            out += [(port, build.gratuitous_arp(mac, a)) for a in self.addresses(port)]
            out += [(port, build.unsolicited_na(mac, a)) for a in ip6s]
        if self.gateway:
            out.append((OUTSIDE, build.arp_request(self.outside_mac, self.outside_ips[0], self.gateway)))
        return out

    @property
    def arena_bytes(self) -> int:
        """An arena of this size holds the state, with room to spare for the runtime's own regions."""
        tables = 64 + 32 + 2 * 4 * 3 + (64 + 4 * 3 if self.filtering == "address_dependent" else 0)
        pools = len(self.outside_ips) * 3 * (self.port_hi - self.port_lo + 1) * 8
        return (1 << 20) + tables * self.flows_max + (64 + 12) * (self.neighbours_max + self.fragments_max) + pools


class NatState:
    """The structures, declared in one order by both NATs."""

    def __init__(self, state: State, c: NatConfig) -> None:
        addresses = len(c.outside_ips)
        self.counters = state.counters("nat", [f.name.lower() for f in Fate])
        self.sessions = state.flow_table(
            "sessions", capacity=c.flows_max, key_bytes=SESSION_KEY.itemsize, value=SESSION)
        self.mappings = state.flow_table(
            "mappings", capacity=c.flows_max, key_bytes=MAPPING_KEY.itemsize, value=MAPPING)
        self.ports = state.port_pool("external", lo=c.port_lo, hi=c.port_hi, addresses=addresses, protocols=3)
        self.by_port = state.array("by_port", np.uint32, (addresses * 3, c.port_hi - c.port_lo + 1))
        self.neighbours = state.flow_table(
            "neighbours", capacity=c.neighbours_max, key_bytes=NEIGHBOUR_KEY.itemsize, value=NEIGHBOUR)
        self.fragments = state.flow_table(
            "fragments", capacity=c.fragments_max, key_bytes=FRAGMENT_KEY.itemsize, value=FRAGMENT)
        self.permits = None
        if c.filtering == "address_dependent":
            self.permits = state.flow_table(
                "permits", capacity=c.flows_max, key_bytes=PERMIT_KEY.itemsize, value=PERMIT)
