# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Segment: one memfd that one side writes and the other can only read.

Each side of a channel owns one. It holds the ring its owner writes, and the three words its owner says to the
peer: how far I have read *yours*, whether I sleep, whether I have closed. So nobody ever writes the other's memory.

       0        8         12       16           24            40
      +--------+---------+--------+------------+-------------+----------+
      | magic  | version | role   | ring bytes | session id  | zero     |   written once, before sealing
      | "NFCKSHM1" u32 1 | u32    | u64        | 16 bytes    |          |
      +--------+---------+--------+------------+-------------+----------+
   64 | head u64   bytes written into this ring                         |   a cache line each:
  128 | tail u64   bytes read out of the other ring                     |   the peer polls one word
  192 | sleep u64  sleep number << 2 | wants room << 1 | wants data      |   without pulling at the rest
  256 | closed u64                                                      |
      +-----------------------------------------------------------------+
 4096 | ring, a power of two of bytes; records as drawn in shm_ring.pyx |
      +-----------------------------------------------------------------+

Integers are little endian. The ring is mapped twice in a row, so a record that wraps is still contiguous.

Sealing     create, size, map writable, allocate (`prepare`, in steps), then F_SEAL_SHRINK | GROW | FUTURE_WRITE | SEAL: from then on no
            mapping, write() or ftruncate() of anybody can change it but the mapping its owner already has, and the
            reader cannot be hit by SIGBUS through a shrunk file. (memfd_create(2), fcntl(2) "File sealing".)
