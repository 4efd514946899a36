"""The topic of a teacher's last layers, of which its labels by the codec head need one an output.

It is made when such a teacher is added, and in no other stream; it has one partition, is kept for ever, and goes with
its teacher. What is in it is found by content, `head_sha256` of the teacher's record, whoever wrote it and however
often.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing

from kafka import TopicPartition

from pipeline.kafka.clients import admin_client, new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Cluster, Reader
from pipeline.kafka.needs import Right, needing
from pipeline.kafka.reading import read_to_end
from pipeline.kafka.settings import KafkaSettings
from pipeline.kafka.workarounds.halting_close import close_producer
from pipeline.names import address_of, heads_topic, work_orders_topic
from pipeline.streams import topic_missing
from pipeline.topic_settings import KEEP_FOR_EVER, inherited_settings, make_topic, num_copies
from schemas.errors import DecodeError, ManifestMismatch, StreamChanged
from schemas.head import Assembly, Head, HeadChunk, chunks
from schemas.records import Manifest, Teacher

READ_TIMEOUT = 300.0
"""Seconds for all of the topic: a layer may have some GB."""
_WRITE_TIMEOUT = 60.0
"""Seconds for a record."""
_FETCH_BYTES = 4 << 20


def publish_heads(settings: KafkaSettings, manifest: Manifest, teacher: Teacher, layers: Collection[bytes]) -> None:
    """Make a teacher's topic of heads, and write the layers that are not in it; the same call again changes nothing.

    To be called before the teacher's record is written: from then on students read them.

    Args:
        settings: the cluster.
        manifest: of the stream that they are for.
        teacher: whose they are.
        layers: the bytes of all that its outputs need (`Head.encode`, or what `read_heads` or a captured folder gave).

    Raises:
        ManifestMismatch: they are not those of the teacher's record.
        NotAuthorized: the topic may not be made, read or written.
        StreamConflict: it lacks one, and exists with other settings.
        BrokerUnavailable: no answer, or a record was not acknowledged in 60 s.
    """
    by_sha256 = {Head.decode(raw, f"the last layer of teacher {teacher.name!r}").sha256: raw for raw in layers}
    for sha256, output in teacher.heads.items():
        if sha256 not in by_sha256:
            raise ManifestMismatch(
                f"teacher {teacher.name!r}: its record says that output {output!r} has the last layer {sha256[:12]}, "
                f"and there is {', '.join(each[:12] for each in by_sha256) or 'none'}"
            )
    topic, orders = heads_topic(manifest.stream, teacher.name), work_orders_topic(manifest.stream)
    with closing(KafkaCluster(settings).reader(fetch_bytes=_FETCH_BYTES)) as reader:
        there = _assembled(reader, manifest, teacher, READ_TIMEOUT).found
    if there.keys() >= teacher.heads.keys():
        return  # whatever somebody set for the stream's topics since then
    with admin_client(settings) as admin, kafka_errors(f"making topic {topic}", settings):
        # As labels are, but for ever: without it none of them can be read.
        like_orders = inherited_settings(admin, orders) | {"retention.ms": str(KEEP_FOR_EVER)}
        make_topic(admin, topic, 1, num_copies(admin, orders), like_orders)
    producer = new_producer(settings)
    try:
        with kafka_errors(f"writing to {topic}", settings), needing(Right("WRITE", "topic", topic)):
            for sha256 in [each for each in teacher.heads if each not in there]:
                for chunk in chunks(manifest.stream_id, teacher.name, by_sha256[sha256]):
                    key = f"{sha256}/{chunk.index}".encode()
                    value = chunk.encode(manifest.schema_fingerprints)
                    # One after the other, so that no more than one lies in memory beside the layer.
                    producer.send(topic, key=key, value=value, partition=0).get(timeout=_WRITE_TIMEOUT)
    finally:
        close_producer(producer, timeout=5)


def read_heads(
    cluster: Cluster, manifest: Manifest, teacher: Teacher, timeout: float = READ_TIMEOUT
) -> dict[str, bytes]:
    """Return SHA-256 -> bytes of the layers that a teacher's outputs need, as they lie in its topic of heads.

    Raises:
        ManifestMismatch: one is not there, not whole, or not what the teacher's record says.
        StreamChanged: somebody deleted the topic.
        BrokerUnavailable: the topic was not read to its end in time.
        NotAuthorized: it may not be seen or read.
    """
    needed, topic = teacher.heads, heads_topic(manifest.stream, teacher.name)
    if not needed:
        return {}
    with closing(cluster.admin()) as admin:
        if admin.identities([topic])[topic] is None:
            raise StreamChanged(topic_missing(topic))
    with closing(cluster.reader(fetch_bytes=_FETCH_BYTES)) as reader:
        assembly = _assembled(reader, manifest, teacher, timeout)
    for sha256, output in needed.items():
        if sha256 in assembly.found:
            continue
        parts, count = assembly.seen.get(sha256, (0, 0))
        there = "is not there"
        if count:
            there = "is not what its SHA-256 says" if parts == count else f"is not whole ({parts} of {count} parts)"
        raise ManifestMismatch(
            f"{topic}: the last layer {sha256[:12]} of output {output!r}, without which no label by head can be read, "
            f"{there}; give the same `distillog topics add-teacher {manifest.stream} {teacher.name} MODEL.onnx` again, "
            "which writes it"
        )
    return {sha256: assembly.found[sha256] for sha256 in needed}


def _assembled(reader: Reader, manifest: Manifest, teacher: Teacher, timeout: float) -> Assembly:
    """Read all of a teacher's topic of heads; one that does not exist holds nothing."""
    assembly = Assembly(manifest.stream_id, teacher.name)
    partition = TopicPartition(heads_topic(manifest.stream, teacher.name), 0)
    if reader.partitions(partition.topic):
        begin = reader.begins([partition])[partition]
        for record in read_to_end(reader, partition, begin, timeout):
            try:
                assembly.take(HeadChunk.decode(record.value or b"", address_of(record)))
            except DecodeError:
                continue  # whoever may write the topic may write any record; what is missing then is said
    return assembly
