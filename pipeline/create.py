"""Making a stream, and adding a teacher to it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_error
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.kafka.clients import new_admin
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import MANIFEST_KEY, append, read_manifest_log, teacher_key
from pipeline.names import dead_letters_topic, manifest_topic, soft_targets_topic, work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream, open_stream
from pipeline.views.fetch import Fetcher
from pipeline.views.probe import make_probe
from schemas.avro import REGISTRY
from schemas.codecs import CODECS, CodecSpec
from schemas.errors import BrokerUnavailable, ConfigError, RecordTooLarge, StreamConflict
from schemas.names import check_name
from schemas.records import Manifest, Teacher

DEFAULT_PARTITIONS = 64
MAX_PARTITIONS = 256
"""Each costs the broker files and every commit an entry; more unequal workers than this serves, no group has."""

KEEP_FOR_EVER = -1

_INDEX = {"segment.index.bytes": str(1 << 20)}
"""The second record of every partition waits until the broker has made two index files of this size; with the default
of 10 MiB that took 20 to 40 ms a partition (measured), 2 s of silence at the start of a stream of 64. One MiB serves
357 MB of the smallest records, and a whole segment of larger ones."""

_DEFAULT_MAX_MESSAGE = 1_048_588
"""`message.max.bytes` of a default broker"""

_RECORD_OVERHEAD = 2_048
"""bytes of a soft-target record beside IDs and outputs: names, shapes, headers, the batch's own fields"""


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
    """0: as many as the data set says"""
    retention_ms: int = KEEP_FOR_EVER
    replication_factor: int = -1
    """-1: the cluster's default"""


def soft_target_bytes(codec: CodecSpec, order_size: int, num_classes: int) -> int:
    """Upper bound of one soft-target record in bytes, from output shape, codec and order size."""
    row = CODECS[codec.name].bytes_per_row(codec, num_classes)
    return _RECORD_OVERHEAD + order_size * (row + 8 + 8)  # IDs and kept rows are at most 8 bytes each


def create_stream(
    settings: KafkaSettings, name: str, fetcher: Fetcher, dataset_uri: str, options: StreamOptions
) -> tuple[Stream, bool]:
    """Make a stream's topics and write its manifest; the same call again changes nothing.

    The manifest is written last: a creation that is cut short leaves a stream that cannot be opened, and the same call
    completes it.

    Returns:
        The stream, and whether this call made it.

    Raises:
        ConfigError: an option is out of its range.
        RecordTooLarge: an order's soft targets would not fit into a record of this cluster.
        StreamConflict: a stream of that name exists with other settings; the difference is shown.
    """
    check_name("stream", name)
    if not 1 <= options.partitions <= MAX_PARTITIONS:
        raise ConfigError(f"--partitions must be between 1 and {MAX_PARTITIONS}, not {options.partitions}")
    manifest = _manifest(name, fetcher, dataset_uri, options)
    record = manifest.encode()  # before any topic is made: it refuses what cannot be written
    admin = new_admin(settings)
    try:
        with kafka_errors(f"creating stream {name!r}", settings):
            if manifest_topic(name) in admin.list_topics():
                there = read_manifest_log(settings, name)
                if there.manifest is not None:
                    _refuse_difference(manifest, there.manifest)
                    return Stream(there.manifest, there.teachers), False
            limit = _check_record_size(admin, manifest)
            configs = {"retention.ms": str(options.retention_ms), "max.message.bytes": str(limit), **_INDEX}
            replication = options.replication_factor
            # Retention for ever holds for the manifest whatever is asked for the data: without it nothing can be read.
            keep = {**configs, "retention.ms": str(KEEP_FOR_EVER)}
            _make_topic(admin, manifest_topic(name), 1, replication, keep)
            _make_topic(admin, work_orders_topic(name), options.partitions, replication, configs)
            _make_topic(admin, dead_letters_topic(name), 1, replication, configs)
    finally:
        admin.close()
    append(settings, name, MANIFEST_KEY, record)
    stream = open_stream(settings, name)  # another creator may have been first
    _refuse_difference(manifest, stream.manifest)
    return stream, stream.manifest.stream_id == manifest.stream_id


def add_teacher(settings: KafkaSettings, stream: Stream, teacher: Teacher) -> bool:
    """Make the teacher's topic and write its record; the same call again changes nothing.

    Returns:
        Whether this call added it.

    Raises:
        StreamConflict: a teacher of that name exists with another model or another declaration.
        ManifestMismatch: its class count is not the stream's.
        RecordTooLarge: its soft targets would not fit into a record of the stream.
    """
    manifest = stream.manifest
    if manifest.num_classes and teacher.num_classes != manifest.num_classes:
        raise StreamConflict(
            f"teacher {teacher.name!r} has {teacher.num_classes} classes, "
            f"stream {manifest.stream!r} has {manifest.num_classes}"
        )
    if teacher.name in stream.teachers:
        _refuse_teacher(teacher, stream.teachers[teacher.name])
        return False
    if soft_target_bytes(manifest.codec, manifest.order_size, teacher.num_classes) > manifest.max_record_bytes:
        raise RecordTooLarge(
            f"teacher {teacher.name!r}: {teacher.num_classes} classes x {manifest.order_size} samples as "
            f"{manifest.codec} are more than the stream's records hold ({manifest.max_record_bytes} bytes); "
            f"create the stream with --classes {teacher.num_classes}, a smaller --order-size or a topk codec"
        )
    admin = new_admin(settings)
    try:
        with kafka_errors(f"adding teacher {teacher.name!r}", settings):
            topic = soft_targets_topic(manifest.stream, teacher.name)
            described = admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, work_orders_topic(manifest.stream))], config_filter="all"
            )
            there = _config_values(described)
            inherited = {key: there[key] for key in ("retention.ms", "max.message.bytes") if key in there}
            _make_topic(admin, topic, manifest.partitions, -1, inherited | _INDEX)
    finally:
        admin.close()
    append(settings, manifest.stream, teacher_key(teacher.name), teacher.encode())
    _refuse_teacher(teacher, open_stream(settings, manifest.stream).teacher(teacher.name))
    return True


