"""Labels as a student can take them: in sequence. Pure arithmetic on when each order's labels could be taken.

`arrivals[s]` is the time at which the labels of all orders up to s were there; so it never falls. Partitions of one
worker often lie side by side, so that a round of P orders comes in bursts: rates are taken over whole rounds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.pairs import Spread


@dataclass(frozen=True, slots=True)
class Taken:
    """What could be taken in a stretch of time."""

    orders: int
    """in sequence"""
    labelled: int
    """in that time, in sequence or not: what was labelled before it is no work of that time"""
    seconds: float
    ideal_orders: float
    """what the teachers can do in that time by arithmetic"""
    rounds: tuple[float, ...]
    """ratio of each whole round in it; empty where there was not one, and the stretch is by the clock"""

    @property
    def ratio(self) -> float:
        """Orders labelled and taken / ideal orders."""
        return min(self.orders, self.labelled) / self.ideal_orders

    @property
    def rounds_spread(self) -> Spread | None:
        """Median and quartiles over the rounds."""
        return Spread.of(self.rounds) if self.rounds else None


def taken(
    arrivals: Sequence[float],
    labelled: Sequence[int],
    partitions: int,
    begin: float,
    end: float,
    ideal: Callable[[float, float], float],
) -> Taken:
    """What could be taken from the first to the last round that ended between two times; by the clock if none did.

    Args:
        arrivals: [orders taken so far] seconds, never falling.
        labelled: [orders taken so far] orders that were labelled then, in sequence or not.
        partitions: P, orders of a round.
        begin: seconds.
        end: seconds.
        ideal: how many orders the teachers can do between two times.
    """
    marks = [
        (number, arrivals[number])
        for number in range(partitions - 1, len(arrivals), partitions)
        if begin <= arrivals[number] <= end
    ]
    if len(marks) < 2 or marks[-1][1] <= marks[0][1]:
        before, until = bisect_right(arrivals, begin), bisect_right(arrivals, end)
        counts = [0, *labelled]
        return Taken(until - before, counts[until] - counts[before], end - begin, ideal(begin, end), ())
    (first, since), (last, until) = marks[0], marks[-1]
    rounds = tuple(partitions / ideal(before, after) for (_, before), (_, after) in pairwise(marks) if after > before)
    return Taken(last - first, labelled[last] - labelled[first], until - since, ideal(since, until), rounds)


class PacedStudent:
    """A student that trains on each order for as long, and waits where its labels are not there yet."""

    def __init__(self, seconds_per_order: float, begin: float) -> None:
        self.times: list[float] = []
        """when each order's step began"""
        self.waits: list[float] = []
        """seconds that each step waited for its labels"""
        self._seconds_per_order = seconds_per_order
        self._free = begin

    def take(self, arrival: float) -> None:
        """Train on the next order, whose labels are there from `arrival` on."""
        self.waits.append(max(0.0, arrival - self._free))
        self.times.append(max(self._free, arrival))
        self._free = self.times[-1] + self._seconds_per_order

    def trained(self, now: float) -> int:
        """Orders whose steps have begun."""
        return bisect_right(self.times, now)

    def longest_wait(self, begin: float, now: float) -> float:
        """Seconds of the longest wait that ended after `begin`, or lasts still."""
        waits = [wait for time, wait in zip(self.times, self.waits, strict=True) if time >= begin]
        return max([*waits, now - self._free, 0.0])
