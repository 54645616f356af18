"""Checkpoint engine: when an epoch closes, and every state it can be in.

Rules       An epoch is OPEN from the moment its first frame is consumed, output held or line written.
            It closes at a poll, when it is due and the app owns no frame. If the app still owns frames it is QUIESCING:
            polls answer "no packets" until the app lets go, or the deadline makes the attempt ABORTED.
            CAPTURED (copied into staging) → SHIPPED (the channel took it) → COMMITTED (the standby holds it whole).
            An abort leaves the last committed epoch untouched.

Picture     OPEN ─► CAPTURED ─► SHIPPED ─► COMMITTED
              └─► QUIESCING ─┘ │            │
                     └──────► ABORTED ◄─────┘  (deadline; channel lost)

Quiesce requests carry numbers (I11): `request()` gives one, a stale `resume(number)` has no effect.
"""

from __future__ import annotations

from nfckpt.native.engine import CAUSES, TRANSITIONS, Engine, EpochState

__all__ = ["CAUSES", "TRANSITIONS", "Engine", "EpochState"]
