"""Taking a teacher out of a stream: its labels go, and its name is never used again."""

from __future__ import annotations

import time

from pipeline.kafka.clients import admin_client
from pipeline.kafka.coordinator import ask_coordinator, delete_groups, describe_groups
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.needs import Right, describing_groups, needing
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import append, removed_key
from pipeline.names import heads_topic, soft_targets_topic, teacher_group
from pipeline.streams import Stream
from pipeline.wait import Deadline
from schemas.errors import StreamConflict


def remove_teacher(settings: KafkaSettings, stream: Stream, name: str) -> None:
    """Write that a teacher is removed, then delete its group's commits and its topics.

    In this order: from the record on no worker and no run begins with it, and a call that is cut short is completed by
    the same call. A worker that began just before keeps the group from being deleted; one that comes later finds no
    topic, and whatever it still writes belongs to a name that nobody reads.

    Raises:
        StreamNotFound: no such teacher, or nothing is left of it.
        StreamConflict: its group has members, or cannot be deleted.
        NotAuthorized: its group or its topic may not be seen or deleted.
    """
    manifest = stream.manifest
    group = teacher_group(manifest, name)
    topics = heads_topic(manifest.stream, name), soft_targets_topic(manifest.stream, name)
    in_use = StreamConflict(
        f"group {group} has members: stop all workers of teacher {name!r}, then remove it "
        "(a killed worker counts until its session ends, some seconds later)"
    )
    with admin_client(settings) as admin, kafka_errors(f"removing teacher {name!r}", settings):
        if name not in stream.unread and not (name in stream.removed and set(topics) & set(admin.list_topics())):
            stream.teacher(name)
        with needing(*describing_groups([group])):
            members = ask_coordinator(lambda: describe_groups(admin, [group]))[group]["members"]
        if members:
            raise in_use
        if name in stream.teachers:
            record = stream.teachers[name].encode(manifest.schema_fingerprints)
            append(settings, manifest.stream, removed_key(name), record)
        elif name in stream.unread:
            append(settings, manifest.stream, removed_key(name), stream.unread[name].raw)
        answer = delete_groups(admin, [group])[group]
        if answer == "NonEmptyGroupError":
            raise in_use  # one joined meanwhile
        if answer not in ("OK", "GroupIdNotFoundError"):
            raise StreamConflict(f"group {group} cannot be deleted ({answer}); give the same command again")
        there = admin.list_topics()
        for topic in [each for each in topics if each in there]:
            with needing(Right("DELETE", "topic", topic)):
                admin.delete_topics([topic])
        # Brokers answer before they have forgotten.
        gone_by = Deadline(10.0)
        while not gone_by.over and set(topics) & set(admin.list_topics()):
            time.sleep(0.02)