Promises    S1 `open` maps nothing before seals and size are checked, and trusts no header word that it did not expect.
"""
import fcntl
import os

from nfckpt.errors import ConfigError, MachineError, PeerError

from libc.stdint cimport uintptr_t
from libc.string cimport memcmp, memcpy


cdef extern from "sys/mman.h" nogil:
    void* mmap_ "mmap"(void*, size_t, int, int, int, long)
    int munmap(void*, size_t)
    int madvise(void*, size_t, int)
    enum: PROT_NONE, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_FIXED

cdef enum:
    MADV_POPULATE_WRITE = 23    # Linux 5.14; older kernels map page by page at the first writes

cdef bytes _magic = b"NFCKSHM1"
MAGIC = _magic
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEALS = 0x1 | 0x2 | 0x4 | 0x10      # SEAL, SHRINK, GROW, FUTURE_WRITE (Linux 5.1)
RING_BYTES_MIN, RING_BYTES_MAX = 4096, 1 << 30


def _ring_bytes_ok(n):
    return RING_BYTES_MIN <= n <= RING_BYTES_MAX and n & (n - 1) == 0


def _no_ring(ring_bytes, e):
    return MachineError(f"no shared ring of {ring_bytes} bytes: {e.strerror}",
                        "needs memfd_create, F_SEAL_FUTURE_WRITE (Linux 5.1) and the memory")


cdef class Segment:
    """`Segment.create(ring_bytes, session, role)` on the writer's side, `Segment.open(fd, session, role)` on the other's."""

    @staticmethod
    def create(uint64_t ring_bytes, bytes session not None, uint32_t role):
        """A new sealed segment, writable through this object alone.

        `ring_bytes`: a power of two, 4096 to 2**30. `session`: 16 bytes. Raises ConfigError, MachineError.
        """
        s = Segment.blank(ring_bytes)
        s.seal(session, role)
        return s

    @staticmethod
    def blank(uint64_t ring_bytes):
        """One that is nobody's yet and has no memory: `prepare` takes it, `seal` what is left. Raises as `create`."""
        if not _ring_bytes_ok(ring_bytes):
            raise ConfigError(f"ring_bytes = {ring_bytes}", "a power of two between 4096 and 2**30")
        cdef Segment s = Segment.__new__(Segment)
        try:
            s.fd = os.memfd_create("nfckpt-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(s.fd, SEG_HEADER + ring_bytes)
        except OSError as e:
            raise _no_ring(ring_bytes, e) from None
        s._map(ring_bytes, True)
        return s

    def prepare(self, uint64_t nbytes):
        """Take the memory of the next `nbytes`, some 0.1 ms for 64 KiB. True: that was the last. Raises MachineError."""
        cdef uint64_t left = SEG_HEADER + self.ring_bytes - self.ready, n = min((nbytes + 4095) & ~<uint64_t>4095, left)
        cdef uint8_t* p = <uint8_t*>self.h + self.ready
        cdef uint64_t head = SEG_HEADER if self.ready == 0 else 0       # is not mapped twice
        if n:
            try:
                os.posix_fallocate(self.fd, self.ready, n)      # no page is ever missing later
            except OSError as e:
                raise _no_ring(self.ring_bytes, e) from None
            with nogil:
                madvise(p, n, MADV_POPULATE_WRITE)              # both ways to it
                madvise(p + self.ring_bytes + head, n - head, MADV_POPULATE_WRITE)
            self.ready += n
        return n == left

    def seal(self, bytes session not None, uint32_t role):
        """It is one side's of `session` (16 bytes) from here on, and whole. Raises ConfigError, MachineError."""
        if len(session) != 16:
            raise ConfigError(f"session id of {len(session)} bytes", "16 bytes")
        self.prepare(self.ring_bytes + SEG_HEADER)
        memcpy(self.h.magic, <const uint8_t*>_magic, 8)
        self.h.version = SEG_VERSION
        self.h.role = role
        self.h.ring_bytes = self.ring_bytes
        memcpy(self.h.session, <const uint8_t*>session, 16)
        try:
            fcntl.fcntl(self.fd, F_ADD_SEALS, SEALS)
        except OSError as e:
            raise _no_ring(self.ring_bytes, e) from None

    @staticmethod
    def open(int fd, bytes session not None, uint32_t role, uint64_t ring_bytes):
        """Map the peer's segment read-only. `fd` stays the caller's. Raises PeerError when it is not what was agreed."""
        try:
            seals = fcntl.fcntl(fd, F_GET_SEALS)
        except OSError:
            raise PeerError("the peer's segment is not a memfd") from None
        if seals & SEALS != SEALS:
            raise PeerError(f"the peer's segment has seals {seals:#x}, not {SEALS:#x}")
        size = os.fstat(fd).st_size
        if not _ring_bytes_ok(ring_bytes) or size != SEG_HEADER + ring_bytes:
            raise PeerError(f"the peer's segment holds {size} bytes for a ring of {ring_bytes}")
        cdef Segment s = Segment.__new__(Segment)
        try:
            s.fd = fd
            s._map(ring_bytes, False)
        finally:
            s.fd = -1
        if memcmp(s.h.magic, <const uint8_t*>_magic, 8) != 0:
            raise PeerError("the peer's segment has another magic: not an nfckpt ring")
        if s.h.version != SEG_VERSION:
            raise PeerError(f"the peer's segment has version {s.h.version}, not {SEG_VERSION}", "run the same nfckpt on both")
        if len(session) != 16 or memcmp(s.h.session, <const uint8_t*>session, 16) != 0:
            raise PeerError("the peer's segment belongs to another session")
        if s.h.role != role or s.h.ring_bytes != ring_bytes:
            raise PeerError(f"the peer's segment has role {s.h.role} and ring {s.h.ring_bytes}, not {role} and {ring_bytes}")
        return s

    def __cinit__(self):
        self.fd = -1

    cdef _map(self, uint64_t ring_bytes, bint writable):
        cdef int prot = PROT_READ | PROT_WRITE if writable else PROT_READ
        cdef size_t whole = SEG_HEADER + 2 * ring_bytes
        cdef uint8_t* p = <uint8_t*>mmap_(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == <uint8_t*>-1:
            raise MachineError(f"no address space for a ring of {ring_bytes} bytes")
        if (mmap_(p, SEG_HEADER + ring_bytes, prot, MAP_SHARED | MAP_FIXED, self.fd, 0) == <void*>-1
                or mmap_(p + SEG_HEADER + ring_bytes, ring_bytes, prot, MAP_SHARED | MAP_FIXED, self.fd, SEG_HEADER) == <void*>-1):
            munmap(p, whole)
            raise MachineError(f"cannot map a ring of {ring_bytes} bytes")
        self.h = <SegHeader*>p
        self.ring = p + SEG_HEADER
        self.ring_bytes = ring_bytes
        self.mapped = whole
        self.writable = writable

    cdef void unmap(self) noexcept nogil:
        if self.h != NULL:
            munmap(self.h, self.mapped)
            self.h = NULL
            self.ring = NULL

    def crumble(self, uint64_t nbytes):
        """Unmap so many more bytes (a multiple of 4096), some 0.05 ms for 256 KiB: to be closed without a pause. It is of no use from the first
        call on. True: there are no more, `close` it."""
        if self.h == NULL or self.mapped <= SEG_HEADER + nbytes:
            return True
        self.mapped -= nbytes
        with nogil:
            munmap(<uint8_t*>self.h + self.mapped, nbytes)
        return False

    def close(self):
        """Unmap, and close the memfd if it is ours. Idempotent."""
        with nogil:
            self.unmap()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __dealloc__(self):
        self.close()

    @property
    def address(self):
        """Where the segment is mapped (0 once closed): for tests and debuggers, which scribble on it by ctypes."""
        return <uintptr_t>self.h
