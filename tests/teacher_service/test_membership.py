"""What a member of a teacher's group is given, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from kafka.errors import NoOffsetForPartitionError
from support.models import classifier
from support.streams import stream_with_teacher

from pipeline.feed import ORDERS_IN_A_BATCH, feed
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.parked_partitions import poll
from pipeline.wait import Deadline
from teacher_service.membership import Membership, join_group


@pytest.mark.kafka
def test_all_partitions_have_their_turn(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    partitions, epochs = 64, 400
    options = {"partitions": partitions, "order_size": 64, "epochs": epochs}
    stream = stream_with_teacher(kafka_settings, fresh_name("turns"), classifier(tmp_path / "m.onnx"), options=options)
    num_orders = feed(KafkaCluster(kafka_settings), stream).total
    assert num_orders / partitions > 8 * ORDERS_IN_A_BATCH
    teacher = stream.teacher("t")
    consumer = join_group(kafka_settings, stream.manifest, teacher, "w", 6.0)
    membership = Membership(kafka_settings, consumer, stream.manifest, teacher, nullcontext)
    taken = Counter(dict.fromkeys(range(partitions), 0))
    most_ahead = 0
    deadline = Deadline(60.0)
    try:
        while taken.total() < num_orders:
            assert not deadline.over, f"{taken.total()} of {num_orders} orders came"
            polled = {}
            with suppress(NoOffsetForPartitionError):  # a new group: `settled` says where to begin
                polled = poll(consumer, 100)
            if not membership.settled():
                continue
            for topic_partition, records in polled.items():
                taken[topic_partition.partition] += len(records)
            most_ahead = max(most_ahead, max(taken.values()) - min(taken.values()))
    finally:
        membership.close()
        consumer.close()
    # A student trains in the sequence's order: what lies ahead of the slowest partition has to wait.
    assert most_ahead <= 5 * ORDERS_IN_A_BATCH
