"""Transport: whole messages between two packet processes, and nothing else.

Who calls       The packet loop of either node, from its one thread, on every poll. No call blocks, takes a lock or
                starts a thread; nothing is called back. So one loop serves ports, timers and peer alike.

Sending         `send(kind, payload)` takes a message whole or answers False: no room *now*. Nothing was taken then;
                call again after `flush()` or later. The payload is yours again when send returns. Accepted messages arrive in
                order, each once, or the channel ends: there is no third outcome, and no retransmission above this
                layer. `flush()` pushes what is buffered; call it at the end of each turn of the loop (a TCP channel gathers small
                messages into one record until then). Accepted is not received: only the peer's own ACK says that.

Receiving       `recv()` hands out the next whole message, verified, as a writable view of memory that only this process can
                reach and that is the caller's for good: the standby applies an epoch by swapping words in place. None means
                nothing now, or the channel has ended: look at `closed`.

Sleeping        A loop that found nothing to do may block:

                    if t.before_sleep():                # False: there is something after all
                        select.poll on t.fileno(), for at most …
                        t.after_sleep()
                    … t.flush(), t.recv() until None …

                Between the two calls the peer rings a doorbell; outside them it does not, and a spinning reader costs
                it nothing. While `backlog` is not 0, poll a TCP channel for writing too (shared memory rings for room as well).

Ending          `closed` is None while the channel is open *or something is left to receive*; then it is the reason, for
                good: the peer closed, died, or broke the protocol. An operating error is a reason, not an exception: the loop
                goes on. After that send answers False and recv None. `close()` flushes once without waiting, says
                goodbye, and drops the rest. Nothing survives a restart: a new process makes a new channel, with new keys.

Bounds          message_bytes_max          one message; longer ones raise ConfigError here and end the channel there.
                                           Checked before anything is allocated. Both ends must have the same.
                send_backlog_bytes_max     accepted but not yet handed to the kernel or ring. One message of any legal
                                           size is accepted when nothing waits, whatever this bound.
Trust           A peer is a stranger (I14): its lengths, positions and bytes are bounded, copied, then checked, then used.

`nfckpt.sim.conformance.check_transport` holds every implementation to this page.
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

MESSAGE_BYTES_MAX: Final = 64 << 20
SEND_BACKLOG_BYTES_MAX: Final = 8 << 20
HANDSHAKE_MS_MAX: Final = 1000
KIND_MAX: Final = 255
CLOSED: Final = "the peer closed"
"""What `closed` begins with after the peer's own `close()`, on every transport."""

Payload = bytes | bytearray | memoryview


@runtime_checkable
class Transport(Protocol):
    """The contract above. Implementations: shm.ShmTransport, native.tcp_channel.TcpChannel, memory.MemoryTransport."""

    @property
    def closed(self) -> str | None:
        """None, or why the channel ended (only after the last whole message was received)."""

    @property
    def backlog(self) -> int:
        """Bytes accepted and not yet handed on, framing included. 0 when nothing waits."""

    @property
    def bytes_sent(self) -> int:
        """Payload bytes accepted since the channel opened."""

    @property
    def bytes_received(self) -> int:
        """Payload bytes of messages verified since the channel opened."""

    def send(self, kind: int, payload: Payload) -> bool:
        """Accept one message whole, or False. `kind` 0..255 (kinds.py).

        Raises ValueError for another kind, ConfigError for a payload above message_bytes_max.
        """

    def recv(self) -> tuple[int, memoryview] | None:
        """(kind, writable private view, format "B") of the next message, or None."""

    def flush(self) -> bool:
        """Hand on what is buffered, as far as there is room. True when nothing waits."""

    def fileno(self) -> int:
        """A descriptor that polls readable when a message may be there; -1 where there is none (memory)."""

    def before_sleep(self) -> bool:
        """Announce that the caller is about to block on `fileno()`. False: do not, there is something to do."""

    def after_sleep(self) -> None:
        """The caller is awake again."""

    def close(self) -> None:
        """End the channel from this side. Idempotent."""
