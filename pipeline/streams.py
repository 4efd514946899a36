"""Streams that exist: open, list, delete, and notice when one is taken away under a running process."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from pipeline.kafka.clients import admin_client
from pipeline.kafka.coordinator import ask_coordinator, delete_groups
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Cluster
from pipeline.kafka.needs import Right, needing, refuse_hidden
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds import exploding_batches
from pipeline.manifest_log import ManifestLog, read_manifest_log
from pipeline.names import (
    belongs_to,
    dead_letters_topic,
    group_prefix,
    head_teacher_of,
    manifest_topic,
    stream_of_manifest_topic,
    teacher_of,
)
from pipeline.record_size import teacher_record_bytes
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, NeedsNewer, StreamChanged, StreamNotFound
from schemas.names import did_you_mean
from schemas.records import Lineage, Manifest, Teacher

log = logging.getLogger(__name__)

SILENCE = 10.0
"""Seconds without an answer after which a process says what it waits for; again after twice as long, and so on."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as its manifest topic describes it."""

    manifest: Manifest
    teachers: dict[str, Teacher]
    removed: frozenset[str] = frozenset()
    """Names of teachers that were removed."""
    unread: Mapping[str, NeedsNewer] = field(default_factory=dict)
    """Teachers that only a newer Distillog can use, by name, and what is in the way."""
    lineages: Mapping[str, Lineage] = field(default_factory=dict)
    """Of the teachers, by name; one that is not here stays what its record says."""

    @classmethod
    def of(cls, log: ManifestLog) -> Self | None:
        """Return what a manifest topic describes; None: nothing yet."""
        if log.manifest is None:
            return None
        return cls(log.manifest, log.teachers, log.removed, log.unread, log.lineages)

    def lineage(self, name: str) -> Lineage:
        """Look up a teacher through its generations; raises as `teacher`."""
        teacher = self.teacher(name)
        return self.lineages.get(name) or Lineage(teacher)

    def teacher(self, name: str) -> Teacher:
        """Look up a teacher.

        Raises:
            StreamNotFound: no teacher of that name was added, or it was removed.
            NeedsNewer: only a newer Distillog can use it.
        """
        if name in self.unread:
            raise self.unread[name]
        there = ", ".join([*self.teachers, *self.unread]) or "none"
        if name in self.removed:
            raise StreamNotFound(
                f"teacher {name!r} was removed from stream {self.manifest.stream!r}, and its labels with it (there: "
                f"{there}); workers and runs have to name another one"
            )
        if name not in self.teachers:
            raise StreamNotFound(
                f"stream {self.manifest.stream!r} has no teacher {name!r} (there: {there}); "
                f"add it with `distillog topics add-teacher {self.manifest.stream} {name} MODEL.onnx`"
            )
        return self.teachers[name]


def open_stream(settings: KafkaSettings, name: str) -> Stream:
    """Read what a stream is, and let this process read its records, however they are packed.

    Raises:
        StreamNotFound: no such stream, or one whose creation was cut short.
        NotAuthorized: it may not be seen, or not be read.
        ManifestMismatch: a newer Distillog made it, in schemas that this one does not know.
        DecodeError: its manifest topic holds a record that is not what its key says.
        BrokerUnavailable: no answer from Kafka.
    """
    with admin_client(settings) as admin, kafka_errors(f"opening stream {name!r}", settings):
        topics = admin.list_topics()
        if manifest_topic(name) not in topics:
            refuse_hidden(admin, [manifest_topic(name)])
    if manifest_topic(name) not in topics:
        streams = filter(None, map(stream_of_manifest_topic, topics))
        if any(belongs_to(topic, name) for topic in topics):
            raise StreamNotFound(f"stream {name!r}: {topic_missing(manifest_topic(name))}")
        hint, where = did_you_mean(name, streams), settings.bootstrap_servers
        raise StreamNotFound(f"no stream {name!r} at {where} ({hint}); see `distillog topics list`")
    log = read_manifest_log(settings, name)
    stream = Stream.of(log)
    if stream is None:
        raise StreamNotFound(f"stream {name!r} has no manifest: its creation was cut short; run the same create again")
    of_teachers = (teacher_record_bytes(stream.manifest, teacher) for teacher in stream.teachers.values())
    exploding_batches.leave_room(max([stream.manifest.max_record_bytes, *of_teachers]))
    return stream


def list_streams(settings: KafkaSettings) -> list[str]:
    """Names of all streams of the cluster, sorted."""
    with admin_client(settings) as admin, kafka_errors("listing the topics", settings):
        return sorted(filter(None, map(stream_of_manifest_topic, admin.list_topics())))


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a delete removed, and what it could not."""

    topics: list[str]
    groups: list[str]
    groups_in_use: list[str]
    """they still have members; their names carry the old stream's ID, so nothing inherits their offsets"""


