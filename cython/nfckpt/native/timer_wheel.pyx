# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""TimerWheel: deadlines that survive a takeover; one timer for each id 0 … capacity - 1 (a flow's slot, say).

Picture     | head line | 4096 buckets: u32 | timers: 16 bytes each |
            tick = deadline // tick_ns;  bucket = tick % 4096, a list of ids;  the cursor walks the ticks

            with ticks of 10 ms a turn is 41 s; a timer of two minutes is passed over twice, which reads it and
            writes nothing. A hierarchical wheel would move it from level to level: each move dirties lines.

            Arming a timer that is armed for earlier writes its deadline and nothing more (one line); it is moved
            when the cursor meets it in its old bucket. That is the common case: a flow that lives on.

Source      G. Varghese, T. Lauck: Hashed and hierarchical timing wheels, SOSP 1987 (scheme 6).

Promises    W1 a timer never fires early, and at the first `advance` one tick after its deadline (or its arming, if
               that came later) at the latest.
            W2 it fires once per arming. Ids come in the order of their ticks unless a whole turn was slept through.
            W3 an `advance` within the same tick costs one compare and writes nothing.
"""
import numpy as np

from nfckpt.errors import StateError

from libc.stdint cimport int64_t, uint32_t, uint64_t

from nfckpt.native.arena cimport CHECK, LINE, Arena
from nfckpt.native.structure cimport int64_column, nth, pairs

cdef enum:
    BUCKETS = 4096
    AT_HEAD = 0x80000000
    CAPACITY_MAX = 1 << 30


cdef inline const WheelHead* head(TimerWheel t) noexcept nogil:
    return <const WheelHead*>t.arena.read(t.offset)

cdef inline WheelHead* head_write(TimerWheel t) noexcept nogil:
    return <WheelHead*>t.arena.write(t.offset, sizeof(WheelHead))

cdef inline const Timer* timer(TimerWheel t, uint32_t id) noexcept nogil:
    CHECK(id < t.capacity)
    return <const Timer*>t.arena.read(t.timers + <uint64_t>id * sizeof(Timer))

cdef inline Timer* timer_write(TimerWheel t, uint32_t id) noexcept nogil:
    CHECK(id < t.capacity)
    return <Timer*>t.arena.write(t.timers + <uint64_t>id * sizeof(Timer), sizeof(Timer))

cdef inline const uint32_t* bucket(TimerWheel t, uint32_t b) noexcept nogil:
    return <const uint32_t*>t.arena.read(t.buckets + 4 * <uint64_t>b)

cdef inline uint32_t* bucket_write(TimerWheel t, uint32_t b) noexcept nogil:
    return <uint32_t*>t.arena.write(t.buckets + 4 * <uint64_t>b, 4)

cdef inline uint32_t bucket_for(TimerWheel t, uint64_t deadline) noexcept nogil:
    """Where the cursor will meet this deadline; one that has passed waits in the cursor's own bucket."""
    cdef uint64_t tick = deadline // t.tick_ns, cursor = head(t).cursor
    return <uint32_t>((tick if tick > cursor else cursor) % BUCKETS)

cdef inline void link(TimerWheel t, uint32_t id, uint32_t b) noexcept nogil:
    cdef uint32_t* first = bucket_write(t, b)
    cdef Timer* me = timer_write(t, id)
    me.next = first[0]
    me.prev = AT_HEAD | b
    if first[0]:
        timer_write(t, first[0] - 1).prev = id + 1
    first[0] = id + 1

cdef inline void unlink(TimerWheel t, uint32_t id) noexcept nogil:
    cdef Timer* me = timer_write(t, id)
    if me.prev & AT_HEAD:
        bucket_write(t, me.prev & (BUCKETS - 1))[0] = me.next
    else:
        timer_write(t, me.prev - 1).next = me.next
    if me.next:
        timer_write(t, me.next - 1).prev = me.prev
    me.next = me.prev = 0


