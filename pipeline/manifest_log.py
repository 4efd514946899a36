"""The topic that says what a stream is: its manifest, its teachers, and the generations of those that move.

The topic is not compacted and has one partition: the first record of a key wins, so two writers at once cannot
overwrite each other; the second one reads the first one's record back and compares. Nothing is taken back either: a
teacher's removal is one more record, which holds wherever it stands. Who publishes for a teacher has a record, and each
generation, too; those are read by the reader's rule, so that whoever has read less knows the first ones of those that
others know.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from kafka import TopicPartition

from pipeline.kafka.clients import new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Cluster, Reader
from pipeline.kafka.needs import Right, needing
from pipeline.kafka.reading import read_to_end
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.manifest_record import decode_manifest
from pipeline.names import address_of, manifest_topic
from schemas.avro import REGISTRY
from schemas.errors import DecodeError, ManifestMismatch, NeedsNewer, NotAuthorized, StreamChanged
from schemas.generation import follows
from schemas.records import Generation, Lineage, Manifest, Publisher, Teacher

log = logging.getLogger(__name__)

MANIFEST_KEY = b"manifest"
READ_TIMEOUT = 30.0
_TEACHER, _REMOVED, _PUBLISHER, _GENERATION = b"teacher/", b"removed/", b"publisher/", b"generation/"

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
    lineages: Mapping[str, Lineage] = field(default_factory=dict)
    """of `teachers`, by name: who publishes for each, and its generations"""


def teacher_key(name: str) -> bytes:
    """Key of a teacher's record."""
    return _TEACHER + name.encode()


def removed_key(name: str) -> bytes:
    """Key of the record that takes a teacher out of the stream: its own record, once more."""
    return _REMOVED + name.encode()


def publisher_key(teacher: str) -> bytes:
    """Key of the record that says which run publishes for a teacher."""
    return _PUBLISHER + teacher.encode()


def generation_key(teacher: str, number: int) -> bytes:
    """Key of the record of a teacher's generation."""
    return _GENERATION + f"{teacher}/{number}".encode()


def holds_generations(manifest: Manifest) -> bool:
    """Whether a stream's labels can say of which generation they are: those of streams made before cannot."""
    return REGISTRY.version("soft_targets", manifest.schema_fingerprints) > 1


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
    fold = ManifestFold(stream)
    for key, value, address in _all_records(reader, TopicPartition(manifest_topic(stream), 0)):
        fold.take(key, value, address)
    return fold.log()