def delete_stream(settings: KafkaSettings, name: str) -> Deleted:
    """Remove a stream's topics and consumer groups, whole or half made.

    Raises:
        StreamNotFound: nothing of that name is there.
        NotAuthorized: a topic or a group may not be deleted; those before it are.
    """
    with admin_client(settings) as admin, kafka_errors(f"deleting stream {name!r}", settings):
        topics = sorted(topic for topic in admin.list_topics() if belongs_to(topic, name))
        listed = ask_coordinator(admin.list_groups)
        groups = sorted(g["group_id"] for g in listed if g["group_id"].startswith(group_prefix(name)))
        if not topics:
            refuse_hidden(admin, [manifest_topic(name)])
        if not topics and not groups:
            raise StreamNotFound(f"no stream {name!r} at {settings.bootstrap_servers}; see `distillog topics list`")
        # The manifest goes last: what is left of a delete that was cut short is still listed, and can be deleted.
        for topic in sorted(topics, key=lambda topic: topic == manifest_topic(name)):
            with needing(Right("DELETE", "topic", topic)):
                admin.delete_topics([topic])
        # Brokers answer before they have forgotten; whoever looks at once should not find half a stream.
        gone_by = Deadline(10.0)
        while not gone_by.over and any(belongs_to(topic, name) for topic in admin.list_topics()):
            time.sleep(0.02)
        results = delete_groups(admin, groups)
    gone = [g for g in groups if results[g] in ("OK", "GroupIdNotFoundError")]
    return Deleted(topics, gone, sorted(set(groups) - set(gone)))


def topic_missing(topic: str) -> str:
    """What is said of a stream that lacks one of its topics."""
    return f"topic {topic} does not exist, somebody deleted it; {_repair(topic)}"


def _repair(topic: str) -> str:
    stream = topic.partition(".")[0]  # no stream's name has a dot
    if topic == dead_letters_topic(stream):
        return "run the same `distillog topics create` again, which makes it"
    if teacher := head_teacher_of(topic):
        return f"give the same `distillog topics add-teacher {stream} {teacher} MODEL.onnx` again, which makes it"
    if teacher := teacher_of(topic):
        return (
            f"what it held is lost: remove its teacher, unless somebody did, with `distillog topics remove-teacher "
            f"{stream} {teacher}`, and add it again under another name"
        )
    return f"what it held is lost: remove what is left with `distillog topics delete {stream}`, and make it again"


class TopicGuard:
    """Notices that a topic was deleted or made again: kafka-python reads on in a new topic without a word.

    Call `check` often: it asks the cluster at most every `interval` seconds. It is also what gives up on a cluster that
    does not answer for `patience` seconds, since a poll without records looks the same with and without a broker.
    """

    def __init__(self, cluster: Cluster, topics: Iterable[str], interval: float = 5.0, patience: float = 300.0) -> None:
        self._topics = sorted(topics)
        self._interval = interval
        self._patience = patience
        # A short patience: the thread that asks has more to do.
        self._admin = cluster.admin(patience=5.0)
        try:
            self._first = self._admin.identities(self._topics)
            missing = [topic for topic, identity in self._first.items() if identity is None]
            if missing:
                raise StreamChanged(topic_missing(missing[0]))
        except BaseException:
            self._admin.close()
            raise
        self._asked = self._answered = time.monotonic()
        self._warn_at = SILENCE

    def num_partitions(self, topic: str) -> int:
        """Partitions that the topic had at the start."""
        identity = self._first[topic]
        assert identity is not None  # the constructor refused a missing topic
        return identity.partitions

    def check(self, *, now: bool = False) -> None:
        """Compare topic IDs and partition counts with those of the start.

        Raises:
            StreamChanged: a topic is gone, another one, or has another number of partitions.
            NotAuthorized: one may not be seen any more.
            BrokerUnavailable: no answer for `patience` seconds.
        """
        if not now and time.monotonic() - self._asked < self._interval:
            return
        self._asked = time.monotonic()
        try:
            identities = self._admin.identities(self._topics)
        except BrokerUnavailable as error:
            silent = time.monotonic() - self._answered
            if silent > self._patience:
                raise BrokerUnavailable(f"{error}; silent for {silent:.0f} s, giving up") from None
            if silent >= self._warn_at:
                self._warn_at = 2 * silent
                log.warning("%s; silent for %.0f s, waiting up to %.0f s for it", error, silent, self._patience)
            return  # a broker that is away says nothing about its topics
        self._answered = time.monotonic()
        self._warn_at = SILENCE
        if len(self._topics) > 1 and not any(identities.values()):
            stream = self._topics[0].partition(".")[0]
            raise StreamChanged(f"stream {stream} was deleted while this process used it: none of its topics is there")
        for topic, first in self._first.items():
            there = identities[topic]
            if there is None:
                raise StreamChanged(f"topic {topic} was deleted while this process used it; {_repair(topic)}")
            if first is None or there.topic_id != first.topic_id:
                raise StreamChanged(f"topic {topic} was deleted and made again while this process used it; start anew")
            if there != first:
                raise StreamChanged(
                    f"topic {topic} has {there.partitions} partitions now; the sequence needs the number that it began "
                    "with"
                )

    def close(self) -> None:
        """Close the guard's client."""
        self._admin.close()
