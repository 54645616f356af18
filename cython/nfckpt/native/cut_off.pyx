# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""CutOff: is a port of the active, or ours, cut off from the segment, though it has carrier? And what passed there meanwhile.

Picture                                        host
                                                │
            active ── switch ──╳── switch ──────┴────── standby        a link further on is cut: no carrier is lost
                      what hosts send comes to the standby alone       rule 5 gives it up: the active found its port empty
                      what the active sends, nobody sees               rule 7 gives it up: it left, whether it was seen or not

            frames that only the standby saw     | | | | | | | |       ALONE of them, the youngest lately, over a span: cut off
            one that both saw                                    |     and all before it was dropped by the active's ring: not cut off

            frames that the active names, and we never see: the same the other way round, our port is cut off

What the two rules give up is kept here for a while, as far as nothing younger came through on its port. Should the standby be promoted while
a port is cut off, it goes back to its place (`Tap.recall`). Elsewhere nothing is done with it.

Limits      Frames further apart than `keep_ns` are not counted together, and what is older is not kept. A port by which outputs leave and nothing ever comes in cannot be judged: the
            standby's own may be the one that is cut.
            Frames that reach only the standby by right, at such a rate, on a port where nothing else passes, look the same: the cost is a planned switch.
"""
from nfckpt.native.keyed_fifo cimport NO_ENTRY

cdef enum:
    ALONE = 8


cdef void keep(KeyedFifo into, const Entry* e, const uint8_t* buf) noexcept nogil:
    """The oldest make room."""
    cdef uint32_t i
    while into.push(e.key, e.ts, e.seq, e.port, buf + e.off, e.length) == NO_ENTRY:
        i = into.oldest()
        if i == NO_ENTRY:
            return
        into.remove(i)


cdef void expire(KeyedFifo queue, uint64_t before) noexcept nogil:
    cdef uint32_t i = queue.oldest()
    while i != NO_ENTRY and queue.entries[i].ts < before:
        queue.remove(i)
        i = queue.oldest()


cdef class CutOff:
    """Of a tap with these queues. Keeps a quarter as much as they may hold, for `keep_ns`; 0: nothing, and no port is cut off."""

    def __cinit__(self, KeyedFifo inputs not None, KeyedFifo expected not None, uint64_t keep_ns):
        self.inputs = KeyedFifo(inputs.capacity // 4, inputs.buf_bytes // 4)
        self.outputs = KeyedFifo(expected.capacity // 4, expected.buf_bytes // 4)
        self.keep_ns = keep_ns
        self.reset()

    cdef void reset(self) noexcept nogil:
        cdef int p
        self.inputs.reset()
        self.outputs.reset()
        for p in range(MAX_PORTS):
            self.shared_ts[p] = self.seen_through[p] = self.alone[p].n = self.absent[p].n = 0

    cdef void shared(self, uint8_t port, uint64_t ts) noexcept nogil:
        """Both nodes saw an input that came here at `ts`."""
        if ts > self.shared_ts[port]:
            self.shared_ts[port] = ts

    cdef void left(self, uint8_t port, uint64_t seq) noexcept nogil:
        """An output was seen leaving."""
        if seq >= self.seen_through[port]:
            self.seen_through[port] = seq + 1

    cdef void disowned(self, const Entry* e, const uint8_t* buf) noexcept nogil:
        """Rule 5 gives this input up."""
        if self.count(&self.alone[e.port], e):
            keep(self.inputs, e, buf)

    cdef void unseen(self, const Entry* e) noexcept nogil:
        """Rule 6 gives up to wait for an input with this name."""
        self.count(&self.absent[e.port], e)

    cdef bint count(self, Alone* a, const Entry* e) noexcept nogil:
        """False: both saw a younger one."""
        if not self.keep_ns or e.ts < self.shared_ts[e.port]:
            return False
        if a.n == 0 or a.first < self.shared_ts[e.port] or e.ts > a.last + self.keep_ns:
            a.first, a.n = e.ts, 0
        a.last = e.ts
        a.n += 1
        return True

    cdef void unobserved(self, const Entry* e, const uint8_t* buf) noexcept nogil:
        """Rule 7 gives this output up."""
        if self.keep_ns and e.seq >= self.seen_through[e.port]:
            keep(self.outputs, e, buf)

    cdef void age(self, uint64_t now) noexcept nogil:
        """Forget what is too old."""
        cdef uint64_t before = now - self.keep_ns if now > self.keep_ns else 0
        expire(self.inputs, before)
        expire(self.outputs, before)

    cdef uint32_t ports(self, uint64_t now, uint64_t span_ns) noexcept nogil:
        """Bit mask of the active's ports that look cut off for `span_ns` or longer."""
        return self.since(self.alone, now, span_ns)

    cdef uint32_t ours(self, uint64_t now, uint64_t span_ns) noexcept nogil:
        """Of our ports."""
        return self.since(self.absent, now, span_ns)

    cdef uint32_t since(self, const Alone* all, uint64_t now, uint64_t span_ns) noexcept nogil:
        cdef uint32_t mask = 0
        cdef int p
        cdef const Alone* a
        for p in range(MAX_PORTS):
            a = &all[p]
            if (a.n >= ALONE and self.shared_ts[p] <= a.first and now >= a.first + span_ns and now <= a.last + self.keep_ns):
                mask |= <uint32_t>1 << p
        return mask
