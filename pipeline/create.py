"""Making a stream, and adding a teacher to it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace

from kafka import KafkaAdminClient

from pipeline.datasets.base import may_have, once_readable
from pipeline.datasets.fingerprint import fingerprint
from pipeline.datasets.uri import differ_in_place
from pipeline.heads import publish_heads
from pipeline.kafka.clients import admin_client
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import MANIFEST_KEY, append, read_manifest_log, teacher_key
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, work_orders_topic
from pipeline.record_size import RECORD_OVERHEAD, OutputSize, orders_that_fit, record_bytes, refuse_large_records
from pipeline.sequence import Sequence
from pipeline.streams import Stream, open_stream
from pipeline.topic_settings import (
    DEFAULT_MAX_MESSAGE,
    KEEP_FOR_EVER,
    cluster_settings,
    inherited_settings,
    make_topic,
    num_copies,
    stream_settings,
)
from pipeline.views import max_positions
from pipeline.views.fetch import Fetcher
from pipeline.views.probe import make_probe
from schemas.avro import REGISTRY
from schemas.codecs import CodecSpec
from schemas.errors import ConfigError, RecordTooLarge, StreamConflict
from schemas.names import check_name
from schemas.records import Manifest, Teacher

DEFAULT_PARTITIONS = 64
MAX_PARTITIONS = 256
"""Each costs the broker files and every commit an entry; more unequal workers than this serves, no group has."""

_UNKNOWN_BYTES = 1 << 20
"""of the largest record of a stream whose class count is not known: some 2,000 classes of 256 samples as float16"""

MAX_COPIES = (1 << 15) - 1
"""what Kafka's protocol can ask for"""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What a user may choose when a stream is made."""

    order_size: int = 256
    """samples per work order"""
    epochs: int = 1
    seed: int = 0
    partitions: int = DEFAULT_PARTITIONS
    codec: CodecSpec = field(default_factory=lambda: CodecSpec("float16"))
    num_classes: int = 0
    """0: as many as the dataset says"""
    retention_ms: int = KEEP_FOR_EVER
    replication_factor: int = -1
    """-1: the cluster's default"""


def create_stream(
    settings: KafkaSettings, name: str, fetcher: Fetcher, dataset_uri: str, options: StreamOptions
) -> tuple[Stream, bool]:
    """Make a stream's topics and write its manifest; the same call again changes nothing.

    The manifest is written last: a creation that is cut short leaves a stream that cannot be opened, and the same call
    completes it. It also makes a topic of dead letters that somebody deleted: what it held is lost, and nobody waits
    for that.

    Returns:
        The stream, and whether this call made it.

    Raises:
        ConfigError: an option is out of its range, or more copies are wanted than there are brokers.
        NotAuthorized: a topic may not be made, seen or written.
        RecordTooLarge: an order's soft targets would not fit into a record of this cluster.
        StreamConflict: a stream of that name exists with other settings; the difference is shown.
    """
    check_name("stream", name)
    copies = options.replication_factor
    check_topics(options.partitions, copies)
    manifest = _manifest(name, fetcher, dataset_uri, options)
    record = manifest.encode()  # before any topic is made: it refuses what cannot be written
    with admin_client(settings) as admin, kafka_errors(f"creating stream {name!r}", settings):
        topics = admin.list_topics()
        if manifest_topic(name) in topics and (stream := Stream.of(read_manifest_log(settings, name))):
            pinned = stream.manifest.dataset_fingerprint
            if pinned != manifest.dataset_fingerprint:  # perhaps by another algorithm
                manifest = replace(manifest, dataset_fingerprint=fingerprint(fetcher.dataset, like=pinned))
            _refuse_difference(manifest, stream.manifest)
            if dead_letters_topic(name) not in topics:
                _make_like_orders(admin, dead_letters_topic(name), 1, work_orders_topic(name))
            return stream, False
        make_topics(admin, manifest, options.retention_ms, copies)
    append(settings, name, MANIFEST_KEY, record)
    stream = open_stream(settings, name)  # another creator may have been first
    _refuse_difference(manifest, stream.manifest)
    return stream, stream.manifest.stream_id == manifest.stream_id


def check_topics(partitions: int, copies: int) -> None:
    """Raise ConfigError for numbers of partitions, or of copies (-1: the cluster's own), that no stream can have."""
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise ConfigError(f"--partitions must be between 1 and {MAX_PARTITIONS}, not {partitions}")
    if copies != -1 and not 1 <= copies <= MAX_COPIES:
        raise ConfigError(
            f"--replication-factor {copies}: give 1 to {MAX_COPIES}, or leave it out for the cluster's own"
        )


