"""Epoch record: the wire form of one checkpoint. The picture is in epoch.pyx."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from nfckpt.native.arena cimport Arena
from nfckpt.native.gate cimport Gate
from nfckpt.native.port_set cimport MAX_PORTS
from nfckpt.native.sync cimport PageSync
from nfckpt.native.tap cimport Tap

cdef extern from *:
    """
    #ifndef NFCKPT_EPOCH
    #define NFCKPT_EPOCH
    #include <stdint.h>
    typedef struct {
        uint32_t magic; uint16_t version; uint16_t flags;
        uint64_t session, term, epoch;
        uint64_t now_ns, released_through, first_seq, echo_ns;
        uint32_t n_names, n_outputs, output_bytes, n_lines, n_pages, ports_empty;
        uint64_t window_off, window_hash;
        uint64_t total_bytes;
        uint16_t ages[16];
    } nf_epoch_header;
    _Static_assert(sizeof(nf_epoch_header) == 144, "epoch header is 144 bytes");
    #endif
    """
    ctypedef struct Header "nf_epoch_header":
        uint32_t magic
        uint16_t version, flags
        uint64_t session, term, epoch
        uint64_t now_ns, released_through, first_seq, echo_ns
        uint32_t n_names, n_outputs, output_bytes, n_lines, n_pages, ports_empty
        uint64_t window_off, window_hash
        uint64_t total_bytes
        uint16_t ages[MAX_PORTS]

cdef enum:
    EPOCH_MAGIC = 0x3145464e    # "NFE1"
    EPOCH_VERSION = 2
    HEADER_BYTES = 144
    SYNC_LAST = 1               # flags: after this epoch the standby holds every page
    WINDOW = 256
    AGE_BITS = 16               # an age is told in units of 2**16 ns
    ASK_LINES = 64              # lines asked for ahead of their swap

cdef struct OutputHead:
    uint16_t port
    uint16_t length
    uint32_t zero

@cython.final
cdef class Names:
    cdef uint64_t* key
    cdef uint8_t* port
    cdef readonly uint32_t n, capacity

@cython.final
cdef class EpochWriter:
    cdef uint64_t secret[4]
    cdef uint64_t n_lines, output_bytes, total      # of the record that `measure` has measured
    cdef uint32_t n_pages
    cdef bint syncing
    cdef void ask(self, Arena arena, uint64_t epoch) noexcept nogil
    cdef uint64_t measure(self, Arena arena, Gate gate, Names names, uint64_t epoch, PageSync sync, bint pages) noexcept nogil
    cdef void capture(self, Arena arena, Gate gate, Names names, Header* want, PageSync sync, uint8_t* buf) noexcept nogil

cdef uint64_t record_bytes_max(Arena arena, Gate gate, Names names, uint32_t pages_max) noexcept nogil

cdef struct Record:
    Header* h
    uint64_t* keys
    uint8_t* ports
    uint8_t* outputs
    uint32_t* line_no
    uint8_t* lines
    uint32_t* page_no
    uint8_t* pages

cdef int record_parse(Record* r, uint8_t* base, uint64_t total, Arena arena, int n_ports) noexcept nogil
cdef bint record_register(Record* r, Tap tap, uint64_t now, uint64_t captured_by) noexcept nogil
cdef void record_ask(Record* r, Arena arena) noexcept nogil
cdef void record_apply(Record* r, Arena arena) noexcept nogil
cdef void record_undo(Record* r, Arena arena) noexcept nogil
cdef bint record_agrees(Record* r, Arena arena, const uint64_t* secret) noexcept nogil
cdef str record_fault(int code)

@cython.final
cdef class EpochRecord:
    cdef Record r
    cdef object _memory
    cdef readonly bint applied
