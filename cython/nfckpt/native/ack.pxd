"""Ack: the 40 bytes of ACK and BEAT_ACK, drawn in nfckpt/wire/messages.py; kinds as in nfckpt/wire/kinds.py."""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    KIND_EPOCH = 1
    KIND_ACK = 2
    KIND_INPUTS = 6
    ACK_BYTES = 40
    TAP_GAP = 1                 # flags: the tap is inexact for now
    PORT_DOWN = 2               # flags: a port has no carrier
    CUT_OFF = 4                 # flags: a port of the active seems to be cut off

cdef struct Ack:
    uint64_t session, epoch, stamp_ns, echo_ns
    uint32_t amount, flags
