"""How a stream stands: what it is, how far it is fed and labelled, who works on it. Plain dicts that are JSON as is.

Figures come from offsets and commits; of records, the manifest's and each partition's last work orders are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
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
from pipeline.streams import Stream, topic_missing
from schemas.commits import decode_next_sequence
from schemas.errors import StreamChanged
from schemas.names import is_name
from schemas.records import Manifest, Teacher

RATE_INTERVAL = 1.0
"""seconds between the two readings that give a rate"""


def describe(settings: KafkaSettings, stream: Stream, rates: bool = False) -> dict[str, Any]:
    """Everything about a stream: its manifest's facts, its teachers' declarations, and all of `lag`.

    Raises:
        StreamChanged, BrokerUnavailable: as `lag`.
    """
    now = lag(settings, stream, rates)
    declared = {teacher.name: _declaration(teacher) for teacher in stream.teachers.values()}
    teachers = [{**declared[teacher["name"]], **teacher} for teacher in now["teachers"]]
    return {**_facts(stream.manifest), **now, "teachers": teachers}


def lag(settings: KafkaSettings, stream: Stream, rates: bool = False) -> dict[str, Any]:
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
        return with_rates(first, second, time.monotonic() - begun)


@contextmanager
def readings(settings: KafkaSettings, stream: Stream) -> Iterator[Callable[[], dict[str, Any]]]:
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


def with_rates(first: dict[str, Any], second: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Add `*_per_second` to the second of two readings: orders fed, labelled and trained on."""

    def rate(before: int, after: int) -> float:
        return round((after - before) / seconds, 1)

    teachers = {teacher["name"]: teacher for teacher in first["teachers"]}
    runs = {run["name"]: run for run in first["runs"]}
    return {
        **second,
        "fed_per_second": rate(first["fed"], second["fed"]),
        "teachers": [_teacher_rates(teachers.get(now["name"], now), now, rate) for now in second["teachers"]],
        "runs": [
            {
                **now,
                "age": _age(runs.get(now["name"], now), now, seconds),
                "orders_per_second": rate(_trained(runs.get(now["name"], now), second), _trained(now, second)),
            }
            for now in second["runs"]
        ],
    }


def _teacher_rates(before: dict[str, Any], now: dict[str, Any], rate: Callable[[int, int], float]) -> dict[str, Any]:
    rows = {row["partition"]: row["labelled"] for row in before["offsets"]}
    members = [
        # Of what it has now: who labelled the first of it does not matter.
        {**member, "labelled_per_second": rate(sum(rows[each] for each in member["owned"]), member["labelled"])}
        for member in now["members"]
    ]
    return {**now, "members": members, "labelled_per_second": rate(before["labelled"], now["labelled"])}


_REPORTED = ("state", "pass", "sequence", "checkpointed")


def _age(before: dict[str, Any], now: dict[str, Any], seconds: float) -> float:
    """Seconds since a run's last report: its clock may be wrong, but a report that came between two readings is new."""
    moved = any(before[what] != now[what] for what in _REPORTED if what in before)
    came = moved or now["age"] < before["age"] + seconds / 2
    return float(min(now["age"], round(seconds, 1)) if came else now["age"])


def _trained(run: dict[str, Any], reading: dict[str, Any]) -> int:
    return int(run["pass"] * reading["orders"] + run["sequence"])


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "dataset": manifest.dataset,
        "dataset_fingerprint": manifest.dataset_fingerprint,
        "samples": manifest.num_samples,
        "classes": manifest.num_classes,
        "class_names": list(manifest.class_names),
        "view": {"name": manifest.view.name, "params": dict(manifest.view.params), "version": manifest.view.version},
        "order_size": manifest.order_size,
        "epochs": manifest.epochs,
        "seed": manifest.seed,
        "partitions": manifest.partitions,
        "codec": str(manifest.codec),
        "max_record_bytes": manifest.max_record_bytes,
    }


def _declaration(teacher: Teacher) -> dict[str, Any]:
    return {
        "model_file": teacher.model_file,
        "sha256": teacher.sha256,
        "output": teacher.output.output,
        "kind": teacher.output.kind,
        "classes": teacher.output.num_classes,
        "inference_batch": teacher.inference_batch,
        "inputs": [
            {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(one).items()}
            | {"text": str(one)}
            for one in teacher.inputs
        ],
    }


