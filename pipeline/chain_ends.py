"""Where a log's chain of sequences ends: what a writer must know before it goes on.

A partition p of P holds the sequences p, p + P, p + 2P, ... in order, with repetitions. Reading it by the reader's
rule (accept the sequence expected, drop every other) gives the sequence expected next.

Of a log whose beginning was removed nobody knows which sequence was expected at the first record left. But soft targets
never stand before lower ones that are missing, so whatever is there was expected then or before: the chain ends behind
the highest sequence that is left, or, where only repetitions are left, somewhere behind it. Work orders may stand too
early, those of a feeder that failed; so a feeder goes on at the first that may be missing. Either repeats at worst.
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


def chain_end(
    reader: Reader,
    partition: TopicPartition,
    stream_id: str,
    stride: int,
    sequence_of: SequenceOf,
    timeout: float = 300.0,
    *,
    early: int = 0,
    until: int | None = None,
) -> int:
    """Sequence expected after the last record of a partition; the reader's assignment is replaced.

    Without repetitions the record at offset o holds sequence p + o * P, so a last record that says so ends a whole
    chain, and one record is read. Otherwise all of them are.

    Args:
        reader: its assignment is replaced.
        partition: p of P, which is `stride`.
        stream_id: whose records count.
        stride: P.
        sequence_of: reads a record.
        timeout: seconds for all of it.
        early: how many records may stand behind a missing one, such as those of a feeder that failed; 0: none. A
            repetition before it would make the last record look right, so that many are looked at. And where the log's
            beginning was removed, the answer is the first sequence that may be missing, not the highest written.
        until: an offset; what lies at or behind it does not count.

    Raises:
        BrokerUnavailable: not read to its end within `timeout` seconds.
        PositionOutOfRange: retention removed records while they were read.
        SequenceGap: nothing that retention left says where the chain stood.
    """
    begin = reader.begins([partition])[partition]
    end = reader.ends([partition])[partition]
    if until is not None:
        end = min(end, until)
    first: int = partition.partition
    if end == 0:
        return first
    if begin < end:
        tail = max(begin, end - max(1, early))
        right = sum(
            owner == stream_id and sequence == first + offset * stride
            for offset, owner, sequence in _records(reader, partition, tail, end, sequence_of, timeout)
        )
        if right == end - tail:
            return first + end * stride
    found = [
        (offset, sequence)
        for offset, owner, sequence in _records(reader, partition, begin, end, sequence_of, timeout)
        if owner == stream_id and sequence % stride == first
    ]
    if begin and not early:
        # A sequence that lies too high for its place is nobody's: o records hold at most o sequences.
        found = [(offset, sequence) for offset, sequence in found if sequence <= first + offset * stride]
    if begin and not found:
        raise SequenceGap(
            f"{log_name(partition)}: retention removed the records before offset {begin} of {end}, and nothing "
            "that is left says where to go on; rewind the group with `distillog topics rewind`"
        )
    if begin and not early:
        return max(sequence for _, sequence in found) + stride
    expected = min(sequence for _, sequence in found) if begin else first
    for _, sequence in found:
        expected += stride * (sequence == expected)
    return expected


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
    end = reader.ends([partition])[partition]
    at = (sequence - partition.partition) // stride
    if at < begin:
        raise SequenceGap(
            f"{log_name(partition)}: work order {sequence} was removed by retention (first offset left: {begin})"
        )
    for offset, owner, found in _records(reader, partition, min(at, end), end, work_order_sequence, timeout):
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
    return chain_end(reader, partition, stream_id, stride, work_order_sequence, timeout, early=offset, until=offset)
