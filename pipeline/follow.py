"""Credit for the feeder: how far the work orders may run ahead of the runs that train on them.

The followed runs' own reports are the only source. A report is judged by whether it changes, never by its time: the
clocks of two machines differ.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from schemas.commits import RunReport
from schemas.errors import ConfigError, StreamNotFound

log = logging.getLogger(__name__)

REFRESH = 0.5
"""seconds between two looks at the runs' reports"""

DEFAULT_LEAD = (4, 8)
"""thresholds if none are asked for, in orders per partition"""

FAIL_OVER = 8.0
"""seconds that a worker's death may cost: the lowest session time-out of a default broker, and a rebalance"""

LOOKED_AWAY = 5.0
"""seconds between two looks that count as silence: beyond them nobody was looking, since the cluster did not answer"""

PACE_AFTER = 5.0
"""seconds of reports from which a run's pace is judged"""


PACES: dict[str, Callable[..., int]] = {"fastest": max, "slowest": min}
"""Which of several runs the feeder keeps pace with: the fastest waits for none, of the slowest no label grows old."""


@dataclass(frozen=True, slots=True)
class Lead:
    """Thresholds of the flow control, in orders."""

    low: int
    """publishing goes on when fewer lie ready"""
    high: int
    """publishing stops when as many lie ready"""

    @classmethod
    def of(cls, lead: tuple[int, int] | None, partitions: int) -> Lead:
        """Check the thresholds asked for.

        Raises:
            ConfigError: not 1 <= low < high, or high below 2 orders a partition.
        """
        low, high = lead or (DEFAULT_LEAD[0] * partitions, DEFAULT_LEAD[1] * partitions)
        if not 1 <= low < high:
            raise ConfigError(f"--lead {low}:{high}: LOW must be at least 1 and less than HIGH")
        if high < 2 * partitions:
            # A partition's worker needs its next order while the one in hand is on its way back.
            raise ConfigError(
                f"--lead {low}:{high}: HIGH must be at least {2 * partitions}, two orders for each of the stream's "
                f"{partitions} partitions"
            )
        return cls(low, high)


@dataclass(slots=True)
class _Run:
    report: RunReport | None
    looked: float
    """when it was looked for last, on the monotonic clock"""
    changed: float
    """when the last new report was seen, put off by the time in which nobody could look"""


class Followers:
    """The followed runs: who is still there, and how far the one is that is kept pace with."""

    def __init__(
        self,
        runs: tuple[str, ...],
        lead: Lead,
        pace: str,
        num_orders: int,
        read: Callable[[str], RunReport | None],
        follow_timeout: float,
        appear_timeout: float,
        say: Callable[[str], None],
        refresh: float = REFRESH,
    ) -> None:
        now = time.monotonic()
        self._runs = {run: _Run(None, now, now) for run in runs}
        self._asked = ", ".join(runs)
        self._lead = lead
        self._of_all = PACES[pace]
        self._num_orders = num_orders
        self._read = read
        self._refresh_after = refresh
        self._follow_timeout = follow_timeout
        self._appear_timeout = appear_timeout
        self._say = say
        self._read_at = float("-inf")
        self._paused = False
        self._seen = False
        self._why_gone = ""
        self._pace_from: tuple[float, int] | None = None
        self._warned = False

    @property
    def position(self) -> int:
        """The sequence that the fastest, or slowest, followed run trains on next; 0 of one that has not reported."""
        return self._of_all((self._position_of(run.report) for run in self._runs.values()), default=0)

    def _position_of(self, report: RunReport | None) -> int:
        if report is None:
            return 0
        # A run in a later pass has been over the whole stream.
        return self._num_orders if report.pass_number else report.sequence

    @property
    def num_followed(self) -> int:
        """Runs that are there, or waited for."""
        return len(self._runs)

    @property
    def gone(self) -> str:
        """Why nobody is left to follow; empty while somebody is."""
        return "" if self._runs else self._why_gone

    def allow(self, sequence: int) -> bool:
        """Whether this order may be published now; looks at the reports when it must.

        Raises:
            StreamNotFound: none of the runs has ever reported, and none did in time.
        """
        if time.monotonic() - self._read_at >= self._refresh_after:
            self._refresh()
        if not self._runs:
            return False
        ahead = sequence - self.position
        # Two thresholds: with one, feeder and teachers would wake for every single order.
        self._paused = ahead >= self._lead.low if self._paused else ahead >= self._lead.high
        return not self._paused

    def _refresh(self) -> None:
        first = self._read_at == float("-inf")
        for name, run in list(self._runs.items()):
            report = self._read(name)
            now = time.monotonic()
            run.changed += max(0.0, now - run.looked - LOOKED_AWAY)
            run.looked = now
            if report is not None and report != run.report:
                if run.report is None and not first:
                    self._say(f"run {name} is here, at order {report.sequence:,}")
                run.report, run.changed = report, now
                self._seen = True
            elif report is None and first:
                self._say(f"run {name} has not reported yet: waiting for it up to {self._appear_timeout:.0f} s")
            self._judge(name, run, now)
        self._read_at = time.monotonic()
        self._warn_of_short_lead(self._read_at)

    def _warn_of_short_lead(self, now: float) -> None:
        """Say once that the labels which lie ready do not last for a worker's death at the run's pace."""
        if self._pace_from is None:
            self._pace_from = (now, self.position) if self._seen else None
            return
        if self._warned or now - self._pace_from[0] < PACE_AFTER:
            return
        pace = (self.position - self._pace_from[1]) / (now - self._pace_from[0])
        if self._lead.low < pace * FAIL_OVER:
            self._warned = True
            log.warning(
                "a lead of %d orders lasts %.1f s at %.0f orders/s, but a worker's death may take %.0f s: the run will "
                "wait then; raise --lead to %d or more",
                self._lead.low,
                self._lead.low / pace,
                pace,
                FAIL_OVER,
                round(pace * FAIL_OVER),
            )

    def _judge(self, name: str, run: _Run, now: float) -> None:
        """Take a run that is done or silent off the list."""
        silent = now - run.changed
        if run.report is None and silent >= self._appear_timeout:
            del self._runs[name]
            self._why_gone = f"run {name} did not report within {silent:.0f} s"
            log.warning("%s: following it no longer", self._why_gone)
            if not self._runs and not self._seen:
                raise StreamNotFound(
                    f"none of the runs to follow ({self._asked}) reported within {self._appear_timeout:.0f} s; "
                    "start it with `distillog runs start`, or check its name"
                )
        elif run.report is not None and run.report.state == "done":
            del self._runs[name]
            self._why_gone = f"run {name} is done"
            self._say(self._why_gone)
        elif run.report is not None and silent >= self._follow_timeout:
            del self._runs[name]
            self._why_gone = f"run {name} did not report for {silent:.0f} s, at order {run.report.sequence:,}"
            log.warning("%s: following it no longer", self._why_gone)
