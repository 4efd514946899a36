"""Where a log's chain of sequences ends: what a writer must know before it goes on.

A partition p of P holds the sequences p, p + P, p + 2P, ... in order, with repetitions. Reading it by the reader's
rule (accept the sequence expected, drop every other) gives the sequence expected next.

Soft targets never stand before lower ones that are missing, so the highest of them tells. Work orders may, those of a
feeder that failed; so they are read by the rule, and where retention removed the log's beginning and nobody knows what
was expected at the first record left, a feeder goes on at the first that may be missing. Either repeats at worst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from kafka import TopicPartition

from pipeline.kafka.log import Reader
from pipeline.kafka.reading import read_to_end
from pipeline.names import address_of, log_name
from pipeline.sequence import Sequence
from schemas.errors import DecodeError, SequenceGap
from schemas.records import Manifest, SoftTargets, WorkOrder

_TAIL = 64
"""Records of soft targets that are looked at: zombies and workers that go back repeat a few."""

SequenceOf = Callable[[bytes, str], tuple[str, int]]
"""(value, address) -> (stream ID, sequence); raises DecodeError"""


def work_order_sequence(value: bytes, address: str) -> tuple[str, int]:
    """Read stream ID and sequence of a work order."""
    order = WorkOrder.decode(value, address)
    return order.stream_id, order.sequence


def implied_order(stream_id: str, orders: Sequence, number: int) -> WorkOrder:
    """The work order that a stream's manifest implies for a sequence number."""
    epoch = orders.epoch_of(number)
    return WorkOrder(stream_id, number, epoch, orders.sample_ids(number), orders.view_seed(epoch))


def refuse_unimplied(orders: Sequence, order: WorkOrder, address: str, raw: bytes) -> None:
    """Compare a work order with what its stream's manifest implies for its sequence number.

    Raises:
        DecodeError: it holds other samples or views, whoever wrote it: it is no work order of the stream.
    """
    if order.sequence >= orders.num_orders:
        raise DecodeError(address, f"sequence {order.sequence} lies behind the stream's end", raw)
    epoch = orders.epoch_of(order.sequence)
    if (order.epoch, order.view_seed) != (epoch, orders.view_seed(epoch)) or not np.array_equal(
        order.sample_ids, orders.sample_ids(order.sequence)
    ):
        reason = f"sequence {order.sequence} holds other samples or views than the manifest says"
        raise DecodeError(address, reason, raw)


def implied_orders(manifest: Manifest) -> SequenceOf:
    """As `work_order_sequence`, but of orders that are what the manifest implies: workers accept no others."""
    orders = Sequence.of(manifest)

    def sequence_of(value: bytes, address: str) -> tuple[str, int]:
        order = WorkOrder.decode(value, address)
        if order.stream_id == manifest.stream_id:
            refuse_unimplied(orders, order, address, value)
        return order.stream_id, order.sequence

    return sequence_of


def soft_targets_sequence(value: bytes, address: str) -> tuple[str, int]:
    """Read stream ID and sequence of an order's soft targets."""
    targets = SoftTargets.decode(value, address)
    return targets.stream_id, targets.sequence


def soft_targets_end(
    reader: Reader,
    partition: TopicPartition,
    stream_id: str,
    stride: int,
    sequence_of: SequenceOf = soft_targets_sequence,
    timeout: float = 300.0,
) -> int:
    """Sequence expected after the last record of a partition of soft targets, or a lower one.

    The last records tell: whatever is there was expected then or before. It is the very one unless none of them is new,
    as behind a rewind that was cut short; who goes on there repeats orders.

    Args:
        reader: its assignment is replaced.
        partition: p of P, which is `stride`.
        stream_id: whose records count.
        stride: P.
        sequence_of: reads a record.
        timeout: seconds for all of it.

    Raises:
        BrokerUnavailable: not read to its end within `timeout` seconds.
        PositionOutOfRange: retention removed records while they were read.
        SequenceGap: retention removed records, and none that is left says where the chain stood.
    """
    begin, end = _bounds(reader, partition)
    first: int = partition.partition
    for tail in dict.fromkeys((max(begin, end - 1), max(begin, end - _TAIL), begin)):
        # A sequence that lies too high for its offset is nobody's: o records hold at most o sequences.
        found = [
            sequence
            for offset, owner, sequence in _records(reader, partition, tail, end, sequence_of, timeout)
            if owner == stream_id and sequence % stride == first and sequence <= first + offset * stride
        ]
        # Without repetitions the last record alone is one that lies as high as it may.
        if found and (end - tail > 1 or tail == begin or found[-1] == first + (end - 1) * stride):
            return max(found) + stride
    _refuse_trimmed(partition, begin, end)
    return first


