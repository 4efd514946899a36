"""Compressed batches of others: honest ones are read, and one that explodes costs nothing but itself."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from kafka import TopicPartition
from small_streams import small_stream

from pipeline.kafka.clients import admin_client, new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.reading import read_to_end
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds import exploding_batches
from pipeline.kafka.workarounds.exploding_batches import LEAST, RATIO
from pipeline.manifest_log import MANIFEST_KEY, append
from pipeline.names import manifest_topic, soft_targets_topic
from pipeline.streams import open_stream
from schemas.errors import ConfigError

pytestmark = pytest.mark.kafka


@pytest.fixture
def topic(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> TopicPartition:
    name = fresh_name("packed")
    with admin_client(kafka_settings) as admin:
        admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})
        admin.wait_for_topics([name])
    return TopicPartition(name, 0)


def write(settings: KafkaSettings, at: TopicPartition, codec: str | None, value: bytes) -> None:
    with closing(new_producer(settings, compression_type=codec, max_request_size=1 << 30)) as producer:
        producer.send(at.topic, value=value, partition=0).get(timeout=60)


@pytest.mark.parametrize("codec", ["gzip", "lz4"])
def test_a_batch_that_explodes_is_passed_over_and_what_is_behind_it_read(
    codec: str,
    kafka_settings: KafkaSettings,
    topic: TopicPartition,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exploding_batches, "_room", LEAST)  # whatever streams this process has opened before
    write(kafka_settings, topic, None, b"before")
    write(kafka_settings, topic, codec, bytes(20 * LEAST))
    write(kafka_settings, topic, codec, b"behind")
    with closing(KafkaCluster(kafka_settings).reader()) as reader, caplog.at_level(logging.WARNING):
        tracemalloc.start()
        try:
            values = [record.value for record in read_to_end(reader, topic, 0, 30.0)]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert reader.position(topic) == 3
    assert values == [b"before", b"behind"]
    assert peak < 6 * LEAST
    (text,) = set(caplog.messages)
    assert text.startswith("passed over the compressed records 1 to 1: ")


@pytest.mark.parametrize("codec", ["gzip", "lz4"])
def test_an_honest_batch_is_read_whatever_it_packs(
    codec: str, kafka_settings: KafkaSettings, topic: TopicPartition
) -> None:
    values = [b"", b"x" * 100, bytes(LEAST // 2), bytes(range(256)) * 4096]
    for value in values:
        write(kafka_settings, topic, codec, value)
    with closing(KafkaCluster(kafka_settings).reader()) as reader:
        assert [record.value for record in read_to_end(reader, topic, 0, 30.0)] == values


def test_a_record_of_an_open_stream_is_read_however_well_its_topic_packs_it(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mostly one number in each row, as where classes are masked."""
    monkeypatch.setattr(exploding_batches, "_room", LEAST)
    name, size = fresh_name("s"), LEAST + (4 << 20)
    manifest = replace(small_stream(kafka_settings, fresh_name("s")).manifest, stream=name, max_record_bytes=size)
    at = TopicPartition(soft_targets_topic(name, "t"), 0)
    spec = {"num_partitions": 1, "configs": {"compression.type": "gzip", "max.message.bytes": str(2 * size)}}
    with admin_client(kafka_settings) as admin:
        admin.create_topics({each: spec for each in (at.topic, manifest_topic(name))}, wait_for_metadata=True)
    append(kafka_settings, name, MANIFEST_KEY, manifest.encode())
    write(kafka_settings, at, None, bytes(size))
    for opens, values in ((False, []), (True, [bytes(size)])):
        if opens:
            open_stream(kafka_settings, name)
        with closing(KafkaCluster(kafka_settings).reader()) as reader:
            assert [record.value for record in read_to_end(reader, at, 0, 30.0)] == values


def test_a_batch_that_nothing_here_unpacks_is_told_as_such_and_not_tried_again(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]
) -> None:
    at = TopicPartition(fresh_name("packed"), 0)
    with admin_client(kafka_settings) as admin:
        spec = {"num_partitions": 1, "replication_factor": 1, "configs": {"compression.type": "zstd"}}
        admin.create_topics({at.topic: spec})
        admin.wait_for_topics([at.topic])
    write(kafka_settings, at, None, b"x")
    with (
        closing(KafkaCluster(kafka_settings).reader()) as reader,
        pytest.raises(ConfigError, match=r"zstd.*gzip or lz4"),
    ):
        list(read_to_end(reader, at, 0, 30.0))


def test_the_bound_leaves_room_for_every_record_of_a_default_broker() -> None:
    assert LEAST > 4 * 1_048_588
    assert RATIO > 1
