"""Teachers that move: who publishes for them and their generations, as a run would write them, and labels by these."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from support.memory_log import MemoryCluster

from pipeline.manifest_log import MANIFEST_KEY, generation_key, publisher_key, teacher_key
from pipeline.names import manifest_topic
from pipeline.streams import Stream
from schemas.records import Generation, Lineage, Publisher, SoftTargets

EVERY = 4
RUN_ID = "00ff00ff00ff00ff"


def publisher(stream: Stream, teacher: str, **changes: Any) -> Publisher:
    """The run `online`, every 4 orders."""
    return replace(Publisher(stream.manifest.stream_id, teacher, "online", RUN_ID, EVERY), **changes)


def generation(stream: Stream, teacher: str, number: int, every: int = EVERY, **changes: Any) -> Generation:
    """One of that run's; no file lies there."""
    sha256, weights = (
        hashlib.sha256(f"{teacher} {number} {what}".encode()).hexdigest() for what in ("file", "weights")
    )
    made = Generation(
        stream.manifest.stream_id,
        teacher,
        number,
        sha256,
        weights,
        f"/models/{teacher}-{number}.onnx",
        RUN_ID,
        10 * number,
        number * every,
    )
    return replace(made, **changes)


def moved(stream: Stream, teacher: str, newest: int) -> Stream:
    """The same stream, whose teacher has come so far."""
    generations = tuple(generation(stream, teacher, number) for number in range(1, newest + 1))
    lineage = Lineage(stream.teacher(teacher), publisher(stream, teacher), generations)
    return replace(stream, lineages={**stream.lineages, teacher: lineage})


def by(value: SoftTargets, stream: Stream, number: int) -> SoftTargets:
    """The labels of an order as a generation's."""
    sha256 = generation(stream, value.teacher, number).sha256 if number else stream.teacher(value.teacher).sha256
    return replace(value, generation=number, teacher_sha256=sha256)


def write_manifest_log(cluster: MemoryCluster, stream: Stream) -> None:
    """Write what a stream is, its teachers, and what is known of their generations, into a log in memory."""
    topic, pinned = manifest_topic(stream.manifest.stream), stream.manifest.schema_fingerprints
    cluster.write(topic, 0, stream.manifest.encode(), MANIFEST_KEY)
    for name, teacher in stream.teachers.items():
        cluster.write(topic, 0, teacher.encode(pinned), teacher_key(name))
        lineage = stream.lineage(name)
        if lineage.publisher is not None:
            cluster.write(topic, 0, lineage.publisher.encode(pinned), publisher_key(name))
        for one in lineage.generations:
            write_generation(cluster, one)


def write_generation(cluster: MemoryCluster, one: Generation, stream: str = "s") -> None:
    """Write that there is one more."""
    cluster.write(manifest_topic(stream), 0, one.encode(), generation_key(one.teacher, one.number))