def work_orders_end(
    reader: Reader,
    partition: TopicPartition,
    stream_id: str,
    stride: int,
    sequence_of: SequenceOf,
    early: int,
    timeout: float = 300.0,
    until: int | None = None,
) -> int:
    """Sequence expected after the last record of a partition of work orders.

    Without repetitions the record at offset o holds sequence p + o * P. So where that is true of the last `early`
    records, they end a whole chain; otherwise all of them are read by the reader's rule. Where retention removed the
    beginning, the answer is the first sequence that may be missing.

    Args:
        reader: its assignment is replaced.
        partition: p of P, which is `stride`.
        stream_id: whose records count.
        stride: P.
        sequence_of: reads a record.
        early: how many records may stand behind a missing one, those of a feeder that failed: a repetition before it
            would make the last record look right.
        timeout: seconds for all of it.
        until: an offset; what lies at or behind it does not count.

    Raises:
        BrokerUnavailable, PositionOutOfRange, SequenceGap: as `soft_targets_end`.
    """
    begin, end = _bounds(reader, partition)
    end = end if until is None else min(end, until)
    first: int = partition.partition
    tail = max(begin, end - max(1, early))
    right = sum(
        owner == stream_id and sequence == first + offset * stride
        for offset, owner, sequence in _records(reader, partition, tail, end, sequence_of, timeout)
    )
    if right == end - tail and begin < end:
        return first + end * stride
    found = [
        sequence
        for _, owner, sequence in _records(reader, partition, begin, end, sequence_of, timeout)
        if owner == stream_id and sequence % stride == first
    ]
    if not found:
        _refuse_trimmed(partition, begin, end)
        return first
    expected = min(found) if begin else first
    for sequence in found:
        expected += stride * (sequence == expected)
    return expected


def _bounds(reader: Reader, partition: TopicPartition) -> tuple[int, int]:
    return reader.begins([partition])[partition], reader.ends([partition])[partition]


def _refuse_trimmed(partition: TopicPartition, begin: int, end: int) -> None:
    """Raise SequenceGap where retention removed what would have said where a chain stands."""
    if begin:
        raise SequenceGap(
            f"{log_name(partition)}: retention removed the records before offset {begin} of {end}, and nothing "
            "that is left says where to go on; rewind the group with `distillog topics rewind`"
        )


def _records(
    reader: Reader, partition: TopicPartition, begin: int, end: int, sequence_of: SequenceOf, timeout: float
) -> Iterator[tuple[int, str, int]]:
    """Yield offset, stream ID and sequence of each record in [begin, end) that has them."""
    for record in read_to_end(reader, partition, begin, timeout, end):
        try:
            owner, sequence = sequence_of(record.value or b"", address_of(record))
        except DecodeError:
            continue  # not a record of ours: the reader's rule drops it too
        yield record.offset, owner, sequence


def offset_of(
    reader: Reader,
    partition: TopicPartition,
    stream_id: str,
    stride: int,
    sequence: int,
    timeout: float = 300.0,
) -> int:
    """Offset of the first record of a work order, or the end of the partition if it is not fed yet.

    A record's offset is at least the number of sequences before it, so the search begins there.

    Raises:
        BrokerUnavailable: not found within `timeout` seconds.
        SequenceGap: it lies below what retention left.
    """
    begin = reader.begins([partition])[partition]
    at = (sequence - partition.partition) // stride
    if at < begin:
        raise SequenceGap(
            f"{log_name(partition)}: work order {sequence} was removed by retention (first offset left: {begin})"
        )
    return first_copy(reader, partition, stream_id, sequence, at, work_order_sequence, timeout)


def first_copy(
    reader: Reader,
    partition: TopicPartition,
    stream_id: str,
    sequence: int,
    begin: int,
    sequence_of: SequenceOf,
    timeout: float = 300.0,
) -> int:
    """Offset of the first record of a sequence that lies at `begin` or behind, or the end of the partition.

    Raises:
        BrokerUnavailable: not found within `timeout` seconds.
    """
    end = reader.ends([partition])[partition]
    for offset, owner, found in _records(reader, partition, min(begin, end), end, sequence_of, timeout):
        if (owner, found) == (stream_id, sequence):
            return offset
    return end


def sequence_at(
    reader: Reader,
    partition: TopicPartition,
    stream_id: str,
    stride: int,
    offset: int,
    timeout: float = 300.0,
) -> int:
    """Sequence that is expected at an offset of the work orders.

    Where retention removed the log's beginning, it is that of the first work order there or behind.

    Raises:
        BrokerUnavailable: not found within `timeout` seconds.
    """
    if reader.begins([partition])[partition]:
        end = reader.ends([partition])[partition]
        for _, owner, sequence in _records(reader, partition, offset, end, work_order_sequence, timeout):
            if owner == stream_id:
                return sequence
    return work_orders_end(reader, partition, stream_id, stride, work_order_sequence, offset, timeout, until=offset)
