"""Parts of an active, made before it is one: what may run ahead of a takeover, and what must not."""

from __future__ import annotations

import os

import pytest

from nfckpt.clock import PairClock
from nfckpt.config import Bounds, NodeConfig, PairConfig
from nfckpt.errors import ConfigError
from nfckpt.native.arena import Arena
from nfckpt.native.life import LifeLock
from nfckpt.native.sync import PageSync
from nfckpt.native.tap import Tap
from nfckpt.nf import NetworkFunction
from nfckpt.node.app import declare, load_app
from nfckpt.node.parts import Parts
from nfckpt.ports.memory import MemoryHub
from nfckpt.replica.effects import Send
from nfckpt.replica.standby import Standby
from nfckpt.secrets import PairSecrets
from nfckpt.state.state import State

BOUNDS = Bounds(arena_bytes=1 << 20)
SECRETS = PairSecrets(b"k" * 32)


class Late(NetworkFunction):
    """Looks at what the state holds while it declares."""

    ports = ("left",)

    def declare(self, state: State) -> None:
        self.counts = state.counters("counts", ["seen"])
        self.found = self.counts.as_dict()["seen"]


class Ahead(Late):
    declares_ahead = True


class Writes(Ahead):
    def declare(self, state: State) -> None:
        super().declare(state)
        self.counts.add("seen", 1)


class Table(NetworkFunction):
    """Has what hashes, and so takes a secret."""

    ports = ("left",)

    def declare(self, state: State) -> None:
        state.flow_table("flows", capacity=64, key_bytes=8, value=8)


def parts(app: str, port: object) -> tuple[Parts, Arena, Late]:
    """Those of a standby whose active has declared its state; the arena they share, and an app that writes it as records would."""
    config = PairConfig(name="p", app=f"tests.test_parts:{app}", bounds=BOUNDS, nodes={n: NodeConfig(ports=["mem:x"]) for n in "ab"})
    arena = Arena(BOUNDS.arena_bytes)
    writer = Arena(fd=os.dup(arena.fd))
    made = Parts(config, "a", "b", SECRETS, [port], b"", arena, PairClock())         # type: ignore[list-item]
    active = load_app(config)
    assert isinstance(active, Late)
    state = State(writer, seed=SECRETS.table)
    Late.declare(active, state)
    return made, arena, active


@pytest.mark.parametrize("app, ahead", [("Late", False), ("Ahead", True)])
def test_declare_runs_ahead_only_where_it_may(app: str, ahead: bool) -> None:
    with MemoryHub(2, 64) as hub, hub.open(0) as port:
        made, _, active = parts(app, port)
        made.declare_ahead()
        assert made.declared == ahead
        active.counts.add("seen", 5)                    # a record comes later
        fd = LifeLock.create()
        life = LifeLock(fd)
        life.hold()
        made.lead(3, 41, life)
        assert isinstance(made.app, Late)
        assert made.app.found == (0 if ahead else 5) and made.app.counts.as_dict()["seen"] == 5      # the structures see it either way
        assert (made.core.term, made.engine.epoch, made.agent.epoch, made.engine.committed) == (3, 41, 41, 40)
        life.release()
        os.close(fd)


def test_a_declare_that_writes_may_not_run_ahead() -> None:
    """What a standby holds is what was committed: it is undone, and said."""
    with MemoryHub(2, 64) as hub, hub.open(0) as port:
        made, arena, _ = parts("Writes", port)
        before = arena.view().tobytes()
        with pytest.raises(ConfigError, match="declares_ahead, and its declare wrote 1 lines"):
            made.declare_ahead()
        assert arena.view().tobytes() == before


def test_the_same_declare_at_the_start_of_a_pair() -> None:
    """Fresh state may be filled, whatever declares_ahead says."""
    config = PairConfig(name="p", app="tests.test_parts:Writes", bounds=BOUNDS, nodes={n: NodeConfig(ports=["mem:x"]) for n in "ab"})
    app = load_app(config)
    declare(config, app, Arena(BOUNDS.arena_bytes), SECRETS.table)
    assert isinstance(app, Writes) and app.counts.as_dict() == {"seen": 1}


# ── identity never travels (I10) ─────────────────────────────────────────────────────────────────


def of_node(node: str, port: object, address: str) -> Parts:
    """Those of an active of a pair with a table, which has declared."""
    nodes = {n: NodeConfig(ports=["mem:x"], address=address if n == node else "") for n in "ab"}
    config = PairConfig(name="p", app="tests.test_parts:Table", bounds=BOUNDS, nodes=nodes)
    made = Parts(config, node, "b" if node == "a" else "a", SECRETS, [port], b"", Arena(BOUNDS.arena_bytes), PairClock())   # type: ignore[list-item]
    made.declare()
    return made


def test_i10_the_state_does_not_say_whose_it_is() -> None:
    with MemoryHub(2, 64) as hub, hub.open(0) as one, hub.open(1) as other:
        a, b = of_node("a", one, "127.0.0.1:7001"), of_node("b", other, "127.0.0.1:7002")
        assert a.arena.view().tobytes() == b.arena.view().tobytes()


def test_i10_no_key_travels() -> None:
    """Neither the pair's key nor a secret made of it is in the hello or in the whole state: `check` tells nothing of the key, and a
    table has a secret of its own, made one way."""
    key = bytes(range(7, 39))
    secrets = PairSecrets(key)
    with MemoryHub(2, 64) as hub, hub.open(0) as port:
        config = PairConfig(name="p", app="tests.test_parts:Table", bounds=BOUNDS, nodes={n: NodeConfig(ports=["mem:x"]) for n in "ab"})
        made = Parts(config, "a", "b", secrets, [port], b"", Arena(BOUNDS.arena_bytes), PairClock())
        made.declare()
        sync = PageSync(made.arena, made.arena.used // 4096 + 1)
        sync.begin()
        record = bytes(made.writer.build(made.arena, made.gate, made.agent.names, 1, 1, 1, 0, 0, 0, sync))
        standby = Standby(pair="p", node="b", layout=b"", bounds=BOUNDS, secret=secrets.tap, arena=Arena(BOUNDS.arena_bytes),
                          tap=Tap([port], secrets.tap, 1), clock=PairClock(), now=1, key_check=secrets.check)
        (hello,) = standby.hello()
        assert isinstance(hello, Send) and secrets.check in hello.payload
        assert sync.done and len(record) > 4096
        for secret in (key, secrets.tap, secrets.table, secrets.channel):
            for at in range(0, 32, 8):              # by parts: a table sets the lowest bit of each word
                assert secret[at + 1:at + 8] not in hello.payload and secret[at + 1:at + 8] not in record
