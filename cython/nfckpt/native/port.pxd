"""Port: the contract every packet source and sink meets, native side. The essay is in nfckpt/ports/port.py."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.burst cimport Burst

cdef struct PortCounters:
    uint64_t rx_frames
    uint64_t rx_bytes
    uint64_t rx_ring_drops      # frames the kernel (or a full ring) dropped before we could read them
    uint64_t rx_oversize        # longer than FRAME_MAX or snapped: not handed out
    uint64_t rx_bad_checksum    # partial checksum seen: offloads are on somewhere
    uint64_t tx_frames          # frames the device took
    uint64_t tx_bytes
    uint64_t tx_full            # calls refused because the ring was full: the caller tries again
    uint64_t tx_errors          # frames the device refused for good

cdef class Port:
    cdef public str name
    cdef PortCounters c
    cdef readonly bint gone     # the device vanished: once drained, rx returns -1 for ever

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil
    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int flush(self) noexcept nogil
    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil
    cdef int publish(self) noexcept nogil

cdef class PyPort(Port):        # bridge to ports written in Python: see nfckpt/ports/port.py PythonPort
    cdef readonly object error  # the exception that made it gone, or None
    cdef object _left           # frames py_rx gave beyond what the burst had room for
    cdef public bint py_hidden  # frames wait behind one that is not ready: the port is not empty, though py_rx gave no more
    cdef void _fail(self, object error)
