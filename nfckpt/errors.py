"""Every error nfckpt raises on purpose: whose fault, what was seen, what to do.

    NfckptError
    ├── ConfigError      the author or operator wrote something that cannot hold
    ├── MachineError     the machine lacks a feature, a permission or a device
    ├── PeerError        the other node (or somebody posing as it) broke the protocol
    ├── PortError        a port vanished or refused
    ├── StateError       the arena or one of its structures was used outside its contract
    └── ProtectionError  an operation needs a state of protection that does not hold now

Operating errors are one of these and are handled; anything else is a programmer error and stops the node
(fail-stop: the standby takes over).
"""

from __future__ import annotations

__all__ = [
    "ConfigError", "MachineError", "NfckptError", "PeerError", "PortError", "ProtectionError", "StateError",
]


class NfckptError(Exception):
    """Base of all. `hint` is one line that says what to do; it is printed after the message."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(NfckptError):
    """A configuration that cannot hold: unknown key, wrong unit, impossible bound."""


class MachineError(NfckptError):
    """A kernel feature, a permission, a compiler or a device is missing."""


class PeerError(NfckptError):
    """What came from a peer was refused: another key, version or layout, a bad length or digest."""


class PortError(NfckptError):
    """A port could not be opened, or it vanished while in use."""


class StateError(NfckptError):
    """The arena or a structure in it was used outside its contract (declared twice, too large, wrong type)."""


class ProtectionError(NfckptError):
    """The operation needs a state that does not hold, e.g. a planned failover without a whole standby."""