def make_topics(admin: KafkaAdminClient, manifest: Manifest, retention_ms: int, copies: int) -> None:
    """Make the topics of a stream without teachers, or accept those that are there; its manifest is written after.

    Raises:
        RecordTooLarge: an order's soft targets would not fit into a record of this cluster.
        StreamConflict, ConfigError, Refused: as `make_topic`.
    """
    name, cluster = manifest.stream, cluster_settings(admin)
    _check_record_size(manifest, int(cluster.get("message.max.bytes", DEFAULT_MAX_MESSAGE)))
    configs = stream_settings(cluster, retention_ms, manifest.max_record_bytes, copies)
    # Retention for ever holds for the manifest whatever is asked for the data: without it nothing can be read.
    make_topic(admin, manifest_topic(name), 1, copies, {**configs, "retention.ms": str(KEEP_FOR_EVER)})
    make_topic(admin, work_orders_topic(name), manifest.partitions, copies, configs)
    make_topic(admin, dead_letters_topic(name), 1, copies, configs)


def is_new(stream: Stream, teacher: Teacher) -> bool:
    """Return whether a teacher that fits a stream is still to be added to it.

    Raises:
        EncodeError: the stream was made by a Distillog whose records cannot hold all that is declared.
        NeedsNewer: a newer Distillog added one of that name.
        StreamConflict, ConfigError, RecordTooLarge: as `add_teacher`.
    """
    manifest = stream.manifest
    if teacher.name in stream.removed:
        raise StreamConflict(
            f"a teacher {teacher.name!r} was removed from stream {manifest.stream!r}: its name is not used again, so "
            "that no label of the one is taken for the other's; give another name"
        )
    if teacher.name in stream.unread:
        raise stream.unread[teacher.name]
    classes = teacher.class_output
    num_classes = classes.num_classes if classes and not classes.class_map else 0
    if manifest.num_classes and num_classes not in (0, manifest.num_classes):
        raise StreamConflict(
            f"teacher {teacher.name!r} has {num_classes} classes, "
            f"stream {manifest.stream!r} has {manifest.num_classes}; if these were counted from labels, and there are "
            f"more, create a stream with --classes {num_classes}"
        )
    for output in teacher.outputs:
        output.refuse_codec(output.stored_as(manifest.codec))
        if output is classes and manifest.num_classes and max(output.classes, default=0) >= manifest.num_classes:
            raise StreamConflict(
                f"teacher {teacher.name!r}: the class map of {output.name} has class {max(output.classes)}, stream "
                f"{manifest.stream!r} has {manifest.num_classes}, from 0 on"
            )
    if teacher.name in stream.teachers:
        refuse_other_teacher(teacher, stream.teachers[teacher.name])
        return False
    refuse_large_records(manifest, teacher, max_positions(manifest.view))
    teacher.encode(manifest.schema_fingerprints)  # refuses what an older stream cannot hold
    return True


def add_teacher(settings: KafkaSettings, stream: Stream, teacher: Teacher, layers: Collection[bytes] = ()) -> bool:
    """Make the teacher's topics and write its record; the same call again changes nothing.

    It brings back the last layers where somebody deleted them, though. They are written before the teacher's record.

    Args:
        settings: the cluster.
        stream: as it is.
        teacher: its record.
        layers: the bytes of the last layers that its outputs by the codec head need.

    Returns:
        Whether this call added it.

    Raises:
        StreamConflict: a teacher of that name exists with another model or another declaration, or its class count is
            not the stream's; or one of that name was removed.
        ConfigError: its classes do not fit the codec.
        NotAuthorized: its topic may not be made, or how long the stream's topics keep records may not be read.
        RecordTooLarge: its soft targets would not fit into a record of the stream.
        EncodeError, NeedsNewer: as `is_new`.
    """
    new, manifest = is_new(stream, teacher), stream.manifest
    if layers:
        publish_heads(settings, manifest, teacher, layers)
    if not new:
        return False
    write_teacher(settings, stream, teacher)
    return True


def write_teacher(settings: KafkaSettings, stream: Stream, teacher: Teacher) -> None:
    """Make the topic and write the record of a teacher that was found to be new; raises as `add_teacher`."""
    manifest = stream.manifest
    with admin_client(settings) as admin, kafka_errors(f"adding teacher {teacher.name!r}", settings):
        topic = soft_targets_topic(manifest.stream, teacher.name)
        _make_like_orders(admin, topic, manifest.partitions, work_orders_topic(manifest.stream))
    append(settings, manifest.stream, teacher_key(teacher.name), teacher.encode(manifest.schema_fingerprints))
    refuse_other_teacher(teacher, open_stream(settings, manifest.stream).teacher(teacher.name))


def _make_like_orders(admin: KafkaAdminClient, topic: str, partitions: int, orders: str) -> None:
    """Make a topic that keeps records as long, and in as many copies, as the work orders' does."""
    make_topic(admin, topic, partitions, num_copies(admin, orders), inherited_settings(admin, orders))


