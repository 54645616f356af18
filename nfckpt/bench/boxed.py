"""Boxed: a measurement that needs network namespaces runs in a process of its own, in a private box, and says what it found as JSON.

    found = in_box("nfckpt.bench.rows.protect_veth", ["6.0", ""], scale)        # that module's main() calls box.enter_box()
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from typing import Any

from nfckpt.bench.figure import DifferenceError, Scale, UnavailableError

__all__ = ["in_box"]


def in_box(module: str, arguments: list[str], scale: Scale, text: str = "in its box") -> Any:
    """What `python -m module *arguments` prints. Raises UnavailableError where no box is to be had, DifferenceError when it fails."""
    from nfckpt.testbed import box
    if (reason := box.available()) is not None:
        raise UnavailableError(reason, "see `nfckpt doctor`")
    child = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, _ = child.communicate(timeout=1)
                break
            scale.tick(text)
    except BaseException:
        child.send_signal(signal.SIGKILL)       # the box goes with it
        child.wait()
        raise
    if child.returncode != 0:
        raise DifferenceError(f"the box ended with code {child.returncode}")
    return json.loads(out)
