"""Local runner: a pair on this machine without Ray, for tests, demos and programs that embed one.

    with LocalPair(config) as pair:
        pair.wait_protected()
        pair.kill_active()

The two packet processes are as real as under Ray: own processes, own ports, killed by SIGKILL. Only the witness is an
object of this process instead of an actor.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from nfckpt.config import PairConfig, check
from nfckpt.deploy.keeper import Keeper
from nfckpt.deploy.run_dir import RunDir
from nfckpt.errors import ConfigError, ProtectionError
from nfckpt.failover.witness import Answer, Question, Witness
from nfckpt.secrets import new_key
from nfckpt.wire.keeper import NodeSpec

__all__ = ["LocalPair"]


class LocalPair:
    """Both nodes of `config`, kept running until `close`. `pass_fds` are inherited by the packet processes.

    Raises ConfigError for a configuration that cannot hold.
    """

    def __init__(self, config: PairConfig, *, key: bytes | None = None, pass_fds: tuple[int, ...] = (),
                 on_event: Callable[[str, int, dict[str, Any]], None] | None = None, stderr: int | None = None) -> None:
        check(config)
        self.config = config
        self.witness = Witness()
        self._lock = threading.Lock()
        self._term_min = 0              # a killed active's term is over, also before the witness heard of it
        self._run_dir = RunDir()
        key = key or new_key()
        self.keepers = {
            name: Keeper(NodeSpec(config, name, key, self._run_dir.path), self._ask, on_event, pass_fds=pass_fds, stderr=stderr)
            for name in config.nodes
        }

    def _ask(self, question: Question) -> Answer:
        with self._lock:
            return self.witness.ask(question)

    def start(self) -> LocalPair:
        """Start both nodes; the first of the configuration leads."""
        names = list(self.keepers)
        self.keepers[names[0]].start()
        deadline = time.monotonic() + 5
        while not self.witness.holder and not self.keepers[names[0]].gave_up and time.monotonic() < deadline:
            time.sleep(0.005)
        for name in names[1:]:
            self.keepers[name].start()
        return self

    def close(self) -> None:
        """Stop both nodes in order and remove every trace. Idempotent."""
        for name in sorted(self.keepers, key=lambda n: n == self.active):      # the standby first: nobody takes over
            self.keepers[name].stop()
        self._run_dir.close()

    def __enter__(self) -> LocalPair:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def status(self) -> dict[str, dict[str, Any]]:
        """node → its status."""
        return {name: keeper.status() for name, keeper in self.keepers.items()}

    @property
    def active(self) -> str:
        """Who holds the term, by the witness; "" before anybody does."""
        with self._lock:
            return self.witness.holder

    def wait_protected(self, timeout_s: float = 20.0, term: int = 0) -> str:
        """Block until a standby is recorded: in `term` or later, and after a kill in a later term than the killed one's.
        Returns the active's name.

        Raises ProtectionError after `timeout_s`, and ConfigError as soon as a node cannot start at all.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with self._lock:
                view = self.witness.view()
            if view.standby and view.holder and view.term >= max(term, self._term_min):
                return view.holder
            for name, keeper in self.keepers.items():
                if keeper.gave_up and keeper.last_exit:
                    raise ConfigError(f"node {name} cannot run: {keeper.last_exit[1]}")
            time.sleep(0.002)
        ends = [f"{n}: {k.last_exit[1]}" for n, k in self.keepers.items() if k.last_exit]
        raise ProtectionError(f"not protected within {timeout_s} s; active: {view.holder or 'none'}, standby: none",
                              "; ".join(["how nodes ended", *ends]) if ends else "their standard error may say more")

    def kill_active(self, signal_number: int = signal.SIGKILL) -> tuple[str, int]:
        """Signal the active's packet process. Returns (node, pid). Raises ProtectionError when nobody is active."""
        with self._lock:
            node, term = self.witness.holder, self.witness.term
        if not node:
            raise ProtectionError("nobody is active now", "wait_protected() first")
        if signal_number == signal.SIGKILL:
            self._term_min = term + 1
        return node, self.keepers[node].kill(signal_number)

    def failover(self) -> bool:
        """Planned switch to the standby. False when the pair is not protected."""
        node = self.active
        return bool(node and self.keepers[node].command("failover")["ok"])
