"""How fast a simulated accelerator is: seconds for an order, as a pure function of the time since the run began.

Times are seconds since the run began. A speed that changes in the middle of an order changes the rest of that order, so
what an accelerator can do between two times is exact: it is what its speed adds up to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Seconds that one order takes, from each of some times on.

    Raises:
        ValueError: not from 0 on, not rising, or a service time that is not above 0.
    """

    steps: tuple[tuple[float, float], ...]
    """(since, seconds for an order), rising, the first at 0; inf: it hangs for ever"""

    def __post_init__(self) -> None:
        times = [since for since, _ in self.steps]
        if not times or times[0] != 0 or any(after <= before for before, after in pairwise(times)):
            raise ValueError(f"service times must begin at 0 and rise, not {times}")
        if any(not seconds > 0 for _, seconds in self.steps):
            raise ValueError("a service time must be above 0 s")

    @classmethod
    def constant(cls, seconds: float) -> ServiceTimes:
        """Always the same."""
        return cls(((0.0, seconds),))

    @classmethod
    def parse(cls, text: str) -> ServiceTimes:
        """Read what `str` writes."""
        return cls(tuple((float(since), float(seconds)) for since, seconds in (s.split(":") for s in text.split(","))))

    def __str__(self) -> str:
        """Return `SINCE:SECONDS,SINCE:SECONDS,...`."""
        return ",".join(f"{since!r}:{seconds!r}" for since, seconds in self.steps)

    def orders(self, begin: float, end: float) -> float:
        """How many orders it can do between two times."""
        return math.fsum(
            (min(until, end) - max(since, begin)) / seconds
            for since, until, seconds in self._spans()
            if min(until, end) > max(since, begin)
        )

    def ends(self, begin: float, orders: float) -> float:
        """When that many orders, or that part of one, are done if they begin at `begin`; inf: never."""
        for since, until, seconds in self._spans():
            if until <= begin:
                continue
            begin = max(begin, since)
            if begin + orders * seconds <= until:
                return begin + orders * seconds
            orders -= (until - begin) / seconds
            begin = until
        return math.inf

    def _spans(self) -> list[tuple[float, float, float]]:
        """(from, to, seconds for an order)"""
        edges = [*(since for since, _ in self.steps), math.inf]
        return [(since, until, s) for (since, until), (_, s) in zip(pairwise(edges), self.steps, strict=True)]


def ideal_orders(teachers: Sequence[ServiceTimes], begin: float, end: float) -> float:
    """What all of them can do between two times if nothing is ever lost or waited for."""
    return math.fsum(teacher.orders(begin, end) for teacher in teachers)
