"""What a teacher group's commits would say that expired: groups' offsets are kept for 7 idle days by default."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kafka import TopicPartition

from pipeline.chain_ends import soft_targets_end
from pipeline.kafka.log import Commit, Reader
from pipeline.names import soft_targets_topic, work_orders_topic
from schemas.commits import encode_next_sequence
from schemas.errors import PositionOutOfRange, SequenceGap
from schemas.records import Manifest


def with_expired(
    reader: Reader, manifest: Manifest, teacher: str, committed: dict[TopicPartition, Any], published: list[int]
) -> dict[TopicPartition, Any]:
    """Add the commits that are missing where there are soft targets, which tell how far a group came, as to workers.

    Args:
        reader: its assignment is replaced.
        manifest: the stream's.
        teacher: whose group it is.
        committed: partition of the work orders -> commit.
        published: [P] records of soft targets.

    Raises:
        BrokerUnavailable: no answer.
    """
    stride = manifest.partitions
    found = dict(committed)
    for number, count in enumerate(published):
        orders = TopicPartition(work_orders_topic(manifest.stream), number)
        if not count or (orders in committed and committed[orders].offset >= 0):
            continue
        targets = TopicPartition(soft_targets_topic(manifest.stream, teacher), number)
        with suppress(SequenceGap, PositionOutOfRange):  # retention left nothing that says it
            sequence = soft_targets_end(reader, targets, manifest.stream_id, stride)
            # An order that was fed twice makes the offset a lower one than it was: the count of orders is exact.
            found[orders] = Commit((sequence - number) // stride, encode_next_sequence(sequence))
    return found
