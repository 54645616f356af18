"""Ports: where frames come from and go to. The contract is in port.py; open_port makes one from a word.

    afpacket:IFNAME[@NETNS]     a Linux device          {"scheme": "afpacket", "ifname": ..., "netns": ..., "mark": ...}
    mem:ENDPOINT@FD,FD,...      a segment in memory     MemoryHub(...).endpoint_spec(i)
    pcap:[IN.pcap][,OUT.pcap]   files                   {"scheme": "pcap", "read": ..., "write": ...}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from nfckpt.errors import ConfigError
from nfckpt.ports.af_packet import AfPacketPort
from nfckpt.ports.memory import MemoryHub, MemoryPort, open_endpoint
from nfckpt.ports.pcap import PcapPort
from nfckpt.ports.port import Capabilities, Port, PortCounters, PortLike, PythonPort

__all__ = [
    "AfPacketPort", "Capabilities", "MemoryHub", "MemoryPort", "PcapPort", "Port", "PortCounters", "PortLike",
    "PythonPort", "open_endpoint", "open_port", "parse_port",
]

FORMS = "afpacket:IFNAME[@NETNS], mem:ENDPOINT@FD,FD,... or pcap:[IN.pcap][,OUT.pcap]"

_SCHEMES: dict[str, Callable[..., Port]] = {
    "afpacket": AfPacketPort,
    "mem": MemoryPort.from_fds,
    "pcap": PcapPort,
}


def open_port(spec: str | Mapping[str, Any]) -> Port:
    """The port that `spec` names: one of the strings above, or a mapping with `scheme` and the arguments of the port's class.

    Raises ConfigError for a spec that makes no sense, PortError and MachineError when the port cannot be had.
    """
    given = parse_port(spec)
    scheme = given.pop("scheme", None)
    make = _SCHEMES.get(scheme) if isinstance(scheme, str) else None
    if make is None:
        raise ConfigError(f"no port can be made of {spec!r}", f"the forms are {FORMS}")
    known = inspect.signature(make).parameters
    unknown = sorted(set(given) - set(known))
    missing = [k for k, p in known.items() if p.default is p.empty and k not in given]
    if unknown or missing:
        wrong = f"unknown {', '.join(unknown)}" if unknown else f"missing {', '.join(missing)}"
        raise ConfigError(f"port {spec!r}: {wrong}", f"{scheme} takes {', '.join(known)}")
    return make(**given)


def parse_port(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that a port's string stands for: `scheme` and arguments. {} when it is none of the forms."""
    if not isinstance(spec, str):
        return dict(spec)
    scheme, _, rest = spec.partition(":")
    if scheme == "afpacket" and rest:
        ifname, _, netns = rest.partition("@")
        if ifname:
            return {"scheme": scheme, "ifname": ifname, "netns": netns or None}
    elif scheme == "pcap" and rest.strip(","):
        read, _, write = rest.partition(",")
        return {"scheme": scheme, "read": read or None, "write": write or None}
    elif scheme == "mem":
        endpoint, _, fds = rest.partition("@")
        if endpoint.isdigit() and fds:
            return {
                "scheme": scheme, "endpoint": int(endpoint),
                "fds": [int(fd) if fd.isdigit() else fd for fd in fds.split(",")],
            }
    return {}
