"""Deleting the labels of a stream's oldest epochs, as far as no run needs them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from pipeline import status
from pipeline.chain_ends import first_copy, soft_targets_end, soft_targets_sequence
from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import Reader
from pipeline.kafka.needs import Right, needing, refuse_hidden
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream
from schemas.commits import RunReport
from schemas.errors import ConfigError, StreamConflict
from schemas.names import did_you_mean
from schemas.records import Manifest


@dataclass(frozen=True, slots=True)
class Trim:
    """What of a stream's labels may go."""

    sequence: int
    """Labels of all orders below it go."""
    epochs: int
    """Whole epochs below it."""
    runs: tuple[str, ...]
    """Those that were asked: they have reported, and are not left out."""
    held_by: Mapping[str, int]
    """Run -> the order that it needs labels from, of those that need some of what would go else."""
    offsets: Mapping[TopicPartition, int]
    """Partition of soft targets -> the first offset that stays, where anything before it is left."""
    records: int
    """How many lie before those."""


def plan_trim(settings: KafkaSettings, stream: Stream, keep_epochs: int, without: Collection[str] = ()) -> Trim:
    """Find what of a stream's labels no run needs, and is older than so many epochs.

    They are counted from the newest epoch that has labels of every teacher, which counts as one. A run that is not done
    needs what lies behind its checkpoint, and all of it where it takes several passes over it. The last record of a
    partition stays in any case: it tells a worker where to go on.

    Args:
        settings: the cluster.
        stream: as opened just now.
        keep_epochs: at least 1.
        without: runs that are not asked, since they will not be resumed.

    Raises:
        ConfigError: no such run.
        StreamConflict: a teacher of the stream needs a newer Distillog.
        StreamChanged, NotAuthorized, BrokerUnavailable: as `status.lag`.
    """
    manifest = stream.manifest
    if stream.unread:
        raise StreamConflict(
            f"what {', '.join(stream.unread)} has labelled, only a newer Distillog can tell: trim by it"
        )
    orders = Sequence.of(manifest)
    runs = {run.name: run.report for run in status.lag(settings, stream).runs}
    for name in without:
        if name not in runs:
            raise ConfigError(
                f"run {name!r} has reported nothing of itself to {manifest.stream!r}: {did_you_mean(name, runs)}"
            )
    with (
        kafka_errors(f"looking for what of stream {manifest.stream!r} can go", settings),
        closing(KafkaCluster(settings).reader()) as reader,
    ):
        topics = [soft_targets_topic(manifest.stream, name) for name in stream.teachers]
        logs = [TopicPartition(topic, number) for topic in topics for number in range(manifest.partitions)]
        begins, ends = reader.begins(logs), reader.ends(logs)
        expected = {log: _expected(reader, manifest, log, begins, ends) for log in logs}
        reached = min(expected.values(), default=0)
        newest = orders.epoch_of(reached - 1) if reached else 0
        wanted = max(0, newest - keep_epochs + 1) * orders.orders_per_epoch
        needs = {name: _needed_from(report) for name, report in runs.items() if name not in without}
        held_by = {name: first for name, first in needs.items() if first is not None and first < wanted}
        sequence = min([wanted, *held_by.values()])
        offsets = {
            log: _first_that_stays(reader, manifest, log, begins[log], ends[log], expected[log], sequence)
            for log in logs
        }
    offsets = {log: offset for log, offset in offsets.items() if offset > begins[log]}
    records = sum(offset - begins[log] for log, offset in offsets.items())
    return Trim(sequence, sequence // orders.orders_per_epoch, tuple(sorted(needs)), held_by, offsets, records)


def trim(settings: KafkaSettings, stream: Stream, plan: Trim) -> None:
    """Delete what a plan says.

    Raises:
        NotAuthorized: the labels may not be deleted.
        BrokerUnavailable: no answer from Kafka; what was deleted until then is gone, and the same call goes on.
    """
    if not plan.offsets:
        return
    rights = [Right("DELETE", "topic", topic) for topic in sorted({log.topic for log in plan.offsets})]
    with (
        admin_client(settings) as admin,
        kafka_errors(f"trimming stream {stream.manifest.stream!r}", settings),
        needing(*rights),
    ):
        _delete(admin, plan.offsets)


def _delete(admin: KafkaAdminClient, offsets: Mapping[TopicPartition, int]) -> None:
    refuse_hidden(admin, {log.topic for log in offsets})
    admin.delete_records(dict(offsets))


def _expected(
    reader: Reader,
    manifest: Manifest,
    log: TopicPartition,
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
) -> int:
    """The order that is expected next of a partition of soft targets."""
    if begins[log] == ends[log]:
        return int(log.partition)
    return soft_targets_end(reader, log, manifest.stream_id, manifest.partitions)


def _first_that_stays(
    reader: Reader,
    manifest: Manifest,
    log: TopicPartition,
    begin: int,
    end: int,
    expected: int,
    sequence: int,
) -> int:
    """The offset of the first record that a reader takes of the first order from a sequence on.

    `begin`, `end` and `expected` are the log's: its offsets, and the order that comes next in it.
    """
    first = log.partition + max(0, -(-(sequence - log.partition) // manifest.partitions)) * manifest.partitions
    least = max(begin, (first - log.partition) // manifest.partitions)
    if first == log.partition or least >= end:
        return begin
    found = first_copy(reader, log, manifest.stream_id, first, least, soft_targets_sequence)
    if found >= end and expected > first:
        return begin  # it is missing, and what lies behind it is needed
    return max(begin, min(found, end - 1))


def _needed_from(report: RunReport) -> int | None:
    """The order from which on a run needs labels; None: it needs none any more."""
    if report.state == "done":
        return None
    # Of several passes a report does not say which one its checkpoint is of; who says no number may begin again.
    return report.checkpointed if report.passes == 1 else 0
