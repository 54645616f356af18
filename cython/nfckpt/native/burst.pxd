"""Burst: up to 256 frames handed over together; the only thing that crosses to native code per call."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    BURST_MAX = 256
    FRAME_MAX = 9216            # bytes of one frame, VLAN tag included
    HEADROOM = 64               # free bytes before each frame

cdef enum Verdict:
    OWNED = 0                   # the app still has it: no cut can be made
    SEND = 1
    DROP = 2
    DONE = 4                    # gone: sent, dropped or parked; the agent sets it

cdef enum Frag:
    WHOLE = 0
    FRAG_FIRST = 1              # carries the L4 header
    FRAG_LATER = 2              # does not: ports read 0

cdef class Burst:
    cdef uint8_t* buf
    cdef uint32_t buf_bytes, buf_used
    cdef readonly int n         # frames in the burst
    cdef uint32_t hidden        # bit i: port i seemed empty, but frames wait behind one that its kernel has not finished
    # one entry a frame; each is the memory of the numpy column of the same name
    cdef uint32_t* off          # first byte in buf
    cdef uint32_t* length       # bytes
    cdef uint8_t* port          # index of the input port
    cdef uint64_t* ts           # when the kernel (or the ring) saw it, CLOCK_MONOTONIC ns
    cdef uint64_t* key          # nf_frame_key, set by the agent
    cdef uint8_t* verdict       # Verdict
    cdef uint8_t* out_port      # where a SEND goes
    # headers, filled by headers.parse (host byte order)
    cdef uint16_t* eth_type     # after VLAN tags
    cdef uint16_t* vlan         # VLAN id of the outer tag, 0xffff where there is none
    cdef uint8_t* ip_version    # 4, 6, or 0 where the frame is neither or is malformed
    cdef uint8_t* malformed     # 1: a length or header does not fit the frame
    cdef uint8_t* frag          # Frag
    cdef uint8_t* proto         # IP protocol after IPv6 extension headers
    cdef uint16_t* l3_off       # offsets from the frame's first byte
    cdef uint16_t* l4_off       # 0 where there is no L4 header
    cdef uint16_t* ip_len       # bytes of the IP packet, header included
    cdef uint32_t* src_ip       # IPv4
    cdef uint32_t* dst_ip
    cdef uint16_t* src_port     # TCP, UDP; ICMP echo: the identifier in both
    cdef uint16_t* dst_port
    cdef uint8_t* tcp_flags
    cdef uint8_t* icmp_type     # ICMP and ICMPv6
    cdef uint8_t* icmp_code
    cdef uint8_t* src_ip6       # 16 bytes a frame
    cdef uint8_t* dst_ip6
    cdef dict _columns

    @cython.final
    cdef inline uint8_t* data(self, int i) noexcept nogil:
        return self.buf + self.off[i]

    @cython.final
    cdef inline void clear(self) noexcept nogil:
        self.n = 0
        self.hidden = 0
        self.buf_used = 0

    @cython.final
    cdef inline bint has_room(self) noexcept nogil:
        return self.n < BURST_MAX and self.buf_bytes - self.buf_used >= FRAME_MAX + 2 * HEADROOM

    @cython.final
    cdef inline uint8_t* append(self, uint32_t nbytes, uint8_t port, uint64_t ts) noexcept nogil:
        """Room for one more frame, or NULL when the burst is full. `nbytes` <= FRAME_MAX."""
        cdef int i = self.n
        if nbytes > FRAME_MAX or not self.has_room():
            return NULL
        self.off[i] = self.buf_used + HEADROOM
        self.buf_used = (self.off[i] + nbytes + 63) & ~<uint32_t>63
        self.length[i] = nbytes
        self.port[i] = port
        self.ts[i] = ts
        self.verdict[i] = OWNED
        self.n = i + 1
        return self.buf + self.off[i]
