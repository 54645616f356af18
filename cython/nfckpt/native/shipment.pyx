# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Shipment: with `input = "ship"` each burst goes to the standby before the app gets it. There is no tap: a switch that learns sends the
pair's frames to the active alone.

    | session u64 | released_through u64 | port u16 | length u16 | number u32 | bytes, padded to 8 | port u16 | …         kind INPUTS

So the standby has what the app may already have answered for, and names trim it as they trim a tap. What a dead active's kernel had
received and not handed out is lost; `number` tells how many: it counts every frame that came to the port's device, and over one kernel
the standby can ask the device (nfckpt/ports/arrivals.py). Outputs are not seen leaving: `released_through` is what the standby knows of them.

Promises    H1 a record follows the frames that it names.
            H2 one burst waits at most: while the channel has no room for it nothing more is read.
"""
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from nfckpt.native.ack cimport KIND_INPUTS
from nfckpt.native.burst cimport BURST_MAX, FRAME_MAX

cdef uint64_t HEAD = sizeof(ShipmentHead)
cdef uint64_t BYTES_MAX = sizeof(ShipmentHead) + MAX_PORTS * sizeof(InputHead) + BURST_MAX * (sizeof(InputHead) + FRAME_MAX + 7)


cdef class Shipment:
    """Of one active; `begin` for each session."""

    def __cinit__(self):
        self.buf = <uint8_t*>malloc(BYTES_MAX)
        if self.buf == NULL:
            raise MemoryError
        self.n = HEAD

    def __dealloc__(self):
        free(self.buf)

    def begin(self, uint64_t session):
        """The standby of this session gets what is read from now on."""
        self.session = session
        self.told = 0
        self.n = HEAD

    def attach(self, Channel channel):
        """Where it goes; None: Python carries it (`take`)."""
        self.has_channel = channel is not None
        self.channel = channel

    def stands_at(self, int port, uint32_t number):
        """So many frames of all that came to this port's device were read, or given up, by now. Between two polls."""
        cdef InputHead* head = <InputHead*>(self.buf + self.n)
        if not 0 <= port < MAX_PORTS:
            raise IndexError(port)
        if self.n + sizeof(InputHead) > BYTES_MAX:
            raise IndexError("more than one word of each port waits")
        head.port, head.length, head.number = port, 0, number
        self.number[port] = number
        self.n += sizeof(InputHead)

    cdef void add(self, Burst b) noexcept nogil:
        """The frames of one poll, in the order in which they will be named."""
        cdef InputHead* head
        cdef uint32_t i, padded
        for i in range(<uint32_t>b.n):
            head = <InputHead*>(self.buf + self.n)
            padded = (b.length[i] + 7) & ~<uint32_t>7
            self.number[b.port[i]] += 1
            head.port, head.length, head.number = b.port[i], <uint16_t>b.length[i], self.number[b.port[i]]
            memcpy(head + 1, b.data(i), b.length[i])
            memset(<uint8_t*>(head + 1) + b.length[i], 0, padded - b.length[i])
            self.n += sizeof(InputHead) + padded

    cdef bint clear(self, uint64_t released_through) noexcept nogil:
        """True when no frame waits here (any more)."""
        return self.n == HEAD or self.send(released_through)

    cdef bint send(self, uint64_t released_through) noexcept nogil:
        """Whatever the standby does not know yet. True when it is on its way."""
        cdef ShipmentHead* head = <ShipmentHead*>self.buf
        if self.n == HEAD and released_through == self.told:
            return True
        head.session, head.released_through = self.session, released_through
        if not self.has_channel or self.channel.push(KIND_INPUTS, self.buf, self.n) != 1:
            return False
        self.channel.drain()
        self.n, self.told = HEAD, released_through
        return True

    def take(self, uint64_t released_through):
        """What `send` would send, as bytes, or None; it is the caller's now."""
        cdef ShipmentHead* head = <ShipmentHead*>self.buf
        if self.n == HEAD and released_through == self.told:
            return None
        head.session, head.released_through = self.session, released_through
        cdef bytes out = self.buf[:self.n]
        self.n, self.told = HEAD, released_through
        return out
