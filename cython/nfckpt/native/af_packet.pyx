# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""AfPacketRing: the polling half of an AF_PACKET port; nfckpt/ports/af_packet.py opens the socket and says why so.

Picture     base | rx slot 0 | rx slot 1 | ... | tx slot 0 | tx slot 1 | ...        each slot_bytes, a power of two
            rx slot   status KERNEL -> USER (kernel filled it) -> KERNEL (we copied it out)
            tx slot   status AVAILABLE -> SEND_REQUEST (we filled it) -> SENDING -> AVAILABLE (the device is done)
            Status is the only word both sides write: read with acquire, written with release, last.

Promises    R1 rx makes no system call while frames flow, and one pair of them in 256 empty polls (is the device there?).
            R2 a frame's time is never later than the moment it is handed out.
            R3 a slot the device refused (down, no memory, an egress hook that drops) keeps its frame for the next
               flush, in order: nothing overtakes it.
Source      Documentation/networking/packet_mmap.rst, net/packet/af_packet.c (tpacket_snd, tpacket_rcv).
"""
import os
import struct

from nfckpt.errors import PortError

from libc.errno cimport EAGAIN, errno
from libc.string cimport memcpy
from nfckpt.native.burst cimport FRAME_MAX

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <linux/if.h>
    #include <linux/if_packet.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <time.h>

    #ifndef SIOCGIFMTU
    #define SIOCGIFMTU 0x8921
    #endif
    #define TX_DATA (TPACKET2_HDRLEN - sizeof(struct sockaddr_ll))

    typedef struct tpacket2_hdr slot_t;
    static inline uint32_t slot_status(const slot_t *s) { return __atomic_load_n(&s->tp_status, __ATOMIC_ACQUIRE); }
    static inline void slot_give(slot_t *s, uint32_t v) { __atomic_store_n(&s->tp_status, v, __ATOMIC_RELEASE); }

    static inline long long clock_ns(clockid_t c) {
        struct timespec t; clock_gettime(c, &t); return (long long)t.tv_sec * 1000000000 + t.tv_nsec; }
    /* CLOCK_MONOTONIC - CLOCK_REALTIME, right to a microsecond: a reading torn by preemption is taken again. */
    static inline long long mono_minus_real(long long *now) {
        long long a, r, b; int tries = 4;
        do { a = clock_ns(CLOCK_MONOTONIC); r = clock_ns(CLOCK_REALTIME); b = clock_ns(CLOCK_MONOTONIC); }
        while (b - a > 2000 && --tries);
        *now = b; return a + (b - a) / 2 - r; }

    static inline int kick(int fd) { return sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 ? errno : 0; }
    static inline int take_error(int fd) {
        int e = 0; socklen_t n = sizeof e; getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n); return e; }
    /* The device a packet socket is bound to; -1 once it was unregistered (packet_notifier). */
    static inline int bound_ifindex(int fd) {
        struct sockaddr_ll a; socklen_t n = sizeof a; memset(&a, 0, sizeof a);
        if (getsockname(fd, (struct sockaddr *)&a, &n) < 0) return -1;
        return a.sll_ifindex; }
    static inline int dev_ioctl(int fd, int ifindex, unsigned long what, struct ifreq *r) {
        memset(r, 0, sizeof *r); r->ifr_ifindex = ifindex;
        if (ioctl(fd, 0x8910 /* SIOCGIFNAME */, r) < 0) return -1;
        return ioctl(fd, what, r); }
    static inline int dev_mtu(int fd, int ifindex) {
        struct ifreq r; return dev_ioctl(fd, ifindex, SIOCGIFMTU, &r) < 0 ? -1 : r.ifr_mtu; }
    static inline int dev_up(int fd, int ifindex) {
        struct ifreq r; return dev_ioctl(fd, ifindex, 0x8913 /* SIOCGIFFLAGS */, &r) < 0 ? -1 : r.ifr_flags & IFF_UP; }
    """
    ctypedef struct slot_t:
        uint32_t tp_len, tp_snaplen, tp_sec, tp_nsec
        uint16_t tp_mac, tp_vlan_tci, tp_vlan_tpid
    uint32_t slot_status(const slot_t*) noexcept nogil
    void slot_give(slot_t*, uint32_t) noexcept nogil
    long long mono_minus_real(long long*) noexcept nogil
    long long clock_ns(int) noexcept nogil
    int kick(int) noexcept nogil
    int take_error(int) noexcept nogil
    int bound_ifindex(int) noexcept nogil
    int dev_mtu(int, int) noexcept nogil
    int dev_up(int, int) noexcept nogil
    uint16_t htons(uint16_t) noexcept nogil
    void* mmap(void*, size_t, int, int, int, long) noexcept nogil
    int munmap(void*, size_t) noexcept nogil
    const int CLOCK_MONOTONIC, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    const uint32_t TX_DATA, TP_STATUS_KERNEL, TP_STATUS_USER, TP_STATUS_CSUMNOTREADY
    const uint32_t TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID
    const uint32_t TP_STATUS_AVAILABLE, TP_STATUS_SEND_REQUEST, TP_STATUS_WRONG_FORMAT

