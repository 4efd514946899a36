"""How many orders of a stream are fed: the log's length, less what a feeder that failed has published twice.

P partitions.
"""

from __future__ import annotations

from contextlib import suppress

from kafka import TopicPartition

from pipeline.chain_ends import refuse_unimplied
from pipeline.kafka.log import Reader
from pipeline.names import work_orders_topic
from pipeline.sequence import Sequence
from pipeline.wait import Deadline
from schemas.errors import DecodeError
from schemas.records import Manifest, WorkOrder

_LAST = 16
"""Records of a partition's end that are read: the very last one may be the repetition of a feeder that lags behind."""
_TIMEOUT = 5.0


def num_fed(reader: Reader, manifest: Manifest) -> int:
    """Orders that lie in the log, each counted once, by the highest among the last records of each partition.

    A partition in which none of those is an order of the stream counts its records, at most its orders. The reader's
    assignment is replaced.
    """
    topic = work_orders_topic(manifest.stream)
    partitions = [TopicPartition(topic, number) for number in range(manifest.partitions)]
    ends = reader.ends(partitions)
    begins = reader.begins(partitions)
    highest = _highest(reader, manifest, {each: (begins[each], ends[each]) for each in partitions})
    num_orders = Sequence.of(manifest).num_orders
    fed = 0
    for each in partitions:
        of_partition = len(range(each.partition, num_orders, manifest.partitions))
        at_most = min(ends[each], of_partition)
        sequence = highest.get(each)
        fed += at_most if sequence is None else min(at_most, sequence // manifest.partitions + 1)
    return fed


def _highest(
    reader: Reader, manifest: Manifest, bounds: dict[TopicPartition, tuple[int, int]]
) -> dict[TopicPartition, int]:
    """The highest sequence of the stream among the last records of each partition that has one."""
    orders = Sequence.of(manifest)
    highest: dict[TopicPartition, int] = {}
    for each, found in _last_orders(reader, bounds).items():
        for order in sorted(found, key=lambda order: order.sequence, reverse=True):
            if order.stream_id == manifest.stream_id and orders.partition(order.sequence) == each.partition:
                # To compute what an order should be takes longer than to read it: mostly the first one is it.
                with suppress(DecodeError):
                    refuse_unimplied(orders, order, str(each), b"")
                    highest[each] = order.sequence
                    break
    return highest


def _last_orders(
    reader: Reader, bounds: dict[TopicPartition, tuple[int, int]]
) -> dict[TopicPartition, list[WorkOrder]]:
    """Whatever is a work order among the last records of each partition, of (begin, end), as far as time allows."""
    unread = {each: end for each, (begin, end) in bounds.items() if begin < end}
    reader.assign(list(unread))
    for each, end in unread.items():
        reader.seek(each, max(bounds[each][0], end - _LAST))
    found: dict[TopicPartition, list[WorkOrder]] = {each: [] for each in unread}
    deadline = Deadline(_TIMEOUT)
    while unread and not deadline.over:
        for each, records in reader.poll(0.1).items():
            for record in records:
                with suppress(DecodeError):
                    found[each].append(WorkOrder.decode(record.value or b"", str(each)))
        unread = {each: end for each, end in unread.items() if (reader.position(each) or 0) < end}
    return found
