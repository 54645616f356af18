# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Proof of death on one kernel: a robust mutex in a sealed page, held by the emitting thread (DESIGN I9, profile host).

Picture     emitting thread --pthread_mutex_lock--> [ tid | WAITERS ]      page of a memfd; then the gate's `leaving` of each port, and `left`
                     |                                   |
                  SIGKILL, SIGSEGV, exit, exec           | FUTEX_WAIT, read-only mapping
                     v                                   v
            kernel, while the thread dies,   [ OWNER_DIED | WAITERS ] --wakes--> watcher: flag, time, eventfd
            before it frees any memory

            So the news costs the same for 64 MB and for 64 GB. The thread cannot send any more: every system call it
            was in has ended, and it never returns to its program.

Promises    L1 a watch reports `died` only when the kernel (or the owner itself, writing its own page) said so.
            L2 the watcher writes nothing into the page and follows no pointer in it: it maps it read-only and looks at
               one word, so nothing a peer writes can lead it astray. The page must be sealed against shrinking, or
               a peer could have it killed by SIGBUS: an unsealed one is refused.
            L3 one life, one page: `hold` seals it against any further writable mapping.
            L4 an output numbered `leaving` of its port or higher never began to leave: the owner's gate writes it before a frame's turn.
            L5 every output numbered below `left` is in the kernel's hands: the gate writes it after.

Limits      An owner that lies about itself can: set OWNER_DIED (a false report: what promotes on it must still kill, see
            proof.kill_and_confirm), clear WAITERS (news up to SLICE_MS late), or flip the word for ever (the watcher
            burns a core), misname what left (outputs emitted twice, or late). Each hurts its own pair only. Only one waiter is woken by the kernel: one page a watcher;
            a second watcher of a page learns within SLICE_MS.
Traps       The owner is a thread: its end, and exec, report death too. Unmapping the page before death loses the news.
            A core dump is written before the news (3 s at 1 GiB): proof.harden_process().
Source      Linux Documentation/locking/robust-futex-ABI.rst; futex(2), pthread_mutexattr_setrobust(3).
"""
import os

from nfckpt.errors import MachineError, PeerError, StateError

from libc.stdlib cimport calloc, free
from libc.stdint cimport UINT64_MAX
from nfckpt.native.gate cimport Gate
from nfckpt.native.port_set cimport MAX_PORTS

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <linux/futex.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    static uint32_t life_load(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static void life_or(uint32_t *p, uint32_t v) { __atomic_fetch_or(p, v, __ATOMIC_ACQ_REL); }
    static uint64_t life_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static int life_get(int *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static void life_set(int *p, int v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static uint32_t life_tid(void) { return (uint32_t)syscall(SYS_gettid); }
    static uint64_t life_now(void) {
        struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec; }

    /* Shared futexes (no FUTEX_PRIVATE_FLAG): that is what the kernel wakes for a robust mutex of another process. */
    static void life_wait(const uint32_t *p, uint32_t seen, int ms) {
        struct timespec t = { ms / 1000, (ms % 1000) * 1000000L };
        syscall(SYS_futex, p, FUTEX_WAIT, seen, &t, 0, 0); }
    static void life_wake(const uint32_t *p) { syscall(SYS_futex, p, FUTEX_WAKE, INT_MAX, 0, 0, 0); }
    static void life_signal(int fd) { uint64_t one = 1; while (write(fd, &one, 8) < 0 && errno == EINTR) {} }

    static int life_init(void *page) {
        pthread_mutexattr_t a; int e;
        if ((e = pthread_mutexattr_init(&a))) return e;
        if (!(e = pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED))
            && !(e = pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST)))
            e = pthread_mutex_init((pthread_mutex_t *)page, &a);
        pthread_mutexattr_destroy(&a);
        return e; }
    static int life_lock(void *page) { return pthread_mutex_trylock((pthread_mutex_t *)page); }
    static int life_unlock(void *page) { return pthread_mutex_unlock((pthread_mutex_t *)page); }

    static int life_thread(uint64_t *out, void *(*run)(void *), void *arg) {
        pthread_t t; pthread_attr_t a; sigset_t all, old; int e;
        sigfillset(&all);                       /* signals are for Python's threads */
        pthread_attr_init(&a);
        pthread_attr_setstacksize(&a, 128 * 1024);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        e = pthread_create(&t, &a, run, arg);
        pthread_sigmask(SIG_SETMASK, &old, 0);
        pthread_attr_destroy(&a);
        *out = (uint64_t)t;
        return e; }
    static void life_join(uint64_t t) { pthread_join((pthread_t)t, 0); }
    static void *life_map(int fd, int write) {
        void *p = mmap(0, 4096, write ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
        return p == MAP_FAILED ? 0 : p; }
    static void life_unmap(void *p) { munmap(p, 4096); }
    static int life_seal(int fd, int more) {
        return fcntl(fd, F_ADD_SEALS, more ? F_SEAL_FUTURE_WRITE | F_SEAL_SEAL : F_SEAL_SHRINK | F_SEAL_GROW); }
    static int life_is_sealed(int fd) { int s = fcntl(fd, F_GET_SEALS); return s >= 0 && (s & F_SEAL_SHRINK) != 0; }
    """
    uint32_t life_load(const uint32_t*) noexcept nogil
    uint64_t life_load64(const uint64_t*) noexcept nogil
    void life_or(uint32_t*, uint32_t) noexcept nogil
    int life_get(int*) noexcept nogil
    void life_set(int*, int) noexcept nogil
    uint32_t life_tid() noexcept nogil
    uint64_t life_now() noexcept nogil
    void life_wait(const uint32_t*, uint32_t, int) noexcept nogil
    void life_wake(const uint32_t*) noexcept nogil
    void life_signal(int) noexcept nogil
    int life_init(void*) noexcept nogil
    int life_lock(void*) noexcept nogil
    int life_unlock(void*) noexcept nogil
    int life_thread(uint64_t*, void* (*)(void*) noexcept nogil, void*) noexcept nogil
    void life_join(uint64_t) noexcept nogil
    void* life_map(int, int) noexcept nogil
    void life_unmap(void*) noexcept nogil
    int life_seal(int, int) noexcept nogil
    int life_is_sealed(int) noexcept nogil
    enum: FUTEX_WAITERS, FUTEX_TID_MASK

