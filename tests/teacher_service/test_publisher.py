"""Publishing finished jobs to the real Kafka."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.streams import records

from pipeline.kafka.clients import new_admin
from pipeline.kafka.settings import KafkaSettings
from schemas.errors import DecodeError, RecordTooLarge
from teacher_service.publisher import Job, Publisher

pytestmark = pytest.mark.kafka

Finished = queue.SimpleQueue[Job]


@pytest.fixture
def topics(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> tuple[str, str]:
    name = fresh_name("publisher")
    admin = new_admin(kafka_settings)
    try:
        for topic, partitions in ((f"{name}.targets", 3), (f"{name}.letters", 1)):
            spec = {"num_partitions": partitions, "replication_factor": 1, "configs": {"max.message.bytes": "4000"}}
            admin.create_topics({topic: spec}, wait_for_metadata=True)
    finally:
        admin.close()
    return f"{name}.targets", f"{name}.letters"


@contextmanager
def publisher(
    settings: KafkaSettings,
    topics: tuple[str, str],
    finished: Finished,
    is_current: Callable[[Job], bool] = lambda job: True,
    max_record_bytes: int = 100_000,
    max_jobs: int = 4,
) -> Iterator[Publisher]:
    made = Publisher(settings, *topics, [("worker", b"w")], max_record_bytes, max_jobs, is_current, finished)
    try:
        yield made
    finally:
        made.close()


def job(partition: int, number: int, letters: int = 0, value: bool = True) -> Job:
    made = Job(partition, 1, number, number, DecodeError("here", "none"))
    made.letters = [f"letter {partition}/{number}.{row}".encode() for row in range(letters)]
    made.value = f"value {partition}/{number}".encode() if value else None
    return made


def take(finished: Finished, count: int) -> list[Job]:
    return [finished.get(timeout=30) for _ in range(count)]


def values(settings: KafkaSettings, topic: str) -> dict[int, list[str]]:
    return {partition: [one.value.decode() for one in found] for partition, found in records(settings, topic).items()}


def test_each_partition_keeps_its_order_with_one_unacknowledged_record_at_a_time(
    kafka_settings: KafkaSettings, topics: tuple[str, str]
) -> None:
    finished: Finished = queue.SimpleQueue()
    most: Counter[int] = Counter()
    on_the_way: Counter[int] = Counter()
    lock = threading.Lock()
    with publisher(kafka_settings, topics, finished, max_jobs=32) as made:
        send = made._producer.send

        def counted(topic: str, partition: int, **rest: Any) -> Any:
            with lock:
                on_the_way[partition] += 1
                most[partition] = max(most[partition], on_the_way[partition])
            future = send(topic, partition=partition, **rest)

            def arrived(_: object) -> None:
                with lock:
                    on_the_way[partition] -= 1

            return future.add_both(arrived)

        made._producer.send = counted
        jobs = [job(number % 3, number) for number in range(90)]
        for one in jobs:
            made.submit(one)
        done = take(finished, 90)
    assert most == {0: 1, 1: 1, 2: 1}
    written = values(kafka_settings, topics[0])
    for partition in range(3):
        assert written[partition] == [f"value {partition}/{number}" for number in range(partition, 90, 3)]
        assert [one.sequence for one in done if one.partition == partition] == list(range(partition, 90, 3))


def test_dead_letters_are_acknowledged_before_the_soft_targets_and_both_before_the_job_counts(
    kafka_settings: KafkaSettings, topics: tuple[str, str]
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(kafka_settings, topics, finished) as made:
        made.submit(job(0, 0, letters=3))
        made.submit(job(0, 1, letters=1, value=False))  # a record that is no order
        made.submit(job(0, 2))
        assert [one.sequence for one in take(finished, 3)] == [0, 1, 2]
    letters = records(kafka_settings, topics[1])[0]
    targets = records(kafka_settings, topics[0])[0]
    assert [one.value for one in letters] == [b"letter 0/0.0", b"letter 0/0.1", b"letter 0/0.2", b"letter 0/1.0"]
    assert [one.value for one in targets] == [b"value 0/0", b"value 0/2"]
    assert letters[2].timestamp <= targets[0].timestamp
    assert list(targets[0].headers) == [("worker", b"w")]


def test_a_job_whose_lease_ended_is_not_sent_and_does_not_count(
    kafka_settings: KafkaSettings, topics: tuple[str, str]
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(kafka_settings, topics, finished, lambda one: one.sequence % 2 == 0) as made:
        for number in range(8):
            made.submit(job(0, number))  # more than may be under way: the dropped ones make room
        assert [one.sequence for one in take(finished, 4)] == [0, 2, 4, 6]
    assert values(kafka_settings, topics[0])[0] == [f"value 0/{number}" for number in (0, 2, 4, 6)]


def test_a_record_over_the_streams_limit_is_a_failure_before_it_is_sent(
    kafka_settings: KafkaSettings, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(kafka_settings, topics, finished, max_record_bytes=1_000) as made:
        large = job(0, 0)
        large.value = b"x" * 70_000
        made.submit(large)
        failure = eventually(lambda: made.failure, timeout=30, what="the failure")
        assert isinstance(failure, RecordTooLarge)
    assert finished.empty()


def test_a_record_over_the_brokers_limit_is_a_failure_and_nothing_follows_it(
    kafka_settings: KafkaSettings, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(kafka_settings, topics, finished) as made:
        large = job(0, 0)
        large.value = b"x" * 50_000
        made.submit(large)
        made.submit(job(0, 4))
        failure = eventually(lambda: made.failure, timeout=30, what="the failure")
        assert "MessageSizeTooLarge" in type(failure).__name__
        for number in range(10):
            made.submit(job(1, number))  # does not block for ever
    assert finished.empty()
    assert values(kafka_settings, topics[0])[0] == []


def test_closing_with_records_under_way_ends_the_producer_for_good(
    kafka_settings: KafkaSettings, topics: tuple[str, str]
) -> None:
    finished: Finished = queue.SimpleQueue()
    for _ in range(5):  # now and then all are acknowledged before the close
        with publisher(kafka_settings, topics, finished, max_jobs=64) as made:
            for number in range(60):
                made.submit(job(number % 3, number, letters=3))
        assert not made._producer._sender.is_alive()
        assert not made._thread.is_alive()
