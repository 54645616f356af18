# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Burst: frames packed into one buffer, with one numpy column per fact about them.

Picture     buf  | headroom | frame 0 ... | headroom | frame 1 ... |          (each start 64-byte aligned)
            columns   length [60, 1514, …]  port [0, 0, …]  src_ip [...]  verdict [OWNED, OWNED, …]

An app reads columns (`burst.src_ip`, shape (n,), see `COLUMNS` for dtypes), sets `verdict` and `out_port`
(or calls `send`, `drop`), and gives the burst back: from on_burst by returning, in a loop of its own by `agent.tx_burst`.
After that the bytes are out of its reach: verdict reads DONE. To keep a frame for later: `ctx.park`.
"""
import numpy as np

from nfckpt.errors import StateError

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from libc.stdint cimport uintptr_t

COLUMNS = {
    "length": "u4", "port": "u1", "ts": "u8", "key": "u8", "verdict": "u1", "out_port": "u1",
    "eth_type": "u2", "vlan": "u2", "ip_version": "u1", "malformed": "u1", "frag": "u1", "proto": "u1",
    "l3_off": "u2", "l4_off": "u2", "ip_len": "u2", "src_ip": "u4", "dst_ip": "u4",
    "src_port": "u2", "dst_port": "u2", "tcp_flags": "u1", "icmp_type": "u1", "icmp_code": "u1",
}

OWNED_, SEND_, DROP_, DONE_ = OWNED, SEND, DROP, DONE


cdef void* _column(dict columns, str name, str dtype, tuple shape):
    array = np.zeros(shape, dtype)
    columns[name] = array
    return <void*><uintptr_t>array.ctypes.data


cdef class Burst:
    """Room for 256 frames of up to 9216 bytes (at most `buf_bytes` together). Reusable; not thread-safe."""

    def __cinit__(self, uint32_t buf_bytes=768 * 1024):
        if buf_bytes < 2 * (FRAME_MAX + 2 * HEADROOM):
            raise StateError(f"a burst buffer of {buf_bytes} bytes cannot hold two frames")
        self.buf = <uint8_t*>malloc(buf_bytes)
        if self.buf == NULL:
            raise MemoryError
        self.buf_bytes = buf_bytes
        cdef dict c = {}
        self._columns = c
        cdef tuple one = (BURST_MAX,)
        self.off = <uint32_t*>_column(c, "off", "u4", one)
        self.length = <uint32_t*>_column(c, "length", "u4", one)
        self.port = <uint8_t*>_column(c, "port", "u1", one)
        self.ts = <uint64_t*>_column(c, "ts", "u8", one)
        self.key = <uint64_t*>_column(c, "key", "u8", one)
        self.verdict = <uint8_t*>_column(c, "verdict", "u1", one)
        self.out_port = <uint8_t*>_column(c, "out_port", "u1", one)
        self.eth_type = <uint16_t*>_column(c, "eth_type", "u2", one)
        self.vlan = <uint16_t*>_column(c, "vlan", "u2", one)
        self.ip_version = <uint8_t*>_column(c, "ip_version", "u1", one)
        self.malformed = <uint8_t*>_column(c, "malformed", "u1", one)
        self.frag = <uint8_t*>_column(c, "frag", "u1", one)
        self.proto = <uint8_t*>_column(c, "proto", "u1", one)
        self.l3_off = <uint16_t*>_column(c, "l3_off", "u2", one)
        self.l4_off = <uint16_t*>_column(c, "l4_off", "u2", one)
        self.ip_len = <uint16_t*>_column(c, "ip_len", "u2", one)
        self.src_ip = <uint32_t*>_column(c, "src_ip", "u4", one)
        self.dst_ip = <uint32_t*>_column(c, "dst_ip", "u4", one)
        self.src_port = <uint16_t*>_column(c, "src_port", "u2", one)
        self.dst_port = <uint16_t*>_column(c, "dst_port", "u2", one)
        self.tcp_flags = <uint8_t*>_column(c, "tcp_flags", "u1", one)
        self.icmp_type = <uint8_t*>_column(c, "icmp_type", "u1", one)
        self.icmp_code = <uint8_t*>_column(c, "icmp_code", "u1", one)
        self.src_ip6 = <uint8_t*>_column(c, "src_ip6", "u1", (BURST_MAX, 16))
        self.dst_ip6 = <uint8_t*>_column(c, "dst_ip6", "u1", (BURST_MAX, 16))
        self.clear()

    def __dealloc__(self):
        free(self.buf)

    def __len__(self):
        return self.n

    def __getattr__(self, str name):
        try:
            return self._columns[name][:self.n]
        except KeyError:
            raise AttributeError(f"a burst has no column {name!r}") from None

    def push(self, frame, int port=0, uint64_t ts=0):
        """Append one frame (bytes-like). Returns its index. Raises StateError when the burst is full."""
        cdef const uint8_t[::1] view = frame
        cdef uint8_t* p = self.append(<uint32_t>view.shape[0], <uint8_t>port, ts)
        if p == NULL:
            raise StateError(f"no room in the burst for a frame of {view.shape[0]} bytes")
        if view.shape[0]:
            memcpy(p, &view[0], view.shape[0])
        return self.n - 1

    def frame(self, int i):
        """The bytes of frame i, as a copy."""
        if i < 0 or i >= self.n:
            raise IndexError(i)
        return (<const uint8_t*>self.data(i))[:self.length[i]]

    def frames(self):
        """list[bytes] of all frames."""
        return [self.frame(i) for i in range(self.n)]

    def set_frame(self, int i, bytes frame):
        """Replace the bytes of frame i by `frame`: at most as many as its old length rounded up to 64.

        Raises StateError when it does not fit: then `drop` it and `ctx.send` a new one.
        """
        if i < 0 or i >= self.n:
            raise IndexError(i)
        cdef uint32_t n = len(frame)
        cdef uint32_t end = self.off[i + 1] - HEADROOM if i + 1 < self.n else self.buf_used
        if n > end - self.off[i]:
            raise StateError(f"frame of {n} bytes does not fit in place of one of {self.length[i]}")
        memcpy(self.data(i), <const uint8_t*>frame, n)
        self.length[i] = n

    def reset(self):
        """Forget all frames. Only for bursts that no agent handed out."""
        self.clear()

    def send(self, which, port):
        """verdict SEND for `which` (indices or boolean mask), out of port index `port` (scalar or array)."""
        self._columns["verdict"][:self.n][which] = SEND
        self._columns["out_port"][:self.n][which] = port

    def drop(self, which):
        """verdict DROP for `which` (indices or boolean mask)."""
        self._columns["verdict"][:self.n][which] = DROP
