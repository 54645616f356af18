# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Port: base class of every port, and the bridge to ports written in Python. See nfckpt/ports/port.py."""
import sys
from collections import deque

from nfckpt.errors import PortError

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy
from nfckpt.native.burst cimport BURST_MAX, FRAME_MAX


cdef class Port:
    """Base of all ports. Native ports override rx, tx, flush; Python ports derive from nfckpt.ports.PythonPort."""

    def __cinit__(self, *args, **kwargs):
        self.name = "port"
        self.gone = False

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        """Append up to max_frames to b, each with port `index`. Returns how many, or -1: gone."""
        return 0

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        """Copy one frame into the transmit ring. 1 taken, 0 full (flush, try later), -1 refused for good."""
        return -1

    cdef int flush(self) noexcept nogil:
        """Hand the ring to the device. Returns frames still waiting, or -1: gone."""
        return 0

    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil:
        """Copy one frame into the transmit ring, where it waits for `publish`: no flush sends it before. Returns where it lies
        until then; NULL: this port cannot, or not now. While any is staged, `tx` answers "full"."""
        return NULL

    cdef int publish(self) noexcept nogil:
        """The oldest staged frame may leave, as if tx had just taken it: 1, or -1: it was given up."""
        return -1

    def rx_burst(self, Burst burst not None, int max_frames=32, int index=0):
        """Append up to `max_frames` frames to `burst`. Returns how many. Raises PortError when the port is gone."""
        cdef int n
        with nogil:
            n = self.rx(burst, max_frames, <uint8_t>index)
        if n < 0:
            raise self.why_gone()
        return n

    def tx_burst(self, frames):
        """Send an iterable of bytes-like frames, then flush. Returns how many were used up, in order, from the first.

        Stops at the first that finds the ring full. A frame refused for good is used up (and counted in tx_errors).
        Raises PortError when the port is gone.
        """
        cdef int used = 0
        for frame in frames:
            if self.tx_frame(frame) == 0:
                break
            used += 1
        self.tx_flush()
        return used

    def tx_from(self, Burst burst not None, int first=0):
        """tx_burst for the frames of a burst, from number `first` on, without touching Python objects: for generators."""
        cdef int used = max(first, 0), waiting
        with nogil:
            while used < burst.n and self.tx(burst.data(used), burst.length[used]) != 0:
                used += 1
            waiting = self.flush()
        if waiting < 0:
            raise self.why_gone()
        return used - first

    def tx_frame(self, frame not None):
        """tx for one bytes-like frame, no flush: 1 taken, 0 full, -1 refused for good."""
        cdef const uint8_t[::1] view = frame
        cdef const uint8_t* p = &view[0] if view.shape[0] else NULL
        cdef uint32_t n = <uint32_t>min(view.shape[0], 0xffffffff)
        cdef int r
        with nogil:
            r = self.tx(p, n)
        return r

    def stage_frame(self, frame not None):
        """stage for one bytes-like frame: False where the port cannot, or not now."""
        cdef const uint8_t[::1] view = frame
        return view.shape[0] > 0 and self.stage(&view[0], <uint32_t>min(view.shape[0], 0xffffffff)) != NULL

    def publish_frame(self):
        """publish: 1, or -1: the frame was given up."""
        return self.publish()

    def tx_flush(self):
        """flush. Returns how many frames still wait. Raises PortError when the port is gone."""
        cdef int waiting
        with nogil:
            waiting = self.flush()
        if waiting < 0:
            raise self.why_gone()
        return waiting

    def discard(self):
        """Give up the frames that still wait to be sent: they never leave, and count as tx_errors. Returns how many."""
        return 0

    def why_gone(self):
        """The PortError to raise once rx or flush has said -1: which port, and what killed it."""
        return PortError(f"port {self.name} is gone", "see `nfckpt doctor`")

    def counters(self):
        """dict of the counters in port.pxd, all frames or bytes since the port was opened."""
        self.refresh_counters()
        return dict(self.c)

    def refresh_counters(self):
        """Read the kernel's own drop counters into ours. Ports with a kernel ring override this."""

    def fileno(self):
        """A descriptor that polls readable when frames wait, or -1 where there is none."""
        return -1

    def carrier(self):
        """Is there somebody at the other end of the cable? True where that cannot be told."""
        return True

    def capabilities(self):
        """dict: kernel_timestamps, transmit, blocking (bools), ring_frames (int), kind (str)."""
        return {"kind": "null", "transmit": False, "kernel_timestamps": False, "blocking": False, "ring_frames": 0}

    def close(self):
        """Give everything back. Idempotent."""
        self.gone = True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


