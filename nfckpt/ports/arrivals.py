"""Arrivals: how many frames came to a port's device, whoever read them; so a survivor can say how many nobody did.

Picture     the device's rx counter ── 1,000 ──┐
            read and shipped by the active     ├──► it died with 997 in hand: 3 frames lay in its ring, or came after
            (native/shipment.pyx) ──── 997 ────┘

`Arrivals` reads one device's counter, from any thread and whatever its namespace. `Stand` finds where the reader of a port stands
in that count. The counter may run ahead of the ring for microseconds (a frame counted, and still on a CPU's queue), never behind,
so of several looks the least is right.

Source: proc(5), /proc/PID/net/dev; drivers/net/veth.c: counted when the frame is handed to the receiving CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nfckpt.errors import NfckptError
from nfckpt.netns import in_netns
from nfckpt.ports.af_packet import AfPacketPort

__all__ = ["Arrivals", "Stand"]

LOOKS = 8


class Arrivals:
    """Of the device that `form` (open_port's mapping) names. Raises MachineError when its namespace may not be entered."""

    def __init__(self, form: Mapping[str, Any]) -> None:
        self.device = str(form["ifname"])
        # the file belongs to the namespace in which it was opened
        self._fd = in_netns(form.get("netns"), lambda: os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC))

    @classmethod
    def of(cls, form: Mapping[str, Any]) -> Arrivals | None:
        """None for a port that is no network device, or one that cannot be looked at from here."""
        if form.get("scheme") != "afpacket":
            return None
        try:
            return cls(form)
        except (NfckptError, OSError):
            return None

    def count(self) -> int | None:
        """Frames since the device was made. None: it is gone, or does not tell."""
        text = b""
        try:
            while more := os.pread(self._fd, 1 << 16, len(text)):
                text += more
        except OSError:
            return None
        for line in text.decode().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self.device:
                return int(numbers.split()[1])
        return None

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Stand:
    """Where the reader of `port` stands in its device's count. `look` now and then, on the reader's thread, between two reads."""

    def __init__(self, port: AfPacketPort, arrivals: Arrivals) -> None:
        self.port, self.arrivals = port, arrivals
        self.done = False
        self._before: int | None = None         # frames that came before those which the port ever handed out
        self._looks = 0

    def look(self) -> None:
        """20 µs; nothing after LOOKS of them."""
        if self.done:
            return
        waiting = self.port.waiting()           # before the count: what comes in between must not make it less
        count = self.arrivals.count()
        if count is not None:
            before = count - waiting - self.port.rx_frames
            self._before = before if self._before is None else min(self._before, before)
        self._looks += 1
        if self._looks == LOOKS or count is None:
            self.done = True
            self.arrivals.close()

    @property
    def number(self) -> int | None:
        """How many frames of the count are read, or given up, once `done`; what the ring drops from now on is neither. None: the device
        does not tell."""
        return None if self._before is None else self._before + self.port.rx_frames
