"""How many workers a fleet is to have: readings go in, a size comes out. It looks at no clock and asks nobody.

With a run to follow, the size is what its pace takes: as much as 1.2 times the pace, in workers. Without one it is all
that is allowed while there is work for longer than a start takes. The feeder's own thresholds play no part: it pauses
and goes on by the lead, and two loops on one figure would swing each other.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

HEADROOM = 1.2
"""Capacity over what the run takes: a rebalance, a slow order and a worker that is being replaced have room."""
SLACK = 0.05
"""Of a worker: so much too little is none, or a pace that lies at the edge would start one and end it again."""
PACE_ORDERS = 20
"""Orders from which a pace is taken, or it is wrong by more than 5 %..."""
PACE_FACTOR = 6.0
"""...unless they take so many times as long as the patience asks for."""
PLENTY = 10.0
"""Times what a loss takes: where labels for so long lie ready, since all is fed at once, nobody is in a hurry."""
REBALANCE = 2.0
"""Seconds that a group takes to share out anew, on top of the session time-out."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, in seconds, something has to last before it counts."""

    pace: float = 10.0
    """of reports, from which a run's pace is taken, unless they hold too few orders"""
    settle: float = 10.0
    """for which more workers must be wanted, while the run does not wait for labels"""
    idle: float = 120.0
    """for which workers must be busy below `busy` before there is one fewer"""
    busy: float = 0.7
    """share of the members that have orders to label"""
    cycle: float = 10.0
    """of the lead's shortness, where the feeder pauses more often than that or never"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known at one moment. Counts are orders of the stream; speeds are samples/s."""

    time: float
    """seconds, by any clock that only goes on"""
    fed: int
    labelled: int
    busy: float
    """share of the group's members that have orders to label, 0 to 1"""
    speeds: tuple[float, ...]
    """of those members of the group that have told theirs, those of other machines among them"""
    workers: int
    """of the fleet that run"""
    starting: int
    """those of them that have not told theirs yet"""
    start: float
    """seconds from a worker's start until it labels"""
    trained: int | None = None
    """orders that the followed run has taken; None: it wants no labels (not here yet, done, or in a later pass)"""


@dataclass(frozen=True, slots=True)
class Size:
    """The size asked for."""

    workers: int
    why: str
    """for people, if it is another than before"""


