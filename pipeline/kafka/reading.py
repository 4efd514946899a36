"""Reading a partition from here to the end of then."""

from __future__ import annotations

from collections.abc import Iterator

from kafka import TopicPartition

from pipeline.kafka.log import Reader, Record
from pipeline.names import log_name
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable


def read_to_end(
    reader: Reader, partition: TopicPartition, begin: int, timeout: float, end: int | None = None
) -> Iterator[Record]:
    """Yield the records of a partition from an offset to its end as it was at the call.

    Args:
        reader: its assignment is replaced; nobody else uses it before the last record came.
        partition: what is read.
        begin: the offset to begin at.
        timeout: seconds for all of it.
        end: the end, if it was asked for already.

    Raises:
        BrokerUnavailable: not read to its end in time.
        PositionOutOfRange: retention removed what was to be read.
    """
    deadline = Deadline(timeout)
    reader.assign([partition])
    reader.seek(partition, begin)
    return _records(reader, partition, reader.ends([partition])[partition] if end is None else end, deadline, timeout)


def _records(
    reader: Reader, partition: TopicPartition, end: int, deadline: Deadline, timeout: float
) -> Iterator[Record]:
    # By the position and not by the last record: what is never handed out may lie behind it.
    while (reader.position(partition) or 0) < end:
        if deadline.over:
            raise BrokerUnavailable(f"{log_name(partition)}: not read to its end (offset {end}) within {timeout:.0f} s")
        for record in reader.poll(min(0.5, deadline.left)).get(partition, []):
            if record.offset < end:
                yield record
