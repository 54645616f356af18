"""Mmu tracker: the kernel notes which pages were written. The picture and the promises are in mmu.pyx."""
from nfckpt.native.tracker cimport Watch

cdef bint mmu_open(Watch* w) except -1              # base, page, n_pages are set. Raises MachineError
