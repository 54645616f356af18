"""pcap files as a port: what a capture holds comes in, what is sent goes into another. And the writer by itself.

Picture     file    | header 24 | record | record | ...         magic a1b2c3d4 (us) or a1b23c4d (ns), either byte order
            record  | seconds u32 | fraction u32 | captured u32 | length u32 | bytes ... |

Read: both precisions, both byte orders, Ethernet only. Frames come as fast as they are asked for, with ts = now: an app's
time is the pair's clock (I15), not the file's. At the end rx returns 0 for ever and `exhausted` is True. A record that was
cut short at capture, or is longer than FRAME_MAX, counts as rx_oversize; a file that ends inside a record ends there, and
the rest counts as one rx_oversize.
Written: nanoseconds, CLOCK_REALTIME, in PATH.part, renamed to PATH by close() (a killed process leaves PATH.part, readable). A disk that is full removes PATH.part,
raises PortError once, and the port is gone.
Source: draft-ietf-opsawg-pcap. For pcapng: `editcap -F nsecpcap in.pcapng out.pcap`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from pathlib import Path
from typing import BinaryIO

from nfckpt.errors import PortError
from nfckpt.ports.port import Capabilities, PythonPort

__all__ = ["PcapPort", "PcapReader", "PcapWriter"]

MAGIC_US, MAGIC_NS = 0xA1B2C3D4, 0xA1B23C4D
PCAPNG = b"\x0a\x0d\x0d\x0a"
ETHERNET = 1
FRAME_MAX = 9216
RECORD_BYTES_MAX = 1 << 20      # a record that claims more is not believed


class PcapReader:
    """Frames of one capture. `read()` gives (frame, time in ns since 1970), or None at the end.

    Raises PortError when the file is not an Ethernet pcap.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.skipped = 0        # records snapped, too long, or cut off by the end of the file
        try:
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115  closed by close()
        except OSError as e:
            raise PortError(f"{path}: {e.strerror}", "the form is pcap:IN,OUT") from None
        head = self._file.read(24)
        for order in "<>":
            magic = struct.unpack(order + "I", head[:4])[0] if len(head) == 24 else 0
            if magic in (MAGIC_US, MAGIC_NS):
                break
        else:
            self._file.close()
            hint = "convert it with `editcap -F nsecpcap`" if head[:4] == PCAPNG else "a pcap file begins with a1b2c3d4"
            raise PortError(f"{path} is not a pcap file", hint)
        self._record = struct.Struct(order + "4I")
        self._unit_ns = 1 if magic == MAGIC_NS else 1000
        link = struct.unpack(order + "I", head[20:])[0] & 0xFFFF
        if link != ETHERNET:
            self._file.close()
            raise PortError(f"{path} holds link type {link}, not Ethernet (1)")

    def read(self) -> tuple[bytes, int] | None:
        while head := self._file.read(16):
            if len(head) < 16:
                break
            seconds, fraction, captured, length = self._record.unpack(head)
            frame = self._file.read(captured) if captured <= RECORD_BYTES_MAX else b""
            if len(frame) < captured:
                break
            if captured < length or length > FRAME_MAX:
                self.skipped += 1
                continue
            return frame, seconds * 10**9 + fraction * self._unit_ns
        if head:                                # inside a record: what follows cannot be told apart
            self.skipped += 1
            self._file.seek(0, os.SEEK_END)
        return None

    def close(self) -> None:
        self._file.close()


class PcapWriter:
    """A nanosecond pcap. `write` takes CLOCK_MONOTONIC ns; the offset to CLOCK_REALTIME is taken when it is opened."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.part = self.path.with_name(self.path.name + ".part")
        self._offset = time.time_ns() - time.monotonic_ns()
        self._file: BinaryIO | None = None
        try:
            self._file = open(self.part, "wb")  # noqa: SIM115  closed by close()
            self._file.write(struct.pack("<IHHiIII", MAGIC_NS, 2, 4, 0, 0, RECORD_BYTES_MAX, ETHERNET))
            self._file.flush()
        except OSError as e:
            raise self._abandon(e) from None

    def write(self, frame: bytes, ts_ns: int) -> None:
        """Append one frame. Raises PortError when the disk is full; nothing is left behind then."""
        if self._file is None:
            raise PortError(f"{self.path} is closed")
        seconds, ns = divmod(ts_ns + self._offset, 10**9)
        try:
            self._file.write(struct.pack("<4I", seconds, ns, len(frame), len(frame)))
            self._file.write(frame)
        except OSError as e:
            raise self._abandon(e) from None

    def flush(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as e:
                raise self._abandon(e) from None

    def close(self) -> None:
        """Finish the file and give it its name. Idempotent. Raises PortError when the last bytes do not fit."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None
            self.part.replace(self.path)

    def _abandon(self, e: OSError) -> PortError:
        if self._file is not None:
            fd, self._file = self._file, None
            with contextlib.suppress(OSError):  # the same error again, for the bytes still buffered
                fd.close()
            self.part.unlink(missing_ok=True)
        return PortError(f"{self.path} cannot be written: {e.strerror}", "is the disk full?")


class PcapPort(PythonPort):
    """Receives the frames of `read`, sends into `write`; either may be None. Raises PortError."""

    def __init__(
        self, read: str | os.PathLike[str] | None = None, write: str | os.PathLike[str] | None = None
    ) -> None:
        self.name = f"pcap:{read or ''},{write or ''}"
        self.exhausted = read is None
        self._reader = PcapReader(read) if read else None
        self._skipped = 0
        try:
            self._writer = PcapWriter(write) if write else None
        except BaseException:
            if self._reader:
                self._reader.close()
            raise

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        out: list[tuple[bytes, int]] = []
        reader = self._reader
        if reader is None or self.exhausted:
            return out
        while len(out) < max_frames:
            record = reader.read()
            if record is None:
                self.exhausted = True
                break
            out.append((record[0], 0))
        self.count("rx_oversize", reader.skipped - self._skipped)
        self._skipped = reader.skipped
        return out

    def py_tx(self, frame: bytes) -> bool | None:
        if self._writer is None or not 14 <= len(frame) <= FRAME_MAX:
            return None
        self._writer.write(frame, time.monotonic_ns())
        return True

    def py_flush(self) -> int:
        if self._writer is not None:
            self._writer.flush()
        return 0

    def capabilities(self) -> Capabilities:
        return {
            "kind": "pcap", "transmit": self._writer is not None, "kernel_timestamps": False,
            "blocking": False, "ring_frames": 0,
        }

    def close(self) -> None:
        super().close()
        if self._reader is not None:
            self._reader.close()
        if self._writer is not None:
            self._writer.close()
