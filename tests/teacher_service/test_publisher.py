"""Publishing what the chains say is next, to the real Kafka."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from support.faulty_cluster import FaultyCluster
from support.streams import records

from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.log import Appender
from pipeline.kafka.settings import KafkaSettings
from schemas.errors import DecodeError, DeliveryFailed, RecordTooLarge
from teacher_service.leases.chain import Chain, Mark, Parcel
from teacher_service.publisher import MAX_FAILED_DELIVERIES, Publisher

pytestmark = pytest.mark.kafka

Finished = queue.SimpleQueue[Parcel]
P = 3


@pytest.fixture
def topics(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> tuple[str, str]:
    name = fresh_name("publisher")
    with admin_client(kafka_settings) as admin:
        for topic, partitions in ((f"{name}.targets", P), (f"{name}.letters", 1)):
            spec = {"num_partitions": partitions, "replication_factor": 1, "configs": {"max.message.bytes": "4000"}}
            admin.create_topics({topic: spec}, wait_for_metadata=True)
    return f"{name}.targets", f"{name}.letters"


@pytest.fixture
def cluster(kafka_settings: KafkaSettings) -> FaultyCluster:
    return FaultyCluster(KafkaCluster(kafka_settings))


@contextmanager
def publisher(
    cluster: FaultyCluster,
    topics: tuple[str, str],
    finished: Finished,
    max_record_bytes: int = 100_000,
    max_parcels: int = 4,
    connect: Callable[[], Appender] | None = None,
) -> Iterator[Publisher]:
    connect = connect or (lambda: cluster.appender(max_record_bytes=max_record_bytes))
    made = Publisher(connect, *topics, [("worker", b"w")], max_record_bytes, max_parcels, finished.put)
    made.start()
    try:
        yield made
    finally:
        made.close()


class Chains:
    """Chains of one producer's generation, and parcels for them."""

    def __init__(self, publisher: Publisher, eventually: Any) -> None:
        generation = eventually(lambda: publisher.generation, what="a producer")
        self.all = [Chain(partition, generation, Mark(0, partition), P) for partition in range(P)]

    def parcel(self, partition: int, letters: int = 0, value: bytes | None = b"") -> Parcel:
        chain = self.all[partition]
        number = chain.read.offset
        job = chain.accept(number, DecodeError("here", "none"))
        written = tuple(f"letter {partition}/{number}.{row}".encode() for row in range(letters))
        return Parcel(job, written, f"value {partition}/{number}".encode() if value == b"" else value)


def take(finished: Finished, count: int) -> list[Parcel]:
    return [finished.get(timeout=30) for _ in range(count)]


def values(settings: KafkaSettings, topic: str) -> dict[int, list[str]]:
    return {partition: [one.value.decode() for one in found] for partition, found in records(settings, topic).items()}


class Counting:
    """An appender that counts how many records of a partition are on their way at once."""

    def __init__(self, appender: Appender) -> None:
        self._appender = appender
        self._lock = threading.Lock()
        self._now: Counter[int] = Counter()
        self.most: Counter[int] = Counter()

    def append(self, topic: str, partition: int, value: bytes, **more: Any) -> Future[int]:
        with self._lock:
            self._now[partition] += 1
            self.most[partition] = max(self.most[partition], self._now[partition])
        future = self._appender.append(topic, partition, value, **more)

        def arrived(_: object) -> None:
            with self._lock:
                self._now[partition] -= 1

        future.add_done_callback(arrived)
        return future

    def close(self, timeout: float = 0.0) -> None:
        self._appender.close(timeout)


