"""Manifests without Kafka, and streams on the real one, for teachers of small models."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from kafka import TopicPartition

from pipeline.create import StreamOptions, add_teacher, create_stream
from pipeline.datasets import open_dataset
from pipeline.kafka.clients import new_consumer, new_producer
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import address_of, work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream, open_stream
from pipeline.views import view_spec
from pipeline.views.fetch import Fetcher
from schemas.codecs import CodecSpec
from schemas.records import DeadLetter, Manifest, Probe, SoftTargets, Teacher, WorkOrder
from teacher_service.models.declared import Declared
from teacher_service.models.describe import describe_model

DIGITS = "digits?split=train"
OPTIONS = StreamOptions(order_size=32, epochs=1, partitions=4, codec=CodecSpec("float32"))  # 41 orders of the digits


def fetcher(dataset: str = DIGITS, view: str = "none", **params: Any) -> Fetcher:
    return Fetcher(open_dataset(dataset), view_spec(view, params))


def manifest(source: Fetcher, **changes: Any) -> Manifest:
    """A manifest that is in no Kafka, over a dataset that is there."""
    dataset = source.dataset
    facts = {"dataset": dataset.uri, "num_samples": dataset.num_samples, "num_classes": dataset.num_classes}
    return bare_manifest(**{**facts, "view": source.view, **changes})


def bare_manifest(**changes: Any) -> Manifest:
    """A manifest that is in no Kafka, of a dataset that nobody opens."""
    none = np.empty(0, np.int64)
    made = Manifest(
        stream="s",
        stream_id="0123456789abcdef",
        dataset="none",
        dataset_fingerprint="0" * 64,
        num_samples=1,
        num_classes=10,
        class_names=(),
        view=view_spec("none", {}),
        view_probe=Probe(none, none, "0" * 64, np.empty((0, 1), np.int64), np.empty((0, 1), np.float32)),
        order_size=32,
        epochs=1,
        seed=0,
        partitions=4,
        codec=CodecSpec("float32"),
        max_record_bytes=1 << 20,
        schema_fingerprints={},
    )
    return replace(made, **changes)


def stream_with_teacher(
    settings: KafkaSettings,
    name: str,
    model: Path,
    dataset: str = DIGITS,
    options: dict[str, Any] | None = None,
    **declared: Any,
) -> Stream:
    """A stream with `model` as its teacher "t", nothing fed."""
    source = fetcher(dataset)
    stream, _ = create_stream(settings, name, source, dataset, replace(OPTIONS, **(options or {})))
    add_teacher(settings, stream, describe_model(model, "t", stream.manifest, source, Declared(**declared)))
    return open_stream(settings, name)


def order(manifest: Manifest, sequence: int) -> WorkOrder:
    """What the manifest says that order `sequence` is."""
    orders = Sequence.of(manifest)
    epoch = orders.epoch_of(sequence)
    return WorkOrder(manifest.stream_id, sequence, epoch, orders.sample_ids(sequence), orders.view_seed(epoch))


def publish(settings: KafkaSettings, stream: Stream, values: Many[int | tuple[int, bytes]]) -> None:
    """Append work orders by their sequence, or (partition, anything), in this order."""
    manifest = stream.manifest
    producer = new_producer(settings)
    try:
        for value in values:
            if isinstance(value, tuple):
                partition, raw = value
            else:
                partition, raw = value % manifest.partitions, order(manifest, value).encode()
            producer.send(work_orders_topic(manifest.stream), value=raw, partition=partition).get(timeout=30)
    finally:
        producer.close(timeout=5)


def num_orders(stream: Stream) -> int:
    return Sequence.of(stream.manifest).num_orders


def records(settings: KafkaSettings, topic: str) -> dict[int, list[Any]]:
    """partition -> Kafka's records, in the log's order"""
    consumer = new_consumer(settings, group_id=None)
    try:
        there = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        found: dict[int, list[Any]] = {tp.partition: [] for tp in there}
        consumer.assign(there)
        ends = consumer.end_offsets(there)
        consumer.seek_to_beginning(*there)
        while any(consumer.position(tp) < ends[tp] for tp in there):
            for at, batch in consumer.poll(timeout_ms=200).items():
                found[at.partition] += batch
    finally:
        consumer.close()
    return found


def soft_targets(settings: KafkaSettings, topic: str) -> dict[int, list[SoftTargets]]:
    return {
        partition: [SoftTargets.decode(one.value, address_of(one)) for one in found]
        for partition, found in records(settings, topic).items()
    }


def dead_letters(settings: KafkaSettings, topic: str) -> list[DeadLetter]:
    return [DeadLetter.decode(one.value, topic) for one in records(settings, topic)[0]]


def teacher_record(model: Path = Path("m.onnx"), **changes: Any) -> Teacher:
    """A record for `support.models.classifier` with its defaults on a field "image"; `kind`, ... are its output's."""
    from schemas.records import TeacherInput, TeacherOutput
    from teacher_service.models.files import model_sha256

    image = TeacherInput("x", "image", "float32", "nchw", 1.0, ())
    sha256 = model_sha256(model) if model.exists() else "0" * 64
    of_output = {"output": "y", "kind": "logits", "num_classes": 10}
    of_output |= {name: changes.pop(name) for name in list(of_output) if name in changes}
    output = TeacherOutput.of_classes(**of_output)
    return replace(Teacher("0123456789abcdef", "t", sha256, model.name, (image,), (output,), 16), **changes)
