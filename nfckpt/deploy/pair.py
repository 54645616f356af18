"""What every kind of pair can do, over two keepers and a witness, wherever they live."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from typing import Any, Protocol

from nfckpt.errors import ConfigError, ProtectionError
from nfckpt.failover.witness import WitnessView

__all__ = ["KeeperLike", "PairBase"]


SWITCH_S_MAX = 5.0
RECORDED_S_MAX = 1.0            # the active hears that its standby is recorded a moment after the witness said so


class KeeperLike(Protocol):
    """A Keeper, or a handle on one elsewhere."""

    @property
    def gave_up(self) -> bool: ...
    @property
    def last_exit(self) -> tuple[int, str] | None: ...
    def status(self, timeout_s: float = 1.0) -> dict[str, Any]: ...
    def command(self, verb: str, timeout_s: float = 1.0) -> dict[str, Any]: ...
    def kill(self, signal_number: int) -> int: ...
    def maintain(self, on: bool) -> None: ...


class PairBase:
    """Subclasses give `keepers`, `view()` and LOOK_S, how often a waiting caller looks."""

    LOOK_S = 0.002
    keepers: Mapping[str, KeeperLike]
    _term_min = 0                       # a killed active's term is over, also before the witness heard of it

    def view(self) -> WitnessView:
        """Term, holder and recorded standby, by the witness."""
        raise NotImplementedError

    def force_witness(self) -> None:
        """An operator's word that the nodes which a restarted witness still waits for are dead: it grants terms from now on."""
        raise NotImplementedError

    def status(self) -> dict[str, dict[str, Any]]:
        """node → its status."""
        return {name: keeper.status() for name, keeper in self.keepers.items()}

    @property
    def active(self) -> str:
        """Who leads, by the witness; "" before anybody does."""
        return self.view().leads

    def wait_protected(self, timeout_s: float = 20.0, term: int = 0) -> str:
        """Block until a standby is recorded: in `term` or later, and after a kill in a later term than the killed one's.
        Returns the active's name.

        Raises ProtectionError after `timeout_s`, and ConfigError as soon as a node cannot start at all.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            view = self.view()
            if view.standby and view.holder and view.term >= max(term, self._term_min):
                return view.holder
            for name, keeper in self.keepers.items():
                if keeper.gave_up and keeper.last_exit:
                    raise ConfigError(f"node {name} cannot run: {keeper.last_exit[1]}")
            time.sleep(self.LOOK_S)
        ends = [f"{n}: {k.last_exit[1]}" for n, k in self.keepers.items() if k.last_exit]
        raise ProtectionError(f"not protected within {timeout_s} s; active: {view.holder or 'none'}, standby: none",
                              "; ".join(["how nodes ended", *ends]) if ends else "their standard error may say more")

    def kill_active(self, signal_number: int = signal.SIGKILL) -> tuple[str, int]:
        """Signal the active's packet process. Returns (node, pid). Raises ProtectionError when nobody is active."""
        view = self.view()
        node, term = view.leads, view.term
        if not node:
            raise ProtectionError("nobody is active now", "wait_protected() first")
        if signal_number == signal.SIGKILL:
            self._term_min = term + 1
        return node, self.keepers[node].kill(signal_number)

    def failover(self) -> bool:
        """Planned switch to the standby. False when the pair is not protected."""
        deadline, node = time.monotonic() + RECORDED_S_MAX, self.active
        while node and not self.keepers[node].command("failover")["ok"]:
            view = self.view()
            if view.leads != node or not view.standby or time.monotonic() > deadline:
                return False
            time.sleep(self.LOOK_S)
        return bool(node)

    def switch(self) -> tuple[str, str]:
        """`failover`, and wait for it. Returns (who led, who leads). Raises ProtectionError."""
        before = self.active
        if not before or not self.failover():
            raise ProtectionError("no failover now: the pair is not protected", "`nfckpt status` shows why; wait for its standby")
        deadline = time.monotonic() + SWITCH_S_MAX
        while self.active in ("", before) and time.monotonic() < deadline:
            time.sleep(self.LOOK_S)
        if (after := self.active) in ("", before):
            raise ProtectionError(f"{before} gives up its role, but nobody took it within {SWITCH_S_MAX} s", "see `nfckpt status`")
        return before, after

    def maintenance(self, node: str, on: bool = True) -> str:
        """On: hand the role of `node` over if it leads, end its process in order, and start no other until off; the pair goes on alone.

        Returns who leads. Raises ProtectionError for a node that this pair has not, and for one that leads while nobody could take over.
        """
        if node not in self.keepers:
            raise ProtectionError(f"this pair has no node {node!r}", f"its nodes: {', '.join(self.keepers)}")
        if on and self.active == node:
            self.switch()
        self.keepers[node].maintain(on)
        return self.active