def _manifest(name: str, fetcher: Fetcher, dataset_uri: str, options: StreamOptions) -> Manifest:
    dataset = fetcher.dataset
    num_classes = options.num_classes or dataset.num_classes
    if not may_have(dataset, num_classes):
        raise ConfigError(f"--classes {num_classes}: dataset {dataset_uri} has {dataset.num_classes} classes")
    if options.codec.of_hidden:
        raise ConfigError(
            "codec head is of one teacher, whose last layer it needs: create the stream with another codec, and add "
            "the teacher with `topics add-teacher ... --codec head`"
        )
    if num_classes:
        options.codec.refuse_classes(num_classes)
    with once_readable(dataset_uri):
        probe = make_probe(fetcher)
    # Where the classes are not known, room for as many as a topic takes anyway.
    of_classes = [OutputSize(options.codec, (num_classes,), num_classes)]
    least_bytes = 4 * RECORD_OVERHEAD if num_classes else _UNKNOWN_BYTES
    manifest = Manifest(
        stream=name,
        stream_id=secrets.token_hex(8),
        dataset=dataset_uri,
        dataset_fingerprint=fingerprint(dataset),
        num_samples=dataset.num_samples,
        num_classes=num_classes,
        class_names=tuple(dataset.class_names),
        view=fetcher.view,
        view_probe=probe,
        order_size=options.order_size,
        epochs=options.epochs,
        seed=options.seed,
        partitions=options.partitions,
        codec=options.codec,
        max_record_bytes=max(record_bytes(options.order_size, of_classes), least_bytes),
        schema_fingerprints=REGISTRY.fingerprints(),
    )
    Sequence.of(manifest)  # refuses what no sequence can be made of
    return manifest


def _check_record_size(manifest: Manifest, limit: int) -> None:
    """Refuse orders whose soft targets may be larger than `limit` bytes, the cluster's `message.max.bytes`."""
    if manifest.max_record_bytes > limit and not manifest.num_classes:
        raise RecordTooLarge(
            f"this cluster takes records of {limit} bytes (message.max.bytes): say how many classes there are with "
            "--classes, so that they can be sized"
        )
    if manifest.max_record_bytes > limit:
        fitting = orders_that_fit(limit, [OutputSize(manifest.codec, (manifest.num_classes,), manifest.num_classes)])
        if fitting < 1:
            raise RecordTooLarge(
                f"one sample of {manifest.num_classes} classes as {manifest.codec} is over this cluster's "
                f"message.max.bytes ({limit}); use a topk codec"
            )
        raise RecordTooLarge(
            f"an order of {manifest.order_size} samples needs records of {manifest.max_record_bytes} bytes, this "
            f"cluster takes {limit} (message.max.bytes); use --order-size {fitting} or less"
        )


def _refuse_difference(asked: Manifest, there: Manifest) -> None:
    """Compare what a user can choose; the ID is random, and a probe's draws follow from the view."""
    if asked.dataset_fingerprint == there.dataset_fingerprint and differ_in_place(asked.dataset, there.dataset):
        asked = replace(asked, dataset=there.dataset)
    chosen = _chosen(asked), _chosen(there)
    if any(chosen[0][name] != chosen[1][name] for name in ("dataset", "num_samples", "class_names")):
        for each in chosen:
            del each["dataset_fingerprint"]  # two hashes say nothing beside that
    unlike = _unlike(*chosen)
    if not unlike:  # versions and parameters of two views do not compare
        unlike = _unlike({"view version": asked.view.version}, {"view version": there.view.version})
        unlike += [f"view parameter {text}" for text in _unlike(asked.view.params, there.view.params)]
    if unlike:
        raise StreamConflict(
            f"stream {asked.stream!r} exists and differs: {'; '.join(unlike)}; give another name, or remove it with "
            f"all its labels first: `distillog topics delete {asked.stream}`"
        )


def refuse_other_teacher(asked: Teacher, there: Teacher) -> None:
    """Raise StreamConflict where a teacher of a stream is declared otherwise than is asked for."""
    same = replace(asked, model_file=there.model_file)  # a file may be called anything
    unlike = _unlike(_said_of(same), _said_of(there))
    if unlike:
        raise StreamConflict(f"teacher {asked.name!r} exists and differs: {'; '.join(unlike)}; give another name")


def _said_of(teacher: Teacher) -> dict[str, object]:
    own = {f.name: getattr(teacher, f.name) for f in fields(Teacher)}
    texts = {"inputs": "; ".join(map(str, teacher.inputs)), "outputs": "; ".join(map(str, teacher.outputs))}
    return {**own, **texts}


def _chosen(manifest: Manifest) -> dict[str, object]:
    derived = ("stream_id", "view", "view_probe", "schema_fingerprints", "max_record_bytes")
    chosen = {f.name: getattr(manifest, f.name) for f in fields(Manifest) if f.name not in derived}
    origins = ", ".join(map(str, manifest.replay_of)) or "none"
    return {**chosen, "view": manifest.view.name, "replay_of": origins}


def _unlike(asked: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    names = dict.fromkeys((*there, *asked))
    return [
        f"{name} is {there.get(name)}, asked {asked.get(name)}" for name in names if asked.get(name) != there.get(name)
    ]
