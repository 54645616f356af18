"""Delta: an epoch record (native/epoch.pyx) told by what the standby already has, for channels where bytes cost.

Picture     active                                                       standby
            record ─► DeltaEncoder ═══════ channel ═══════► DeltaDecoder ─► record, byte for byte ─► register, ack, swap
                       ▲ shadow: what its arena holds        ▲ its arena, at the epoch before
                       ▲ kept: the inputs of the epoch       ▲ its tap: the same inputs, found by their names

    0        4       12            20
    +--------+-------+-------------+------------------------------------------------------------------------+
    | "NFD2" | check | window_hash | 15 numbers: bytes of the record, flags, session*, term*, epoch, now_ns+, |
    | u32    | u64   | u64         | released_through+, first_seq+, echo_ns+, ports_empty, window_off,        |
    +--------+-------+-------------+ n_names, n_outputs, n_lines, n_pages; if there are names, ages of ports -+
    names    n_names × key u64 · { port u8, how many in a row: number } until there are n_names
    outputs  n_outputs × { head u8 · port u8 if not SAME_PORT · length: number if not SAME_LENGTH · FROM_INPUT: input:
             number if not NEXT, patch; else its bytes }
                head   1 FROM_INPUT, 2 SAME_PORT, 4 SAME_LENGTH (as the output before; of the first: port 0, length 0),
                       8 NEXT (made from the name after that of the last one FROM_INPUT; of the first: name 0)
                patch  { equal: number · if not at the end: changed: number ≥ 1 · that many bytes } until the length is reached;
                       the input counts as continued with zeros
    lines    n_lines × { (number − the one before: signed) << 1 | SAME · if not SAME (mask and how are those of the line before): mask
             u8 of its changed 8-byte words, and for each, lowest first, how u8 · the bytes that `how` asks for }
                how    bit 7: the word is now the same as the one changed `how & 7` before (0 the last, of the words told
                              by difference in this record; zeros before the first)
                       else:  bits 0–2 first changed byte, 3–5 how many less one; so many bytes of old XOR new
             mask 0, also that of the line before the first: the whole line, 64 bytes
    pages    n_pages × { number − the one before: signed } · 0 u8: n_pages × 4096 bytes; 1 u8, bytes: number: so many of one zstd frame

    number   LEB128: 7 bits a byte, the lowest first, bit 7 on all but the last; at most 10 bytes, modulo 2**64
    signed   number of (n << 1) ^ (n >> 63)
    * XOR, + signed difference: to the header of the record before (at first, zeros); first_seq to its next
    number. check: nf_hash(secret, epoch, the whole record).

Example     NAT, a burst of 32 frames of 32 flows: the record has 2,200 bytes of lines. Here each flow's time stamp repeats the first
            one's and is told like the line before: its number, two or three bytes. A 64-byte output is 33 bytes: what a NAT rewrites.
Floor       20 + 24 bytes of header, 32 of TCP framing and 72 of an ack for each epoch: an epoch that changes 40 bytes of state costs
            four times as much, one that changes 100 two and a half times. Longer epochs (`hold_us_max`) share it.

Waiting     A frame named here may not have been seen by the standby yet, or never will be: then the record waits, as one that
            finds no room does, and after one skew the standby asks for that epoch's outputs whole (replica/standby.py).

Promises    D1 decode gives the record back byte for byte, or nothing: `check` is compared before a byte of it is used (I7).
            D2 what is not smaller goes as the plain record: an encoded one never has more bytes.
            D3 every count, length, offset and index of a peer is bounded before it is used, and nothing is allocated above
               `record_bytes_max` (I14).
Source      LEB128 and the signed form are those of Protocol Buffers' varint and sint64; zstd: RFC 8878.
"""

from __future__ import annotations

from nfckpt.native.delta_decoder import FAULTS, DeltaDecoder
from nfckpt.native.delta_encoder import DeltaEncoder

__all__ = ["FAULTS", "DeltaDecoder", "DeltaEncoder"]