def _manifest(name: str, fetcher: Fetcher, dataset_uri: str, options: StreamOptions) -> Manifest:
    from pipeline.datasets.fingerprint import fingerprint

    dataset = fetcher.dataset
    num_classes = options.num_classes or dataset.num_classes
    if dataset.num_classes and num_classes != dataset.num_classes:
        raise ConfigError(f"--classes {num_classes}: data set {dataset_uri} has {dataset.num_classes} classes")
    manifest = Manifest(
        stream=name,
        stream_id=secrets.token_hex(8),
        dataset=dataset_uri,
        dataset_fingerprint=fingerprint(dataset),
        num_samples=dataset.num_samples,
        num_classes=num_classes,
        class_names=tuple(dataset.class_names),
        view=fetcher.view,
        view_probe=make_probe(fetcher),
        order_size=options.order_size,
        epochs=options.epochs,
        seed=options.seed,
        partitions=options.partitions,
        codec=options.codec,
        max_record_bytes=max(soft_target_bytes(options.codec, options.order_size, num_classes), 4 * _RECORD_OVERHEAD),
        schema_fingerprints=REGISTRY.fingerprints(),
    )
    Sequence.of(manifest)  # refuses what no sequence can be made of
    return manifest


def _check_record_size(admin: KafkaAdminClient, manifest: Manifest) -> int:
    """Return the `max.message.bytes` that the stream's topics need."""
    node = admin.describe_cluster()["brokers"][0]["broker_id"]
    described = admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, str(node))], config_filter="all")
    limit = int(_config_values(described).get("message.max.bytes", _DEFAULT_MAX_MESSAGE))
    if manifest.max_record_bytes > limit:
        overhead = soft_target_bytes(manifest.codec, 0, manifest.num_classes)
        per_sample = soft_target_bytes(manifest.codec, 1, manifest.num_classes) - overhead
        fitting = (limit - overhead) // per_sample
        if fitting < 1:
            raise RecordTooLarge(
                f"one sample of {manifest.num_classes} classes as {manifest.codec} is over this cluster's "
                f"message.max.bytes ({limit}); use a topk codec"
            )
        raise RecordTooLarge(
            f"an order of {manifest.order_size} samples needs records of {manifest.max_record_bytes} bytes, this "
            f"cluster takes {limit} (message.max.bytes); use --order-size {fitting} or less"
        )
    return max(_DEFAULT_MAX_MESSAGE, manifest.max_record_bytes)


def _config_values(described: Any) -> dict[str, str]:
    """Names and values of one described resource."""
    values: dict[str, str] = {}
    for by_name in described.values():
        for configs in by_name.values():
            values |= {name: str(config["value"]) for name, config in configs.items()}
    return values


def _make_topic(
    admin: KafkaAdminClient, topic: str, partitions: int, replication: int, configs: dict[str, str]
) -> None:
    """Make a topic, or accept the one that is there if it has the same number of partitions."""
    spec = {"num_partitions": partitions, "replication_factor": replication, "configs": configs}
    try:
        admin.create_topics({topic: spec}, wait_for_metadata=True)
    except kafka_error.TopicAlreadyExistsError:
        there = admin.describe_topics([topic])[0]
        if there["error_code"]:
            raise BrokerUnavailable(f"topic {topic}: {kafka_error.for_code(there['error_code']).__name__}") from None
        if len(there["partitions"]) != partitions:
            raise StreamConflict(
                f"topic {topic} exists with {len(there['partitions'])} partitions, not {partitions}; "
                "delete it, or choose another stream name"
            ) from None


def _refuse_difference(asked: Manifest, there: Manifest) -> None:
    """Compare what a user can choose; the ID is random, and a probe's draws follow from the view."""
    unlike = _unlike(_chosen(asked), _chosen(there))
    if not unlike and asked.view != there.view:  # the parameters of two views do not compare
        params = (asked.view.params, there.view.params)
        unlike = [f"view parameter {text}" for text in _unlike(*params)]
    if unlike:
        raise StreamConflict(f"stream {asked.stream!r} exists and differs: " + "; ".join(unlike))


def _refuse_teacher(asked: Teacher, there: Teacher) -> None:
    same = replace(asked, model_file=there.model_file)  # a file may be called anything
    unlike = _unlike(*({f.name: getattr(one, f.name) for f in fields(Teacher)} for one in (same, there)))
    if unlike:
        raise StreamConflict(f"teacher {asked.name!r} exists and differs: " + "; ".join(unlike))


def _chosen(manifest: Manifest) -> dict[str, object]:
    derived = ("stream_id", "view", "view_probe", "schema_fingerprints", "max_record_bytes")
    chosen = {f.name: getattr(manifest, f.name) for f in fields(Manifest) if f.name not in derived}
    return {**chosen, "view": manifest.view.name, "view version": manifest.view.version}


def _unlike(asked: Mapping[str, object], there: Mapping[str, object]) -> list[str]:
    names = dict.fromkeys((*there, *asked))
    return [
        f"{name} is {there.get(name)}, asked {asked.get(name)}" for name in names if asked.get(name) != there.get(name)
    ]
