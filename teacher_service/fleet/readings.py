"""Readings of a stream for its fleet: taken on a thread of their own, since a broker that is away keeps one waiting."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from pipeline import status
from pipeline.complaints import Complaints
from pipeline.kafka.settings import KafkaSettings
from pipeline.stream_status import StreamStatus, TeacherStatus
from pipeline.streams import Stream
from schemas.commits import RunReport
from schemas.errors import DistillogError, NotAuthorized
from teacher_service.fleet.size import Reading

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Figures:
    """How the stream stood at one moment, with rates."""

    time: float
    """seconds on the monotonic clock"""
    stream: StreamStatus
    teacher: TeacherStatus
    """the fleet's, of those"""


class Watch(threading.Thread):
    """Reads a stream again and again; `latest` is the last reading, None before the first."""

    def __init__(self, settings: KafkaSettings, stream: Stream, teacher: str, every: float) -> None:
        """Make it; `every` is seconds between two readings."""
        super().__init__(name="fleet readings", daemon=True)
        self.latest: Figures | None = None
        self.failure: Exception | None = None
        """why it reads no more"""
        self._settings = settings
        # Alone: a teacher's rights need not reach to others.
        self._stream = replace(stream, teachers={teacher: stream.teachers[teacher]})
        self._teacher = teacher
        self._every = every
        self._ended = threading.Event()

    def run(self) -> None:
        """Read until closed, or refused; where Kafka gives no answer, again with new clients."""
        complaints = Complaints(log)
        while not self._ended.is_set():
            try:
                self._read()
            except NotAuthorized as error:
                self.failure = error
                return
            except DistillogError as error:
                complaints.warn(f"{error}; the size stays as it is meanwhile")
                self._ended.wait(self._every)
            except Exception as error:
                self.failure = error
                return

    def close(self) -> None:
        """Let it end, which a broker that is away may delay: it is not waited for long."""
        self._ended.set()
        self.join(2.0)

    def _read(self) -> None:
        with status.readings(self._settings, self._stream) as read:
            before, at = read(), time.monotonic()
            while not self._ended.wait(self._every):
                now, then, at = read(), at, time.monotonic()
                stream = now.since(before, at - then)
                self.latest, before = Figures(at, stream, stream.teacher(self._teacher)), now


def size_reading(figures: Figures, workers: Collection[str], start: float, run: str | None) -> Reading:
    """What the size is decided by.

    Args:
        figures: of a group that has settled.
        workers: names of the fleet's own that run.
        start: seconds that a worker takes to start.
        run: the followed run.
    """
    members = figures.teacher.workers
    speeds = {name: worker.samples_per_second for name, worker in members.items() if worker.samples_per_second}
    return Reading(
        figures.time,
        figures.stream.fed,
        figures.teacher.labelled,
        sum(worker.lag > 0 for worker in members.values()) / max(1, len(members)),
        tuple(speeds.values()),
        len(workers),
        sum(name not in speeds for name in workers),
        start,
        next((_trained(one.report) for one in figures.stream.runs if one.name == run), None),
    )


def _trained(report: RunReport) -> int | None:
    """Orders that a run has taken; None where it wants no labels: in a later pass they all are there."""
    return None if report.pass_number or report.over else report.sequence
