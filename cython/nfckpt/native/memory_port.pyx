# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""MemoryRing: an endpoint of a segment in memory. What one sends, all others receive.

Layout of an endpoint's memfd (little endian; the owner maps it writable, all others read-only):

      0  magic "nfckmem1"   8  version 1 u32   12  endpoints u32   16  index u32   20  slots u32 (a power of two)
     24  frame_bytes u32   28  wait u32
     64  tail u64       frames at positions below it are published, for all receivers at once
    128  reserved u64   slots of positions below reserved - slots may be overwritten
    192  next u64, one per sender, 64 bytes apart: the position this endpoint reads next
   4096  slots, `stride` bytes apart (an odd number of cache lines, so that slots do not share cache sets)
            slot   0  ts u64   8  length u32   12  zero u32   16  bytes

Publishing is one store (tail), so a sender killed at any instruction has sent a frame to everybody or to nobody.
Reading is copy, then look at `reserved`: if the sender came round meanwhile, the copy is thrown away and counted.
A sender never looks at its receivers, except with `wait` (a pair of cables' ends), where it stops in front of the slowest.
"""
import os
import fcntl

from nfckpt.errors import ConfigError, PortError

from libc.errno cimport errno
from libc.string cimport memcpy
from nfckpt.native.burst cimport BURST_MAX, FRAME_MAX

cdef extern from *:
    """
    #include <sys/mman.h>
    #include <time.h>
    static inline uint64_t load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint32_t load_once(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void reserve(nf_ring *r, uint64_t v) {
        if (v > r->reserved) __atomic_store_n(&r->reserved, v, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_RELEASE); }
    static inline uint64_t reserved_after_copy(const nf_ring *r) {
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        return __atomic_load_n(&r->reserved, __ATOMIC_RELAXED); }
    static inline uint64_t monotonic_ns(void) {
        struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec; }
    """
    uint64_t load_acquire(const uint64_t*) noexcept nogil
    void store_release(uint64_t*, uint64_t) noexcept nogil
    uint32_t load_once(const uint32_t*) noexcept nogil
    void reserve(nf_ring*, uint64_t) noexcept nogil
    uint64_t reserved_after_copy(const nf_ring*) noexcept nogil
    uint64_t monotonic_ns() noexcept nogil
    void* mmap(void*, size_t, int, int, int, long) noexcept nogil
    int munmap(void*, size_t) noexcept nogil
    const int PROT_READ, PROT_WRITE, MAP_SHARED

cdef enum:
    VERSION = 1
    SLOT_HEAD = 16
    FRAME_MIN = 14
cdef uint64_t MAGIC = 0x316d656d6b63666e


cdef uint32_t stride_of(uint32_t frame_bytes) noexcept:
    return ((SLOT_HEAD + frame_bytes + 63) // 64 | 1) * 64


def make_ring(uint32_t index, uint32_t endpoints, uint32_t slots, uint32_t frame_bytes, bint wait):
    """A new memfd for endpoint `index`, sized and sealed against resizing. Raises ConfigError, PortError."""
    if not 2 <= endpoints <= ENDPOINTS_MAX:
        raise ConfigError(f"a hub of {endpoints} endpoints", f"2 to {ENDPOINTS_MAX}")
    if not 2 <= slots <= 1 << 20 or slots & (slots - 1):
        raise ConfigError(f"memory ring of {slots} frames", "a power of two from 2 to 2**20")
    if not FRAME_MIN <= frame_bytes <= FRAME_MAX:
        raise ConfigError(f"frame_bytes = {frame_bytes}", f"{FRAME_MIN} to {FRAME_MAX}")
    cdef nf_ring head
    head.magic, head.version, head.endpoints, head.index = MAGIC, VERSION, endpoints, index
    head.slots, head.frame_bytes, head.wait = slots, frame_bytes, wait
    fd = os.memfd_create(f"nfckpt-port-{index}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, DATA + <size_t>slots * stride_of(frame_bytes))
        os.pwrite(fd, (<char*>&head)[:32], 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as e:
        os.close(fd)
        raise PortError(f"memory ring of {slots} frames: {e.strerror}", "fewer frames") from None
    return fd


cdef class MemoryRing(Port):
    """Endpoint `index` of the hub whose memfds are `fds`, in order of endpoints. The fds stay the caller's.

    Goes on where the last owner of the endpoint stopped; `reset` skips what was sent before now.
    Raises PortError when the fds do not hold such a hub.
    """

    def __init__(self, str name, uint32_t index, list fds, bint reset=False):
        cdef int i
        cdef nf_ring* r
        cdef nf_ring head
        cdef Source* s
        cdef bytes raw
        if index >= len(fds) or len(fds) > ENDPOINTS_MAX:
            raise PortError(f"{name}: endpoint {index} of {len(fds)}")
        self.name, self.index = name, index
        try:
            for i, fd in enumerate(fds):
                raw = os.pread(fd, sizeof(head), 0)
                if len(raw) < <Py_ssize_t>sizeof(head):
                    raise PortError(f"{name}: fd {fd} is not a memory ring")
                memcpy(&head, <const char*>raw, sizeof(head))
                if (head.magic != MAGIC or head.version != VERSION or head.index != <uint32_t>i
                        or head.endpoints != len(fds) or not 2 <= head.slots <= 1 << 20 or head.slots & (head.slots - 1)
                        or not FRAME_MIN <= head.frame_bytes <= FRAME_MAX
                        or os.fstat(fd).st_size != DATA + <size_t>head.slots * stride_of(head.frame_bytes)):
                    raise PortError(f"{name}: fd {fd} is not ring {i} of a hub of {len(fds)}")
                if i == 0:
                    self.slots, self.frame_bytes, self.wait = head.slots, head.frame_bytes, head.wait != 0
                    self.stride = stride_of(head.frame_bytes)
                    self.map_bytes = DATA + <size_t>self.slots * self.stride
                elif head.slots != self.slots or head.frame_bytes != self.frame_bytes or bool(head.wait) != self.wait:
                    raise PortError(f"{name}: ring {i} has another shape than ring 0")
                r = <nf_ring*>mmap(NULL, self.map_bytes, PROT_READ | (PROT_WRITE if i == <int>index else 0),
                                   MAP_SHARED, fd, 0)
                if r == <nf_ring*>-1:
                    raise PortError(f"{name}: ring {i} cannot be mapped: {os.strerror(errno)}")
                if i == <int>index:
                    self.own = r
                else:
                    s = &self.sources[self.n_sources]
                    s.ring, s.index = r, i
                    self.n_sources += 1
            self._resume(reset)
        except BaseException:
            self._unmap()
            raise

    def _resume(self, bint reset):
        cdef int i
        cdef Source* s
        self.tail = self.filled = load_acquire(&self.own.tail)
        for i in range(self.n_sources):
            s = &self.sources[i]
            s.end = load_acquire(&s.ring.tail)
            s.next = s.end if reset else self.own.place[s.index].next
            if s.next > s.end:
                raise PortError(f"{self.name}: reads ring {s.index} at {s.next}, beyond its end {s.end}", "reset=True")
            s.end = s.next                      # the first rx looks
            store_release(&self.own.place[s.index].next, s.next)

    cdef bint _look(self, Source* s) noexcept nogil:
        """Is there a frame at s.next? Steps over what was overwritten unread, and counts it."""
        cdef uint64_t end, reserved, oldest
        if s.next < s.end:
            return True
        end = load_acquire(&s.ring.tail)
        if end == s.next:
            return False
        reserved = reserved_after_copy(s.ring)
        oldest = reserved - self.slots if reserved > self.slots else 0
        if oldest > end:                        # the sender came round between the two reads
            end = min(load_acquire(&s.ring.tail), reserved)
        # no sender does any of this: the memory was scribbled over. Beyond here end - s.next <= slots.
        if end < s.next or end < oldest or reserved < end:
            self.gone = True
            return False
        s.end = end
        if s.next < oldest:
            self.c.rx_ring_drops += oldest - s.next
            s.next = oldest
        return s.next < end

    cdef int _take(self, Source* s, Burst b, uint8_t index) noexcept nogil:
        """Copy the frame at s.next into b. 1 done, 0 no room in b, -1 nothing usable there: look again."""
        cdef nf_slot* slot = self._slot(s.ring, s.next)
        cdef uint32_t n = load_once(&slot.len), used = b.buf_used
        cdef int before = b.n
        cdef bint fits = FRAME_MIN <= n <= self.frame_bytes
        cdef uint8_t* p
        if fits:
            p = b.append(n, index, slot.ts)
            if p == NULL:
                return 0
            memcpy(p, slot.data, n)
        if reserved_after_copy(s.ring) - s.next > self.slots:
            b.n, b.buf_used = before, used
            s.end = s.next
            return -1
        s.next += 1
        if not fits:
            self.c.rx_oversize += 1
            return -1
        self.c.rx_frames += 1
        self.c.rx_bytes += n
        return 1

    cdef int rx(self, Burst b, int max_frames, uint8_t index) noexcept nogil:
        """Oldest first over all senders; each sender's frames in the order it sent them."""
        cdef int i, r, got = 0, tries = max_frames + BURST_MAX    # bounded, whatever a sender writes
        cdef Source* s
        cdef Source* first
        cdef uint64_t ts, first_ts
        if self.own == NULL:
            return -1
        while got < max_frames and tries and not self.gone:
            tries -= 1
            first = NULL
            first_ts = 0
            for i in range(self.n_sources):
                s = &self.sources[i]
                if self._look(s):
                    ts = self._slot(s.ring, s.next).ts
                    if first == NULL or ts < first_ts:
                        first, first_ts = s, ts
            if first == NULL:
                break
            r = self._take(first, b, index)
            if r == 0:
                break
            got += r > 0
        for i in range(self.n_sources):
            s = &self.sources[i]
            if self.own.place[s.index].next != s.next:
                store_release(&self.own.place[s.index].next, s.next)
        return got if got or not self.gone else -1

    cdef nf_slot* _fill(self, const uint8_t* data, uint32_t n) noexcept nogil:
        """Write one frame behind those filled and staged. NULL: no room."""
        cdef uint64_t at = self.filled + self.staged
        cdef nf_slot* slot
        if at == self.room_to:
            self._find_room()
            if at == self.room_to:
                return NULL
        reserve(self.own, at + 1)
        slot = self._slot(self.own, at)
        slot.len = n
        memcpy(slot.data, data, n)
        return slot

    cdef int tx(self, const uint8_t* data, uint32_t n) noexcept nogil:
        if self.own == NULL or self.gone or n < FRAME_MIN or n > self.frame_bytes:
            self.c.tx_errors += 1
            return -1
        if self.staged or self._fill(data, n) == NULL:
            self.c.tx_full += 1
            return 0
        self.filled += 1
        return 1

    cdef const uint8_t* stage(self, const uint8_t* data, uint32_t n) noexcept nogil:
        cdef nf_slot* slot
        # what waits here is taken from the readers' slack: a quarter of the ring at most
        if self.own == NULL or self.gone or n < FRAME_MIN or n > self.frame_bytes or self.staged >= self.slots // 4:
            return NULL
        slot = self._fill(data, n)
        if slot == NULL:
            return NULL
        self.staged += 1
        return slot.data

    cdef int publish(self) noexcept nogil:
        if self.staged == 0 or self.own == NULL or self.gone:
            self.c.tx_errors += 1
            return -1
        self.staged -= 1
        self.filled += 1
        return 1

    cdef void _find_room(self) noexcept nogil:
        """Up to a ring beyond what is published, or, with `wait`, beyond what the slowest has read."""
        cdef uint64_t low = self.tail
        cdef int i
        if self.wait:
            for i in range(self.n_sources):
                low = min(low, load_acquire(&self.sources[i].ring.place[self.index].next))
        # a reader that claims to be far behind (it scribbles) only stops us: never below what is written
        self.room_to = max(low + self.slots, self.filled + self.staged)

    cdef int flush(self) noexcept nogil:
        """Publish. Nothing ever waits here; frames lost to a slow reader are counted by that reader."""
        cdef nf_slot* slot
        cdef uint64_t position, now
        if self.own == NULL:
            return -1
        if self.filled != self.tail and not self.gone:
            now = monotonic_ns()
            for position in range(self.tail, self.filled):
                slot = self._slot(self.own, position)
                slot.ts = now
                self.c.tx_bytes += slot.len
            self.c.tx_frames += self.filled - self.tail
            self.tail = self.filled
            store_release(&self.own.tail, self.tail)
        return -1 if self.gone else 0

    def discard(self):
        given_up = self.filled - self.tail + self.staged
        self.filled = self.tail
        self.staged = 0
        self.c.tx_errors += given_up
        return given_up

    cdef void _unmap(self) noexcept:
        cdef int i
        for i in range(self.n_sources):
            munmap(self.sources[i].ring, self.map_bytes)
        self.n_sources = 0
        if self.own != NULL:
            munmap(self.own, self.map_bytes)
            self.own = NULL

    def capabilities(self):
        return {"kind": "memory", "transmit": True, "kernel_timestamps": False, "blocking": False,
                "ring_frames": self.slots}

    def why_gone(self):
        if self.own == NULL:
            return PortError(f"port {self.name} is closed")
        return PortError(f"port {self.name}: a ring's positions make no sense", "some process wrote over shared memory")

    def close(self):
        """Unmap. What was not flushed was never sent. The endpoint can be opened again."""
        if self.staged:                         # the gate over it may read them until it is gone too
            self.discard()
            self.closed, self.own = self.own, NULL
        else:
            self.discard()
        self._unmap()
        self.gone = True

    def __dealloc__(self):
        self._unmap()
        if self.closed != NULL:
            munmap(self.closed, self.map_bytes)
