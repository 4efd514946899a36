"""Watches, while a soak runs, that nobody's commits are ahead of what is in the logs.

Every order below a teacher group's committed sequence has its record among the soft targets: also one of which each
row went to the dead letters, whose record holds no rows. Records are no measure of that, since some are repetitions;
so the log is read, by the reader's rule and with the checker's decoder.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import KafkaError, KafkaTimeoutError

from chaos.checker import decode
from pipeline.wait import Deadline

EVERY = 3.0
"""Seconds between two looks."""
READ = 20.0
"""Seconds for what is new in a log to be read."""


class Labelled:
    """How far each partition's soft targets go without a gap, read on from look to look."""

    def __init__(self, topic: str, partitions: int) -> None:
        self.expected = {TopicPartition(topic, number): number for number in range(partitions)}
        """Partition -> the lowest of its sequences that no reader gets from it."""
        self._positions = dict.fromkeys(self.expected, 0)

    def read(self, consumer: KafkaConsumer) -> None:
        """Read on to the present end; KafkaError where that is not reached in time, the next time goes on."""
        partitions = list(self.expected)
        ends = consumer.end_offsets(partitions)
        consumer.assign(partitions)
        for partition, position in self._positions.items():
            consumer.seek(partition, position)
        deadline = Deadline(READ)
        while any(self._positions[partition] < ends[partition] for partition in partitions):
            if deadline.over:
                raise KafkaTimeoutError(f"the soft targets were not read to their ends in {READ:g} s")
            for partition, records in consumer.poll(timeout_ms=500, max_records=5000).items():
                for record in records:
                    if decode(record.value)["sequence"] == self.expected[partition]:
                        self.expected[partition] += len(partitions)
                self._positions[partition] = records[-1].offset + 1


class CommitWatch:
    """A thread that asks for commits first and looks into the logs after that, so that no commit may be ahead."""

    def __init__(self, servers: Callable[[], str], stream: str, teacher: str, partitions: int) -> None:
        self.problems: list[str] = []
        self.looks = 0
        """How often all of it was answered."""
        self._servers = servers
        self._stream = stream
        self._partitions = partitions
        self._orders = f"{stream}.work-orders"
        self._labels = f"{stream}.soft-targets.{teacher}"
        self._labelled = Labelled(self._labels, partitions)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="commits", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60.0)

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                with self.clients() as (admin, consumer):
                    while not self._stop.wait(EVERY):
                        self.look(admin, consumer)
            except (KafkaError, OSError, KeyError, ValueError):
                continue  # a broker is away, as it is to be
            except Exception as error:
                self.problems.append(f"commits could not be looked at: {type(error).__name__}: {error}")
                return

    @contextmanager
    def clients(self) -> Iterator[tuple[KafkaAdminClient, KafkaConsumer]]:
        """What a look takes; KafkaError where no broker answers."""
        servers = self._servers().split(",")
        admin = KafkaAdminClient(bootstrap_servers=servers, bootstrap_timeout_ms=5000, request_timeout_ms=10000)
        try:
            consumer = KafkaConsumer(
                bootstrap_servers=servers,
                bootstrap_timeout_ms=5000,
                request_timeout_ms=10000,
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="none",
            )
            try:
                yield admin, consumer
            finally:
                consumer.close()
        finally:
            admin.close()

    def look(self, admin: KafkaAdminClient, consumer: KafkaConsumer) -> None:
        """Hold all commits of now against the logs; what is wrong goes to `problems`."""
        names = [each["group_id"] for each in admin.list_groups()]
        ours = [name for name in names if name.startswith(f"distillog.{self._stream}.")]
        commits = admin.list_group_offsets(ours) if ours else {}
        there = [TopicPartition(topic, n) for topic in (self._orders, self._labels) for n in range(self._partitions)]
        ends = {
            partition: found.offset
            for partition, found in admin.list_partition_offsets(dict.fromkeys(there, OffsetSpec.LATEST)).items()
        }
        self._labelled.read(consumer)
        for group, offsets in commits.items():
            for partition, commit in offsets.items():
                try:
                    problem = self._judge(partition, commit.offset, ends[partition], commit.metadata)
                except (KeyError, ValueError, AttributeError, TypeError):
                    problem = f"{commit.offset} of {partition} with what nobody can read: {commit.metadata!r}"
                if problem:
                    self.problems.append(f"{group} committed {problem}")
        self.looks += 1

    def _judge(self, partition: TopicPartition, offset: int, end: int, metadata: str | None) -> str:
        if offset > end:
            return f"{offset} of {partition}, which ends at {end}"
        said = json.loads(metadata or "{}").get("next_sequence")
        expected = self._labelled.expected[TopicPartition(self._labels, partition.partition)]
        if said is not None and said > expected:
            return f"order {said} of {partition}; {expected} is not labelled"
        return ""
