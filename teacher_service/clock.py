"""How a stage of a worker is doing: since when it is busy with one order, and how fast it was lately."""

from __future__ import annotations

import math
import time

LATELY = 2.0
"""Seconds of work over which a speed is smoothed: several short orders, or about the last long one."""

OVERDUE = 1.0
"""Seconds, at least, after which work that takes longer than usual may be work that never ends..."""
OVERDUE_FACTOR = 1.25
"""...times what is usual: less than makes a worker slow enough to ask for other shares."""


class Clock:
    """Of one stage, whose thread starts and stops it; read by others."""

    def __init__(self) -> None:
        self.since: float | None = None
        """when the work in hand began; None while there is none"""
        self.smoothed = 0.0
        """seconds per order, exponentially smoothed"""
        self.total = 0.0
        """seconds spent on orders"""
        self._num_samples = 0
        """in hand"""
        self._lately = (0.0, 0.0)
        """seconds and samples, older ones counted less: one value, since another thread reads it"""

    def start(self, num_samples: int) -> None:
        """Begin to work on so many samples."""
        self._num_samples = num_samples
        self.since = time.monotonic()

    def alive(self) -> None:
        """Note progress within the work in hand, such as another try."""
        if self.since is not None:
            self.since = time.monotonic()

    def stop(self, whole_order: bool = True) -> None:
        """End the work in hand; what was no order (a measurement) says nothing of how long one takes."""
        if self.since is None:
            return
        took = time.monotonic() - self.since
        self.since = None
        self.measured(took, self._num_samples)
        if whole_order:
            self.total += took
            self.smoothed = took if not self.smoothed else 0.9 * self.smoothed + 0.1 * took

    @property
    def overdue(self) -> bool:
        """Whether the work in hand takes so much longer than it did lately that it may never end."""
        since = self.since
        return since is not None and time.monotonic() - since > max(OVERDUE, OVERDUE_FACTOR * self.usual)

    @property
    def usual(self) -> float:
        """Seconds that the work in hand would have taken lately; 0 while nothing is known, or in hand."""
        seconds, samples = self._lately
        return seconds / samples * self._num_samples if samples and self.since is not None else 0.0

    def measured(self, seconds: float, num_samples: int) -> None:
        """Take in how long some samples took."""
        self._lately = self._with(seconds, num_samples)

    def seconds_per_sample(self) -> float:
        """How long a sample takes lately; 0 while nothing is known. Work that hangs counts as if it ended now."""
        since, (seconds, samples) = self.since, self._lately
        if not samples:
            return 0.0
        slowness = seconds / samples
        if since is not None:
            so_far, counted = self._with(time.monotonic() - since, self._num_samples)
            slowness = max(slowness, so_far / counted)
        return slowness

    def _with(self, seconds: float, num_samples: int) -> tuple[float, float]:
        left = math.exp(-seconds / LATELY)
        before_seconds, before_samples = self._lately
        return before_seconds * left + seconds, before_samples * left + num_samples
