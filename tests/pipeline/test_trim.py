"""Labels of old epochs that are deleted: never one that a run needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from kafka import TopicPartition
from small_streams import small_stream

from pipeline.cli import main
from pipeline.create import add_teacher
from pipeline.feed import feed
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.log import Commit
from pipeline.kafka.settings import KafkaSettings
from pipeline.names import run_group, soft_targets_topic
from pipeline.sequence import Sequence
from pipeline.streams import Stream, open_stream
from pipeline.trim import plan_trim, trim
from schemas.commits import RunReport
from schemas.errors import ConfigError
from schemas.records import Output, SoftTargets, Teacher, TeacherInput, TeacherOutput

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]
EPOCHS, ORDERS, P = 5, 20, 4
"""20 orders of 10 samples an epoch, in 4 partitions."""
RUN = RunReport(0, 0, 0, 1.0, "id", "host", "training", passes=1)


def labels(stream: Stream, teacher: Teacher, number: int) -> bytes:
    orders = Sequence.of(stream.manifest)
    epoch, ids = orders.epoch_of(number), orders.sample_ids(number)
    output = Output.of("logits", np.zeros((len(ids), 10), np.float32), stream.manifest.codec)
    identity = (stream.manifest.stream_id, number, epoch, ids, orders.view_seed(epoch))
    return SoftTargets(*identity, None, teacher.name, teacher.sha256, (output,)).encode()


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Name) -> Stream:
    """Teacher "a" has labelled 4 epochs and a bit, each order of partition 1 twice; "b" 3 epochs and a bit."""
    made = small_stream(kafka_settings, fresh_name("s"), epochs=EPOCHS)
    image = TeacherInput("x", "signal", "float32", "", 1.0, ())
    outputs = (TeacherOutput.of_classes("logits", "logits", 10),)
    for name in "ab":
        added = Teacher(made.manifest.stream_id, name, "ab" * 32, "m.onnx", (image,), outputs, 8)
        add_teacher(kafka_settings, made, added)
    feed(KafkaCluster(kafka_settings), made)
    opened = open_stream(kafka_settings, made.manifest.stream)
    writer = KafkaCluster(kafka_settings).appender(max_record_bytes=1 << 20)
    try:
        for name, count in (("a", 4 * ORDERS + 6), ("b", 3 * ORDERS + 2)):
            topic, said = soft_targets_topic(opened.manifest.stream, name), []
            for number in range(count):
                value = labels(opened, opened.teachers[name], number)
                said += [writer.append(topic, number % P, value) for _ in range(1 + (number % P == 1))]
            for each in said:
                each.result(30)
    finally:
        writer.close(5)
    return opened


def report(settings: KafkaSettings, stream: Stream, name: str, said: RunReport) -> None:
    admin = KafkaCluster(settings).admin()
    try:
        log = TopicPartition(soft_targets_topic(stream.manifest.stream, "a"), 0)
        admin.commit(run_group(stream.manifest, name), {log: Commit(0, said.encode())})
    finally:
        admin.close()


def first_left(settings: KafkaSettings, stream: Stream, teacher: str) -> list[int]:
    """Of each partition the sequence of the first record that is left."""
    topic = soft_targets_topic(stream.manifest.stream, teacher)
    reader = KafkaCluster(settings).reader()
    try:
        found: dict[int, int] = {}
        logs = [TopicPartition(topic, number) for number in range(P)]
        reader.assign(logs)
        for log, begin in reader.begins(logs).items():
            reader.seek(log, begin)
        while len(found) < P:
            for log, records in reader.poll(0.2).items():
                found.setdefault(log.partition, SoftTargets.decode(records[0].value or b"", "here").sequence)
        return [found[number] for number in range(P)]
    finally:
        reader.close()


def call(settings: KafkaSettings, *arguments: str, answer: str = "") -> Result:
    command = ["--bootstrap-servers", settings.bootstrap_servers, "topics", *arguments]
    return CliRunner().invoke(main, command, input=answer)


def test_the_newest_epochs_of_all_teachers_stay_and_nothing_before(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    # "b" has begun its fourth epoch, the newest that both have.
    plan = plan_trim(kafka_settings, stream, keep_epochs=2)
    assert (plan.sequence, plan.epochs, dict(plan.held_by)) == (2 * ORDERS, 2, {})
    assert plan.records == 2 * (2 * ORDERS + 2 * ORDERS // P)  # partition 1 has everything twice
    trim(kafka_settings, stream, plan)
    for teacher in "ab":
        assert first_left(kafka_settings, stream, teacher) == [40, 41, 42, 43]
    again = plan_trim(kafka_settings, stream, keep_epochs=2)
    assert (again.sequence, again.records, dict(again.offsets)) == (2 * ORDERS, 0, {})
    assert plan_trim(kafka_settings, stream, keep_epochs=9).records == 0


def test_what_a_run_needs_stays_whatever_is_asked(kafka_settings: KafkaSettings, stream: Stream) -> None:
    report(kafka_settings, stream, "done", replace(RUN, state="done"))
    report(kafka_settings, stream, "behind", replace(RUN, state="stopped", sequence=40, checkpointed=27))
    plan = plan_trim(kafka_settings, stream, keep_epochs=1)
    assert (plan.sequence, dict(plan.held_by)) == (27, {"behind": 27})
    for again in (replace(RUN, passes=2, checkpointed=27), replace(RUN, passes=None, checkpointed=27)):
        report(kafka_settings, stream, "again", again)
        plan = plan_trim(kafka_settings, stream, keep_epochs=1)
        assert (plan.sequence, plan.records, plan.held_by["again"]) == (0, 0, 0)
    # In its last pass it may have a checkpoint of the one before, behind which it goes on with the first order.
    report(kafka_settings, stream, "again", replace(RUN, pass_number=1, passes=2, sequence=70, checkpointed=59))
    plan = plan_trim(kafka_settings, stream, keep_epochs=1, without=["behind"])
    assert (plan.sequence, plan.runs, dict(plan.held_by)) == (0, ("again", "done"), {"again": 0})
    with pytest.raises(ConfigError, match="run 'behnd' has reported nothing"):
        plan_trim(kafka_settings, stream, keep_epochs=1, without=["behnd"])


def test_a_teacher_that_has_labelled_nothing_yet_needs_the_labels_of_the_others(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    add_teacher(kafka_settings, stream, replace(stream.teachers["a"], name="late"))
    late = open_stream(kafka_settings, stream.manifest.stream)
    assert plan_trim(kafka_settings, late, keep_epochs=1).records == 0


def test_the_command_says_what_goes_and_asks(kafka_settings: KafkaSettings, stream: Stream) -> None:
    name = stream.manifest.stream
    report(kafka_settings, stream, "behind", replace(RUN, checkpointed=30))
    told = call(kafka_settings, "trim", name, "--keep-epochs", "1", answer="n\n")
    assert told.exit_code != 0
    assert "labels of the orders 0 to 29 (1 whole epochs) by 2 teachers" in told.output
    assert "run behind needs those from order 30 on (if it will not be resumed: --without behind)" in told.output
    assert first_left(kafka_settings, stream, "a") == [0, 1, 2, 3]
    done = call(kafka_settings, "trim", name, "--keep-epochs", "1", "--yes", "--json")
    assert json.loads(done.stdout) | {"records": 0} == {
        "stream": name, "sequence": 30, "records": 0, "runs": ["behind"], "held_by": {"behind": 30}
    }  # fmt: skip
    assert first_left(kafka_settings, stream, "a") == [32, 33, 30, 31]
    nothing = call(kafka_settings, "trim", name, "--keep-epochs", "1")
    assert nothing.exit_code == 0
    assert "no labels to delete" in nothing.output
