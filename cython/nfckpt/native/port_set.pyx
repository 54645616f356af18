# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""PortSet: the ports of one node, reachable by index without the GIL.

A list of objects cannot be indexed without the GIL; sixteen typed attributes can. Everything native that reads or writes
ports (agent, gate, tap) does it through this one.
"""
from nfckpt.errors import StateError


cdef class PortSet:
    """`ports`: at most 16. Raises StateError for more."""

    def __cinit__(self, list ports not None):
        cdef list padded
        if not 0 < len(ports) <= MAX_PORTS:
            raise StateError(f"{len(ports)} ports: 1 to {MAX_PORTS} are possible")
        self.ports, self.n = ports, len(ports)
        padded = ports + [None] * (MAX_PORTS - len(ports))
        self.p0 = padded[0]
        self.p1 = padded[1]
        self.p2 = padded[2]
        self.p3 = padded[3]
        self.p4 = padded[4]
        self.p5 = padded[5]
        self.p6 = padded[6]
        self.p7 = padded[7]
        self.p8 = padded[8]
        self.p9 = padded[9]
        self.p10 = padded[10]
        self.p11 = padded[11]
        self.p12 = padded[12]
        self.p13 = padded[13]
        self.p14 = padded[14]
        self.p15 = padded[15]

    cdef int rx(self, int i, Burst b, int max_frames) noexcept nogil:
        """As Port.rx of port i, whose index the frames get."""
        if i == 0:
            return self.p0.rx(b, max_frames, <uint8_t>i)
        elif i == 1:
            return self.p1.rx(b, max_frames, <uint8_t>i)
        elif i == 2:
            return self.p2.rx(b, max_frames, <uint8_t>i)
        elif i == 3:
            return self.p3.rx(b, max_frames, <uint8_t>i)
        elif i == 4:
            return self.p4.rx(b, max_frames, <uint8_t>i)
        elif i == 5:
            return self.p5.rx(b, max_frames, <uint8_t>i)
        elif i == 6:
            return self.p6.rx(b, max_frames, <uint8_t>i)
        elif i == 7:
            return self.p7.rx(b, max_frames, <uint8_t>i)
        elif i == 8:
            return self.p8.rx(b, max_frames, <uint8_t>i)
        elif i == 9:
            return self.p9.rx(b, max_frames, <uint8_t>i)
        elif i == 10:
            return self.p10.rx(b, max_frames, <uint8_t>i)
        elif i == 11:
            return self.p11.rx(b, max_frames, <uint8_t>i)
        elif i == 12:
            return self.p12.rx(b, max_frames, <uint8_t>i)
        elif i == 13:
            return self.p13.rx(b, max_frames, <uint8_t>i)
        elif i == 14:
            return self.p14.rx(b, max_frames, <uint8_t>i)
        elif i == 15:
            return self.p15.rx(b, max_frames, <uint8_t>i)
        return -1

    cdef int tx(self, int i, const uint8_t* data, uint32_t n) noexcept nogil:
        """As Port.tx of port i."""
        if i == 0:
            return self.p0.tx(data, n)
        elif i == 1:
            return self.p1.tx(data, n)
        elif i == 2:
            return self.p2.tx(data, n)
        elif i == 3:
            return self.p3.tx(data, n)
        elif i == 4:
            return self.p4.tx(data, n)
        elif i == 5:
            return self.p5.tx(data, n)
        elif i == 6:
            return self.p6.tx(data, n)
        elif i == 7:
            return self.p7.tx(data, n)
        elif i == 8:
            return self.p8.tx(data, n)
        elif i == 9:
            return self.p9.tx(data, n)
        elif i == 10:
            return self.p10.tx(data, n)
        elif i == 11:
            return self.p11.tx(data, n)
        elif i == 12:
            return self.p12.tx(data, n)
        elif i == 13:
            return self.p13.tx(data, n)
        elif i == 14:
            return self.p14.tx(data, n)
        elif i == 15:
            return self.p15.tx(data, n)
        return -1

    cdef int flush(self, int i) noexcept nogil:
        """As Port.flush of port i."""
        if i == 0:
            return self.p0.flush()
        elif i == 1:
            return self.p1.flush()
        elif i == 2:
            return self.p2.flush()
        elif i == 3:
            return self.p3.flush()
        elif i == 4:
            return self.p4.flush()
        elif i == 5:
            return self.p5.flush()
        elif i == 6:
            return self.p6.flush()
        elif i == 7:
            return self.p7.flush()
        elif i == 8:
            return self.p8.flush()
        elif i == 9:
            return self.p9.flush()
        elif i == 10:
            return self.p10.flush()
        elif i == 11:
            return self.p11.flush()
        elif i == 12:
            return self.p12.flush()
        elif i == 13:
            return self.p13.flush()
        elif i == 14:
            return self.p14.flush()
        elif i == 15:
            return self.p15.flush()
        return -1

    cdef const uint8_t* stage(self, int i, const uint8_t* data, uint32_t n) noexcept nogil:
        """As Port.stage of port i."""
        if i == 0:
            return self.p0.stage(data, n)
        elif i == 1:
            return self.p1.stage(data, n)
        elif i == 2:
            return self.p2.stage(data, n)
        elif i == 3:
            return self.p3.stage(data, n)
        elif i == 4:
            return self.p4.stage(data, n)
        elif i == 5:
            return self.p5.stage(data, n)
        elif i == 6:
            return self.p6.stage(data, n)
        elif i == 7:
            return self.p7.stage(data, n)
        elif i == 8:
            return self.p8.stage(data, n)
        elif i == 9:
            return self.p9.stage(data, n)
        elif i == 10:
            return self.p10.stage(data, n)
        elif i == 11:
            return self.p11.stage(data, n)
        elif i == 12:
            return self.p12.stage(data, n)
        elif i == 13:
            return self.p13.stage(data, n)
        elif i == 14:
            return self.p14.stage(data, n)
        elif i == 15:
            return self.p15.stage(data, n)
        return NULL

    cdef int publish(self, int i) noexcept nogil:
        """As Port.publish of port i."""
        if i == 0:
            return self.p0.publish()
        elif i == 1:
            return self.p1.publish()
        elif i == 2:
            return self.p2.publish()
        elif i == 3:
            return self.p3.publish()
        elif i == 4:
            return self.p4.publish()
        elif i == 5:
            return self.p5.publish()
        elif i == 6:
            return self.p6.publish()
        elif i == 7:
            return self.p7.publish()
        elif i == 8:
            return self.p8.publish()
        elif i == 9:
            return self.p9.publish()
        elif i == 10:
            return self.p10.publish()
        elif i == 11:
            return self.p11.publish()
        elif i == 12:
            return self.p12.publish()
        elif i == 13:
            return self.p13.publish()
        elif i == 14:
            return self.p14.publish()
        elif i == 15:
            return self.p15.publish()
        return -1


cdef object raise_gone(PortSet ports):
    """Raise why a port is gone, for a caller that was told -1."""
    for port in ports.ports:
        if port.gone:
            raise port.why_gone()
    raise StateError("a port answered that it is gone, and none is")
