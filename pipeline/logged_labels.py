"""A teacher's soft targets in its topic, each order's once, for who looks at them all. P partitions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from kafka import TopicPartition

from pipeline.kafka.log import Cluster, Reader, Record
from pipeline.names import address_of, log_name, manifest_topic, soft_targets_topic
from pipeline.readers_rule import ReadersRule
from pipeline.record_size import teacher_record_bytes
from pipeline.sequence import Sequence
from pipeline.stored_labels import Dropped, Stored
from pipeline.streams import Stream, TopicGuard
from pipeline.wait import Deadline
from schemas.errors import BrokerUnavailable, DecodeError, PositionOutOfRange
from schemas.records import SoftTargets

log = logging.getLogger(__name__)

_SILENCE = 60.0
"""Seconds without a record, while there are more, after which a reading is given up."""
_POLL = 0.5
_RECORDS_IN_A_FETCH = 3
"""Of each partition: with few, orders come nearly in sequence, and few lie in memory."""
_LEAST_FETCH = 64 * 1024


@dataclass
class LoggedLabels:
    """Those in a teacher's topic, by the reader's rule, up to its end as it is when the reading begins.

    Where retention removed the beginning of a partition, the rule begins anew at each order that lies higher.
    """

    cluster: Cluster
    stream: Stream
    teacher: str
    begin: int
    """The first order."""
    until: int
    """The order behind the last."""
    dropped: Dropped = field(default_factory=Dropped)
    first_missing: int | None = None

    def read(self) -> Iterator[Stored]:
        """Yield each order that is there.

        Raises:
            StreamChanged: a topic was deleted, or deleted and made again.
            NotAuthorized: it may not be read.
            BrokerUnavailable: no record came for a minute.
            PositionOutOfRange: the log became shorter.
        """
        manifest = self.stream.manifest
        topic = soft_targets_topic(manifest.stream, self.teacher)
        record_bytes = teacher_record_bytes(manifest, self.stream.teacher(self.teacher))
        fetch = max(_LEAST_FETCH, _RECORDS_IN_A_FETCH * record_bytes)
        guard = TopicGuard(self.cluster, [topic, manifest_topic(manifest.stream)])
        with closing(guard), closing(self.cluster.reader(fetch_bytes=fetch)) as reader:
            yield from self._read(reader, guard, [TopicPartition(topic, each) for each in range(manifest.partitions)])

    def _read(self, reader: Reader, guard: TopicGuard, partitions: list[TopicPartition]) -> Iterator[Stored]:
        orders = Sequence.of(self.stream.manifest)
        begins, ends = reader.begins(partitions), reader.ends(partitions)
        rules: dict[TopicPartition, ReadersRule] = {}
        trimmed = set()
        for partition in partitions:
            number: int = partition.partition
            expected = orders.next_in(number, self.begin)
            # No record of it lies lower: all before it have one each.
            lowest = (expected - number) // orders.partitions
            rules[partition] = ReadersRule(expected, max(lowest, begins[partition]), orders.partitions)
            if begins[partition] > lowest:
                trimmed.add(partition)
        # Of what ends before the range begins nothing is read.
        rules = {each: rule for each, rule in rules.items() if rule.expected < self.until}
        open_ = {each for each, rule in rules.items() if rule.position < ends[each]}
        reader.assign(open_)
        for partition in open_:
            reader.seek(partition, rules[partition].position)
        silence = Deadline(_SILENCE)
        while open_:
            guard.check()
            try:
                polled = reader.poll(_POLL)
            except PositionOutOfRange:
                begins = reader.begins(list(open_))
                removed = {each for each in open_ if (reader.position(each) or 0) < begins[each]}
                if not removed:
                    raise
                for each in removed:
                    reader.seek(each, begins[each])
                trimmed |= removed
                continue
            except BrokerUnavailable as error:
                if silence.over:
                    raise
                log.debug("reading the soft targets: %s", error)
                continue
            for partition, records in polled.items():
                rule = rules[partition]
                for record in records:
                    if record.offset < ends[partition] and rule.expected < self.until:
                        yield from self._taken(rule, partition in trimmed, record)
            if polled:
                silence = Deadline(_SILENCE)
            done = {
                each
                for each in open_
                if rules[each].expected >= self.until or (reader.position(each) or 0) >= ends[each]
            }
            open_ -= done
            if open_ and silence.over:
                where = log_name(min(open_, key=lambda each: int(each.partition)))
                raise BrokerUnavailable(f"{where}: no record came for {_SILENCE:.0f} s, and its end is not reached")
        for rule in rules.values():
            self._missed(rule.expected)
            self.dropped.repetitions += rule.num_duplicates
            self.dropped.early += rule.num_early

    def _taken(self, rule: ReadersRule, trimmed: bool, record: Record) -> Iterator[Stored]:
        """Yield the record's order where it is the one expected."""
        address = address_of(record)
        try:
            value = SoftTargets.decode(record.value or b"", address)
        except DecodeError as error:
            self.dropped.undecodable += 1
            log.debug("dropped: %s", error)
            return
        if value.stream_id != self.stream.manifest.stream_id:
            self.dropped.foreign += 1
            return
        if trimmed and value.sequence > rule.expected and (value.sequence - rule.expected) % rule.stride == 0:
            self._missed(rule.expected)
            rule.expected = value.sequence
        if rule.expected < self.until and rule.accept(record.offset, value.sequence):
            worker = dict(record.headers).get("worker") or b""
            yield Stored(value, address, worker.decode(errors="backslashreplace"))

    def _missed(self, sequence: int) -> None:
        if sequence < self.until and (self.first_missing is None or sequence < self.first_missing):
            self.first_missing = sequence
