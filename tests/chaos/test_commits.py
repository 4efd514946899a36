from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata
from support.models import classifier
from support.processes import Distillog
from support.streams import stream_with_teacher

from chaos.commits import CommitWatch
from pipeline.kafka.clients import admin_client
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.names import run_group, soft_targets_topic, teacher_group, work_orders_topic

pytestmark = pytest.mark.kafka


def test_commits_are_held_against_what_is_in_the_logs(
    distillog: Distillog, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    settings, name = distillog.settings, fresh_name("commits")
    model = classifier(tmp_path / "teacher.onnx", (1, 40))
    stream = stream_with_teacher(settings, name, model, "mnist1d?split=train&n=96", {"order_size": 8})  # 12 orders
    distillog.succeed("feed", name)
    distillog.start("teach", name, model, "--until-idle").succeed()
    teachers, run = teacher_group(stream.manifest, "t"), run_group(stream.manifest, "r")
    watch = CommitWatch(lambda: settings.bootstrap_servers, name, "t", stream.manifest.partitions)
    watch.close()
    with admin_client(settings) as admin, watch.clients() as (_, consumer):

        def commit(group: str, topic: str, offset: int, sequence: int | str | None) -> list[str]:
            metadata = "" if sequence is None else json.dumps({"next_sequence": sequence})
            commits = {TopicPartition(topic, 1): OffsetAndMetadata(offset, metadata, -1)}
            ask_coordinator(lambda: admin.alter_group_offsets(group, commits))
            watch.look(admin, consumer)
            found, watch.problems = watch.problems, []
            return found

        watch.look(admin, consumer)
        assert (watch.looks, watch.problems) == (1, [])
        assert commit(run, soft_targets_topic(name, "t"), 3, None) == []
        assert "committed 4 of" in commit(run, soft_targets_topic(name, "t"), 4, None)[0]
        assert commit(run, soft_targets_topic(name, "t"), 0, None) == []
        assert commit(teachers, work_orders_topic(name), 3, 13) == []
        assert "committed order 17 of" in commit(teachers, work_orders_topic(name), 3, 17)[0]
        assert "what nobody can read" in commit(teachers, work_orders_topic(name), 3, "x")[0]
        repeat(settings.bootstrap_servers, TopicPartition(soft_targets_topic(name, "t"), 1), 2)
        assert "; 13 is not labelled" in commit(teachers, work_orders_topic(name), 3, 17)[0]
        assert commit(teachers, work_orders_topic(name), 3, 13) == []


def repeat(servers: str, partition: TopicPartition, times: int) -> None:
    """Publish a partition's first record again."""
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=None, auto_offset_reset="earliest")
    consumer.assign([partition])
    (records,) = consumer.poll(timeout_ms=10_000, max_records=1).values()
    consumer.close()
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    for _ in range(times):
        producer.send(partition.topic, value=records[0].value, partition=partition.partition).get(10)
    producer.close()
