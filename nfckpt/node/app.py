"""The app of a packet process: made, declared, and the context it sees.
"""

from __future__ import annotations

import importlib
import os
import random
import traceback
from collections import deque
from collections.abc import Callable

from nfckpt.clock import PairClock
from nfckpt.config import PairConfig
from nfckpt.errors import ConfigError, MachineError, NfckptError, StateError
from nfckpt.native.agent import Agent
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.function import NativeFunction
from nfckpt.native.parking import Parking
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.state.state import State

__all__ = ["App", "AppContext", "declare", "load_app", "where"]
App = NetworkFunction | PollingFunction | NativeFunction


def load_app(config: PairConfig) -> App:
    """The app's object. Raises ConfigError when "module:Class" or its arguments do not fit."""
    module, _, name = config.app.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        hint = "start where it lies, or put its folder on PYTHONPATH" if module.split(".")[0] == e.name else where(e)
        raise ConfigError(f"app = {config.app!r}: {e}", hint) from None
    except Exception as e:
        raise ConfigError(f"app = {config.app!r}: {type(e).__name__}: {e}", where(e)) from None
    try:
        app = cls(**config.app_args)
    except NfckptError as e:
        raise ConfigError(f"[app] of {config.app}: {e.message}", e.hint) from None
    except Exception as e:
        raise ConfigError(f"[app] of {config.app}: {type(e).__name__}: {e}", where(e)) from None
    if not isinstance(app, (NetworkFunction, PollingFunction, NativeFunction)):
        raise ConfigError(f"{config.app} is no network function", "derive it from nfckpt.NetworkFunction, PollingFunction or NativeFunction")
    widths = {len(n.ports) for n in config.nodes.values()}
    if app.ports and widths != {len(app.ports)}:
        raise ConfigError(f"{config.app} has ports {list(app.ports)}, the nodes give {widths.pop()}")
    return app


def declare(config: PairConfig, app: App, arena: Arena, seed: bytes) -> tuple[State, Parking]:
    """All regions of the pair in `arena`, sealed. Raises ConfigError when the app's `declare` fails or declares more than this
    machine could ever hold, MachineError when it insists on a tracker that is not to be had here."""
    state = State(arena, seed=seed)
    try:
        app.declare(state)
        parking = Parking(arena, max(1, config.bounds.park_frames_max))
    except StateError as e:
        raise ConfigError(f"state of {config.app}: {e.message}", e.hint) from None
    except MachineError:
        raise
    except Exception as e:
        raise ConfigError(f"{config.app}.declare raised {type(e).__name__}: {e}", where(e)) from None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if arena.used > memory:
        raise ConfigError(f"state of {config.app}: {arena.used} bytes on a machine that has {memory}", "declare less")
    state.seal()
    return state, parking


def where(e: Exception) -> str:
    """"file.py:12", the innermost line of Python that raised `e`."""
    lines = traceback.extract_tb(e.__traceback__)
    return f"{os.path.basename(lines[-1].filename)}:{lines[-1].lineno}" if len(lines) > 1 else ""


class AppContext:
    """nfckpt.nf.Context for one active life."""

    def __init__(self, agent: Agent, clock: PairClock) -> None:
        self._agent, self._clock = agent, clock
        self.soon: deque[Callable[[], None]] = deque()
        self._random = random.Random(os.urandom(16))
        self.now_ns = 0

    def tick(self, mono_ns: int) -> None:
        self.now_ns = self._clock.now(mono_ns)

    def random_u64(self) -> int:
        return self._random.getrandbits(64)

    def send(self, port: int, frame: bytes) -> bool:
        return bool(self._agent.emit(port, frame))

    def call_soon(self, fn: Callable[[], None]) -> None:
        self.soon.append(fn)

    def park(self, burst: Burst, index: int) -> int:
        return int(self._agent.park(burst, index))

    def unpark(self, handle: int) -> tuple[int, bytes]:
        port, frame = self._agent.parking.take(handle)
        return port, frame
