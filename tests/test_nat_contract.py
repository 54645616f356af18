"""The example that an author reads first runs as it stands."""

from __future__ import annotations

import textwrap
from typing import Any

import nfckpt.nf
from nfckpt.native.arena import Arena
from nfckpt.native.burst import Burst
from nfckpt.native.function import NativeFunction
from nfckpt.nf import NetworkFunction, PollingFunction
from nfckpt.state.state import State
from tests.nat_rig import Dice, FakeContext


def example(text: str, name: str, **names: Any) -> Any:
    block = [line for line in text.splitlines() if line.startswith("    ") or not line]
    start = next(i for i, line in enumerate(block) if f"class {name}" in line or f"def {name}" in line)
    end = next((i for i in range(start + 1, len(block)) if block[i] and not block[i].startswith("     ")), len(block))
    scope: dict[str, Any] = dict(names)
    exec(textwrap.dedent("\n".join(block[start:end])), scope)
    return scope[name]


def test_the_whole_app_in_the_docstring() -> None:
    app = example(nfckpt.nf.__doc__ or "", "Counter", NetworkFunction=NetworkFunction)()
    state = State(Arena(1 << 20), seed=b"s" * 32)
    app.declare(state)
    burst = Burst()
    for port in (0, 1, 1):
        burst.push(b"frame", port)
    app.on_burst(burst, FakeContext(1))
    assert state.seen.as_dict() == {"left": 1, "right": 2}
    assert burst.verdict.tolist() == [1, 1, 1] and burst.out_port.tolist() == [1, 0, 0]
    assert list(app.announce(FakeContext(1))) == []


def test_the_polling_loop_in_the_docstring() -> None:
    class Agent:
        polls, sent = 0, 0

        @property
        def running(self) -> bool:
            return self.polls < 4

        def rx_burst(self, burst: Burst, max_frames: int = 32) -> int:
            self.polls += 1
            burst.reset()
            for _ in range(self.polls % 2 * 3):
                burst.push(b"frame", 1)
            return len(burst)

        def tx_burst(self, burst: Burst) -> int:
            assert burst.out_port.tolist() == [0, 0, 0]
            self.sent += len(burst)
            return len(burst)

        def drop(self, burst: Burst) -> int:
            return 0

    run = example(PollingFunction.__doc__ or "", "run", Burst=Burst)
    agent = Agent()
    run(PollingFunction(), agent, FakeContext(1))
    assert agent.sent == 6


def test_the_base_classes() -> None:
    f = NativeFunction()
    f.seed(-1)
    f.process(Burst(), 0)
    assert f.ports == () and f.tick_ms == 0 and f.announce(None) == ()
    assert Dice(1)() != Dice(2)()
