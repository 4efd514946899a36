"""Reads how a stream stands: what it is, how far it is fed and labelled, who works on it.

Figures come from offsets and commits; of records, the manifest's and each partition's last work orders are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import UnknownTopicOrPartitionError

from pipeline.expired import with_expired
from pipeline.fed import num_fed
from pipeline.kafka.admin import last_offsets
from pipeline.kafka.clients import admin_client
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator, describe_groups, members_of
from pipeline.kafka.errors import kafka_errors
from pipeline.kafka.log import GroupMember, Reader
from pipeline.kafka.needs import describing_groups, needing
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import (
    dead_letters_topic,
    run_group,
    run_groups,
    soft_targets_topic,
    teacher_group,
    work_orders_topic,
)
from pipeline.reports import latest_report
from pipeline.sequence import Sequence
from pipeline.stream_status import (
    PartitionStatus,
    RunStatus,
    StreamDescription,
    StreamStatus,
    TeacherStatus,
    WorkerStatus,
)
from pipeline.streams import Stream, topic_missing
from schemas.commits import decode_next_sequence
from schemas.errors import StreamChanged
from schemas.names import is_name
from schemas.records import Manifest

RATE_INTERVAL = 1.0
"""seconds between the two readings that give a rate"""


def describe(settings: KafkaSettings, stream: Stream, rates: bool = False) -> StreamDescription:
    """Everything about a stream: its manifest, its teachers' declarations, and all of `lag`.

    Raises:
        StreamChanged, NotAuthorized, BrokerUnavailable: as `lag`.
    """
    return StreamDescription(stream.manifest, stream.teachers, lag(settings, stream, rates), stream.lineages)


def lag(settings: KafkaSettings, stream: Stream, rates: bool = False) -> StreamStatus:
    """How far a stream is fed, labelled and trained on.

    Args:
        settings: the cluster.
        stream: the stream, as opened just now.
        rates: read twice, a second apart, and add orders per second.

    Raises:
        StreamChanged: one of its topics was deleted.
        NotAuthorized: one of its topics or its teachers' groups may not be seen, or its work orders not be read.
        BrokerUnavailable: no answer from Kafka.
    """
    with readings(settings, stream) as read:
        first = read()
        if not rates:
            return first
        begun = time.monotonic()
        time.sleep(RATE_INTERVAL)
        second = read()
        return second.since(first, time.monotonic() - begun)


@contextmanager
def readings(settings: KafkaSettings, stream: Stream) -> Iterator[Callable[[], StreamStatus]]:
    """Give what reads `lag` without rates, as often as wanted and over the same connections.

    Raises:
        BrokerUnavailable: no answer from Kafka; also out of the block, whose calls they are.
    """
    with (
        kafka_errors(f"reading the state of stream {stream.manifest.stream!r}", settings),
        admin_client(settings) as admin,
        closing(KafkaCluster(settings).reader()) as reader,
    ):
        yield lambda: _read(admin, reader, stream)


def _read(admin: KafkaAdminClient, reader: Reader, stream: Stream) -> StreamStatus:
    manifest = stream.manifest
    # Commits first: an end that is read before them could lie below them.
    groups = {name: teacher_group(manifest, name) for name in stream.teachers}
    all_of_each = dict.fromkeys(groups.values())
    with needing(*describing_groups(all_of_each)):
        committed = ask_coordinator(lambda: admin.list_group_offsets(all_of_each)) if groups else {}
        described = ask_coordinator(lambda: describe_groups(admin, all_of_each)) if groups else {}
    runs = _runs(admin, manifest)
    ends = _ends(admin, work_orders_topic(manifest.stream), manifest.partitions)
    published = {
        name: _ends(admin, soft_targets_topic(manifest.stream, name), manifest.partitions) for name in stream.teachers
    }
    fed = num_fed(reader, manifest)
    teachers = []
    for name, group in groups.items():
        commits = with_expired(reader, manifest, name, committed.get(group, {}), published[name])
        offsets = _offsets(manifest, ends, commits)
        members = sorted(map(partial(_worker, offsets), members_of(described[group])), key=lambda one: one.client_id)
        teachers.append(
            TeacherStatus(
                name,
                group,
                described[group]["group_state"],
                tuple(members),
                sum(row.labelled for row in offsets),
                sum(row.lag for row in offsets),
                offsets,
                sum(published[name]),
            )
        )
    return StreamStatus(
        manifest.stream,
        manifest.stream_id,
        Sequence.of(manifest).num_orders,
        fed,
        tuple(teachers),
        {name: f"needs a newer Distillog ({why})" for name, why in stream.unread.items()},
        runs,
        _ends(admin, dead_letters_topic(manifest.stream), 1)[0],
    )


def _ends(admin: KafkaAdminClient, topic: str, partitions: int) -> list[int]:
    """[P] end offsets."""
    wanted = [TopicPartition(topic, partition) for partition in range(partitions)]
    try:
        found = last_offsets(admin, dict.fromkeys(wanted, OffsetSpec.LATEST))
    except UnknownTopicOrPartitionError:
        raise StreamChanged(topic_missing(topic)) from None
    return [int(found[partition].offset) for partition in wanted]


def _offsets(manifest: Manifest, ends: list[int], committed: dict[TopicPartition, Any]) -> tuple[PartitionStatus, ...]:
    """[P] committed against end offsets, and orders labelled."""
    topic = work_orders_topic(manifest.stream)
    rows = []
    for partition, end in enumerate(ends):
        commit = committed.get(TopicPartition(topic, partition))
        offset = commit.offset if commit is not None and commit.offset >= 0 else 0
        labelled = _labelled(manifest, partition, offset, commit.metadata if commit else "")
        rows.append(PartitionStatus(partition, offset, end, max(0, end - offset), labelled))
    return tuple(rows)


def _worker(rows: tuple[PartitionStatus, ...], member: GroupMember) -> WorkerStatus:
    owned = [rows[partition] for partition in member.partitions if partition < len(rows)]
    return WorkerStatus(
        member.name,
        member.member_id,
        member.host,
        len(owned),
        member.bid.speed or None,
        sum(row.labelled for row in owned),
        sum(row.lag for row in owned),
        tuple(row.partition for row in owned),
    )


def _labelled(manifest: Manifest, partition: int, offset: int, metadata: str | None) -> int:
    """Orders of a partition that a group has labelled: exact by the commit's metadata, else as many as records."""
    sequence = decode_next_sequence(metadata, partition, manifest.partitions, offset)
    return offset if sequence is None else (sequence - partition) // manifest.partitions


def _runs(admin: KafkaAdminClient, manifest: Manifest) -> tuple[RunStatus, ...]:
    prefix = run_groups(manifest.stream, manifest.stream_id)
    groups_there = [group["group_id"] for group in ask_coordinator(admin.list_groups)]
    names = sorted(name.removeprefix(prefix) for name in groups_there if name.startswith(prefix))
    names = [name for name in names if is_name(name)]  # others are no runs of ours
    groups = {name: run_group(manifest, name) for name in names}
    committed = ask_coordinator(lambda: admin.list_group_offsets(dict.fromkeys(groups.values()))) if groups else {}
    reports = {name: latest_report(one.metadata for one in committed[group].values()) for name, group in groups.items()}
    return tuple(
        RunStatus(name, report, round(max(0.0, time.time() - report.time), 1))
        for name, report in reports.items()
        if report is not None
    )
