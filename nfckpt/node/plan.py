"""What is armed in this process, by its environment. Nothing of it in production: then no point costs more than a branch.

    NFCKPT_FAULTS=captured=kill@1000                nfckpt run nat.toml     # at the 1000th capture of either node
    NFCKPT_FAULTS=a/shipped=delay:20@3,b/acked=stop nfckpt run nat.toml     # of one node each
    NFCKPT_FAULT_BOARD=DIR                          nfckpt run nat.toml     # DIR/a and DIR/b: armed from outside, while it runs

A plan holds for every life of the node, without a board; `nfckpt chaos --list-faults` names the points.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from nfckpt.errors import ConfigError
from nfckpt.native.fault import FaultBoard

__all__ = ["BOARD", "PLAN", "join"]

PLAN, BOARD = "NFCKPT_FAULTS", "NFCKPT_FAULT_BOARD"
_STEP = re.compile(r"(?:(?P<node>[^/=]+)/)?(?P<point>\w+)=(?P<action>[a-z]+)(?::(?P<ms>\d+))?(?:@(?P<after>\d+))?")


def join(node: str, environment: Mapping[str, str]) -> FaultBoard | None:
    """Arm this process. None where the environment asks for nothing. Raises ConfigError for a plan that says nothing."""
    plan, folder = environment.get(PLAN, ""), environment.get(BOARD, "")
    if not plan and not folder:
        return None
    board = FaultBoard(os.path.join(folder, node) if folder else "")
    for step in filter(None, plan.split(",")):
        m = _STEP.fullmatch(step)
        if m is None:
            raise ConfigError(f"{PLAN}: {step!r}", "write node/point=action:ms@hit, e.g. a/captured=kill@100; node, ms, hit may be left out")
        if m["node"] in (None, node):
            board.arm(m["point"], m["action"], int(m["after"] or 1), int(m["ms"] or 50))
    board.join()
    return board