cdef enum:
    SLICE_MS = 200              # a wake-up that never comes is noticed this late


cdef class LifeLock:
    """The owner's side. `fd = LifeLock.create()` before the process starts; `LifeLock(fd).hold()` on the emitting thread.

    Keep the object for as long as the thread emits. Raises MachineError where robust mutexes or seals are missing,
    StateError when the page had a life before.
    """

    @staticmethod
    def create():
        """A new page: an fd (close-on-exec) to hand to the owner and to one watcher. The caller closes its own."""
        cdef int fd = os.memfd_create("nfckpt-life", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 4096)
        if life_seal(fd, 0):
            os.close(fd)
            raise MachineError("a memfd cannot be sealed", "needs Linux >= 3.17 and a memfd that is not on hugetlbfs")
        return fd

    def __cinit__(self, int fd):
        self.fd = fd

    def hold(self):
        """Take the lock on the calling thread, for the rest of its life."""
        if self.page != NULL:
            raise StateError("this life is held already")
        cdef void* p = life_map(self.fd, 1)
        if p == NULL:
            raise StateError("cannot map the page for writing", "one life, one page: LifeLock.create() makes a new one")
        cdef int code = life_init(p)
        if code == 0:
            code = life_lock(p)
        cdef uint32_t* word = <uint32_t*>p
        if code or (life_load(word) & <uint32_t>FUTEX_TID_MASK) != life_tid():
            life_unmap(p)
            raise MachineError(f"no robust mutex: error {code}, or its lock word is not where glibc has it",
                               "needs glibc on Linux")
        # Set once by the owner: the kernel then wakes a waiter, and the watcher needs no write access.
        life_or(word, <uint32_t>FUTEX_WAITERS)
        self.page = p
        self.owner = life_tid()
        if life_seal(self.fd, 1):
            self.release()
            raise MachineError("a memfd cannot be sealed against writing", "needs Linux >= 5.1")

    def tell(self, Gate gate not None):
        """From now on `gate` writes here which outputs begin to leave. Raises StateError while the life is not held."""
        if self.page == NULL:
            raise StateError("this life is not held", "hold() first")
        gate.leaving = <uint64_t*>(<uint8_t*>self.page + LEAVING)
        gate.left = <uint64_t*>(<uint8_t*>self.page + LEFT)

    def release(self):
        """Let go in order, on the holding thread: the watcher sees RELEASED, not death. Raises StateError elsewhere."""
        if self.page == NULL or self.owner != life_tid():
            raise StateError("this thread does not hold the life", "release() where hold() was called")
        life_unlock(self.page)
        life_unmap(self.page)
        self.page = NULL

    # No __dealloc__: while the lock is held the page must stay mapped, or its death would not be seen.


