"""What the demo sees in the soft-target log: who labelled what, whether anything is lost, how long a kill was felt.

P partitions; sequence s lies in partition s % P.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from kafka import TopicPartition

from pipeline.kafka.clients import new_consumer
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import address_of, soft_targets_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, DecodeError
from schemas.records import SoftTargets


@dataclass(frozen=True, slots=True)
class Label:
    """One record of soft targets."""

    partition: int
    sequence: int
    num_samples: int
    worker: str
    """From the record's header."""
    time: float
    """Seconds since 1970, by the worker's clock, when it was sent."""


class Check:
    """The reader's rule over all partitions: accept the sequence expected, drop every other.

    It counts by itself, with none of the student's code, and so is a second opinion on what the student was given.
    """

    def __init__(self, num_orders: int, partitions: int) -> None:
        self.num_orders = num_orders
        self.num_accepted = 0
        """Orders labelled, without a gap in their partition."""
        self.num_samples = 0
        """Samples of those."""
        self.num_duplicates = 0
        """Records dropped because their sequence was accepted before."""
        self.num_duplicate_samples = 0
        self.num_early = 0
        """Records dropped because one before them was missing; they have to come again."""
        self.num_foreign = 0
        """Records dropped because they are not what the manifest implies."""
        self._expected = list(range(partitions))

    @property
    def num_lost(self) -> int:
        """Orders whose labels a reader never gets."""
        return self.num_orders - self.num_accepted

    def add(self, label: Label) -> bool:
        """Take note of a record, in the log's order; return whether it is accepted."""
        expected = self._expected[label.partition]
        if label.sequence != expected:
            if label.sequence < expected:
                self.num_duplicates += 1
                self.num_duplicate_samples += label.num_samples
            else:
                self.num_early += 1
            return False
        self._expected[label.partition] += len(self._expected)
        self.num_accepted += 1
        self.num_samples += label.num_samples
        return True


@dataclass(slots=True)
class KillWatch:
    """When a worker is killed, which partitions it owned, and when each got its next label from somebody else."""

    kill_at: int
    """The sequence at which it is killed."""
    victim: str = ""
    killed: float = 0.0
    """Seconds since 1970."""
    waits: dict[int, float | None] = field(default_factory=dict)
    """Partition of the killed worker -> seconds from the kill to its next label; None as long as there is none."""
    _owners: dict[int, str] = field(default_factory=dict)

    def add(self, label: Label) -> None:
        """Take note of an accepted record."""
        self._owners[label.partition] = label.worker
        if not self.victim and label.sequence >= self.kill_at:
            self.victim = label.worker
        # What it had sent before it died may lie in the log after the kill was noted, but bears its own name.
        if self.waits.get(label.partition, 0.0) is None and label.worker != self.victim:
            self.waits[label.partition] = label.time - self.killed

    def kill(self, time: float) -> None:
        """Say that the victim was killed, at `time` seconds since 1970."""
        self.killed = time
        self.waits = {partition: None for partition, owner in self._owners.items() if owner == self.victim}

    @property
    def first(self) -> float | None:
        """Seconds until the first of its partitions had a label again; None if none had."""
        return min((wait for wait in self.waits.values() if wait is not None), default=None)

    @property
    def last(self) -> float | None:
        """Seconds until each of those that had one had a label again."""
        return max((wait for wait in self.waits.values() if wait is not None), default=None)


class SoftTargetLog:
    """Reads the whole log of one teacher from its beginning, as it grows; a context manager."""

    def __init__(self, settings: KafkaSettings, stream: Stream, teacher: str) -> None:
        self.check = Check(Sequence.of(stream.manifest).num_orders, stream.manifest.partitions)
        self._settings = settings
        self._stream = stream
        self._teacher = stream.teacher(teacher)
        self._sequence = Sequence.of(stream.manifest)
        topic = soft_targets_topic(stream.manifest.stream, teacher)
        self._partitions = [TopicPartition(topic, partition) for partition in range(stream.manifest.partitions)]
        self._consumer = new_consumer(settings, group_id=None, max_poll_records=10_000)
        self._consumer.assign(self._partitions)
        for partition in self._partitions:
            self._consumer.seek(partition, 0)

    def __enter__(self) -> SoftTargetLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def read(self, timeout: float) -> list[Label]:
        """Return the accepted records that are there, or that come within `timeout` seconds.

        Raises:
            BrokerUnavailable: Kafka answers with an error.
        """
        with kafka_errors("reading the soft targets", self._settings):
            polled = self._consumer.poll(timeout_ms=int(timeout * 1000))
        return [label for label in self._labels(polled.values()) if self.check.add(label)]

    def read_all(self, timeout: float) -> Check:
        """Read on to the ends that the partitions have now, and return what was found.

        Raises:
            BrokerUnavailable: not read in `timeout` seconds.
        """
        deadline = Deadline(timeout)
        with kafka_errors("reading the ends of the soft targets", self._settings):
            ends = self._consumer.end_offsets(self._partitions)
        while any(self._consumer.position(partition) < end for partition, end in ends.items()):
            if deadline.over:
                raise BrokerUnavailable(f"the soft targets were not read to their end within {timeout:g} s")
            self.read(0.2)
        return self.check

    def _labels(self, polled: Iterable[list]) -> Iterator[Label]:  # type: ignore[type-arg]  # kafka-python has no types
        for records in polled:
            for record in records:
                try:
                    targets = SoftTargets.decode(record.value, address_of(record))
                except DecodeError:
                    self.check.num_foreign += 1
                    continue
                if not self._is_ours(targets, record.partition):
                    self.check.num_foreign += 1
                    continue
                worker = dict(record.headers).get("worker", b"").decode()
                yield Label(record.partition, targets.sequence, targets.num_kept, worker, record.timestamp / 1000)

    def _is_ours(self, targets: SoftTargets, partition: int) -> bool:
        """Whether a record is what the manifest implies of its sequence: samples, views, teacher, partition."""
        sequence = self._sequence
        return (
            targets.stream_id == self._stream.manifest.stream_id
            and targets.teacher_sha256 == self._teacher.sha256
            and targets.sequence < sequence.num_orders
            and sequence.partition(targets.sequence) == partition
            and targets.view_seed == sequence.view_seed(sequence.epoch_of(targets.sequence))
            and np.array_equal(targets.sample_ids, sequence.sample_ids(targets.sequence))
        )
