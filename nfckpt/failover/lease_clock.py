"""The arithmetic of a lease: what the active may use, and when the standby is free to emit. Sans-I/O.

Picture     active   arm m7 |--------------- lease_ms ---------------|  m7 dead, whatever became of the process
                       \\ beat 7                           /
            standby     `--> ack 7 |----------- lease_ms + margin_ms -----------|  free to emit
                             s

            Arming comes before sending, receiving after sending, the promise after receiving: on any clock that runs
            at the true rate, m7 is dead margin_ms before the standby is free. Only differences on one machine's
            monotonic clock are used; the two clocks are never compared. margin_ms pays for what is not exact:
            their rates, the kernel's tick, and frames that had already passed the hook.

Promises    C1 a mark is handed to the sockets only after the ack of the beat it was armed for.
            C2 the mark on the sockets is never armed again: a process that stops keeps no way to live longer.
            C3 an ack that is late, doubled, older than the one in use, or unknown changes nothing.
            C4 the standby's promise never moves backwards.
Not here    the kernel's side (lease.EgressLease), sending, and the detector that decides to promote.
Source      Gray and Cheriton, "Leases", SOSP 1989; the per-beat mark is what makes the check atomic with the send.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfckpt.errors import ConfigError

__all__ = ["SOLO_MARK", "Arm", "LeaseClock", "Promise", "margin_ms_min"]

MS = 1_000_000
TAG, SEQ_MASK = 0x4E000000, 0x00FFFFFF     # "N" in the top byte, the beat's number below
SOLO_MARK = TAG                             # for EgressLease.permanent: no beat ever has it
OUTSTANDING_MAX = 256                       # unanswered beats remembered; older ones have run out long ago


def margin_ms_min(lease_ms: int, *, below_hook_ms: float, late_ms: float = 5.0, drift_ppm: float = 500.0) -> float:
    """The least margin_ms for `lease_ms`: clock rates (two clocks of drift_ppm), a late tick, frames below the hook.

    below_hook_ms is how long a frame may wait in a qdisc or a NIC queue after the fence let it pass; 0 on veth.
    """
    return below_hook_ms + late_ms + 2 * drift_ppm * 1e-6 * lease_ms


@dataclass(frozen=True)
class Arm:
    """Before the beat leaves: EgressLease.renew(mark, ms); the beat carries `seq`."""

    seq: int
    mark: int
    ms: int


class LeaseClock:
    """The active's side. `now_ns` is this machine's CLOCK_MONOTONIC, never going backwards.

    lease_ms   what the standby's ack promises, without its margin
    tick_ms    by how much the kernel may end it early (two jiffies: 8 at HZ=250, 20 at HZ=100)
    Raises ConfigError when a lease would hold no two beats.
    """

    def __init__(self, lease_ms: int, beat_ms: int, tick_ms: int = 8) -> None:
        if beat_ms <= 0 or lease_ms < 2 * beat_ms + tick_ms:
            raise ConfigError(f"lease_ms {lease_ms} with beat_ms {beat_ms}",
                              f"lease_ms must be at least 2 * beat_ms + {tick_ms} (one beat may be lost)")
        self.lease_ms = lease_ms
        self.tick_ms = tick_ms
        self.seq = 0                            # of the last beat
        self.mark = 0                           # on the sockets; 0 is never armed
        self._armed: dict[int, int] = {}        # seq -> armed at, ns
        self._used = 0                          # seq of the mark in use
        self._armed_ns = -1                     # when it was armed
        self._now = 0

    def beat(self, now_ns: int) -> Arm:
        """The next beat: arm first, send after. Call with the time read *before* arming."""
        self._tick(now_ns)
        self.seq += 1
        if self._mark_of(self.seq) in (self.mark, SOLO_MARK):   # C2, after 2**24 beats
            self.seq += 1
        self._armed[self.seq] = now_ns
        if len(self._armed) > OUTSTANDING_MAX:
            del self._armed[next(iter(self._armed))]
        return Arm(self.seq, self._mark_of(self.seq), self.lease_ms)

    def acked(self, seq: int, now_ns: int) -> int | None:
        """The standby answered beat `seq`: the mark to put on the sockets now, or None where it changes nothing."""
        self._tick(now_ns)
        armed = self._armed.get(seq)
        if armed is None or seq <= self._used or now_ns >= self._end(armed):
            return None
        for old in [s for s in self._armed if s <= seq]:
            del self._armed[old]
        self._used, self._armed_ns, self.mark = seq, armed, self._mark_of(seq)
        return self.mark

    @property
    def until_ns(self) -> int:
        """Hold output from here on: the kernel may drop it. 0 before the first ack."""
        return 0 if self._armed_ns < 0 else self._end(self._armed_ns)

    def holds(self, now_ns: int) -> bool:
        """May output leave now? An optimisation (frames wait in the gate, not in the bin): the kernel is the fence."""
        return now_ns < self.until_ns

    def _end(self, armed_ns: int) -> int:
        return armed_ns + (self.lease_ms - self.tick_ms) * MS

    def _mark_of(self, seq: int) -> int:
        return TAG | (seq & SEQ_MASK)

    def _tick(self, now_ns: int) -> None:
        assert now_ns >= self._now, "the clock went backwards"
        self._now = now_ns


class Promise:
    """The standby's side: each ack says "I shall not emit before now + lease_ms + margin_ms"; suspicion waits for it.

    Call `ack` before the ack is sent, and with a time read after the beat was received.
    """

    def __init__(self, lease_ms: int, margin_ms: float) -> None:
        if margin_ms < margin_ms_min(lease_ms, below_hook_ms=0):
            raise ConfigError(f"margin_ms {margin_ms} for lease_ms {lease_ms}",
                              f"at least {margin_ms_min(lease_ms, below_hook_ms=0):.1f}, plus what waits below the hook")
        self._ns = round((lease_ms + margin_ms) * MS)
        self.free_ns = 0

    def ack(self, now_ns: int) -> None:
        self.free_ns = max(self.free_ns, now_ns + self._ns)

    def wait_ns(self, now_ns: int) -> int:
        """Nanoseconds until every lease that rests on our acks has run out; 0 when free (or no ack was ever given)."""
        return max(0, self.free_ns - now_ns)
