"""The arena's structures and `State`, which declares them."""

from __future__ import annotations

from nfckpt.native.typed_array import TypedArray
from nfckpt.state.counters import Counters
from nfckpt.state.flow_table import FlowTable
from nfckpt.state.port_pool import PortPool
from nfckpt.state.state import State
from nfckpt.state.timer_wheel import TimerWheel
from nfckpt.state.values import Values

__all__ = ["Counters", "FlowTable", "PortPool", "State", "TimerWheel", "TypedArray", "Values"]
