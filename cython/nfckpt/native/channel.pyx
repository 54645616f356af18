# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Channel: whole messages between two packet processes, for native code; `nfckpt/wire/transport.py` is its Python face.

Picture     ActivePath.run ──push EPOCH──► Channel ═════════ Channel ──pop──► StandbyPath.run
                          ◄──pop──────────         ═════════        ◄──push ACK──
            shared memory: ShmRing (shm_ring.pyx)          two machines: TcpChannel (tcp_channel.pyx)

Who calls       One thread a process, the one that polls. Nothing blocks, takes a lock, or needs the GIL; nothing raises: an
                operating error ends the channel with a `reason`, and the caller sees it as the answer of `pop`.

push            1: taken whole, copied. 0: no room now, nothing was taken; or the channel has ended. -1: longer than
                message_bytes_max, nothing was taken. A channel may hold what it took until `drain`.
reserve         Room for one message of n bytes, to be written in place and sent by `publish` before anything else is pushed; NULL: not
                here or not now, use push. So a record is built where the peer reads it and nowhere else: no byte of it moves twice.
drain           Hand on what waits, as far as there is room; 1 when nothing waits. Once at the end of each turn of the
                loop: a TCP channel seals all that a turn has pushed into one record and makes one system call.
waiting         Bytes taken and not handed on yet, framing included.
pop             1: a message, in memory that no peer can write, at a multiple of 8, the caller's to change until the next pop. 0: nothing
                now. -1: the channel has ended, and everything that came whole before was given out.
put_back        The message just popped is for somebody else (Python): the next pop or `recv` gives it again.
pushed_to       Where the message pushed last ends, in the terms of `read_by_peer`; UINT64_MAX while it waits here and cannot have been
                read. 1 where the channel does not tell.
read_by_peer    How far the peer has read. Final once it is dead, so what lies beyond was never acted on. UINT64_MAX: the
                channel does not tell (TCP), it may have read everything.
announce_sleep  The caller is about to block on `fileno()`. 0: do not, there is something to do. `awake` ends it.

An implementation writes these, sets `reason` to 0 once it is open, and names its reasons in `_why`.
"""
from nfckpt.errors import ConfigError

from nfckpt.native.arena cimport CHECK
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport UINT64_MAX
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy


cdef class _Private:
    """Owner of one received message's memory; reached only through its memoryview."""
    cdef uint8_t* data
    cdef Py_ssize_t n

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.n, 0, flags)

    def __dealloc__(self):
        free(self.data)


cdef class Channel:
    """A Transport whose records and acks need no Python. Not made by itself: ShmRing, TcpChannel. One thread a process."""

    def __cinit__(self, *args, **kwargs):
        self.reason = HERE              # a channel that was never opened is closed

    def __dealloc__(self):
        free(self.inbox)

    cdef int push(self, int kind, const uint8_t* data, uint64_t n) noexcept nogil:
        return 0

    cdef uint8_t* reserve(self, uint64_t n) noexcept nogil:
        return NULL

    cdef void publish(self, int kind, uint64_t n) noexcept nogil:
        CHECK(False)                    # what reserve did not give

    cdef int drain(self) noexcept nogil:
        return 1

    cdef uint64_t waiting(self) noexcept nogil:
        return 0

    cdef int pop(self, Message* m) noexcept nogil:
        return -1

    cdef void put_back(self, Message* m) noexcept nogil:
        self.unread = m[0]
        self.has_unread = True

    cdef uint64_t pushed_to(self) noexcept nogil:
        return 1

    cdef uint64_t read_by_peer(self) noexcept nogil:
        return UINT64_MAX

    cdef bint announce_sleep(self) noexcept nogil:
        return False

    cdef void awake(self) noexcept nogil:
        pass

    def _why(self):
        return "closed here"

    # ---- Python

    def send(self, int kind, payload):
        """True: accepted whole (copied). False: no room now, or the channel has ended. Raises ConfigError when too long."""
        cdef Py_buffer view
        cdef int r
        if kind < 0 or kind > 255:
            raise ValueError(f"message kind {kind}: 0..255")
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        if view.len > 65536:
            with nogil:
                r = self.push(kind, <const uint8_t*>view.buf, view.len)
        else:
            r = self.push(kind, <const uint8_t*>view.buf, view.len)
        cdef Py_ssize_t n = view.len
        PyBuffer_Release(&view)
        if r < 0:
            raise ConfigError(f"message of {n} bytes", f"message_bytes_max is {self.message_bytes_max}")
        return r == 1

    def recv(self):
        """(kind, writable memoryview of private memory), or None: nothing now, or the channel has ended."""
        cdef Message m
        cdef _Private owner
        if self.pop(&m) != 1:
            return None
        owner = _Private.__new__(_Private)
        if m.data == self.inbox and m.n:
            owner.data = self.inbox
            self.inbox, self.inbox_cap = NULL, 0        # the memory goes with the message
        else:
            owner.data = <uint8_t*>malloc(m.n or 1)
            if owner.data == NULL:
                self.put_back(&m)
                raise MemoryError
            memcpy(owner.data, m.data, m.n)
        owner.n = m.n
        return m.kind, memoryview(owner)

    def flush(self):
        """Hand on what waits, as far as there is room. True when nothing waits."""
        return self.drain() == 1

    def before_sleep(self):
        """Announce that we are about to block on `fileno()`. False: there is something to do after all, do not."""
        return self.announce_sleep()

    def after_sleep(self):
        """Awake again: no more doorbells, please."""
        self.awake()

    @property
    def backlog(self):
        """Bytes accepted that are not handed on yet, framing included."""
        return self.waiting()

    @property
    def closed(self):
        """None while open or while there is something left to receive; then the reason."""
        return self._why() if self.reason and not self.has_unread else None
