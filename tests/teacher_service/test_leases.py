"""What a member of a teacher's group is given, and in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.models import classifier
from support.streams import stream_with_teacher

from pipeline.feed import ORDERS_IN_A_BATCH, batch_bytes, feed
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import teacher_group, work_orders_topic
from pipeline.wait import Deadline
from teacher_service.leases.leases import Leases


@pytest.mark.kafka
def test_all_partitions_have_their_turn(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    partitions, epochs = 64, 150
    options = {"partitions": partitions, "order_size": 64, "epochs": epochs}
    stream = stream_with_teacher(kafka_settings, fresh_name("turns"), classifier(tmp_path / "m.onnx"), options=options)
    num_orders = feed(KafkaCluster(kafka_settings), stream).total
    assert num_orders / partitions > 8 * ORDERS_IN_A_BATCH
    cluster = KafkaCluster(kafka_settings)
    group = teacher_group(stream.manifest, "t")
    topic = work_orders_topic(stream.manifest.stream)
    fetch_bytes = 2 * batch_bytes(stream.manifest)
    member = cluster.member(group, topic, name="w", session_timeout=30.0, fetch_bytes=fetch_bytes)
    leases = Leases(cluster, member, stream.manifest, stream.teacher("t"), lambda: 1, nullcontext)
    taken = Counter(dict.fromkeys(range(partitions), 0))
    most_ahead = 0
    deadline = Deadline(90.0)
    try:
        while taken.total() < num_orders:
            assert not deadline.over, f"{taken.total()} of {num_orders} orders came"
            for topic_partition, records in leases.poll(0.1).items():
                # No count of them: after a rebalance they come again.
                taken[topic_partition.partition] = max(taken[topic_partition.partition], records[-1].offset + 1)
            most_ahead = max(most_ahead, max(taken.values()) - min(taken.values()))
    finally:
        leases.close()
        member.close()
    # A student trains in the sequence's order: what lies ahead of the slowest partition has to wait.
    assert most_ahead <= 5 * ORDERS_IN_A_BATCH
