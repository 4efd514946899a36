"""Writes who publishes for a teacher, and its generations: once each, and compared with what is there already."""

from __future__ import annotations

from dataclasses import replace

from pipeline.captured.urls import refuse_secrets
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import append, append_all, generation_key, holds_generations, publisher_key
from pipeline.streams import Stream, open_stream
from schemas.errors import ConfigError, StreamConflict
from schemas.records import Generation, Lineage, Publisher


def refuse_unmovable(stream: Stream, teacher: str) -> None:
    """Raise where a teacher has to stay what it is.

    Raises:
        StreamNotFound, NeedsNewer: no such teacher, or only for a newer Distillog.
        ConfigError: the stream was made before labels could say of which generation they are; or an output is stored by
            the codec head, whose layer lies in the stream once.
    """
    found, manifest = stream.teacher(teacher), stream.manifest
    if not holds_generations(manifest):
        raise ConfigError(
            f"stream {manifest.stream!r} was made before teachers could have generations: its labels cannot say of "
            "which they are; make a new stream, with `distillog topics create` under another name"
        )
    for output in found.heads.values():
        raise ConfigError(
            f"teacher {teacher!r}: output {output!r} is stored by the codec head, whose last layer is the same for all "
            "labels, and each generation has its own; add the teacher with another codec"
        )


def claim_teacher(settings: KafkaSettings, stream: Stream, publisher: Publisher) -> Lineage:
    """Write that a run publishes for a teacher; the same call again changes nothing.

    Returns:
        The teacher with all generations that are there.

    Raises:
        StreamNotFound, NeedsNewer, ConfigError: as `refuse_unmovable`.
        StreamConflict: another run publishes for it, or this one with another `every`.
        NotAuthorized: the manifest topic may not be written.
        BrokerUnavailable: no answer from Kafka.
    """
    name, teacher = stream.manifest.stream, publisher.teacher
    refuse_unmovable(stream, teacher)
    there = open_stream(settings, name).lineage(teacher)
    if there.publisher is None:
        raw = publisher.encode(stream.manifest.schema_fingerprints)
        append(settings, name, publisher_key(teacher), raw)
        there = open_stream(settings, name).lineage(teacher)  # another one may have been first
    if there.publisher is None:
        raise StreamConflict(f"stream {name!r} was made anew meanwhile: nobody publishes for its teacher {teacher!r}")
    if there.publisher.run_id != publisher.run_id:
        raise StreamConflict(
            f"run {there.publisher.run!r} (run ID {there.publisher.run_id}) publishes for teacher {teacher!r} of "
            f"stream {name!r} already, and one run alone may; publish for a teacher of its own (`distillog topics "
            "add-teacher`)"
        )
    if there.publisher.every != publisher.every:
        raise StreamConflict(
            f"run {publisher.run!r} publishes for teacher {teacher!r} every {there.publisher.every} orders, and not "
            f"every {publisher.every}: readers count ages by it; go on with {there.publisher.every}"
        )
    return there


def publish_generation(settings: KafkaSettings, stream: Stream, generation: Generation) -> None:
    """Write a teacher's next generation, whose file is there already; the same call again changes nothing.

    Raises:
        ConfigError: the place of its file has credentials or a query in it.
        StreamConflict: it is there and differs, or is not the next one of the run that publishes for the teacher.
        NotAuthorized, BrokerUnavailable: as `claim_teacher`.
    """
    if "://" in generation.model:
        refuse_secrets(generation.model, "the files that are published")
    name, teacher, number = stream.manifest.stream, generation.teacher, generation.number
    if number > open_stream(settings, name).lineage(teacher).newest:
        raw = generation.encode(stream.manifest.schema_fingerprints)
        append(settings, name, generation_key(teacher, number), raw)
    there = open_stream(settings, name).lineage(teacher)
    if number > there.newest:
        by, why = there.publisher, "nobody publishes for it"
        if by is not None:
            why = f"run {by.run!r} publishes for it every {by.every} orders, and the next one is {there.newest + 1}"
        raise StreamConflict(f"generation {number} of teacher {teacher!r} of stream {name!r} is not taken: {why}")
    found = there.generations[number - 1]
    # The file may differ with the libraries that wrote it; what it was made of may not.
    unlike = [each for each in ("weights_sha256", "step") if getattr(found, each) != getattr(generation, each)]
    if unlike:
        raise StreamConflict(
            f"generation {number} of teacher {teacher!r} of stream {name!r} is there and differs in "
            f"{', '.join(unlike)}; it is never published again"
        )


def copy_lineage(settings: KafkaSettings, name: str, lineage: Lineage) -> None:
    """Write into a stream, by its name, who published for a teacher in another one, and the generations that are not
    there yet; the same call again changes nothing.

    To be called before labels by these generations are written: from then on readers look for them.

    Raises:
        ConfigError: as `refuse_unmovable`.
        StreamConflict: another run publishes for that teacher there, or a generation is there and differs.
        NotAuthorized, BrokerUnavailable: as `claim_teacher`.
    """
    if lineage.publisher is None:
        return
    stream, teacher = open_stream(settings, name), lineage.teacher.name
    stream_id, pinned = stream.manifest.stream_id, stream.manifest.schema_fingerprints
    there = claim_teacher(settings, stream, replace(lineage.publisher, stream_id=stream_id))
    ours = [replace(each, stream_id=stream_id) for each in lineage.generations]
    missing = ours[there.newest :]
    append_all(settings, name, [(generation_key(teacher, each.number), each.encode(pinned)) for each in missing])
    found = open_stream(settings, name).lineage(teacher).generations
    for wanted, one in zip(ours, found[: len(ours)], strict=True):
        if wanted != one:
            raise StreamConflict(
                f"generation {one.number} of teacher {teacher!r} of stream {name!r} is another one than that of the "
                "labels; replay under another name of the stream"
            )
