# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Traffic: numbered UDP datagrams, sent at a steady pace and accounted for one by one, without the GIL.

Picture     0       4        6      8     16      24          32      40                     payload_bytes
            | magic | stream | kind | seq | total | t_send_ns | check | filler (seq mod 256) ... |
              u32     u16      u16    u64   u64     u64         u64     all in host byte order

            kind 0 DATA, 1 PROBE (opens a mapping; not counted).  t_send_ns: CLOCK_MONOTONIC, one for all namespaces.
            seq counts in the stream, total over all streams of the sender.
            check = nf_hash(KEYS, nf_hash(KEYS, 0, bytes 0..32), bytes 40..)            (digest.pxd)

Sender      every millisecond (`tick_us`) one sendmmsg of what is due, the streams in turn. A number is used up only when the
            kernel took the datagram, so `sent` is exact. After a hole it catches up at twice the pace, at most 50 ms. One that
            comes before everybody else (`first`) catches up one tick at most and rests as long as it sent: on a machine that is
            slow for a while it would take the whole core, and what is measured would be the want of it.
Sink        reads its own TPACKET_V2 ring (see packet_mmap in the kernel's documentation), not a socket: a ring of
            16,384 frames needs no privilege over net.core.rmem_max and holds 0.8 s at 20,000 frames/s, so it may
            sleep a millisecond between looks and the kernel's timestamps still say when each frame came.
            `drops` above 0 means the sink was too slow: such a run proves nothing. When each of the last 262,144 frames was sent
            and came is kept (`times`).
Promises    every DATA frame with our MAC, a right IP header checksum, UDP checksum and check is counted once in `received`
            or in `duplicated`; every other frame to its ports is `corrupt`. Spells of late frames are logged: a one-way
            delay above `late_ns`, or a silence above it after which a total is missing (so a sender that was held up
            itself is not taken for an outage of what lies between).
"""
import mmap
import socket
import struct

from nfckpt.errors import MachineError, StateError

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from nfckpt.native.digest cimport nf_hash

cdef extern from * nogil:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <linux/if_packet.h>
    #include <netinet/in.h>
    #include <string.h>
    #include <sys/prctl.h>
    #include <sys/socket.h>
    #include <time.h>
    enum { NF_BATCH = 64 };
    static void nf_wake_on_time(void) { prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); }     /* this thread's; else up to 50 us late */
    typedef struct { uint32_t magic; uint16_t stream, kind; uint64_t seq, total, t_send, check; } nf_datagram;
    typedef struct { struct mmsghdr m[NF_BATCH]; struct iovec v[NF_BATCH]; } nf_batch;
    static const uint64_t nf_traffic_keys[4] = {
        0x9e3779b97f4a7c15u, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu, 0xd6e8feb86659fd93u };
    static uint64_t nf_clock(int id) { struct timespec t; clock_gettime(id, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }
    static void nf_sleep_until(uint64_t ns) {
        struct timespec t = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) ; }
    static int nf_send(nf_batch *b, int fd, struct sockaddr_in *to, uint8_t *bytes, uint32_t each, int n) {
        for (int i = 0; i < n; i++) {
            b->v[i].iov_base = bytes + (size_t)i * each; b->v[i].iov_len = each;
            memset(&b->m[i], 0, sizeof b->m[i]);
            b->m[i].msg_hdr.msg_iov = &b->v[i]; b->m[i].msg_hdr.msg_iovlen = 1;
            if (to->sin_family) { b->m[i].msg_hdr.msg_name = to; b->m[i].msg_hdr.msg_namelen = sizeof *to; }
        }
        return sendmmsg(fd, b->m, n, MSG_DONTWAIT); }
    static uint32_t nf_sum(const uint8_t *p, uint32_t n, uint32_t s) {     /* RFC 1071, not folded */
        uint16_t w; for (; n > 1; p += 2, n -= 2) { memcpy(&w, p, 2); s += w; }
        if (n) { w = 0; memcpy(&w, p, 1); s += w; } return s; }
    static int nf_sum_ok(uint32_t s) { s = (s & 0xffff) + (s >> 16); s += s >> 16; return (s & 0xffff) == 0xffff; }
    static int nf_for_us(const void *h) {     /* by its MAC: a kernel would drop what is meant for somebody else */
        return ((const struct sockaddr_ll *)((const char *)h + TPACKET_ALIGN(sizeof(struct tpacket2_hdr))))->sll_pkttype == 0; }
    /* IPv4/UDP packet of n bytes at p -> its payload, or NULL where a length or a checksum is wrong */
    static const uint8_t *nf_udp(const uint8_t *p, uint32_t n, uint32_t *bytes, uint32_t *ip, uint16_t *port) {
        uint32_t ihl = (p[0] & 15u) * 4; uint16_t total, u, sum;
        if (n < 28 || p[0] >> 4 != 4 || ihl < 20 || n < ihl + 8 || !nf_sum_ok(nf_sum(p, ihl, 0))) return NULL;
        memcpy(&total, p + 2, 2); memcpy(&u, p + ihl + 4, 2); memcpy(&sum, p + ihl + 6, 2);
        total = ntohs(total); u = ntohs(u);
        if (total > n || u < 8 || ihl + u != total || sum == 0) return NULL;   /* it was not 0 when it left */
        if (!nf_sum_ok(nf_sum(p + ihl, u, nf_sum(p + 12, 8, htons(17) + htons(u))))) return NULL;
        memcpy(ip, p + 12, 4); *ip = ntohl(*ip); memcpy(port, p + ihl, 2); *port = ntohs(*port);
        *bytes = u - 8; return p + ihl + 8; }
    """
    enum: NF_BATCH
    enum: CLOCK_MONOTONIC
    enum: CLOCK_REALTIME
    enum: TP_STATUS_USER
    enum: TP_STATUS_CSUMNOTREADY
    enum: EAGAIN
    ctypedef struct nf_datagram:
        uint32_t magic
        uint16_t stream
        uint16_t kind
        uint64_t seq
        uint64_t total
        uint64_t t_send
        uint64_t check
    ctypedef struct nf_batch:
        pass
    cdef struct in_addr:
        uint32_t s_addr
    cdef struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    cdef struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_net
        uint32_t tp_sec
        uint32_t tp_nsec
    const uint64_t* nf_traffic_keys
    uint64_t nf_clock(int) noexcept
    void nf_sleep_until(uint64_t) noexcept
    void nf_wake_on_time() noexcept
    int nf_send(nf_batch*, int, sockaddr_in*, uint8_t*, uint32_t, int) noexcept
    int nf_for_us(const void*) noexcept
    const uint8_t* nf_udp(const uint8_t*, uint32_t, uint32_t*, uint32_t*, uint16_t*) noexcept
    uint16_t htons(uint16_t)
    uint32_t htonl(uint32_t)
    uint32_t __atomic_load_n(uint32_t*, int)
    void __atomic_store_n(uint32_t*, uint32_t, int)
    enum: __ATOMIC_ACQUIRE
    enum: __ATOMIC_RELEASE

cdef enum:
    MAGIC = 0x3155464E      # "NFU1"
    HEADER = 40
    DATA = 0
    PROBE = 1
    STREAMS_MAX = 64
    EPISODES_MAX = 65536
    TICK_NS = 1000000
    KEPT = 262144           # frames whose times are kept
    CATCH_UP_NS = 50000000   # a sender that was held up longer skips the rest: no burst that nobody could carry
    RING = 16384            # frames in a sink's ring
    MERGE_NS = 10000000     # late frames closer than this are one episode

# setsockopt(2) values of linux/if_packet.h and asm-generic/socket.h that the socket module lacks
_SOL_PACKET, _RX_RING, _STATISTICS, _VERSION, _IGNORE_OUTGOING, _V2 = 263, 5, 6, 10, 23, 1
_ATTACH_FILTER = 26
_BLOCK = 1 << 16


def _attach(sock, program):
    """Attach a classic BPF program, a list of (code, jt, jf, k), to a socket. See bpf in the kernel's documentation."""
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    buffer = bytearray(code)
    cdef uint8_t[::1] view = buffer
    sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HP", len(program), <uintptr_t>&view[0]))


def deaf(sock):
    """Let a socket receive nothing while it keeps its port: no ICMP error is sent, no buffer fills. A Sink listens instead."""
    _attach(sock, [(0x06, 0, 0, 0)])


cdef uint64_t _check(const uint8_t* p, uint32_t n) noexcept nogil:
    return nf_hash(nf_traffic_keys, nf_hash(nf_traffic_keys, 0, p, 32), p + HEADER, n - HEADER)


def datagram(int stream, int kind, uint64_t seq, uint64_t total, uint64_t t_send, int payload_bytes):
    """One datagram as bytes, `payload_bytes` >= 40 long; kind 0 DATA, 1 PROBE."""
    if payload_bytes < HEADER:
        raise StateError(f"a payload of {payload_bytes} bytes has no room for the header of {HEADER}")
    out = bytearray(payload_bytes)
    cdef uint8_t[::1] view = out
    _fill(&view[0], <uint32_t>payload_bytes, <uint16_t>stream, <uint16_t>kind, seq, total, t_send)
    return bytes(out)


cdef void _fill(uint8_t* p, uint32_t n, uint16_t stream, uint16_t kind, uint64_t seq, uint64_t total,
                uint64_t t_send) noexcept nogil:
    cdef nf_datagram* d = <nf_datagram*>p
    d.magic, d.stream, d.kind, d.seq, d.total, d.t_send = MAGIC, stream, kind, seq, total, t_send
    memset(p + HEADER, <int>(seq & 0xff), n - HEADER)
    d.check = _check(p, n)


cdef class Sender:
    """`frames_s` datagrams a second over `targets`, one (fd, ip, port) a stream; ip None: the fd is connected. `tick_us`: between
    two looks at what is due. `first`: its thread has a real-time priority.

    Call `run` on a thread of its own; it returns after `halt`. Counters may be read at any time.
    """
    cdef nf_batch* batch
    cdef uint8_t* bytes_
    cdef int fds[STREAMS_MAX]
    cdef sockaddr_in to[STREAMS_MAX]
    cdef uint64_t seq[STREAMS_MAX]
    cdef uint32_t streams, payload, stopped
    cdef uint64_t rate, tick_ns
    cdef bint first
    cdef readonly uint64_t errors       # refused by the kernel: no route, no memory; the number is tried again
    cdef readonly uint64_t skipped      # due but not sent, because the sender was held up
    cdef readonly int last_errno

    def __cinit__(self, targets, uint64_t frames_s, uint32_t payload_bytes, uint32_t tick_us=1000, bint first=False):
        if not 0 < len(targets) <= STREAMS_MAX or payload_bytes < HEADER or not 0 < frames_s <= 1000000 or not 0 < tick_us <= 1000:
            raise StateError("a sender needs 1 to 64 streams, payloads of 40 bytes or more, 1 to 1,000,000 frames/s, ticks of 1 to 1,000 µs")
        self.batch = <nf_batch*>calloc(1, sizeof(nf_batch))
        self.bytes_ = <uint8_t*>calloc(NF_BATCH, payload_bytes)
        if self.batch == NULL or self.bytes_ == NULL:
            raise MemoryError
        self.first = first
        self.streams, self.payload, self.rate, self.tick_ns = <uint32_t>len(targets), payload_bytes, frames_s, 1000 * <uint64_t>tick_us
        for i, (fd, ip, port) in enumerate(targets):
            self.fds[i] = fd
            if ip is not None:
                self.to[i].sin_family = <uint16_t>socket.AF_INET
                self.to[i].sin_port = htons(<uint16_t>port)
                self.to[i].sin_addr.s_addr = htonl(<uint32_t>struct.unpack("!I", socket.inet_aton(ip))[0])

    def __dealloc__(self):
        free(self.batch)
        free(self.bytes_)

    def sent(self):
        """list[int]: numbers used up so far, by stream."""
        return [self.seq[i] for i in range(self.streams)]

    def halt(self):
        """Make `run` return within a millisecond."""
        __atomic_store_n(&self.stopped, 1, __ATOMIC_RELEASE)

    def run(self):
        with nogil:
            self._run()

    cdef void _run(self) noexcept nogil:
        cdef uint64_t start = nf_clock(CLOCK_MONOTONIC), tick = start, began, now, due, done = 0, total = 0
        cdef uint64_t most = 2 * self.rate * self.tick_ns // 1000000000 + 1
        cdef uint64_t behind = most if self.first else self.rate * CATCH_UP_NS // 1000000000 + most
        cdef uint32_t s = 0, n
        cdef int i, r
        nf_wake_on_time()
        while not __atomic_load_n(&self.stopped, __ATOMIC_ACQUIRE):
            began = now = nf_clock(CLOCK_MONOTONIC)
            due = (now - start) * self.rate // 1000000000 - done
            if due > behind:
                self.skipped += due - behind
                done += due - behind
                due = behind
            due = min(due, most)
            while due:
                n = <uint32_t>min(due, <uint64_t>NF_BATCH)
                now = nf_clock(CLOCK_MONOTONIC)
                for i in range(<int>n):
                    _fill(self.bytes_ + <uint64_t>i * self.payload, self.payload, <uint16_t>s, DATA,
                          self.seq[s] + i, total + i, now)
                r = nf_send(self.batch, self.fds[s], &self.to[s], self.bytes_, self.payload, <int>n)
                if r <= 0:
                    self.errors += 1
                    self.last_errno = errno
                    break
                self.seq[s] += r
                total += r
                done += r
                due -= r
            s = (s + 1) % self.streams
            now = nf_clock(CLOCK_MONOTONIC)
            tick = max(tick + self.tick_ns, now + (now - began) if self.first else now)
            nf_sleep_until(tick)


cdef struct Episode:
    uint64_t t_first, t_last    # arrival of the first and last late frame, CLOCK_MONOTONIC ns
    uint64_t seq                # of the first
    uint64_t stream
    uint64_t frames             # late ones
    uint64_t delay_ns, gap_ns   # largest one-way delay, largest silence with a loss in it


cdef struct Stream:
    uint8_t* seen               # one bit a number
    uint64_t next               # one above the largest number seen
    uint64_t received
    uint32_t ip
    uint16_t port
    uint16_t known


cdef class Sink:
    """Account for every datagram to UDP ports [first_port, first_port + ports) of `device`, in the namespace it is made in.

    Call `run` on a thread of its own; it returns after `halt`. Counters, `source`, `episodes` may be read at any time.
    Raises MachineError without CAP_NET_RAW or where the ring does not fit.
    """
    cdef uint8_t* ring
    cdef uint32_t frame_bytes, head, streams, payload, stopped
    cdef uint64_t seq_max, late_ns
    cdef Stream s[STREAMS_MAX]
    cdef Episode* log
    cdef uint64_t* kept                 # (sent, came) of frame n at 2 * (n mod KEPT)
    cdef readonly uint64_t received, duplicated, reordered, corrupt, source_changed, probes
    cdef readonly uint64_t delay_ns_max
    cdef readonly uint64_t last_ns      # arrival of the last DATA frame
    cdef uint64_t _next_total           # one above the largest total seen
    cdef readonly uint32_t n_episodes
    cdef readonly bint log_full
    cdef uint64_t _drops
    cdef object _sock, _map

    def __cinit__(self, str device, int first_port, int ports, uint32_t streams, uint32_t payload_bytes,
                  uint64_t late_ns=2000000, uint64_t seq_max=1 << 28):
        if not 0 < streams <= STREAMS_MAX or payload_bytes < HEADER:
            raise StateError("a sink takes 1 to 64 streams and payloads of 40 bytes or more")
        self.streams, self.payload, self.late_ns, self.seq_max = streams, payload_bytes, late_ns, seq_max
        self.frame_bytes = 256
        while self.frame_bytes < 32 + 20 + 64 + 62 + payload_bytes:     # header, sockaddr_ll, alignment, headers up to UDP
            self.frame_bytes *= 2
        if self.frame_bytes > _BLOCK:
            raise StateError(f"a payload of {payload_bytes} bytes is no datagram")
        self.log = <Episode*>calloc(EPISODES_MAX, sizeof(Episode))
        self.kept = <uint64_t*>calloc(2 * KEPT, 8)
        if self.log == NULL or self.kept == NULL:
            raise MemoryError
        for i in range(streams):
            self.s[i].seen = <uint8_t*>calloc(1, seq_max // 8)      # pages appear when touched
            if self.s[i].seen == NULL:
                raise MemoryError
        last = first_port + ports - 1
        try:
            sock = self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.setsockopt(_SOL_PACKET, _VERSION, _V2)
            sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            _attach(sock, [
                (0x28, 0, 0, 12), (0x15, 0, 9, 0x0800),             # IPv4
                (0x30, 0, 0, 23), (0x15, 0, 7, 17),                 # UDP
                (0x28, 0, 0, 20), (0x45, 5, 0, 0x1FFF),             # not a later fragment
                (0xB1, 0, 0, 14), (0x48, 0, 0, 16),                 # destination port
                (0x35, 0, 2, first_port), (0x25, 1, 0, last),
                (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0),
            ])
            size = RING * self.frame_bytes
            sock.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("4I", _BLOCK, size // _BLOCK, self.frame_bytes, RING))
            self._map = mmap.mmap(sock.fileno(), size)
            sock.bind((device, 0x0003))
        except OSError as error:
            raise MachineError(f"no sink on {device}: {error.strerror}", "needs CAP_NET_RAW: root or a box") from error
        cdef uint8_t[::1] view = self._map
        self.ring = &view[0]

    def __dealloc__(self):
        free(self.log)
        free(self.kept)
        for i in range(STREAMS_MAX):
            free(self.s[i].seen)

    def halt(self):
        """Make `run` return within a millisecond."""
        __atomic_store_n(&self.stopped, 1, __ATOMIC_RELEASE)

    def run(self):
        with nogil:
            self._run()

    def received_by_stream(self):
        """list[int]: different numbers seen, by stream."""
        return [self.s[i].received for i in range(self.streams)]

    def source(self, int stream):
        """(ip, port) the stream's first frame came from, or None before it came."""
        if not 0 <= stream < <int>self.streams:
            raise IndexError(stream)
        if not self.s[stream].known:
            return None
        return socket.inet_ntoa(struct.pack("!I", self.s[stream].ip)), self.s[stream].port

    def absent(self, int stream, uint64_t sent, int limit=1000):
        """list[int]: the first `limit` numbers below `sent` of a stream that have not come."""
        cdef uint64_t n
        if not 0 <= stream < <int>self.streams:
            raise IndexError(stream)
        found = []
        for n in range(min(sent, self.seq_max)):
            if not self.s[stream].seen[n >> 3] >> (n & 7) & 1:
                found.append(n)
                if len(found) == limit:
                    break
        return found

    @property
    def missing(self):
        """Numbers below the largest seen that have not come: lost, or still on their way behind others."""
        return max(0, <int64_t>(self._next_total - self.received))

    def drops(self):
        """Frames the kernel dropped because our ring was full, since the start. Above 0: the run proves nothing."""
        self._drops += struct.unpack("II", self._sock.getsockopt(_SOL_PACKET, _STATISTICS, 8))[1]   # reading clears it
        return self._drops

    def episodes(self):
        """list[dict]: t_first, t_last, seq, stream, frames, delay_ns, gap_ns of every spell of late frames, in order."""
        return [self.log[i] for i in range(self.n_episodes)]

    def times(self):
        """bytes of u64 pairs, CLOCK_MONOTONIC ns: when each of the last frames was sent, and when it came; in no order."""
        return (<const uint8_t*>self.kept)[:16 * min(self.received, <uint64_t>KEPT)]

    cdef void _run(self) noexcept nogil:
        cdef tpacket2_hdr* h
        cdef uint64_t offset
        while not __atomic_load_n(&self.stopped, __ATOMIC_ACQUIRE):
            offset = nf_clock(CLOCK_REALTIME) - nf_clock(CLOCK_MONOTONIC)   # the ring's stamps are CLOCK_REALTIME
            while True:
                h = <tpacket2_hdr*>(self.ring + <uint64_t>self.head * self.frame_bytes)
                if not __atomic_load_n(&h.tp_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER:
                    break
                self._frame(h, <uint64_t>h.tp_sec * 1000000000 + h.tp_nsec - offset)
                __atomic_store_n(&h.tp_status, 0, __ATOMIC_RELEASE)
                self.head = (self.head + 1) % RING
            nf_sleep_until(nf_clock(CLOCK_MONOTONIC) + TICK_NS)

    cdef void _frame(self, tpacket2_hdr* h, uint64_t now) noexcept nogil:
        cdef uint32_t n = 0, ip = 0
        cdef uint16_t port = 0
        cdef const uint8_t* p = NULL
        cdef const nf_datagram* d
        cdef Stream* s
        cdef uint8_t bit
        if h.tp_snaplen >= 14 and nf_for_us(h) and not h.tp_status & TP_STATUS_CSUMNOTREADY:    # partial: offloads are on
            p = nf_udp(<uint8_t*>h + h.tp_net, h.tp_snaplen - 14, &n, &ip, &port)
        d = <const nf_datagram*>p
        if p == NULL or n != self.payload or d.magic != MAGIC or d.check != _check(p, n) or d.stream >= self.streams \
                or d.kind > PROBE or d.seq >= self.seq_max:
            self.corrupt += 1
            return
        s = &self.s[d.stream]
        if not s.known:
            s.ip, s.port, s.known = ip, port, 1
        elif s.ip != ip or s.port != port:
            self.source_changed += 1
        if d.kind == PROBE:
            self.probes += 1
            return
        bit = <uint8_t>(1 << (d.seq & 7))
        if s.seen[d.seq >> 3] & bit:
            self.duplicated += 1
            return
        s.seen[d.seq >> 3] |= bit
        self.kept[2 * (self.received % KEPT)] = d.t_send
        self.kept[2 * (self.received % KEPT) + 1] = now
        s.received += 1
        self.received += 1
        if d.seq < s.next:
            self.reordered += 1
        else:
            s.next = d.seq + 1
        self._time(d, now)

    cdef void _time(self, const nf_datagram* d, uint64_t now) noexcept nogil:
        cdef uint64_t delay = now - d.t_send if now > d.t_send else 0
        cdef uint64_t gap = now - self.last_ns if d.total > self._next_total and now > self.last_ns else 0
        cdef Episode* e
        if self.last_ns == 0:
            gap = 0
        self._next_total = max(self._next_total, d.total + 1)
        self.last_ns = max(now, self.last_ns)
        self.delay_ns_max = max(self.delay_ns_max, delay)
        if delay <= self.late_ns and gap <= self.late_ns:
            return
        e = &self.log[self.n_episodes - 1 if self.n_episodes else 0]
        if self.n_episodes == 0 or now > e.t_last + MERGE_NS:
            if self.n_episodes == EPISODES_MAX:
                self.log_full = True
                return
            e = &self.log[self.n_episodes]
            e.t_first, e.seq, e.stream = now, d.seq, d.stream
            self.n_episodes += 1
        e.t_last = now
        e.frames += 1
        e.delay_ns = max(e.delay_ns, delay)
        e.gap_ns = max(e.gap_ns, gap)
