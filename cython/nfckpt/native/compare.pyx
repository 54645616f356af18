# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Compare tracker: what differs from a private copy was written. Slow, and always right.

Picture     region | a b c d |   shadow | a b x d |   collect(): line 2 is marked, shadow becomes | a b c d |

Cost        Twice the memory, and each collect() reads the whole region and its shadow: some 0.1 s a GiB.
Promises    exact: a line is marked if its bytes are others than at the last collect(), whoever wrote them and how.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from nfckpt.native.tracker cimport LINE, LINES, PAGE, Marks, Watch, mark_page


cdef bint compare_open(Watch* w) noexcept nogil:
    w.shadow = <uint8_t*>malloc(<uint64_t>w.n_pages * PAGE)
    if w.shadow == NULL:
        return False
    memcpy(w.shadow, w.base, <uint64_t>w.n_pages * PAGE)
    w.collect = compare_collect
    w.close = compare_close
    return True


cdef void compare_collect(Watch* w, Marks* m) noexcept nogil:
    cdef uint8_t* now = w.base
    cdef uint8_t* then = w.shadow
    cdef uint32_t i, k
    cdef uint64_t lines
    for i in range(w.n_pages):
        if memcmp(now, then, PAGE):
            lines = 0
            for k in range(LINES):
                if memcmp(now + k * LINE, then + k * LINE, LINE):
                    lines |= <uint64_t>1 << k
            memcpy(then, now, PAGE)
            mark_page(m, w.page + i, lines)
        now += PAGE
        then += PAGE


cdef void compare_close(Watch* w) noexcept nogil:
    free(w.shadow)
