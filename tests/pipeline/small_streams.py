"""A stream that is made in a moment, and a look into its work orders, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace

from kafka import TopicPartition

from pipeline.create import StreamOptions, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_consumer
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import address_of, work_orders_topic
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