cdef void* _watch(void* arg) noexcept nogil:
    cdef WatchState* s = <WatchState*>arg
    cdef uint32_t v
    while not life_get(&s.stop):
        v = life_load(s.word)
        if v & <uint32_t>FUTEX_OWNER_DIED:
            s.ns = life_now()
            life_set(&s.state, DIED)
            break
        if (v & <uint32_t>FUTEX_TID_MASK) != s.owner:
            s.ns = life_now()
            life_set(&s.state, RELEASED)
            break
        life_wait(s.word, v, SLICE_MS)
    if life_get(&s.state) != ALIVE:
        life_signal(s.event)
    return NULL


cdef class LifeWatch:
    """The watcher's side: a native thread that sleeps in the kernel, without the GIL, until the owner dies.

    Reports by `died`, `died_ns` and by `fileno()`, an eventfd that stays readable from then on (poll it, do not read it).
    Does not take over `fd`. Raises PeerError for a page that is not sealed, StateError when nobody holds it.
    """

    def __cinit__(self, int fd):
        cdef uint32_t v
        if os.fstat(fd).st_size < 4096 or not life_is_sealed(fd):
            raise PeerError("the page of a life is not sealed against shrinking", "LifeLock.create() seals it")
        self.s = <WatchState*>calloc(1, sizeof(WatchState))
        if self.s == NULL:
            raise MemoryError
        self.s.event = -1
        self.s.map = life_map(fd, 0)
        if self.s.map == NULL:
            raise StateError("cannot map the page of a life")
        self.s.word = <const uint32_t*>self.s.map
        v = life_load(self.s.word)
        self.s.owner = v & <uint32_t>FUTEX_TID_MASK
        if v == 0:
            raise StateError("nobody holds this life", "start the watch after the owner's hold()")
        self.s.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if life_thread(&self.s.thread, _watch, self.s):
            self.s.thread = 0
            raise MachineError("no thread for a watch", "raise the limit of processes (ulimit -u)")

    def __dealloc__(self):
        if self.s != NULL:
            self._end()
            free(self.s)

    @property
    def died(self):
        """True from the kernel's word on."""
        return bool(self.dead())

    def leaving(self, int port):
        """No output of the owner to `port` with this number or a higher one has begun to leave (L4). Raises StateError after
        close(), IndexError for a port that cannot be."""
        if self.s.map == NULL:
            raise StateError("the watch is closed")
        if not 0 <= port < MAX_PORTS:
            raise IndexError(port)
        return int(self.leaves(port))

    cdef uint64_t leaves(self, int port) noexcept nogil:
        return life_load64(<const uint64_t*>(<const uint8_t*>self.s.map + LEAVING) + port) if self.s.map != NULL else UINT64_MAX

    cdef uint64_t left(self) noexcept nogil:
        """Every output of the owner below this number has left (L5); 0 after close()."""
        return life_load64(<const uint64_t*>(<const uint8_t*>self.s.map + LEFT)) if self.s.map != NULL else 0

    @property
    def released(self):
        """True when the owner let go without dying."""
        return life_get(&self.s.state) == RELEASED

    @property
    def died_ns(self):
        """CLOCK_MONOTONIC ns at which the watcher woke with the news; 0 while there is none."""
        return self.s.ns if life_get(&self.s.state) == DIED else 0

    def fileno(self):
        """The eventfd. Raises StateError after close()."""
        if self.s.event < 0:
            raise StateError("the watch is closed")
        return self.s.event

    def close(self):
        """End the thread (at once, at the latest after SLICE_MS) and free the page. What it reported stays readable."""
        self._end()

    cdef _end(self):
        cdef uint64_t t = self.s.thread
        if t:
            self.s.thread = 0
            with nogil:
                life_set(&self.s.stop, 1)
                life_wake(self.s.word)
                life_join(t)
        if self.s.map != NULL:
            life_unmap(self.s.map)
            self.s.map = NULL
        if self.s.event >= 0:
            os.close(self.s.event)
            self.s.event = -1
