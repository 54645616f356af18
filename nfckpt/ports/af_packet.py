"""AF_PACKET port: frames of one Linux device through TPACKET_V2 rings, opened in any network namespace.

Worked example
        port = AfPacketPort("veth-a", netns="node-a", mark=7)
        port.rx_burst(burst)                # copies out what the kernel has put into the ring, no system call
        port.tx_burst([frame, frame])       # fills slots, one sendto() for all

Why V2      A frame is visible 0.2 us after it was sent. V3 hands over whole blocks, when full or when a timer of
            at least 1 ms retires them: it hides frames from a standby for longer than a takeover lasts.
How         socket with protocol 0 (nothing queues before the bind), PACKET_VERSION, PACKET_IGNORE_OUTGOING (or we
            hear ourselves), PACKET_LOSS (a bad frame is skipped, else the ring stalls behind it), both rings, one
            mapping, bind ETH_P_ALL, promiscuous. Never PACKET_QDISC_BYPASS: it also goes round the egress hook, and
            a fence stands there.
Where       A namespace is entered by a thread that lives only for the opening: the caller's own namespace never
            changes, and a ring works from any thread, wherever it was opened.

Promises
P1  VLAN tags, which the kernel strips, are put back: a frame reads as it was on the wire.
P2  Nothing vanishes unseen: the ring's own drops are rx_ring_drops (sent = rx_frames + rx_ring_drops + rx_oversize),
    frames longer than a slot rx_oversize, offloaded checksums rx_bad_checksum (such frames are handed out).
P3  Link set down: `link_down` is True, frames wait in the transmit ring, flush says how many; they leave when it is up
    again. No carrier (the other end is down): frames count as sent, and are lost, as on a cable; `carrier()` asks the driver
    (the interface's flags lag by up to a second). Device removed: after the last frame in the ring rx returns -1, `gone` is True.
P4  An egress hook that drops (a fence) leaves the frame in the ring, and it leaves when the hook opens. So that no frame of
    an old term leaves under a new term's mark (I9), set_mark discards what waits.
P5  A failed opening leaves nothing open.

Errors: PortError (no such device), MachineError (no such namespace, a permission or kernel
feature is missing), ConfigError (ring sizes that cannot be).
Source: packet(7), Documentation/networking/packet_mmap.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import TypeVar

from nfckpt.errors import ConfigError, MachineError, PortError
from nfckpt.native.af_packet import AfPacketRing
from nfckpt.netns import in_netns

__all__ = ["AfPacketPort"]

_T = TypeVar("_T")

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_RX_RING = 5
PACKET_VERSION = 10
PACKET_TX_RING = 13
PACKET_LOSS = 14
PACKET_IGNORE_OUTGOING = 23
PACKET_MR_PROMISC = 1
TPACKET_V2 = 1
ETH_P_ALL = 3
SO_MARK = 36
CLONE_NEWNET = 0x40000000
SIOCETHTOOL, ETHTOOL_GLINK = 0x8946, 0xA

BLOCK_BYTES = 1 << 16               # one allocation of the kernel; slots never straddle two
SLOT_BYTES_MIN, SLOT_BYTES_MAX = 256, 16384
RING_BYTES_MAX = 1 << 30


class AfPacketPort(AfPacketRing):
    """Device `ifname` in network namespace `netns` (a name, a path, or None for the thread's own).

    `slot_bytes` (a power of two) bounds a frame: 80 bytes of it are the kernel's. `mark` is the socket mark an
    egress fence matches; `set_mark` changes it while the port is in use.
    """

    def __init__(
        self,
        ifname: str,
        netns: str | os.PathLike[str] | None = None,
        *,
        rx_ring_frames: int = 8192,
        tx_ring_frames: int = 2048,
        slot_bytes: int = 2048,
        mark: int = 0,
        name: str = "",
    ) -> None:
        where = f"{ifname}@{netns}" if netns else ifname
        rings = {"rx_ring_frames": rx_ring_frames, "tx_ring_frames": tx_ring_frames}
        if slot_bytes & (slot_bytes - 1) or not SLOT_BYTES_MIN <= slot_bytes <= SLOT_BYTES_MAX:
            raise ConfigError(
                f"slot_bytes = {slot_bytes}", f"a power of two from {SLOT_BYTES_MIN} to {SLOT_BYTES_MAX}"
            )
        for key, frames in rings.items():
            step = BLOCK_BYTES // slot_bytes
            if frames <= 0 or frames % step or frames * slot_bytes > RING_BYTES_MAX:
                raise ConfigError(f"{key} = {frames}", f"a multiple of {step} with slots of {slot_bytes} bytes")
        sock = in_netns(netns, lambda: _open(ifname, where, slot_bytes, rx_ring_frames, tx_ring_frames, mark))
        try:
            super().__init__(name or where, sock.fileno(), slot_bytes, rx_ring_frames, tx_ring_frames)
        except BaseException:
            sock.close()
            raise
        sock.detach()
        self._glink = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_GLINK, 1))
        self._ifreq = struct.pack("16sP8x", ifname.encode(), ctypes.addressof(self._glink))

    def carrier(self) -> bool:
        """What the driver says, now; about 1 us. True where it cannot tell, and for a device that is gone."""
        try:
            fcntl.ioctl(self.fd, SIOCETHTOOL, self._ifreq)
        except (OSError, ValueError):
            return True
        return self._glink.raw[4:8] != b"\0\0\0\0"

    def set_mark(self, mark: int) -> None:
        """SO_MARK of every frame sent from now on; frames that still wait are given up (P4).

        Raises PortError when closed, MachineError without CAP_NET_ADMIN.
        """
        if self.fd < 0:
            raise self.why_gone()
        self.discard()
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            _set_mark(sock, self.name, mark)


def _open(ifname: str, where: str, slot_bytes: int, rx: int, tx: int, mark: int) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    except PermissionError:
        raise MachineError(
            f"{where}: no permission to open a packet socket", "run as root, with CAP_NET_RAW, or in a box"
        ) from None
    try:
        try:
            ifindex = socket.if_nametoindex(ifname)
        except OSError:
            raise PortError(f"{where}: no such device", f"devices there: {_devices()}") from None
        if mark:
            _set_mark(sock, where, mark)
        step = "PACKET_VERSION"
        try:
            sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
            step = "PACKET_IGNORE_OUTGOING (Linux 4.20)"
            sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            sock.setsockopt(SOL_PACKET, PACKET_LOSS, 1)
            for ring, frames in ((PACKET_RX_RING, rx), (PACKET_TX_RING, tx)):
                step = f"a ring of {frames} slots of {slot_bytes} bytes"
                blocks = frames * slot_bytes // BLOCK_BYTES
                sock.setsockopt(SOL_PACKET, ring, struct.pack("4I", BLOCK_BYTES, blocks, slot_bytes, frames))
            step = "promiscuous mode"
            sock.setsockopt(
                SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8s", ifindex, PACKET_MR_PROMISC, 0, b"")
            )
            step = "bind"
            sock.bind((ifname, ETH_P_ALL))
        except OSError as e:
            if e.errno in (errno.ENODEV, errno.ENXIO):
                raise PortError(f"{where}: the device went away while it was opened") from None
            hint = "lower rx_ring_frames or slot_bytes" if e.errno == errno.ENOMEM else "see `nfckpt doctor`"
            raise MachineError(f"{where}: {step}: {e.strerror}", hint) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _set_mark(sock: socket.socket, where: str, mark: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("I", mark))
    except PermissionError:
        raise MachineError(f"{where}: no permission to mark frames", "SO_MARK needs CAP_NET_ADMIN") from None


def _devices() -> str:
    return ", ".join(name for _, name in socket.if_nameindex()) or "none"
