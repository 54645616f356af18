"""Compare tracker: a private copy of the region, and memcmp."""
from nfckpt.native.tracker cimport Watch

cdef bint compare_open(Watch* w) noexcept nogil     # base, page, n_pages are set. False: no memory
