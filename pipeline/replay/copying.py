"""Copies captured labels into a stream, order by order, and goes on where a copying before it ended.

For each order first its labels are written, by the writers' chain: one unacknowledged record for each partition of a
teacher's topic. Behind them, once all are acknowledged, its work order is. So whatever ends it, no work order lies in
the log that has labels still to come: no worker labels what will be copied, and `feed` goes on behind the last one. A
record that was written and not counted comes twice, and is equal.

Letters: P partitions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, field, replace

from kafka import TopicPartition

from pipeline.captured.folder import TeacherFiles
from pipeline.captured.labels import read_labels
from pipeline.chain_ends import (
    implied_order,
    implied_orders,
    soft_targets_end,
    soft_targets_sequence,
    work_orders_end,
)
from pipeline.feed import RETRY_FOR, RETRY_PAUSE, SEND_TIMEOUT, WINDOW
from pipeline.kafka.log import Appender, Cluster, Headers, Reader
from pipeline.kafka.reading import read_to_end
from pipeline.names import REPLAY_OF, address_of, log_name, manifest_topic, soft_targets_topic, work_orders_topic
from pipeline.record_size import teacher_record_bytes
from pipeline.replay.target import Target
from pipeline.sequence import Sequence
from pipeline.streams import TopicGuard
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, DecodeError, DeliveryFailed, PositionOutOfRange, StreamConflict

log = logging.getLogger(__name__)

_AHEAD = 256
"""Orders whose labels are written before their work orders are, at least."""
_LOOK_SECONDS = 300.0
"""For the first copy of a partition's last order; behind repetitions it lies farther than its number says."""


@dataclass(slots=True)
class Copied:
    """How far a copying is."""

    num_orders: int
    """That are captured of any teacher: what it comes to."""
    reached: int = 0
    """The order behind the last one that is whole in the stream: its labels and its work order."""
    new_labels: dict[str, int] = field(default_factory=dict)
    """Teacher -> records that were written, repetitions after a failure counted."""
    new_orders: int = 0
    """Work orders, counted in the same way."""
    stopped: bool = False
    """Whether it was told to stop before its end."""


def copy_labels(
    cluster: Cluster,
    target: Target,
    *,
    rate: float | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[Copied], object] = lambda copied: None,
) -> Copied:
    """Write whatever is captured and not in the stream yet.

    Args:
        cluster: where the stream is.
        target: as opened just now.
        rate: orders a second at most; None: as fast as it goes.
        stop: ends it at the next order when set.
        progress: is shown how far it is, now and then.

    Raises:
        StreamConflict: workers of a teacher have labelled orders here that are captured, before they were copied.
        StreamChanged: the stream was deleted or made again meanwhile.
        DecodeError, DataUnavailable: a captured file is damaged, or cannot be read.
        NotAuthorized: its topics may not be written.
        BrokerUnavailable, DeliveryFailed: nothing could be written for 300 s.
    """
    copying = _Copying(cluster, target, rate, stop or threading.Event(), progress)
    with closing(copying.guard):
        return copying.run()


