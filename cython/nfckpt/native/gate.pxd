"""Output gate: frames wait here until the epoch that explains them is committed."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from nfckpt.native.port_set cimport MAX_PORTS, PortSet

cdef struct Held:
    uint64_t epoch
    uint64_t end                # position in the gate's own bytes after this frame
    const uint8_t* data         # in the port's transmit ring, or in the gate's own bytes
    uint16_t length
    uint8_t port
    uint8_t staged              # in the ring

@cython.final
cdef class Gate:
    cdef Held* held
    cdef uint8_t* buf
    cdef readonly uint32_t capacity
    cdef readonly uint64_t buf_bytes
    cdef uint32_t mask
    cdef uint64_t buf_head, buf_tail
    cdef readonly uint64_t head         # sequence number of the oldest frame not handed to a port
    cdef readonly uint64_t tail         # sequence number the next frame will get
    cdef readonly uint64_t captured     # frames below this number are in a captured epoch
    cdef uint64_t uncaptured_bytes      # of the others, each rounded up to 8
    cdef readonly uint64_t committed    # highest committed epoch; ALL when open
    cdef readonly uint64_t released_through  # every frame below this number has left the process for good
    cdef readonly uint64_t refused_full, refused_port
    cdef uint64_t* leaving              # of each port; in the page of this process's life, or here
    cdef uint64_t* left                 # released_through, likewise
    cdef uint64_t _own_leaving[MAX_PORTS]
    cdef uint64_t _own_left
    cdef PortSet _ports
    cdef uint32_t _behind[MAX_PORTS]    # frames a port has here because its ring had no room
    cdef uint32_t _waiting              # ports whose ring still holds frames after a flush

    cdef bint crowded(self) noexcept nogil
    cdef bint room(self, uint32_t frames, uint64_t nbytes) noexcept nogil
    cdef bint hold(self, uint8_t port, const uint8_t* data, uint32_t n, uint64_t epoch) noexcept nogil
    cdef void commit_through(self, uint64_t epoch) noexcept nogil
    cdef int leave(self) noexcept nogil
    cdef void capture(self) noexcept nogil
