"""Preflight: all that can be known about a configuration before a process starts. Nothing is opened, nothing is sent.

Picture     config ──► the app's class and arguments ──► its state, declared in an arena of arena_bytes ──► {"arena_used_bytes", …}
                  └──► every port a form that exists
"""

from __future__ import annotations

import os
import sys
from typing import Any

from nfckpt.config import PairConfig, check
from nfckpt.errors import ConfigError
from nfckpt.native.arena import Arena
from nfckpt.node import declare, load_app
from nfckpt.ports import parse_port

__all__ = ["preflight"]


def preflight(config: PairConfig) -> dict[str, Any]:
    """{"pair", "app", "profile", "ports", "arena_used_bytes", "arena_bytes", "structures"}.

    The app is imported from the working directory too, as its nodes will. Raises ConfigError.
    """
    check(config)
    for name, node in config.nodes.items():
        for form in node.ports:
            if parse_port(form).get("scheme") not in ("afpacket", "mem", "pcap"):
                raise ConfigError(f"nodes.{name}.ports: {form!r} is no port",
                                  "afpacket:IFNAME@NETNS, mem:ENDPOINT@FD,… or pcap:IN,OUT")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    app = load_app(config)
    arena = Arena(config.bounds.arena_bytes)
    state, _ = declare(config, app, arena, bytes(32))
    return {"pair": config.name, "app": config.app, "profile": config.profile, "ports": list(app.ports),
            "arena_used_bytes": int(arena.used), "arena_bytes": config.bounds.arena_bytes, "structures": state.describe()}
