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
3. Every frame of a burst gets a verdict before you return: `burst.send` or `burst.drop`; or `ctx.park` takes it. Bytes and
   columns of the burst are out of reach after that. To change a frame use `nfckpt.native.rewrite.rewrite` or `burst.set_frame`.
4. You never write to a port, open a socket or start a thread that touches state. Another thread hands work over by
   `ctx.call_soon(fn)`; fn runs between two bursts, where state may be written.

Three forms: `NetworkFunction` (Python, a burst at a time), `nfckpt.native.function.NativeFunction` (the same contract in
Cython, without the GIL), `PollingFunction` (owns its loop, as with DPDK). Everything runs on one thread, the node's
packet thread. An exception out of any method stops the node, and the standby takes over: fail-stop. If it meets the same
frame in its replay and raises again, the frame is undone, quarantined (a capture, the traceback beside it) and dropped from
then on, and a fresh app goes on; so is one over which Python code loops for `burst_ms_max`. A crash of native code takes
both nodes along: catch what you can expect of a wire.

`nfckpt check module:Class` runs your app over traffic, kills it at every stage, and names what it keeps outside the arena.
`docs/write-your-own-nf.md` goes from an empty folder to an app that survives kill -9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from nfckpt.native.burst import Burst
    from nfckpt.state.state import State

__all__ = ["Context", "NetworkFunction", "PollingAgent", "PollingFunction"]


class Context(Protocol):
    """What a function may ask of the node while one of its methods runs. Not to be kept past the call, but for `call_soon`."""

    @property
    def now_ns(self) -> int:
        """The pair's clock in ns: never backwards, also not over a takeover. Not wall time: it starts near 0 with the pair.

        Constant during one call; in a polling function, between two polls.
        """
        ...

    def random_u64(self) -> int:
        """64 random bits, 0 <= r < 2**64."""
        ...

    def send(self, port: int, frame: bytes) -> bool:
        """Emit a frame of your own out of port index `port`, behind the gate like any other output.

        False: the gate is full, the frame was refused and counted. Raises StateError for a port that does not exist and
        for a frame of 0 or more than 9216 bytes.
        """
        ...

    def park(self, burst: Burst, i: int) -> int:
        """Keep frame `i` of `burst` for later: its bytes move into the arena, at most 2048 of them, and it counts as consumed.

        Returns a handle, good over takeovers: keep it in the state. -1: parking is full (`park_frames_max`) or the frame
        too long (counted); it still waits for a verdict. Raises IndexError for a frame that has left.
        """
        ...

    def unpark(self, handle: int) -> tuple[int, bytes]:
        """(input port index, bytes) of a parked frame, and free its place. Send it with `send`. Raises KeyError."""
        ...

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the packet thread between two bursts. The one method that any thread may call, at any time."""
        ...


class NetworkFunction:
    """Base of functions written a burst at a time. Override `ports`, `declare`, `on_burst`; the rest if you need it."""

    ports: tuple[str, ...] = ()
    """Names in the order of port indices, e.g. ("lan", "wan"): what `burst.port` and `out_port` count."""

    tick_ms: int = 0
    """Call `on_tick` at least this often, in ms of the pair's clock, when above 0; also while no frame comes. It waits as input does:
    for room at the gate for `burst_frames_max` frames four times, and for the end of a planned switch."""

    declares_ahead: bool = False
    """True: `declare` only declares (and fills fresh state); nothing it keeps on self depends on what the state holds. Then a standby
    runs it beforehand, over state that changes on, and a takeover does not wait for it. False: it runs at the takeover."""

    def declare(self, state: State) -> None:
        """Declare all state, in the same order on both nodes; keep the structures it returns on self.

        Runs at every start and again at a takeover, then over an arena that has content: what you write here must be
        written to fresh state only (`Values.generation == 0`, a count that is 0).
        """

    def on_burst(self, burst: Burst, ctx: Context) -> None:
        """Set a verdict for every frame of `burst` (1 to 256 of them, ports mixed, header columns filled).

        A frame left without one is dropped and counted as `undecided`; one the gate had no room for is dropped and
        counted as `refused_full`.
        """
        raise NotImplementedError(f"{type(self).__name__}.on_burst is not written")

    def on_tick(self, ctx: Context) -> None:
        """Time has passed. State written here is committed like any other; a tick whose epoch was not committed when the
        active died has not happened: the next one finds the state as it was before."""

    def announce(self, ctx: Context) -> Iterable[tuple[int, bytes]]:
        """Frames that tell the segment where we are, as (port index, frame): gratuitous ARP, unsolicited NA.

        Sent at start and after each takeover, before the first frame of the app, and again as `announce_repeats`, `announce_gap_ms`
        and `announce_refresh_s` say. Their source MAC is where switches will look for the pair. Must not write state.
        """
        return ()


class PollingAgent(Protocol):
    """The interface agent as a polling function sees it. The poll is where checkpoints are cut: poll often."""

    @property
    def running(self) -> bool:
        """False once the node wants to stop: leave the loop."""
        ...

    def rx_burst(self, burst: Burst, max_frames: int = 32) -> int:
        """Fill `burst` with up to `max_frames` (1 to 256) frames and their columns; returns how many.

        0 means no packets: nothing came, or the agent wants a cut. Do not block, do not sleep: call again; an idle
        agent waits by itself. Raises StateError when `burst` still owns frames: poll with another one then.
        """
        ...

    def tx_burst(self, burst: Burst) -> int:
        """Give the burst back: SEND goes into the gate, DROP is dropped. Returns how many were sent.

        Still yours afterwards: a frame without a verdict, and a SEND that the full gate refused (counted as
        `refused_full`). Call it again later, or `drop`. What you own postpones the next cut; after a bounded number of
        polls without letting go the node is unprotectable. Raises StateError for an output port or a length that no frame has.
        """
        ...

    def drop(self, burst: Burst) -> int:
        """Drop every frame of `burst` that is still yours. Returns how many."""
        ...

    def park(self, burst: Burst, i: int) -> int:
        """As `Context.park`; `Context.unpark` gives it back."""
        ...


class PollingFunction:
    """Base of functions that own their loop:

        def run(self, agent, ctx):
            burst = Burst()
            while agent.running:
                if agent.rx_burst(burst):
                    burst.send(slice(None), 1 - burst.port)
                    agent.tx_burst(burst)
                    agent.drop(burst)               # what a full gate refused

    It has no `on_tick`: look at `ctx.now_ns` between polls.
    """

    ports: tuple[str, ...] = ()
    declares_ahead: bool = False

    def declare(self, state: State) -> None:
        """As `NetworkFunction.declare`."""

    def run(self, agent: PollingAgent, ctx: Context) -> None:
        """Poll until `agent.running` is False. Called again from the top after a takeover, on the other node."""
        raise NotImplementedError(f"{type(self).__name__}.run is not written")

    def announce(self, ctx: Context) -> Iterable[tuple[int, bytes]]:
        """As `NetworkFunction.announce`."""
        return ()
