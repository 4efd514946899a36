from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka import errors as kafka_error
from kafka.structs import OffsetAndMetadata
from small_streams import read_orders, small_stream

from pipeline.chain_ends import implied_order
from pipeline.create import add_teacher
from pipeline.feed import feed
from pipeline.kafka.bids import Bid
from pipeline.kafka.clients import new_admin, new_producer
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator, describe_groups, refuse_errors
from pipeline.kafka.log import Commit
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import dead_letters_topic, run_group, soft_targets_topic, teacher_group, work_orders_topic
from pipeline.sequence import Sequence
from pipeline.status import describe, lag
from pipeline.stream_status import (
    PartitionStatus,
    RunStatus,
    StreamDescription,
    StreamStatus,
    TeacherStatus,
    WorkerStatus,
)
from pipeline.streams import Stream, open_stream
from schemas.commits import RunReport, encode_next_sequence
from schemas.records import Teacher, TeacherInput, TeacherOutput

pytestmark = pytest.mark.kafka


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]) -> Stream:
    made = small_stream(kafka_settings, fresh_name("status"))
    signal = TeacherInput("x", "signal", "float32", "", 1.0, ())
    output = TeacherOutput.of_classes("logits", "logits", 10)
    teacher = Teacher(made.manifest.stream_id, "cnn", "ab" * 32, "cnn.onnx", (signal,), (output,), inference_batch=8)
    add_teacher(kafka_settings, made, teacher)
    feed(KafkaCluster(kafka_settings), made)
    return open_stream(kafka_settings, made.manifest.stream)


