"""The topic that says what a stream is: its manifest and one record per teacher.

The topic is not compacted and has one partition: the first record of a key wins, so two writers at once cannot
overwrite each other; the second one reads the first one's record back and compares. Nothing is taken back either: a
teacher's removal is one more record, which holds wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from kafka import TopicPartition

from pipeline.kafka.clients import new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Reader
from pipeline.kafka.needs import Right, needing
from pipeline.kafka.reading import read_to_end
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.manifest_record import decode_manifest
from pipeline.names import address_of, manifest_topic
from schemas.errors import DecodeError, ManifestMismatch, NeedsNewer, NotAuthorized
from schemas.records import Manifest, Teacher

MANIFEST_KEY = b"manifest"
READ_TIMEOUT = 30.0
_TEACHER, _REMOVED = b"teacher/", b"removed/"

Unreadable = ManifestMismatch | DecodeError | NotAuthorized
"""Why one stream cannot be read, while others can."""


@dataclass(frozen=True, slots=True)
class ManifestLog:
    """What the manifest topic says."""

    manifest: Manifest | None
    """None: the topic exists, but nothing was written yet"""
    teachers: dict[str, Teacher]
    """by name, in the order in which they were added; without those that were removed"""
    removed: frozenset[str] = frozenset()
    """names of teachers that were removed: they are used no more"""
    unread: Mapping[str, NeedsNewer] = field(default_factory=dict)
    """the other teachers that were added, by name, and why their records cannot be read"""


def teacher_key(name: str) -> bytes:
    """Key of a teacher's record."""
    return _TEACHER + name.encode()


def removed_key(name: str) -> bytes:
    """Key of the record that takes a teacher out of the stream: its own record, once more."""
    return _REMOVED + name.encode()


def read_manifest_log(settings: KafkaSettings, stream: str) -> ManifestLog:
    """Read the whole manifest topic; the topic must exist.

    Raises:
        BrokerUnavailable: the topic could not be read to its end within 30 s.
        NotAuthorized: the topic may not be read.
        ManifestMismatch: a newer Distillog made the stream, in schemas that this one does not know.
        DecodeError: a record of it is not what its key says, other than a newer Distillog's teacher.
    """
    log = read_manifest_logs(settings, [stream])[stream]
    if not isinstance(log, ManifestLog):
        raise log
    return log


def read_manifest_logs(settings: KafkaSettings, streams: Iterable[str]) -> dict[str, ManifestLog | Unreadable]:
    """Read several manifest topics with one client; a stream that cannot be read has the error in its place.

    Raises:
        BrokerUnavailable: as `read_manifest_log`.
    """
    logs: dict[str, ManifestLog | Unreadable] = {}
    with closing(KafkaCluster(settings).reader()) as reader:
        for stream in streams:
            try:
                logs[stream] = _read(reader, stream)
            except (ManifestMismatch, DecodeError, NotAuthorized) as error:
                logs[stream] = error
    return logs


def _read(reader: Reader, stream: str) -> ManifestLog:
    manifest: Manifest | None = None
    added: dict[str, Teacher | NeedsNewer] = {}
    removed: set[str] = set()
    for key, value, address in _all_records(reader, TopicPartition(manifest_topic(stream), 0)):
        if key == MANIFEST_KEY:
            manifest = manifest or decode_manifest(stream, value, address)
        elif key.startswith((_TEACHER, _REMOVED)):
            teacher = _teacher(value, address)
            if not manifest or (isinstance(teacher, Teacher) and teacher.stream_id != manifest.stream_id):
                continue
            name = teacher.name if isinstance(teacher, Teacher) else key.partition(b"/")[2].decode(errors="replace")
            if key.startswith(_REMOVED):
                removed.add(name)
            else:
                added.setdefault(name, teacher)
    there = {name: one for name, one in added.items() if name not in removed}
    teachers = {name: one for name, one in there.items() if isinstance(one, Teacher)}
    unread = {name: one for name, one in there.items() if isinstance(one, NeedsNewer)}
    return ManifestLog(manifest, teachers, frozenset(removed), unread)


def _teacher(value: bytes, address: str) -> Teacher | NeedsNewer:
    """Decode a teacher; one that needs a newer Distillog is no reason not to use the others."""
    try:
        return Teacher.decode(value, address)
    except NeedsNewer as error:
        return error


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
        NotAuthorized: the topic may not be written.
    """
    topic = manifest_topic(stream)
    producer = new_producer(settings)
    try:
        with kafka_errors(f"writing the manifest of {stream!r}", settings), needing(Right("WRITE", "topic", topic)):
            producer.send(topic, key=key, value=value, partition=0).get(timeout=READ_TIMEOUT)
    finally:
        close_producer(producer, timeout=5)
