"""The stream that captured soft targets are copied into: made, or found to be the one that an earlier copying made."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.captured.folder import CapturedFolder, TeacherFiles
from pipeline.create import check_topics, make_topics, refuse_other_teacher, write_teacher
from pipeline.generations import copy_lineage
from pipeline.heads import publish_heads
from pipeline.kafka.clients import admin_client
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import MANIFEST_KEY, append, read_manifest_log
from pipeline.names import manifest_topic
from pipeline.streams import Stream, open_stream
from pipeline.topic_settings import KEEP_FOR_EVER
from schemas.avro import REGISTRY
from schemas.errors import ConfigError, StreamConflict
from schemas.names import check_name
from schemas.records import Manifest, Origin, Teacher


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """What a user may choose of the stream that is made."""

    partitions: int | None = None
    """None: as many as the stream has that is there, else as the captured one had."""
    retention_ms: int = KEEP_FOR_EVER
    replication_factor: int = -1
    """-1: the cluster's default"""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The stream that is copied into."""

    stream: Stream
    new: bool
    """Whether this call wrote its manifest."""
    files: Mapping[str, TeacherFiles]
    """By teacher; each has a topic in the stream."""


def open_files(folder: CapturedFolder) -> dict[str, TeacherFiles]:
    """Open what a folder holds, by teacher.

    Raises:
        ConfigError: it holds no teacher.
        DecodeError, ManifestMismatch: as `TeacherFiles`.
    """
    if not folder.contents.teachers:
        raise ConfigError(f"{folder.path}: holds no soft targets of any teacher, so there is nothing to replay")
    return {name: folder.teacher(name) for name in folder.contents.teachers}


def open_target(settings: KafkaSettings, name: str, folder: CapturedFolder, options: ReplayOptions) -> Target:
    """Make a stream for a folder's soft targets, with its teachers, or go on with the one that was made for them.

    It is what the captured one is, in all but its name, its ID, its partitions, and that it says whose labels it has.
    The manifest is written before any label, so that students may follow.

    Raises:
        StreamConflict: a stream of that name exists, and is no replay of this folder's; or it has other partitions
            than were asked for, or a teacher that was removed, or another one of a name.
        ConfigError: an option is out of its range; or as `open_files`.
        RecordTooLarge, NotAuthorized, BrokerUnavailable: as `create_stream`.
        DecodeError, ManifestMismatch: as `open_files`.
    """
    check_name("stream", name)
    files = open_files(folder)
    source = next(iter(files.values())).manifest
    check_topics(source.partitions if options.partitions is None else options.partitions, options.replication_factor)
    manifest = _manifest(name, source, folder.contents.manifest_sha256, options.partitions)
    record = manifest.encode()  # before any topic is made: it refuses what cannot be written
    with admin_client(settings) as admin, kafka_errors(f"making stream {name!r}", settings):
        there = read_manifest_log(settings, name).manifest if manifest_topic(name) in admin.list_topics() else None
        if there is None:
            make_topics(admin, manifest, options.retention_ms, options.replication_factor)
    if there is None:
        append(settings, name, MANIFEST_KEY, record)
    stream = open_stream(settings, name)  # another one may have been first
    _refuse_other(stream.manifest, manifest, options)
    for each in files.values():
        _copy_teacher(settings, stream, each)
    return Target(open_stream(settings, name), stream.manifest.stream_id == manifest.stream_id, files)


def _manifest(name: str, source: Manifest, sha256: str, partitions: int | None) -> Manifest:
    origin = Origin(source.stream, source.stream_id, sha256)
    # Its records are as they were, and keep their versions; whose labels they are, only the newest manifest can say.
    pinned = {**source.schema_fingerprints, "manifest": REGISTRY.fingerprint("manifest").hex()}
    return replace(
        source,
        stream=name,
        stream_id=secrets.token_hex(8),
        partitions=source.partitions if partitions is None else partitions,
        schema_fingerprints=pinned,
        replay_of=(origin, *source.replay_of),
    )


def _refuse_other(there: Manifest, made: Manifest, options: ReplayOptions) -> None:
    """Raise StreamConflict where a stream is not what would be made now."""
    name, origin = there.stream, made.replay_of[0]
    ways = f"give another name, or remove it with all its labels first: `distillog topics delete {name}`"
    if [each.stream_id for each in there.replay_of] != [each.stream_id for each in made.replay_of]:
        is_ = f"a replay of {there.replay_of[0]}" if there.replay_of else "no replay"
        raise StreamConflict(f"stream {name!r} exists and is {is_}, and these are labels of {origin}; {ways}")
    if options.partitions not in (None, there.partitions):
        raise StreamConflict(
            f"stream {name!r} is this replay's and has {there.partitions} partitions, asked are {options.partitions}; "
            f"leave --partitions out to go on, or {ways}"
        )
    made = replace(made, stream_id=there.stream_id, partitions=there.partitions)
    texts = [REGISTRY.decode("manifest", each.encode(), name) for each in (there, made)]
    # A newer Distillog that goes on writes its records in the versions with which the stream was begun.
    unlike = [key for key, value in texts[0].items() if key != "schema_fingerprints" and texts[1][key] != value]
    if unlike:
        raise StreamConflict(f"stream {name!r} is a replay of {origin}, and differs in {', '.join(unlike)}; {ways}")


def _copy_teacher(settings: KafkaSettings, stream: Stream, files: TeacherFiles) -> None:
    """Add a captured teacher, unless it is there.

    What its codec keeps once for the whole stream, in a topic and a captured file of its own, is copied here, before
    the record: whoever sees the teacher may count on it. Its generations come behind the record, before any label.
    """
    name, teacher = stream.manifest.stream, _of(stream.manifest, files.teacher)
    if teacher.name in stream.removed:
        raise StreamConflict(
            f"teacher {teacher.name!r} was removed from stream {name!r}, and its name is not used again; replay under "
            "another name of the stream"
        )
    if teacher.name in stream.unread:
        raise stream.unread[teacher.name]
    if teacher.name in stream.teachers:
        refuse_other_teacher(teacher, stream.teachers[teacher.name])
    if teacher.heads:
        publish_heads(settings, stream.manifest, teacher, files.heads().values())
    if teacher.name not in stream.teachers:
        write_teacher(settings, stream, teacher)
    copy_lineage(settings, name, files.lineage)


def _of(manifest: Manifest, teacher: Teacher) -> Teacher:
    return replace(teacher, stream_id=manifest.stream_id)
