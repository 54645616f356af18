# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Fault points: named instants in the life of a packet, an epoch, a failover, at which a process can be told to die.

Picture     controller ── arm("captured", "kill", after=3) ──► board: one file, mapped by both ──► the node's process, at the
            controller ◄── hits, struck_ns ──────────────────┘                                     third capture from now

Board       | magic | points | digest_every | digests | 0 ×4 |  64 slots of 64 bytes  | 256 digests of 32 bytes |
            slot     hits u64 | at u64 | struck_ns u64 | struck u64 | action u32 | ms u32 | 0
            It outlives every process, so it tells how far one came that was killed; and whoever strikes disarms first, so the
            next life of the node is not struck again.

Promises    F1 without a board a point costs one load and one branch.  F2 at most one strike each time it is armed.
            F3 a point that was reached is counted, whatever happens to the process there.

On request the nodes also leave a digest of their whole arena on the board, at every k-th epoch: what two boards say of the same
session and epoch must be equal.
"""
import mmap
import os

from nfckpt.errors import ConfigError, MachineError

from libc.signal cimport SIGKILL, SIGSEGV
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from nfckpt.native.arena cimport CHECK
from nfckpt.native.clock cimport monotonic_ns
from nfckpt.native.digest cimport nf_hash

cdef extern from *:
    """
    #include <signal.h>
    #include <time.h>
    #include <unistd.h>
    static const uint64_t nf_fault_keys[4] = {
        0x9e3779b97f4a7c15u, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu, 0xd6e8feb86659fd93u };
    static void nf_fault_sleep(uint32_t ms) {
        struct timespec t = { ms / 1000, (ms % 1000) * 1000000L }; nanosleep(&t, NULL); }
    static void nf_fault_signal(int n) { kill(getpid(), n); }
    static int nf_fault_raise(void *point) {
        PyErr_Format(PyExc_RuntimeError, "fault point %s", (const char *)point); return -1; }
    static void nf_fault_error(const char *name) { Py_AddPendingCall(nf_fault_raise, (void *)name); }
    """
    const uint64_t* nf_fault_keys
    void nf_fault_sleep(uint32_t) noexcept nogil
    void nf_fault_signal(int) noexcept nogil
    void nf_fault_error(const char*) noexcept nogil
    enum: SIGSTOP

cdef enum:
    MAGIC = 0x31544C4641    # "AFLT1"
    POINTS_MAX = 64
    SEEN_MAX = 256

ACTIONS = ("", "kill", "segv", "stop", "delay", "error")
"""kill, segv, stop: the process sends itself the signal.  delay: it sleeps.  error: RuntimeError as soon as Python runs."""

# name, whose process reaches it, whether the pair's promise holds when that process dies right there, and what is so then
POINTS = (
    ("frames_read", "active", True, "frames are out of the port's ring; the app has not seen them"),
    ("frames_decided", "active", True, "the app decided on a burst; nothing of it is in the gate"),
    ("half_held", "active", True, "one output of a burst is in the gate, the rest is not"),
    ("burst_held", "active", True, "the whole burst is in the gate, in the open epoch"),
    ("before_capture", "active", True, "a cut is due; nothing is captured"),
    ("captured", "active", True, "the record is written, and no reader can see it"),
    ("shipped", "active", True, "the channel has the record"),
    ("ack_read", "active", True, "an epoch is committed; nothing of it left"),
    ("half_released", "active", True, "one committed output is the port's, not yet kicked"),
    ("released", "active", True, "committed outputs left; nobody was told"),
    ("tap_read", "standby", True, "the tap took frames out of its ports' rings"),
    ("record_read", "standby", True, "a record is whole in private memory, unchecked"),
    ("registered", "standby", True, "its names and outputs are registered; no ack"),
    ("acked", "standby", True, "the ack is under way; the arena is an epoch behind"),
    ("half_applied", "standby", True, "half of its lines are swapped into the arena"),
    ("applied", "standby", True, "an epoch is applied"),
    ("pages_captured", "active", False, "a group of pages rides on a record: the standby is not whole"),
    ("pages_applied", "standby", True, "a group of pages is applied"),
    ("half_replayed", "active", False, "frames of the tap are out for replay: this is the only node with the state"),
    ("protecting", "active", False, "a follower was let in; outputs are held"),
    ("asks_protected", "active", False, "the standby is whole; the witness is asked to record it"),
    ("protected", "active", True, "the witness recorded the standby"),
    ("lease_armed", "active", True, "the next mark is in the kernel; its beat is not sent"),
    ("lease_stamped", "active", True, "the sockets carry the mark of the acknowledged beat"),
    ("standby_lost", "active", False, "the standby is lost; outputs stay held"),
    ("solo", "active", False, "the grant is void; what was held may leave"),
    ("handed_over", "active", True, "a planned switch: the standby was told to claim the term"),
    ("loss_noticed", "standby", False, "the active is lost"),
    ("asks_claim", "standby", False, "the witness is asked for the next term"),
    ("asks_took", "standby", False, "the standing grant is used"),
    ("promoted", "standby", False, "fenced and settled: the next term is ours"),
    ("drained", "standby", False, "the committed backlog is applied"),
    ("reemitted", "standby", False, "committed outputs that were not seen leaving left again"),
    ("leading", "standby", False, "reported as the active; nothing is replayed yet"),
    ("receipt", "active", False, "the replay is over, its receipt is written"),
)
NUMBERS = {name: number for number, (name, _, _, _) in enumerate(POINTS)}
BYTES = sizeof(Board)
assert len(POINTS) <= POINTS_MAX and POINTS[NATIVE_POINTS][0] == "protecting"

_NAMES = [name.encode() for name, *_ in POINTS]         # kept: pending calls point into it
cdef const char* names[POINTS_MAX]
for _n in range(len(_NAMES)):
    names[_n] = <const char*>(<bytes>_NAMES[_n])


cdef void strike(Board* b, int point) noexcept nogil:
    cdef Slot* s = &b.slot[point]
    cdef uint32_t action = s.action
    s.hits += 1
    if action == 0 or s.hits < s.at:
        return
    s.action = 0
    s.struck += 1
    s.struck_ns = monotonic_ns()
    if action == 1:
        nf_fault_signal(SIGKILL)
    elif action == 2:
        nf_fault_signal(SIGSEGV)
    elif action == 3:
        nf_fault_signal(SIGSTOP)
    elif action == 4:
        nf_fault_sleep(s.ms)
    elif action == 5:
        nf_fault_error(names[point])


cdef void note_digest(Board* b, uint64_t session, uint64_t epoch, const uint8_t* base, uint64_t n) noexcept nogil:
    cdef Seen* e = &b.seen[b.digests % SEEN_MAX]
    cdef uint64_t h = epoch, at = 0, part
    while at < n:
        part = min(n - at, <uint64_t>1 << 30)
        h = nf_hash(nf_fault_keys, h, base + at, <uint32_t>part)
        at += part
    e.number = 0
    e.session, e.epoch, e.digest = session, epoch, h
    b.digests += 1
    e.number = b.digests


def hit(str name not None):
    """This point was reached: for the rare ones, in Python."""
    if board != NULL:
        strike(board, NUMBERS[name])


cdef class FaultBoard:
    """The board in file `path`, made where there is none; "": one that nobody shares. Raises MachineError where it cannot be mapped,
    ConfigError for a file that is no board of this build."""
    cdef Board* b
    cdef object _map

    def __cinit__(self, path=""):
        try:
            if path:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    if os.fstat(fd).st_size < BYTES:
                        os.ftruncate(fd, BYTES)
                    self._map = mmap.mmap(fd, BYTES)
                finally:
                    os.close(fd)
            else:
                self._map = mmap.mmap(-1, BYTES)
        except OSError as error:
            raise MachineError(f"no fault board in {path}: {error.strerror}") from error
        cdef uint8_t[::1] view = self._map
        self.b = <Board*>&view[0]
        if self.b.magic == 0:
            self.b.points = len(POINTS)
            self.b.magic = MAGIC
        if self.b.magic != MAGIC or self.b.points != len(POINTS):
            raise ConfigError(f"{path} is no fault board of this build", "name a file that does not exist")

    def arm(self, str name not None, str action not None, uint64_t after=1, uint32_t ms=50):
        """Do `action` (of ACTIONS) at the `after`-th hit of a point from now on. Raises ConfigError for what there is not."""
        cdef Slot* s = self._slot(name)
        if action not in ACTIONS[1:]:
            raise ConfigError(f"fault action {action!r}", f"one of {', '.join(ACTIONS[1:])}")
        if after < 1 or not 1 <= ms <= 60000:
            raise ConfigError(f"fault point {name}: hit {after}, {ms} ms", "hits count from 1; 1 to 60,000 ms")
        s.action = 0
        s.at = s.hits + after
        s.ms = ms
        s.action = ACTIONS.index(action)

    def disarm(self):
        """Whatever is armed passes by from now on."""
        cdef int n
        for n in range(POINTS_MAX):
            self.b.slot[n].action = 0

    def hits(self):
        """dict name -> times reached."""
        return {name: self.b.slot[n].hits for name, n in NUMBERS.items()}

    def struck(self, str name not None):
        """(how often, when last: CLOCK_MONOTONIC ns) a point struck."""
        cdef Slot* s = self._slot(name)
        return int(s.struck), int(s.struck_ns)

    def digest_every(self, uint64_t epochs):
        """From now on a digest of the whole arena is left at every `epochs`-th epoch; 0: no more."""
        self.b.digest_every = epochs

    def digests(self):
        """dict (session, epoch) -> digest: the last 256, those that are being written left out."""
        cdef int n
        cdef Seen e
        found = {}
        for n in range(SEEN_MAX):
            e = self.b.seen[n]
            if e.number and e.number == self.b.seen[n].number:
                found[e.session, e.epoch] = e.digest
        return found

    def join(self):
        """This process reaches the points of this board from now on, to its end."""
        global board
        _kept.append(self)
        board = self.b

    def leave(self):
        """No more."""
        global board
        board = NULL

    cdef Slot* _slot(self, str name) except NULL:
        if name not in NUMBERS:
            raise ConfigError(f"no fault point {name!r}", "`nfckpt chaos --list-faults` shows them")
        return &self.b.slot[<int>NUMBERS[name]]


_kept = []
