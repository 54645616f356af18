"""What can be done to a pair. A kill costs it a node; every other fault passes, and comes between two kills.

Points      a kill at a named instant (nfckpt/native/fault.pyx) needs that instant to come: LEADS says what brings it about.
            Where the promise does not hold for a death (the only copy of the state dies), points are only delayed.
Ray         its workers die, and come back: the pair stays protected (tests/test_ray.py). Its GCS or a raylet does not come back, so a run,
            which goes on only once all is as before, has no such fault: tests/test_ray_lost.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfckpt.errors import ConfigError
from nfckpt.native.fault import POINTS

__all__ = ["FAULTS", "LEADS", "Fault", "Point", "chosen", "points"]


@dataclass(frozen=True)
class Fault:
    """`kills`: ends in a takeover or in a blank standby. `covered`: part of the promise, and of the default. `ray`: only with Ray,
    or only without it; None: either."""

    name: str
    what: str
    kills: bool = True
    profile: str = ""               # the only one that has it
    covered: bool = True
    ray: bool | None = None
    input: str = ""                 # the only one that has it
    weight: int = 4


FAULTS = {fault.name: fault for fault in (
    Fault("kill-active", "SIGKILL at a random instant", weight=8),
    Fault("kill-standby", "SIGKILL at a random instant"),
    Fault("segv-active", "SIGSEGV at a random instant"),
    Fault("segv-standby", "SIGSEGV at a random instant", weight=2),
    Fault("stop-active", "SIGSTOP for longer than the hang bound, then SIGCONT"),
    Fault("stop-standby", "SIGSTOP for longer than the hang bound, then SIGCONT", weight=2),
    Fault("point-active", "death of the active at a fault point (kill, segv, stop, error)", weight=16),
    Fault("point-standby", "death of the standby at a fault point", weight=8),
    Fault("machine-active", "all links of the active's machine, one after the other, then all its processes, no FIN", profile="hosts", weight=8),
    Fault("machine-standby", "the same of the standby's", profile="hosts"),
    Fault("delay", "a fault point that takes 20 to 150 ms, in a takeover, a sync or in normal service", kills=False),
    Fault("pause", "SIGSTOP for less than the hang bound, then SIGCONT, of either", kills=False),
    Fault("cut-rep", "the replication link is cut for 0.5 to 1.5 s", kills=False, profile="hosts"),
    Fault("flap-rep", "the replication link is cut three to six times for 5 to 80 ms", kills=False, profile="hosts"),
    Fault("drop-rep", "1 to 20 % of the replication link's packets are dropped at random for 1 s", kills=False, profile="hosts"),
    Fault("slow-standby", "the standby runs 2 ms of every 10 for 1 s", kills=False),
    Fault("witness", "the witness answers nobody for 0.5 to 2 s (only without Ray)", kills=False, ray=False),
    Fault("switch", "a planned failover", kills=False),
    Fault("cut-off", "a data port of the active is cut off, with carrier, for 0.4 to 0.8 s: it hands over, and nothing is lost", kills=False, input="tap"),
    Fault("cut-data", "a data port of the active is cut for 50 to 300 ms: frames sent meanwhile are lost, and set apart", kills=False,
          covered=False),
    Fault("cut-standby-data", "a data port of the standby is cut for 50 to 300 ms", kills=False, covered=False),
    Fault("cut-both", "a data port of the active and the replication link are cut for 50 to 300 ms", kills=False, profile="hosts", covered=False),
    Fault("ray-worker-active", "SIGKILL of the Ray worker that keeps the active: its next life adopts the packet process", kills=False, ray=True),
    Fault("ray-worker-standby", "SIGKILL of the Ray worker that keeps the standby: the same", kills=False, ray=True),
    Fault("ray-witness", "SIGKILL of the Ray worker that is the witness: a blank one is made, which believes both nodes", kills=False, ray=True),
)}


@dataclass(frozen=True)
class Point:
    name: str
    who: str
    survivable: bool
    what: str
    lead: str


# what brings a point about that normal service does not reach
LEADS = {
    **dict.fromkeys(("pages_captured", "pages_applied", "protecting", "asks_protected", "protected", "standby_lost", "solo"), "resync"),
    **dict.fromkeys(("half_replayed", "loss_noticed", "asks_claim", "asks_took", "promoted", "drained", "reemitted", "leading", "receipt"),
                    "takeover"),
    "handed_over": "switch",
}
_ONLY = {"lease_armed": "hosts", "lease_stamped": "hosts", "asks_took": "host", "asks_claim": "hosts"}


def points(profile: str) -> list[Point]:
    """All points that a run in this profile can reach."""
    return [Point(name, who, survivable, what, LEADS.get(name, "")) for name, who, survivable, what in POINTS
            if _ONLY.get(name, profile) == profile]


def chosen(text: str, profile: str, ray: bool, input: str = "tap") -> list[Fault]:
    """`text`: "all", or names and beginnings of names with commas between: "kill,stop-active,point". Raises ConfigError."""
    possible = [f for f in FAULTS.values() if f.profile in ("", profile) and f.ray in (None, ray) and f.input in ("", input)]
    if text == "all":
        return [f for f in possible if f.covered]
    found: list[Fault] = []
    for word in filter(None, (part.strip() for part in text.split(","))):
        fits = [f for f in FAULTS.values() if f.name == word or f.name.startswith(word + "-")]
        if not fits:
            raise ConfigError(f"--faults: no fault {word!r}", f"all, or some of {', '.join(FAULTS)}")
        here = [f for f in fits if f in possible]
        if not here:
            raise ConfigError(f"--faults: {word!r} is not for profile {profile}, input {input}, {'with' if ray else 'without'} Ray", "`nfckpt chaos --list-faults`")
        found += [f for f in here if f not in found]
    if not any(f.kills for f in found):
        raise ConfigError("--faults: none of them kills", "add one, e.g. kill")
    return found
