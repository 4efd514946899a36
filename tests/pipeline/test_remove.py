"""A teacher that is removed: nothing of it is left but its name, which nobody can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result
from kafka import TopicPartition
from small_streams import small_stream, working

from pipeline.cli import main
from pipeline.create import add_teacher
from pipeline.feed import feed
from pipeline.kafka.clients import new_admin
from pipeline.kafka.cluster import KafkaCluster
from pipeline.kafka.coordinator import ask_coordinator
from pipeline.kafka.log import Commit
from pipeline.kafka.settings import KafkaSettings
from pipeline.manifest_log import append, read_manifest_log, removed_key
from pipeline.names import soft_targets_topic, teacher_group, work_orders_topic
from pipeline.remove import remove_teacher
from pipeline.streams import Stream, TopicGuard, delete_stream, open_stream
from schemas.errors import StreamChanged, StreamConflict, StreamNotFound
from schemas.records import Teacher, TeacherInput, TeacherOutput

pytestmark = pytest.mark.kafka
Name = Callable[[str], str]


def teacher(stream: Stream, name: str) -> Teacher:
    return Teacher(
        stream_id=stream.manifest.stream_id,
        name=name,
        sha256="ab" * 32,
        model_file="m.onnx",
        inputs=(TeacherInput("x", "signal", "float32", "", 1.0, ()),),
        outputs=(TeacherOutput.of_classes("logits", "logits", 10),),
        inference_batch=8,
    )


@pytest.fixture
def stream(kafka_settings: KafkaSettings, fresh_name: Name) -> Stream:
    """With the teachers "cnn", which has committed, and "vit"."""
    made = small_stream(kafka_settings, fresh_name("s"))
    for name in ("cnn", "vit"):
        add_teacher(kafka_settings, made, teacher(made, name))
    feed(KafkaCluster(kafka_settings), made)
    cluster = KafkaCluster(kafka_settings).admin()
    try:
        orders = TopicPartition(work_orders_topic(made.manifest.stream), 2)
        cluster.commit(teacher_group(made.manifest, "cnn"), {orders: Commit(1)})
    finally:
        cluster.close()
    return open_stream(kafka_settings, made.manifest.stream)


def left(settings: KafkaSettings, stream: Stream) -> tuple[bool, bool]:
    """Whether the topic and the group of "cnn" are there."""
    admin = new_admin(settings)
    try:
        groups = {group["group_id"] for group in ask_coordinator(admin.list_groups)}
        topics = admin.list_topics()
    finally:
        admin.close()
    return soft_targets_topic(stream.manifest.stream, "cnn") in topics, teacher_group(stream.manifest, "cnn") in groups


def again(settings: KafkaSettings, stream: Stream) -> Stream:
    return open_stream(settings, stream.manifest.stream)


def test_topic_and_commits_of_a_removed_teacher_go_and_the_other_teachers_stay(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    assert left(kafka_settings, stream) == (True, True)
    remove_teacher(kafka_settings, stream, "cnn")
    assert left(kafka_settings, stream) == (False, False)
    now = again(kafka_settings, stream)
    assert (list(now.teachers), now.removed) == (["vit"], {"cnn"})
    with pytest.raises(StreamNotFound, match=r"teacher 'cnn' was removed from stream .* \(there: vit\)"):
        now.teacher("cnn")
    with pytest.raises(StreamNotFound, match="teacher 'cnn' was removed"):
        remove_teacher(kafka_settings, now, "cnn")
    with pytest.raises(StreamNotFound, match="has no teacher 'dnn'"):
        remove_teacher(kafka_settings, now, "dnn")


def test_the_name_of_a_removed_teacher_is_not_given_again(kafka_settings: KafkaSettings, stream: Stream) -> None:
    remove_teacher(kafka_settings, stream, "cnn")
    now = again(kafka_settings, stream)
    with pytest.raises(StreamConflict, match=r"a teacher 'cnn' was removed .* give another name"):
        add_teacher(kafka_settings, now, teacher(now, "cnn"))
    with pytest.raises(StreamNotFound, match="was removed"):  # whoever looked before the removal, too
        add_teacher(kafka_settings, replace(stream, teachers={}), teacher(stream, "cnn"))
    assert add_teacher(kafka_settings, now, teacher(now, "cnn-2"))
    assert list(again(kafka_settings, stream).teachers) == ["vit", "cnn-2"]


def test_a_removal_that_was_cut_short_is_completed_by_the_same_call(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    name, record = stream.manifest.stream, teacher(stream, "cnn").encode(stream.manifest.schema_fingerprints)
    append(kafka_settings, name, removed_key("cnn"), record)
    cut_short = again(kafka_settings, stream)
    assert list(cut_short.teachers) == ["vit"]
    assert left(kafka_settings, stream) == (True, True)
    remove_teacher(kafka_settings, cut_short, "cnn")
    assert left(kafka_settings, stream) == (False, False)


def test_a_teacher_at_work_is_not_removed(
    kafka_settings: KafkaSettings, stream: Stream, eventually: Callable[..., object]
) -> None:
    with (
        working(kafka_settings, stream, "cnn", eventually),
        pytest.raises(StreamConflict, match="has members: stop all workers of teacher 'cnn'"),
    ):
        remove_teacher(kafka_settings, stream, "cnn")
    assert list(again(kafka_settings, stream).teachers) == ["cnn", "vit"]
    assert left(kafka_settings, stream) == (True, True)


def test_who_still_uses_a_removed_teacher_is_told_what_may_have_happened(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    guard = TopicGuard(KafkaCluster(kafka_settings), [soft_targets_topic(stream.manifest.stream, "cnn")], interval=0)
    try:
        remove_teacher(kafka_settings, stream, "cnn")
        with pytest.raises(StreamChanged, match=r"was deleted while .* remove-teacher \S+ cnn`, and add it again"):
            guard.check(now=True)
    finally:
        guard.close()


def test_a_removal_of_the_stream_before_removes_nothing_of_one_of_its_name(
    kafka_settings: KafkaSettings, stream: Stream
) -> None:
    name, record = stream.manifest.stream, teacher(stream, "cnn").encode(stream.manifest.schema_fingerprints)
    delete_stream(kafka_settings, name)
    made = small_stream(kafka_settings, name)
    add_teacher(kafka_settings, made, teacher(made, "cnn"))
    append(kafka_settings, name, removed_key("cnn"), record)
    log = read_manifest_log(kafka_settings, name)
    assert (list(log.teachers), log.removed) == (["cnn"], set())


def test_the_command_asks_and_says_that_the_name_is_gone(kafka_settings: KafkaSettings, stream: Stream) -> None:
    name = stream.manifest.stream

    def call(*arguments: str, answer: str = "") -> Result:
        command = ["--bootstrap-servers", kafka_settings.bootstrap_servers, "topics", "remove-teacher", *arguments]
        return CliRunner().invoke(main, command, input=answer)

    refused = call(name, "cnn", answer="n\n")
    assert refused.exit_code == 1
    assert f"remove teacher cnn from stream {name} at " in refused.stderr
    assert "cnn" in again(kafka_settings, stream).teachers
    done = call(name, "cnn", answer="y\n")
    assert done.exit_code == 0
    assert done.stdout == f"removed teacher cnn from stream {name}; another one needs another name\n"
    assert call(name, "vit", "--yes", "--json").stdout == f'{{"stream": "{name}", "teacher": "vit", "removed": true}}\n'
    last = call(name, "cnn", "--yes")
    assert last.exit_code == 1
    assert last.stderr.startswith(f"error: teacher 'cnn' was removed from stream '{name}'")
