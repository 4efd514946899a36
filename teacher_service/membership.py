"""Whose partitions are whose: the worker's side of its consumer group.

kafka-python may resume a partition from a stale position after a rebalance (docs/kafka.md). So nothing that a poll
returned is believed until the membership under which it came is the one that the ledgers were made under, and every
position is set by hand from the group's committed offset.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka import errors as kafka_error
from kafka.structs import MemberState

from pipeline.chain import chain_end, offset_of, sequence_at, soft_targets_sequence
from pipeline.feed import batch_bytes
from pipeline.kafka.clients import new_admin, new_consumer
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic, teacher_group, work_orders_topic
from schemas.commits import decode_next_sequence, encode_next_sequence
from schemas.records import Manifest, Teacher
from teacher_service.assignor import EqualShares, Forgetting
from teacher_service.ledger import Mark, PartitionLedger

log = logging.getLogger(__name__)

NOWHERE = Mark(-1, -1)


def join_group(
    settings: KafkaSettings,
    manifest: Manifest,
    teacher: Teacher,
    worker: str,
    session_timeout: float,
) -> KafkaConsumer:
    """Subscribe to a stream's work orders as a member of its teacher's group; the caller closes the consumer.

    Args:
        worker: name of the worker, shown in group listings.
        session_timeout: seconds of silence after which the broker gives its partitions to others.
    """
    assignor = EqualShares()
    session_ms = int(session_timeout * 1000)
    consumer = new_consumer(
        settings,
        group_id=teacher_group(manifest, teacher.name),
        client_id=worker,
        partition_assignment_strategy=[assignor],
        session_timeout_ms=session_ms,
        # A cooperative move takes two rounds of at most one heartbeat each.
        heartbeat_interval_ms=min(500, session_ms // 3),
        max_poll_interval_ms=max(60_000, 2 * session_ms),
        # Small fetches, and all that came at once: each partition has its turn, so orders come nearly in sequence. A
        # poll that takes less leaves one partition half read, which the next fetch passes over.
        max_partition_fetch_bytes=2 * batch_bytes(manifest),
        max_poll_records=100_000,
    )
    consumer.subscribe([work_orders_topic(manifest.stream)], listener=Forgetting(assignor))
    return consumer


class Membership:
    """Ledgers of the partitions that this worker owns, kept true to the group."""

    def __init__(
        self,
        settings: KafkaSettings,
        consumer: KafkaConsumer,
        manifest: Manifest,
        teacher: Teacher,
        unhurried: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.ledgers: dict[int, PartitionLedger] = {}
        self.generation = -1
        self._settings = settings
        self._unhurried = unhurried
        """around what may take long and is no hang"""
        self._consumer = consumer
        self._manifest = manifest
        self._group = teacher_group(manifest, teacher.name)
        self._orders = work_orders_topic(manifest.stream)
        self._targets = soft_targets_topic(manifest.stream, teacher.name)
        # A short time-out: the polling thread asks, and it has more to do.
        self._admin: KafkaAdminClient = new_admin(settings, request_timeout_ms=5_000)
        self._member: tuple[int, str] | None = None
        self._leases = 0
        self._pending: dict[int, Mark] = {}
        """commits under way: they may have succeeded although nobody said so"""
        self._ends: dict[int, Mark] = {}
        """ends of chains that were read and are not committed yet: reading one may outlast the membership"""

    @property
    def partitions(self) -> set[int]:
        """Partitions owned according to the client, right now."""
        return {topic_partition.partition for topic_partition in self._consumer.assignment()}

    def is_current(self, partition: int, lease: int) -> bool:
        """Whether a job's partition is still held under the job's lease; callable from any thread."""
        ledger = self.ledgers.get(partition)
        return ledger is not None and ledger.lease == lease

    def settled(self) -> bool:
        """Bring the ledgers in line after a poll.

        Returns:
            False: the membership changed, so the records of that poll must be dropped.
        """
        metadata = self._consumer.group_metadata()
        if metadata.state == MemberState.REBALANCING:
            # A leader that joins again because the topic's metadata changed, and whose poll ends before the join does,
            # forgets that it was joining (measured): heartbeats stay off, and nothing ever comes again.
            self._consumer._coordinator.request_rejoin()
        member = (metadata.generation_id, metadata.member_id)
        owned = self.partitions
        self.drop_lost()
        if member[0] < 0 or not member[1]:
            return False
        if member == self._member and set(self.ledgers) == owned:
            return True
        with self._unhurried():
            self._take_up(owned)
        self._member, self.generation = member, member[0]
        return False

    def drop_lost(self) -> None:
        """End the leases of partitions that this worker does not own any more."""
        for partition in set(self.ledgers) - self.partitions:
            del self.ledgers[partition]

    def rewind(self, partitions: Iterable[int]) -> None:
        """Go back to the committed offsets: the leases end now, the next `settled` takes new ones.

        In this order, since asking for the committed offsets may fail: no job of before may count after that.
        """
        for partition in list(partitions):
            self.ledgers.pop(partition, None)

    def end_offset(self, partition: int) -> int:
        """Offset behind the last work order of a partition.

        Raises:
            BrokerUnavailable: no answer.
        """
        orders = TopicPartition(self._orders, partition)
        with self._unhurried(), kafka_errors("reading the end of the work orders", self._settings):
            return int(self._consumer.end_offsets([orders])[orders])

    def _take_up(self, partitions: set[int]) -> None:
        """Go on at the committed offsets, except where a ledger is there and the commit is this worker's own last."""
        topic_partitions = [TopicPartition(self._orders, partition) for partition in sorted(partitions)]
        with kafka_errors(f"reading the committed offsets of {self._group}", self._settings):
            committed = self._admin.list_group_offsets({self._group: topic_partitions})[self._group]
        fresh: dict[int, Mark | None] = {}
        for topic_partition in topic_partitions:
            partition = topic_partition.partition
            there = committed.get(topic_partition)
            ledger = self.ledgers.get(partition)
            offset = there.offset if there is not None else -1
            if ledger and offset in self._own_commits(partition, ledger):
                self._seek(partition, ledger.read.offset)  # a stale position may lie ahead
            else:
                fresh[partition] = _mark(there) if there is not None and offset >= 0 else None
        for partition, mark in self._found(fresh).items():
            self._leases += 1
            ledger = PartitionLedger(self._leases, mark, self._manifest.partitions)
            if fresh[partition] is None:
                ledger.committed = NOWHERE  # commit it soon: groups without offsets begin at the chain's end each time
            self.ledgers[partition] = ledger
            self._seek(partition, mark.offset)

    def _own_commits(self, partition: int, ledger: PartitionLedger) -> set[int]:
        """Offsets that the group may show if nobody but this worker committed."""
        pending = self._pending.get(partition)
        return {ledger.committed.offset} | ({pending.offset} if pending else set())

    def _seek(self, partition: int, offset: int) -> None:
        try:
            self._consumer.seek(TopicPartition(self._orders, partition), offset)
        except kafka_error.IllegalStateError:  # revoked a moment ago: the next poll says so
            self.ledgers.pop(partition, None)

    def _found(self, marks: dict[int, Mark | None]) -> dict[int, Mark]:
        """Complete marks that the commits do not tell in full.

        Groups' offsets expire (7 days on a default broker), so no committed offset is not "the beginning": the soft
        targets that are there say how far the group came.
        """
        whole = {partition: mark for partition, mark in marks.items() if mark is not None and mark.sequence >= 0}
        if len(whole) == len(marks):
            return whole
        manifest = self._manifest
        missing = [partition for partition in marks if partition not in whole]
        sequences: dict[int, int] = {}
        consumer = new_consumer(self._settings, group_id=None)
        try:
            with kafka_errors("finding the end of the soft targets", self._settings):
                # One topic after the other, and all partitions in one question: a consumer that changes its topic
                # fetches metadata for 0.2 s.
                ends = consumer.end_offsets([TopicPartition(self._targets, partition) for partition in missing])
                for partition in missing:
                    if marks[partition] is None and partition not in self._ends:
                        targets = TopicPartition(self._targets, partition)
                        sequences[partition] = (
                            chain_end(consumer, targets, manifest.stream_id, manifest.partitions, soft_targets_sequence)
                            if ends[targets]
                            else partition
                        )
                begins = consumer.beginning_offsets([TopicPartition(self._orders, partition) for partition in missing])
                for partition in missing:
                    orders = TopicPartition(self._orders, partition)
                    mark, sequence = marks[partition], sequences.get(partition)
                    if mark is not None:  # committed by a tool that knows no sequences
                        sequence = sequence_at(consumer, orders, manifest.stream_id, manifest.partitions, mark.offset)
                        whole[partition] = Mark(mark.offset, sequence)
                    elif sequence is None:
                        whole[partition] = self._ends[partition]
                    elif sequence == partition and begins[orders] == 0:
                        whole[partition] = self._ends[partition] = Mark(0, partition)
                    else:
                        offset = offset_of(consumer, orders, manifest.stream_id, manifest.partitions, sequence)
                        whole[partition] = self._ends[partition] = Mark(offset, sequence)
        finally:
            consumer.close()
        num_continued = sum(sequence != partition for partition, sequence in sequences.items())
        if num_continued:
            log.warning(
                "group %s has no committed offset for %d partitions that have soft targets: going on behind those",
                self._group,
                num_continued,
            )
        return whole

    def commit(self, timeout: float, *, wait: bool = False) -> bool:
        """Commit the contiguous acknowledged prefix of every partition that has a new one.

        The commit is fenced by membership: one of an older generation is refused by the broker, and the next poll
        finds out why. It is always true, whoever makes it: what it covers is acknowledged in the log.

        Args:
            wait: try until the deadline (a worker that leaves) instead of once.

        Returns:
            Whether everything is committed.

        Raises:
            ConfigError: the cluster refuses this group to the user.
        """
        marks = {partition: ledger.done for partition, ledger in self.ledgers.items() if ledger.dirty}
        if not marks:
            return True
        self._pending = marks
        offsets = {
            TopicPartition(self._orders, partition): OffsetAndMetadata(
                mark.offset, encode_next_sequence(mark.sequence), -1
            )
            for partition, mark in marks.items()
        }
        try:
            self._consumer.commit(offsets, timeout_ms=int(timeout * 1000))
        except kafka_error.AuthorizationError:
            with kafka_errors("committing", self._settings):
                raise
        except (kafka_error.KafkaError, AssertionError) as error:
            log.log(logging.WARNING if wait else logging.DEBUG, "commit not taken (%s)", error)
            return False
        for partition, mark in marks.items():
            if partition in self.ledgers:
                self.ledgers[partition].committed = mark
            self._ends.pop(partition, None)
        self._pending = {}
        return True

    def group_is_done(self, all_partitions: Callable[[], Iterable[int]]) -> bool:
        """Whether the whole group has committed every record of the work orders."""
        orders = [TopicPartition(self._orders, partition) for partition in all_partitions()]
        with self._unhurried(), kafka_errors("comparing committed with end offsets", self._settings):
            ends = self._consumer.end_offsets(orders)
            committed = self._admin.list_group_offsets({self._group: orders})[self._group]
        return all(not ends[tp] or (tp in committed and committed[tp].offset >= ends[tp]) for tp in orders)

    def close(self) -> None:
        """Close the client beside the consumer."""
        self._admin.close()


def _mark(there: OffsetAndMetadata) -> Mark:
    sequence = decode_next_sequence(there.metadata)
    return Mark(there.offset, -1 if sequence is None else sequence)
