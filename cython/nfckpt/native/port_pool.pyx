# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""PortPool: which external ports are free, for several addresses and protocols.

Picture     | stamp line | Pool, 16 bytes each | links of pool 0: 4 bytes a port | links of pool 1 | ... |
            pool = address * protocols + protocol. In a pool the free ports form two lists, even and odd, oldest first:

            first -> 1024 <-> 1026 <-> 1028 ... <- last        allocate takes from the front, release adds at the back
                                                               (so a port rests as long as any other is free)

            An index is stored xored with what it would be in a full, ascending list: a region of zeros is the list with
            every port free, and declaring 65,000 ports writes nothing. A port in use links to itself.

Choice      1. the preferred port, where it is free (port preservation, RFC 4787 4.2.1);
            2. the longest free port of the same parity (4.2.2: RTP on the even, RTCP on the odd one);
            3. one of the other parity. Without preference: of the parity that has more free ports.
            A pool with none left refuses and counts.

Promises    P1 no port is out twice.  P2 O(1), at most 4 lines an operation, usually 2.  P3 release of a free port is refused.
"""
import numpy as np

from nfckpt.errors import StateError

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

from nfckpt.native.arena cimport CHECK, LINE, Arena
from nfckpt.native.structure cimport int64_column, nth, pairs

cdef enum:
    NIL = 0xffff                # no port: lo >= 1, so indices end at 65534


cdef inline const Pool* pool_at(PortPool t, uint32_t pool) noexcept nogil:
    CHECK(pool < t.pools)
    return <const Pool*>t.arena.read(t.offset + LINE + sizeof(Pool) * <uint64_t>pool)

cdef inline Pool* pool_write(PortPool t, uint32_t pool) noexcept nogil:
    return <Pool*>t.arena.write(t.offset + LINE + sizeof(Pool) * <uint64_t>pool, sizeof(Pool))

cdef inline uint64_t link_off(PortPool t, uint32_t pool, uint32_t i) noexcept nogil:
    CHECK(i < t.n)
    return t.links + pool * t.links_bytes + sizeof(Link) * i

# What the index would be in a full list.
cdef inline uint32_t natural_next(PortPool t, uint32_t i) noexcept nogil:
    return i + 2 if i + 2 < t.n else NIL

cdef inline uint32_t natural_prev(uint32_t i) noexcept nogil:
    return i - 2 if i >= 2 else NIL

cdef inline uint32_t natural_first(PortPool t, uint32_t c) noexcept nogil:
    return c if c < t.n else NIL

cdef inline uint32_t natural_last(PortPool t, uint32_t c) noexcept nogil:
    return (t.n - 1) - ((t.n - 1 - c) & 1) if c < t.n else NIL

cdef inline uint32_t next_of(PortPool t, uint32_t pool, uint32_t i) noexcept nogil:
    return (<const Link*>t.arena.read(link_off(t, pool, i))).next ^ natural_next(t, i)

cdef inline uint32_t prev_of(PortPool t, uint32_t pool, uint32_t i) noexcept nogil:
    return (<const Link*>t.arena.read(link_off(t, pool, i))).prev ^ natural_prev(i)

cdef inline void set_next(PortPool t, uint32_t pool, uint32_t i, uint32_t to) noexcept nogil:
    (<Link*>t.arena.write(link_off(t, pool, i), sizeof(Link))).next = <uint16_t>(to ^ natural_next(t, i))

cdef inline void set_prev(PortPool t, uint32_t pool, uint32_t i, uint32_t to) noexcept nogil:
    (<Link*>t.arena.write(link_off(t, pool, i), sizeof(Link))).prev = <uint16_t>(to ^ natural_prev(i))

cdef inline uint32_t class_size(PortPool t, uint32_t c) noexcept nogil:
    """Ports of index parity c (index 0 is port lo)."""
    return (t.n + 1 - c) // 2


cdef class PortPool(Structure):
    """PortPool(arena, name, *, lo, hi, addresses=1, protocols=1): ports lo … hi, both included.

    Raises StateError for a range outside 1 … 65535 or empty, and where the arena has no room. Python code uses
    nfckpt.state.PortPool, which is this under shorter names.
    """

    def __cinit__(self, Arena arena not None, str name not None, *, lo, hi, addresses=1, protocols=1):
        if not 1 <= lo <= hi <= 65535:
            raise StateError(f"port pool {name!r}: ports {lo} to {hi}", "lo and hi lie in 1 … 65535, both included")
        if addresses < 1 or protocols < 1 or addresses * protocols > 65536:
            raise StateError(f"port pool {name!r}: {addresses} addresses x {protocols} protocols", "1 to 65536 pools")
        self.lo, self.hi = lo, hi
        self.addresses, self.protocols = addresses, protocols
        self.pools = addresses * protocols
        self.n = hi - lo + 1
        self.links_bytes = (<uint64_t>sizeof(Link) * self.n + LINE - 1) // LINE * LINE
        cdef uint64_t heads = (<uint64_t>sizeof(Pool) * self.pools + LINE - 1) // LINE * LINE
        self.declare(arena, name, "port_pool", f"lo={lo} hi={hi} addresses={addresses} protocols={protocols}",
                     LINE + heads + self.pools * self.links_bytes)
        self.links = self.offset + LINE + heads

    # ---- kernels

    cdef bint is_free(self, uint32_t pool, uint16_t port) noexcept nogil:
        """False for a port outside the range too."""
        CHECK(pool < self.pools)
        if port < self.lo or port > self.hi:
            return False
        return next_of(self, pool, port - self.lo) != <uint32_t>(port - self.lo)

    cdef uint32_t available(self, uint32_t pool) noexcept nogil:
        cdef const Pool* p = pool_at(self, pool)
        return self.n - p.used[0] - p.used[1]

    cdef int allocate(self, uint32_t pool, uint16_t preferred) noexcept nogil:
        """A free port, or -1. `preferred` 0: no preference; outside [lo, hi] it still says which parity."""
        cdef Pool* p
        cdef uint32_t i, c, before, after, free0, free1
        cdef const Pool* seen = pool_at(self, pool)
        free0 = class_size(self, 0) - seen.used[0]
        free1 = class_size(self, 1) - seen.used[1]
        p = pool_write(self, pool)
        if free0 + free1 == 0:
            p.refused += 1
            return -1
        if preferred != 0 and self.is_free(pool, preferred):
            i = preferred - self.lo
            c = i & 1
        else:
            c = (preferred ^ self.lo) & 1 if preferred != 0 else free1 > free0
            if (free1 if c else free0) == 0:
                c ^= 1
            i = p.first[c] ^ natural_first(self, c)
        before, after = prev_of(self, pool, i), next_of(self, pool, i)
        if before == NIL:
            p.first[c] = <uint16_t>(after ^ natural_first(self, c))
        else:
            set_next(self, pool, before, after)
        if after == NIL:
            p.last[c] = <uint16_t>(before ^ natural_last(self, c))
        else:
            set_prev(self, pool, after, before)
        set_next(self, pool, i, i)
        set_prev(self, pool, i, i)
        p.used[c] += 1
        return self.lo + i

    cdef bint release(self, uint32_t pool, uint16_t port) noexcept nogil:
        """Give the port back, to the end of its list. False (and nothing done) when it was not out."""
        CHECK(pool < self.pools)
        if port < self.lo or port > self.hi or self.is_free(pool, port):
            return False
        cdef Pool* p = pool_write(self, pool)
        cdef uint32_t i = port - self.lo, c = i & 1
        cdef uint32_t last = p.last[c] ^ natural_last(self, c)
        set_next(self, pool, i, NIL)
        set_prev(self, pool, i, last)
        if last == NIL:
            p.first[c] = <uint16_t>(i ^ natural_first(self, c))
        else:
            set_next(self, pool, last, i)
        p.last[c] = <uint16_t>(i ^ natural_last(self, c))
        p.used[c] -= 1
        return True

    # ---- batches, from Python

    cdef Py_ssize_t check(self, const int64_t[::1] pools, const int64_t[::1] ports) except -1:
        """How many (pool, port) pairs; each pool exists, each port fits 16 bits or is -1: none."""
        cdef Py_ssize_t i
        for i in range(pools.shape[0]):
            if not 0 <= pools[i] < self.pools:
                raise StateError(f"port pool {self.name!r}: no pool {pools[i]}", f"pools are 0 to {self.pools - 1}")
        for i in range(ports.shape[0]):
            if not -1 <= ports[i] <= 65535:
                raise StateError(f"port pool {self.name!r}: port {ports[i]}", "0 to 65535, or -1: none")
        return pairs(pools, ports)

    def allocate_many(self, pools, preferred=0):
        """One port for each pair of pool and preferred port (0: none). int32 (n,), -1 where none was free."""
        cdef const int64_t[::1] pool = int64_column(pools), port = int64_column(preferred)
        cdef Py_ssize_t i, n = self.check(pool, port)
        cdef object out = np.empty(n, np.int32)
        cdef int32_t[::1] o = out
        for i in range(n):
            o[i] = self.allocate(<uint32_t>nth(pool, i), <uint16_t>max(nth(port, i), <int64_t>0))
        return out

    def release_many(self, pools, ports):
        """Give ports back. Returns how many were out; the rest, -1 included, is passed over."""
        cdef const int64_t[::1] pool = int64_column(pools), port = int64_column(ports)
        cdef Py_ssize_t i, n = self.check(pool, port), out = 0
        for i in range(n):
            out += self.release(<uint32_t>nth(pool, i), <uint16_t>max(nth(port, i), <int64_t>0))
        return out

    def is_free_many(self, pools, ports):
        """bool (n,): may be allocated now."""
        cdef const int64_t[::1] pool = int64_column(pools), port = int64_column(ports)
        cdef Py_ssize_t i, n = self.check(pool, port)
        return np.array([self.is_free(<uint32_t>nth(pool, i), <uint16_t>max(nth(port, i), <int64_t>0))
                         for i in range(n)], np.bool_)

    def available_in(self, uint32_t pool):
        """Free ports in one pool."""
        self.check(int64_column(pool), int64_column(0))
        return self.available(pool)

    def _pools(self):
        row = np.dtype([("first", "u2", 2), ("last", "u2", 2), ("used", "u2", 2), ("refused", "u4")])
        return np.ndarray(self.pools, row, self.arena.view(), self.offset + LINE)

    def __len__(self):
        """Ports that are out."""
        return int(self._pools()["used"].sum(dtype=np.int64))

    @property
    def fill(self):
        return <double>len(self) / <double>(<uint64_t>self.n * self.pools)

    @property
    def refused(self):
        """Allocations refused because no port was free in the pool asked."""
        return int(self._pools()["refused"].sum(dtype=np.int64))
