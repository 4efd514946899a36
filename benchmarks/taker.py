"""Takes a teacher's labels in sequence, as a student does, checks each of them, and reports as a run does.

There is no network to train. Labels are taken as soon as they are there; what the run reports, by which the feeder
goes, is either that, or where a student of a given pace would be.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.in_sequence import PacedStudent
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.streams import Stream
from schemas.codecs import Dense
from schemas.records import Output
from student_trainer.reporter import RunReporter
from student_trainer.sources.base import Cursor
from student_trainer.sources.held import Wait
from student_trainer.sources.reader import SoftTargetReader

RUN = "student"
"""the name that it reports under"""


class Taker(threading.Thread):
    """A student that takes whatever is there in sequence, or one of a given pace; times are seconds since `began`."""

    def __init__(
        self,
        kafka: KafkaSettings,
        stream: Stream,
        table: npt.NDArray[np.float32],
        began: float,
        seconds_per_order: float = 0.0,
        ready_orders: int = 0,
    ) -> None:
        """Take the labels of the stream's only teacher.

        Args:
            kafka: where.
            stream: whose labels.
            table: [n, C] what they are to be.
            began: the wall clock as the run began.
            seconds_per_order: of a step; 0: faster than the teachers.
            ready_orders: labels that lie ready as its first step begins.
        """
        super().__init__(name="taker", daemon=True)
        self.arrivals: list[float] = []
        """when the labels of all orders up to this one were there"""
        self.labelled: list[int] = []
        """how many orders were labelled then, in sequence or not"""
        self.student: PacedStudent | None = None
        """from its first step on"""
        self.failure: BaseException | None = None
        self._kafka = kafka
        self._stream = stream
        self._table = table
        self._began = began
        self._seconds_per_order = seconds_per_order
        self._ready_orders = ready_orders
        self._offsets = [0] * stream.manifest.partitions
        self._next_offsets: list[int] = []
        """[orders taken]"""
        self._trained = 0
        self._ended = threading.Event()

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.time() - self._began

    def close(self) -> None:
        """End, after 10 s at most."""
        self._ended.set()
        self.join(10.0)

    def run(self) -> None:
        """Take labels until closed, or until something is wrong."""
        try:
            self._take_all()
        except BaseException as error:
            self.failure = error

    def _take_all(self) -> None:
        cluster = KafkaCluster(self._kafka)
        (teacher,) = self._stream.teachers
        reader = SoftTargetReader(cluster, self._stream, [teacher], self._ended)
        try:
            reader.seek(0, ())
            with RunReporter(cluster, self._stream, RUN, [teacher]) as reporter:

                def report(wait: Wait | None = None) -> None:
                    reporter.trained(self._cursor())

                while not self._ended.is_set():
                    report()
                    held = reader.next(len(self.arrivals), report)
                    if held is None:
                        return
                    now = self.now
                    values = held[0].value.output("logits").values()
                    expected = self._expected(held[0].value.kept_sample_ids)
                    if not isinstance(values, Dense) or not np.array_equal(values.logits, expected):
                        raise ValueError(f"{held[0].address}: not what the table says")
                    self._next_offsets.append(held[0].next_offset)
                    self.labelled.append(reader.num_records)
                    self.arrivals.append(now)
                    self._teach(now)
        finally:
            reader.close()

    def _expected(self, sample_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.floating[Any]]:
        """[M, C] what the codec makes of the table's rows."""
        values = Output.of("logits", self._table[sample_ids], self._stream.manifest.codec).values()
        assert isinstance(values, Dense)
        return values.logits

    def _teach(self, now: float) -> None:
        """Let the student know of the newest label."""
        if not self._seconds_per_order:
            return
        if self.student is not None:
            self.student.take(now)
        elif len(self.arrivals) >= self._ready_orders:
            student = PacedStudent(self._seconds_per_order, now)
            for arrival in self.arrivals:
                student.take(arrival)
            self.student = student

    def _cursor(self) -> Cursor:
        trained = len(self.arrivals)
        if self._seconds_per_order:
            trained = self.student.trained(self.now) if self.student else 0
        for sequence in range(self._trained, trained):
            self._offsets[sequence % len(self._offsets)] = self._next_offsets[sequence]
        self._trained = trained
        return Cursor(0, trained, 0, (tuple(self._offsets),))
