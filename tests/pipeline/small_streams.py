"""A stream that is made in a moment, and a look into its work orders, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from kafka import TopicPartition

from pipeline.create import StreamOptions, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_consumer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import address_of, teacher_group, work_orders_topic
from pipeline.streams import Stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.records import WorkOrder

DATASET = "mnist1d?split=train&n=200"
OPTIONS = StreamOptions(order_size=10, epochs=1, partitions=4)  # 20 orders an epoch


def fetcher(view: str = "none", **params: object) -> Fetcher:
    return Fetcher(open_dataset(DATASET), view_spec(view, params))


def small_stream(settings: KafkaSettings, name: str, **options: object) -> Stream:
    stream, new = create_stream(settings, name, fetcher(), DATASET, replace(OPTIONS, **options))  # type: ignore[arg-type]
    assert new
    return stream


@contextmanager
def working(settings: KafkaSettings, stream: Stream, teacher: str, eventually: Callable[..., object]) -> Iterator[None]:
    """While a worker of a teacher, which labels nothing, has its partitions."""
    manifest = stream.manifest
    group, orders = teacher_group(manifest, teacher), work_orders_topic(manifest.stream)
    worker = KafkaCluster(settings).member(group, orders, name="w", session_timeout=30.0)
    try:
        eventually(lambda: worker.poll(0.2) or worker.assignment(), 60.0, "the worker's partitions")
        yield
    finally:
        worker.close()


def read_orders(settings: KafkaSettings, stream: Stream) -> dict[int, list[WorkOrder]]:
    """partition -> its work orders as they lie in the log"""
    topic = work_orders_topic(stream.manifest.stream)
    partitions = [TopicPartition(topic, p) for p in range(stream.manifest.partitions)]
    found: dict[int, list[WorkOrder]] = {p.partition: [] for p in partitions}
    consumer = new_consumer(settings, group_id=None)
    try:
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for at, records in consumer.poll(timeout_ms=500).items():
                found[at.partition] += [WorkOrder.decode(r.value, address_of(r)) for r in records]
    finally:
        consumer.close()
    return found


def accepted(orders: list[WorkOrder], partition: int, stride: int) -> list[int]:
    """What the reader's rule takes of a partition: the expected sequence, and nothing else."""
    taken: list[int] = []
    for order in orders:
        if order.sequence == partition + len(taken) * stride:
            taken.append(order.sequence)
    return taken
