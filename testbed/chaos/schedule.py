"""Which fault strikes next, whom, when and for how long: all of it from the seed, one generator a strike.

    strikes = schedule(seed=7, faults=chosen("all", "hosts", False), profile="hosts")
    next(strikes)       # Strike(number=1, fault=FAULTS["point-active"], wait_s=0.21, point="acked", action="kill", after=3, …)

The instants are the seed's, the machine's scheduler is not: a replay meets the same faults, not the same interleaving. A strike
does not depend on how the ones before it went.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nfckpt.testbed.chaos.faults import Fault, Point, points

__all__ = ["Strike", "schedule"]

WAIT_S = 0.02, 0.35         # protected service before a strike
LAST_S = {
    "stop-active": (0.6, 1.6), "stop-standby": (0.6, 1.6), "machine-active": (0.2, 0.8), "machine-standby": (0.2, 0.8), "pause": (0.01, 0.25),
    "cut-rep": (0.5, 1.5), "witness": (0.5, 2.0), "cut-off": (0.4, 0.8), "cut-data": (0.05, 0.3), "cut-standby-data": (0.05, 0.3), "cut-both": (0.05, 0.3),
    "slow-standby": (1.0, 1.0), "drop-rep": (1.0, 1.0), "point-active": (0.6, 1.6), "point-standby": (0.6, 1.6),
}
DEATHS = ("kill", "kill", "kill", "segv", "stop", "error")
BETWEEN = 0.25              # faults that do not kill, for each that does


@dataclass(frozen=True)
class Strike:
    """`wait_s`: from the moment the pair is protected. `last_s`: until what was done is undone. `point`, `action`, `after`: of a
    fault point. `amount`: percent dropped, or ms delayed. `who`: for faults of either node. `device`: of a data port."""

    number: int
    fault: Fault
    wait_s: float
    last_s: float = 0.0
    point: Point | None = None
    action: str = ""
    after: int = 1
    amount: int = 0
    who: str = "active"
    device: str = "lan"
    cuts: tuple[tuple[float, float], ...] = ()      # of a flap: seconds cut, seconds whole

    @property
    def label(self) -> str:
        """As the report counts it: the fault, and of a point its name and action."""
        return f"{self.fault.name} {self.point.name} {self.action}" if self.point else self.fault.name


def schedule(seed: int, faults: Sequence[Fault], profile: str) -> Iterator[Strike]:
    """Without end. Every point comes in turn, in an order of the seed's, before one comes again."""
    order = random.Random(f"{seed} points")
    decks: dict[str, list[Point]] = {}
    number = 0
    while True:
        number += 1
        rng = random.Random(f"{seed} {number}")
        killing = [f for f in faults if f.kills]
        passing = [f for f in faults if not f.kills]
        pool = passing if passing and rng.random() < BETWEEN / (1 + BETWEEN) else killing
        yield _strike(number, rng.choices(pool, [f.weight for f in pool])[0], rng, order, decks, profile)


def _strike(number: int, fault: Fault, rng: random.Random, order: random.Random, decks: dict[str, list[Point]], profile: str) -> Strike:
    wait_s = rng.uniform(*WAIT_S)
    last_s = rng.uniform(*LAST_S.get(fault.name, (0.0, 0.0)))
    who, device = rng.choice(("active", "standby")), rng.choice(("lan", "wan"))
    cuts = tuple((rng.uniform(0.005, 0.08), rng.uniform(0.02, 0.1)) for _ in range(rng.randint(3, 6)))
    if fault.name.endswith(("-active", "-standby")):
        who = fault.name.rsplit("-", 1)[1]
    point, action = None, ""
    if fault.name.startswith("point-") or fault.name == "delay":
        deaths = fault.name != "delay"
        deck = decks.setdefault(fault.name, [])
        if not deck:
            deck += [p for p in points(profile) if not deaths or (p.survivable and p.who == who)]
            order.shuffle(deck)
        point = deck.pop()
        action = rng.choice(DEATHS) if deaths else "delay"
    after = 1 if point and point.lead else rng.choice((1, 1, 2, 3, 10, 30))
    amount = rng.randint(20, 150) if action == "delay" else rng.randint(1, 20)
    return Strike(number, fault, wait_s, last_s, point, action, after, amount, point.who if point else who, device, cuts)
