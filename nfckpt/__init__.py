"""nfckpt: network functions that survive the death of the machine they run on. Every poll is a checkpoint.

    from nfckpt import Bench, Burst, Context, NetworkFunction, State

What an author writes: `nfckpt.nf`. How to write one: docs/write-your-own-nf.md. The command: `nfckpt --help`.

The names below are loaded when they are first used (PEP 562), so `import nfckpt` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfckpt import errors as errors
    from nfckpt.config import Bounds as Bounds
    from nfckpt.config import NodeConfig as NodeConfig
    from nfckpt.config import PairConfig as PairConfig
    from nfckpt.config import load as load
    from nfckpt.deploy.local import LocalPair as LocalPair
    from nfckpt.deploy.ray_pair import RayPair as RayPair
    from nfckpt.native.burst import Burst as Burst
    from nfckpt.native.function import NativeFunction as NativeFunction
    from nfckpt.nf import Context as Context
    from nfckpt.nf import NetworkFunction as NetworkFunction
    from nfckpt.nf import PollingAgent as PollingAgent
    from nfckpt.nf import PollingFunction as PollingFunction
    from nfckpt.ports import AfPacketPort as AfPacketPort
    from nfckpt.ports import MemoryHub as MemoryHub
    from nfckpt.ports import open_port as open_port
    from nfckpt.state.state import State as State
    from nfckpt.testbed.bench import Bench as Bench

    __version__: str

_HOME = {
    "AfPacketPort": "nfckpt.ports",
    "Bench": "nfckpt.testbed.bench",
    "Bounds": "nfckpt.config",
    "Burst": "nfckpt.native.burst",
    "Context": "nfckpt.nf",
    "LocalPair": "nfckpt.deploy.local",
    "MemoryHub": "nfckpt.ports",
    "NativeFunction": "nfckpt.native.function",
    "NetworkFunction": "nfckpt.nf",
    "NodeConfig": "nfckpt.config",
    "PairConfig": "nfckpt.config",
    "PollingAgent": "nfckpt.nf",
    "PollingFunction": "nfckpt.nf",
    "RayPair": "nfckpt.deploy.ray_pair",
    "State": "nfckpt.state.state",
    "load": "nfckpt.config",
    "open_port": "nfckpt.ports",
}

__all__ = [*(set(_HOME) - {"RayPair"}), "__version__", "errors"]        # `import *` must not import Ray


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name == "errors":
        value = import_module("nfckpt.errors")
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'nfckpt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version("nfckpt")
    except PackageNotFoundError:                # a checkout on PYTHONPATH
        return "0+checkout"
