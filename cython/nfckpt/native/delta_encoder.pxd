"""DeltaEncoder: epoch records told by what the standby already has."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from nfckpt.native.arena cimport Arena
from nfckpt.native.epoch cimport Header, Record
from nfckpt.native.kept_inputs cimport KeptInputs

@cython.final
cdef class DeltaEncoder:
    cdef readonly KeptInputs kept
    cdef public bint from_inputs            # the standby's tap is open: outputs may be told by their inputs
    cdef readonly uint64_t frame_bytes      # of names and outputs, since `restart`
    cdef readonly uint64_t state_bytes      # of all else
    cdef readonly uint64_t plain_records    # that went as they were
    cdef Arena arena
    cdef uint8_t* shadow                    # what the standby's arena holds
    cdef Header before                      # the last record's
    cdef uint64_t secret[4]
    cdef uint8_t* buf
    cdef uint64_t capacity
    cdef object _zstd

    cdef uint64_t encode(self, uint8_t* record, uint64_t n, int n_ports) noexcept nogil
    cdef uint8_t* put_frames(self, uint8_t* p, Record* r) noexcept nogil
    cdef uint8_t* put_patch(self, uint8_t* p, const uint8_t* limit, uint32_t base, const uint8_t* data, uint32_t n) noexcept nogil
    cdef uint8_t* put_lines(self, uint8_t* p, Record* r) noexcept nogil
    cdef uint8_t* put_pages(self, uint8_t* p, Record* r) noexcept nogil
    cdef void follow(self, Record* r) noexcept nogil
    cdef uint64_t squeeze(self, const uint8_t* pages, uint64_t n, uint8_t* out) noexcept with gil
