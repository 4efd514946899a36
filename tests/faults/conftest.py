"""What the fault battery shares: data that can be steered, and a look at how far a log is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.admin import OffsetSpec

from pipeline.kafka.clients import new_admin
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.streams import Stream


@pytest.fixture
def steering(tmp_path: Path) -> Path:
    """The folder whose files steer `support.fault_data:steered`."""
    folder = tmp_path / "steering"
    folder.mkdir()
    return folder


@pytest.fixture
def num_labels(kafka_settings: KafkaSettings) -> Iterator[Callable[[Stream], int]]:
    """`num_labels(stream)`: records of teacher "t" up to now, repetitions counted."""
    admin = new_admin(kafka_settings)

    def count(stream: Stream) -> int:
        topic = soft_targets_topic(stream.manifest.stream, "t")
        partitions = [TopicPartition(topic, number) for number in range(stream.manifest.partitions)]
        ends = admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
        return sum(end.offset for end in ends.values())

    yield count
    admin.close()
