"""Streams that are not there, are taken away, trimmed or too large, and clusters that do not answer."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from support.log_checker import assert_nothing_lost, check_labels, check_orders
from support.models import classifier
from support.processes import Distillog
from support.small_runs import checkpoints, run_file, weights
from support.streams import num_orders, publish, stream_with_teacher

from pipeline.kafka.clients import new_admin
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import soft_targets_topic, work_orders_topic
from pipeline.streams import Stream, list_streams

pytestmark = [pytest.mark.kafka, pytest.mark.faults, pytest.mark.timeout(300)]

SHAPE = (1, 40)
DATASET = "mnist1d?split=train&n=320"
ORDERS = 40
OPTIONS = {"order_size": 8}
NOBODY = "127.0.0.1:9"
Labels = Callable[[Stream], int]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "teacher.onnx", SHAPE)


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Callable[[str], str], model: Path) -> Stream:
    return stream_with_teacher(kafka_settings, fresh_name("stream"), model, DATASET, OPTIONS)


COMMANDS = {
    "feed": lambda name, model, file: ("feed", name),
    "teach": lambda name, model, file: ("teach", name, model),
    "describe": lambda name, model, file: ("topics", "describe", name),
    "lag": lambda name, model, file: ("topics", "lag", name),
    "delete": lambda name, model, file: ("topics", "delete", name, "--yes"),
    "rewind": lambda name, model, file: ("topics", "rewind", name, "t", 0),
    "add-teacher": lambda name, model, file: ("topics", "add-teacher", name, "t", model),
    "start": lambda name, model, file: ("runs", "start", file, "--folder", file.parent / "runs"),
}


@pytest.mark.short
@pytest.mark.parametrize("command", COMMANDS)
def test_a_stream_that_is_not_there_is_one_line(
    command: str, distillog: Distillog, model: Path, tmp_path: Path
) -> None:
    arguments = COMMANDS[command]("nowhere", model, run_file(tmp_path, "nowhere"))
    distillog.refuse(*arguments, words=("no stream 'nowhere'", "distillog topics list"))


@pytest.mark.short
def test_a_cluster_that_does_not_answer_is_one_line(distillog: Distillog, model: Path, tmp_path: Path) -> None:
    env = {"KAFKA_BOOTSTRAP_SERVERS": NOBODY, "DISTILLOG_BOOTSTRAP_TIMEOUT": "0.3"}
    file = run_file(tmp_path, "digits")
    # Processes of their own: kafka-python leaves sockets of refused connections to the garbage collector.
    commands = [COMMANDS[name]("digits", model, file) for name in ("feed", "teach", "describe", "start")]
    for child in [distillog.start(*command, **env) for command in commands]:
        child.refuse(f"no answer from Kafka at {NOBODY}", "distillog broker status")


@pytest.mark.short
def test_a_port_that_is_taken_is_one_line(distillog: Distillog, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = ("broker", "start", "--folder", tmp_path / "broker", "--port", port)
        distillog.refuse(*broker, words=(f"port {port}",))


@pytest.mark.short
def test_orders_whose_labels_no_record_of_the_cluster_holds_are_refused_with_a_size_that_fits(
    distillog: Distillog, fresh_name: Callable[[str], str]
) -> None:
    name = fresh_name("large")
    create = ("topics", "create", name, "--dataset", "support.user_data:two_fields", "--classes", 100_000)
    distillog.refuse(*create, words=("message.max.bytes", "--order-size"))
    assert name not in list_streams(distillog.settings)


def test_labels_over_the_topics_limit_stop_the_worker_in_one_line_and_none_is_lost(
    distillog: Distillog, stream: Stream, model: Path
) -> None:
    name, settings = stream.manifest.stream, distillog.settings
    publish(settings, stream, range(ORDERS))
    limit(settings, soft_targets_topic(name, "t"), 300)
    distillog.start("teach", name, model).refuse("MessageSizeTooLarge", "smaller --order-size")
    limit(settings, soft_targets_topic(name, "t"), 1_048_588)
    distillog.start("teach", name, model, "--until-idle").succeed()
    assert_nothing_lost(check_labels(settings, stream))


def limit(settings: KafkaSettings, topic: str, num_bytes: int) -> None:
    admin = new_admin(settings)
    configs = {"max.message.bytes": str(num_bytes)}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
    admin.close()


@pytest.mark.parametrize("again", [False, True], ids=["deleted", "deleted and made again"])
def test_a_stream_taken_away_under_worker_and_student_stops_both(
    again: bool, distillog: Distillog, stream: Stream, model: Path, tmp_path: Path, eventually: Any
) -> None:
    name, settings, runs = stream.manifest.stream, distillog.settings, tmp_path / "runs"
    publish(settings, stream, range(ORDERS // 2))
    worker = distillog.start("teach", name, model)
    student = distillog.start("runs", "start", run_file(tmp_path, name), "--folder", runs)
    eventually(lambda: checkpoints(runs), 90, "a checkpoint")
    distillog.succeed("topics", "delete", name, "--yes")
    new = None
    if again:
        new = stream_with_teacher(settings, name, model, DATASET, OPTIONS)
        publish(settings, new, range(ORDERS))
    worker.refuse(name, "deleted")
    student.refuse(name, "deleted")
    if new is None:
        distillog.refuse("runs", "resume", "student", "--folder", runs, words=(f"no stream {name!r}",))
        return
    assert not check_labels(settings, new).accepted  # nobody worked on with what belongs to the old one
    words = (f"another stream '{name}' ({stream.manifest.stream_id})", f"(`rm -r {runs / 'student'}`)")
    distillog.refuse("runs", "resume", "student", "--folder", runs, words=words)
    distillog.start("teach", name, model, "--until-idle").succeed()
    assert_nothing_lost(check_labels(settings, new))


def trim(settings: KafkaSettings, topic: str, partition: int, offset: int) -> None:
    admin = new_admin(settings)
    admin.delete_records({TopicPartition(topic, partition): offset})
    admin.close()


def test_orders_trimmed_before_they_were_labelled_stop_the_worker(
    distillog: Distillog, stream: Stream, model: Path, num_labels: Labels
) -> None:
    name, settings = stream.manifest.stream, distillog.settings
    publish(settings, stream, range(ORDERS // 2))
    distillog.start("teach", name, model, "--until-idle").succeed()
    publish(settings, stream, range(ORDERS // 2, ORDERS))
    trim(settings, work_orders_topic(name), 1, 7)
    distillog.start("teach", name, model).refuse(work_orders_topic(name), "removed by retention")


def test_labels_trimmed_below_a_cursor_stop_the_student_and_those_of_the_past_do_not(
    distillog: Distillog, stream: Stream, model: Path, tmp_path: Path
) -> None:
    name, settings, runs = stream.manifest.stream, distillog.settings, tmp_path / "runs"
    topic = soft_targets_topic(name, "t")
    publish(settings, stream, range(ORDERS))
    distillog.start("teach", name, model, "--until-idle").succeed()
    whole, short = run_file(tmp_path, name, "whole"), run_file(tmp_path, name, "short", train={"steps": 13})
    distillog.succeed("runs", "start", whole, "--folder", runs, "--quiet")
    distillog.succeed("runs", "start", short, "--folder", runs, "--quiet")
    trim(settings, topic, 1, 3)  # 13 steps of 12 rows end in order 19: partition 1 stands at 5

    late = run_file(tmp_path, name, "late")
    words = (f"{topic}/1", "offset 0", "retention removed all records below 3")
    distillog.refuse("runs", "start", late, "--folder", runs, words=words)
    # The rest of the stream is there: a run whose cursor lies behind what was removed goes on.
    distillog.succeed("runs", "resume", "short", "--folder", runs, "--set", "train.steps=26", "--quiet")
    assert weights(runs, "short") == weights(runs, "whole")


@pytest.mark.short
def test_two_feeders_at_once_publish_repetitions_at_most(distillog: Distillog, stream: Stream, model: Path) -> None:
    name, settings = stream.manifest.stream, distillog.settings
    feeders = [distillog.start("feed", name) for _ in range(2)]
    for feeder in feeders:
        assert f"{num_orders(stream)} of {num_orders(stream)} orders are fed" in feeder.succeed()
    orders = check_orders(settings, stream)
    assert_nothing_lost(orders, "orders")
    distillog.start("teach", name, model, "--until-idle").succeed()
    labels = check_labels(settings, stream)
    assert_nothing_lost(labels, "labels")
    assert labels.duplicates == 0


@pytest.mark.short
def test_a_feeder_that_fills_what_another_one_left_counts_what_was_there(distillog: Distillog, stream: Stream) -> None:
    name, settings = stream.manifest.stream, distillog.settings
    publish(settings, stream, [0, 1, 3, *range(7, ORDERS, 4)])  # partition 3 is whole, the others are not
    said = distillog.succeed("feed", name)
    assert said == f"{name}: all orders are fed; published {ORDERS - 12}, {ORDERS} of {ORDERS} orders are fed\n"
    assert_nothing_lost(check_orders(settings, stream), "orders")
