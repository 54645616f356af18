"""Quarantine: frames that the app did not survive, each in a capture with the traceback beside it.

    /var/lib/edge/quarantine/edge-nat-b-t2-1.pcap      the frame, as it came
                            edge-nat-b-t2-1.txt        port, key, term, and what the app said

Frames may hold what is nobody's business: the folder is 0700 and ours, the files are 0600. Promises: the folder grows to `bytes_max`
and no further, older files stay; what cannot be written is said in `said` and stops nobody.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from pathlib import Path

from nfckpt.errors import PortError
from nfckpt.ports.pcap import PcapWriter

__all__ = ["Quarantine"]


class Quarantine:
    """`folder`: "" for the default. Nothing is made before the first frame."""

    def __init__(self, folder: str, bytes_max: int) -> None:
        self.folder = Path(folder or f"{tempfile.gettempdir()}/nfckpt-{os.getuid()}-quarantine")
        self.bytes_max = bytes_max
        self.said = ""                  # why the last frame was not written down

    def add(self, name: str, frame: bytes, text: str) -> str:
        """Write `frame` and `text` down under `name`. Returns the capture's path, "" when it was not to be (`said`)."""
        self.said = ""
        body = text.encode(errors="backslashreplace")[:65536]
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            seen = self.folder.lstat()
            if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
                raise PermissionError(f"{self.folder} is not a private folder of ours")
            used = sum(p.stat().st_size for p in self.folder.iterdir())
            if used + len(frame) + len(body) + 64 > self.bytes_max:
                raise OSError(f"{self.folder} has {used} bytes, quarantine_bytes_max is {self.bytes_max}")
            path = self.folder / f"{name}.pcap"
            before = os.umask(0o077)
            try:
                pcap = PcapWriter(path)
                pcap.write(frame, time.monotonic_ns())
                pcap.close()
                path.with_suffix(".txt").write_bytes(body)
            finally:
                os.umask(before)
        except (OSError, PortError) as e:
            self.said = str(e)
            return ""
        return str(path)
