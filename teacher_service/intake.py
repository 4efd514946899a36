"""What a worker takes from the work orders: the reader's rule, and what it says of records that break it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.chain_ends import refuse_unimplied
from pipeline.kafka.log import Polled, Record
from pipeline.names import address_of
from pipeline.sequence import Sequence
from pipeline.streams import TopicGuard
from schemas.errors import DecodeError, SequenceGap
from schemas.records import Manifest, WorkOrder
from teacher_service.chain import Chain, Job, Verdict
from teacher_service.leases import Leases

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Early:
    """A higher sequence came than a chain expects."""

    chain: Chain
    missing: int
    end: int | None
    """end of the log when it was known that nothing had been left out before; None: not yet"""


class Intake:
    """Turns polled records into jobs."""

    def __init__(self, manifest: Manifest, leases: Leases, guard: TopicGuard, add: Callable[[list[Job]], None]) -> None:
        self.repetitions = 0
        """orders dropped since they were taken before"""
        self._stream = manifest.stream
        self._stream_id = manifest.stream_id
        self._sequence = Sequence.of(manifest)
        self._leases = leases
        self._guard = guard
        self._add = add
        self._early: dict[int, _Early] = {}
        """by partition"""

    def take(self, polled: Polled) -> None:
        """Apply the reader's rule to what was polled, and queue what it accepts.

        Raises:
            SequenceGap: an order is missing and nowhere in the log.
            StreamChanged: the topic is another stream's now.
            BrokerUnavailable: no answer to a question about the log; what was not taken comes again.
        """
        jobs: list[Job] = []
        whole = False
        try:
            for topic_partition, records in polled.items():
                for record in records:
                    chain = self._leases.chains.get(topic_partition.partition)
                    if chain is None or record.offset < chain.read.offset:
                        continue
                    if not self._take_record(chain, record, jobs):
                        self._leases.read_again()
                        break
            whole = True
        finally:
            self._add(jobs)  # the chains wait for them from now on, whatever became of the others
            if not whole:
                # The client has handed the others out, and would go on behind them.
                self._leases.read_again()

    def _take_record(self, chain: Chain, record: Record, jobs: list[Job]) -> bool:
        """Take a record, drop it, or ask for those before it: False."""
        address = address_of(record)
        raw = record.value or b""
        try:
            order = WorkOrder.decode(raw, address)
            if order.stream_id != self._stream_id:
                # Of a stream made anew in this one's place: its topics are not for this worker's dead letters.
                self._guard.check(now=True)
                raise DecodeError(address, f"is of another stream ({order.stream_id})", raw)
            refuse_unimplied(self._sequence, order, address, raw)
            if self._sequence.partition(order.sequence) != chain.partition:
                raise DecodeError(address, f"sequence {order.sequence} belongs in another partition", raw)
        except DecodeError as error:
            log.warning("%s: no work order of this stream; moved to the dead letters", error)
            jobs.append(chain.accept(record.offset, error))
            return True
        verdict = chain.judge(order.sequence)
        if verdict is Verdict.ACCEPT:
            jobs.append(chain.accept(record.offset, order))
        elif verdict is Verdict.DROP:
            self.repetitions += 1
            chain.drop(record.offset)
        else:
            return self._take_early(chain, order.sequence, record.offset, address)
        return True

    def _take_early(self, chain: Chain, sequence: int, offset: int, address: str) -> bool:
        """Meet a higher sequence than expected: go back once, then look for the missing one up to the log's end.

        Where offsets were left out, the client may have gone on from a stale position. Where none were, it is what a
        feeder left that failed: it publishes again from the missing order on, behind the early one, which is dropped by
        the reader's rule.

        Returns:
            Whether the record was dropped; else what lies before it is to be read first.

        Raises:
            SequenceGap: the log ends without it.
        """
        missing = chain.read.sequence
        early = self._early.get(chain.partition)
        if early is None or early.chain is not chain or early.missing != missing:
            if offset > chain.read.offset:
                self._early[chain.partition] = _Early(chain, missing, None)
                return False
            early = None
        if early is None or early.end is None:
            early = _Early(chain, missing, self._leases.end_offset(chain.partition))
            self._early[chain.partition] = early
        assert early.end is not None
        if offset + 1 >= early.end:
            raise SequenceGap(
                f"{address}: holds sequence {sequence}, but {missing} comes first and is nowhere behind it: the work "
                f"orders have a hole; run `distillog feed {self._stream}` again, or make the stream anew"
            )
        chain.drop(offset)
        return True