cdef class PyPort(Port):
    """Calls py_rx, py_tx and py_flush with the GIL held, wherever the native loop comes from.

    An exception in one of them makes the port gone: `error` keeps it, `sys.unraisablehook` sees it at once (the native
    caller cannot), and the next rx_burst or tx_flush raises PortError from it.
    """

    def __cinit__(self, *args, **kwargs):
        self._left = deque()

    cdef void _fail(self, object error):
        self.error = error
        self.gone = True
        sys.unraisablehook(_Report(error, self))

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        with gil:
            return self._rx(b, max_frames, index)

    def _rx(self, Burst b, int max_frames, int index):
        cdef int n = 0
        cdef uint8_t* p
        cdef bytes frame
        cdef Py_ssize_t size
        try:
            if not self.gone and not self._left:
                self._left.extend(self.py_rx(min(max_frames, BURST_MAX - b.n)))
            while self._left and n < max_frames:
                frame, ts = self._left[0]
                size = len(frame)
                if size > FRAME_MAX:
                    self._left.popleft()
                    self.c.rx_oversize += 1
                    continue
                p = b.append(<uint32_t>size, <uint8_t>index, ts)
                if p == NULL:
                    break
                memcpy(p, <const uint8_t*>frame, size)
                self._left.popleft()
                self.c.rx_frames += 1
                self.c.rx_bytes += size
                n += 1
            if self.py_hidden:
                b.hidden |= <uint32_t>1 << index
        except BaseException as e:
            self._left.clear()
            self._fail(e)
        return n if n or not self.gone else -1

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        with gil:
            return self._tx(PyBytes_FromStringAndSize(<const char*>data, n))

    def _tx(self, bytes frame):
        cdef int r = -1
        if not self.gone:
            try:
                taken = self.py_tx(frame)
                r = -1 if taken is None else 1 if taken else 0
            except BaseException as e:
                self._fail(e)
        if r > 0:
            self.c.tx_frames += 1
            self.c.tx_bytes += len(frame)
        elif r == 0:
            self.c.tx_full += 1
        else:
            self.c.tx_errors += 1
        return r

    cdef int flush(self) noexcept nogil:
        with gil:
            return self._flush()

    def _flush(self):
        if not self.gone:
            try:
                return self.py_flush() or 0
            except BaseException as e:
                self._fail(e)
        return -1

    def count(self, str counter, int n=1):
        """Add n to one of the counters, for what only the Python side can see (rx_ring_drops, rx_oversize, tx_errors)."""
        counters = dict(self.c)
        if counter not in counters:
            raise KeyError(counter)
        counters[counter] += n
        self.c = counters

    def why_gone(self):
        if self.error is None:
            return PortError(f"port {self.name} is closed")
        if not isinstance(self.error, Exception):
            return self.error           # Ctrl-C in the middle of py_rx stays a Ctrl-C
        error = PortError(f"port {self.name} is gone: {getattr(self.error, 'message', self.error)}", getattr(self.error, "hint", ""))
        error.__cause__ = self.error
        return error


class _Report:
    """What sys.unraisablehook wants to be told (it takes any object with these names)."""

    err_msg = "nfckpt port failed"

    def __init__(self, error, port):
        self.exc_type, self.exc_value, self.exc_traceback, self.object = type(error), error, error.__traceback__, port
