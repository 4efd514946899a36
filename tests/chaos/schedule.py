"""Which fault strikes whom, when and for how long: a pure function of a seed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

WORKERS = ("w1", "w2", "w3")
"""Always there, but while a fault has them."""
FLEET = "fleet"
"""A supervisor, always there as they are."""
FLEET_WORKERS = ("fleet-1", "fleet-2")
"""The workers that it runs."""
GUESTS = ("x1", "x2")
"""Workers that join for a while and leave."""
STUDENTS = ("a", "b")
WIRES = ("left", "right")
"""The two ways of clients to the brokers; each can be cut by itself."""
ONE_BROKER = ("broker",)
ANY_OF_THREE = ("coordinator", "leader")
"""Of three brokers: the teachers' group's coordinator, or the leader of a partition of soft targets, whichever number
that is when the fault strikes."""

FOR_GOOD = 1e9
"""Seconds of a fault that is never mended."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault."""

    name: str
    targets: tuple[str, ...]
    weight: int
    """How often it is drawn, relative to others."""
    seconds: tuple[float, float]
    """How long it lasts: at least and at most."""
    rest: float = 3.0
    """Seconds after its end before the same target is struck again."""
    again: float = 0.0
    """Seconds after its end before a fault of the same kind strikes it again."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a schedule."""

    at: float
    """Seconds after the soak's beginning."""
    kind: str
    target: str
    seconds: float
    """Until it is mended: restarted, thawed, connected again, or until a guest leaves."""


COMMON = (
    Kind("kill worker", WORKERS, 22, (1.0, 6.0)),
    # A fleet gives up on a worker that ends five times in a row within a minute of its start.
    Kind("kill fleet worker", FLEET_WORKERS, 9, (1.0, 6.0), again=60.0),
    Kind("kill fleet", (FLEET,), 6, (1.0, 6.0)),
    Kind("freeze worker", (*WORKERS, *FLEET_WORKERS), 14, (1.0, 25.0)),
    Kind("leave", (*WORKERS, FLEET), 8, (1.0, 10.0)),
    Kind("join", GUESTS, 8, (10.0, 30.0)),
    Kind("kill student", STUDENTS, 8, (0.5, 5.0), rest=10.0),
    Kind("stop student", STUDENTS, 4, (0.5, 5.0), rest=10.0),
    Kind("freeze student", STUDENTS, 6, (1.0, 15.0)),
    Kind("kill feeder", ("feeder",), 5, (0.5, 5.0)),
    Kind("freeze feeder", ("feeder",), 4, (1.0, 15.0)),
    Kind("cut", WIRES, 6, (0.0, 0.0)),
    Kind("refuse", WIRES, 4, (1.0, 10.0)),
    Kind("stall", WIRES, 5, (1.0, 12.0)),
)
ONE = (
    *COMMON,
    Kind("kill broker", ONE_BROKER, 5, (0.0, 4.0), rest=20.0),
    Kind("freeze broker", ONE_BROKER, 5, (1.0, 12.0), rest=15.0),
)
THREE = (
    *COMMON,
    Kind("kill broker", ANY_OF_THREE, 7, (2.0, 10.0), rest=20.0),
    Kind("freeze broker", ANY_OF_THREE, 7, (1.0, 12.0), rest=15.0),
    Kind("cut off broker", ANY_OF_THREE, 7, (2.0, 12.0), rest=15.0),
)
LOSE = "lose broker"
"""Of three brokers one dies for good, two thirds through; the other two are left alone from there on, since two of
three are what writes need."""


def schedule(seed: int, num_faults: int, every: float = 8.0, brokers: int = 1) -> list[Fault]:
    """Return faults in the order of their times.

    Of each kind one comes first, in a drawn order; a target that has a fault, or has just had one, gets no other.

    Args:
        seed: of all that is drawn.
        num_faults: how many.
        every: seconds between two of them, on average.
        brokers: 1 or 3.
    """
    draw = random.Random(seed)
    kinds = list(ONE if brokers == 1 else THREE)
    firsts = draw.sample(kinds, len(kinds))
    lose_at = num_faults * 2 // 3 if brokers == 3 else num_faults
    faults: list[Fault] = []
    free: dict[str, float] = {}
    at = 0.0
    while len(faults) < num_faults:
        at += every * draw.uniform(0.2, 1.8)
        if len(faults) >= lose_at and free.get("brokers", 0.0) <= at:
            faults.append(Fault(round(at, 2), LOSE, draw.choice(ANY_OF_THREE), FOR_GOOD))
            free["brokers"] = at + FOR_GOOD
            continue
        waits = len(faults) >= lose_at  # for the brokers' last fault to be over
        able = [kind for kind in kinds if _targets(kind, free, at) and not (waits and "broker" in kind.name)]
        if not able:
            continue  # everybody has a fault
        first = next((kind for kind in firsts if kind in able), None)
        if first is not None:
            firsts.remove(first)
        kind = first or draw.choices(able, [each.weight for each in able])[0]
        target = draw.choice(_targets(kind, free, at))
        fault = Fault(round(at, 2), kind.name, target, round(draw.uniform(*kind.seconds), 2))
        end = at + fault.seconds
        free.update(dict.fromkeys(resources(target), end + kind.rest))
        free[_both(kind, target)] = end + kind.again
        faults.append(fault)
    return faults


def resources(target: str) -> tuple[str, ...]:
    """What a fault of a target has to itself: the target, all brokers together, or a supervisor with its workers."""
    if target in (*ONE_BROKER, *ANY_OF_THREE):
        return ("brokers",)
    return (FLEET, *FLEET_WORKERS) if target == FLEET else (target,)


def _targets(kind: Kind, free: dict[str, float], at: float) -> list[str]:
    return [
        target
        for target in kind.targets
        if all(free.get(each, 0.0) <= at for each in (*resources(target), _both(kind, target)))
    ]


def _both(kind: Kind, target: str) -> str:
    return f"{kind.name} of {target}"


def by_kind(faults: Iterable[Fault]) -> dict[str, int]:
    """Return how many there are of each kind."""
    return dict(sorted(Counter(fault.kind for fault in faults).items()))
