# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Port: base class of every port, and the bridge to ports written in Python. See nfckpt/ports/port.py."""
from nfckpt.errors import PortError


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

    def rx_burst(self, Burst burst not None, int max_frames=32, int index=0):
        """Append up to `max_frames` frames to `burst`. Returns how many. Raises PortError when the port is gone."""
        cdef int n
        with nogil:
            n = self.rx(burst, max_frames, <uint8_t>index)
        if n < 0:
            raise PortError(f"port {self.name} is gone", "see `nfckpt doctor`")
        return n

    def tx_burst(self, frames):
        """Send an iterable of bytes-like frames, then flush. Returns how many were taken, in order, from the first."""
        cdef const uint8_t[::1] view
        cdef int taken = 0, r
        for frame in frames:
            view = frame
            r = self.tx(&view[0], <uint32_t>view.shape[0]) if view.shape[0] else -1
            if r == 0:
                break
            taken += 1
        if self.flush() < 0:
            raise PortError(f"port {self.name} is gone", "see `nfckpt doctor`")
        return taken

    def counters(self):
        """dict of the counters in port.pxd, all frames or bytes since the port was opened."""
        self.refresh_counters()
        return dict(self.c)

    def refresh_counters(self):
        """Read the kernel's own drop counters into ours. Ports with a kernel ring override this."""

    def fileno(self):
        """A descriptor that polls readable when frames wait, or -1 where there is none."""
        return -1

    def capabilities(self):
        """dict: kernel_timestamps, transmit, blocking (bools), ring_frames (int), kind (str)."""
        return {"kind": "null", "transmit": False, "kernel_timestamps": False, "blocking": False, "ring_frames": 0}

    def close(self):
        """Give everything back. Idempotent."""