cdef enum:
    LOOK_EVERY = 256                # empty polls between two looks at the device
    ETH_HEADER = 14
    VLAN_TAG = 4
    CPUS = 4                        # of the kernel's that may be in the middle of a frame at the same time

SOL_PACKET, PACKET_STATISTICS = 263, 6


cdef class AfPacketRing(Port):
    """Takes over a bound TPACKET_V2 socket whose rings were just made, and closes it in the end.

    `slot_bytes` is the frame size of both rings; `rx_slots` and `tx_slots` their frame counts.
    Raises PortError when the rings cannot be mapped; the socket then stays the caller's.
    """

    def __init__(self, str name, int fd, uint32_t slot_bytes, uint32_t rx_slots, uint32_t tx_slots):
        cdef void* p
        self.fd = -1
        self.map_bytes = <size_t>slot_bytes * (rx_slots + tx_slots)
        p = mmap(NULL, self.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0)
        if p == <void*>-1:
            raise PortError(f"{name}: rings of {self.map_bytes >> 20} MB cannot be mapped: {os.strerror(errno)}",
                            "lower rx_ring_frames or slot_bytes")
        self.base = <uint8_t*>p
        self.name, self.fd = name, fd
        self.slot_bytes, self.rx_slots, self.tx_slots = slot_bytes, rx_slots, tx_slots
        self.ifindex = bound_ifindex(fd)
        self._look()
        self.refresh_counters()

    cdef bint _unfinished(self) noexcept nogil:
        """The next place is not ready, but one behind it is: a CPU of the kernel has taken that place and was stopped before it had
        filled it (a guest's CPU may lose tens of ms to its host), and other CPUs went on. So the ring is not empty."""
        cdef uint32_t at = self.rx_next, k
        for k in range(CPUS):
            at = at + 1 if at + 1 < self.rx_slots else 0
            if slot_status(<slot_t*>(self.base + <size_t>at * self.slot_bytes)) & TP_STATUS_USER:
                return True
        return False

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        cdef slot_t* s
        cdef uint8_t* frame
        cdef uint8_t* p
        cdef uint32_t status, n, tag
        cdef uint16_t word
        cdef long long ts, offset = 0, now = 0
        cdef int got = 0
        if self.base == NULL:
            return -1
        while got < max_frames:
            s = <slot_t*>(self.base + <size_t>self.rx_next * self.slot_bytes)
            status = slot_status(s)
            if not status & TP_STATUS_USER:
                if self._unfinished():
                    b.hidden |= <uint32_t>1 << index
                break
            n = s.tp_snaplen
            tag = VLAN_TAG if status & TP_STATUS_VLAN_VALID else 0
            if n < s.tp_len or n + tag > FRAME_MAX or n < ETH_HEADER:
                self.c.rx_oversize += 1
            else:
                if now == 0:
                    offset = mono_minus_real(&now)
                ts = <long long>s.tp_sec * 1000000000 + s.tp_nsec + offset
                if ts > now:                    # came in after this call began, or somebody set the clock
                    now = clock_ns(CLOCK_MONOTONIC)
                    ts = min(ts, now)
                p = b.append(n + tag, index, <uint64_t>ts)
                if p == NULL:
                    break
                frame = <uint8_t*>s + s.tp_mac
                if tag:                         # the kernel took it off, always: put it back after the two MACs
                    memcpy(p, frame, 12)
                    word = htons(s.tp_vlan_tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100)
                    memcpy(p + 12, &word, 2)
                    word = htons(s.tp_vlan_tci)
                    memcpy(p + 14, &word, 2)
                    memcpy(p + 16, frame + 12, n - 12)
                else:
                    memcpy(p, frame, n)
                if status & TP_STATUS_CSUMNOTREADY:
                    self.c.rx_bad_checksum += 1
                self.c.rx_bytes += n + tag
                got += 1
            slot_give(s, TP_STATUS_KERNEL)
            self.rx_next += 1
            if self.rx_next == self.rx_slots:
                self.rx_next = 0
        if got:
            self.c.rx_frames += got
            self.rx_idle = 0
            return got
        self.rx_idle += 1
        if self.rx_idle >= LOOK_EVERY:
            self._look()
        return -1 if self.gone else 0

    cdef bint _legal(self, const uint8_t* data, uint32_t n) noexcept nogil:
        """PACKET_LOSS makes the kernel skip what it dislikes without a word, so what it dislikes is found here."""
        cdef uint32_t limit = self.mtu + ETH_HEADER
        if n > limit and n <= limit + VLAN_TAG and data[12] == 0x81 and data[13] == 0:
            limit += VLAN_TAG
        return self.base != NULL and not self.gone and ETH_HEADER <= n <= limit and n <= self.slot_bytes - TX_DATA

    cdef void* _fill(self, const uint8_t* data, uint32_t n) noexcept nogil:
        """Write one frame into the slot behind those that wait and those that are staged. NULL: the ring is full."""
        cdef uint32_t at = self.tx_next + self.tx_staged
        cdef slot_t* s
        if at >= self.tx_slots:
            at -= self.tx_slots
        s = <slot_t*>(self.base + <size_t>(self.rx_slots + at) * self.slot_bytes)
        if self.tx_waiting + self.tx_staged == self.tx_slots or slot_status(s) != TP_STATUS_AVAILABLE:
            return NULL
        s.tp_len = n
        memcpy(<uint8_t*>s + TX_DATA, data, n)
        return s

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        cdef void* s
        if not self._legal(data, n):
            self.c.tx_errors += 1
            return -1
        s = self._fill(data, n) if self.tx_staged == 0 else NULL
        if s == NULL:
            self.c.tx_full += 1
            return 0
        self._give(s)
        return 1

    cdef void _give(self, void* slot) noexcept nogil:
        slot_give(<slot_t*>slot, TP_STATUS_SEND_REQUEST)
        self.tx_next = self.tx_next + 1 if self.tx_next + 1 < self.tx_slots else 0
        self.tx_waiting += 1

    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil:
        # the kernel stops at the first slot that is not marked for it: what is staged waits, whatever is kicked
        cdef void* s = self._fill(data, n) if self._legal(data, n) else NULL
        if s == NULL:
            return NULL
        self.tx_staged += 1
        return <const uint8_t*>s + TX_DATA

    cdef int publish(self) noexcept nogil:
        if self.tx_staged == 0 or self.base == NULL or self.gone:
            self.c.tx_errors += 1
            return -1
        self.tx_staged -= 1
        self._give(self.base + <size_t>(self.rx_slots + self.tx_next) * self.slot_bytes)
        return 1

    cdef int flush(self) noexcept nogil:
        cdef int error
        if self.base == NULL:
            return -1
        if self.tx_waiting:
            error = kick(self.fd)
            self._advance()
            if error and error != EAGAIN:       # down, no carrier, gone, or an egress hook that drops
                self._look()
        return -1 if self.gone else <int>self.tx_waiting

    cdef void _advance(self) noexcept nogil:
        """Step over the slots the device has taken. A WRONG_FORMAT (older kernels, whatever PACKET_LOSS says) is spent."""
        cdef slot_t* s
        cdef uint32_t status
        while self.tx_waiting:
            s = <slot_t*>(self.base + <size_t>(self.rx_slots + self.tx_kick) * self.slot_bytes)
            status = slot_status(s)
            if status & TP_STATUS_SEND_REQUEST:
                return
            if status & TP_STATUS_WRONG_FORMAT:
                self.c.tx_errors += 1
                slot_give(s, TP_STATUS_AVAILABLE)
            else:
                self.c.tx_frames += 1
                self.c.tx_bytes += s.tp_len
            self.tx_kick = self.tx_kick + 1 if self.tx_kick + 1 < self.tx_slots else 0
            self.tx_waiting -= 1

    cdef void _look(self) noexcept nogil:
        """Is the device there (else: gone), is it up, what is its MTU? Also takes the error that makes poll() return."""
        cdef int up, mtu
        self.rx_idle = 0
        if self.fd < 0:
            return
        take_error(self.fd)
        if bound_ifindex(self.fd) != self.ifindex:
            self._lose()
            return
        up = dev_up(self.fd, self.ifindex)
        mtu = dev_mtu(self.fd, self.ifindex)
        if up < 0 or mtu < 0:               # moved into another namespace: as good as unplugged
            self._lose()
            return
        self.link_down = up == 0
        self.mtu = <uint32_t>mtu

    cdef void _lose(self) noexcept nogil:
        if not self.gone:
            self.gone = True
            self.c.tx_errors += self.tx_waiting     # nothing will ever take them
            self.tx_waiting = 0

    def discard(self):
        # the kernel looks for work at tx_kick and nowhere else: what is filled next must begin there again
        cdef int given_up = self.tx_waiting + self.tx_staged
        self.tx_staged = 0
        while self.tx_waiting:
            self.tx_next = (self.tx_next if self.tx_next else self.tx_slots) - 1
            slot_give(<slot_t*>(self.base + <size_t>(self.rx_slots + self.tx_next) * self.slot_bytes),
                      TP_STATUS_AVAILABLE)
            self.tx_waiting -= 1
        self.c.tx_errors += given_up
        return given_up

    def refresh_counters(self):
        """Add the kernel's drop count since last time (reading resets it)."""
        cdef object packets, drops
        if self.fd >= 0:
            packets, drops = struct.unpack("II", _getsockopt(self.fd, SOL_PACKET, PACKET_STATISTICS, 8))
            self.c.rx_ring_drops += drops

    def waiting(self):
        """Frames in the receive ring, up to the first place that is not ready. Between two reads, on the reading thread."""
        cdef uint32_t at = self.rx_next, n = 0
        while self.base != NULL and n < self.rx_slots and slot_status(<slot_t*>(self.base + <size_t>at * self.slot_bytes)) & TP_STATUS_USER:
            at = at + 1 if at + 1 < self.rx_slots else 0
            n += 1
        return n

    @property
    def rx_frames(self):
        """Frames handed out."""
        return self.c.rx_frames

    def fileno(self):
        return self.fd

    def capabilities(self):
        return {"kind": "af_packet", "transmit": True, "kernel_timestamps": True, "blocking": True,
                "ring_frames": self.rx_slots}

    def why_gone(self):
        if self.fd < 0:
            return PortError(f"port {self.name} is closed")
        return PortError(f"port {self.name}: its device was removed", "make it again, then open the port again")

    def close(self):
        """Unmap and close. Frames not yet taken by the device are given up, and counted in tx_errors."""
        if self.base != NULL:
            self.refresh_counters()
            if self.tx_staged:                  # the gate over it may read them until it is gone too
                self.closed = self.base
            self.discard()
            self.gone = True
            if self.closed == NULL:
                munmap(self.base, self.map_bytes)
            self.base = NULL
            os.close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.map_bytes)
            os.close(self.fd)
        if self.closed != NULL:
            munmap(self.closed, self.map_bytes)


cdef extern from "sys/socket.h" nogil:
    int getsockopt(int, int, int, void*, unsigned int*)


cdef bytes _getsockopt(int fd, int level, int option, unsigned int n):
    cdef char buf[64]
    if getsockopt(fd, level, option, buf, &n) < 0:
        raise OSError(errno, os.strerror(errno))
    return buf[:n]
