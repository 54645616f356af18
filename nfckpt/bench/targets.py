"""The rows of the table: what each key says, and what it should be on an idle machine of two cores."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """`value` is to be reached (`at_least`) or not to be passed. `digits`: after the point, when printed."""

    key: str
    what: str
    unit: str
    value: float
    at_least: bool
    digits: int = 2

    def met(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:,g}"


def _rows(*rows: tuple[str, str, str, float, bool, int]) -> dict[str, Target]:
    return {row[0]: Target(*row) for row in rows}


TARGETS = _rows(
    ("checkpoints_per_s", "committed, each of 32 frames, 32 lines, 32 outputs", "/s", 200_000, True, 0),
    ("pause_us_p50", "capturing poll, median", "µs", 1.0, False, 2),
    ("pause_us_p99", "capturing poll, 99th percentile", "µs", 5.0, False, 2),
    ("checkpoints_tap_per_s", "the same with tap, naming and observation", "/s", 120_000, True, 0),
    ("pause_ratio", "pause ÷ gather copy of the same bytes, worst of 0.1, 1, 10 %", "×", 1.2, False, 2),
    ("pause_flat_ratio", "pause at 1 GiB ÷ at 64 MiB, same lines", "×", 1.1, False, 2),
    ("protect_ns", "CPU added a frame, native NAT, memory ports", "ns", 40, False, 1),
    ("native_nf_mpps", "native NAT, protected, memory ports", "Mpps", 5.0, True, 2),
    ("python_nf_mpps", "Python NAT, protected, memory ports", "Mpps", 1.0, True, 2),
    ("protect_ratio", "CPU a frame, unprotected ÷ protected, veth, 100,000 frames/s", "×", 0.95, True, 3),
    ("latency_rtt_ratio", "added latency ÷ round trip of such a record, worst channel", "×", 1.5, False, 2),
    ("wire_ratio", "bytes on TCP, frames apart ÷ bytes of state that changed", "×", 3.0, False, 2),
    ("wire_frame_ratio", "bytes on TCP for frames ÷ bytes of these frames", "×", 1.0, False, 2),
    ("drain_ratio", "rate of draining 10,000 epochs ÷ rate they were made at", "×", 1.5, True, 2),
    ("mmu_pause_ratio", "pause with the mmu tracker ÷ (scan + copy) of the same pages", "×", 1.2, False, 2),
    ("sync_ratio", "sync of 1 GiB under traffic ÷ (bytes ÷ channel bandwidth)", "×", 1.5, False, 2),
    ("crash_outage_ms_p50", "outage after SIGKILL or SIGSEGV, profile host, median", "ms", 1.0, False, 2),
    ("crash_outage_ms_p99", "the same, 99th percentile", "ms", 10, False, 2),
    ("reprotect_ratio", "from hello to protected ÷ (state ÷ channel bandwidth)", "×", 1.5, False, 2),
    ("crash_rss_ratio", "news of a death at 2 GiB ÷ at 64 MiB", "×", 1.2, False, 2),
    ("hang_ratio", "outage ÷ hang bound, SIGSTOP, profile host", "×", 1.1, False, 2),
    ("hosts_outage_ratio", "outage ÷ (hang bound + lease), death of a machine, profile hosts", "×", 1.1, False, 2),
    ("graceful_outage_us_p50", "outage of a planned switch, median", "µs", 500, False, 0),
    ("false_takeovers", "in ten minutes with both cores wanted by others", "", 0, False, 0),
    ("vs_scapy", "protected native NAT ÷ the same in scapy", "×", 100, True, 0),
    ("vs_pickle", "protected native NAT ÷ state pickled whole each epoch", "×", 100, True, 0),
    ("vs_redis", "protected native NAT ÷ state in Redis per packet", "×", 20, True, 0),
)
