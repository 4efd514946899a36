"""Clusters of three: a broker that coordinates a group, or that a worker needs for its producer, dies."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from support.log_checker import assert_nothing_lost, check_labels
from support.models import classifier
from support.processes import distillog_commands
from support.streams import num_orders, publish, stream_with_teacher
from support.three_brokers import NUMBERS, three_brokers

from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.log import DELIVERY_TIMEOUT, Admin
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic, teacher_group
from pipeline.streams import Stream
from schemas.commits import decode_next_sequence

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.faults,
    pytest.mark.timeout(480),
]

DATASET = "mnist1d?split=train&n=320"


@pytest.fixture(autouse=True)
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("CRITICAL", "kafka")  # what it logs of a refused connection would keep the socket
    yield
    gc.collect()


def test_workers_label_on_when_another_one_joins_after_their_coordinator_died(
    tmp_path: Path, eventually: Callable[..., object]
) -> None:
    with three_brokers(tmp_path / "brokers") as three, distillog_commands(three.settings, tmp_path) as distillog:
        model = classifier(tmp_path / "teacher.onnx", (1, 40))
        stream = stream_with_teacher(three.settings, "s", model, DATASET, {"order_size": 8})
        half = num_orders(stream) // 2
        labels = [TopicPartition(soft_targets_topic("s", "t"), partition) for partition in range(4)]
        with closing(KafkaCluster(three.settings).admin()) as admin:

            def labelled() -> int:
                return sum(admin.ends(labels).values())

            distillog.start("teach", "s", model)
            publish(three.settings, stream, range(half))
            eventually(lambda: labelled() >= half, 60.0, "the first labels")
            three.kill_coordinator(teacher_group(stream.manifest, "t"))
            distillog.start("teach", "s", model)
            publish(three.settings, stream, range(half, num_orders(stream)))
            eventually(lambda: labelled() >= num_orders(stream), 60.0, "the other labels")
        assert_nothing_lost(check_labels(three.settings, stream))


def test_no_commit_covers_an_order_that_was_not_published_while_no_producer_can_be_made(
    tmp_path: Path, eventually: Callable[..., object]
) -> None:
    with three_brokers(tmp_path / "brokers") as three, distillog_commands(three.settings, tmp_path) as distillog:
        model = classifier(tmp_path / "teacher.onnx", (1, 40))
        stream = stream_with_teacher(three.settings, "s", model, DATASET, {"order_size": 1})
        targets = soft_targets_topic("s", "t")
        group = teacher_group(stream.manifest, "t")
        with admin_client(three.settings) as admin:  # a record counts only on all three
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, targets, {"min.insync.replicas": "3"})])
        # The worker knows one broker to begin with, and that one is neither its group's coordinator nor kept alive.
        dying = next(number for number in NUMBERS if number != three.coordinator(group))
        bootstrap = three.brokers[dying].bootstrap_servers
        half = num_orders(stream) // 2
        with closing(KafkaCluster(three.settings).admin()) as admin:
            labels = [TopicPartition(targets, partition) for partition in range(4)]
            worker = distillog.start("teach", "s", model, KAFKA_BOOTSTRAP_SERVERS=bootstrap)
            publish(three.settings, stream, range(half))
            eventually(lambda: sum(admin.ends(labels).values()) >= half, 60.0, "the first labels")
            # A new leader that has not heard that a record counts cannot say so either while a replica is missing (all
            # three are demanded here), and followers hear it up to half a second late.
            time.sleep(2.0)
            three.brokers[dying].kill()
            publish(three.settings, stream, range(half, num_orders(stream)))
            worker.wait_for("no producer for soft targets", DELIVERY_TIMEOUT + 60.0)
            for _ in range(10):
                assert_covered(admin, stream, group, three.settings)
                time.sleep(1.0)
            assert worker.running
            three.brokers[dying].start(90.0)
            eventually(lambda: sum(admin.ends(labels).values()) >= num_orders(stream), 120.0, "the other labels")
            assert_covered(admin, stream, group, three.settings)
        assert_nothing_lost(check_labels(three.settings, stream))


def assert_covered(admin: Admin, stream: Stream, group: str, settings: KafkaSettings) -> None:
    """What is committed can be read; the commits are asked for first."""
    commits = admin.committed({group: None})[group]
    accepted = check_labels(settings, stream).accepted
    for partition, commit in commits.items():
        committed = decode_next_sequence(commit.metadata, partition.partition, 4, commit.offset) or 0
        assert all(sequence in accepted for sequence in range(partition.partition, committed, 4)), (partition, commit)
