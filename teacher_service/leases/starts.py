"""Where a partition's chain begins: at the group's commit, or where the logs say that the group came to.

Groups' offsets expire (7 days on a default broker), so no committed offset is not "the beginning": the soft targets
that are there say how far the group came.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing

from kafka import TopicPartition

from pipeline.chain_ends import offset_of, sequence_at, soft_targets_end
from pipeline.kafka.log import Cluster, Commit, Reader
from pipeline.names import work_orders_topic
from schemas.commits import LeaseNote, decode_next_sequence
from schemas.records import Manifest
from teacher_service.leases.chain import Mark

log = logging.getLogger(__name__)


def find_starts(
    cluster: Cluster,
    manifest: Manifest,
    soft_targets: str,
    commits: Mapping[int, Commit | None],
    found: dict[int, Mark],
) -> dict[int, Mark]:
    """Say for each partition which work order its chain begins with, where that lies, and how it was held before.

    Args:
        cluster: where the logs are.
        manifest: the stream's.
        soft_targets: topic of the teacher's soft targets.
        commits: partition -> what its group committed; None: nothing.
        found: starts read from the logs earlier and not committed since; those read now are added.

    Raises:
        SequenceGap: retention removed the work order to begin with.
        BrokerUnavailable: no answer; what was found so far is remembered.
    """
    starts: dict[int, Mark] = {}
    for partition, commit in commits.items():
        if commit is None:
            if partition in found:
                starts[partition] = found[partition]
            continue
        sequence = decode_next_sequence(commit.metadata, partition, manifest.partitions, commit.offset)
        if sequence is not None:
            starts[partition] = Mark(commit.offset, sequence, LeaseNote.decode(commit.metadata))
    unknown = [partition for partition in commits if partition not in starts]
    if unknown:
        with closing(cluster.reader()) as reader, closing(cluster.reader()) as of_orders:
            for partition in unknown:  # committed by a tool that knows no sequences, or by nobody of ours
                if (commit := commits[partition]) is not None:
                    orders = TopicPartition(work_orders_topic(manifest.stream), partition)
                    sequence = sequence_at(of_orders, orders, manifest.stream_id, manifest.partitions, commit.offset)
                    starts[partition] = Mark(commit.offset, sequence)
            missing = [partition for partition in unknown if commits[partition] is None]
            _read(reader, of_orders, manifest, soft_targets, missing, found)
        starts |= {partition: found[partition] for partition in missing}
    return starts


def _read(
    reader: Reader,
    of_orders: Reader,
    manifest: Manifest,
    soft_targets: str,
    partitions: list[int],
    found: dict[int, Mark],
) -> None:
    """Find the ends of the soft targets and the work orders that come next; each is remembered once it is known."""
    # All partitions in one question, and a reader a topic: one that changes its topic fetches metadata for 0.2 s.
    targets = {partition: TopicPartition(soft_targets, partition) for partition in partitions}
    orders = {partition: TopicPartition(work_orders_topic(manifest.stream), partition) for partition in partitions}
    ends, begins = reader.ends(list(targets.values())), of_orders.begins(list(orders.values()))
    stream_id, stride = manifest.stream_id, manifest.partitions
    num_continued = 0
    for partition, target in targets.items():
        sequence, offset = partition, 0
        if ends[target]:
            sequence = soft_targets_end(reader, target, stream_id, stride)
        if sequence != partition or begins[orders[partition]]:
            offset = offset_of(of_orders, orders[partition], stream_id, stride, sequence)
        found[partition] = Mark(offset, sequence)
        num_continued += sequence != partition
    if num_continued:
        log.warning(
            "%s: %d partitions have soft targets and no committed offset: going on behind those",
            soft_targets,
            num_continued,
        )
