"""Machine: what a figure was measured on, in one dict and one line."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path
from typing import Any

from nfckpt.bench.figure import UnavailableError
from nfckpt.native.arena import Arena

__all__ = ["machine", "machine_line", "room_for_arenas"]


def _read(path: str, after: str = "") -> str:
    """The first line of a file, or what stands behind `after` and a colon in it. Empty where there is none."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if not after:
                return line.strip()
            if name.strip() == after:
                return value.strip()
    return ""


def free_bytes() -> int:
    """Memory that can be had without swapping."""
    return int((_read("/proc/meminfo", "MemAvailable") or "0 kB").split()[0]) << 10


def room_for_arenas(arena_bytes: int) -> None:
    """Raises UnavailableError where two arenas so large, and what else it takes, do not fit."""
    if 5 * arena_bytes // 2 > free_bytes():
        raise UnavailableError(f"two arenas of {arena_bytes >> 20} MiB need more memory than is free", "close something, or use --quick")


def machine() -> dict[str, Any]:
    """cpu, cpus, memory_gib, kernel, virtual (by a hypervisor), governor, huge_pages (of an arena), load, python."""
    return {
        "cpu": _read("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "virtual": "hypervisor" in _read("/proc/cpuinfo", "flags").split(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or "none",
        "huge_pages": Arena(2 << 20).populate() > 0,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def machine_line(m: dict[str, Any]) -> str:
    return (f"{m['cpu']}, {m['cpus']} CPUs{' of a virtual machine' if m['virtual'] else ''}, {m['memory_gib']} GiB, Linux {m['kernel']}, "
            f"governor {m['governor']}, load {m['load']}, Python {m['python']}")
