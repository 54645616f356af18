"""Outlook: if the active died now, what would it cost? From a pair's status, its bounds and its past receipts.

                     the process dies                        it hangs (or, profile hosts, its machine dies)
    detection        host: the kernel's word; hosts: the     the hang bound, as it is now
                     end of the channel
    grant            host: standing, 0; hosts: the witness's measured answer time
    fence            host: 0; hosts: what is left of lease_ms + lease_margin_ms after the detection
    settle           tap_skew_ms_max while a committed output was not seen leaving, else 0
    start            applying, a fresh app, announcing: as the last takeover took, else as the standby's own start did
    replay           frames in the standby's tap ÷ replay rate: the last takeover's that had 100 frames or more, else the rate that the
                     configuration declares (rate_frames_per_s)

All of it is expectation, not a bound: what has no measurement is taken at its bound.
"""

from __future__ import annotations

from typing import Any

from nfckpt.config import Bounds

__all__ = ["estimate", "outlook"]

REPLAYED_MIN = 100
Receipt = dict[str, Any]


def outlook(profile: str, bounds: Bounds, nodes: dict[str, dict[str, Any]], receipts: list[Receipt]) -> dict[str, Any] | None:
    """`estimate` of the standby's status, with the active's "outputs_held". None while no standby could take over."""
    active = next((s for s in nodes.values() if s.get("protected") and s.get("role") in ("active", "handed")), None)
    standby = next((s for s in nodes.values() if s.get("role") == "standby"), None)
    if active is None or standby is None:
        return None
    body = estimate(profile, bounds, standby, receipts)
    return {**body, "outputs_held": int(active.get("outputs_held", 0)), "exact": body["exact"] and not active.get("tap_gap")}


def estimate(profile: str, bounds: Bounds, standby: dict[str, Any], receipts: list[Receipt]) -> dict[str, Any]:
    """{"replay_frames", "outputs_unseen", "exact", "replay_frames_per_s", "replay_rate_from", "start_from",
    "outage_ms": {"crash": {step: ms, …, "total": ms}, "hang": {…}}}"""
    frames = int(standby.get("inputs_waiting", 0))
    unseen = int(standby.get("outputs_unseen", 0))
    rate, rate_from = _rate(receipts, bounds)
    start, start_from = _start(receipts, standby)
    hosts = profile == "hosts"
    lease_ms = bounds.lease_ms + bounds.lease_margin_ms if hosts else 0
    witness_ms = standby.get("witness_us", 0) / 1000
    outage: dict[str, dict[str, float]] = {}
    for death, detection in (("crash", 0), ("hang", standby.get("hang_bound_ms", bounds.hang_ms))):
        steps = {"detection": float(detection), "grant": witness_ms if hosts or death == "hang" else 0.0,
                 "fence": float(max(0, lease_ms - detection)), "settle": float(bounds.tap_skew_ms_max if unseen else 0),
                 "start": start, "replay": 1000 * frames / rate}
        outage[death] = {name: round(ms, 3) for name, ms in steps.items()} | {"total": round(sum(steps.values()), 3)}
    return {"replay_frames": frames, "outputs_unseen": unseen, "exact": not standby.get("tap_gap"),
            "replay_frames_per_s": round(rate), "replay_rate_from": rate_from, "start_from": start_from, "outage_ms": outage}


def _rate(receipts: list[Receipt], bounds: Bounds) -> tuple[float, str]:
    for r in reversed(receipts):
        us = r.get("steps_us", {}).get("replay", 0)
        if us and r.get("replayed", 0) >= REPLAYED_MIN:
            return r["replayed"] * 1e6 / us, f"measured in term {r['term']}"
    return float(max(1, bounds.rate_frames_per_s)), "declared: rate_frames_per_s"


def _start(receipts: list[Receipt], standby: dict[str, Any]) -> tuple[float, str]:
    """ms"""
    for r in reversed(receipts):
        steps = r.get("steps_us") or {}
        if "reemit" in steps:           # a log may hold receipts of before there was this step
            return (steps["apply"] + steps["start"] + steps["reemit"]) / 1000, f"measured in term {r['term']}"
    return standby.get("start_us", 0) / 1000, "the standby's own start"
