"""Checkpoint engine: when an epoch closes, and every state it can be in.

Rules       An epoch is OPEN from the moment its first frame is consumed, output held or line written.
            It closes at a poll, when it is due and the app owns no frame. If the app still owns frames it is QUIESCING:
            polls answer "no packets" until the app lets go, or the deadline makes the attempt ABORTED.
            CAPTURED (copied into staging) → SHIPPED (the channel took it) → COMMITTED (the standby holds it whole).
            An abort leaves the last committed epoch untouched.

Due         request     somebody asked
            time        it has been open for as long as the hold says (native/hold.pyx: fixed, or adapted to a CPU budget)
            frames      it holds hold_frames_max outputs
            bytes       it wrote hold_dirty_bytes_max
            crowded     names or gate are half full
            Each cut is counted under its cause (`closed`). Time counts from the first poll that saw the epoch pending, so no
            input rate can postpone a cut (I3).

Picture     OPEN ─► CAPTURED ─► SHIPPED ─► COMMITTED
              └─► QUIESCING ─┘ │            │
                     └──────► ABORTED ◄─────┘  (deadline; channel lost)

            While one epoch is QUIESCING or OPEN, up to two before it wait in staging (native/staging.pyx); with none free
            the open epoch grows.

Quiesce requests carry numbers (I11): `request()` gives one, a stale `resume(number)` has no effect.
"""

from __future__ import annotations

from nfckpt.native.engine import CAUSES, TRANSITIONS, Engine, EpochState

__all__ = ["CAUSES", "TRANSITIONS", "Engine", "EpochState"]
