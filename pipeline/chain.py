"""`pipeline.chain_ends` for a worker that reads with kafka-python's consumer; gone when it reads through the seam."""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer, TopicPartition

from pipeline import chain_ends
from pipeline.chain_ends import SequenceOf, refuse_unimplied, soft_targets_sequence
from pipeline.kafka.consumers import KafkaReader
from pipeline.kafka.settings import KafkaSettings

__all__ = ["chain_end", "offset_of", "refuse_unimplied", "sequence_at", "soft_targets_sequence"]


class _Borrowed(KafkaReader):
    """A reader over somebody else's consumer."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._settings = KafkaSettings(str(consumer.config["bootstrap_servers"]))
        self._consumer = consumer


def chain_end(consumer: KafkaConsumer, partition: TopicPartition, stream: str, stride: int, of: SequenceOf) -> int:
    """See `chain_ends.chain_end`."""
    return chain_ends.chain_end(_Borrowed(consumer), partition, stream, stride, of)


def offset_of(consumer: KafkaConsumer, *rest: Any) -> int:
    """See `chain_ends.offset_of`."""
    return chain_ends.offset_of(_Borrowed(consumer), *rest)


def sequence_at(consumer: KafkaConsumer, *rest: Any) -> int:
    """See `chain_ends.sequence_at`."""
    return chain_ends.sequence_at(_Borrowed(consumer), *rest)