@pytest.fixture
def admin(kafka_settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    client = new_admin(kafka_settings)
    yield client
    client.close()


def printed(status: StreamStatus | StreamDescription) -> Any:
    """What `--json` comes to."""
    return json.loads(json.dumps(status.as_dict()))


def orders_partition(stream: Stream, partition: int) -> TopicPartition:
    return TopicPartition(work_orders_topic(stream.manifest.stream), partition)


def test_a_stream_that_nobody_labels_lags_by_all_of_it(kafka_settings: KafkaSettings, stream: Stream) -> None:
    assert printed(lag(kafka_settings, stream)) == {
        "fed_per_second": None,
        "stream": stream.manifest.stream,
        "stream_id": stream.manifest.stream_id,
        "orders": 20,
        "fed": 20,
        "teachers": [
            {
                "name": "cnn",
                "group": teacher_group(stream.manifest, "cnn"),
                "state": "Dead",
                "members": [],
                "labelled": 0,
                "lag": 20,
                "offsets": [{"partition": p, "committed": 0, "end": 5, "lag": 5, "labelled": 0} for p in range(4)],
                "published": 0,
                "labelled_per_second": None,
            }
        ],
        "unread_teachers": {},
        "runs": [],
        "dead_letters": 0,
    }


def test_every_key_of_the_json_is_documented() -> None:
    row = PartitionStatus(0, committed=1, end=2, lag=1, labelled=1)
    worker = WorkerStatus("w", "w-1", "here", 1, None, 1, 1, owned=(0,))
    teacher = TeacherStatus("cnn", "group", "Stable", (worker,), 1, 1, (row,), published=1)
    run = RunStatus("mlp", report(1, 1.0), 0.0)
    keys = all_keys(StreamStatus("s", "id", 2, 2, (teacher,), {}, (run,), dead_letters=0).as_dict())
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    text = page.partition("### distillog topics lag")[2].partition("\n### ")[0]
    assert [key for key in sorted(keys) if not re.search(rf"[`.]{key}(\[\])?`", text)] == []


def all_keys(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(all_keys, value.values()))
    return set().union(*map(all_keys, value)) if isinstance(value, list | tuple) else set()


def test_an_order_that_was_published_twice_is_fed_once(kafka_settings: KafkaSettings, stream: Stream) -> None:
    orders = read_orders(kafka_settings, stream)
    producer = new_producer(kafka_settings)
    try:
        for partition, again in ((0, orders[0][2:]), (1, orders[1]), (2, orders[2][:1])):
            for value in (*(order.encode() for order in again), b"no order"):
                producer.send(orders_partition(stream, partition).topic, value, partition=partition).get(timeout=10)
    finally:
        producer.close(timeout=5)
    assert lag(kafka_settings, stream).fed == 20


def test_what_is_no_order_of_the_stream_is_not_fed(
    kafka_settings: KafkaSettings, fresh_name: Callable[[str], str]
) -> None:
    empty = small_stream(kafka_settings, fresh_name("status"))
    alien = small_stream(kafka_settings, fresh_name("status"))
    orders = Sequence.of(empty.manifest)
    invented = replace(implied_order(empty.manifest.stream_id, orders, 13), sample_ids=np.arange(10))
    foreign = implied_order(alien.manifest.stream_id, Sequence.of(alien.manifest), 17)
    own = implied_order(empty.manifest.stream_id, orders, 5)
    producer = new_producer(kafka_settings)
    try:
        for order in (invented, foreign, own, own):
            producer.send(orders_partition(empty, 1).topic, order.encode(), partition=1).get(timeout=10)
    finally:
        producer.close(timeout=5)
    assert lag(kafka_settings, empty).fed == 2  # orders 1 and 5: a chain has no holes


def test_commits_count_as_labelled_by_their_metadata(
    kafka_settings: KafkaSettings, stream: Stream, admin: KafkaAdminClient
) -> None:
    group = teacher_group(stream.manifest, "cnn")
    commits = {
        orders_partition(stream, 0): OffsetAndMetadata(3, '{"next_sequence": 8}', -1),  # one of the 3 was a repetition
        orders_partition(stream, 1): OffsetAndMetadata(5, '{"next_sequence": 21}', -1),
        orders_partition(stream, 2): OffsetAndMetadata(1, "", -1),
    }
    ask_coordinator(lambda: admin.alter_group_offsets(group, commits))
    (teacher,) = lag(kafka_settings, stream).teachers
    assert (teacher.state, teacher.labelled, teacher.lag) == ("Empty", 2 + 5 + 1, 2 + 0 + 4 + 5)
    assert [row.committed for row in teacher.offsets] == [3, 5, 1, 0]


def test_members_are_shown_with_their_speeds_partitions_and_lag(
    kafka_settings: KafkaSettings, stream: Stream, eventually: Callable[..., object]
) -> None:
    group, topic = teacher_group(stream.manifest, "cnn"), work_orders_topic(stream.manifest.stream)
    cluster = KafkaCluster(kafka_settings)
    bids = {"worker-1": Bid(3000.0, {}), "worker-2": Bid(1000.0, {}), "worker-3": Bid(10.0, {})}
    with ExitStack() as closing:
        members = {}
        for name, bid in bids.items():
            members[name] = cluster.member(group, topic, name=name, session_timeout=6.0, bid=partial(returned, bid))
            closing.callback(members[name].close)

        def settled() -> bool:
            for member in members.values():
                member.poll(0.1)
            owned = [len(member.assignment()) for member in members.values() if member.membership]
            return sum(owned) == 4 and len(owned) == 3

        eventually(settled, 30.0, "three members with four partitions")
        before = lag(kafka_settings, stream)
        (owned,) = members["worker-2"].assignment()
        assert members["worker-2"].commit({owned: Commit(3, encode_next_sequence(owned.partition + 12))}, 5.0)
        after = lag(kafka_settings, stream)
    (teacher,) = after.teachers
    assert (teacher.state, teacher.settled) == ("Stable", True)
    assert {name: (one.partitions, one.samples_per_second, one.lag) for name, one in teacher.workers.items()} == {
        "worker-1": (3, 3000.0, 15),
        "worker-2": (1, 1000.0, 2),
        "worker-3": (0, 10.0, 0),
    }
    for name, one in teacher.workers.items():
        assert (one.host, one.member_id.startswith(name)) == ("127.0.0.1", True)
    rated = after.since(before, 2.0).teacher("cnn")
    assert {name: one.labelled_per_second for name, one in rated.workers.items()} == {
        "worker-1": 0.0,
        "worker-2": 1.5,
        "worker-3": 0.0,
    }


def returned(bid: Bid) -> Bid:
    return bid


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (kafka_error.CoordinatorLoadInProgressError, kafka_error.CoordinatorNotAvailableError),
        (kafka_error.NotCoordinatorError, kafka_error.CoordinatorNotAvailableError),
        (kafka_error.GroupAuthorizationFailedError, kafka_error.GroupAuthorizationFailedError),
    ],
)
def test_a_group_that_cannot_be_described_is_not_one_without_members(
    stream: Stream, admin: KafkaAdminClient, error: type[kafka_error.KafkaError], says: type[Exception]
) -> None:
    group = teacher_group(stream.manifest, "cnn")
    described = ask_coordinator(lambda: describe_groups(admin, [group]))
    assert described[group]["members"] == []  # nobody has joined it yet: an error to Kafka, and none of ours
    answer = described[group] | {"error": str(error("")), "group_state": ""}
    with pytest.raises(says, match=re.escape(group)):
        refuse_errors({group: answer})


