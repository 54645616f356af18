"""How two packet processes of a pair find each other, by profile. The active listens, the follower dials.

    host     Unix socket RUN_DIR/PAIR.NODE.sock; memfds, eventfds and the life page travel over it
    hosts    TCP at the node's `address`, in its `netns`; authenticated by the pair's key
"""

from __future__ import annotations

import socket
from pathlib import Path

from nfckpt.config import PairConfig
from nfckpt.errors import PeerError, PortError
from nfckpt.netns import in_netns
from nfckpt.secrets import PairSecrets
from nfckpt.wire.keeper import NodeSpec
from nfckpt.wire.shm import ShmConnect, ShmListener, ShmOptions
from nfckpt.wire.tcp import TcpConnect, TcpListener, TcpOptions
from nfckpt.wire.transport import Transport

__all__ = ["Connector", "Listener"]

RING_BYTES = 4 << 20


def _path(spec: NodeSpec, node: str) -> Path:
    return Path(spec.run_dir) / f"{spec.config.name}.{node}.sock"


def _address(config: PairConfig, node: str) -> tuple[str, int]:
    host, _, port = config.nodes[node].address.rpartition(":")
    return host, int(port)


def _shm(config: PairConfig, life_fd: int) -> ShmOptions:
    return ShmOptions(ring_bytes=RING_BYTES, message_bytes_max=config.bounds.message_bytes_max, life_fd=life_fd)


def _tcp(config: PairConfig, spec: NodeSpec) -> TcpOptions:
    return TcpOptions(key=PairSecrets(spec.key).channel, message_bytes_max=config.bounds.message_bytes_max)


class Listener:
    """The active's side. `poll()` gives a channel or None; raises PortError when the address cannot be had."""

    def __init__(self, config: PairConfig, spec: NodeSpec, life_fd: int) -> None:
        self._of: ShmListener | TcpListener
        if config.profile == "host":
            self._of = ShmListener(_path(spec, spec.node), _shm(config, life_fd))
            return
        me = config.nodes[spec.node]
        host, port = _address(config, spec.node)

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
                sock.listen(8)
            except OSError as e:
                sock.close()
                raise PortError(f"cannot listen at {me.address}: {e.strerror}", "is another node of this pair running here?") from None
            sock.setblocking(False)
            return sock

        self._of = TcpListener(in_netns(me.netns or None, make), _tcp(config, spec))

    def poll(self) -> Transport | None:
        return self._of.accept() if isinstance(self._of, ShmListener) else self._of.poll()

    def prepare(self) -> None:
        """About once a millisecond: a little of what the next channel needs, so that its handshake holds nobody up."""
        if isinstance(self._of, ShmListener):
            self._of.prepare()

    @property
    def refused(self) -> int:
        """Handshakes that failed so far."""
        return self._of.refused

    @property
    def refusal(self) -> str:
        """Why the last handshake failed, "" while none did."""
        return self._of.last_refusal or ""

    def fileno(self) -> int:
        return self._of.fileno()

    def close(self) -> None:
        self._of.close()


class Connector:
    """The follower's side: dials `peer` again and again. `refusal`: why the last handshake failed, "" while none did."""

    def __init__(self, config: PairConfig, spec: NodeSpec, peer: str, life_fd: int) -> None:
        self._config, self._spec, self._peer, self._life_fd = config, spec, peer, life_fd
        self._of: ShmConnect | TcpConnect | None = None
        self.refusal = ""

    def poll(self) -> Transport | None:
        """One step. A channel, or None: not yet (nobody there, or still shaking hands)."""
        config = self._config
        if self._of is None:
            if config.profile == "host":
                self._of = ShmConnect(_path(self._spec, self._peer), _shm(config, self._life_fd))
            else:
                sock = self._dial()
                if sock is None:
                    return None
                self._of = TcpConnect(sock, _tcp(config, self._spec))
        try:
            transport = self._of.poll()
        except PeerError as e:
            self.refusal = str(e)
            self.close()
            return None
        if transport is not None:
            self._of = None             # the channel owns the socket now
        return transport

    def _dial(self) -> socket.socket | None:
        host, port = _address(self._config, self._peer)

        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            sock.settimeout(0.05)
            return sock

        sock = in_netns(self._config.nodes[self._spec.node].netns or None, make)
        try:
            sock.connect((host, port))
        except OSError:
            sock.close()
            return None
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        if self._of is not None:
            self._of.close()
            self._of = None
