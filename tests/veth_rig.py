"""A real pair over packet sockets, each node in a namespace of its own, on the testbed's hubs; links and cables to cut.

    client eth0 ──hub_lan──┬── a lan   a wan ──┬──hub_wan── eth0 server      numbered traffic both ways, as in pair_rig
                           └── b lan   b wan ──┘
                                a rep ═ b rep                                the replication link (profile hosts)

`emitted` is what a hub received from a node: counted outside of the node, behind its fence, whatever the node believes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from nfckpt.config import NodeConfig
from nfckpt.failover import nft
from nfckpt.failover.witness import Answer, Question
from nfckpt.ports.af_packet import AfPacketPort
from nfckpt.testbed import netns
from nfckpt.testbed.topology import NODES, REP_IPS, Segment, Testbed
from tests.pair_rig import PairRig

_number = itertools.count()


class VethRig(PairRig):
    """`with VethRig("hosts", hang_ms_max=200) as rig:` as PairRig, but the kernel's fence and carrier are real."""

    SEGMENT: ClassVar[Segment] = "hub"
    BOUNDS: ClassVar[dict[str, Any]] = {
        "arena_bytes": 8 << 20, "message_bytes_max": 128 << 20, "rx_ring_frames": 4096, "tx_ring_frames": 1024,
        "rate_frames_per_s": 10_000}

    def _segments(self) -> tuple[list[Any], dict[str, NodeConfig]]:
        self.bed = self._stack.enter_context(Testbed(f"nfr{os.getpid()}x{next(_number)}", self.SEGMENT))
        ends = [self._stack.enter_context(AfPacketPort("eth0", netns=self.bed.ns(role))) for role in ("client", "server")]
        return ends, {node: NodeConfig(ports=[f"afpacket:{device}@{self.bed.ns(node)}" for device in ("lan", "wan")],
                                       address=f"{REP_IPS[node]}:7701", netns=self.bed.ns(node), cpu=i)
                      for i, node in enumerate(NODES)}

    def emitted(self, node: str) -> int:
        """Frames the hubs ever got from this node."""
        return sum(netns.run_in(self.bed.ns(hub), _received, node) for hub in ("hub_lan", "hub_wan"))

    @contextlib.contextmanager
    def deaf(self, node: str) -> Iterator[None]:
        """The replication link passes nothing *to* `node`; what it sends arrives."""
        wire = nft.Nft(self.bed.ns(node))
        table, device = nft.text(1, "deaf"), nft.nest(4, nft.text(1, "rep"))
        chain = nft.message(nft.NEWCHAIN, table, nft.text(3, "in"), nft.nest(4, nft.u32(1, 0), nft.u32(2, 0), device),
                            nft.u32(5, 0), nft.text(7, "filter"), flags=nft.CREATE | nft.ACK)
        code = wire.commit(nft.batch(nft.message(nft.NEWTABLE, table, flags=nft.CREATE | nft.ACK), chain))
        assert code == 0, errno.errorcode[code]
        try:
            yield
        finally:
            wire.commit(nft.batch(nft.message(nft.DELTABLE, table, flags=nft.ACK)))
            wire.close()

    @contextlib.contextmanager
    def cut(self, *links: str) -> Iterator[None]:
        """Nothing passes these links of the testbed, either way; nobody is told."""
        for link in links:
            self.bed.cut(link)
        try:
            yield
        finally:
            for link in links:
                self.bed.mend(link)

    @contextlib.contextmanager
    def no_witness(self, *nodes: str) -> Iterator[None]:
        """Nothing passes between the witness and the keepers of these nodes (none named: all)."""
        keepers = [self.pair.keepers[n] for n in nodes or NODES]
        for keeper in keepers:
            keeper._ask, keeper.hear = _nobody, _deaf      # type: ignore[method-assign]
        try:
            yield
        finally:
            for keeper in keepers:
                keeper._ask = self.pair._ask
                del keeper.hear


def _nobody(question: Question) -> Answer:
    raise ConnectionError("no witness")


def _deaf(answer: Answer) -> None:
    pass


def _received(device: str) -> int:
    """Frames a device of the calling thread's namespace received."""
    (row,) = [line for line in Path("/proc/thread-self/net/dev").read_text().splitlines() if line.strip().startswith(f"{device}:")]
    return int(row.split(":")[1].split()[1])
