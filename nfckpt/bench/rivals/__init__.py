"""The same NAT as others would write it, or would keep its state. Small and readable; each gives byte for byte what ours does.

A rival is called with one burst, frames from inside, and returns the frames that leave outside. It gets the numbers of external ports
to hand out, in order, so that outputs can be compared. What it does not do that ours does (ARP, ICMP, fragments, timeouts, replay) is
in its favour.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Rival"]


class Rival(contextlib.AbstractContextManager["Rival"], Protocol):
    """`about`: one line for the table."""

    about: str

    def __call__(self, burst: Sequence[bytes]) -> list[bytes]: ...