cdef class TimerWheel(Structure):
    """TimerWheel(arena, name, *, capacity, tick_ns): the native half; nfckpt.state.TimerWheel has Python's names.

    Raises StateError for a capacity outside 1 … 2**30 or a tick of less than 1 µs.
    """

    def __cinit__(self, Arena arena not None, str name not None, *, capacity, tick_ns=10_000_000):
        if not 1 <= capacity <= CAPACITY_MAX:
            raise StateError(f"timers {name!r}: capacity {capacity}", f"1 to {CAPACITY_MAX} ids")
        if tick_ns < 1000:
            raise StateError(f"timers {name!r}: a tick of {tick_ns} ns", "at least 1000")
        self.capacity, self.tick_ns = capacity, tick_ns
        self.declare(arena, name, "timers", f"capacity={capacity} tick_ns={tick_ns}",
                     LINE + 4 * BUCKETS + sizeof(Timer) * <uint64_t>self.capacity)
        self.buckets = self.offset + LINE
        self.timers = self.buckets + 4 * BUCKETS

    cdef bint armed(self, uint32_t id) noexcept nogil:
        return timer(self, id).prev != 0

    cdef void arm(self, uint32_t id, uint64_t deadline) noexcept nogil:
        cdef const Timer* me = timer(self, id)
        if me.prev != 0:
            if deadline >= me.deadline:
                if deadline > me.deadline:
                    timer_write(self, id).deadline = deadline
                return
            unlink(self, id)
        else:
            head_write(self).count += 1
        timer_write(self, id).deadline = deadline
        link(self, id, bucket_for(self, deadline))

    cdef bint cancel(self, uint32_t id) noexcept nogil:
        if timer(self, id).prev == 0:
            return False
        unlink(self, id)
        head_write(self).count -= 1
        return True

    cdef int advance(self, uint64_t now, uint32_t* out_ids, int out_max) noexcept nogil:
        """Disarm and name up to out_max timers whose tick has passed. Full: call again, the cursor has stayed."""
        cdef uint64_t tick = now // self.tick_ns, cursor = head(self).cursor
        cdef uint32_t b, id, after, to
        cdef int n = 0
        cdef bint full = False
        if tick <= cursor:
            return 0
        if head(self).count == 0:
            cursor = tick
        elif tick - cursor > BUCKETS:
            cursor = tick - BUCKETS             # once round meets every bucket
        while cursor < tick and not full:
            b = <uint32_t>(cursor % BUCKETS)
            after = bucket(self, b)[0]
            while after:
                id = after - 1
                after = timer(self, id).next
                if timer(self, id).deadline // self.tick_ns < tick:
                    if n == out_max:
                        full = True
                        break
                    unlink(self, id)
                    out_ids[n] = id
                    n += 1
                else:
                    to = <uint32_t>(timer(self, id).deadline // self.tick_ns % BUCKETS)
                    if to != b:
                        unlink(self, id)
                        link(self, id, to)
            cursor += not full
        if n or cursor != head(self).cursor:
            head_write(self).cursor = cursor
            head_write(self).count -= n
        return n

    # ---- batches, from Python

    cdef const int64_t[::1] open_ids(self, object ids):
        cdef const int64_t[::1] column = int64_column(ids)
        cdef Py_ssize_t i
        for i in range(column.shape[0]):
            if not 0 <= column[i] < self.capacity:
                raise StateError(f"timers {self.name!r}: id {column[i]}", f"ids are 0 to {self.capacity - 1}")
        return column

    def arm_many(self, ids, deadlines):
        """Set the deadlines, ns, of `ids`: a column, or one number for all. A timer that is armed is moved."""
        cdef const int64_t[::1] id = self.open_ids(ids), deadline = int64_column(deadlines)
        cdef Py_ssize_t i, n = pairs(id, deadline)
        for i in range(n):
            self.arm(<uint32_t>nth(id, i), <uint64_t>max(nth(deadline, i), <int64_t>0))

    def cancel_many(self, ids):
        """Disarm. Returns how many were armed."""
        cdef const int64_t[::1] id = self.open_ids(ids)
        cdef Py_ssize_t i, n = 0
        for i in range(id.shape[0]):
            n += self.cancel(<uint32_t>id[i])
        return n

    def armed_many(self, ids):
        """bool (n,)."""
        cdef const int64_t[::1] id = self.open_ids(ids)
        return np.array([self.armed(<uint32_t>id[i]) for i in range(id.shape[0])], np.bool_)

    def advance_many(self, uint64_t now, int limit=256):
        """Disarm and return up to `limit` (>= 1) ids whose deadline has passed, uint32 (n,)."""
        if now // self.tick_ns <= head(self).cursor or limit < 1:
            return np.empty(0, np.uint32)
        cdef object out = np.empty(limit, np.uint32)
        cdef uint32_t[::1] o = out
        return out[:self.advance(now, &o[0], limit)]

    def __len__(self):
        """Timers armed."""
        return head(self).count

    @property
    def fill(self):
        return <double>head(self).count / <double>self.capacity
