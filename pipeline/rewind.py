"""The repair for a sequence gap: let a teacher's group label again from a given work order on."""

from __future__ import annotations

from contextlib import closing

from kafka import TopicPartition
from kafka import errors as kafka_error
from kafka.structs import OffsetAndMetadata

from pipeline.chain_ends import offset_of, sequence_at, soft_targets_end
from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator, describe_groups
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Reader
from pipeline.kafka.needs import Right, needing, refuse_hidden
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import log_name, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from schemas.commits import decode_next_sequence, encode_next_sequence
from schemas.errors import ConfigError, SequenceGap, StreamConflict
from schemas.records import Manifest


def rewind(settings: KafkaSettings, stream: Stream, teacher: str, sequence: int) -> int:
    """Set the committed offset of the partition of a work order to that order.

    The workers publish again from there; readers drop what they have already.

    Returns:
        The offset.

    Raises:
        StreamNotFound: no such teacher.
        ConfigError: no such order in the stream or not fed yet, or one ahead of the group: skipping would make a gap.
        StreamConflict: the group has members; Kafka lets nobody else change its offsets then.
        SequenceGap: retention removed the order.
        NotAuthorized: the group may not be seen or committed for, or the stream's topics not be read.
    """
    manifest = stream.manifest
    stream.teacher(teacher)
    orders = Sequence.of(manifest)
    if not 0 <= sequence < orders.num_orders:
        raise ConfigError(f"stream {manifest.stream!r} has the orders 0 to {orders.num_orders - 1}, not {sequence}")
    partition = TopicPartition(work_orders_topic(manifest.stream), orders.partition(sequence))
    group = teacher_group(manifest, teacher)
    in_use = StreamConflict(
        f"group {group} has members: stop all workers of teacher {teacher!r}, then rewind "
        "(a killed worker counts until its session ends, some seconds later)"
    )
    rights = [Right("READ", "group", group), Right("READ", "topic", partition.topic)]
    with (
        admin_client(settings) as admin,
        kafka_errors(f"rewinding teacher {teacher!r}", settings),
        needing(*rights),
    ):
        refuse_hidden(admin, [partition.topic, soft_targets_topic(manifest.stream, teacher)])
        if ask_coordinator(lambda: describe_groups(admin, [group]))[group]["members"]:
            raise in_use
        with closing(KafkaCluster(settings).reader()) as reader:
            offset = offset_of(reader, partition, manifest.stream_id, manifest.partitions, sequence)
            end = reader.ends([partition])[partition]
            if offset >= end:
                raise ConfigError(f"order {sequence} is not fed yet, so there is nothing to rewind to")
            committed = ask_coordinator(lambda: admin.list_group_offsets({group: [partition]}))[group].get(partition)
            reached = _reached(reader, manifest, teacher, partition, committed)
        if reached is not None and sequence > reached:
            raise ConfigError(
                f"teacher {teacher!r} stands at order {reached} of {log_name(partition)}; order {sequence} comes "
                "later: skipping orders makes a gap"
            )
        commit = OffsetAndMetadata(offset, encode_next_sequence(sequence), -1)
        answer = admin.alter_group_offsets(group, {partition: commit})[partition]
        if answer is kafka_error.UnknownMemberIdError:
            raise in_use  # one joined meanwhile
        if answer is not kafka_error.NoError:
            raise answer()
    return offset


def _reached(
    reader: Reader, manifest: Manifest, teacher: str, partition: TopicPartition, committed: OffsetAndMetadata | None
) -> int | None:
    """Sequence that a group expects next: by its commit, else by its soft targets; None if nothing says it."""
    if committed is not None and committed.offset >= 0:
        sequence = decode_next_sequence(committed.metadata, partition.partition, manifest.partitions, committed.offset)
        if sequence is not None:
            return sequence
        return sequence_at(reader, partition, manifest.stream_id, manifest.partitions, committed.offset)
    targets = TopicPartition(soft_targets_topic(manifest.stream, teacher), partition.partition)
    if not reader.ends([targets])[targets] and reader.begins([partition])[partition]:
        return None  # a new teacher of a stream whose first orders are gone
    try:
        return soft_targets_end(reader, targets, manifest.stream_id, manifest.partitions)
    except SequenceGap:
        return None  # retention removed them all: whoever rewinds knows more
