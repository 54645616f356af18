"""Kernel lease: emission that runs out without the process (DESIGN I9, profile *hosts*).

Picture     packet process --SO_MARK 0x4e000017--> AF_PACKET send
                                                      |
                       nf_tables, netdev egress on the data ports, inside the node's namespace
                                                      |
                     mark in set `live`?  { 0x4e000017 expires 62 ms }     yes -> out to the segment
                                                                           no  -> counted, dropped

            The process may be stopped, swapped out, hung or gone: the element runs out by itself, in the kernel.
            Nothing else sends on a data port, so **every** frame whose mark is not in the set is dropped, unmarked
            ones too (a neighbour solicitation of the host, a stray tool). The answer to a dead process is silence.

How to use  Renewing one and the same mark is *not* a fence: a process stopped between "the ack allows 80 ms more" and
            the system call would, when continued, get 80 fresh milliseconds from the kernel. So every beat has a mark
            of its own, armed **before** the beat is sent, and its ack only moves the sockets to that mark:

                seq, mark, ms = clock.beat(now)          # lease_clock.LeaseClock
                lease.renew(mark, ms)                    # runs from here, whatever becomes of us
                send_beat(seq)
                ...
                mark = clock.acked(seq, now)             # the standby's promise began after we armed
                if mark is not None: stamp(socket_fds, mark)

            At whatever instruction the process is stopped, its sockets carry a mark that dies within lease_ms of a
            time *before* the beat the standby answered.

Measured    Linux 6.18, HZ=250. The kernel counts set timeouts in jiffies, rounded down, from a clock up to one tick old:
            a lease of L ms ends between L - 1 tick and L, not later as long as the tick comes on time. 300 leases of
            100 ms under a spinning sender, both cores overloaded: the last send that passed began at most 99.94 ms after
            renew (p50 96 to 97; sooner than 95 only where the sender itself was held off). renew() costs 8 us alone and 77 us (p50)
            beside a sender that keeps both cores busy. SIGSTOP past the lease, SIGCONT: no frame. One mark renewed
            late instead of a mark a beat: it leaks (tests/test_fence_lease.py plants that bug and sees it).

Sender sees a frame that meets the shut fence makes send() fail with ENOBUFS. In a TX ring the kick fails so, and the frame
            keeps its slot (TP_STATUS_SEND_REQUEST) and leaves, in order, at the first kick after the fence opens again.
            So a port counts it and goes on; a node that is fenced for good closes its sockets and never arms again.
Solo        permanent(SOLO_MARK), stamp; when a standby joins again: arm and stamp a beat's mark, then revoke(SOLO_MARK),
            and only then may the standby be given its grant.

Not covered frames that passed the hook and wait below it (a qdisc, a NIC's queue, up to its own bound): the other side's
            margin_ms must cover them. A suspended machine or paused guest whose clock stood still sees no time pass,
            so no lease inside it runs out: fence such machines from outside. AF_XDP goes round the hook: no port may
            use it (PACKET_QDISC_BYPASS does not, on a kernel that has the hook). Root on the node can take the table
            away: a fence against faults, not malice.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable, Sequence

from nfckpt.errors import ConfigError, MachineError
from nfckpt.failover import nft
from nfckpt.netns import in_netns

__all__ = ["LEASE_MS_MAX", "LEASE_MS_MIN", "EgressLease", "stamp"]

LEASE_MS_MIN = 20           # below two jiffies at HZ=100 a timeout could round to 0, which nf_tables reads as "never"
LEASE_MS_MAX = 60_000

_SET, _CHAIN = "live", "out"
_ACCEPT, _DROP = 1, 0
_META_MARK, _MARK_TYPE = 3, 19


def stamp(fds: Iterable[int], mark: int) -> None:
    """Give every socket in `fds` the mark that its frames carry from now on (about 1 us each).

    Raises MachineError without CAP_NET_RAW (Linux >= 5.17) or CAP_NET_ADMIN.
    """
    for fd in fds:
        s = socket.socket(fileno=os.dup(fd))
        try:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
        except OSError as e:
            raise MachineError(f"cannot mark socket {fd}: {e.strerror}", "needs CAP_NET_ADMIN in its namespace") from None
        finally:
            s.close()


class EgressLease:
    """The lease of one node: nf_tables table `table` in `netns`, hooked to the egress of `ports`.

    netns   path of a network namespace, an open fd, or None for the caller's own
    ports   device names inside it, all of them data ports

    Nothing changes before `install()`. One thread (the packet loop) calls renew, permanent and revoke; remaining and
    dropped may be called from another. The table outlives the process on purpose: a dead node stays silent.
    Raises ConfigError for bounds, MachineError for what the kernel refuses.
    """

    def __init__(self, netns: str | int | None, ports: Sequence[str], table: str = "nfckpt") -> None:
        if not ports or len(set(ports)) != len(ports):
            raise ConfigError(f"a lease over ports {list(ports)}", "name each data port once")
        if not 0 < len(table.encode()) < 200:
            raise ConfigError(f"table name {table!r}", "1 to 199 bytes")
        self.ports = tuple(ports)
        self.table = table
        self._netns = netns                     # an fd must stay open until install()
        self._hot = nft.Nft(netns)
        self._cold = nft.Nft(netns)
        self._cold_lock = threading.Lock()
        where = nft.text(1, table), nft.text(2, _SET)
        key = nft.nest(1, nft.attr(1, b"\0" * 4))
        add = nft.message(nft.NEWSETELEM, *where, nft.nest(3, nft.nest(1, key, nft.u64(4, 0), nft.u64(5, 0))),
                          flags=nft.CREATE | nft.ACK)     # key, timeout, expiration
        # The hot message is built once; key, timeout and expiration are patched in place, counted from its end.
        self._add = nft.batch(add)
        end = len(self._add) - 20
        self._expires_at, self._timeout_at, self._key_at = end - 8, end - 20, end - 28
        self._where = where

    def install(self) -> None:
        """Put the fence in force, closed. A table of that name left by a dead predecessor is replaced in one step."""
        # Since Linux 6.16 a hook may name a device that does not exist; a typing error would then fence nothing.
        there = {name for _, name in in_netns(self._netns, socket.if_nameindex)}
        if absent := [p for p in self.ports if p not in there]:
            raise MachineError(f"no device {', '.join(absent)} to fence", "is every port in that namespace?")
        t = nft.text(1, self.table)
        hook = nft.nest(4, nft.u32(1, 1), nft.u32(2, 0),        # NF_NETDEV_EGRESS, priority 0
                        nft.nest(4, *(nft.text(1, p) for p in self.ports)))

        def rule(*expressions: tuple[str, bytes]) -> bytes:
            items = (nft.nest(1, nft.text(1, name), nft.attr(2 | 0x8000, data)) for name, data in expressions)
            return nft.message(nft.NEWRULE, t, nft.text(2, _CHAIN), nft.nest(4, *items), flags=nft.CREATE | nft.APPEND | nft.ACK)

        def verdict(code: int) -> tuple[str, bytes]:
            return "immediate", nft.u32(1, 0) + nft.nest(2, nft.nest(2, nft.u32(1, code)))

        code = self._cold.commit(nft.batch(
            nft.message(nft.NEWTABLE, t, flags=nft.CREATE),     # so that the deletion finds one
            nft.message(nft.DELTABLE, t),
            nft.message(nft.NEWTABLE, t, flags=nft.CREATE | nft.ACK),
            nft.message(nft.NEWSET, t, nft.text(2, _SET), nft.u32(3, 0x10), nft.u32(4, _MARK_TYPE), nft.u32(5, 4),
                        nft.u32(10, 1), nft.u32(12, 1000), flags=nft.CREATE | nft.ACK),
            nft.message(nft.NEWCHAIN, t, nft.text(3, _CHAIN), hook, nft.u32(5, _DROP), nft.text(7, "filter"),
                        flags=nft.CREATE | nft.ACK),
            rule(("meta", nft.u32(1, 1) + nft.u32(2, _META_MARK)),
                 ("lookup", nft.text(1, _SET) + nft.u32(2, 1)), verdict(_ACCEPT)),
            rule(("counter", b""), verdict(_DROP)),
        ))
        self._must(code, f"install the lease on {', '.join(self.ports)}")

    def renew(self, mark: int, ms: int) -> None:
        """Frames with `mark` may leave for `ms` milliseconds from now, then no more. About 20 us, waits for nothing.

        A mark that is still live is extended (or shortened) in place, without an instant in which it is missing; before
        Linux 6.12 the kernel leaves a live mark as it is, never longer. Beats have marks of their own: see above.
        """
        if not LEASE_MS_MIN <= ms <= LEASE_MS_MAX:
            raise ConfigError(f"a lease of {ms} ms", f"lease_ms must lie between {LEASE_MS_MIN} and {LEASE_MS_MAX}")
        a = self._add
        struct.pack_into("=I", a, self._key_at, mark)
        struct.pack_into(">Q", a, self._timeout_at, ms)
        struct.pack_into(">Q", a, self._expires_at, ms)
        code = self._hot.commit(a)
        if code:
            self._must(code, "renew the lease")

    def permanent(self, mark: int) -> None:
        """Frames with `mark` may leave until `revoke`: for a node that is solo by permission. Give it a fresh mark."""
        key = nft.nest(1, nft.attr(1, struct.pack("=I", mark)))
        code = self._hot.commit(nft.batch(nft.message(
            nft.NEWSETELEM, *self._where, nft.nest(3, nft.nest(1, key, nft.u64(4, 0))), flags=nft.CREATE | nft.ACK)))
        self._must(code, "make the lease permanent")

    def revoke(self, mark: int) -> None:
        """Frames with `mark` leave no more. A mark that has run out already is no error."""
        key = nft.nest(1, nft.attr(1, struct.pack("=I", mark)))
        code = self._hot.commit(nft.batch(nft.message(
            nft.DELSETELEM, *self._where, nft.nest(3, nft.nest(1, key)), flags=nft.ACK)))
        self._must(0 if code == errno.ENOENT else code, "revoke the lease")

    def remaining(self) -> dict[int, int | None]:
        """Live marks -> milliseconds left, None for permanent. For status; about 50 us."""
        with self._cold_lock:
            entries = self._cold.dump(nft.GETSETELEM, *self._where)
        out: dict[int, int | None] = {}
        for entry in entries:
            for _, raw in nft.attrs(nft.parse(entry).get(3, b"")):
                e = nft.parse(raw)
                left = e.get(5)
                mark = struct.unpack("=I", nft.parse(e[1])[1])[0]
                out[mark] = None if left is None else int.from_bytes(left, "big")
        return out

    def dropped(self) -> tuple[int, int]:
        """(frames, bytes) the fence has refused since install; for status."""
        with self._cold_lock:
            entries = self._cold.dump(nft.GETRULE, nft.text(1, self.table), nft.text(2, _CHAIN))
        for entry in entries:
            for _, raw in nft.attrs(nft.parse(entry).get(4, b"")):
                e = nft.parse(raw)
                if e.get(1) == b"counter\0":
                    c = nft.parse(e[2])
                    return int.from_bytes(c[2], "big"), int.from_bytes(c[1], "big")
        return 0, 0

    def remove(self) -> None:
        """Take the fence away, for a node that leaves in order; nothing of it stays. Idempotent until `close`."""
        t = nft.text(1, self.table)
        code = self._cold.commit(nft.batch(nft.message(nft.DELTABLE, t, flags=nft.ACK)))
        self._must(0 if code == errno.ENOENT else code, "remove the lease")

    def close(self) -> None:
        """Close the sockets. The fence stays in force."""
        self._hot.close()
        self._cold.close()

    def _must(self, code: int, what: str) -> None:
        if not code:
            return
        hint = {
            errno.EPERM: "needs CAP_NET_ADMIN in the namespace: run as root or in a user namespace",
            errno.EOPNOTSUPP: "needs Linux >= 5.16 with CONFIG_NETFILTER_EGRESS",
            errno.EEXIST: "another chain of that name holds the port",
            errno.ENOENT: "was install() called, and is the table still there?",
        }.get(code, "")
        raise MachineError(f"cannot {what}: {os.strerror(code)}", hint)
