"""The topic that says what a stream is: its manifest and one record per teacher.

The topic is not compacted and has one partition: the first record of a key wins, so two writers at once cannot
overwrite each other; the second one reads the first one's record back and compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kafka import TopicPartition

from pipeline.kafka.clients import new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Reader
from pipeline.kafka.reading import read_to_end
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.names import address_of, manifest_topic
from schemas.records import Manifest, Teacher

MANIFEST_KEY = b"manifest"
READ_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class ManifestLog:
    """What the manifest topic says."""

    manifest: Manifest | None
    """None: the topic exists, but nothing was written yet"""
    teachers: dict[str, Teacher]
    """by name, in the order in which they were added"""


def teacher_key(name: str) -> bytes:
    """Key of a teacher's record."""
    return b"teacher/" + name.encode()


def read_manifest_log(settings: KafkaSettings, stream: str) -> ManifestLog:
    """Read the whole manifest topic; the topic must exist.

    Raises:
        BrokerUnavailable: the topic could not be read to its end within 30 s.
        DecodeError: a record of it is not what its key says.
    """
    return read_manifest_logs(settings, [stream])[stream]


def read_manifest_logs(settings: KafkaSettings, streams: Iterable[str]) -> dict[str, ManifestLog]:
    """Read several manifest topics with one client; like `read_manifest_log`."""
    logs: dict[str, ManifestLog] = {}
    reader = KafkaCluster(settings).reader()
    try:
        for stream in streams:
            logs[stream] = _read(reader, TopicPartition(manifest_topic(stream), 0))
    finally:
        reader.close()
    return logs


def _read(reader: Reader, topic: TopicPartition) -> ManifestLog:
    manifest: Manifest | None = None
    teachers: dict[str, Teacher] = {}
    for key, value, address in _all_records(reader, topic):
        if key == MANIFEST_KEY:
            manifest = manifest or Manifest.decode(value, address)
        elif key.startswith(b"teacher/"):
            teacher = Teacher.decode(value, address)
            if manifest and teacher.stream_id == manifest.stream_id:
                teachers.setdefault(teacher.name, teacher)
    return ManifestLog(manifest, teachers)


def _all_records(reader: Reader, topic: TopicPartition) -> list[tuple[bytes, bytes, str]]:
    if not reader.partitions(topic.topic):
        return []  # deleted just now; asking for its offsets would take 30 s to say so
    begin = reader.begins([topic])[topic]
    records = read_to_end(reader, topic, begin, READ_TIMEOUT)
    return [(r.key or b"", r.value or b"", address_of(r)) for r in records]


def append(settings: KafkaSettings, stream: str, key: bytes, value: bytes) -> None:
    """Write one record to the manifest topic and wait until it is acknowledged.

    Raises:
        BrokerUnavailable: not acknowledged within 30 s.
    """
    producer = new_producer(settings)
    try:
        with kafka_errors(f"writing the manifest of {stream!r}", settings):
            producer.send(manifest_topic(stream), key=key, value=value, partition=0).get(timeout=READ_TIMEOUT)
    finally:
        close_producer(producer, timeout=5)
