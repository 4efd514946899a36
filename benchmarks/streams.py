"""The cluster, the data and the streams that the benchmarks run on. N: 256 samples in an order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kafka import TopicPartition

from pipeline.broker.local import LocalBroker
from pipeline.create import StreamOptions, add_teacher, create_stream
from pipeline.datasets import open_dataset
from pipeline.feed import feed
from pipeline.kafka.clients import new_consumer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.streams import Stream, open_stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from pipeline.wait import Deadline
from schemas.records import Teacher

ORDER_SIZE = 256
ORDERS_PER_EPOCH = 5
"""1,280 of the 1,297 training images: whole orders only, since a short one costs a teacher as much as a whole one."""
VIEW = {"intensity": 0.2, "scale": 0.15, "shear": 0.2, "rotation": 15.0, "shift": 0.125, "noise": 0.1}
"""Of the view `affine`: the digits example's."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the benchmarks run."""

    kafka: KafkaSettings
    folder: Path
    """For models, data and runs; removed in the end."""
    pairs: int
    """How often each of ours is measured."""
    broker: int | None = None
    """Process ID of a broker of ours."""

    @property
    def dataset(self) -> str:
        """URI of the labelled digits."""
        return f"npy:{self.folder / 'digits'}"

    @property
    def unlabelled(self) -> str:
        """URI of the same without labels: of any number of classes."""
        return f"npy:{self.folder / 'unlabelled'}"

    @property
    def fetcher(self) -> Fetcher:
        """The labelled digits under the view."""
        return Fetcher(open_dataset(self.dataset), view_spec("affine", VIEW))

    def stream(self, name: str, num_orders: int, **options: object) -> Stream:
        """Make a stream of the digits and feed all its work orders."""
        assert num_orders % ORDERS_PER_EPOCH == 0, num_orders
        stream_options = StreamOptions(order_size=ORDER_SIZE, epochs=num_orders // ORDERS_PER_EPOCH, **options)  # type: ignore[arg-type]
        stream, _ = create_stream(self.kafka, name, self.fetcher, self.dataset, stream_options)
        feed(KafkaCluster(self.kafka), stream)
        return stream

    def add_teacher(self, stream: Stream, teacher: Teacher) -> Stream:
        """Add a teacher's record and topic."""
        add_teacher(self.kafka, stream, teacher)
        return open_stream(self.kafka, stream.manifest.stream)


@contextmanager
def bench(pairs: int) -> Iterator[Bench]:
    """Give the cluster of KAFKA_BOOTSTRAP_SERVERS, or one of our own that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="distillog-bench-") as name:
        folder = Path(name)
        write_digits(folder)
        if servers := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
            yield Bench(KafkaSettings(servers), folder, pairs)
            return
        broker = LocalBroker(folder / "broker")
        broker.start()
        try:
            yield Bench(KafkaSettings(broker.bootstrap_servers), folder, pairs, broker.pid)
        finally:
            broker.stop()


def write_digits(folder: Path) -> None:
    """Write the digits, labelled and not, as folders of `.npy` files."""
    digits = open_dataset("digits?split=train")
    ids = np.arange(ORDERS_PER_EPOCH * ORDER_SIZE)
    images = digits.read(ids).fields["image"]
    for name in ("digits", "unlabelled"):
        (folder / name).mkdir()
        np.save(folder / name / "image.npy", images)
    np.save(folder / "digits" / "labels.npy", digits.labels(ids))


def soft_target_times(kafka: KafkaSettings, stream: Stream, teacher: str, num_orders: int) -> list[float]:
    """When each soft target was published, in seconds, sorted: from the records' own timestamps (milliseconds)."""
    topic = soft_targets_topic(stream.manifest.stream, teacher)
    partitions = [TopicPartition(topic, number) for number in range(stream.manifest.partitions)]
    consumer = new_consumer(kafka, group_id=None)
    times: list[float] = []
    try:
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        deadline = Deadline(60.0)
        while len(times) < num_orders:
            assert not deadline.over, f"{topic} holds {len(times)} of {num_orders} soft targets"
            for records in consumer.poll(timeout_ms=200).values():
                times += [record.timestamp / 1000 for record in records]
    finally:
        consumer.close()
    return sorted(times)
