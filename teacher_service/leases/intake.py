"""What a worker takes from the work orders: the reader's rule, and what it says of records that break it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from pipeline.chain_ends import refuse_unimplied
from pipeline.kafka.log import Polled, Record
from pipeline.names import address_of
from pipeline.sequence import Sequence
from pipeline.streams import TopicGuard
from schemas.errors import DecodeError, SequenceGap
from schemas.records import Manifest, WorkOrder
from teacher_service.leases.chain import Chain, Verdict
from teacher_service.leases.leases import Leases

log = logging.getLogger(__name__)

HOLE_PATIENCE = 300.0
"""seconds for which the orders before one that came too early are waited for: a feeder that failed tries as long"""
TELL_AFTER = 1.0
"""seconds after which that is said"""


@dataclass(slots=True, eq=False)
class _Early:
    """A higher sequence came than a chain expects."""

    chain: Chain
    missing: int
    address: str
    """of the record that came too early"""
    since: float | None = None
    """when nothing was known to be left out before it; from then on the missing one is looked for behind it"""
    seen: int = 0
    """offset behind the last record that was looked at"""
    found: bool = False
    """the missing one lies behind: what comes before it can be stepped over"""
    told: bool = False

    @property
    def over(self) -> bool:
        """Whether what was missing was taken, or the lease ended."""
        return self.chain.over or self.chain.read.sequence != self.missing

    @property
    def looking(self) -> bool:
        """Whether the missing one was not met yet."""
        return self.since is not None and not self.found and not self.over


class Intake:
    """Turns polled records into jobs of their chains."""

    def __init__(self, manifest: Manifest, leases: Leases, guard: TopicGuard) -> None:
        self.repetitions = 0
        """orders dropped since they were taken before"""
        self._stream = manifest.stream
        self._stream_id = manifest.stream_id
        self._sequence = Sequence.of(manifest)
        self._leases = leases
        self._guard = guard
        self._early: dict[int, _Early] = {}
        """by partition"""

    @property
    def waiting(self) -> bool:
        """Whether orders were met whose predecessors are not in the log yet."""
        return any(early.looking for early in self._early.values())

    def take(self, polled: Polled) -> None:
        """Apply the reader's rule to what was polled.

        Raises:
            SequenceGap: an order is missing, nowhere in the log, and did not come within `HOLE_PATIENCE`.
            StreamChanged: the topic is another stream's now.
            BrokerUnavailable: no answer to a question about the log; what was not taken comes again.
        """
        whole = False
        try:
            for topic_partition, records in polled.items():
                for record in records:
                    chain = self._leases.chains.get(topic_partition.partition)
                    if chain is None or record.offset < chain.read.offset:
                        continue
                    if not self._take_record(chain, record):
                        self._leases.read_again()
                        break
            whole = True
        finally:
            if not whole:
                # The client has handed the others out, and would go on behind them.
                self._leases.read_again()
        self._refuse_hole()

    def _take_record(self, chain: Chain, record: Record) -> bool:
        """Take a record, drop it, leave it where it is, or ask for those before it: False."""
        address = address_of(record)
        order = self._read(record, chain.partition, address)
        early = self._early.get(chain.partition)
        if early is not None and early.looking:
            # Behind a hole nothing is taken, so that nothing is committed beyond it.
            early.found = isinstance(order, WorkOrder) and order.sequence == early.missing
            early.seen = record.offset + 1
            return not early.found
        if isinstance(order, DecodeError):
            log.warning("%s: no work order of this stream; moved to the dead letters", order)
            chain.accept(record.offset, order)
            return True
        verdict = chain.judge(order.sequence)
        if verdict is Verdict.ACCEPT:
            chain.accept(record.offset, order)
        elif verdict is Verdict.DROP:
            self.repetitions += 1
            chain.drop(record.offset)
        else:
            return self._take_early(chain, record.offset, address)
        return True

    def _read(self, record: Record, partition: int, address: str) -> WorkOrder | DecodeError:
        """Read a work order; the error for what is none of this stream's."""
        raw = record.value or b""
        try:
            order = WorkOrder.decode(raw, address)
            if order.stream_id != self._stream_id:
                # Of a stream made anew in this one's place: its topics are not for this worker's dead letters.
                self._guard.check(now=True)
                return DecodeError(address, f"is of another stream ({order.stream_id})", raw)
            refuse_unimplied(self._sequence, order, address, raw)
        except DecodeError as error:
            return error
        if self._sequence.partition(order.sequence) != partition:
            return DecodeError(address, f"sequence {order.sequence} belongs in another partition", raw)
        return order

    def _take_early(self, chain: Chain, offset: int, address: str) -> bool:
        """Meet a higher sequence than expected: go back once, then look for the missing one behind it.

        Where offsets were left out, the client may have gone on from a stale position. Where none were, it is what a
        feeder left that failed: it publishes again from the missing order on. Once that is met, all is read again from
        here, and what came too early is dropped by the reader's rule.

        Returns:
            False: what lies before the record is to be read first.
        """
        early = self._early.get(chain.partition)
        if early is None or early.over or early.chain is not chain:
            early = self._early[chain.partition] = _Early(chain, chain.read.sequence, address)
            if offset > chain.read.offset:
                return False
        if early.found:
            chain.drop(offset)
        else:
            early.since, early.seen = time.monotonic(), offset + 1
        return True

    def _refuse_hole(self) -> None:
        """Raise SequenceGap where the log was read to its end without a missing order, and long enough ago."""
        for partition, early in self._early.items():
            if not early.looking or early.since is None:
                continue
            waited = time.monotonic() - early.since
            if waited >= TELL_AFTER and not early.told:
                early.told = True
                log.warning("%s: order %d comes first; waiting for a feeder", early.address, early.missing)
            if waited < HOLE_PATIENCE:
                continue
            if self._leases.end_offset(partition) > early.seen:
                early.since = time.monotonic()  # there is more, which was not polled yet
                continue
            raise SequenceGap(
                f"{early.address}: order {early.missing} comes first, and did not come behind it within "
                f"{HOLE_PATIENCE:.0f} s: the work orders have a hole; run `distillog feed {self._stream}` again"
            )
