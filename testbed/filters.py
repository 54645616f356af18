"""Filters: what nf_tables does to the testbed's ports. Two ports of a learning switch see each other's unicast frames, both ways, each
frame once; a port passes nothing; a port loses frames at random.

    in the switch's namespace:  mirror("a", "b")
                                shut("a", True)         # a copy does not ask the bridge whether the port forwards
    in a node's:                lose("rep", 20)         # percent of what comes in; 0: no more

Picture     client ── [c]   switch   [a] ── active        to the virtual MAC   c ─► a by the table, and copied ─► b
                      learns, floods [b] ── standby       from the active      a ─► c by the table, and copied ─► b
                                                          broadcast, multicast flooded to both: nothing to copy

Why         On a hub the standby hears what the active hears and says. A switch sends a frame only where its table says that the
            address is; so the pair's two ports are a mirror session of each other, as a switch with SPAN in both directions and
            ingress on its destination offers. Who is active is not configured: the table follows the virtual MAC, which moves
            to the port it last sent from, and the copies follow the table.

How         nf_tables, family netdev, by netlink: no `nft` program is needed. A mirror is on both ports. A mark says what has been done to a frame inside the switch; it does not survive the cable.

            from a port (ingress)   unicast: mark COPY, dup to the other one, mark DONE (if it is flooded, not to the other again)
            to a port (egress)      COPY: pass   DONE: drop   unicast: mark COPY, dup to the other one

Source      switches' manuals on SPAN; Linux net/netfilter/nft_payload.c, nf_dup_netdev.c; include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct

from nfckpt.errors import MachineError
from nfckpt.failover import nft

__all__ = ["lose", "mirror", "shut"]

COPY, DONE = 0x6D01, 0x6D02
INGRESS, EGRESS = 0, 1
ACCEPT, DROP = 1, 0
TABLE = "mirror"

Expression = tuple[str, bytes]


def mirror(a: str, b: str) -> None:
    """Make ports `a` and `b`, of a bridge in the calling thread's namespace, mirrors of each other. Once for a pair of ports.

    Raises MachineError where the kernel has no netdev hooks or no dup.
    """
    table = nft.text(1, TABLE)
    messages = [nft.message(nft.NEWTABLE, table, flags=nft.CREATE | nft.ACK)]
    for port, other in (a, b), (b, a):
        copy = [*_is_unicast(), *_set_mark(COPY), *_dup(socket.if_nametoindex(other))]
        messages += _chain(TABLE, f"from-{port}", port, INGRESS, [*copy, *_set_mark(DONE)])
        messages += _chain(TABLE, f"to-{port}", port, EGRESS,
                           [*_mark_is(COPY), _verdict(ACCEPT)], [*_mark_is(DONE), *_is_unicast(), _verdict(DROP)], copy)
    _commit(messages, f"mirror {a} and {b}")


def shut(port: str, closed: bool) -> None:
    """Let nothing in or out by `port`, copies included, or let it pass again. Idempotent. Raises MachineError."""
    name = f"shut-{port}"
    chains = [_chain(name, f"side-{side}", port, side, policy=DROP, priority=-1) for side in (INGRESS, EGRESS)] if closed else []
    _commit(_anew(name, chains), f"{'shut' if closed else 'open'} {port}")


def lose(port: str, percent: int) -> None:
    """Drop so many of a hundred frames that come in by `port`, at random; 0: none any more. Idempotent. Raises MachineError."""
    name = f"lose-{port}"
    chains = [_chain(name, "in", port, INGRESS, [*_at_random(percent), _verdict(DROP)])] if percent else []
    _commit(_anew(name, chains), f"lose {percent} % of what comes by {port}")


def _anew(table_name: str, chains: list[list[bytes]]) -> list[bytes]:
    """The table holds these chains and nothing else; without any it is gone."""
    table = nft.text(1, table_name)
    messages = [nft.message(nft.NEWTABLE, table, flags=nft.CREATE), nft.message(nft.DELTABLE, table, flags=nft.ACK)]
    if chains:
        messages += [nft.message(nft.NEWTABLE, table, flags=nft.CREATE | nft.ACK)]
    return messages + [message for chain in chains for message in chain]


def _commit(messages: list[bytes], what: str) -> None:
    link = nft.Nft()
    try:
        code = link.commit(nft.batch(*messages))
    finally:
        link.close()
    if code:
        raise MachineError(f"cannot {what}: {os.strerror(code)}", "needs CONFIG_NETFILTER_INGRESS, _EGRESS and CONFIG_NFT_DUP_NETDEV")


def _chain(table_name: str, name: str, port: str, side: int, *rules: list[Expression], policy: int = ACCEPT, priority: int = 0) -> list[bytes]:
    table = nft.text(1, table_name)
    hook = nft.nest(4, nft.u32(1, side), nft.attr(2, struct.pack(">i", priority)), nft.text(3, port))
    made = [nft.message(nft.NEWCHAIN, table, nft.text(3, name), hook, nft.u32(5, policy), nft.text(7, "filter"), flags=nft.CREATE | nft.ACK)]
    for rule in rules:
        items = (nft.nest(1, nft.text(1, kind), nft.attr(2 | 0x8000, data)) for kind, data in rule)
        made.append(nft.message(nft.NEWRULE, table, nft.text(2, name), nft.nest(4, *items), flags=nft.CREATE | nft.APPEND | nft.ACK))
    return made


# Expressions; all work in register 1.


def _value(kind: int, raw: bytes) -> bytes:
    return nft.nest(kind, nft.attr(1, raw))


def _is_unicast() -> list[Expression]:
    """The lowest bit of the destination address's first byte is 0."""
    return [("payload", nft.u32(1, 1) + nft.u32(2, 0) + nft.u32(3, 0) + nft.u32(4, 1)),
            ("bitwise", nft.u32(1, 1) + nft.u32(2, 1) + nft.u32(3, 1) + _value(4, b"\1") + _value(5, b"\0")),
            ("cmp", nft.u32(1, 1) + nft.u32(2, 0) + _value(3, b"\0"))]


def _mark_is(mark: int) -> list[Expression]:
    return [("meta", nft.u32(1, 1) + nft.u32(2, 3)), ("cmp", nft.u32(1, 1) + nft.u32(2, 0) + _value(3, struct.pack("=I", mark)))]


def _at_random(percent: int) -> list[Expression]:
    """The kernel's random number is below this share of 2**32, which is at least 1."""
    return [("meta", nft.u32(1, 1) + nft.u32(2, 24)), ("cmp", nft.u32(1, 1) + nft.u32(2, 3) + _value(3, struct.pack(">I", (percent << 32) // 100 - 1)))]


def _set_mark(mark: int) -> list[Expression]:
    return [("immediate", nft.u32(1, 1) + _value(2, struct.pack("=I", mark))), ("meta", nft.u32(2, 3) + nft.u32(3, 1))]


def _dup(index: int) -> list[Expression]:
    return [("immediate", nft.u32(1, 1) + _value(2, struct.pack("=I", index))), ("dup", nft.u32(2, 1))]


def _verdict(code: int) -> Expression:
    return "immediate", nft.u32(1, 0) + nft.nest(2, nft.nest(2, nft.u32(1, code)))
