"""PortPool as Python sees it.

    ports = state.port_pool("nat", lo=1024, hi=65535, addresses=2, protocols=2)
    pool = address * 2 + protocol
    got = ports.allocate(pool, preferred=client_port)       # int32 (n,), -1 where none is free
    ports.release(pool, got)
"""

from __future__ import annotations

from nfckpt.native import port_pool as native

__all__ = ["PortPool"]


class PortPool(native.PortPool):
    """Free external ports; made by `State.port_pool`. Pools and ports are scalars or arrays, broadcast together."""

    allocate = native.PortPool.allocate_many
    release = native.PortPool.release_many
    is_free = native.PortPool.is_free_many
    available = native.PortPool.available_in
