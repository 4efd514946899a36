"""What a run does at this moment, and the metrics that show it over HTTP; the run's folder has more of them.

All comes from what the run tells its reporter before every step, and from the lines of metrics that it writes.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline.metrics import Heart, Metric
from schemas.commits import STATES_OVER
from student_trainer.sources.base import Cursor, Reporter

STEP = 600.0
"""seconds between two steps, or two looks for a batch, a checkpoint counted; evaluations may take longer"""
STARVING = 5.0
"""seconds without a batch after which a run counts as not ready"""
_ASKED = 2.0
"""seconds: a batch that is waited for is asked for four times in them, a step is asked for once"""


class Training:
    """A `Reporter` that takes down what it is told, and passes it on; written by the training thread, read by any."""

    def __init__(self, batch_size: int) -> None:
        self.heart = Heart(STEP)
        self.to: Reporter | None = None
        """whom everything is told, too"""
        self.line: dict[str, Any] = {}
        """of metrics, the last one of a step"""
        self.samples = 0
        """trained on by this process"""
        self._batch_size = batch_size
        self._state = ""
        self.cursor: Cursor | None = None
        """where the next step starts"""
        self._since = 0.0
        """when that step's batch was first asked for"""
        self._waits = False

    def trained(self, cursor: Cursor) -> None:
        """Take note before each step, and again while its batch is waited for; see `Reporter`."""
        self.heart.beat()
        self._waits = cursor is self.cursor
        if not self._waits:
            self.samples += 0 if self.cursor is None else self._batch_size
            self.cursor, self._since = cursor, time.monotonic()
        if self.to is not None:
            self.to.trained(cursor)

    def checkpointed(self, cursor: Cursor) -> None:
        """Pass it on; see `Reporter`."""
        if self.to is not None:
            self.to.checkpointed(cursor)

    def state(self, state: str) -> None:
        """Take note of what the run does; see `Reporter`."""
        self._state = state
        if state == "training":
            self.heart.beat()
        else:
            self.heart.rest()
        if self.to is not None:
            self.to.state(state)

    def wrote(self, line: dict[str, Any]) -> None:
        """Take note of a line of metrics."""
        if "loss" in line:
            self.line = line

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self._state in STATES_OVER

    @property
    def starving(self) -> float:
        """Seconds for which the next batch has been waited for; 0 while none is."""
        waits = self._waits and self._state == "training" and self.heart.silent < _ASKED
        return time.monotonic() - self._since if waits else 0.0

    @property
    def unready(self) -> str:
        """Why no step is taken now."""
        if self.over:
            return f"the run is {self._state}"
        if not self.samples:
            return "no batch has come yet"
        return f"no batch has come for {self.starving:.0f} s" if self.starving > STARVING else ""

    def last(self, *keys: str) -> float | None:
        """A number of the last line; None where it has none."""
        value: Any = self.line
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value if isinstance(value, int | float) else None

    def current(self, *keys: str) -> float | None:
        """The same, while the run has not ended."""
        return None if self.over else self.last(*keys)

    @property
    def speed(self) -> float:
        """Samples per second by the last line, while steps are taken."""
        works = self._state == "training" and self.starving <= STARVING
        return (self.last("timing", "samples_per_s") or 0.0) if works else 0.0


METRICS: tuple[Metric[Training], ...] = (
    Metric("samples_total", "samples that this process trained on", lambda now: now.samples),
    Metric("waiting_seconds_total", "waited for batches, by the last line", lambda now: now.last("timing", "waited_s")),
    Metric("starving_seconds", "since when the next batch has been waited for", lambda now: now.starving),
    Metric("samples_per_second", "as fast as it trains, by the last line; 0 while it does not", lambda now: now.speed),
    Metric("steps", "steps taken, by the last line", lambda now: now.last("step")),
    Metric("planned_steps", "steps that the run is to take", lambda now: now.last("total_steps")),
    Metric(
        "passes",
        "passes over the stream that are done",
        lambda now: now.cursor.pass_number if now.cursor else None,
    ),
    Metric("next_order", "the order that it trains on", lambda now: now.cursor.sequence if now.cursor else None),
    Metric("loss", "of the last line's step; absent where it overflowed", lambda now: now.current("loss")),
    Metric("learning_rate", "of the last line's step", lambda now: now.current("lr")),
)
