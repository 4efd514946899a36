"""Streams whose soft targets the tests write by hand, record by record."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from pipeline.kafka.clients import new_admin, new_producer
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from schemas.codecs import CodecSpec
from schemas.records import Manifest, Output, Probe, SoftTargets, Teacher, TeacherInput, TeacherOutput, ViewSpec

CLASSES = 3


def make_stream(name: str, teachers: tuple[str, ...], partitions: int = 3, **changes: Any) -> Stream:
    """A stream of 20 orders, 4 samples each; no topics yet, and no dataset behind it."""
    no_ids = np.empty(0, np.int64)
    manifest = Manifest(
        stream=name,
        stream_id=secrets.token_hex(8),
        dataset="digits?split=train",
        dataset_fingerprint="00" * 32,
        num_samples=40,
        num_classes=CLASSES,
        class_names=(),
        view=ViewSpec("none", {}, 1),
        view_probe=Probe(no_ids, no_ids, "", np.empty((0, 1), np.int64), np.empty((0, 1), np.float32)),
        order_size=4,
        epochs=2,
        seed=1,
        partitions=partitions,
        codec=CodecSpec("float32"),
        max_record_bytes=8192,
        schema_fingerprints={},
    )
    manifest = replace(manifest, **changes)
    return Stream(manifest, {teacher: make_teacher(manifest, teacher) for teacher in teachers})


def make_teacher(manifest: Manifest, name: str) -> Teacher:
    inputs = (TeacherInput("x", "image", "float32", "", 1.0, ()),)
    output = TeacherOutput.of_classes("logits", "logits", CLASSES)
    sha256 = secrets.token_hex(32)
    return Teacher(manifest.stream_id, name, sha256, "model.onnx", inputs, (output,), 4)


def label(stream: Stream, teacher: str, sequence: int, /, **changes: Any) -> SoftTargets:
    """What a teacher says of an order: the sequence itself, in every logit."""
    orders = Sequence.of(stream.manifest)
    epoch = orders.epoch_of(sequence)
    sample_ids = orders.sample_ids(sequence)
    logits = np.full((len(sample_ids), CLASSES), sequence, np.float32)
    targets = SoftTargets(
        stream_id=stream.manifest.stream_id,
        sequence=sequence,
        epoch=epoch,
        sample_ids=sample_ids,
        view_seed=orders.view_seed(epoch),
        kept_rows=None,
        teacher=teacher,
        teacher_sha256=stream.teacher(teacher).sha256,
        outputs=(Output.of("logits", logits, stream.manifest.codec),),
    )
    return replace(targets, **changes)


@dataclass
class Logs:
    """Topics of a stream, and someone who writes to them."""

    settings: KafkaSettings
    stream: Stream
    admin: Any
    producer: Any
    made: list[str] = field(default_factory=list)

    def make_topics(self) -> None:
        name, partitions = self.stream.manifest.stream, self.stream.manifest.partitions
        of_teachers = [soft_targets_topic(name, teacher) for teacher in self.stream.teachers]
        topics = [manifest_topic(name), work_orders_topic(name), dead_letters_topic(name), *of_teachers]
        spec = {"num_partitions": partitions, "replication_factor": 1}
        missing = [topic for topic in topics if topic not in self.made]
        self.admin.create_topics({topic: spec for topic in missing}, wait_for_metadata=True)
        self.made += missing

    def write(self, teacher: str, *records: int | SoftTargets | bytes, partition: int | None = None) -> None:
        """Write labels by their sequence, whole records, or raw bytes (those need `partition`)."""
        topic = soft_targets_topic(self.stream.manifest.stream, teacher)
        for record in records:
            one = label(self.stream, teacher, record) if isinstance(record, int) else record
            value = one if isinstance(one, bytes) else one.encode()
            at = one.sequence % self.stream.manifest.partitions if isinstance(one, SoftTargets) else partition
            self.producer.send(topic, value=value, partition=at if partition is None else partition).get(timeout=20)

    def commit(self, teacher: str, partition: int, next_sequence: int) -> None:
        """Commit as a worker of that teacher does."""
        manifest = self.stream.manifest
        place = TopicPartition(work_orders_topic(manifest.stream), partition)
        offset = (next_sequence - partition) // manifest.partitions
        commit = OffsetAndMetadata(offset, json.dumps({"next_sequence": next_sequence}), -1)
        group = teacher_group(manifest, teacher)
        answers = ask_coordinator(lambda: self.admin.alter_group_offsets(group, {place: commit}))
        assert [answer.errno for answer in answers.values()] == [0]


@contextmanager
def logs_of(settings: KafkaSettings, stream: Stream) -> Iterator[Logs]:
    """The topics of a stream, empty; removed at the end."""
    admin, producer = new_admin(settings), new_producer(settings)
    logs = Logs(settings, stream, admin, producer)
    try:
        logs.make_topics()
        yield logs
        there = set(ask_coordinator(admin.list_topics))  # the broker may have come back a moment ago
        admin.delete_topics([topic for topic in logs.made if topic in there])
    finally:
        producer.close(timeout=5)
        admin.close()