class FleetSize:
    """Decides on the size of one fleet, reading by reading."""

    def __init__(
        self,
        least: int,
        most: int,
        order_size: int,
        partitions: int,
        follow: bool,
        session_timeout: float,
        patience: Patience | None = None,
    ) -> None:
        self.workers = least
        self.pace = 0.0
        """samples/s that the followed run takes, as far as it was seen not to wait for labels"""
        self._least = least
        self._most = most
        self._order_size = order_size
        self._partitions = partitions
        self._follow = follow
        self._fail_over = session_timeout + REBALANCE
        self._patience = patience or Patience()
        self._speed = 0.0
        self._paces: deque[Reading] = deque()
        self._feeding = _FeedingCycle()
        self._more_since: float | None = None
        self._short_since: float | None = None
        self._slack: deque[tuple[float, float]] = deque()
        """(time, busy) since fewer would do"""

    def decide(self, now: Reading) -> Size:
        """Take a reading, later than the last, and return the size from now on."""
        self._feeding.add(now)
        if now.speeds:
            self._speed = median(now.speeds)
        wanted, why, at_once = self._for_run(now) if self._follow else self._for_lag(now)
        wanted = max(self._least, min(self._most, wanted))
        if wanted > self.workers:
            self._slack.clear()
            self._more_since = now.time if self._more_since is None else self._more_since
            if at_once or now.time - self._more_since >= self._patience.settle:
                return self._change(wanted, why)
        else:
            self._more_since = None
            if wanted == self.workers:
                self._slack.clear()
            elif (fewer := self._fewer(now, wanted)) < self.workers:
                busy = f"{self._mean_busy():.0%} of {self._patience.idle:.0f} s"
                return self._change(fewer, f"workers had something urgent to label in {busy}")
        return Size(self.workers, "")

    def _change(self, workers: int, why: str) -> Size:
        self.workers = workers
        self._more_since = self._short_since = None
        self._slack.clear()
        return Size(workers, why)

    def _for_lag(self, now: Reading) -> tuple[int, str, bool]:
        """Nobody's pace counts: all that are allowed, while the work outlasts the start of another worker."""
        left = (now.fed - now.labelled) * self._order_size
        capacity = self._capacity(now)
        if left <= 0 or (capacity and left / capacity <= now.start):
            return self._least, "", False
        return self._most, f"{now.fed - now.labelled:,} orders to label", True

    def _for_run(self, now: Reading) -> tuple[int, str, bool]:
        if now.trained is None:
            self._paces.clear()
            self.pace = 0.0
            return self._least, "", False
        waits = self._take_pace(now, now.trained)
        if not self._speed:
            return self.workers, "", False
        lacking = HEADROOM * self.pace - self._capacity(now)
        # Members of other machines count as ours do; a worker that is down for a while will be back.
        if lacking > 0:
            wanted = now.workers + math.ceil(lacking / self._speed - SLACK)
        else:  # without slack, and as if the fastest left: or whoever goes would be missed at once
            wanted = now.workers + math.ceil(lacking / max(now.speeds, default=self._speed))
        # Asked of every reading, whatever is wanted at it: one in which a worker is idle must not be passed over.
        short = self._lead_stays_short(now, now.trained)
        if wanted <= self.workers and short:
            lead = (now.labelled - now.trained) * self._order_size / self.pace
            return self.workers + 1, f"{lead:.1f} s of labels lie ready, a loss takes {self._need(now):.0f} s", True
        return wanted, f"the run takes {self.pace:,.0f} samples/s, a worker makes {self._speed:,.0f}", waits

    def _take_pace(self, now: Reading, trained: int) -> bool:
        """Bring the pace up to date; return whether the run waits for labels that busy workers owe it."""
        if self._paces and trained < (self._paces[-1].trained or 0):
            self._paces.clear()  # resumed from an earlier checkpoint
        self._paces.append(now)
        while len(self._paces) > 2 and self._is_enough(self._paces[1], now, trained):
            self._paces.popleft()
        first = self._paces[0]
        seconds = now.time - first.time
        waits = all(self._waits(one) for one in self._paces)
        if self._is_enough(first, now, trained):
            pace = (trained - (first.trained or 0)) * self._order_size / seconds
            # Who waits would take more: what it took when it did not wait still holds.
            self.pace = max(self.pace, pace) if waits else pace
        return waits and seconds >= self._patience.pace

    def _is_enough(self, first: Reading, now: Reading, trained: int) -> bool:
        """Whether a pace can be taken from what was seen since `first`: an order is the smallest step there is."""
        seconds = now.time - first.time
        enough = trained - (first.trained or 0) >= PACE_ORDERS or seconds >= PACE_FACTOR * self._patience.pace
        return seconds >= self._patience.pace and enough

    def _waits(self, one: Reading) -> bool:
        return one.busy > 0.9 and one.labelled - (one.trained or 0) <= self._partitions

    def _lead_stays_short(self, now: Reading, trained: int) -> bool:
        """Whether, for a whole feeding cycle, the lead did not cover a loss although no worker ran out of work.

        Where they do run out, it is the feeder that keeps the lead short, and another worker would idle too.
        """
        lead = (now.labelled - trained) * self._order_size
        if not self.pace or lead >= self.pace * self._need(now) or now.busy <= 0.9 or now.starting:
            self._short_since = None
            return False
        self._short_since = now.time if self._short_since is None else self._short_since
        return now.time - self._short_since >= max(self._patience.cycle, self._feeding.seconds)

    def _need(self, now: Reading) -> float:
        return self._fail_over + now.start

    def _capacity(self, now: Reading) -> float:
        """Samples/s of the group once all that start have started."""
        return sum(now.speeds) + now.starting * self._speed

    def _fewer(self, now: Reading, wanted: int) -> int:
        """The size with one fewer, if the workers had too little to do for long enough; else the present one."""
        self._slack.append((now.time, 0.0 if self._has_plenty(now) else now.busy))
        if now.time - self._slack[0][0] < self._patience.idle:
            return self.workers
        while len(self._slack) > 2 and now.time - self._slack[1][0] >= self._patience.idle:
            self._slack.popleft()
        busy = self._mean_busy()
        if busy == 0.0:
            return wanted
        # Those that stay must have room, too, or the one that went would be missed at once.
        members = max(2, len(now.speeds) + now.starting)
        too_many = busy < self._patience.busy and busy * members / (members - 1) <= 1 / HEADROOM
        return self.workers - 1 if too_many else self.workers

    def _has_plenty(self, now: Reading) -> bool:
        """Whether what workers are busy with is nothing that the followed run waits for."""
        if not self._follow or now.trained is None:
            return self._follow
        lead = (now.labelled - now.trained) * self._order_size
        return lead > PLENTY * self.pace * self._need(now)

    def _mean_busy(self) -> float:
        return sum(busy for _, busy in self._slack) / len(self._slack)


class _FeedingCycle:
    """Seconds between two beginnings of feeding after a pause; 0 while the feeder never paused."""

    LONGEST = 300.0

    def __init__(self) -> None:
        self.seconds = 0.0
        self._fed = -1
        self._paused = False
        self._began: float | None = None

    def add(self, now: Reading) -> None:
        if now.fed > self._fed >= 0 and self._paused:
            if self._began is not None:
                self.seconds = min(self.LONGEST, now.time - self._began)
            self._began = now.time
        self._paused = now.fed == self._fed
        self._fed = now.fed
