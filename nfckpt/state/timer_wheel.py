"""TimerWheel as Python sees it.

    timers = state.timers("idle", capacity=100_000, tick_ms=10)
    timers.arm(slots, ctx.now_ns + 120 * 10**9)        # again on each packet: one line, the timer is moved lazily
    for id in timers.advance(ctx.now_ns): ...
"""

from __future__ import annotations

from nfckpt.native import timer_wheel as native

__all__ = ["TimerWheel"]


class TimerWheel(native.TimerWheel):
    """One timer for each id; made by `State.timers`. Ids and deadlines (ns) are scalars or arrays."""

    arm = native.TimerWheel.arm_many
    cancel = native.TimerWheel.cancel_many
    armed = native.TimerWheel.armed_many
    advance = native.TimerWheel.advance_many
