"""What an author writes: a network function, in one of three forms. Read this file and nothing else.

A whole app, complete:

    class Counter(NetworkFunction):
        ports = ("left", "right")                       # indices 0 and 1

        def declare(self, state):                       # once, before the first frame, on both nodes alike
            self.seen = state.counters("seen", ["left", "right"])   # lives in the arena: survives the machine

        def on_burst(self, burst, ctx):                 # up to 256 frames, as numpy columns
            self.seen.add(burst.port, 1)
            burst.send(slice(None), 1 - burst.port)     # a verdict for every frame

What you get for it: over the crash of the machine no frame lost, none sent twice, and no frame on the wire that your
state cannot explain. What you owe for it:

1. All state that must outlive the machine lives in structures from `declare(state)`. Anything else on `self` is a cache
   that a takeover loses: after one, the app is a fresh object whose `declare` has run over the arena as it was committed.
2. Time and chance come from `ctx` only (`ctx.now_ns`, `ctx.random_u64()`), so that a simulator can replay you.
   You may branch on both as you like: output leaves only after the state behind it is safe.
3. Every frame of a burst gets a verdict before you return: `send`, `drop` or `park`. Bytes and columns of the burst are
   out of reach after that. To change a frame use `nfckpt.native.rewrite.rewrite` or `burst.set_frame`.
4. You never write to a port, open a socket or start a thread that touches state. Another thread hands work over by
   `ctx.call_soon(fn)`; fn runs between two bursts, where state may be written.

Three forms: `NetworkFunction` (Python, a burst at a time), `nfckpt.native.function.NativeFunction` (the same contract in
Cython, without the GIL), `PollingFunction` (owns its loop, as with DPDK). Everything runs on one thread, the node's
packet thread. An exception out of any method stops the node, and the standby takes over: fail-stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nfckpt.native.burst import Burst
    from nfckpt.state.state import State

__all__ = ["Context", "NetworkFunction", "PollingAgent", "PollingFunction"]


class Context(Protocol):
    """What a function may ask of the node while one of its methods runs. Not to be kept past the call."""

    @property
    def now_ns(self) -> int:
        """The pair's clock in ns: never backwards, also not over a takeover. Constant during one call. Not wall time."""
        ...

    def random_u64(self) -> int:
        """64 random bits, 0 <= r < 2**64."""
        ...

    def send(self, port: int, frame: bytes) -> bool:
        """Emit a frame of your own out of port index `port`, behind the gate like any other output.

        False: the gate is full, the frame was refused and counted.
        """
        ...

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the packet thread between two bursts. The one method that any thread may call, at any time."""
        ...


class NetworkFunction:
    """Base of functions written a burst at a time. Override `ports`, `declare`, `on_burst`; the rest if you need it."""

    ports: tuple[str, ...] = ()
    """Names in the order of port indices, e.g. ("lan", "wan"): what `burst.port` and `out_port` count."""

    tick_ms: int = 0
    """Call `on_tick` at least this often, in ms of the pair's clock, when above 0; also while no frame comes."""

    def declare(self, state: State) -> None:
        """Declare all state, in the same order on both nodes; keep the structures it returns on self."""

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        """Set a verdict for every frame of `burst` (1 to 256 of them, ports mixed, header columns filled).

        A frame left without one is dropped and counted as `no_verdict`.
        """
        raise NotImplementedError

    def on_tick(self, ctx: Context) -> None:
        """Time has passed. State written here is committed like any other; a tick whose epoch was not is run again."""

    def announce(self, ctx: Context) -> Iterable[tuple[int, bytes]]:
        """Frames that tell the segment where we are, as (port index, frame): gratuitous ARP, unsolicited NA.

        Sent at start and after each takeover, before the first frame of the app. Must not write state.
        """
        return ()


class PollingAgent(Protocol):
    """The interface agent as a polling function sees it. The poll is where checkpoints are cut: poll often."""

    @property
    def running(self) -> bool:
        """False once the node wants to stop: leave the loop."""
        ...

    def rx_burst(self, burst: Burst, max: int = 32) -> int:
        """Fill `burst` with up to `max` frames and their columns; returns how many.

        0 means no packets: nothing came, or the agent wants a cut. Do not block, do not sleep: call again.
        """
        ...

    def tx_burst(self, burst: Burst) -> int:
        """Give the burst back: SEND leaves through the gate, DROP is dropped, PARK parked. Returns frames taken for sending.

        A frame still OWNED stays yours and postpones the next cut; after a bounded number of polls without
        letting go the node is unprotectable.
        """
        ...


class PollingFunction:
    """Base of functions that own their loop:

        def run(self, agent, ctx):
            burst = Burst()
            while agent.running:
                if agent.rx_burst(burst):
                    burst.send(slice(None), 1 - burst.port)
                    agent.tx_burst(burst)
    """

    ports: tuple[str, ...] = ()

    def declare(self, state: State) -> None:
        """As `NetworkFunction.declare`."""

    def run(self, agent: PollingAgent, ctx: Context) -> None:
        """Poll until `agent.running` is False. Called again from the top after a takeover, on the other node."""
        raise NotImplementedError

    def announce(self, ctx: Context) -> Iterable[tuple[int, bytes]]:
        """As `NetworkFunction.announce`."""
        return ()
