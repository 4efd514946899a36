"""Where a partition's chain begins: at the group's commit, or where the logs say that the group came to.

Groups' offsets expire (7 days on a default broker), so no committed offset is not "the beginning": the soft targets
that are there say how far the group came.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from kafka import TopicPartition

from pipeline.chain_ends import chain_end, offset_of, sequence_at, soft_targets_sequence
from pipeline.kafka.log import Cluster, Commit, Reader
from pipeline.names import work_orders_topic
from schemas.commits import decode_next_sequence
from schemas.records import Manifest
from teacher_service.chain import Mark

log = logging.getLogger(__name__)


def find_starts(
    cluster: Cluster,
    manifest: Manifest,
    soft_targets: str,
    commits: Mapping[int, Commit | None],
    found: dict[int, Mark],
) -> dict[int, Mark]:
    """Say for each partition which work order its chain begins with, and where that lies.

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
        if commit is not None and (sequence := decode_next_sequence(commit.metadata)) is not None:
            starts[partition] = Mark(commit.offset, sequence)
        elif commit is None and partition in found:
            starts[partition] = found[partition]
    unknown = [partition for partition in commits if partition not in starts]
    if unknown:
        reader = cluster.reader()
        try:
            for partition in unknown:  # committed by a tool that knows no sequences
                if (commit := commits[partition]) is not None:
                    orders = TopicPartition(work_orders_topic(manifest.stream), partition)
                    sequence = sequence_at(reader, orders, manifest.stream_id, manifest.partitions, commit.offset)
                    starts[partition] = Mark(commit.offset, sequence)
            _read(reader, manifest, soft_targets, [one for one in unknown if commits[one] is None], found)
        finally:
            reader.close()
        starts |= {partition: found[partition] for partition in unknown if commits[partition] is None}
    return starts


def _read(reader: Reader, manifest: Manifest, soft_targets: str, partitions: list[int], found: dict[int, Mark]) -> None:
    """Find the ends of the soft targets' chains, then the work orders that come next."""
    # One topic after the other, and all partitions in one question: a reader that changes its topic fetches metadata
    # for 0.2 s.
    targets = {partition: TopicPartition(soft_targets, partition) for partition in partitions}
    ends = reader.ends(list(targets.values()))
    sequences = {
        partition: chain_end(reader, target, manifest.stream_id, manifest.partitions, soft_targets_sequence)
        if ends[target]
        else partition
        for partition, target in targets.items()
    }
    orders = {partition: TopicPartition(work_orders_topic(manifest.stream), partition) for partition in partitions}
    begins = reader.begins(list(orders.values()))
    for partition, sequence in sequences.items():
        if sequence == partition and begins[orders[partition]] == 0:
            offset = 0
        else:
            offset = offset_of(reader, orders[partition], manifest.stream_id, manifest.partitions, sequence)
        found[partition] = Mark(offset, sequence)
    num_continued = sum(sequence != partition for partition, sequence in sequences.items())
    if num_continued:
        log.warning(
            "%s: %d partitions have soft targets and no committed offset: going on behind those",
            soft_targets,
            num_continued,
        )