class _Copying:
    def __init__(
        self,
        cluster: Cluster,
        target: Target,
        rate: float | None,
        stop: threading.Event,
        progress: Callable[[Copied], object],
    ) -> None:
        manifest = target.stream.manifest
        self._cluster, self._target, self._rate, self._stop, self._progress = cluster, target, rate, stop, progress
        self._manifest = manifest
        self._orders = Sequence.of(manifest)
        self._captured = {name: Sequence.of(each.manifest) for name, each in target.files.items()}
        self._topic = work_orders_topic(manifest.stream)
        self._flying: dict[tuple[str, int], tuple[Future[int], Deadline]] = {}
        self._patience = Deadline(RETRY_FOR)
        self._begun, self._paced = time.monotonic(), 0
        num_orders = max(each.num_orders for each in target.files.values())
        self.copied = Copied(num_orders, new_labels=dict.fromkeys(target.files, 0))
        topics = [soft_targets_topic(manifest.stream, name) for name in target.files]
        self.guard = TopicGuard(cluster, [self._topic, manifest_topic(manifest.stream), *topics])

    def run(self) -> Copied:
        """Copy, and after a failure look at the topics again and go on."""
        while True:
            try:
                self._copy(*self._there())
                self.guard.check(now=True)  # nobody wrote into topics that are gone
                if not self.copied.stopped:
                    self._refuse_overtaken()
                return self.copied
            except (BrokerUnavailable, DeliveryFailed, PositionOutOfRange) as error:
                if self._stop.is_set():
                    self.copied.stopped = True
                    return self.copied
                self.guard.check(now=True)
                if self._patience.over:
                    raise
                log.warning("%s; reading the topics again to go on", error)
                self._stop.wait(RETRY_PAUSE)

    def _there(self) -> tuple[dict[str, list[int]], list[int]]:
        """Per teacher [P], and of the work orders [P], the sequence that comes next in each partition.

        Raises:
            StreamConflict: the last record of one that lacks some is a worker's.
        """
        manifest, numbers = self._manifest, range(self._manifest.partitions)
        early = 2 * (WINDOW // manifest.partitions + 1)  # as a feeder looks: one may have been here
        labels: dict[str, list[int]] = {}
        with closing(self._cluster.reader()) as reader:
            for name, files in self._target.files.items():
                labels[name] = []
                for number in numbers:
                    partition = TopicPartition(soft_targets_topic(manifest.stream, name), number)
                    expected = soft_targets_end(reader, partition, manifest.stream_id, manifest.partitions)
                    if expected < files.num_orders:
                        self._refuse_labelled(reader, partition, name, expected)
                    labels[name].append(expected)
            sequence_of = implied_orders(manifest)
            orders = [
                work_orders_end(
                    reader,
                    TopicPartition(self._topic, number),
                    manifest.stream_id,
                    manifest.partitions,
                    sequence_of,
                    early,
                )
                for number in numbers
            ]
        return labels, orders

    def _refuse_labelled(
        self,
        reader: Reader,
        partition: TopicPartition,
        teacher: str,
        expected: int,
        says: str = (
            ", the next one to be copied: its labels would be of two kinds; go on with `distillog teach {stream}`, or "
            "replay under another name"
        ),
    ) -> None:
        """Raise StreamConflict where the last order of a partition before an order is none that was copied.

        What students read is its first copy. Workers that run beside a replay repeat it, and change nothing.
        """
        manifest = self._manifest
        last = expected - manifest.partitions
        if last < 0:
            return
        # Before the record of an order are those of all orders before it.
        begin = max((last - partition.partition) // manifest.partitions, reader.begins([partition])[partition])
        for record in read_to_end(reader, partition, begin, _LOOK_SECONDS):
            try:
                owner, sequence = soft_targets_sequence(record.value or b"", address_of(record))
            except DecodeError:
                continue
            if owner != manifest.stream_id or sequence < last:
                continue
            if sequence > last:
                return  # retention removed it
            if REPLAY_OF not in dict(record.headers):
                name = manifest.stream
                raise StreamConflict(
                    f"{log_name(partition)}: workers of teacher {teacher!r} have labelled orders of stream {name!r} "
                    f"before order {expected}{says.format(stream=name)}"
                )
            return

    def _refuse_overtaken(self) -> None:
        """Raise StreamConflict where workers had orders, which somebody fed meanwhile, before they were copied."""
        stride = self._manifest.partitions
        says = " that were to be copied and were fed before: its labels are of two kinds; replay under another name"
        with closing(self._cluster.reader()) as reader:
            for name, files in self._target.files.items():
                topic = soft_targets_topic(self._manifest.stream, name)
                for number in range(min(stride, files.num_orders)):
                    behind = files.num_orders + (number - files.num_orders) % stride
                    self._refuse_labelled(reader, TopicPartition(topic, number), name, behind, says)

    def _copy(self, labels: dict[str, list[int]], orders: list[int]) -> None:
        """Write what is missing, from the lowest order on.

        Raises:
            BrokerUnavailable, DeliveryFailed: what is on its way may or may not be in the topics.
        """
        manifest, total = self._manifest, self.copied.num_orders
        lowest = [min(orders), *(min(each) for each in labels.values())]
        self.copied.reached = min(total, *lowest)
        record_bytes = max(teacher_record_bytes(manifest, each) for each in self._target.stream.teachers.values())
        appender = self._cluster.appender(max_record_bytes=max(1 << 20, record_bytes))
        self._flying.clear()
        clean = False
        try:
            ahead = max(_AHEAD, manifest.partitions)
            written = self.copied.reached
            for sequence in range(written, total):
                number = self._orders.partition(sequence)
                missing = [
                    name
                    for name, files in self._target.files.items()
                    if labels[name][number] <= sequence < files.num_orders
                ]
                if missing or orders[number] <= sequence:
                    written = self._pace(appender, written, sequence, orders)
                if self._stop.is_set():
                    break
                for name in missing:
                    self._append_label(appender, name, sequence, number)
                if sequence + 1 - written >= ahead:
                    written = self._append_orders(appender, written, sequence + 1, orders)
            else:
                written = self._append_orders(appender, written, total, orders)
            self._settle_all()
            self.copied.reached, self.copied.stopped = max(self.copied.reached, written), written < total
            self._progress(self.copied)
            clean = True
        finally:
            appender.close(1.0 if clean else 0.0)

    def _pace(self, appender: Appender, written: int, sequence: int, orders: list[int]) -> int:
        """Wait until an order may be written, with nothing left behind meanwhile; return up to where orders are."""
        if self._rate is None:
            return written
        due = self._begun + self._paced / self._rate
        self._paced += 1
        if due > time.monotonic():
            written = self._append_orders(appender, written, sequence, orders)
            self._settle_all()
            self.copied.reached = max(self.copied.reached, written)
            self._progress(self.copied)
            while (left := due - time.monotonic()) > 0 and not self._stop.wait(min(left, 1.0)):
                self.guard.check()
                self._patience = Deadline(RETRY_FOR)  # a pause is no failure
        return written

    def _append_label(self, appender: Appender, teacher: str, sequence: int, number: int) -> None:
        files: TeacherFiles = self._target.files[teacher]
        value, order = read_labels(files, self._captured[teacher], sequence)
        ours = replace(value, stream_id=self._manifest.stream_id)
        raw = ours.encode(self._manifest.schema_fingerprints)
        address = f"{soft_targets_topic(files.manifest.stream, teacher)}/{order.partition}@{order.offset}"
        topic = soft_targets_topic(self._manifest.stream, teacher)
        self._append(appender, topic, number, raw, [(REPLAY_OF, address.encode())])
        self.copied.new_labels[teacher] += 1

    def _append_orders(self, appender: Appender, first: int, behind: int, there: list[int]) -> int:
        """Write the work orders of a range, once all labels before its end are acknowledged; return how far it came."""
        self._settle_all()
        self.copied.reached = max(self.copied.reached, first)  # those before it were on their way, too
        self._progress(self.copied)
        for sequence in range(first, behind):
            if self._stop.is_set():
                return sequence
            number = self._orders.partition(sequence)
            if there[number] <= sequence:
                order = implied_order(self._manifest.stream_id, self._orders, sequence)
                self._append(appender, self._topic, number, order.encode(self._manifest.schema_fingerprints), [])
                self.copied.new_orders += 1
        return behind

    def _append(self, appender: Appender, topic: str, number: int, raw: bytes, headers: Headers) -> None:
        """Send a record, once the one before it in its partition is acknowledged."""
        self._settle((topic, number))
        answer = appender.append(topic, number, raw, headers=headers)
        self._flying[(topic, number)] = answer, Deadline(SEND_TIMEOUT)

    def _settle_all(self) -> None:
        for key in list(self._flying):
            self._settle(key)

    def _settle(self, key: tuple[str, int]) -> None:
        """Wait until what is on its way in a partition is acknowledged.

        Raises:
            BrokerUnavailable, DeliveryFailed, NotAuthorized, RecordTooLarge: it was refused, or not acknowledged.
        """
        if key not in self._flying:
            return
        answer, deadline = self._flying[key]
        while not answer.done():
            wait([answer], timeout=0.5)
            if deadline.over:
                raise DeliveryFailed(f"{key[0]}/{key[1]}: a record was not acknowledged in {SEND_TIMEOUT:.0f} s")
            self.guard.check()
        answer.result()
        del self._flying[key]
        self._patience = Deadline(RETRY_FOR)
