# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""PageSync: the pages of an arena on their way to a blank standby, in order, in groups that ride on epochs.

Picture     page   0 ............... next ........................ end
                   | sent: lines     | group: | not sent: a line written here |
                   | written ride    | whole  | is forgotten, its page will   |
                   | as deltas       | pages  | carry it                      |

Why         A page is copied at a cut, in the same instant as the lines of pages sent before it, so the standby is a true copy of
            what is sent so far after each epoch, and of everything after the last. Each page crosses once.
            A page that reads zero is not sent: the standby's is zero, since nothing of it was sent either. Holes of the memfd are
            found by lseek(SEEK_DATA) and never touched: reading one would allocate it.

Promises    P1 a group looks at `group` pages at most, and `group` follows the measured pause: after a poll with a group that took longer
               than `pause_us` it shrinks in proportion, by half at most, else it grows by an eighth; it never exceeds `group_max`.
            P2 at most GROUPS groups are on their way: what an output waits for behind them is bounded. While the standby takes one in the next is
               copied; more would only queue (32 of them: the same throughput, and frames that came 6 ms late).
"""
from nfckpt.errors import StateError

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memset
from nfckpt.native.arena cimport PAGE

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <unistd.h>
    #include <sys/types.h>
    #ifndef SEEK_DATA
    #define SEEK_DATA 3
    #endif
    /* The first page from `page` on that the file holds; `end` when there is none. */
    static inline unsigned nf_next_data(int fd, unsigned page, unsigned end) {
        off_t at = lseek(fd, (off_t)page * 4096, SEEK_DATA);
        if (at < 0) return errno == ENXIO ? end : page;
        return at / 4096 < end ? (unsigned)(at / 4096) : end;
    }
    """
    uint32_t nf_next_data(int fd, uint32_t page, uint32_t end) noexcept nogil


cdef bint is_zero(const unsigned char* page) noexcept nogil:
    return page[0] == 0 and memcmp(page, page + 1, PAGE - 1) == 0


cdef class PageSync:
    """`group_max`: pages of one group (0: never any); `pause_us`: how long a poll with a group should take at most.

    Before the first `begin` there is nothing to send.
    """

    def __cinit__(self, Arena arena not None, uint32_t group_max, uint64_t pause_us=250):
        self.arena, self.group_max, self.pause_ns = arena, group_max, pause_us * 1000
        self.chosen = <uint32_t*>malloc(max(group_max, 1) * 4)
        if self.chosen == NULL:
            raise StateError("no memory for a group of pages", "lower sync_group_pages_max")
        self.next, self.done = arena.n_pages, True

    def __dealloc__(self):
        free(self.chosen)

    def begin(self):
        """A blank standby: every page is to be sent, from the first on."""
        self.next, self.done, self.sent = 0, False, 0
        self.group = self.group or min(self.group_max, 16)      # what was learned about the pause still holds
        memset(self.in_epoch, 0, sizeof(self.in_epoch))

    cdef bint ready(self, uint64_t committed) noexcept nogil:
        """May a group ride on the epoch that is cut now?"""
        return not self.done and self.in_epoch[self.turn] <= committed

    cdef uint32_t choose(self, uint64_t epoch) noexcept nogil:
        """Decide the group that rides on `epoch`: numbers in `chosen`, how many is returned. `next` moves behind it."""
        cdef uint32_t end = <uint32_t>(self.arena._top // PAGE), n = 0, looked = 0
        cdef bint maybe_hole = True
        while self.next < end and looked < self.group:
            if maybe_hole:
                self.next = nf_next_data(self.arena.fd, self.next, end)
                if self.next == end:
                    break
            maybe_hole = is_zero(self.arena.base + <uint64_t>self.next * PAGE)
            if not maybe_hole:
                self.chosen[n] = self.next
                n += 1
            self.next += 1
            looked += 1
        self.done = self.next >= end
        self.sent += n
        self.in_epoch[self.turn] = epoch
        self.turn = (self.turn + 1) % GROUPS
        return n

    cdef void forget_unsent(self) noexcept nogil:
        """Before `choose`: drop the marks of lines whose page is still to come, in this record or a later one."""
        cdef uint64_t i, kept = 0
        cdef uint32_t line
        for i in range(self.arena.marks.n):
            line = self.arena.marks.log[i]
            if line >> 6 < self.next:
                self.arena.marks.log[kept] = line
                kept += 1
            else:
                self.arena.marks.bits[line >> 6] = 0
        self.arena.marks.n = kept

    cdef void took(self, uint64_t ns) noexcept nogil:
        """The poll that carried the last group took `ns`."""
        cdef uint64_t group = self.group
        if ns > self.pause_ns:
            group = max(group * self.pause_ns // ns, group // 2)
        else:
            group += group // 8 + 1
        self.group = <uint32_t>min(max(group, <uint64_t>1), <uint64_t>self.group_max)