def test_each_partition_keeps_its_order_with_one_unacknowledged_record_at_a_time(
    cluster: FaultyCluster, kafka_settings: KafkaSettings, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    counting = Counting(cluster.appender(max_record_bytes=100_000))
    with publisher(cluster, topics, finished, max_parcels=32, connect=lambda: counting) as made:
        chains = Chains(made, eventually)
        for number in range(90):
            made.submit(chains.parcel(number % P))
        done = take(finished, 90)
    assert counting.most == {0: 1, 1: 1, 2: 1}
    written = values(kafka_settings, topics[0])
    for partition in range(P):
        assert written[partition] == [f"value {partition}/{number}" for number in range(30)]
        assert [one.job.offset for one in done if one.job.chain.partition == partition] == list(range(30))
        assert chains.all[partition].done.offset == 30


def test_dead_letters_are_acknowledged_before_the_soft_targets_and_both_before_the_job_counts(
    cluster: FaultyCluster, kafka_settings: KafkaSettings, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(cluster, topics, finished) as made:
        chains = Chains(made, eventually)
        made.submit(chains.parcel(0, letters=3))
        made.submit(chains.parcel(0, letters=1, value=None))  # a record that is no order
        made.submit(chains.parcel(0))
        assert [one.job.offset for one in take(finished, 3)] == [0, 1, 2]
    letters = records(kafka_settings, topics[1])[0]
    targets = records(kafka_settings, topics[0])[0]
    assert [one.value for one in letters] == [b"letter 0/0.0", b"letter 0/0.1", b"letter 0/0.2", b"letter 0/1.0"]
    assert [one.value for one in targets] == [b"value 0/0", b"value 0/2"]
    assert letters[2].timestamp <= targets[0].timestamp
    assert list(targets[0].headers) == [("worker", b"w")]


def test_a_job_whose_lease_ended_is_not_sent_and_does_not_count(
    cluster: FaultyCluster, kafka_settings: KafkaSettings, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(cluster, topics, finished) as made:
        ended, current = Chains(made, eventually), Chains(made, eventually)
        parcels = [ended.parcel(0) for _ in range(6)]
        ended.all[0].end()
        for number in range(6):  # more than there is room for: the dropped ones make room
            made.submit(parcels[number])
            made.submit(current.parcel(1))
        assert [one.job.chain.partition for one in take(finished, 6)] == [1] * 6
    assert values(kafka_settings, topics[0])[0] == []
    assert ended.all[0].done == Mark(0, 0)


def test_a_record_over_the_streams_limit_is_a_failure_before_it_is_sent(
    cluster: FaultyCluster, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(cluster, topics, finished, max_record_bytes=1_000) as made:
        made.submit(Chains(made, eventually).parcel(0, value=b"x" * 70_000))
        failure = eventually(lambda: made.failure, timeout=30, what="the failure")
    assert isinstance(failure, RecordTooLarge)
    assert finished.empty()


def test_a_record_over_the_brokers_limit_is_a_failure_and_nothing_follows_it(
    cluster: FaultyCluster, kafka_settings: KafkaSettings, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(cluster, topics, finished) as made:
        chains = Chains(made, eventually)
        made.submit(chains.parcel(0, value=b"x" * 50_000))
        made.submit(chains.parcel(0))
        failure = eventually(lambda: made.failure, timeout=30, what="the failure")
        assert isinstance(failure, RecordTooLarge)
        for _ in range(10):
            made.submit(chains.parcel(1))  # does not block for ever
    assert finished.empty()
    assert values(kafka_settings, topics[0])[0] == []


@pytest.mark.parametrize("constructors", [0, 3])
def test_a_failed_delivery_takes_its_producer_along_and_the_next_one_serves_new_chains_alone(
    cluster: FaultyCluster, kafka_settings: KafkaSettings, topics: tuple[str, str], eventually: Any, constructors: int
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(cluster, topics, finished) as made:
        before = Chains(made, eventually)
        made.submit(before.parcel(0))
        take(finished, 1)
        cluster.fail(1, constructors)
        generation = made.generation
        made.submit(before.parcel(0))
        made.submit(before.parcel(1))
        eventually(lambda: made.generation not in (None, generation), what="another producer")
        made.submit(before.parcel(2))  # labelled by then, of a lease that nobody has ended yet
        after = Chains(made, eventually)
        made.submit(after.parcel(1))
        (done,) = take(finished, 1)
    assert done.job.chain is after.all[1]
    assert cluster.num_appenders == 2
    assert [chain.done.offset for chain in before.all] == [1, 0, 0]
    assert values(kafka_settings, topics[0]) == {0: ["value 0/0"], 1: ["value 1/0"], 2: []}


def test_producers_that_fail_one_after_another_are_given_up(
    cluster: FaultyCluster, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    with publisher(cluster, topics, finished) as made:
        for _ in range(MAX_FAILED_DELIVERIES):
            assert made.failure is None
            chains = Chains(made, eventually)
            generation = made.generation
            cluster.fail(1)
            made.submit(chains.parcel(0))
            eventually(lambda: made.failure or made.generation not in (None, generation), what="its end")  # noqa: B023
    assert isinstance(made.failure, DeliveryFailed)
    assert "3 times in a row (injected: not acknowledged)" in str(made.failure)


def test_closing_with_records_under_way_ends_the_producer_for_good(
    cluster: FaultyCluster, topics: tuple[str, str], eventually: Any
) -> None:
    finished: Finished = queue.SimpleQueue()
    before = set(threading.enumerate())
    for _ in range(5):  # now and then all are acknowledged before the close
        with publisher(cluster, topics, finished, max_parcels=64) as made:
            chains = Chains(made, eventually)
            for number in range(60):
                made.submit(chains.parcel(number % P, letters=3))
        assert not made._thread.is_alive()
    eventually(lambda: set(threading.enumerate()) <= before, what="the end of all threads")
