"""Port: where frames come from and go to. The contract every source and sink meets, native or Python.

Picture     device --> | receive ring | --rx--> Burst --> app --> gate --tx--> | transmit ring | --flush--> device

Who calls           One thread, the polling thread, makes every call: rx, tx, flush, close. A port takes no lock. Only
                    `counters()` may be called from elsewhere; it reads numbers that may be one burst old.
In what order       tx any number of times, then flush once: a kick per burst, not per frame. rx whenever. Nothing waits:
                    who wants to sleep polls `fileno()`, where there is one.
Who owns the bytes  rx copies frames out of the ring into the caller's Burst and gives the slot back at once. tx and stage copy
                    into the ring; the caller's bytes are free when it returns. One pointer outlives its call: where stage put a
                    frame may be read until its publish, and as long as the port object lives even after close.
Whose clock         Burst.ts is CLOCK_MONOTONIC ns: when the kernel saw the frame, or when its sender published it. What a
                    frame's own file or wire says of time stays there.

rx(burst, max, index)   Appends up to `max` frames, whole, in the order they came, VLAN tags in place, each with port
                        number `index`; fewer when the burst has no more room: what does not fit waits in the ring.
                        Returns how many, 0 when there are none, -1 when the port is gone and everything was read.
tx(data, n)             1 taken; 0 full: flush, and try the same frame again later; -1 refused for good (shorter than 14
                        bytes, too long for the device, port gone), counted in tx_errors. A taken frame leaves in order.
stage(data, n)          Optional (else NULL): like tx, but the frame waits in the ring, whatever is flushed, until publish. So a gate
                        needs no bytes of its own: what it holds lies where it will leave from. While any is staged, tx
                        answers 0; a port may stage fewer than its ring holds.
publish()               The oldest staged frame is now as if tx had taken it: 1, or -1 when it was given up meanwhile.
flush()                 Frames that still wait in the ring (0: the device has them all), or -1: gone. Waiting frames need
                        another flush; they leave late rather than never, and nothing overtakes them.
discard()               Gives up what still waits, staged frames too. A node that stops being active calls it before anything else: frames
                        of the old term, held up by a fence or a dead link, must not leave in a new one (I9).

Gone                A device that vanished stays gone; a new one is a new port. `why_gone()` is the PortError to raise. A
                    link that is down is not gone: frames wait.
carrier()               False where the device knows that nobody is at the other end: what is sent now is lost on the way, unseen.
Restart             A port holds no state of the app and never travels to another node (I10). A ring that the kernel owns
                    dies with its socket: what it held is lost to this node, and that is what the standby's tap is for. A
                    memory ring lives as long as its memfd, and a successor goes on in it.
Counting            Every frame is in exactly one counter of `PortCounters`. Nothing is dropped in silence (I12).

From Python, for scripts and tests: rx_burst, tx_burst, tx_from, tx_frame, tx_flush, stage_frame, publish_frame (they raise PortError where the native call
says -1: gone). Native code calls the five of `nfckpt.native.port.Port` without the GIL, and no port that derives
from PythonPort should carry traffic that matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypedDict, runtime_checkable

from nfckpt.errors import PortError
from nfckpt.native.burst import Burst
from nfckpt.native.port import Port, PyPort

__all__ = ["Capabilities", "Port", "PortCounters", "PortLike", "PythonPort"]


class PortCounters(TypedDict):
    """Since the port was opened; frames, except where the name says bytes."""

    rx_frames: int          # handed out
    rx_bytes: int
    rx_ring_drops: int      # lost because the receive ring was full: we were too slow
    rx_oversize: int        # longer than a slot or FRAME_MAX, cut short, or of an impossible length: not handed out
    rx_bad_checksum: int    # handed out with only part of a checksum: offloads are on somewhere
    tx_frames: int          # the device took them
    tx_bytes: int
    tx_full: int            # calls of tx that were told "full"
    tx_errors: int          # refused for good, discarded, or still waiting when the device went away


class Capabilities(TypedDict):
    """What kind of port it is."""

    kind: str               # "af_packet", "memory", "pcap", ...
    transmit: bool
    kernel_timestamps: bool
    blocking: bool          # fileno() can be polled
    ring_frames: int        # how many frames may wait to be received


@runtime_checkable
class PortLike(Protocol):
    """What Python code may ask of any port."""

    @property
    def name(self) -> str: ...
    @property
    def gone(self) -> bool: ...

    def rx_burst(self, burst: Burst, max_frames: int = 32, index: int = 0) -> int: ...
    def tx_burst(self, frames: Iterable[bytes]) -> int: ...
    def tx_from(self, burst: Burst, first: int = 0) -> int: ...
    def tx_frame(self, frame: bytes) -> int: ...
    def tx_flush(self) -> int: ...
    def discard(self) -> int: ...
    def counters(self) -> PortCounters: ...
    def carrier(self) -> bool: ...
    def capabilities(self) -> Capabilities: ...
    def fileno(self) -> int: ...
    def why_gone(self) -> BaseException: ...
    def close(self) -> None: ...


class PythonPort(PyPort):
    """Base of ports written in Python: override py_rx, and py_tx and py_flush if it sends.

        class Echo(PythonPort):
            def __init__(self) -> None:
                self.name, self.queue = "echo", deque()
            def py_rx(self, max_frames):
                return [self.queue.popleft() for _ in range(min(max_frames, len(self.queue)))]
            def py_tx(self, frame):
                self.queue.append((frame, time.monotonic_ns()))
                return True

    They are called with the GIL held, on the polling thread. An exception makes the port gone: it is reported to
    `sys.unraisablehook` at once and raised as PortError by the next call that can raise.
    """

    def py_rx(self, max_frames: int) -> list[tuple[bytes, int]]:
        """Up to `max_frames` frames with the time at which each arrived (CLOCK_MONOTONIC ns; 0: nobody knows. Not
        when it was read: by its time a standby tells it from one like it), oldest first. Fewer say that there are no more; set
        `py_hidden` while some wait behind one that is not ready."""
        return []

    def py_tx(self, frame: bytes) -> bool | None:
        """Take one frame: True; False when full; None: refused for good. An exception: the port is gone."""
        raise PortError(f"port {self.name} cannot send")

    def py_flush(self) -> int | None:
        """Send what py_tx took; how many still wait (None: none)."""
        return 0
