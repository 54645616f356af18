"""What the two packet processes say to each other, besides epochs.

Control messages (kind CONTROL): msgpack of one of the structs below, tagged by its name; unknown fields are refused.
Ack and beat (kinds ACK, BEAT, BEAT_ACK): fixed, little-endian, because they are sent for every epoch:

    ACK         | session u64 | epoch u64 | stamp_ns u64 | echo_ns u64 | inputs u32      | flags u32 |     40 bytes
    BEAT        | session u64 | beat u64  | stamp_ns u64 | echo_ns u64 | ports_empty u32 | zero u32  |
    BEAT_ACK    | session u64 | beat u64  | stamp_ns u64 | echo_ns u64 | inputs u32      | flags u32 |

    OUTPUTS     | session u64 | epoch u64  | outputs as in the epoch's record (native/epoch.pyx)   the answer to Need

`stamp_ns` is the sender's CLOCK_MONOTONIC, `echo_ns` the last stamp it heard from the other side: neither clock is
ever compared with the other, each only with itself.
"""

from __future__ import annotations

import struct
from typing import Annotated, NamedTuple

import msgspec

from nfckpt.errors import PeerError

__all__ = [
    "CUT_OFF", "PORT_DOWN", "PROTOCOL", "TAP_GAP", "Ack", "Control", "Handover", "Hello", "Leave", "Need", "Parting", "Prepare", "Protected", "Ready", "Refuse", "TapOpen", "Welcome", "Whole",
    "decode_ack", "decode_control", "decode_outputs", "encode_ack", "encode_control",
]

PROTOCOL = 5
TAP_GAP, PORT_DOWN, CUT_OFF = 1, 2, 4   # flags: the tap is inexact for now; a port of the standby has no carrier; one of the active is cut off

_ACK = struct.Struct("<QQQQII")


class Ack(NamedTuple):
    session: int
    epoch: int                  # committed through (ACK) or the beat's number
    stamp_ns: int
    echo_ns: int
    amount: int                 # inputs waiting in the tap, or the mask of empty ports
    flags: int


def encode_ack(ack: Ack) -> bytes:
    return _ACK.pack(*ack)


def decode_ack(payload: memoryview) -> Ack:
    """Raises PeerError for a wrong length."""
    if len(payload) != _ACK.size:
        raise PeerError(f"ack of {len(payload)} bytes, not {_ACK.size}")
    return Ack._make(_ACK.unpack(payload))


def decode_outputs(payload: memoryview) -> tuple[int, int, memoryview]:
    """(session, epoch, outputs as in the record). Raises PeerError for a payload shorter than its two numbers."""
    if len(payload) < 16:
        raise PeerError(f"outputs of {len(payload)} bytes")
    return int.from_bytes(payload[:8], "little"), int.from_bytes(payload[8:16], "little"), payload[16:]


Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]       # what native code takes; the rest is refused


class _Message(msgspec.Struct, forbid_unknown_fields=True, tag=True):
    pass


class Hello(_Message):
    """Follower → active: who asks, and with which layout."""

    pair: str
    node: str
    protocol: Number
    layout: bytes
    key: bytes = b""            # PairSecrets.check


class Refuse(_Message):
    """Active → follower: no, and why. `again`: not now; else never, as the two of you are set up."""

    reason: str
    again: bool = False


class Welcome(_Message):
    """Active → follower: outputs are held from here on; epochs of this session follow."""

    session: Number
    term: Number
    epoch: Number               # of the first record
    lease_ms: Number


class TapOpen(_Message):
    """Follower → active: the tap buffers now; send pages, and name every frame."""

    session: Number


class Whole(_Message):
    """Follower → active: every page is here and the tap covers what is not named (rule 9)."""

    session: Number


class Need(_Message):
    """Follower → active: my tap lacks inputs that this epoch's record is told by; send its outputs whole (kind OUTPUTS)."""

    session: Number
    epoch: Number


class Protected(_Message):
    """Active → follower: the witness recorded your standing grant for term + 1."""

    session: Number
    term: Number


class Parting(_Message):
    """Active → standby: we ask the witness to let us go on alone. Your grant stands until it does, so from now on ask it before you use it."""

    session: Number


class Prepare(_Message):
    """Active → standby: a planned switch is wanted. Claim term + 1 while we go on, and say Ready."""

    session: Number
    term: Number


class Ready(_Message):
    """Standby → active: the witness granted us term + 1. Stop, and hand over."""

    session: Number
    term: Number


class Handover(_Message):
    """Active → standby: planned switch. Everything is committed and, below `released`, has left; term + 1 is yours."""

    session: Number
    term: Number
    released: Number = 0


class Leave(_Message):
    """Follower → active: this process ends in order and uses no grant. Nobody has to be killed, nothing has to be waited for."""

    session: Number


Control = Hello | Refuse | Welcome | TapOpen | Whole | Need | Protected | Parting | Prepare | Ready | Handover | Leave

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)


def encode_control(message: Control) -> bytes:
    return _encoder.encode(message)


def decode_control(payload: memoryview) -> Control:
    """Raises PeerError for anything but one well-formed message."""
    if len(payload) > 4096:
        raise PeerError(f"control message of {len(payload)} bytes")
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:         # the latter for text that is no UTF-8
        raise PeerError(f"control message: {e}") from None
