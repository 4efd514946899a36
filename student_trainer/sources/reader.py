"""Reads soft targets in sequence: the reader's rule over a real log, the zip of several teachers' logs.

P partitions. No consumer group: all partitions are assigned, and where to begin is the caller's cursor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from kafka import TopicPartition

from pipeline.kafka.log import Cluster, Record
from pipeline.names import address_of
from pipeline.record_size import teacher_record_bytes
from pipeline.sequence import Sequence as OrderSequence
from pipeline.streams import Stream
from schemas.errors import (
    BrokerUnavailable,
    DecodeError,
    PositionOutOfRange,
    SequenceGap,
    UnknownSchema,
)
from schemas.records import SoftTargets
from student_trainer.run.spans import WHOLE_STREAM, Span
from student_trainer.sources.held import Held, Wait, check_identity
from student_trainer.sources.lineages import KnownLineages
from student_trainer.sources.lookout import LOOK_EVERY, Lookout
from student_trainer.sources.partition_log import PartitionLog

log = logging.getLogger(__name__)

_OnWait = Callable[[Wait], None]
_POLL = 0.1
"""Seconds that one poll waits: a stop is heeded as fast."""
_RECORDS_IN_A_FETCH = 3
"""Of one partition: held records are kept few by small fetches, never by pausing partitions one by one, which costs
98 % of the speed (measured: 137-190 records/s instead of 8,200)."""
_MIN_FETCH_BYTES = 64 * 1024
_HELD_BYTES = 64 * 1024 * 1024
"""Records held back by a missing one: beyond these bytes only the partitions that are waited for are read."""


class SoftTargetReader:
    """The soft targets of one or several teachers, order by order; used by one thread.

    Raises:
        StreamChanged: a topic of a teacher does not exist.
        StreamNotFound: the stream has no such teacher.
        BrokerUnavailable: no broker answered.
    """

    def __init__(
        self,
        cluster: Cluster,
        stream: Stream,
        teachers: Sequence[str],
        stop: threading.Event | None = None,
        *,
        keep_raw: bool = False,
        spans: Mapping[str, Span] | None = None,
    ) -> None:
        """With `keep_raw` what it gives has the records' bytes, too. `spans`: of teachers that count in some orders."""
        self.longest_wait = 0.0
        """Seconds of the longest wait for one order, so far."""
        self.waited = 0.0
        """Seconds of all waits."""
        self.num_records = 0
        """Records accepted."""
        self.num_foreign = 0
        """Records dropped that are of another stream."""
        self.num_undecodable = 0
        """Records dropped that are no soft targets at all, those of unknown schemas among them."""
        self.num_unknown = 0
        """Records dropped that are of a schema which is not known here."""
        self.unknown_schema = ""
        """Fingerprint of the last of them."""
        self._stream = stream
        self._sequence = OrderSequence.of(stream.manifest)
        self._teachers = tuple(dict.fromkeys(teachers))
        self.known = KnownLineages(cluster, stream, self._teachers)
        self._stop = stop or threading.Event()
        self._keep_raw = keep_raw
        self._waiting_since: float | None = None
        self._held_bytes = 0
        self._paused: set[TopicPartition] = set()
        self._dropped = [0, 0]
        self._spans = {name: span for name, span in (spans or {}).items() if span.partial}
        self._starts: dict[str, Sequence[int]] = {}
        self._present: list[str] = []
        self._logs: dict[TopicPartition, PartitionLog] = {}
        self._zip: list[list[PartitionLog]] = []
        record_bytes = max(teacher_record_bytes(stream.manifest, stream.teacher(name)) for name in self._teachers)
        fetch = max(_MIN_FETCH_BYTES, _RECORDS_IN_A_FETCH * record_bytes)
        num_logs = len(self._teachers) * stream.manifest.partitions
        self._held_limit = max(_HELD_BYTES, 2 * num_logs * record_bytes)
        self._lookout = Lookout(cluster, stream, teachers)
        try:
            self._log = cluster.reader(fetch_bytes=fetch)
        except BaseException:
            self._lookout.close()
            raise

    def seek(self, sequence: int, offsets: Sequence[Sequence[int]] = ()) -> None:
        """Go to an order.

        Order s of partition p lies at or behind offset (s - p) / P, since all before it do: that is where it is looked
        for.

        Args:
            sequence: what `next` is asked for next.
            offsets: per teacher, [P] log offsets at or before that order's records, which save a part of the way.
        """
        partitions = self._stream.manifest.partitions
        offsets = offsets or [[0] * partitions for _ in self._teachers]
        self._starts = dict(zip(self._teachers, offsets, strict=True))
        self._leave(list(self._logs))
        self._present = []
        self._read_present(sequence)

    def _read_present(self, sequence: int) -> None:
        """From an order on, read the logs of those teachers that count in it."""
        spans = {name: self._spans.get(name, WHOLE_STREAM) for name in self._teachers}
        present = [name for name in self._teachers if spans[name].holds(sequence)]
        if present == self._present:
            return
        manifest = self._stream.manifest
        there = {each.teacher_partition: each for each in self._logs.values()}
        self._leave([partition for partition, each in self._logs.items() if each.teacher not in present])
        self._present, self._zip = present, [[] for _ in range(manifest.partitions)]
        for teacher in present:
            for number, start in enumerate(self._starts[teacher]):
                expected = self._sequence.next_in(number, sequence)
                late = spans[teacher].first > 0
                new = PartitionLog.at(manifest, teacher, number, expected, start, late)
                found = there.get((teacher, number), new)
                self._zip[number].append(found)
                self._logs[found.partition] = found
        self._log.assign(self._logs)
        self._resume()
        for partition, each in self._logs.items():
            self._log.seek(partition, each.rule.position)

    def next(self, sequence: int, on_wait: _OnWait = lambda wait: None) -> tuple[Held, ...] | None:
        """Return the soft targets of the next order, one per teacher that counts there; None when told to stop.

        Args:
            sequence: the order that follows the last one, or the one sought.
            on_wait: called some ten times a second while a record is missing; what it raises ends the wait.

        Raises:
            SequenceGap: a record is proven missing.
            LogTrimmed: retention removed records that are not read yet.
            StreamChanged: the stream was deleted, or deleted and made again.
            ManifestMismatch: a record of this sequence is not what the manifest says.
            ConfigError: the cluster refuses the rights.
        """
        if self._spans:
            self._read_present(sequence)
        of_partition = self._zip[self._sequence.partition(sequence)]
        self._lookout.check()
        if not all(each.held for each in of_partition) and not self._fill(sequence, of_partition, on_wait):
            return None
        held = tuple(each.held[0] for each in of_partition)
        unknown = {each.value.teacher: each.value.generation for each in held if self.known.lacks(each.value)}
        if unknown and not self._learn(sequence, unknown, of_partition, on_wait):
            return None
        for each in of_partition:
            self._held_bytes -= each.held.popleft().num_bytes
        check_identity(self._sequence, sequence, self.known.of(self._present), held)
        return held

    @property
    def waiting(self) -> float:
        """Seconds that the present wait lasts already; may be asked by any thread."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def num_duplicates(self) -> int:
        """Records dropped that were lower than expected."""
        return self._dropped[0] + sum(each.rule.num_duplicates for each in list(self._logs.values()))

    @property
    def num_early(self) -> int:
        """Records dropped that were higher than expected."""
        return self._dropped[1] + sum(each.rule.num_early for each in list(self._logs.values()))

    def close(self) -> None:
        """Close the clients."""
        self._lookout.close()
        self.known.close()
        self._log.close()

    def _leave(self, partitions: Iterable[TopicPartition]) -> None:
        """Read some logs no more."""
        for partition in partitions:
            left = self._logs.pop(partition)
            self._held_bytes -= sum(each.num_bytes for each in left.held)
            self._dropped[0] += left.rule.num_duplicates
            self._dropped[1] += left.rule.num_early

    def _fill(self, sequence: int, of_partition: list[PartitionLog], on_wait: _OnWait) -> bool:
        """Poll until each log holds its next record; False when told to stop."""
        with self._a_wait() as since:
            while missing := [each for each in of_partition if not each.held]:
                if self._stop.is_set():
                    return False
                self._poll({each.partition for each in missing})
                self._refuse_trimmed()
                self._lookout.check()
                if (seconds := time.monotonic() - since) >= LOOK_EVERY:
                    at_end = self._prove(missing)
                    if logs := tuple(each.teacher_partition for each in missing if not each.held):
                        members, trouble = dict(self._lookout.members), self._lookout.trouble
                        on_wait(Wait(sequence, logs, seconds, members, trouble, self._unknown_text(), at_end))
            return True

    def _learn(self, sequence: int, unknown: Mapping[str, int], logs: list[PartitionLog], on_wait: _OnWait) -> bool:
        """Read what the manifest's topic says by now of labels' generations; False when told to stop."""
        of = tuple(each.teacher_partition for each in logs)
        with self._a_wait() as since:
            while trouble := self.known.learn(unknown):
                self._lookout.check()
                on_wait(Wait(sequence, of, time.monotonic() - since, {}, trouble))
                if self._stop.wait(_POLL):
                    return False
            return True

    @contextmanager
    def _a_wait(self) -> Iterator[float]:
        """Count the time of a wait, which begins at what is yielded."""
        self._waiting_since = since = time.monotonic()
        try:
            yield since
        finally:
            self._waiting_since = None
            seconds = time.monotonic() - since
            self.waited += seconds
            self.longest_wait = max(self.longest_wait, seconds)
            self._lookout.want(())

    def _poll(self, needed: set[TopicPartition]) -> None:
        self._hold_back(needed)
        try:
            polled = self._log.poll(_POLL)
        except PositionOutOfRange:
            self._out_of_range()
            return
        except BrokerUnavailable as error:
            # A broker that restarts: the one who waits has a deadline of its own.
            log.debug("polling the soft targets: %s", error)
            self._stop.wait(_POLL)
            return
        for partition, records in polled.items():
            each = self._logs[partition]
            for record in records:
                self._offer(each, record)

    def _offer(self, each: PartitionLog, record: Record) -> None:
        address = address_of(record)
        raw = record.value or b""
        try:
            value = SoftTargets.decode(raw, address)
        except DecodeError as error:
            self.num_undecodable += 1
            if isinstance(error, UnknownSchema):
                # One forged record may not end a run, so it is named only when a label is missing.
                self.num_unknown += 1
                self.unknown_schema = error.fingerprint
            each.rule.skip_to(record.offset + 1)
            # A record of nobody of ours: dropped by the reader's rule, like any other that is not expected.
            level = logging.WARNING if self.num_undecodable == 1 else logging.DEBUG
            log.log(level, "dropped a record that is no soft targets (further ones are counted): %s", error)
            return
        if value.stream_id != self._stream.manifest.stream_id:
            self.num_foreign += 1
            each.rule.skip_to(record.offset + 1)
            self._lookout.suspect()
            log.debug("dropped %s: it is of stream ID %s", address, value.stream_id)
        elif each.rule.accept(record.offset, value.sequence):
            kept = raw if self._keep_raw else b""
            each.held.append(Held(value, record.offset + 1, address, len(raw), kept))
            self.num_records += 1
            self._held_bytes += len(raw)

    def _unknown_text(self) -> str:
        """What is said behind a missing label of records that were dropped for their schema; empty if none was."""
        if not self.num_unknown:
            return ""
        return (
            f"; {self.num_unknown} records of unknown schemas were dropped (the last of {self.unknown_schema}): "
            "did a newer Distillog write them?"
        )

    def _hold_back(self, needed: set[TopicPartition]) -> None:
        """Read only the needed partitions while too much is held: one may be late by hours, the others are not."""
        if self._held_bytes > self._held_limit:
            others = set(self._logs) - needed
            self._resume(self._paused - others)
            self._log.pause(others - self._paused)
            self._paused = others
        elif self._paused and (self._held_bytes < self._held_limit // 2 or self._paused & needed):
            self._resume()

    def _resume(self, partitions: set[TopicPartition] | None = None) -> None:
        resumed = self._paused if partitions is None else partitions
        self._log.resume(resumed & set(self._logs))
        self._paused = self._paused - resumed

    def _prove(self, missing: list[PartitionLog]) -> bool:
        """Raise SequenceGap where a hole is proven; else return whether each log was read to its end."""
        lacking = [each for each in missing if not each.held]
        looks = self._lookout.want([each.teacher_partition for each in lacking])
        at_end = True
        for each in lacking:
            look = looks.get(each.teacher_partition)
            if look is None:
                at_end = False
                continue
            # The consumer's place moves over what is never handed out, too.
            each.rule.skip_to(self._log.position(each.partition) or 0)
            if each.rule.is_gap(look):
                raise SequenceGap(each.gap_text(self._stream.manifest.stream, look) + self._unknown_text())
            at_end = at_end and each.rule.position >= look.end
        return at_end

    def _out_of_range(self) -> None:
        """Say why a position is not in its log."""
        self._lookout.check_now()
        try:
            begins, ends = self._log.begins(self._logs), self._log.ends(self._logs)
        except BrokerUnavailable as trouble:
            log.debug("asking for the ends of the soft targets: %s", trouble)
            self._stop.wait(_POLL)
            return  # the position is still out of range when the broker is back
        for partition, each in self._logs.items():
            if (found := each.found_again(begins[partition], ends[partition])) is not None:
                self._log.seek(partition, found)

    def _refuse_trimmed(self) -> None:
        """End the run where retention removed what it needs."""
        for partition, each in self._logs.items():
            if each.trimmed is not None:
                each.refuse_trimmed(self._log.position(partition) or 0)
