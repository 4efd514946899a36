"""The names of a stream's topics and consumer groups, and the address of a record.

Groups carry the stream's random ID, so that a stream deleted and made again inherits no offsets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kafka import TopicPartition

    from pipeline.kafka.log import Record
    from schemas.records import DeadLetter, Manifest

_MANIFEST = ".manifest"
_SOFT_TARGETS = ".soft-targets."
_HEADS = ".heads."


def manifest_topic(stream: str) -> str:
    """Topic of the manifest and the teachers' records; one partition."""
    return stream + _MANIFEST


def work_orders_topic(stream: str) -> str:
    """Topic of the work orders; P partitions."""
    return stream + ".work-orders"


def soft_targets_topic(stream: str, teacher: str) -> str:
    """Topic of one teacher's soft targets; P partitions."""
    return stream + _SOFT_TARGETS + teacher


def teacher_of(topic: str) -> str:
    """Name of the teacher whose soft targets a topic holds; "" for every other topic."""
    return topic.partition(_SOFT_TARGETS)[2]


def heads_topic(stream: str, teacher: str) -> str:
    """Topic of the last layers that one teacher's labels by the codec head need; one partition."""
    return stream + _HEADS + teacher


def head_teacher_of(topic: str) -> str:
    """Name of the teacher whose last layers a topic holds; "" for every other topic."""
    return topic.partition(_HEADS)[2]


def dead_letters_topic(stream: str) -> str:
    """Topic of what could not be labelled; one partition."""
    return stream + ".dead-letters"


REPLAY_OF = "replay-of"
"""Kafka header of a copied record: the address of the one that was captured, `topic/partition@offset`."""


def log_name(partition: TopicPartition) -> str:
    """A partition, as every message writes it: `topic/partition`."""
    return f"{partition.topic}/{partition.partition}"


def address_of(record: Record | DeadLetter) -> str:
    """Where a record lies, or the one that a letter is about, as every message writes it: `topic/partition@offset`."""
    return f"{record.topic}/{record.partition}@{record.offset}"


def teacher_group(manifest: Manifest, teacher: str) -> str:
    """Consumer group of all workers of one teacher."""
    return teacher_groups(manifest.stream, manifest.stream_id) + teacher


def run_group(manifest: Manifest, run: str) -> str:
    """Consumer group under which a run reports."""
    return run_groups(manifest.stream, manifest.stream_id) + run


def teacher_groups(stream: str, stream_id: str) -> str:
    """What the names of a stream's teachers' groups begin with."""
    return f"{group_prefix(stream)}{stream_id}.teacher."


def run_groups(stream: str, stream_id: str) -> str:
    """What the names of a stream's runs' groups begin with."""
    return f"{group_prefix(stream)}{stream_id}.run."


def group_prefix(stream: str) -> str:
    """What the names of all groups of a stream begin with, whatever its ID."""
    return f"distillog.{stream}."


def stream_of_manifest_topic(topic: str) -> str | None:
    """Name of the stream whose manifest topic this is, or None."""
    stream = topic.removesuffix(_MANIFEST)
    return stream if topic.endswith(_MANIFEST) and stream and "." not in stream else None


def belongs_to(topic: str, stream: str) -> bool:
    """Whether a topic is one of this stream's."""
    return topic in (manifest_topic(stream), work_orders_topic(stream), dead_letters_topic(stream)) or topic.startswith(
        (stream + _SOFT_TARGETS, stream + _HEADS)
    )
