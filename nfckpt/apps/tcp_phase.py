"""TCP phase of a session, as a middlebox sees it: which SYNs, FINs and resets went by. One byte.

Picture     S ->        SYN_OUT
            <- SA       SYN_OUT | SYN_IN            established: long timeout (RFC 5382 REQ-5)
            FA ->       ... | FIN_OUT               still established: the other side may go on sending
            <- FA       ... | FIN_IN                closed: short timeout; the next SYN begins anew

A segment after a reset means that the peer did not believe it (RFC 7857, 2.2): the session is what it was.
"""

from __future__ import annotations

import numpy as np

__all__ = ["ACK", "FIN", "RST", "STEP", "SYN", "is_established", "opens", "tcp_step"]

FIN, SYN, RST, ACK = 1, 2, 4, 16
SYN_OUT, SYN_IN, FIN_OUT, FIN_IN, RESET = 1, 2, 4, 8, 16


def opens(flags: int) -> bool:
    """A segment that may open a session: SYN alone."""
    return flags & (SYN | ACK | RST) == SYN


def tcp_step(phase: int, flags: int, outbound: bool) -> int:
    """The phase after a segment with `flags`."""
    if flags & RST:
        return phase | RESET
    syn, fin = (SYN_OUT, FIN_OUT) if outbound else (SYN_IN, FIN_IN)
    closed = phase & RESET or phase & (FIN_OUT | FIN_IN) == FIN_OUT | FIN_IN
    if closed and flags & (SYN | ACK) == SYN:
        return syn
    return phase & ~RESET | (syn if flags & SYN else 0) | (fin if flags & FIN else 0)


def is_established(phase: int) -> bool:
    """Both SYNs seen, not both FINs, no reset."""
    return phase & 3 == 3 and phase & 12 != 12 and not phase & RESET


STEP = np.array([[[tcp_step(p, f, out) for f in range(32)] for p in range(32)] for out in (False, True)], np.uint8)
"""`tcp_step` as a table: STEP[outbound, phase, flags & 31]."""