class ManifestFold:
    """What the records of a manifest topic say together, taken one by one, in the order in which they lie there."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._manifest: Manifest | None = None
        self._added: dict[str, Teacher | NeedsNewer] = {}
        self._removed: set[str] = set()
        self._publishers: dict[str, Publisher] = {}
        self._generations: dict[str, list[Generation]] = {}
        self._dropped = 0

    def take(self, key: bytes, value: bytes, address: str) -> None:
        """Take the next record; raises ManifestMismatch and DecodeError as `read_manifest_log`."""
        if key == MANIFEST_KEY:
            self._manifest = self._manifest or decode_manifest(self._stream, value, address)
        elif key.startswith((_TEACHER, _REMOVED)):
            self._take_teacher(key, value, address)
        elif key.startswith((_PUBLISHER, _GENERATION)) and self._manifest and holds_generations(self._manifest):
            try:
                self._take_generation(key, value, address, self._manifest)
            except DecodeError as error:
                # A forged record may not end every reader: what it hides is missed where a label names it.
                self._dropped += 1
                level = logging.WARNING if self._dropped == 1 else logging.DEBUG
                log.log(level, "dropped a record of a generation (further ones are dropped alike): %s", error)

    def log(self) -> ManifestLog:
        """Return what they say so far."""
        there = {name: one for name, one in self._added.items() if name not in self._removed}
        teachers = {name: one for name, one in there.items() if isinstance(one, Teacher)}
        unread = {name: one for name, one in there.items() if isinstance(one, NeedsNewer)}
        lineages = {
            name: Lineage(one, self._publishers.get(name), tuple(self._generations.get(name, ())))
            for name, one in teachers.items()
        }
        return ManifestLog(self._manifest, teachers, frozenset(self._removed), unread, lineages)

    def _take_teacher(self, key: bytes, value: bytes, address: str) -> None:
        teacher = _teacher(value, address)
        if not self._manifest or (isinstance(teacher, Teacher) and teacher.stream_id != self._manifest.stream_id):
            return
        name = teacher.name if isinstance(teacher, Teacher) else key.partition(b"/")[2].decode(errors="replace")
        if key.startswith(_REMOVED):
            self._removed.add(name)
        else:
            self._added.setdefault(name, teacher)

    def _take_generation(self, key: bytes, value: bytes, address: str, manifest: Manifest) -> None:
        if key.startswith(_PUBLISHER):
            publisher = Publisher.decode(value, address)
            if publisher.stream_id == manifest.stream_id and key == publisher_key(publisher.teacher):
                self._publishers.setdefault(publisher.teacher, publisher)
            return
        generation = Generation.decode(value, address)
        name = generation.teacher
        before = self._generations.setdefault(name, [])
        if key == generation_key(name, generation.number) and follows(
            self._publishers.get(name), len(before), generation
        ):
            before.append(generation)


class ManifestFollower:
    """Reads on in a stream's manifest topic; used by one thread, of which no call may be cut short.

    It begins where it was never, at the topic's beginning: what is there already is read at the first call.
    """

    def __init__(self, cluster: Cluster, manifest: Manifest) -> None:
        """No client is made before the first call; `manifest` is of the stream that is expected there."""
        self._cluster, self._manifest = cluster, manifest
        self._fold = ManifestFold(manifest.stream)
        self._partition = TopicPartition(manifest_topic(manifest.stream), 0)
        self._reader: Reader | None = None
        self._position: int | None = None

    def read(self, timeout: float = READ_TIMEOUT) -> ManifestLog:
        """Read what was written until now, and return what all of it says.

        So whatever was acknowledged before the call is in it, the generations of all labels that were read before
        among it. A call that fails is repeated by the next one.

        Raises:
            BrokerUnavailable: it was not read to its end in so many seconds.
            StreamChanged: the stream was deleted, or deleted and made again.
            NotAuthorized: the topic may not be read.
            ManifestMismatch, DecodeError: as `read_manifest_log`.
        """
        if self._reader is None:
            self._reader = self._cluster.reader()
        if self._position is None:
            self._position = self._reader.begins([self._partition])[self._partition]
        for record in read_to_end(self._reader, self._partition, self._position, timeout):
            self._fold.take(record.key or b"", record.value or b"", address_of(record))
            self._position = record.offset + 1
        log, name = self._fold.log(), self._manifest.stream
        if log.manifest is None or log.manifest.stream_id != self._manifest.stream_id:
            raise StreamChanged(f"stream {name!r} was deleted, or deleted and made again; stop, and see what there is")
        return log

    def close(self) -> None:
        """Close its client."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None


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
    """Write one record to the manifest topic and wait until it is acknowledged; raises as `append_all`."""
    append_all(settings, stream, [(key, value)])


def append_all(settings: KafkaSettings, stream: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Write records, of key and value, to the manifest topic, each once the one before it is acknowledged.

    Raises:
        BrokerUnavailable: one was not acknowledged within 30 s.
        NotAuthorized: the topic may not be written.
    """
    topic = manifest_topic(stream)
    producer = new_producer(settings)
    try:
        with kafka_errors(f"writing the manifest of {stream!r}", settings), needing(Right("WRITE", "topic", topic)):
            for key, value in records:
                producer.send(topic, key=key, value=value, partition=0).get(timeout=READ_TIMEOUT)
    finally:
        close_producer(producer, timeout=5)
