# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""For measurements: what a channel alone costs. One end sends a message and waits, spinning; the other copies it out and answers."""
from libc.stdint cimport uint8_t, uint64_t
from nfckpt.native.ack cimport ACK_BYTES
from nfckpt.native.channel cimport Channel, Message
from nfckpt.native.clock cimport monotonic_ns

cdef enum:
    KIND = 1


def echo(Channel channel not None):
    """Answer every message with the bytes of an ack, until the channel ends."""
    cdef uint8_t answer[ACK_BYTES]
    cdef Message m
    cdef int r = 0
    with nogil:
        for r in range(ACK_BYTES):
            answer[r] = 0
        while r >= 0:
            r = channel.pop(&m)
            if r == 1:
                channel.push(KIND, answer, ACK_BYTES)
            channel.drain()


def ping(Channel channel not None, const uint8_t[::1] body not None, uint64_t[::1] out not None):
    """Fill `out` with the ns from pushing `body` to its answer, one at a time. False: the channel ended."""
    cdef Message m
    cdef uint64_t i, began
    cdef int r = 0
    with nogil:
        for i in range(<uint64_t>out.shape[0]):
            began = monotonic_ns()
            while channel.push(KIND, &body[0], body.shape[0]) != 1 and not channel.reason:
                channel.drain()
            r = 0
            while r == 0:
                channel.drain()
                r = channel.pop(&m)
            if r < 0:
                break
            out[i] = monotonic_ns() - began
    return r == 1


def pour(Channel channel not None, const uint8_t[::1] body not None, uint64_t count):
    """The ns it takes until `count` messages of `body`, sent as fast as there is room, are all answered. 0: the channel ended."""
    cdef Message m
    cdef uint64_t sent = 0, answered = 0, began = monotonic_ns()
    cdef int r = 0
    with nogil:
        while answered < count and r >= 0:
            if sent < count and channel.push(KIND, &body[0], body.shape[0]) == 1:
                sent += 1
            channel.drain()
            r = channel.pop(&m)
            answered += r == 1
    return 0 if r < 0 else int(monotonic_ns() - began)
