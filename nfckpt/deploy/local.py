"""Local runner: a pair on this machine without Ray, for tests, demos and programs that embed one.

    with LocalPair(config) as pair:
        pair.wait_protected()
        pair.kill_active()

The two packet processes are as real as under Ray: own processes, own ports, killed by SIGKILL. Only the witness is an
object of this process instead of an actor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from nfckpt.config import PairConfig, check
from nfckpt.deploy.keeper import Keeper
from nfckpt.deploy.pair import PairBase
from nfckpt.deploy.preempt import Preempt
from nfckpt.deploy.run_dir import RunDir
from nfckpt.failover.witness import Answer, Question, Witness, WitnessView
from nfckpt.secrets import new_key
from nfckpt.wire.keeper import NodeSpec

__all__ = ["LocalPair"]


class LocalPair(PairBase):
    """Both nodes of `config`, kept running until `close`. `pass_fds` are inherited by the packet processes.

    Raises ConfigError for a configuration that cannot hold.
    """

    def __init__(self, config: PairConfig, *, key: bytes | None = None, pass_fds: tuple[int, ...] = (),
                 on_event: Callable[[str, int, dict[str, Any]], None] | None = None, stderr: int | None = None) -> None:
        check(config)
        self.config = config
        self.witness = Witness()
        self._lock = threading.Lock()
        self._run_dir = RunDir()
        key = key or new_key()
        told = on_event or (lambda name, at_ns, fields: None)
        self._preempt = Preempt(config.preempt, config.preempt_delay_s, self.switch, told)

        def note(name: str, at_ns: int, fields: dict[str, Any]) -> None:
            self._preempt.note(name, at_ns, fields)
            told(name, at_ns, fields)

        self.keepers: dict[str, Keeper] = {
            name: Keeper(NodeSpec(config, name, key, self._run_dir.path), self._ask, note, pass_fds=pass_fds, stderr=stderr)
            for name in config.nodes
        }

    def _ask(self, question: Question) -> Answer:
        with self._lock:
            answer = self.witness.ask(question)
        if answer.verb == "suspect" and answer.said == "ok" and answer.holder:
            self.keepers[answer.holder].hear(answer)        # W7
        return answer

    def view(self) -> WitnessView:
        with self._lock:
            return self.witness.view()

    def force_witness(self) -> None:
        with self._lock:
            self.witness.force()

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
        self._preempt.close()
        for name in sorted(self.keepers, key=lambda n: n == self.active):      # the standby first: nobody takes over
            self.keepers[name].stop()
        self._run_dir.close()

    def __enter__(self) -> LocalPair:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
