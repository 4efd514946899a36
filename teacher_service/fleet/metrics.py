"""What a fleet does at this moment, and the metrics that show it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.metrics import Heart, Metric
from pipeline.stream_status import StreamStatus, TeacherStatus
from teacher_service.fleet.readings import Figures

LOOP = 60.0
"""seconds in which the supervisor goes round"""
OLD = 30.0
"""seconds after which a reading of the stream says nothing of now: Kafka gives no answer"""


@dataclass(slots=True)
class Supervising:
    """Written by the supervisor's thread, read by any."""

    started: int = 0
    """workers, in all"""
    replaced: int = 0
    running: int = 0
    wanted: int = 0
    joined: int = 0
    """of those that run, workers that were seen in their group"""
    pace: float | None = None
    """samples per second that the followed run takes; None: none is followed"""
    figures: Figures | None = None
    """the last reading"""
    over: bool = False
    heart: Heart = field(default_factory=lambda: Heart(LOOP))

    def end(self) -> None:
        """All workers have left."""
        self.heart.rest()
        self.over = True
        self.running = self.wanted = self.joined = 0

    @property
    def reading(self) -> Figures | None:
        """The last reading, if it is of now."""
        figures = self.figures
        return figures if figures and not self.over and time.monotonic() - figures.time < OLD else None

    @property
    def unready(self) -> str:
        """Why nothing is labelled by this fleet now."""
        if self.reading is None:
            return "has ended" if self.over else "Kafka has not said how the stream stands"
        return "" if self.joined else "none of its workers is in the group"


Read = Callable[[Supervising], float | None]


def _of_stream(read: Callable[[StreamStatus], float | None]) -> Read:
    return lambda now: read(reading.stream) if (reading := now.reading) else None


def _of_teacher(read: Callable[[TeacherStatus], float | None]) -> Read:
    return lambda now: read(reading.teacher) if (reading := now.reading) else None


METRICS: tuple[Metric[Supervising], ...] = (
    Metric("workers_started_total", "workers started", lambda now: now.started),
    Metric("workers_replaced_total", "of them in the place of one that died", lambda now: now.replaced),
    Metric("workers", "workers that run", lambda now: now.running),
    Metric("workers_wanted", "workers that are to run", lambda now: now.wanted),
    Metric("workers_joined", "of those that run, workers in their group", lambda now: now.joined),
    Metric("pace_samples_per_second", "as fast as the followed run trains", lambda now: None if now.over else now.pace),
    Metric("stream_orders", "orders of the whole stream", _of_stream(lambda stream: stream.orders)),
    Metric("fed_orders", "orders that lie in the topic", _of_stream(lambda stream: stream.fed)),
    Metric("labelled_orders", "orders that the teacher has labelled", _of_teacher(lambda teacher: teacher.labelled)),
    Metric(
        "labelled_orders_per_second",
        "orders labelled, by all of the teacher's workers",
        _of_teacher(lambda teacher: teacher.labelled_per_second),
    ),
    Metric("lag_orders", "orders in the topic that are not labelled", _of_teacher(lambda teacher: teacher.lag)),
    Metric(
        "members",
        "workers in the teacher's group, those of others too",
        _of_teacher(lambda teacher: len(teacher.members)),
    ),
    Metric("dead_letters", "dead letters of the stream", _of_stream(lambda stream: stream.dead_letters)),
)