def test_runs_are_shown_with_their_cursors(
    kafka_settings: KafkaSettings, stream: Stream, admin: KafkaAdminClient
) -> None:
    position = RunReport(1, 7, 4, time.time() - 100, "a1b2", "here", "training", passes=3)
    commit = {orders_partition(stream, 0): OffsetAndMetadata(0, position.encode(), -1)}
    ask_coordinator(lambda: admin.alter_group_offsets(run_group(stream.manifest, "mlp"), commit))
    other = {orders_partition(stream, 0): OffsetAndMetadata(0, "not a report", -1)}
    ask_coordinator(lambda: admin.alter_group_offsets(run_group(stream.manifest, "odd"), other))
    (run,) = printed(lag(kafka_settings, stream))["runs"]
    assert 100 <= run.pop("age") < 130
    assert run == {
        "name": "mlp",
        "state": "training",
        "pass": 1,
        "passes": 3,
        "sequence": 7,
        "checkpointed": 4,
        "host": "here",
        "run_id": "a1b2",
        "orders_per_second": None,
    }


def test_labels_and_dead_letters_are_counted(kafka_settings: KafkaSettings, stream: Stream) -> None:
    name = stream.manifest.stream
    producer = new_producer(kafka_settings)
    try:
        producer.send(soft_targets_topic(name, "cnn"), value=b"x", partition=2).get(timeout=10)
        producer.send(dead_letters_topic(name), value=b"x", partition=0).get(timeout=10)
    finally:
        producer.close(timeout=5)
    reading = lag(kafka_settings, stream)
    assert (reading.teachers[0].published, reading.dead_letters) == (1, 1)


def test_describe_holds_the_manifest_the_declarations_and_the_lag(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    described = printed(describe(kafka_settings, stream))
    now = printed(lag(kafka_settings, stream))
    assert described.items() >= {key: value for key, value in now.items() if key != "teachers"}.items()
    assert described["view"] == {"name": "none", "params": {}, "version": 2}
    assert (described["samples"], described["order_size"], described["codec"]) == (200, 10, "float16")
    (teacher,) = described["teachers"]
    assert {**teacher, **now["teachers"][0], "sha256": "ab" * 32} == teacher
    (fed,) = teacher["inputs"]
    assert (fed["input"], fed["field"], fed["scale"], fed["size"]) == ("x", "signal", 1.0, [])
    assert fed["text"] == "signal -> x: float32, *1"


def report(sequence: int, at: float) -> RunReport:
    """Of a run over a stream of 100 orders."""
    return RunReport(sequence // 100, sequence % 100, 0, at, "a1b2", "here", "training")


def reading(fed: int, labelled: int, run: RunStatus) -> StreamStatus:
    teacher = TeacherStatus("cnn", "group", "Stable", (), labelled, 0, (), published=0)
    return StreamStatus("s", "id", 100, fed, (teacher,), {}, (run,), dead_letters=0)


def test_rates_come_from_two_readings() -> None:
    before = reading(10, 4, RunStatus("mlp", report(98, 1.0), 0.0))
    after = reading(30, 9, RunStatus("mlp", report(103, 2.0), 0.0)).since(before, 2.0)
    assert after.fed_per_second == 10.0
    assert after.teachers[0].labelled_per_second == 2.5
    assert after.runs[0].orders_per_second == 2.5


@pytest.mark.parametrize(
    ("now", "age", "shown"),
    [(8.0, 0.3, 0.3), (7.0, 42.0, 42.0), (8.0, 86_400.9, 2.0), (8.0, 0.0, 0.0)],
    ids=["of now", "silent", "of a clock a day behind", "of a clock ahead"],
)
def test_a_report_that_came_between_two_readings_is_new_whatever_its_clock_says(
    now: float, age: float, shown: float
) -> None:
    first = reading(9, 0, RunStatus("mlp", report(1, 7.0), 0.7))
    second = reading(9, 0, RunStatus("mlp", report(1, now), age))
    assert second.since(first, 2.0).runs[0].age == shown
