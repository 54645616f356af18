"""TypedArray: a numpy array in the arena; reading is free, writing marks."""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from nfckpt.native.structure cimport Structure

cdef class TypedArray(Structure):
    cdef readonly object dtype
    cdef readonly tuple shape
    cdef readonly uint64_t size                 # elements
    cdef uint64_t first, item                   # offset of element 0; bytes of one
    cdef bint tracked                           # not by marks: see Arena.region
    cdef object _raw                            # writable: whoever uses it has marked, or need not

    cdef const void* read(self, uint64_t i) noexcept nogil          # element i in C order
    cdef void* write(self, uint64_t i, uint64_t n) noexcept nogil   # marks n elements from i
