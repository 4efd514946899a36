"""What a worker takes from the work orders: the reader's rule, and what it says of records that break it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from kafka import TopicPartition

from pipeline.chain import refuse_unimplied
from pipeline.sequence import Sequence
from pipeline.streams import TopicGuard
from schemas.errors import DecodeError, SequenceGap
from schemas.records import Manifest, WorkOrder
from teacher_service.ledger import PartitionLedger, Verdict
from teacher_service.membership import Membership
from teacher_service.publisher import Job

log = logging.getLogger(__name__)

_NO_EARLY = (-1, -1)


class Intake:
    """Turns polled records into jobs."""

    def __init__(
        self, manifest: Manifest, membership: Membership, guard: TopicGuard, add: Callable[[list[Job]], None]
    ) -> None:
        self.repetitions = 0
        """orders dropped since they were taken before"""
        self._stream = manifest.stream
        self._stream_id = manifest.stream_id
        self._sequence = Sequence.of(manifest)
        self._membership = membership
        self._guard = guard
        self._add = add
        self._early: dict[int, tuple[int, int]] = {}
        """partition where a higher sequence came than expected -> (the missing one, end of the log then)"""

    def take(self, polled: dict[TopicPartition, list[Any]]) -> None:
        """Apply the reader's rule to what was polled, and queue what it accepts.

        Raises:
            SequenceGap: an order is missing and nowhere in the log.
            StreamChanged: the topic is another stream's now.
            BrokerUnavailable: no answer to a question about the log; what was not taken comes again.
        """
        jobs: list[Job] = []
        try:
            for topic_partition, records in polled.items():
                for record in records:
                    ledger = self._membership.ledgers.get(topic_partition.partition)
                    if ledger is None or record.offset < ledger.read.offset:
                        continue
                    self._take_record(topic_partition.partition, ledger, record, jobs)
        finally:
            self._add(jobs)  # the ledgers wait for them from now on, whatever became of the others

    def _take_record(self, partition: int, ledger: PartitionLedger, record: Any, jobs: list[Job]) -> None:
        address = f"{record.topic}/{partition}@{record.offset}"
        raw = record.value or b""
        try:
            order = WorkOrder.decode(raw, address)
            if order.stream_id != self._stream_id:
                # Of a stream made anew in this one's place: its topics are not for this worker's dead letters.
                self._guard.check(now=True)
                raise DecodeError(address, f"is of another stream ({order.stream_id})", raw)
            refuse_unimplied(self._sequence, order, address, raw)
            if self._sequence.partition(order.sequence) != partition:
                raise DecodeError(address, f"sequence {order.sequence} belongs in another partition", raw)
        except DecodeError as error:
            log.warning("%s: no work order of this stream; moved to the dead letters", error)
            jobs.append(Job(partition, ledger.lease, record.offset, ledger.read.sequence, error))
            ledger.take(record.offset, is_order=False)
            return
        verdict = ledger.judge(order.sequence)
        if verdict is Verdict.ACCEPT:
            jobs.append(Job(partition, ledger.lease, record.offset, order.sequence, order))
            ledger.take(record.offset)
            if self._early.get(partition, _NO_EARLY)[0] == order.sequence:
                del self._early[partition]
        elif verdict is Verdict.DROP:
            self.repetitions += 1
            ledger.drop(record.offset)
        else:
            self._take_early(partition, ledger, order.sequence, record.offset, address)

    def _take_early(self, partition: int, ledger: PartitionLedger, sequence: int, offset: int, address: str) -> None:
        """Meet a higher sequence than expected: go back once, then look for the missing one up to the log's end.

        The first time it may be a stale position of the client. After that it is what a feeder left that failed: it
        publishes again from the missing order on, behind the early one, which is dropped by the reader's rule.

        Raises:
            SequenceGap: the log ends without it.
        """
        missing = ledger.read.sequence
        known, end = self._early.get(partition, _NO_EARLY)
        if known != missing:
            self._early[partition] = (missing, self._membership.end_offset(partition))
            self._membership.rewind([partition])
        elif offset + 1 < end:
            ledger.drop(offset)
        else:
            raise SequenceGap(
                f"{address}: holds sequence {sequence}, but {missing} comes first and is nowhere behind it: the work "
                f"orders have a hole; run `distillog feed {self._stream}` again, or make the stream anew"
            )