def _read(admin: KafkaAdminClient, reader: Reader, stream: Stream) -> dict[str, Any]:
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
    return {
        "stream": manifest.stream,
        "stream_id": manifest.stream_id,
        "orders": Sequence.of(manifest).num_orders,
        "fed": num_fed(reader, manifest),
        "teachers": [
            {
                "name": name,
                "group": group,
                **_labelling(
                    manifest,
                    described[group],
                    ends,
                    with_expired(reader, manifest, name, committed.get(group, {}), published[name]),
                ),
                "published": sum(published[name]),
            }
            for name, group in groups.items()
        ],
        "unread_teachers": {name: f"needs a newer Distillog ({why})" for name, why in stream.unread.items()},
        "runs": runs,
        "dead_letters": _ends(admin, dead_letters_topic(manifest.stream), 1)[0],
    }


def _ends(admin: KafkaAdminClient, topic: str, partitions: int) -> list[int]:
    """[P] end offsets."""
    wanted = [TopicPartition(topic, partition) for partition in range(partitions)]
    try:
        found = last_offsets(admin, dict.fromkeys(wanted, OffsetSpec.LATEST))
    except UnknownTopicOrPartitionError:
        raise StreamChanged(topic_missing(topic)) from None
    return [int(found[partition].offset) for partition in wanted]


def _labelling(
    manifest: Manifest, group: dict[str, Any], ends: list[int], committed: dict[TopicPartition, Any]
) -> dict[str, Any]:
    """Who labels, and how far they are: committed against end offsets, and orders labelled."""
    topic = work_orders_topic(manifest.stream)
    rows = []
    for partition, end in enumerate(ends):
        commit = committed.get(TopicPartition(topic, partition))
        offset = commit.offset if commit is not None and commit.offset >= 0 else 0
        labelled = _labelled(manifest, partition, offset, commit.metadata if commit else "")
        lag = max(0, end - offset)
        rows.append({"partition": partition, "committed": offset, "end": end, "lag": lag, "labelled": labelled})
    return {
        "state": group["group_state"],
        "members": sorted(map(partial(_member, rows), members_of(group)), key=lambda member: str(member["client_id"])),
        "labelled": sum(row["labelled"] for row in rows),
        "lag": sum(row["lag"] for row in rows),
        "offsets": rows,
    }


def _member(rows: list[dict[str, int]], member: GroupMember) -> dict[str, Any]:
    owned = [rows[partition] for partition in member.partitions if partition < len(rows)]
    return {
        "client_id": member.name,
        "member_id": member.member_id,
        "host": member.host,
        "partitions": len(owned),
        "samples_per_second": member.bid.speed or None,
        "labelled": sum(row["labelled"] for row in owned),
        "lag": sum(row["lag"] for row in owned),
        "owned": [row["partition"] for row in owned],
    }


def _labelled(manifest: Manifest, partition: int, offset: int, metadata: str | None) -> int:
    """Orders of a partition that a group has labelled: exact by the commit's metadata, else as many as records."""
    sequence = decode_next_sequence(metadata, partition, manifest.partitions, offset)
    return offset if sequence is None else (sequence - partition) // manifest.partitions


def _runs(admin: KafkaAdminClient, manifest: Manifest) -> list[dict[str, Any]]:
    prefix = run_groups(manifest.stream, manifest.stream_id)
    groups_there = [group["group_id"] for group in ask_coordinator(admin.list_groups)]
    names = sorted(name.removeprefix(prefix) for name in groups_there if name.startswith(prefix))
    names = [name for name in names if is_name(name)]  # others are no runs of ours
    groups = {run_group(manifest, name): None for name in names}
    committed = ask_coordinator(lambda: admin.list_group_offsets(groups)) if groups else {}
    runs = []
    for name in names:
        report = latest_report(one.metadata for one in committed[run_group(manifest, name)].values())
        if report is not None:
            runs.append(
                {
                    "name": name,
                    "state": report.state,
                    "pass": report.pass_number,
                    "sequence": report.sequence,
                    "checkpointed": report.checkpointed,
                    "age": round(max(0.0, time.time() - report.time), 1),
                    "host": report.host,
                    "run_id": report.run_id,
                }
            )
    return runs
